"""What is around every page: navigation, organizations to switch between, a suspension."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from django.http import Http404, HttpRequest
from django.urls import reverse
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy as _

from accounts.access import Access, NoOrganization, Permission, current, memberships
from accounts.models import User
from billing.pages.words import Standing, standing
from billing.spending import ledger

if TYPE_CHECKING:
    from django_stubs_ext import StrPromise


@dataclass(frozen=True, slots=True)
class Entry:
    """A page in the navigation; `icon` is a symbol of the sprite, `root` where its pages begin."""

    url_name: str
    label: "StrPromise"
    icon: str
    permission: Permission | None = None
    root: str = ""

    @property
    def url(self) -> str:
        """Return the address of the page."""
        return reverse(self.url_name)


# A new page is a row here, or lies below one: that is the one lit on it.
ENTRIES = (
    Entry("dashboard", _("Overview"), "home", Permission.VIEW),
    Entry("playground", _("Playground"), "sparkle", Permission.DRAW),
    Entry("gallery", _("Gallery"), "image", Permission.VIEW),
    Entry("usage", _("Usage"), "chart", Permission.VIEW),
    Entry("keys", _("API keys"), "key", Permission.VIEW),
    Entry("billing", _("Billing"), "card", Permission.VIEW_BILLING),
    Entry("settings", _("Settings"), "settings", Permission.VIEW),
)
NEW = Entry("organization_new", _("New organization"), "plus")
# A person's own pages, in the menu.
ACCOUNT = (
    Entry("account_email", _("Email addresses"), "mail", root="/accounts/"),
    Entry("account_change_password", _("Password"), "lock", root="/accounts/password/"),
    Entry("mfa_index", _("Two-factor & passkeys"), "shield"),
    Entry("usersessions_list", _("Sessions"), "device"),
)


def lit(path: str) -> Entry | None:
    """Return the entry of a page: of those whose address it begins with, the longest."""
    found = [
        (len(root), one)
        for one in (*ENTRIES, NEW, *ACCOUNT)
        if f"{path}/".startswith(f"{(root := (one.root or one.url).rstrip('/'))}/")
    ]
    return max(found, key=lambda one: one[0])[1] if found else None


def shell(request: HttpRequest) -> dict[str, Any]:
    """Return what base.html shows around a page; read only if the template asks."""
    access = cache(lambda: _access(request))
    return {
        "access": SimpleLazyObject(access),
        "navigation": SimpleLazyObject(lambda: _navigation(request, access())),
        "account_menu": SimpleLazyObject(lambda: _items(request, ACCOUNT)),
        "new_organization": SimpleLazyObject(lambda: _items(request, [NEW])[0]),
        "trouble": SimpleLazyObject(lambda: _trouble(access())),
        "memberships": SimpleLazyObject(
            lambda: memberships(cast(User, request.user)) if _known(request) else []
        ),
    }


def _known(request: HttpRequest) -> bool:
    # A page of an error may come before there is a session.
    return hasattr(request, "user") and request.user.is_authenticated


def _access(request: HttpRequest) -> Access | None:
    passed: Access | None = getattr(request, "access", None)
    if passed is not None or not _known(request):
        return passed
    try:
        return current(request)
    except (NoOrganization, Http404):
        return None


def _trouble(access: Access | None) -> Standing | None:
    return standing(ledger.balance(access.organization)) if access is not None else None


def _navigation(request: HttpRequest, access: Access | None) -> list[dict[str, Any]]:
    if access is None:
        return []
    shown = (one for one in ENTRIES if one.permission is None or access.may(one.permission))
    return _items(request, shown)


def _items(request: HttpRequest, entries: Iterable[Entry]) -> list[dict[str, Any]]:
    here = lit(request.path)
    return [{"entry": one, "here": one is here} for one in entries]

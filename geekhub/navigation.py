"""What stands around every page: the navigation, the organizations to switch between."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from django.http import Http404, HttpRequest
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy as _

from accounts.access import Access, NoOrganization, Permission, current, memberships
from accounts.models import User

if TYPE_CHECKING:
    from django_stubs_ext import StrPromise


@dataclass(frozen=True, slots=True)
class Entry:
    """A page in the navigation, shown to whoever may open it; `icon` is a symbol of the sprite."""

    url_name: str
    label: "StrPromise"
    icon: str
    permission: Permission


# A new page is a row here.
ENTRIES = (
    Entry("dashboard", _("Overview"), "home", Permission.VIEW),
    Entry("playground", _("Playground"), "sparkle", Permission.DRAW),
    Entry("gallery", _("Gallery"), "image", Permission.VIEW),
    Entry("usage", _("Usage"), "chart", Permission.VIEW),
    Entry("keys", _("API keys"), "key", Permission.VIEW),
    Entry("billing", _("Billing"), "card", Permission.VIEW_BILLING),
    Entry("settings", _("Settings"), "settings", Permission.VIEW),
)


def shell(request: HttpRequest) -> dict[str, Any]:
    """Return what base.html shows around a page; read only if the template asks."""
    return {
        "access": SimpleLazyObject(lambda: _access(request)),
        "navigation": SimpleLazyObject(lambda: _navigation(request)),
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


def _navigation(request: HttpRequest) -> list[dict[str, Any]]:
    access = _access(request)
    if access is None:
        return []
    match = request.resolver_match
    here = (match.url_name or "") if match else ""
    return [
        {"entry": entry, "here": here == entry.url_name or here.startswith(f"{entry.url_name}_")}
        for entry in ENTRIES
        if access.may(entry.permission)
    ]

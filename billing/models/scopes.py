"""The scopes of budgets: for each, one row that says all that is particular to it.

A row says where the database keeps whose budget it is, which budgets cover a request, and what
people read. The model's constraints, the hold, the pages, the alerts and the API go by these rows
and name no scope.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db.models import Q
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _

from accounts.models import MAX_TAG, ApiKey, Organization, User

if TYPE_CHECKING:
    from django_stubs_ext import StrPromise

# What the column of a scope holds: a UUID, a user's id or a word; None without one.
type Subject = Any
# The columns of Budget that say whose it is. A budget has one of them, or none.
COLUMNS = ("key_family", "member_id", "word")


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """A kind of budget.

    `label` and `phrase` are its name as a heading and within a sentence, `refusal` what the API
    says of it, in English, and `mail` what an alert does, with the alert's details.
    """

    name: str
    column: str
    covers: Callable[[ApiKey, Sequence[str]], Sequence[Subject]]
    exists: Callable[[Organization, Subject], bool]
    names: Callable[[Collection[Subject]], Mapping[Subject, str]]
    offered: Callable[[Organization], Sequence[tuple[Subject, str]]]
    heading: "StrPromise"
    about: "StrPromise"
    refusal: str
    mail: "StrPromise"
    label: "StrPromise | str" = "%(name)s"
    phrase: "StrPromise | str" = "%(name)s"
    # The label of the form's field for a subject that is not among those offered.
    typed: "StrPromise | str" = ""
    # People who manage keys may set it, as well as those who manage the billing.
    by_key_managers: bool = False

    @property
    def shape(self) -> Q:
        """Return what the database asks of a budget's row: the one subject that it needs."""
        empty = {f"{column}__isnull": column != self.column for column in COLUMNS}
        return Q(scope=self.name, **empty)


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose budget it is."""

    scope: Scope
    subject: Subject = None

    @property
    def columns(self) -> dict[str, Any]:
        """Return the holder as the database keeps it."""
        subject = {self.scope.column: self.subject} if self.scope.column else {}
        return {"scope": self.scope.name, **subject}

    @property
    def words(self) -> dict[str, str]:
        """Return the word that it goes by, under the name that customers' software reads."""
        return {self.scope.name: self.subject} if isinstance(self.subject, str) else {}

    @property
    def refusal(self) -> str:
        """Return how the API names the budget, at the beginning of a sentence."""
        return self.scope.refusal % {"name": self.subject}


@dataclass(frozen=True, slots=True)
class Called:
    """What people call a budget by."""

    scope: Scope
    name: str

    @property
    def label(self) -> str:
        """Return it as a heading."""
        return str(self.scope.label) % {"name": self.name}

    @property
    def phrase(self) -> str:
        """Return it within a sentence."""
        return str(self.scope.phrase) % {"name": self.name}


def _families(organization: Organization) -> list[tuple[Subject, str]]:
    """Return the newest key of each family that can spend, by name."""
    living = organization.api_keys.filter(sandbox=False, revoked_at=None)
    newest = {key.family: key for key in living.order_by("created_at", "pk")}
    keys = sorted(newest.values(), key=lambda key: key.name.lower())
    # The playground's has one for each person, and a prefix that nobody has seen.
    return [
        (key.family, key.name if key.playground else f"{key.name} ({key.prefix}…)") for key in keys
    ]


def _newest_names(families: Collection[Subject]) -> dict[Subject, str]:
    keys = ApiKey.objects.filter(family__in=families).order_by("created_at", "pk")
    return {key.family: key.name for key in keys}


def _known_tags(organization: Organization) -> list[tuple[Subject, str]]:
    """Return the tags of keys that can spend; requests may have others."""
    living = organization.api_keys.filter(sandbox=False, revoked_at=None)
    known = {tag[:MAX_TAG] for tags in living.values_list("tags", flat=True) for tag in tags}
    return [(tag, tag) for tag in sorted(known)]


KEY = Scope(
    name="key",
    column="key_family",
    covers=lambda key, tags: [key.family],
    exists=lambda organization, family: organization.api_keys.filter(family=family).exists(),
    names=_newest_names,
    offered=_families,
    heading=_("Keys"),
    about=_("key (kept after rotation)"),
    refusal="The key's budget",
    mail=_("A key has a budget per %(period)s."),
    by_key_managers=True,
)
MEMBER = Scope(
    name="member",
    column="member_id",
    # The keys an operator made belong to no member.
    covers=lambda key, tags: [] if key.created_by_id is None else [key.created_by_id],
    exists=lambda organization, user: organization.memberships.filter(user=user).exists(),
    names=lambda users: {user.pk: user.email for user in User.objects.filter(pk__in=users)},
    offered=lambda organization: [
        (user.pk, user.email) for user in organization.members.order_by("email")
    ],
    heading=_("Members"),
    about=_("all keys the member made"),
    refusal="The member's budget",
    mail=_("The keys of %(member)s have a budget per %(period)s."),
)
TAG = Scope(
    name="tag",
    column="word",
    # Keys had longer ones once; a request is counted under what fits.
    covers=lambda key, tags: [*{tag[:MAX_TAG] for tag in (*key.tags, *tags)}],
    exists=lambda organization, tag: isinstance(tag, str) and 0 < len(tag) <= MAX_TAG,
    names=lambda tags: {tag: str(tag) for tag in tags},
    offered=_known_tags,
    typed=_("Tag"),
    heading=_("Tags"),
    about=_("all requests with the tag"),
    refusal="The budget of the tag %(name)s",
    mail=_("Requests with the tag %(tag)s have a budget per %(period)s."),
    label=_("Tag %(name)s"),
    phrase=_("the tag %(name)s"),
)
ORGANIZATION = Scope(
    name="organization",
    column="",
    covers=lambda key, tags: [None],
    exists=lambda organization, nobody: nobody is None,
    names=lambda nobody: {None: ""},
    offered=lambda organization: [(None, _now("Whole organization"))],
    heading=_("Organization"),
    about=_("all keys, playgrounds too"),
    refusal="The organization's budget",
    mail=_("The whole organization has a budget per %(period)s."),
    label=_("Whole organization"),
    phrase=_("the whole organization"),
)
# The nearest to a request first.
SCOPES: Mapping[str, Scope] = {scope.name: scope for scope in (KEY, MEMBER, TAG, ORGANIZATION)}


def covering(key: ApiKey, tags: Sequence[str]) -> list[tuple[Scope, Sequence[Subject]]]:
    """Return whose budgets cover a request of the key with such tags beside the key's own."""
    return [(scope, found) for scope in SCOPES.values() if (found := scope.covers(key, tags))]


def called(holders: Collection[Holder]) -> dict[Holder, Called]:
    """Return what people call each; asks the database once for each scope among them."""
    made: dict[Holder, Called] = {}
    for scope in {holder.scope.name: holder.scope for holder in holders}.values():
        subjects = {holder.subject for holder in holders if holder.scope.name == scope.name}
        names = scope.names(subjects)
        made |= {Holder(scope, one): Called(scope, names.get(one, "")) for one in subjects}
    return made


def called_in(details: Mapping[str, Any]) -> Called:
    """Return what people call the budget that an alert is about, also after it was removed."""
    scope = SCOPES[details.get("scope", KEY.name)]
    subject = details.get(scope.name)
    return Called(scope, scope.names([subject]).get(subject, _now("a key")))


def mailed(details: Mapping[str, Any]) -> str:
    """Return what an alert's e-mail says of the budget that it is about."""
    return str(SCOPES[details["scope"]].mail) % details

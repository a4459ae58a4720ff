"""What every part of the emulated account builds on: objects, parameters, errors and pages.

An object is a dict in the shape Stripe answers with. Names that begin with an underscore are the
emulator's own and never leave it.
"""

import itertools
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl

from tests.emulators.stripe.clock import Clock

Obj = dict[str, Any]
HOUR, DAY = 3600, 86_400


@dataclass(frozen=True, slots=True)
class Settings:
    """How this account behaves; times are in seconds of the virtual clock.

    `immediate` are the meter error codes that are answered with 400 at once; the others are only
    reported later, by a thin event. `rate_limit` is calls per real second. `retry_gaps` are between
    the attempts to collect an invoice, and `final_action` follows the last. `wait_for_webhooks`
    holds back finalisation, at most 72 hours and only with the default grace, until invoice.created
    was delivered. `rounding` is one of `decimal`'s, for the amount of a line. `tax_percent` is put
    on top of every invoice.
    """

    api_version: str = "2026-10-28.endive"
    identifier_window: float = DAY
    idempotency_window: float = DAY
    summary_lag: float = 0
    report_delay: int = 60
    immediate: frozenset[str] = frozenset(
        {"meter_event_value_too_many_digits", "timestamp_in_future", "timestamp_too_far_in_past"}
    )
    grace: int = HOUR
    wait_for_webhooks: bool = False
    retry_gaps: tuple[int, ...] = (2 * DAY,) * 7
    final_action: Literal["unpaid", "cancel", "past_due"] = "unpaid"
    rounding: str = ROUND_HALF_UP
    tax_percent: int = 0
    portal_lifetime: int = HOUR
    rate_limit: int | None = None


class StripeError(Exception):
    """An answer that is an error. `kept` ones are replayed for the same Idempotency-Key."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
        kept: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.kept = status, kept
        self.headers = dict(headers or {})
        named = {"code": code, "message": message, "param": param, "type": kind}
        self.error: Obj = {name: value for name, value in named.items() if value is not None}
        if code is not None:
            self.error["doc_url"] = f"https://stripe.com/docs/error-codes/{code.replace('_', '-')}"
        self.error |= extra or {}


def missing(kind: str, name: str, *, param: str = "id", status: int = 404) -> StripeError:
    """There is no such object."""
    text = f"No such {kind.replace('_', ' ').replace('.', ' ')}: '{name}'"
    return StripeError(text, status=status, code="resource_missing", param=param)


def decode_form(raw: str) -> Obj:
    """Stripe's bracket syntax: `a[b]=1&c[0][d]=2&e[]=3`."""
    tree: Obj = {}
    for name, value in parse_qsl(raw, keep_blank_values=True, strict_parsing=False):
        head, *rest = re.findall(r"[^\[\]]+|(?<=\[)(?=\])", name) or [name]
        node, key = tree, head
        for step in rest:
            below = node.setdefault(key, {})
            if not isinstance(below, dict):
                raise StripeError("Invalid request: a value and a map of one name", param=head)
            node, key = below, step if step else str(len(below))
        node[key] = value
    return {name: _lists(value) for name, value in tree.items()}


def _lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if all(key == str(place) for place, key in enumerate(node)):
        return [_lists(value) for value in node.values()]
    return {key: _lists(value) for key, value in node.items()}


class Params:
    """The parameters of one call. An empty text is how Stripe's clients say "no longer set"."""

    def __init__(self, data: Mapping[str, Any], within: str = "") -> None:
        self.data, self._within = dict(data), within

    def name(self, key: str) -> str:
        """The full name, as Stripe's errors give it."""
        return f"{self._within}[{key}]" if self._within else key

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def bad(self, key: str, message: str, code: str | None = None) -> StripeError:
        """The error to raise about one parameter."""
        return StripeError(message, code=code, param=self.name(key))

    def only(self, *allowed: str) -> None:
        """Refuse every other name."""
        for key in self.data:
            if key not in allowed:
                text = f"Received unknown parameter: {self.name(key)}"
                raise self.bad(key, f"{text} (or one that is not played)", "parameter_unknown")

    def text(self, key: str, limit: int = 5000) -> str | None:
        value = self.data.get(key)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise self.bad(key, f"Invalid string: {value}", "parameter_invalid_string")
        if len(value) > limit:
            text = f"Invalid string: must be at most {limit} characters"
            raise self.bad(key, text, "parameter_invalid_string")
        return value

    def need(self, key: str, limit: int = 5000) -> str:
        value = self.text(key, limit)
        if value is None:
            raise self.absent(key)
        return value

    def absent(self, key: str) -> StripeError:
        return self.bad(key, f"Missing required param: {self.name(key)}.", "parameter_missing")

    def integer(self, key: str) -> int | None:
        value = self.text(key)
        if value is None:
            return None
        if not re.fullmatch(r"-?\d{1,18}", value):
            raise self.bad(key, f"Invalid integer: {value}", "parameter_invalid_integer")
        return int(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.text(key)
        if value not in (None, "true", "false"):
            raise self.bad(key, f"Invalid boolean: {value}")
        return default if value is None else value == "true"

    def decimal(self, key: str, places: int = 12) -> Decimal | None:
        value = self.text(key)
        if value is None:
            return None
        try:
            number = Decimal(value)
        except InvalidOperation:
            number = Decimal("NaN")
        if not number.is_finite():
            raise self.bad(key, f"Invalid decimal: {value}", "parameter_invalid_string")
        exponent = number.normalize().as_tuple().exponent
        if isinstance(exponent, int) and -exponent > places:
            raise self.bad(key, f"Invalid decimal: {value}; at most {places} decimal places")
        return number

    def choice(self, key: str, *options: str, default: str | None = None) -> str | None:
        value = self.text(key)
        if value is not None and value not in options:
            names = ", ".join(options[:-1]) + f" or {options[-1]}" if options[1:] else options[0]
            raise self.bad(key, f"Invalid {self.name(key)}: must be one of {names}")
        return default if value is None else value

    def nested(self, key: str) -> "Params | None":
        value = self.data.get(key)
        if value is None or value == "":
            return None
        if not isinstance(value, dict):
            raise self.bad(key, "Invalid object")
        return Params(value, self.name(key))

    def many(self, key: str) -> "list[Params]":
        value = self.data.get(key)
        if value is None or value == "":
            return []
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise self.bad(key, "Invalid array")
        return [Params(entry, f"{self.name(key)}[{n}]") for n, entry in enumerate(value)]

    def texts(self, key: str) -> list[str]:
        value = self.data.get(key)
        if value is None or value == "":
            return []
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise self.bad(key, "Invalid array")
        return value

    def metadata(self, old: Mapping[str, str] | None = None, key: str = "metadata") -> Obj:
        """The metadata after this call: keys are merged, an empty value removes its key."""
        value = self.data.get(key)
        if value is None:
            return dict(old or {})
        if value == "":
            return {}
        pairs = dict(enumerate(value)) if isinstance(value, list) else value
        merged = dict(old or {}) | {str(name): text for name, text in pairs.items()}
        if len(merged) > 50 or any(len(k) > 40 or len(str(v)) > 500 for k, v in merged.items()):
            raise self.bad(key, "Metadata holds at most 50 keys of 40 and values of 500 characters")
        return {name: text for name, text in merged.items() if text != ""}


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way to the part that answers it."""

    method: str
    path: str
    params: Params
    ids: tuple[str, ...]
    request_id: str
    key: str | None = None

    @property
    def id(self) -> str:
        """The path's value for the first placeholder."""
        return self.ids[0]


Handler = Callable[[Call], Obj]


class Route(NamedTuple):
    """A path and the parameters it takes."""

    method: str
    template: str
    allowed: frozenset[str]
    pattern: re.Pattern[str]


_PAGING = {"limit", "starting_after", "ending_before", "created"}


def route[F: Callable[..., Obj]](
    method: str, template: str, allowed: str = "", *, paged: bool = False
) -> Callable[[F], F]:
    """Mark a method of a part as what answers a path."""
    pattern = re.compile(re.sub(r"\{\w+\}", "([^/]+)", template.replace(".", r"\.")))
    names = frozenset(allowed.split()) | {"expand"} | (_PAGING if paged else set())

    def mark(function: F) -> F:
        routes = getattr(function, "_routes", ())
        setattr(function, "_routes", (*routes, Route(method, template, names, pattern)))  # noqa: B010
        return function

    return mark


class Part:
    """A group of resources of the account."""

    def __init__(self, account: "Account") -> None:
        self.account = account

    @property
    def now(self) -> int:
        return self.account.clock.now

    def routes(self) -> Iterator[tuple[Route, Handler]]:
        for name in dir(type(self)):
            for found in getattr(getattr(type(self), name), "_routes", ()):
                yield found, getattr(self, name)


@dataclass(slots=True)
class Account:
    """One Stripe account in one mode: its objects, its time, its webhooks."""

    clock: Clock
    settings: Settings
    livemode: bool
    origin: str
    lock: threading.RLock
    numbers: Iterator[int]
    emit: "Callable[..., None]" = lambda *_, **__: None
    objects: dict[str, dict[str, Obj]] = field(default_factory=dict)
    include: dict[tuple[str, str], Callable[[Obj], Obj]] = field(default_factory=dict)
    cause: Obj = field(default_factory=lambda: {"id": None, "idempotency_key": None})

    def new_id(self, prefix: str) -> str:
        """An identifier no object of this process has had."""
        return f"{prefix}_{next(self.numbers):014d}"

    def add(self, kind: str, prefix: str, **fields: Any) -> Obj:
        """A new object, kept."""
        name = fields.pop("id", None) or self.new_id(prefix)
        obj = {"id": name, "object": kind} | fields
        if kind != "subscription_item":
            obj["livemode"] = self.livemode
        if kind != "invoiceitem":
            obj.setdefault("created", self.clock.now)
        self.objects.setdefault(kind, {})[name] = obj
        return obj

    def get(self, kind: str, name: str, param: str | None = None) -> Obj:
        """An object; one named by a parameter gives 400 where one in the path gives 404."""
        found = self.objects.get(kind, {}).get(name)
        if found is None:
            label = kind.rsplit(".", 1)[-1]
            raise missing(label, name, param=param or "id", status=400 if param else 404)
        return found

    def all(self, kind: str) -> list[Obj]:
        """Every object of a kind, oldest first."""
        return list(self.objects.get(kind, {}).values())

    def change(self, obj: Obj, event: str | None, **changes: Any) -> None:
        """Set fields, and emit the event with what they were before."""
        before = {
            name: plain(obj.get(name))
            for name, value in changes.items()
            if obj.get(name) != value and not name.startswith("_")
        }
        obj.update(changes)
        if event is not None and (before or not event.endswith(".updated")):
            self.emit(event, obj, previous=before if event.endswith(".updated") else None)

    def page(self, call: Call, rows: Iterable[Obj]) -> Obj:
        """A list answer of rows that are given oldest first."""
        params = call.params
        limit = params.integer("limit") or 10
        if not 1 <= limit <= 100:
            raise params.bad("limit", "Invalid limit: must be between 1 and 100")
        found = [row for row in rows if self._in_range(params, row)][::-1]
        for name, side in (("starting_after", 1), ("ending_before", -1)):
            if (mark := params.text(name)) is not None:
                place = next((n for n, row in enumerate(found) if row["id"] == mark), None)
                if place is None:
                    raise params.bad(name, f"No such object: '{mark}'", "resource_missing")
                found = found[place + 1 :] if side == 1 else found[:place]
        back = "ending_before" in params and "starting_after" not in params
        part = found[-limit:] if back else found[:limit]
        more = len(found) > limit
        return {"object": "list", "url": call.path, "has_more": more, "data": part}

    @staticmethod
    def _in_range(params: Params, row: Obj) -> bool:
        wanted = params.data.get("created")
        if wanted in (None, ""):
            return True
        made = row["created"] if "created" in row else row["date"]
        if isinstance(wanted, str):
            return bool(made == int(wanted))
        tests = {"gt": made.__gt__, "gte": made.__ge__, "lt": made.__lt__, "lte": made.__le__}
        return all(tests[name](int(value)) for name, value in wanted.items())

    def show(self, obj: Obj, expand: Sequence[str] = ()) -> Obj:
        """The object as it is answered, with what was asked to be expanded."""
        shown: Obj = plain(obj)
        for path in sorted(expand):
            self._expand(shown, path.split("."), path)
        return shown

    def _expand(self, node: Any, steps: list[str], path: str) -> None:
        if isinstance(node, list):
            for entry in node:
                self._expand(entry, steps, path)
            return
        step, rest = steps[0], steps[1:]
        if not isinstance(node, dict):
            return
        producer = self.include.get((str(node.get("object")), step))
        if producer is not None and step not in node:
            node[step] = plain(producer(node))
        elif step not in node:
            text = f"This property cannot be expanded ({path})."
            raise StripeError(text, param="expand")
        value = node[step]
        if isinstance(value, str):
            found = next((k[value] for k in self.objects.values() if value in k), None)
            if found is None:
                raise StripeError(f"This property cannot be expanded ({path}).", param="expand")
            node[step] = plain(found)
        elif isinstance(value, list) and value and isinstance(value[0], str):
            raise StripeError(f"This property cannot be expanded ({path}).", param="expand")
        if rest:
            self._expand(node[step], rest, path)


def plain(value: Any) -> Any:
    """A deep copy without the emulator's own fields."""
    if isinstance(value, dict):
        return {
            name: plain(inner)
            for name, inner in value.items()
            if not (isinstance(name, str) and name.startswith("_"))
        }
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value


def decimal_text(number: Decimal) -> str:
    """A decimal without exponent and without zeros that say nothing."""
    return f"{number.normalize():f}" if number else "0"


def listed(rows: Sequence[Obj], url: str) -> Obj:
    """A list inside another object."""
    return {"object": "list", "data": list(rows), "has_more": False, "url": url}


NUMBERS = itertools.count(1)

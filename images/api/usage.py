"""GET /v1/usage: what its parameters may be, and the body of its answer."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, cast
from uuid import UUID

import orjson
from django.utils import timezone

from accounts.models import ApiKey
from geekhub.lib import money
from images.api import shapes
from images.api.serializers import invalid
from images.api.shapes import KeyName
from images.usage import sums
from images.usage.span import Wanted
from images.usage.sums import Used

GROUPS = ("day", "model", "key", "tag")
PARAMETERS = ("start", "end", "group_by", "limit", "after")
MAX_DAYS = 400
MAX_LIMIT = 1000
DEFAULT_DAYS = 30
FIRST = date(2000, 1, 1)


@dataclass(frozen=True, slots=True)
class Asked:
    """Checked parameters; `start` and `end` are days of UTC, both included."""

    start: date
    end: date
    by: tuple[str, ...]
    limit: int
    after: tuple[Any, ...] | None


def parse(params: Mapping[str, str]) -> Asked:
    """Return the checked parameters; raises ApiError naming the first at fault."""
    for name in params:
        if name not in PARAMETERS:
            shown = name[:100].encode("utf-8", "backslashreplace").decode()
            raise invalid(shown, f"is not a parameter; the parameters are {', '.join(PARAMETERS)}.")
    today = timezone.now().astimezone(UTC).date()
    end = _day(params, "end", today)
    start = _day(params, "start", max(FIRST, end - timedelta(days=DEFAULT_DAYS - 1)))
    if start > end:
        raise invalid("start", "must not be after end.")
    if (end - start).days >= MAX_DAYS:
        raise invalid("start", f"and end can be at most {MAX_DAYS} days apart.")
    by = _groups(params.get("group_by", ",".join(GROUPS)))
    return Asked(start, end, by, _limit(params.get("limit", str(MAX_LIMIT))), _after(params, by))


def _day(params: Mapping[str, str], name: str, default: date) -> date:
    text = params.get(name)
    if text is None:
        return default
    try:
        day = datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise invalid(name, "must be a date, YYYY-MM-DD.") from None
    if len(text) != 10 or not FIRST <= day <= date(9998, 12, 31):
        raise invalid(name, "must be a date, YYYY-MM-DD, in 2000 or later.")
    return day


def _groups(text: str) -> tuple[str, ...]:
    names = text.split(",")
    if not set(names) <= set(GROUPS) or len(set(names)) != len(names):
        raise invalid("group_by", f"must be one or more of {', '.join(GROUPS)}, with commas.")
    return tuple(names)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= MAX_LIMIT):
        raise invalid("limit", f"must be an integer from 1 to {MAX_LIMIT}.")
    return int(text)


def _after(params: Mapping[str, str], by: tuple[str, ...]) -> tuple[Any, ...] | None:
    text = params.get("after")
    if text is None:
        return None
    try:
        names, values = orjson.loads(base64.urlsafe_b64decode(text.encode("ascii")))
        if tuple(names) != by or len(values) != len(by):
            raise ValueError(text)
        return tuple(_value(name, value) for name, value in zip(by, values, strict=True))
    except (ValueError, TypeError, AttributeError, binascii.Error):
        raise invalid(
            "after", "must be next_after from the previous page, with the same group_by."
        ) from None


def _value(name: str, value: Any) -> Any:
    match name:
        case "day":
            return date.fromisoformat(value)
        case "key":
            return UUID(value)
        case _ if isinstance(value, str) and "\0" not in value:
            return value
        case _:
            raise ValueError(value)


def report(key: ApiKey, asked: Asked) -> shapes.Usage:
    """Return the answer: what the organization used with keys of the same kind, live or sandbox."""
    wanted = Wanted(
        start=datetime.combine(asked.start, time(), UTC),
        end=datetime.combine(asked.end + timedelta(days=1), time(), UTC),
        sandbox=key.sandbox,
    )
    rows = sums.grouped(
        key.organization, wanted, asked.by, after=asked.after, limit=asked.limit + 1
    )
    page = list(rows.items())[: asked.limit]
    names = _key_names(key, [group for group, _ in page], asked.by)
    more = len(rows) > asked.limit
    return {
        "object": "list",
        "start": asked.start.isoformat(),
        "end": asked.end.isoformat(),
        "group_by": list(asked.by),
        "sandbox": key.sandbox,
        "data": [
            cast(shapes.UsedBy, _group(asked.by, group, names) | _numbers(used))
            for group, used in page
        ],
        "totals": _numbers(sums.total(key.organization, wanted)),
        "has_more": more,
        "next_after": _cursor(asked.by, page[-1][0]) if more else None,
    }


def _key_names(
    key: ApiKey, groups: list[tuple[Any, ...]], by: tuple[str, ...]
) -> dict[UUID, KeyName]:
    if "key" not in by:
        return {}
    place = by.index("key")
    ids = {group[place] for group in groups}
    rows = ApiKey.objects.filter(organization=key.organization, pk__in=ids)
    return {row.pk: {"prefix": row.prefix, "name": row.name} for row in rows}


def _group(
    by: tuple[str, ...], group: tuple[Any, ...], names: dict[UUID, KeyName]
) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, value in zip(by, group, strict=True):
        match name:
            case "day":
                told[name] = value.isoformat()
            case "key":
                told[name] = names[value]
            case "tag":
                told[name] = value or None
            case _:
                told[name] = value
    return told


def _numbers(used: Used) -> shapes.Used:
    return {
        "requests": used.requests,
        "succeeded": used.succeeded,
        "failed": used.failed,
        "running": used.running,
        "images": used.images,
        "cost_usd": money.to_usd(used.cost_micro),
    }


def _cursor(by: tuple[str, ...], group: tuple[Any, ...]) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([by, group])).decode()

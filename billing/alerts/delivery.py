"""Alerts on their way: by mail to people, by POST to an endpoint."""

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from django.conf import settings
from django.core.mail import EmailMessage
from django.db.models import Q
from django.template.loader import render_to_string
from django.utils import translation

from accounts.models import Role
from billing.alerts.endpoints import POST_SECONDS, SIGNATURE, client_for, sign
from billing.models import AlertEndpoint, Notification, scopes

log = logging.getLogger("geekhub.billing")
READERS = (Role.OWNER, Role.ADMIN, Role.BILLING)
# A round is done long before its rows could be taken for a dead process's.
BATCH, LEASE = 20, timedelta(minutes=10)
# 1, 2, 4 … minutes, then every four hours: fourteen tries take a day.
FIRST_PAUSE, LONGEST_PAUSE, TRIES = timedelta(minutes=1), timedelta(hours=4), 14


def deliver_due(*, now: datetime) -> int:
    """Send what is due by e-mail and to endpoints; return how many are settled by it.

    What could not be sent is tried again for about a day, with longer and longer pauses, and
    then given up with its error written down.
    """
    due = Notification.objects.filter(settled_at=None, next_at__lte=now)
    due = due.select_related("organization__alert_endpoint").order_by("next_at", "pk")
    mine = [row for row in due[:BATCH] if _claim(row, now)]
    problems = {row.pk: [_mail(row, now)] for row in mine}
    for row, problem in _post(mine, now):
        problems[row.pk].append(problem)
    return sum(_settle(row, "; ".join(filter(None, problems[row.pk])), now) for row in mine)


def _claim(row: Notification, now: datetime) -> bool:
    mine = Notification.objects.filter(pk=row.pk, settled_at=None, attempts=row.attempts)
    row.attempts += 1
    return bool(mine.update(attempts=row.attempts, next_at=now + LEASE))


def _settle(row: Notification, problem: str, now: datetime) -> bool:
    over = not problem or row.attempts >= TRIES
    pause = min(FIRST_PAUSE * 2 ** (row.attempts - 1), LONGEST_PAUSE)
    Notification.objects.filter(pk=row.pk, attempts=row.attempts).update(
        last_error=problem[:500], next_at=now + pause, settled_at=now if over else None
    )
    return over


def _mail(row: Notification, now: datetime) -> str:
    """Send the e-mail unless it was sent; return what went wrong, or nothing."""
    if row.emailed_at is not None:
        return ""
    try:
        if readers := _readers(row):
            subject, body = _words(row)
            EmailMessage(subject, body, to=readers).send()
    except Exception as error:
        # Whatever it is about this one, the others must not wait for it.
        log.exception("the e-mail of %s was not sent", row.key)
        return f"e-mail: {type(error).__name__}: {error}"
    Notification.objects.filter(pk=row.pk).update(emailed_at=now)
    return ""


def _readers(row: Notification) -> list[str]:
    """Return the addresses of those who look after the money, and of the member it is about."""
    members = row.organization.memberships.filter(user__is_active=True)
    told = members.filter(Q(role__in=READERS) | Q(user__email=row.details.get("member")))
    return sorted(told.values_list("user__email", flat=True))


def _words(row: Notification) -> tuple[str, str]:
    """Return subject and body: the first line of the template, and the rest."""
    context = {
        "organization": row.organization,
        "details": row.details,
        "public_url": settings.PUBLIC_URL,
    }
    with translation.override(settings.LANGUAGE_CODE):
        if row.kind == "budget":
            context["budget"] = scopes.mailed(row.details)
        text = render_to_string(f"emails/{row.kind}.txt", context)
    subject, _, body = text.strip().partition("\n")
    return subject, f"{body.strip()}\n"


def _post(rows: Sequence[Notification], now: datetime) -> Iterator[tuple[Notification, str]]:
    """Send each row to its organization's endpoint unless it was; yield what went wrong."""
    waiting = [row for row in rows if row.posted_at is None and _endpoint(row) is not None]
    for row, problem in zip(waiting, asyncio.run(_send_all(waiting, now)), strict=True):
        if not problem:
            Notification.objects.filter(pk=row.pk).update(posted_at=now)
        yield row, problem


def _endpoint(row: Notification) -> AlertEndpoint | None:
    found: AlertEndpoint | None = getattr(row.organization, "alert_endpoint", None)
    return found


async def _send_all(rows: Sequence[Notification], now: datetime) -> list[str]:
    return await asyncio.gather(*(_send(row, now) for row in rows))


async def _send(row: Notification, now: datetime) -> str:
    endpoint = row.organization.alert_endpoint
    body = json.dumps(
        {
            "id": str(row.pk),
            "type": row.kind,
            "created": int(row.created_at.timestamp()),
            "organization": str(row.organization_id),
            "data": row.details,
        }
    ).encode()
    headers = {"Content-Type": "application/json", SIGNATURE: sign(body, endpoint.secret, at=now)}
    try:
        async with (
            asyncio.timeout(POST_SECONDS),
            client_for(endpoint.url)() as client,
            client.stream("POST", endpoint.url, content=body, headers=headers) as answer,
        ):
            return "" if answer.is_success else f"endpoint: HTTP {answer.status_code}"
    except Exception as error:
        # An address is input from outside; no error of one may stop the others.
        return f"endpoint: {type(error).__name__}: {error}"

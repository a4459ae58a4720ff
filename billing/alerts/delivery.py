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
from geekhub.lib.outbox import Outbox

log = logging.getLogger("geekhub.billing")
READERS = (Role.OWNER, Role.ADMIN, Role.BILLING)
BATCH = 20
OUTBOX = Outbox(
    Notification,
    waiting=Q(settled_at=None),
    # A round is done long before its rows could be taken for a dead process's.
    lease=timedelta(minutes=10),
    # 1, 2, 4 … minutes, then every four hours: fourteen tries take a day.
    first_pause=timedelta(minutes=1),
    longest_pause=timedelta(hours=4),
    tries=14,
)


def deliver_due(*, now: datetime) -> int:
    """Send what is due by e-mail and to endpoints; return how many are settled by it.

    What could not be sent is tried again for about a day, with longer and longer pauses, and
    then given up with its error written down.
    """
    due = OUTBOX.due(now).select_related("organization__alert_endpoint")
    mine = [row for row in due[:BATCH] if OUTBOX.claim(row, now)]
    not_mailed = {row.pk: _mail(row, now) for row in mine}
    not_posted = {row.pk: problem for row, problem in _post(mine, now)}
    return sum(_settle(row, not_mailed[row.pk], not_posted.get(row.pk, ""), now) for row in mine)


def _settle(row: Notification, email_error: str, post_error: str, now: datetime) -> bool:
    errors = {"email_error": email_error[:500], "post_error": post_error[:500]}
    if any(errors.values()) and not OUTBOX.is_last(row):
        OUTBOX.put_off(row, now, **errors)
        return False
    OUTBOX.mine(row).update(settled_at=now, **errors)
    return True


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
        return f"{type(error).__name__}: {error}"
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
            return "" if answer.is_success else f"HTTP {answer.status_code}"
    except Exception as error:
        # An address is input from outside; no error of one may stop the others.
        return f"{type(error).__name__}: {error}"

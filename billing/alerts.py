"""What an organization is told, once each: by e-mail to people, and signed to its own software.

    raise_alert() or scan() -> a Notification row -> deliver_due() -> e-mail, POST

A row is written in the transaction that decides it and delivered later, each channel once. What a
crash hides is done again: between a delivery and its mark, a mail can be sent a second time, and a
POST too, with the same id.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage
from django.core.validators import URLValidator
from django.db import transaction
from django.db.models import F, OuterRef, Q, Subquery
from django.template.loader import render_to_string
from django.utils import timezone, translation
from django.utils.translation import gettext

from accounts import audit
from accounts.models import Organization, Role, User
from billing import prices
from billing.budgets import period_start
from billing.models import (
    AlertEndpoint,
    BillingAccount,
    BudgetPeriod,
    EntryKind,
    LedgerEntry,
    Notification,
    Period,
)
from geekhub.lib import http, money
from geekhub.lib.addresses import is_address

log = logging.getLogger("geekhub.billing")

PERCENTS = (100, 80, 50)
READERS = (Role.OWNER, Role.ADMIN, Role.BILLING)
SIGNATURE = "GeekHub-Signature"
URL_LENGTH = 500
POST_SECONDS = 10.0
# A round is done long before its rows could be taken for a dead process's.
BATCH, LEASE = 20, timedelta(minutes=10)
# 1, 2, 4 … minutes, then every four hours: fourteen tries take a day.
FIRST_PAUSE, LONGEST_PAUSE, TRIES = timedelta(minutes=1), timedelta(hours=4), 14


class EndpointRefused(ValueError):
    """An address that alerts cannot be sent to; the message is safe to show."""


def raise_alert(organization: Organization, kind: str, key: str, **details: Any) -> bool:
    """Write down what the organization is to be told; False when the `key` was told before.

    The details are what JSON can hold. Call it in the transaction that decides; it is delivered
    by whichever worker comes next.
    """
    _, new = Notification.objects.get_or_create(
        key=key,
        defaults={
            "organization": organization,
            "kind": kind,
            "details": details,
            "next_at": timezone.now(),
        },
    )
    return new


def send_test(organization: Organization, actor: User, *, now: datetime) -> bool:
    """Tell everybody who is told of money, and the endpoint, that alerts arrive.

    False when one was sent in this minute already.
    """
    minute = int(now.timestamp()) // 60
    return raise_alert(organization, "test", f"test:{organization.pk}:{minute}", by=actor.email)


# What is looked for


@dataclass(frozen=True, slots=True)
class _Alert:
    """`silent`: written down as told, but sent to nobody, since a higher threshold is."""

    organization: Organization
    kind: str
    key: str
    details: dict[str, Any]
    silent: bool = False


def scan(*, now: datetime) -> int:
    """Write down every threshold that was crossed and not told yet; return how many.

    A budget: 50, 80 and 100 % of its dollars and of its images, once per period. Of several
    crossed since the last look only the highest is sent. A balance: once below its mark, and not
    again before the next recharge.
    """
    found = {alert.key: alert for alert in (*_budgets(now), *_balances())}
    known = Notification.objects.filter(key__in=list(found)).values_list("key", flat=True)
    return sum(_write(found[key], now) for key in found.keys() - set(known))


def _write(alert: _Alert, now: datetime) -> bool:
    _, new = Notification.objects.get_or_create(
        key=alert.key,
        defaults={
            "organization": alert.organization,
            "kind": alert.kind,
            "details": alert.details,
            "next_at": now,
            "settled_at": now if alert.silent else None,
        },
    )
    return new


def _budgets(now: datetime) -> Iterator[_Alert]:
    cheapest = prices.lowest_micro()
    running, used = Q(), Q(spent_micro__gt=0, budget__limit_micro__lte=F("spent_micro") * 2)
    used |= Q(spent_micro__gt=0, budget__limit_micro__lt=F("spent_micro") + cheapest)
    used |= Q(spent_images__gt=0, budget__limit_images__lte=F("spent_images") * 2)
    for period in Period:
        running |= Q(budget__period=period, starts_at=period_start(period, now))
    rows = BudgetPeriod.objects.filter(running, used).order_by("pk")
    for row in rows.select_related("budget__organization", "budget__member"):
        budget = row.budget
        if (limit := budget.limit_micro) is not None:
            share = _percent(row.spent_micro, limit, cheapest)
            told = {"limit_usd": money.to_usd(limit), "spent_usd": money.to_usd(row.spent_micro)}
            yield from _crossed(row, "usd", share, told)
        if (images := budget.limit_images) is not None:
            share = _percent(row.spent_images, images, 1)
            yield from _crossed(
                row, "images", share, {"limit_images": images, "spent_images": row.spent_images}
            )


def _percent(spent: int, limit: int, next_one: int) -> int:
    """Return how much is used: all of it as soon as not one more image fits.

    Images of $0.19 never spend a budget of $5 to the cent.
    """
    if not spent:
        return 0
    return 100 if spent + next_one > limit else spent * 100 // limit


def _crossed(
    row: BudgetPeriod, unit: str, used: int, told: dict[str, str] | dict[str, int]
) -> Iterator[_Alert]:
    budget = row.budget
    for place, percent in enumerate(one for one in PERCENTS if one <= used):
        details = {
            "percent": percent,
            "unit": unit,
            **told,
            "period": budget.period,
            "since": row.starts_at.isoformat(),
            "scope": "member" if budget.member else "key",
            "budget": budget.pk,
            "member": budget.member.email if budget.member else None,
        }
        key = f"budget:{row.pk}:{unit}:{percent}"
        yield _Alert(budget.organization, "budget", key, details, silent=place > 0)


def _balances() -> Iterator[_Alert]:
    recharges = LedgerEntry.objects.filter(
        organization=OuterRef("organization"), kind=EntryKind.RECHARGE
    )
    low = BillingAccount.objects.filter(
        # One that never spent anything is new, not low.
        spent_micro__gt=0,
        balance_micro__lt=F("alert_below_micro") - F("credit_limit_micro") + F("held_micro"),
    ).annotate(recharge=Subquery(recharges.order_by("-pk").values("pk")[:1]))
    for account in low.select_related("organization").order_by("pk"):
        left = account.available_micro
        details = {
            "available_usd": money.to_usd(left),
            "below_usd": money.to_usd(account.alert_below_micro),
        }
        key = f"low:{account.pk}:{account.recharge or 0}"
        yield _Alert(account.organization, "low_balance", key, details)


# How it is delivered


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
        text = render_to_string(f"emails/{row.kind}.txt", context)
    subject, _, body = text.strip().partition("\n")
    return subject, f"{body.strip()}\n"


# Endpoints


def set_endpoint(organization: Organization, url: str, actor: User | None) -> str:
    """Have the organization's alerts sent to an address as well; return the secret, shown once.

    Every call makes a new secret. Raises EndpointRefused.
    """
    _client_for(url)
    secret = f"ghub_whsec_{secrets.token_urlsafe(32)}"
    with transaction.atomic():
        AlertEndpoint.objects.update_or_create(
            organization=organization, defaults={"url": url, "secret": secret}
        )
        audit.record("alerts.endpoint_set", organization=organization, actor=actor, url=url)
    return secret


def remove_endpoint(organization: Organization, actor: User | None) -> None:
    """Send alerts by e-mail only; removing twice changes nothing."""
    with transaction.atomic():
        if AlertEndpoint.objects.filter(organization=organization).delete()[0]:
            audit.record("alerts.endpoint_removed", organization=organization, actor=actor)


def sign(body: bytes, secret: str, *, at: datetime) -> str:
    """Return the header that proves the body is ours: `t=1795348800,v1=6f2c…`."""
    stamp = int(at.timestamp())
    digest = hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={stamp},v1={digest}"


def _client_for(url: str) -> Callable[[], httpx.AsyncClient]:
    """Return how to reach an address: by https at a public name, or at a listed origin.

    Raises EndpointRefused. A name that leads into our own network is refused when it is resolved.
    """
    try:
        URLValidator(schemes=["http", "https"])(url)
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except (ValidationError, ValueError) as error:
        raise EndpointRefused(gettext("This is not an address of the web.")) from error
    if len(url) > URL_LENGTH:
        words = gettext("The address is longer than %d characters.")
        raise EndpointRefused(words % URL_LENGTH)
    if f"{parts.scheme}://{parts.netloc}" in settings.ALERT_LOCAL_ORIGINS:
        return _exact_client
    if parts.scheme != "https" or port not in (None, 443) or "@" in parts.netloc:
        raise EndpointRefused(
            gettext("The address must begin with https:// and have no port or password.")
        )
    if is_address(host):
        # No resolver is asked for it, so none would refuse a private one.
        raise EndpointRefused(gettext("The address must have a name, not a number."))
    return _public_client


def _exact_client() -> httpx.AsyncClient:
    return http.client(connect=POST_SECONDS, read=POST_SECONDS)


def _public_client() -> httpx.AsyncClient:
    return http.client(connect=POST_SECONDS, read=POST_SECONDS, resolver=http.PublicResolver())


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
            _client_for(endpoint.url)() as client,
            client.stream("POST", endpoint.url, content=body, headers=headers) as answer,
        ):
            return "" if answer.is_success else f"endpoint: HTTP {answer.status_code}"
    except Exception as error:
        # An address is input from outside; no error of one may stop the others.
        return f"endpoint: {type(error).__name__}: {error}"

"""The billing page: what is left, what it was spent on, the card, recharges; to Stripe and back."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from accounts.access import MemberRequest, Permission, form_on, member
from accounts.models import Organization
from billing.models import BillingAccount, Subscription
from billing.pages.forms import AutomaticForm, RechargeForm
from billing.pages.words import MovementRow, card
from billing.spending import ledger, movements
from billing.spending.ledger import SkuSpend
from billing.stripe import invoices, recharges, subscriptions, visits
from billing.stripe.client import NotConnected, Stripe, StripeFailure, connect, is_connected
from billing.stripe.customers import NothingToSell
from billing.stripe.recharges import RechargeRefused
from billing.stripe.visits import Came, NotTheirs
from billing.templatetags.amounts import dollars

log = logging.getLogger("geekhub.billing")

LATEST = 8


@dataclass(frozen=True, slots=True)
class Month:
    """What was spent since the month began, UTC: by SKU, dearest first, and in all."""

    rows: list[SkuSpend]
    images: int
    micro: int


@dataclass(frozen=True, slots=True)
class Money:
    """What the page tells of an account."""

    account: BillingAccount
    subscription: Subscription | None

    @property
    def card(self) -> str:
        """Return the card on file for people; empty if there is none."""
        return card(self.account.card_brand, self.account.card_last4)

    @property
    def is_automatic(self) -> bool:
        """Tell whether it recharges by itself."""
        return self.account.recharge_amount_micro is not None


@require_safe
@member(Permission.VIEW_BILLING)
def index(request: MemberRequest) -> HttpResponse:
    """Show what is left, what was spent, and how it is paid."""
    return _page(request)


def _page(
    request: MemberRequest,
    recharge: RechargeForm | None = None,
    automatic: AutomaticForm | None = None,
) -> HttpResponse:
    organization = request.access.organization
    account = ledger.balance(organization)
    latest = movements.page(organization, before=None, size=LATEST)
    context = {
        "money": Money(account, subscriptions.live(organization)),
        "month": _month(organization),
        "latest": [MovementRow(one) for one in latest],
        "connected": is_connected(),
        "recharge": recharge or RechargeForm(),
        "automatic": automatic or AutomaticForm.of(account),
        "zone": timezone.get_current_timezone_name(),
    }
    status = 400 if recharge or automatic else 200
    return render(request, "billing/overview.html", context, status=status)


def _month(organization: Organization) -> Month:
    rows = invoices.month_to_date(organization, now=timezone.now())
    rows = sorted(rows, key=lambda row: (-row.cost_micro, row.sku))
    return Month(rows, sum(row.units for row in rows), sum(row.cost_micro for row in rows))


# --- To Stripe ------------------------------------------------------------------------------------


def _back(request: MemberRequest, **what: str) -> str:
    """Return the URL that Stripe's pages lead back to."""
    query = urlencode({"organization": request.access.organization.slug, **what})
    return f"{request.build_absolute_uri(reverse('billing_return'))}?{query}"


def _paid(request: MemberRequest) -> str:
    # Stripe puts the id in the place of these words, and finds them only unescaped.
    return f"{_back(request)}&session={{CHECKOUT_SESSION_ID}}"


def _visit(request: MemberRequest, page: Callable[[Stripe], str]) -> HttpResponse:
    """Lead to one of Stripe's pages; its address is a secret, kept and logged nowhere."""
    try:
        return redirect(page(connect()))
    except NotConnected as error:
        raise Http404 from error
    except NothingToSell:
        messages.error(request, _("Monthly invoices are not available yet. Try again later."))
    except StripeFailure as error:
        log.warning("no page of Stripe's for %s: %s", request.access.organization.pk, error)
        messages.error(request, _("Stripe did not respond. Nothing was changed. Try again."))
    return redirect("billing")


@require_POST
@never_cache
@member(Permission.MANAGE_BILLING)
def give_card(request: MemberRequest) -> HttpResponse:
    """Lead to where a card is given and the subscription begins."""
    access, back = request.access, _back(request, left="card")
    return _visit(
        request,
        lambda stripe: visits.to_card(
            stripe, access.organization, _paid(request), back, access.user, now=timezone.now()
        ),
    )


@require_POST
@never_cache
@member(Permission.MANAGE_BILLING)
def portal(request: MemberRequest) -> HttpResponse:
    """Lead to Stripe's portal: card, tax id, cancelling."""
    access, back = request.access, _back(request, left="portal")
    if not ledger.balance(access.organization).stripe_customer:
        raise Http404
    return _visit(
        request, lambda stripe: visits.to_portal(stripe, access.organization, back, access.user)
    )


@never_cache
@member(Permission.MANAGE_BILLING)
@form_on("billing")
def recharge(request: MemberRequest) -> HttpResponse:
    """Lead to where money is paid onto the balance."""
    if not is_connected():
        raise Http404
    access, form = request.access, RechargeForm(request.POST)
    if not form.is_valid():
        return _page(request, recharge=form)
    back = _back(request, left="recharge")
    return _visit(
        request,
        lambda stripe: recharges.checkout(
            stripe,
            access.organization,
            form.cleaned_data["micro"],
            _paid(request),
            back,
            access.user,
            now=timezone.now(),
        ),
    )


@member(Permission.MANAGE_BILLING)
@form_on("billing")
def automatic(request: MemberRequest) -> HttpResponse:
    """Set when to recharge by itself, or stop that."""
    access = request.access
    if "stop" in request.POST:
        recharges.stop_automatic(access.organization, access.user)
        messages.success(request, _("Automatic recharge is off."))
        return redirect("billing")
    if not is_connected():
        raise Http404
    form = AutomaticForm.of(ledger.balance(access.organization), request.POST)
    if not form.is_valid() or not _set_automatic(request, form):
        return _page(request, automatic=form)
    messages.success(request, _("Automatic recharge is on."))
    return redirect("billing")


def _set_automatic(request: MemberRequest, form: AutomaticForm) -> bool:
    data, access = form.cleaned_data, request.access
    try:
        recharges.set_automatic(
            access.organization, data["below"], data["amount"], data["cap"], access.user
        )
    except RechargeRefused as error:
        form.add_error(None, str(error))
        return False
    return True


# --- And back -------------------------------------------------------------------------------------


@require_safe
@never_cache
@member(Permission.VIEW_BILLING)
def back(request: MemberRequest) -> HttpResponse:
    """Take in what somebody did on Stripe's pages, say so, and show the billing page."""
    session, left = request.GET.get("session", ""), request.GET.get("left", "")
    try:
        if session:
            _tell(request, session)
        elif left == "portal":
            visits.from_portal(connect(), request.access.organization, now=timezone.now())
        elif left:
            messages.info(request, _("You did not complete the payment. Nothing was charged."))
    except (NotConnected, NotTheirs) as error:
        raise Http404 from error
    except StripeFailure as error:
        log.warning("a visit to Stripe is not known yet: %s", error)
        messages.info(
            request, _("We haven't heard from Stripe yet. This page will update shortly.")
        )
    return redirect("billing")


def _tell(request: MemberRequest, session: str) -> None:
    visit = visits.from_checkout(
        connect(), request.access.organization, session, now=timezone.now()
    )
    told: dict[Came, tuple[Callable[..., Any], str]] = {
        Came.PAID: (messages.success, _("%s was added to your balance.") % dollars(visit.micro)),
        Came.PENDING: (
            messages.info,
            _(
                "The payment is processing. It will be added to your balance once your bank "
                "confirms it."
            ),
        ),
        Came.UNPAID: (messages.info, _("You did not complete the payment. Nothing was charged.")),
        Came.SUBSCRIBED: (messages.success, _("Card saved.")),
    }
    say, words = told[visit.came]
    say(request, words)

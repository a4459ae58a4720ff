"""Invoices and invoice items: draft, grace, finalised, paid or not.

Not settled facts take the cautious reading: an invoice of a cancelled subscription counts what had
been received when it was cancelled; what is received after finalisation is on no invoice.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from tests.emulators.stripe.catalog import Catalog
from tests.emulators.stripe.core import (
    HOUR,
    Account,
    Call,
    Obj,
    Params,
    Part,
    StripeError,
    decimal_text,
    listed,
    missing,
    route,
)
from tests.emulators.stripe.credits import CreditGrants
from tests.emulators.stripe.customers import HARD, Customers, refuse_tax
from tests.emulators.stripe.meters import Meters
from tests.emulators.stripe.payments import Payments

ACK_LIMIT = 72 * HOUR
SHOWN_LINES = 10
ITEM = (
    "amount currency customer description discountable invoice metadata period pricing quantity"
    " subscription tax_behavior unit_amount_decimal"
)


@dataclass(frozen=True, slots=True)
class Metered:
    """What a subscription item used in a period; `before` ends what is still counted."""

    item: str
    price: Obj
    start: int
    end: int
    before: float | None = None


class Invoices(Part):
    """The invoices of the account."""

    catalog: Catalog
    customers: Customers
    grants: CreditGrants
    meters: Meters
    payments: Payments

    def __init__(self, account: Account) -> None:
        super().__init__(account)
        account.include["invoice", "payments"] = self._payments
        self.paid: Callable[[Obj], None] = lambda invoice: None
        self.failed: Callable[[Obj, bool], None] = lambda invoice, last: None
        self.acknowledged: Callable[[str, str], bool] = lambda event, name: True

    def _payments(self, invoice: Obj) -> Obj:
        rows = [p for p in self.account.all("invoice_payment") if p["invoice"] == invoice["id"]]
        return listed(rows, f"/v1/invoice_payments?invoice={invoice['id']}")

    # Making one

    def bare(
        self,
        customer: Obj,
        sub: Obj | None,
        *,
        reason: str,
        period: tuple[int, int],
        metered: tuple[Metered, ...] = (),
        auto: bool = True,
        **more: Any,
    ) -> Obj:
        """An invoice without lines that is not kept yet."""
        parent = None
        if sub is not None:
            details = {"subscription": sub["id"], "metadata": dict(sub["metadata"])}
            parent = {
                "type": "subscription_details",
                "subscription_details": details,
                "quote_details": None,
            }
        zeros = (
            "amount_due amount_overpaid amount_paid amount_paid_off_stripe amount_remaining"
            " amount_shipping attempt_count post_payment_credit_notes_amount"
            " pre_payment_credit_notes_amount starting_balance subtotal total"
            " subtotal_excluding_tax total_excluding_tax"
        )
        empty = (
            "application customer_address customer_phone customer_shipping custom_fields"
            " default_payment_method default_source description due_date effective_at"
            " ending_balance footer from_invoice hosted_invoice_url invoice_pdf"
            " last_finalization_error latest_revision next_payment_attempt number on_behalf_of"
            " receipt_number rendering shipping_cost shipping_details statement_descriptor"
            " test_clock webhooks_delivered_at automatically_finalizes_at account_tax_ids"
        )
        return (
            dict.fromkeys(zeros.split(), 0)
            | dict.fromkeys(empty.split())
            | {
                "account_country": "US",
                "account_name": "Emulated",
                "attempted": False,
                "auto_advance": auto,
                "automatic_tax": {
                    "disabled_reason": None,
                    "enabled": False,
                    "liability": None,
                    "provider": None,
                    "status": None,
                },
                "billing_reason": reason,
                "collection_method": "charge_automatically",
                "currency": sub["currency"] if sub is not None else "usd",
                "customer": customer["id"],
                "customer_email": customer["email"],
                "customer_name": customer["name"],
                "customer_tax_exempt": customer["tax_exempt"],
                "customer_tax_ids": [],
                "default_tax_rates": [],
                "discounts": [],
                "issuer": {"type": "self"},
                "lines": listed([], ""),
                "metadata": {},
                "parent": parent,
                "payment_settings": {
                    "default_mandate": None,
                    "payment_method_options": None,
                    "payment_method_types": None,
                },
                "period_start": period[0],
                "period_end": period[1],
                "status": "draft",
                "status_transitions": dict.fromkeys(
                    ("finalized_at", "marked_uncollectible_at", "paid_at", "voided_at")
                ),
                "total_discount_amounts": [],
                "total_pretax_credit_amounts": [],
                "total_taxes": [],
                "_metered": metered,
                "_line_ids": {},
                "_stopped": None,
            }
            | more
        )

    def draft(
        self, customer: Obj, sub: Obj | None, *, items: bool = True, after: int | None, **more: Any
    ) -> Obj:
        """A kept draft; `after` seconds it is finalised, or never on its own."""
        fields = self.bare(customer, sub, **more)
        invoice = self.account.add("invoice", "in", **fields)
        invoice["lines"]["url"] = f"/v1/invoices/{invoice['id']}/lines"
        if items:
            for item in self._pending(customer, sub):
                item["invoice"] = invoice["id"]
        self.refresh(invoice)
        if after is not None:
            self._plan(invoice, self.now + after)
        if sub is not None:
            sub["latest_invoice"] = invoice["id"]
        self.account.emit("invoice.created", invoice)
        return invoice

    def _pending(self, customer: Obj, sub: Obj | None) -> list[Obj]:
        wanted = (None, sub["id"]) if sub is not None else (None,)
        return [
            item
            for item in self.account.all("invoiceitem")
            if item["customer"] == customer["id"]
            and item["invoice"] is None
            and item["_subscription"] in wanted
        ]

    def _plan(self, invoice: Obj, when: int) -> None:
        invoice["automatically_finalizes_at"] = when
        self.account.clock.at(when, lambda: self._due(invoice, when))

    def _due(self, invoice: Obj, when: int) -> None:
        gone = invoice["id"] not in self.account.objects["invoice"]
        if gone or invoice["status"] != "draft" or invoice["automatically_finalizes_at"] != when:
            return
        settings = self.account.settings
        late = self.now >= invoice["created"] + ACK_LIMIT
        waits = settings.wait_for_webhooks and settings.grace == HOUR and not late
        if waits and not self.acknowledged("invoice.created", invoice["id"]):
            self._plan(invoice, when + HOUR)
            return
        self.finalize(invoice)
        if invoice["status"] == "open" and invoice["collection_method"] == "charge_automatically":
            self._try(invoice)

    # Lines

    def refresh(self, invoice: Obj, *, seen: float | None = None) -> None:
        """Bring the lines of a draft up to what is known now."""
        if invoice["status"] != "draft":
            return
        lines = [self._usage_line(invoice, part, seen) for part in invoice["_metered"]]
        lines += [
            self._item_line(invoice, item)
            for item in self.account.all("invoiceitem")
            if item["invoice"] == invoice.get("id", "")
        ]
        invoice["lines"]["data"] = lines
        self._sum(invoice)

    def _line(self, invoice: Obj, source: str, **fields: Any) -> Obj:
        name = invoice["_line_ids"].get(source) or self.account.new_id("il")
        invoice["_line_ids"][source] = name
        return {
            "id": name,
            "object": "line_item",
            "currency": invoice["currency"],
            "discount_amounts": [],
            "discountable": True,
            "discounts": [],
            "invoice": invoice.get("id"),
            "livemode": self.account.livemode,
            "metadata": {},
            "pretax_credit_amounts": [],
            "subscription": None,
            "taxes": [],
            **fields,
        }

    def usage_of(self, customer: str, part: Metered, seen: float | None = None) -> Decimal:
        """The quantity Stripe would put on the line; a negative total shows as nothing."""
        meter = self.account.get("billing.meter", part.price["recurring"]["meter"])
        before = min((x for x in (part.before, seen) if x is not None), default=None)
        events = self.meters.counted(
            meter, customer, part.start, part.end, before=before or self.account.clock.time
        )
        return max(self.meters.aggregate(meter, events), Decimal(0))

    def rounded(self, amount: Decimal) -> int:
        """Whole cents of one line."""
        return int(amount.quantize(Decimal(1), rounding=self.account.settings.rounding))

    def _usage_line(self, invoice: Obj, part: Metered, seen: float | None) -> Obj:
        quantity = self.usage_of(invoice["customer"], part, seen)
        unit = Decimal(part.price["unit_amount_decimal"])
        amount = self.rounded(quantity * unit)
        product = self.account.get("product", part.price["product"])
        details = {
            "invoice_item": None,
            "proration": False,
            "proration_details": {"credited_items": None},
            "subscription": invoice["parent"]["subscription_details"]["subscription"],
            "subscription_item": part.item,
        }
        dollars = decimal_text(unit / 100)
        return self._line(
            invoice,
            part.item,
            amount=amount,
            subtotal=amount,
            description=f"{decimal_text(quantity)} × {product['name']} (at ${dollars} / month)",
            parent={
                "type": "subscription_item_details",
                "subscription_item_details": details,
                "invoice_item_details": None,
            },
            period={"start": part.start, "end": part.end},
            pricing=self._pricing(part.price),
            quantity=int(quantity),
            quantity_decimal=decimal_text(quantity),
            subscription=details["subscription"],
        )

    @staticmethod
    def _pricing(price: Obj) -> Obj:
        return {
            "type": "price_details",
            "price_details": {"price": price["id"], "product": price["product"]},
            "unit_amount_decimal": price["unit_amount_decimal"],
        }

    def _item_line(self, invoice: Obj, item: Obj) -> Obj:
        details = {
            "invoice_item": item["id"],
            "proration": item["proration"],
            "proration_details": {"credited_items": None},
            "subscription": item["_subscription"],
        }
        return self._line(
            invoice,
            item["id"],
            amount=item["amount"],
            subtotal=item["amount"],
            description=item["description"],
            metadata=dict(item["metadata"]),
            parent={
                "type": "invoice_item_details",
                "invoice_item_details": details,
                "subscription_item_details": None,
            },
            period=item["period"],
            pricing=item["pricing"],
            quantity=item["quantity"],
            quantity_decimal=item["quantity_decimal"],
            subscription=item["_subscription"],
        )

    def _sum(self, invoice: Obj) -> None:
        subtotal = sum(line["amount"] for line in invoice["lines"]["data"])
        credit = sum(entry["amount"] for entry in invoice["total_pretax_credit_amounts"])
        taxes = self._taxes(subtotal - credit)
        total = subtotal - credit + sum(tax["amount"] for tax in taxes)
        due = max(0, total + invoice["starting_balance"])
        due = max(0, due - invoice["pre_payment_credit_notes_amount"])
        invoice.update(
            subtotal=subtotal,
            subtotal_excluding_tax=subtotal,
            total=total,
            total_excluding_tax=subtotal - credit,
            total_taxes=taxes,
            amount_due=due,
            amount_remaining=max(0, due - invoice["amount_paid"]),
        )

    def _taxes(self, taxable: int) -> list[Obj]:
        """The tax on top of what is left after credit, if this account has one."""
        percent = self.account.settings.tax_percent
        if not percent or taxable <= 0:
            return []
        tax = {
            "amount": self.rounded(Decimal(taxable * percent) / 100),
            "tax_behavior": "exclusive",
            "tax_rate_details": {"tax_rate": "txr_emulated"},
            "taxability_reason": "standard_rated",
            "taxable_amount": taxable,
            "type": "tax_rate_details",
        }
        return [tax]

    # Finalised and after

    def finalize(self, invoice: Obj) -> None:
        """Fix the lines, use up credit, and give it its number and pages."""
        if invoice["status"] != "draft":
            raise StripeError("This invoice is already finalized", code="invoice_not_editable")
        self.refresh(invoice)
        customer = self.account.get("customer", invoice["customer"])
        self.grants.apply(invoice)
        invoice["starting_balance"] = customer["balance"]
        self._sum(invoice)
        customer["balance"] = min(0, invoice["total"] + customer["balance"])
        sequence = customer["next_invoice_sequence"]
        customer["next_invoice_sequence"] += 1
        page = f"{self.account.origin}/i/{invoice['id']}"
        invoice.update(
            status="open",
            number=f"{customer['invoice_prefix']}-{sequence:04d}",
            effective_at=self.now,
            ending_balance=customer["balance"],
            hosted_invoice_url=page,
            invoice_pdf=f"{page}/pdf",
            automatically_finalizes_at=None,
        )
        invoice["status_transitions"]["finalized_at"] = self.now
        self.account.emit("invoice.finalized", invoice)
        if invoice["amount_due"] == 0:
            self._settled(invoice)

    def settle(self, invoice: Obj) -> None:
        """After a credit note: an invoice with nothing left to pay is paid."""
        self._sum(invoice)
        if invoice["status"] == "open" and invoice["amount_remaining"] == 0:
            self._settled(invoice)
        else:
            self.account.emit("invoice.updated", invoice)

    def _settled(self, invoice: Obj) -> None:
        invoice.update(status="paid", attempted=True, next_payment_attempt=None, amount_remaining=0)
        invoice["status_transitions"]["paid_at"] = self.now
        self.account.emit("invoice.payment_succeeded", invoice)
        self.account.emit("invoice.paid", invoice)
        self.paid(invoice)

    def subscription(self, invoice: Obj) -> Obj | None:
        """The subscription it belongs to."""
        if invoice["parent"] is None:
            return None
        name = invoice["parent"]["subscription_details"]["subscription"]
        return self.account.get("subscription", name)

    def _card(self, invoice: Obj) -> Obj | None:
        sub = self.subscription(invoice) or {}
        owner = self.account.get("customer", invoice["customer"])
        name = (
            invoice["default_payment_method"]
            or sub.get("default_payment_method")
            or owner.get("invoice_settings", {}).get("default_payment_method")
        )
        return self.account.get("payment_method", name) if name else None

    def _intent(self, invoice: Obj) -> Obj:
        for payment in self.account.all("invoice_payment"):
            if payment["invoice"] == invoice["id"] and payment["status"] == "open":
                return self.account.get("payment_intent", payment["payment"]["payment_intent"])
        intent = self.payments.intent(
            invoice["amount_remaining"],
            invoice["currency"],
            invoice["customer"],
            description=f"Invoice {invoice['number']}",
        )
        self.account.add(
            "invoice_payment",
            "inpay",
            amount_paid=None,
            amount_requested=invoice["amount_remaining"],
            currency=invoice["currency"],
            invoice=invoice["id"],
            is_default=True,
            payment={"type": "payment_intent", "payment_intent": intent["id"]},
            status="open",
            status_transitions={"canceled_at": None, "paid_at": None},
        )
        return intent

    def charge(self, invoice: Obj, card: Obj | None) -> None:
        """One attempt to collect, or what the bank says."""
        if card is None:
            text = "Cannot charge customer that has no active card"
            raise StripeError(text, code="missing", kept=True)
        intent = self._intent(invoice)
        intent["amount"] = invoice["amount_remaining"]
        self.payments.confirm(intent, card)
        for payment in self.account.all("invoice_payment"):
            if payment["payment"].get("payment_intent") == intent["id"]:
                payment.update(status="paid", amount_paid=intent["amount"])
                payment["status_transitions"]["paid_at"] = self.now
        invoice["attempt_count"] += 1
        invoice["amount_paid"] += intent["amount"]
        self._settled(invoice)

    def _try(self, invoice: Obj) -> None:
        """An automatic attempt; each failure plans the next, until the plan is used up."""
        card = self._card(invoice)
        if card is None or card["id"] != invoice["_stopped"]:
            try:
                self.charge(invoice, card)
            except StripeError as refusal:
                hard = refusal.error.get("decline_code") in HARD
                invoice["_stopped"] = card["id"] if card is not None and hard else None
                self._missed(invoice)
                return
            return
        self._missed(invoice, tried=False)

    def _missed(self, invoice: Obj, *, tried: bool = True) -> None:
        gaps, turn = self.account.settings.retry_gaps, invoice.get("_turn", 0)
        last = turn >= len(gaps)
        invoice["_turn"] = turn + 1
        following = None if last else self.now + gaps[turn]
        hidden = invoice["_stopped"] is not None
        invoice.update(
            attempt_count=invoice["attempt_count"] + tried,
            attempted=True,
            next_payment_attempt=None if hidden else following,
        )
        if following is not None:
            self.account.clock.at(following, lambda: self._again(invoice))
        if tried:
            self.account.emit("invoice.payment_failed", invoice)
        self.account.emit("invoice.updated", invoice)
        self.failed(invoice, last)

    def _again(self, invoice: Obj) -> None:
        if invoice["status"] == "open" and invoice["auto_advance"]:
            self._try(invoice)

    def cut(self, item: str) -> None:
        """The item left its subscription: drafts count no more of its usage."""
        for invoice in self.account.all("invoice"):
            if invoice["status"] == "draft":
                invoice["_metered"] = tuple(
                    replace(part, before=part.before or self.account.clock.time)
                    if part.item == item
                    else part
                    for part in invoice["_metered"]
                )

    # The API

    @route(
        "POST",
        "/v1/invoices",
        "auto_advance automatic_tax collection_method currency customer default_payment_method"
        " description footer metadata pending_invoice_items_behavior subscription",
    )
    def create(self, call: Call) -> Obj:
        params = call.params
        refuse_tax(params)
        customer = self.customers.find(params.need("customer"), "customer")
        named = params.text("subscription")
        sub = self.account.get("subscription", named, "subscription") if named else None
        params.choice("collection_method", "charge_automatically")
        include = params.choice(
            "pending_invoice_items_behavior", "include", "exclude", default="exclude"
        )
        auto = params.flag("auto_advance")
        return self.draft(
            customer,
            sub,
            items=include == "include",
            after=HOUR if auto else None,
            auto=auto,
            reason="manual",
            period=(self.now, self.now),
            description=params.text("description", 1500),
            footer=params.text("footer"),
            metadata=params.metadata(),
            default_payment_method=params.text("default_payment_method"),
            currency=(params.text("currency") or "usd").lower(),
        )

    @route("POST", "/v1/invoices/create_preview", "currency customer preview_mode subscription")
    def preview(self, call: Call) -> Obj:
        params = call.params
        name = params.need("subscription")
        sub = self.account.get("subscription", name, "subscription")
        if params.text("customer") not in (None, sub["customer"]):
            raise missing("subscription", name, param="subscription", status=400)
        customer = self.account.get("customer", sub["customer"])
        if sub["status"] == "canceled":
            text = "No upcoming invoices for customer"
            raise StripeError(text, status=404, code="invoice_upcoming_none")
        start, end = sub["_period"]
        shown = self.bare(
            customer, sub, reason="upcoming", period=(start, end), metered=self.open_parts(sub)
        )
        shown |= {
            "id": self.account.new_id("upcoming_in"),
            "object": "invoice",
            "created": end,
            "livemode": self.account.livemode,
        }
        shown["lines"]["url"] = f"/v1/invoices/upcoming/lines?subscription={name}"
        seen = self.account.clock.time - self.account.settings.summary_lag
        self.refresh(shown, seen=seen)
        shown["lines"]["data"] += [self._item_line(shown, i) for i in self._pending(customer, sub)]
        self._sum(shown)
        return shown

    def open_parts(self, sub: Obj) -> tuple[Metered, ...]:
        """What the running period of a subscription will bill."""
        return tuple(
            Metered(
                item["id"],
                item["price"],
                max(item["current_period_start"], item["_since"]),
                item["current_period_end"],
            )
            for item in sub["items"]["data"]
        )

    def _found(self, call: Call) -> Obj:
        invoice = self.account.get("invoice", call.id)
        self.refresh(invoice)
        return invoice

    @route("GET", "/v1/invoices", "collection_method customer status subscription", paged=True)
    def index(self, call: Call) -> Obj:
        params = call.params
        rows = self.account.all("invoice")
        for name in ("customer", "status", "collection_method"):
            if (value := params.text(name)) is not None:
                rows = [row for row in rows if row[name] == value]
        if (wanted := params.text("subscription")) is not None:
            rows = [row for row in rows if (self.subscription(row) or {}).get("id") == wanted]
        for row in rows:
            self.refresh(row)
        return self.account.page(call, map(self._cut_short, rows))

    @route("GET", "/v1/invoices/{id}")
    def retrieve(self, call: Call) -> Obj:
        return self._cut_short(self._found(call))

    @staticmethod
    def _cut_short(invoice: Obj) -> Obj:
        """The invoice with the first of its lines; the others are at their own address."""
        lines = invoice["lines"]
        more = len(lines["data"]) > SHOWN_LINES
        return invoice | {"lines": lines | {"data": lines["data"][:SHOWN_LINES], "has_more": more}}

    @route("GET", "/v1/invoices/{id}/lines", paged=True)
    def lines(self, call: Call) -> Obj:
        return self.account.page(call, self._found(call)["lines"]["data"][::-1])

    @route(
        "POST",
        "/v1/invoices/{id}",
        "auto_advance automatically_finalizes_at default_payment_method description footer"
        " metadata",
    )
    def update(self, call: Call) -> Obj:
        invoice, params = self._found(call), call.params
        plain = {"default_payment_method", "description", "footer"}
        changes: Obj = {name: params.text(name) for name in sorted(plain) if name in params}
        if invoice["status"] != "draft" and changes.keys() & {"description", "footer"}:
            text = "Finalized invoices can't be updated in this way"
            raise StripeError(text, code="invoice_not_editable")
        if "auto_advance" in params:
            changes["auto_advance"] = params.flag("auto_advance")
        self.account.change(
            invoice,
            "invoice.updated",
            metadata=params.metadata(invoice["metadata"]),
            **changes,
        )
        if invoice["status"] == "draft" and invoice["auto_advance"]:
            wanted = params.integer("automatically_finalizes_at")
            if wanted is not None or invoice["automatically_finalizes_at"] is None:
                self._plan(invoice, wanted or self.now + HOUR)
        elif invoice["status"] == "draft":
            invoice["automatically_finalizes_at"] = None
        return invoice

    @route("DELETE", "/v1/invoices/{id}")
    def delete(self, call: Call) -> Obj:
        invoice = self.account.get("invoice", call.id)
        if invoice["status"] != "draft" or invoice["parent"] is not None:
            text = "You can only delete draft invoices that no subscription made."
            raise StripeError(text, code="invoice_not_editable")
        for item in self.account.all("invoiceitem"):
            if item["invoice"] == call.id:
                item["invoice"] = None
        del self.account.objects["invoice"][call.id]
        self.account.emit("invoice.deleted", invoice)
        return {"id": call.id, "object": "invoice", "deleted": True}

    @route("POST", "/v1/invoices/{id}/finalize", "auto_advance")
    def finalize_invoice(self, call: Call) -> Obj:
        invoice = self.account.get("invoice", call.id)
        advance = call.params.flag("auto_advance", default=invoice["auto_advance"])
        self.finalize(invoice)
        invoice["auto_advance"] = advance
        if advance and invoice["status"] == "open":
            self.account.clock.at(self.now + HOUR, lambda: self._again(invoice))
            invoice["next_payment_attempt"] = self.now + HOUR
        return invoice

    @route("POST", "/v1/invoices/{id}/pay", "off_session paid_out_of_band payment_method")
    def pay(self, call: Call) -> Obj:
        invoice = self.account.get("invoice", call.id)
        if invoice["status"] == "draft":
            self.finalize(invoice)
        elif invoice["status"] not in ("open", "uncollectible"):
            text = f"Invoice is already {invoice['status']}"
            raise StripeError(text, code="invoice_not_editable")
        if invoice["status"] == "paid":
            return invoice
        if call.params.flag("paid_out_of_band"):
            invoice["amount_paid"] = invoice["amount_paid_off_stripe"] = invoice["amount_remaining"]
            self._settled(invoice)
            return invoice
        named = call.params.text("payment_method")
        owner = self.account.get("customer", invoice["customer"])
        card = (
            self.customers.own_card(named, owner, call.params, "payment_method")
            if named is not None
            else self._card(invoice)
        )
        self.pay_with(invoice, card)
        return invoice

    def pay_with(self, invoice: Obj, card: Obj | None) -> None:
        """An attempt by a person: a failure is reported to both sides, and no retry is planned."""
        try:
            self.charge(invoice, card)
        except StripeError as refusal:
            if refusal.status == 402:
                invoice.update(attempt_count=invoice["attempt_count"] + 1, attempted=True)
                self.account.emit("invoice.payment_failed", invoice)
                self.account.emit("invoice.updated", invoice)
                self.failed(invoice, False)
            raise

    @route("POST", "/v1/invoices/{id}/void")
    def void(self, call: Call) -> Obj:
        invoice = self.account.get("invoice", call.id)
        if invoice["status"] not in ("open", "uncollectible"):
            raise StripeError(
                f"You can only pass in open invoices. This one is {invoice['status']}."
            )
        invoice.update(status="void", next_payment_attempt=None, amount_remaining=0)
        invoice["status_transitions"]["voided_at"] = self.now
        self.grants.reinstate(invoice)
        self.account.emit("invoice.voided", invoice)
        return invoice

    @route("POST", "/v1/invoices/{id}/mark_uncollectible")
    def mark_uncollectible(self, call: Call) -> Obj:
        invoice = self.account.get("invoice", call.id)
        if invoice["status"] != "open":
            raise StripeError(
                f"You can only pass in open invoices. This one is {invoice['status']}."
            )
        invoice.update(status="uncollectible", next_payment_attempt=None)
        invoice["status_transitions"]["marked_uncollectible_at"] = self.now
        self.account.emit("invoice.marked_uncollectible", invoice)
        return invoice

    @route("GET", "/v1/invoice_payments", "invoice status", paged=True)
    def payments_of(self, call: Call) -> Obj:
        wanted = call.params.text("invoice")
        rows = self.account.all("invoice_payment")
        return self.account.page(call, [r for r in rows if wanted in (None, r["invoice"])])

    # Invoice items

    @route("POST", "/v1/invoiceitems", ITEM)
    def create_item(self, call: Call) -> Obj:
        params = call.params
        customer = self.customers.find(params.need("customer"), "customer")
        named, sub = params.text("invoice"), params.text("subscription")
        if named is not None:
            invoice = self.account.get("invoice", named, "invoice")
            if invoice["status"] != "draft" or invoice["customer"] != customer["id"]:
                raise params.bad("invoice", "The invoice is not a draft of this customer.")
        if sub is not None:
            self.account.get("subscription", sub, "subscription")
        return self.new_item(customer, params, invoice=named, sub=sub)

    def new_item(
        self, customer: Obj, params: Params, *, invoice: str | None = None, sub: str | None = None
    ) -> Obj:
        """An item that waits for an invoice, or is added to this draft."""
        pricing, quantity = params.nested("pricing"), params.integer("quantity")
        price = None
        if pricing is not None:
            price = self.catalog.live_price(pricing.need("price"), pricing)
        unit = params.decimal("unit_amount_decimal")
        if price is not None:
            unit = Decimal(price["unit_amount_decimal"])
        amount = params.integer("amount")
        if (amount is None) == (unit is None):
            text = "Give exactly one of `amount`, `unit_amount_decimal` and `pricing`."
            raise params.bad("amount", text)
        count = 1 if quantity is None else quantity
        if amount is None:
            amount = self.rounded((unit or Decimal(0)) * count)
        currency = price["currency"] if price else params.need("currency").lower()
        period = params.nested("period")
        span = {"start": self.now, "end": self.now}
        if period is not None:
            span = {name: period.integer(name) or self.now for name in ("start", "end")}
        return self.account.add(
            "invoiceitem",
            "ii",
            amount=amount,
            currency=currency,
            customer=customer["id"],
            date=self.now,
            description=params.text("description"),
            discountable=params.flag("discountable", default=False),
            discounts=[],
            invoice=invoice,
            metadata=params.metadata(),
            net_amount=amount,
            parent=None if sub is None else self._item_parent(sub),
            period=span,
            pricing=self._pricing(price) if price else None,
            proration=False,
            quantity=count,
            quantity_decimal=str(count),
            tax_rates=[],
            test_clock=None,
            _subscription=sub,
        )

    @staticmethod
    def _item_parent(sub: str) -> Obj:
        return {
            "type": "subscription_details",
            "subscription_details": {"subscription": sub},
        }

    @route("GET", "/v1/invoiceitems", "customer invoice pending", paged=True)
    def items(self, call: Call) -> Obj:
        params = call.params
        rows = self.account.all("invoiceitem")
        for name in ("customer", "invoice"):
            if (value := params.text(name)) is not None:
                rows = [row for row in rows if row[name] == value]
        if params.flag("pending"):
            rows = [row for row in rows if row["invoice"] is None]
        return self.account.page(call, rows)

    @route("GET", "/v1/invoiceitems/{id}")
    def item(self, call: Call) -> Obj:
        return self.account.get("invoiceitem", call.id)

    @route("DELETE", "/v1/invoiceitems/{id}")
    def delete_item(self, call: Call) -> Obj:
        item = self.account.get("invoiceitem", call.id)
        invoice = self.account.objects.get("invoice", {}).get(item["invoice"])
        if invoice is not None and invoice["status"] != "draft":
            raise StripeError("The invoice of this item is not a draft any more.")
        del self.account.objects["invoiceitem"][call.id]
        return {"id": call.id, "object": "invoiceitem", "deleted": True}

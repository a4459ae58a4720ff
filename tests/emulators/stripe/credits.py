"""Credit grants, which Stripe applies when an invoice is finalised and never before, and notes."""

from collections.abc import Callable
from decimal import Decimal

from tests.emulators.stripe.core import (
    Account,
    Call,
    Obj,
    Params,
    Part,
    StripeError,
    decimal_text,
    listed,
    route,
)
from tests.emulators.stripe.customers import Customers

MAX_UNUSED = 100


def money(currency: str, value: int) -> Obj:
    """An amount as the credit objects write it."""
    return {"type": "monetary", "monetary": {"currency": currency, "value": value}}


class CreditGrants(Part):
    """Prepaid and promotional credit for metered prices."""

    customers: Customers

    @route(
        "POST",
        "/v1/billing/credit_grants",
        "amount applicability_config category customer effective_at expires_at metadata name"
        " priority",
    )
    def create(self, call: Call) -> Obj:
        params = call.params
        customer = self.customers.find(params.need("customer"), "customer")
        amount, scope = self._amount(params), self._scope(params)
        expires = params.integer("expires_at")
        if expires is not None and expires <= self.now:
            raise params.bad("expires_at", "expires_at must be in the future.")
        priority = params.integer("priority")
        priority = 50 if priority is None else priority
        if not 0 <= priority <= 100:
            raise params.bad("priority", "priority must be between 0 and 100.")
        unused = [g for g in self._of(customer["id"]) if self._usable(g) and g["_left"] > 0]
        if len(unused) >= MAX_UNUSED:
            text = f"A customer can have at most {MAX_UNUSED} unused credit grants."
            raise StripeError(text)
        grant = self.account.add(
            "billing.credit_grant",
            "credgr_test",
            amount=amount,
            applicability_config={"scope": scope},
            category=params.choice("category", "paid", "promotional", default="paid"),
            customer=customer["id"],
            effective_at=params.integer("effective_at") or self.now,
            expires_at=expires,
            metadata=params.metadata(),
            name=params.text("name", 100),
            priority=priority,
            test_clock=None,
            updated=self.now,
            voided_at=None,
            _left=amount["monetary"]["value"],
        )
        self._transact(grant, "credit", "credits_granted", grant["_left"])
        if expires is not None:
            self.account.clock.at(expires, lambda: self._lapse(grant, expires))
        self.account.emit("billing.credit_grant.created", grant)
        return grant

    @staticmethod
    def _amount(params: Params) -> Obj:
        amount = params.nested("amount")
        if amount is None:
            raise params.absent("amount")
        amount.need("type")
        amount.choice("type", "monetary")
        sent = amount.nested("monetary")
        if sent is None:
            raise amount.absent("monetary")
        value = sent.integer("value")
        if value is None or value <= 0:
            raise sent.bad("value", "Invalid positive integer", "parameter_invalid_integer")
        return money(sent.need("currency").lower(), value)

    def _scope(self, params: Params) -> Obj:
        config = params.nested("applicability_config")
        scope = config.nested("scope") if config is not None else None
        if scope is None:
            raise params.absent("applicability_config")
        prices = [entry.need("id") for entry in scope.many("prices")]
        if bool(prices) == (scope.choice("price_type", "metered") is not None):
            raise scope.bad("price_type", "Give exactly one of `price_type` and `prices`.")
        for price in prices:
            recurring = self.account.get("price", price, scope.name("prices"))["recurring"]
            if not recurring or recurring["usage_type"] != "metered":
                raise scope.bad("prices", "Credit grants apply to metered prices only.")
        if prices:
            return {"prices": [{"id": price} for price in prices]}
        return {"price_type": "metered"}

    def _of(self, customer: str) -> list[Obj]:
        return [g for g in self.account.all("billing.credit_grant") if g["customer"] == customer]

    def _usable(self, grant: Obj) -> bool:
        over = grant["expires_at"] is not None and grant["expires_at"] <= self.now
        return grant["voided_at"] is None and not over and grant["effective_at"] <= self.now

    def _transact(self, grant: Obj, kind: str, why: str, value: int, **more: str) -> str:
        side: Obj = {"amount": money(grant["amount"]["monetary"]["currency"], value), "type": why}
        named = "credits_applied" if kind == "debit" else "credits_application_invoice_voided"
        side[named] = dict(more) if more else None
        other = "credit" if kind == "debit" else "debit"
        made = self.account.add(
            "billing.credit_balance_transaction",
            "cbtxn_test",
            credit_grant=grant["id"],
            effective_at=self.now,
            test_clock=None,
            type=kind,
            **{kind: side, other: None},
        )
        return str(made["id"])

    def _lapse(self, grant: Obj, moment: int) -> None:
        if grant["expires_at"] != moment or grant["voided_at"] is not None or not grant["_left"]:
            return
        self._transact(grant, "debit", "credits_expired", grant["_left"])
        grant.update(_left=0, updated=self.now)

    def apply(self, invoice: Obj) -> None:
        """Pay the metered lines from the customer's grants, in Stripe's order of using them up."""
        grants = sorted(
            (g for g in self._of(invoice["customer"]) if self._usable(g)),
            key=lambda g: (
                g["priority"],
                g["expires_at"] or 1 << 40,
                g["category"] == "paid",
                g["effective_at"],
                g["created"],
            ),
        )
        for line in invoice["lines"]["data"]:
            left = line["amount"]
            for grant in grants:
                same = grant["amount"]["monetary"]["currency"] == invoice["currency"]
                used = min(left, grant["_left"])
                if used <= 0 or not same or not self._fits(grant, line):
                    continue
                more = {"invoice": invoice["id"], "invoice_line_item": line["id"]}
                name = self._transact(grant, "debit", "credits_applied", used, **more)
                grant["_left"] -= used
                left -= used
                entry = {"amount": used, "type": "credit_balance_transaction"}
                line["pretax_credit_amounts"].append(entry | {"credit_balance_transaction": name})
        invoice["total_pretax_credit_amounts"] = [
            dict(entry)
            for line in invoice["lines"]["data"]
            for entry in line["pretax_credit_amounts"]
        ]

    def _fits(self, grant: Obj, line: Obj) -> bool:
        price = (line["pricing"] or {}).get("price_details", {}).get("price")
        if line["parent"]["type"] != "subscription_item_details" or price is None:
            return False
        prices = grant["applicability_config"]["scope"].get("prices")
        return prices is None or price in {entry["id"] for entry in prices}

    def reinstate(self, invoice: Obj) -> None:
        """Give back what a voided invoice had used."""
        for line in invoice["lines"]["data"]:
            for entry in line["pretax_credit_amounts"]:
                used = self.account.get(
                    "billing.credit_balance_transaction", entry["credit_balance_transaction"]
                )
                grant = self.account.get("billing.credit_grant", used["credit_grant"])
                grant["_left"] += entry["amount"]
                why = "credits_application_invoice_voided"
                more = {"invoice": invoice["id"], "invoice_line_item": line["id"]}
                self._transact(grant, "credit", why, entry["amount"], **more)

    @route("GET", "/v1/billing/credit_grants", "customer", paged=True)
    def index(self, call: Call) -> Obj:
        owner = call.params.text("customer")
        rows = self._of(owner) if owner else self.account.all("billing.credit_grant")
        return self.account.page(call, rows)

    @route("GET", "/v1/billing/credit_grants/{id}")
    def retrieve(self, call: Call) -> Obj:
        return self.account.get("billing.credit_grant", call.id)

    @route("POST", "/v1/billing/credit_grants/{id}", "expires_at metadata")
    def update(self, call: Call) -> Obj:
        grant = self.account.get("billing.credit_grant", call.id)
        grant.update(metadata=call.params.metadata(grant["metadata"]), updated=self.now)
        if "expires_at" in call.params:
            moment = grant["expires_at"] = call.params.integer("expires_at")
            if moment is not None:
                self.account.clock.at(moment, lambda: self._lapse(grant, moment))
        return grant

    @route("POST", "/v1/billing/credit_grants/{id}/expire")
    def expire(self, call: Call) -> Obj:
        grant = self.account.get("billing.credit_grant", call.id)
        grant["expires_at"] = self.now
        self._lapse(grant, self.now)
        return grant

    @route("POST", "/v1/billing/credit_grants/{id}/void")
    def void(self, call: Call) -> Obj:
        grant = self.account.get("billing.credit_grant", call.id)
        if grant["_left"] != grant["amount"]["monetary"]["value"]:
            raise StripeError("A credit grant that was used cannot be voided.")
        self._transact(grant, "debit", "credits_voided", grant["_left"])
        grant.update(_left=0, voided_at=self.now, updated=self.now)
        return grant

    @route("GET", "/v1/billing/credit_balance_transactions", "customer credit_grant", paged=True)
    def transactions(self, call: Call) -> Obj:
        owner, wanted = call.params.text("customer"), call.params.text("credit_grant")
        grants = {g["id"] for g in self._of(owner or "")} if wanted is None else {wanted}
        rows = self.account.all("billing.credit_balance_transaction")
        return self.account.page(call, [row for row in rows if row["credit_grant"] in grants])

    @route("GET", "/v1/billing/credit_balance_summary", "customer filter")
    def summary(self, call: Call) -> Obj:
        params = call.params
        customer = self.customers.find(params.need("customer"), "customer")
        wanted = params.nested("filter")
        if wanted is None:
            raise params.absent("filter")
        wanted.need("type")
        grants = [g for g in self._of(customer["id"]) if self._usable(g)]
        if wanted.choice("type", "applicability_scope", "credit_grant") == "credit_grant":
            grants = [g for g in grants if g["id"] == wanted.need("credit_grant")]
        by_currency: dict[str, int] = {}
        for grant in grants:
            currency = grant["amount"]["monetary"]["currency"]
            by_currency[currency] = by_currency.get(currency, 0) + grant["_left"]
        amounts = [money(*pair) for pair in sorted(by_currency.items())] or [money("usd", 0)]
        return {
            "object": "billing.credit_balance_summary",
            "balances": [{"available_balance": a, "ledger_balance": a} for a in amounts],
            "customer": customer["id"],
            "livemode": self.account.livemode,
        }


class CreditNotes(Part):
    """What is taken back from a finalised invoice; usage and credit grants stay as they are."""

    def __init__(self, account: Account) -> None:
        super().__init__(account)
        self.settle: Callable[[Obj], None] = lambda invoice: None

    @route(
        "POST",
        "/v1/credit_notes",
        "amount credit_amount invoice lines memo metadata out_of_band_amount reason refund_amount",
    )
    def create(self, call: Call) -> Obj:
        params = call.params
        invoice = self.account.get("invoice", params.need("invoice"), "invoice")
        if invoice["status"] not in ("open", "paid"):
            text = "A credit note can only be issued for an open or paid invoice."
            raise params.bad("invoice", text)
        lines = [self._line(invoice, line) for line in params.many("lines")]
        amount = params.integer("amount")
        amount = sum(line["amount"] for line in lines) if amount is None else amount
        if amount <= 0 or (lines and amount != sum(line["amount"] for line in lines)):
            raise params.bad("amount", "The amount must be positive and the sum of the lines.")
        noted = invoice["pre_payment_credit_notes_amount"]
        noted += invoice["post_payment_credit_notes_amount"]
        if amount > invoice["total"] - noted:
            text = "The sum of credit note amounts cannot exceed the amount of the invoice."
            raise params.bad("amount", text)
        paid = invoice["status"] == "paid"
        parts = {
            name: params.integer(name) or 0
            for name in ("credit_amount", "refund_amount", "out_of_band_amount")
        }
        if paid and sum(parts.values()) != amount:
            text = (
                "Say how the amount is paid back: the sum of `refund_amount`, `credit_amount` and"
            )
            raise params.bad("amount", f"{text} `out_of_band_amount` must equal it.")
        note = self._new(invoice, amount, paid, params, lines)
        if paid:
            invoice["post_payment_credit_notes_amount"] += amount
            owner = self.account.get("customer", invoice["customer"])
            if parts["credit_amount"]:
                owner["balance"] -= parts["credit_amount"]
        else:
            invoice["pre_payment_credit_notes_amount"] += amount
            self.settle(invoice)
        self.account.emit("credit_note.created", note)
        return note

    def _line(self, invoice: Obj, sent: Params) -> Obj:
        kind = sent.choice("type", "invoice_line_item", "custom_line_item")
        quantity, unit = sent.integer("quantity"), sent.decimal("unit_amount_decimal")
        amount, exact = sent.integer("amount"), sent.integer("unit_amount")
        if unit is None and exact is not None:
            unit = Decimal(exact)
        if amount is None:
            amount = int((unit or Decimal(0)) * (quantity or 0))
        line: Obj = {
            "id": self.account.new_id("cnli"),
            "object": "credit_note_line_item",
            "amount": amount,
            "description": sent.text("description"),
            "discount_amount": 0,
            "discount_amounts": [],
            "livemode": self.account.livemode,
            "metadata": {},
            "pretax_credit_amounts": [],
            "quantity": quantity,
            "tax_rates": [],
            "taxes": [],
            "type": kind,
            "unit_amount": exact,
            "unit_amount_decimal": None if unit is None else decimal_text(unit),
        }
        if kind == "invoice_line_item":
            name = sent.need("invoice_line_item")
            if name not in {row["id"] for row in invoice["lines"]["data"]}:
                raise sent.bad("invoice_line_item", f"No such line item: '{name}'")
            line["invoice_line_item"] = name
        return line

    def _new(self, invoice: Obj, amount: int, paid: bool, params: Params, lines: list[Obj]) -> Obj:
        name = self.account.new_id("cn")
        count = sum(n["invoice"] == invoice["id"] for n in self.account.all("credit_note"))
        return self.account.add(
            "credit_note",
            "cn",
            id=name,
            amount=amount,
            amount_shipping=0,
            currency=invoice["currency"],
            customer=invoice["customer"],
            customer_balance_transaction=None,
            discount_amount=0,
            discount_amounts=[],
            effective_at=self.now,
            invoice=invoice["id"],
            lines=listed(lines, f"/v1/credit_notes/{name}/lines"),
            memo=params.text("memo"),
            metadata=params.metadata(),
            number=f"{invoice['number']}-CN-{count + 1:02d}",
            out_of_band_amount=params.integer("out_of_band_amount"),
            pdf=f"{self.account.origin}/credit_notes/{name}/pdf",
            post_payment_amount=amount if paid else 0,
            pre_payment_amount=0 if paid else amount,
            pretax_credit_amounts=[],
            reason=params.choice(
                "reason", "duplicate", "fraudulent", "order_change", "product_unsatisfactory"
            ),
            refunds=[],
            shipping_cost=None,
            status="issued",
            subtotal=amount,
            subtotal_excluding_tax=amount,
            total=amount,
            total_excluding_tax=amount,
            total_taxes=[],
            type="post_payment" if paid else "pre_payment",
            voided_at=None,
        )

    @route("GET", "/v1/credit_notes", "customer invoice", paged=True)
    def index(self, call: Call) -> Obj:
        wanted = {n: v for n in ("customer", "invoice") if (v := call.params.text(n)) is not None}
        rows = self.account.all("credit_note")
        rows = [row for row in rows if all(row[n] == v for n, v in wanted.items())]
        return self.account.page(call, rows)

    @route("GET", "/v1/credit_notes/{id}")
    def retrieve(self, call: Call) -> Obj:
        return self.account.get("credit_note", call.id)

    @route("POST", "/v1/credit_notes/{id}/void")
    def void(self, call: Call) -> Obj:
        note = self.account.get("credit_note", call.id)
        invoice = self.account.get("invoice", note["invoice"])
        if note["status"] == "void" or invoice["status"] != "open":
            raise StripeError("Only credit notes of open invoices can be voided.")
        note.update(status="void", voided_at=self.now)
        invoice["pre_payment_credit_notes_amount"] -= note["amount"]
        self.settle(invoice)
        self.account.emit("credit_note.voided", note)
        return note

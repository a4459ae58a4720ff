"""Checkout and the customer portal: the API, and pages that a person or a browser test can click.

The pages are on the emulator's own origin. `#pay`, `#decline`, `#cancel`, `#save-card`,
`#cancel-subscription`, `#renew-subscription` and `#return` are what there is to click.

Not settled facts take the cautious reading: a subscription that costs nothing today ends as
`no_payment_required`; Checkout sets the subscription's card and not the customer's default.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from urllib.parse import quote

from tests.emulators.stripe.billing import MAX_ITEMS, Billing
from tests.emulators.stripe.catalog import Catalog
from tests.emulators.stripe.core import (
    DAY,
    Account,
    Call,
    Obj,
    Params,
    Part,
    StripeError,
    listed,
    route,
)
from tests.emulators.stripe.customers import NUMBERS, Customers, refuse_tax
from tests.emulators.stripe.invoices import Invoices
from tests.emulators.stripe.payments import MINIMUM, Payments

GOOD, BAD = "4242424242424242", "4000000000000002"
SESSION = (
    "allow_promotion_codes automatic_tax billing_address_collection cancel_url client_reference_id"
    " currency customer customer_creation customer_email customer_update expires_at"
    " invoice_creation line_items locale metadata mode payment_intent_data"
    " payment_method_collection payment_method_types saved_payment_method_options"
    " setup_intent_data submit_type subscription_data success_url tax_id_collection ui_mode"
)
DATA = {
    "payment": "payment_intent_data",
    "setup": "setup_intent_data",
    "subscription": "subscription_data",
}
DATA_FIELDS = {
    "payment": "description metadata setup_future_usage",
    "setup": "description metadata",
    "subscription": "billing_cycle_anchor billing_cycle_anchor_config billing_mode description"
    " metadata proration_behavior",
}
PDF = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
    b"2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
)


@dataclass(frozen=True, slots=True)
class Page:
    """What a browser gets."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/html"})


def html(title: str, *parts: str, status: int = 200) -> Page:
    """A small page."""
    text = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
    text += f"<h1>{escape(title)}</h1>{''.join(parts)}</html>"
    return Page(status, text.encode(), {"Content-Type": "text/html; charset=utf-8"})


def button(name: str, text: str, action: str, fields: str = "") -> str:
    """A form with one button, whose id is `name`."""
    opening = f'<form method=post action="{escape(action)}">{fields}'
    return f'{opening}<button id="{name}" type=submit>{escape(text)}</button></form>'


def link(name: str, text: str, url: str) -> str:
    """A link with an id."""
    return f'<p><a id="{name}" href="{escape(url)}">{escape(text)}</a></p>'


CARD_FIELD = f'<label>Card number <input id=card name=card value="{GOOD}"></label> '


def go(url: str) -> Page:
    """On to another page."""
    return Page(303, b"", {"Location": url, "Content-Type": "text/html"})


def dollars(cents: int) -> str:
    """An amount for people."""
    return f"${cents / 100:,.2f}"


class Checkout(Part):
    """Checkout sessions, portal sessions and invoice pages."""

    billing: Billing
    catalog: Catalog
    customers: Customers
    invoices: Invoices
    payments: Payments

    def __init__(self, account: Account) -> None:
        super().__init__(account)
        account.include["checkout.session", "line_items"] = lambda session: listed(
            self.account.get("checkout.session", session["id"])["_lines"],
            f"/v1/checkout/sessions/{session['id']}/line_items",
        )

    # The API

    @route("POST", "/v1/checkout/sessions", SESSION)
    def create(self, call: Call) -> Obj:
        params = call.params
        refuse_tax(params)
        mode = params.choice("mode", "payment", "setup", "subscription")
        if mode is None:
            raise params.absent("mode")
        if params.text("ui_mode") not in (None, "hosted_page"):
            raise params.bad("ui_mode", "Only hosted pages are played.")
        params.need("success_url")
        owner = params.text("customer")
        if owner is not None:
            self.customers.find(owner, "customer")
            if params.text("customer_email") is not None:
                text = "You may only specify one of these parameters: customer, customer_email."
                raise StripeError(text)
        entries = params.many("line_items")
        if bool(entries) == (mode == "setup"):
            raise params.absent("line_items")
        if mode == "setup" and params.text("currency") is None:
            raise params.absent("currency")
        for belongs, name in DATA.items():
            if name in params and mode != belongs:
                text = f"You can not pass `{name}` in `{mode}` mode."
                raise params.bad(name, text)
            if (data := params.nested(name)) is not None:
                data.only(*DATA_FIELDS[belongs].split())
        lines = [self._line(entry, mode) for entry in entries]
        if mode == "subscription" and len(lines) > MAX_ITEMS:
            raise params.bad("line_items", f"You can have up to {MAX_ITEMS} recurring items.")
        total = sum(line["amount_total"] for line in lines)
        if mode == "payment" and total < MINIMUM:
            text = "The Checkout Session's total amount due must add up to at least $0.50 usd"
            raise params.bad("line_items", text, "amount_too_small")
        expires = params.integer("expires_at")
        expires = self.now + DAY if expires is None else expires
        if not self.now + 1800 <= expires <= self.now + DAY:
            text = "The `expires_at` timestamp must be 30 minutes to 24 hours from now."
            raise params.bad("expires_at", text)
        session = self._session(params, mode, lines, expires)
        self.account.clock.at(expires, lambda: self._expire(session))
        return session

    def _line(self, entry: Params, mode: str) -> Obj:
        data, quantity = entry.nested("price_data"), entry.integer("quantity")
        if data is not None:
            price = self._inline_price(data)
        else:
            price = self.catalog.live_price(entry.need("price"), entry)
        recurring = price["recurring"]
        metered = recurring is not None and recurring["usage_type"] == "metered"
        if metered != (mode == "subscription"):
            text = "The price does not fit the mode (or is licensed, which is not played)."
            raise entry.bad("price", text)
        if metered and quantity is not None:
            text = "Quantity should not be specified where usage_type is metered."
            raise entry.bad("quantity", text)
        if not metered and quantity is None:
            raise entry.absent("quantity")
        count = quantity or 0
        amount = 0 if metered else (price["unit_amount"] or 0) * count
        return {
            "id": self.account.new_id("li"),
            "object": "item",
            "amount_discount": 0,
            "amount_subtotal": amount,
            "amount_tax": 0,
            "amount_total": amount,
            "currency": price["currency"],
            "description": self.account.get("product", price["product"])["name"],
            "price": price,
            "quantity": None if metered else count,
        }

    def _inline_price(self, data: Params) -> Obj:
        product = data.nested("product_data")
        if data.nested("recurring") is not None:
            raise data.bad("recurring", "An inline price cannot be metered.")
        amount = self.catalog.unit_amount(data)
        named = (
            self.catalog.new_product(product)["id"]
            if product is not None
            else self.account.get("product", data.need("product"), data.name("product"))["id"]
        )
        return self.account.add(
            "price",
            "price",
            active=False,
            billing_scheme="per_unit",
            currency=data.need("currency").lower(),
            custom_unit_amount=None,
            lookup_key=None,
            metadata={},
            nickname=None,
            product=named,
            recurring=None,
            tax_behavior="unspecified",
            tiers_mode=None,
            transform_quantity=None,
            type="one_time",
            **amount,
        )

    def _session(self, params: Params, mode: str, lines: list[Obj], expires: int) -> Obj:
        total = sum(line["amount_total"] for line in lines)
        name = self.account.new_id("cs_live" if self.account.livemode else "cs_test")
        currency = lines[0]["currency"] if lines else params.text("currency")
        empty = (
            "after_expiration client_secret collected_information consent consent_collection"
            " currency_conversion customer_details invoice payment_intent payment_link"
            " recovered_from setup_intent shipping_address_collection shipping_cost subscription"
            " customer_account payment_method_configuration_details"
        )
        texts = (
            "billing_address_collection cancel_url client_reference_id customer customer_creation"
            " customer_email locale submit_type success_url"
        )
        flat = {text: params.text(text) for text in texts.split()}
        collection = params.choice("payment_method_collection", "always", "if_required")
        money = None if mode == "setup" else total
        return self.account.add(
            "checkout.session",
            "cs",
            id=name,
            **dict.fromkeys(empty.split()),
            **flat,
            allow_promotion_codes=None,
            amount_subtotal=money,
            amount_total=money,
            automatic_tax={"enabled": False, "liability": None, "provider": None, "status": None},
            currency=currency,
            custom_fields=[],
            custom_text=dict.fromkeys(
                ("after_submit", "shipping_address", "submit", "terms_of_service_acceptance")
            ),
            discounts=[],
            expires_at=expires,
            metadata=params.metadata(),
            mode=mode,
            payment_method_collection=(collection or "always") if mode == "subscription" else None,
            payment_method_options={},
            payment_method_types=params.texts("payment_method_types") or ["card"],
            payment_status="no_payment_required" if mode == "setup" else "unpaid",
            phone_number_collection={"enabled": False},
            shipping_options=[],
            status="open",
            total_details={"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0}
            if money is not None
            else None,
            ui_mode="hosted_page",
            url=f"{self.account.origin}/c/pay/{name}",
            _lines=lines,
            _data=params.data.get(DATA[mode]) or {},
        )

    @route(
        "GET", "/v1/checkout/sessions", "customer payment_intent status subscription", paged=True
    )
    def index(self, call: Call) -> Obj:
        rows = self.account.all("checkout.session")
        for name in ("customer", "payment_intent", "status", "subscription"):
            if (value := call.params.text(name)) is not None:
                rows = [row for row in rows if row[name] == value]
        return self.account.page(call, rows)

    @route("GET", "/v1/checkout/sessions/{id}")
    def retrieve(self, call: Call) -> Obj:
        return self.account.get("checkout.session", call.id)

    @route("GET", "/v1/checkout/sessions/{id}/line_items", paged=True)
    def line_items(self, call: Call) -> Obj:
        lines = self.account.get("checkout.session", call.id)["_lines"]
        return self.account.page(call, lines[::-1])

    @route("POST", "/v1/checkout/sessions/{id}/expire")
    def expire(self, call: Call) -> Obj:
        session = self.account.get("checkout.session", call.id)
        if session["status"] != "open":
            text = 'Only Checkout Sessions with a status in ["open"] can be expired.'
            raise StripeError(f"{text} This Checkout Session has a status of {session['status']}.")
        self._expire(session)
        return session

    def _expire(self, session: Obj) -> None:
        if session["status"] == "open":
            session.update(status="expired", url=None)
            self.account.emit("checkout.session.expired", session)

    @route("POST", "/v1/billing_portal/sessions", "configuration customer flow_data return_url")
    def portal(self, call: Call) -> Obj:
        params = call.params
        customer = self.customers.find(params.need("customer"), "customer")
        data = params.nested("flow_data")
        flow = None
        if data is not None:
            kind = data.choice("type", "payment_method_update", "subscription_cancel")
            wanted = data.nested("subscription_cancel")
            sub = wanted.need("subscription") if wanted is not None else None
            if sub is not None:
                self.billing.live(sub, "flow_data[subscription_cancel][subscription]")
            flow = {
                "type": kind,
                "after_completion": {
                    "type": "portal_homepage",
                    "hosted_confirmation": None,
                    "redirect": None,
                },
                "subscription_cancel": {"subscription": sub, "retention": None} if sub else None,
                "subscription_update": None,
                "subscription_update_confirm": None,
            }
        name = self.account.new_id("bps")
        return self.account.add(
            "billing_portal.session",
            "bps",
            id=name,
            configuration=params.text("configuration") or "bpc_default",
            customer=customer["id"],
            flow=flow,
            locale=None,
            on_behalf_of=None,
            return_url=params.text("return_url"),
            url=f"{self.account.origin}/p/session/{name}",
        )

    # The pages

    def page(self, method: str, path: str, form: dict[str, str]) -> Page:
        """Whatever a browser asks for."""
        parts = path.strip("/").split("/")
        pages: dict[tuple[str, ...], Callable[[str, str, str, dict[str, str]], Page]] = {
            ("c", "pay"): self._checkout_page,
            ("p", "session"): self._portal_page,
        }
        if parts[0] == "i" and len(parts) in (2, 3):
            return self._invoice_page(method, parts[1], "".join(parts[2:]), form)
        if parts[0] == "credit_notes":
            return Page(200, PDF, {"Content-Type": "application/pdf"})
        found = pages.get(tuple(parts[:2]))
        if found is None or len(parts) not in (3, 4):
            return html("Not found", status=404)
        return found(method, parts[2], "".join(parts[3:]), form)

    def _checkout_page(self, method: str, name: str, action: str, form: dict[str, str]) -> Page:
        session = self.account.objects.get("checkout.session", {}).get(name)
        if session is None:
            return html("Not found", status=404)
        if session["status"] == "expired":
            return html("This checkout session has expired", status=410)
        if session["status"] == "complete":
            return html("This checkout session is complete", '<p id="done">Done.</p>')
        problem = ""
        if method == "POST" and action == "pay":
            try:
                self.complete(session, form.get("card", GOOD))
                target = session["success_url"].replace("{CHECKOUT_SESSION_ID}", quote(name))
                return go(target)
            except StripeError as refusal:
                problem = f'<p id="error">{escape(str(refusal))}</p>'
        return self._checkout_form(session, problem)

    def _checkout_form(self, session: Obj, problem: str) -> Page:
        base = f"{self.account.origin}/c/pay/{session['id']}"
        rows = "".join(
            f"<li>{escape(line['description'])} {dollars(line['amount_total'])}</li>"
            for line in session["_lines"]
        )
        bad = f'<input type=hidden name=card value="{BAD}">'
        word = {"payment": "Pay", "setup": "Save card", "subscription": "Subscribe"}
        parts = [
            problem,
            f"<ul>{rows}</ul>",
            button("pay", word[session["mode"]], f"{base}/pay", CARD_FIELD),
            button("decline", "Pay with a card that is declined", f"{base}/pay", bad),
        ]
        if session["cancel_url"]:
            parts.append(link("cancel", "Back", session["cancel_url"]))
        return html("Checkout", *parts, status=402 if problem else 200)

    def complete(self, session: Obj, number: str = GOOD) -> None:
        """What the customer does on the page; a test may do it without one."""
        test_card = NUMBERS.get(number.replace(" ", ""))
        if session["status"] != "open":
            raise StripeError(f"The session is {session['status']}.")
        if test_card is None:
            raise StripeError("Your card number is incorrect.", status=402, code="incorrect_number")
        customer = self._customer(session)
        card = self.customers.new_card(test_card, {"email": customer["email"]})
        finish = {
            "payment": self._pay,
            "setup": self._setup,
            "subscription": self._subscribe,
        }[session["mode"]]
        finish(session, customer, card)
        session.update(
            status="complete",
            url=None,
            customer_details={
                "address": None,
                "business_name": None,
                "email": customer["email"],
                "individual_name": None,
                "name": customer["name"],
                "phone": None,
                "tax_exempt": "none",
                "tax_ids": [],
            },
        )
        self.account.emit("checkout.session.completed", session)

    def _customer(self, session: Obj) -> Obj:
        if session["customer"] is None:
            email = session["customer_email"] or "somebody@example.com"
            call = Call("POST", "/v1/customers", Params({"email": email}), (), "")
            session["customer"] = self.customers.create(call)["id"]
        return self.customers.find(session["customer"])

    def _pay(self, session: Obj, customer: Obj, card: Obj) -> None:
        data = Params(session["_data"], "payment_intent_data")
        reuse = data.choice("setup_future_usage", "on_session", "off_session")
        intent = self.account.objects.get("payment_intent", {}).get(session["payment_intent"])
        if intent is None:
            intent = self.payments.intent(
                session["amount_total"],
                session["currency"],
                customer["id"],
                description=data.text("description"),
                metadata=data.metadata(),
                reuse=reuse,
            )
        session["payment_intent"] = intent["id"]
        self.payments.confirm(intent, card)
        if reuse is not None:
            self.customers.attach(card, customer)
        session["payment_status"] = "paid"

    def _setup(self, session: Obj, customer: Obj, card: Obj) -> None:
        data = Params(session["_data"], "setup_intent_data")
        self.customers.attach(card, customer)
        intent = self.payments.setup(customer["id"], data.metadata())
        intent.update(status="succeeded", payment_method=card["id"])
        session["setup_intent"] = intent["id"]
        self.account.emit("setup_intent.succeeded", intent)

    def _subscribe(self, session: Obj, customer: Obj, card: Obj) -> None:
        given = dict(session["_data"])
        if session["payment_method_collection"] == "always":
            self.customers.attach(card, customer)
            given["default_payment_method"] = card["id"]
        items = [Params({"price": line["price"]["id"]}, "items") for line in session["_lines"]]
        sub = self.billing.start(customer, Params(given, "subscription_data"), items)
        session.update(
            subscription=sub["id"],
            invoice=sub["latest_invoice"],
            payment_status="no_payment_required",
        )

    def _portal_page(self, method: str, name: str, action: str, form: dict[str, str]) -> Page:
        session = self.account.objects.get("billing_portal.session", {}).get(name)
        life = self.account.settings.portal_lifetime
        if session is None or self.now >= session["created"] + life:
            return html("This session has expired", status=404)
        customer = self.customers.find(session["customer"])
        problem = ""
        if method == "POST":
            try:
                self._portal_action(customer, action, form)
                return go(f"{self.account.origin}/p/session/{name}")
            except StripeError as refusal:
                problem = f'<p id="error">{escape(str(refusal))}</p>'
        return self._portal_home(session, customer, problem)

    def _portal_action(self, customer: Obj, action: str, form: dict[str, str]) -> None:
        subs = [
            sub
            for sub in self.account.all("subscription")
            if sub["customer"] == customer["id"] and sub["status"] != "canceled"
        ]
        if action == "card":
            self.save_card(customer, form.get("card", GOOD))
        for sub in subs:
            if sub["id"] == form.get("subscription") and action in ("cancel", "renew"):
                before = {n: sub[n] for n in ("cancel_at", "cancel_at_period_end", "canceled_at")}
                self.billing.end_at_period(sub, action == "cancel")
                self.account.emit("customer.subscription.updated", sub, previous=before)

    def save_card(self, customer: Obj, number: str = GOOD) -> Obj:
        """A new card that becomes the default, also of subscriptions that had one of their own."""
        test_card = NUMBERS.get(number.replace(" ", ""))
        if test_card is None:
            raise StripeError("Your card number is incorrect.", status=402, code="incorrect_number")
        card = self.customers.attach(self.customers.new_card(test_card), customer)
        settings = customer["invoice_settings"] | {"default_payment_method": card["id"]}
        self.account.change(customer, "customer.updated", invoice_settings=settings)
        for sub in self.account.all("subscription"):
            if sub["customer"] == customer["id"] and sub["default_payment_method"] is not None:
                name = "customer.subscription.updated"
                self.account.change(sub, name, default_payment_method=card["id"])
        return card

    def _portal_home(self, session: Obj, customer: Obj, problem: str) -> Page:
        base = f"{self.account.origin}/p/session/{session['id']}"
        kind = (session["flow"] or {}).get("type")
        parts = [problem]
        if kind in (None, "payment_method_update"):
            cards = self.customers.cards(customer["id"])
            rows = "".join(f"<li>{c['card']['brand']} {c['card']['last4']}</li>" for c in cards)
            parts += [f"<ul id=cards>{rows}</ul>"]
            parts += [button("save-card", "Save card", f"{base}/card", CARD_FIELD)]
        for sub in self.account.all("subscription"):
            if sub["customer"] != customer["id"] or kind == "payment_method_update":
                continue
            hidden = f'<input type=hidden name=subscription value="{sub["id"]}">'
            parts.append(f"<p>Subscription {sub['status']}</p>")
            if sub["status"] == "canceled":
                continue
            word, text = (
                ("renew", "Renew subscription")
                if sub["cancel_at_period_end"]
                else ("cancel", "Cancel subscription")
            )
            parts.append(button(f"{word}-subscription", text, f"{base}/{word}", hidden))
        if kind is None:
            parts += [
                link(f"invoice-{inv['number']}", f"{inv['number']} {inv['status']}", page)
                for inv in self.account.all("invoice")
                if inv["customer"] == customer["id"] and (page := inv["hosted_invoice_url"])
            ]
        if session["return_url"]:
            parts.append(link("return", "Return", session["return_url"]))
        return html("Billing", *parts, status=402 if problem else 200)

    def _invoice_page(self, method: str, name: str, action: str, form: dict[str, str]) -> Page:
        invoice = self.account.objects.get("invoice", {}).get(name)
        if invoice is None or invoice["hosted_invoice_url"] is None:
            return html("Not found", status=404)
        if action == "pdf":
            return Page(200, PDF, {"Content-Type": "application/pdf"})
        problem = ""
        if method == "POST" and action == "pay" and invoice["status"] == "open":
            test_card = NUMBERS.get(form.get("card", GOOD).replace(" ", ""))
            try:
                if test_card is None:
                    raise StripeError("Your card number is incorrect.")
                self.invoices.pay_with(invoice, self.customers.new_card(test_card))
                return go(invoice["hosted_invoice_url"])
            except StripeError as refusal:
                problem = f'<p id="error">{escape(str(refusal))}</p>'
        rows = "".join(
            f"<li>{escape(line['description'] or '')} {dollars(line['amount'])}</li>"
            for line in invoice["lines"]["data"]
        )
        due = dollars(invoice["amount_remaining"])
        parts = [problem, f"<ul>{rows}</ul><p id=status>{invoice['status']}</p>"]
        if invoice["status"] == "open":
            parts.append(button("pay", f"Pay {due}", f"/i/{name}/pay", CARD_FIELD))
        parts.append(link("pdf", "Download", f"/i/{name}/pdf"))
        return html(f"Invoice {invoice['number']}", *parts, status=402 if problem else 200)

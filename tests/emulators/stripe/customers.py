"""Customers, their cards, and what a bank says when one is charged.

Tax is off: asking for automatic tax is refused in Stripe's words for an account without it.
"""

from dataclasses import dataclass

from tests.emulators.stripe.core import Account, Call, Obj, Params, Part, StripeError, listed, route


@dataclass(frozen=True, slots=True)
class Card:
    """A test card: what happens when it is attached and when it is charged."""

    number: str
    brand: str = "visa"
    attach: str | None = None
    charge: str | None = None


DECLINES = {
    "generic_decline": "Your card was declined.",
    "insufficient_funds": "Your card has insufficient funds.",
    "lost_card": "Your card was declined.",
    "stolen_card": "Your card was declined.",
    "expired_card": "Your card has expired.",
}
HARD = frozenset({"lost_card", "stolen_card"})

CARDS = {
    "visa": Card("4242424242424242"),
    "mastercard": Card("5555555555554444", "mastercard"),
    "chargeCustomerFail": Card("4000000000000341", charge="generic_decline"),
    "chargeDeclined": Card("4000000000000002", attach="generic_decline", charge="generic_decline"),
    "chargeDeclinedInsufficientFunds": Card(
        "4000000000009995", attach="insufficient_funds", charge="insufficient_funds"
    ),
    "chargeDeclinedStolenCard": Card(
        "4000000000009979", attach="stolen_card", charge="stolen_card"
    ),
}
NUMBERS = {card.number: card for card in CARDS.values()}
CUSTOMER = (
    "address balance business_name description email individual_name invoice_prefix"
    " invoice_settings metadata name phone preferred_locales shipping tax tax_exempt"
)


def declined(outcome: str, **extra: object) -> StripeError:
    """The bank says no."""
    code = outcome if outcome == "expired_card" else "card_declined"
    more = {"decline_code": outcome} | extra
    return StripeError(
        DECLINES[outcome], status=402, kind="card_error", code=code, extra=more, kept=True
    )


class Customers(Part):
    """Who pays, and with what."""

    def __init__(self, account: Account) -> None:
        super().__init__(account)
        account.include["customer", "subscriptions"] = self._subscriptions

    def _subscriptions(self, customer: Obj) -> Obj:
        rows = [
            sub
            for sub in self.account.all("subscription")
            if sub["customer"] == customer["id"] and sub["status"] != "canceled"
        ]
        return listed(rows, f"/v1/customers/{customer['id']}/subscriptions")

    @route("POST", "/v1/customers", CUSTOMER + " payment_method")
    def create(self, call: Call) -> Obj:
        params = call.params
        source = params.text("payment_method")
        settings = self._settings(params, {})
        card = self._card(source, params) if source is not None else None
        number = len(self.account.all("customer")) + 1
        customer = self.account.add(
            "customer",
            "cus",
            address=self._address(params),
            balance=params.integer("balance") or 0,
            currency=None,
            default_source=None,
            delinquent=False,
            description=params.text("description"),
            discount=None,
            email=params.text("email", 512),
            invoice_prefix=params.text("invoice_prefix") or f"{0xA1B2C3 + number:08X}",
            invoice_settings=settings,
            metadata=params.metadata(),
            name=params.text("name", 256),
            next_invoice_sequence=1,
            phone=params.text("phone", 20),
            preferred_locales=params.texts("preferred_locales"),
            shipping=None,
            tax_exempt=params.text("tax_exempt") or "none",
            test_clock=None,
        )
        self.account.emit("customer.created", customer)
        if card is not None:
            self.attach(card, customer)
        return customer

    @staticmethod
    def _address(params: Params) -> Obj | None:
        address = params.nested("address")
        if address is None:
            return None
        fields = ("city", "country", "line1", "line2", "postal_code", "state")
        address.only(*fields)
        return {name: address.text(name) for name in fields}

    def _settings(self, params: Params, old: Obj) -> Obj:
        """The invoice settings; a default card must be one of the customer's own."""
        merged: Obj = {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        } | old
        sent = params.nested("invoice_settings")
        if sent is not None:
            sent.only("default_payment_method", "footer")
            merged |= {name: sent.text(name) for name in sent.data}
            default = sent.text("default_payment_method")
            if default is not None and old.get("default_payment_method") != default:
                self.account.get("payment_method", default, sent.name("default_payment_method"))
        return merged

    def find(self, name: str, param: str | None = None) -> Obj:
        """A customer who was not deleted."""
        customer = self.account.get("customer", name, param)
        if customer.get("deleted"):
            raise StripeError(
                f"No such customer: '{name}'", code="resource_missing", param=param or "id"
            )
        return customer

    @route("GET", "/v1/customers", "email", paged=True)
    def index(self, call: Call) -> Obj:
        email = call.params.text("email")
        rows = [row for row in self.account.all("customer") if not row.get("deleted")]
        return self.account.page(call, [r for r in rows if email in (None, r["email"])])

    @route("GET", "/v1/customers/{id}")
    def retrieve(self, call: Call) -> Obj:
        return self.account.get("customer", call.id)

    @route("POST", "/v1/customers/{id}", CUSTOMER)
    def update(self, call: Call) -> Obj:
        customer, params = self.find(call.id), call.params
        settings = self._settings(params, customer["invoice_settings"])
        default = settings["default_payment_method"]
        if default is not None:
            self.own_card(default, customer, params, "invoice_settings[default_payment_method]")
        plain = {"description", "email", "name", "phone", "tax_exempt", "invoice_prefix"}
        changes: Obj = {name: params.text(name) for name in sorted(plain) if name in params}
        if "address" in params:
            changes["address"] = self._address(params)
        if "balance" in params:
            changes["balance"] = params.integer("balance")
        self.account.change(
            customer,
            "customer.updated",
            metadata=params.metadata(customer["metadata"]),
            invoice_settings=settings,
            **changes,
        )
        return customer

    @route("DELETE", "/v1/customers/{id}")
    def delete(self, call: Call) -> Obj:
        customer = self.find(call.id)
        for sub in self._subscriptions(customer)["data"]:
            self.account.change(
                sub,
                "customer.subscription.deleted",
                status="canceled",
                canceled_at=self.now,
                ended_at=self.now,
            )
        for card in self.cards(customer["id"]):
            card["customer"] = None
        self.account.emit("customer.deleted", customer)
        gone = {"id": call.id, "object": "customer", "deleted": True}
        self.account.objects["customer"][call.id] = gone
        return gone

    # Cards

    def cards(self, customer: str) -> list[Obj]:
        """The customer's cards, oldest first."""
        return [pm for pm in self.account.all("payment_method") if pm["customer"] == customer]

    def own_card(self, name: str, customer: Obj, params: Params, param: str) -> Obj:
        """A card that belongs to this customer."""
        card = self.account.get("payment_method", name, params.name(param))
        if card["customer"] != customer["id"]:
            text = f"The customer does not have a payment method with the ID {name}."
            raise StripeError(
                f"{text} The payment method must be attached to the customer.",
                code="resource_missing",
                param=params.name(param),
            )
        return card

    def new_card(self, card: Card, billing: Obj | None = None) -> Obj:
        """A card that belongs to nobody yet."""
        details = {"address": None, "email": None, "name": None, "phone": None, "tax_id": None}
        return self.account.add(
            "payment_method",
            "pm",
            allow_redisplay="unspecified",
            billing_details=details | (billing or {}),
            card={
                "brand": card.brand,
                "checks": {
                    "address_line1_check": None,
                    "address_postal_code_check": None,
                    "cvc_check": "pass",
                },
                "country": "US",
                "display_brand": card.brand,
                "exp_month": 12,
                "exp_year": 2040,
                "fingerprint": f"fp{card.number[-8:]}",
                "funding": "credit",
                "generated_from": None,
                "last4": card.number[-4:],
                "networks": {"available": [card.brand], "preferred": None},
                "three_d_secure_usage": {"supported": True},
                "wallet": None,
            },
            customer=None,
            metadata={},
            type="card",
            _attach=card.attach,
            _charge=card.charge,
        )

    def _card(self, name: str, params: Params) -> Obj:
        """A card by its id, or a new one of Stripe's test cards such as `pm_card_visa`."""
        short = name.removeprefix("pm_card_").removeprefix("visa_")
        if name.startswith("pm_card_") and short in CARDS:
            return self.new_card(CARDS[short])
        return self.account.get("payment_method", name, params.name("payment_method"))

    @route("POST", "/v1/payment_methods", "billing_details card metadata type allow_redisplay")
    def create_card(self, call: Call) -> Obj:
        params = call.params
        params.need("type")
        params.choice("type", "card")
        data = params.nested("card")
        if data is None:
            raise params.absent("card")
        token = (data.text("token") or "").removeprefix("tok_").removeprefix("visa_")
        card = CARDS.get(token) or NUMBERS.get(data.text("number") or "")
        if card is None:
            raise data.bad("number", "Your card number is incorrect.", "incorrect_number")
        billing = params.nested("billing_details") or Params({})
        fields = {
            name: billing.text(name) for name in ("email", "name", "phone") if name in billing
        }
        made = self.new_card(card, fields)
        made["metadata"] = params.metadata()
        return made

    def attach(self, card: Obj, customer: Obj) -> Obj:
        """Save the card; the bank may refuse."""
        if card["_attach"] is not None:
            raise declined(card["_attach"])
        card["customer"] = customer["id"]
        self.account.emit("payment_method.attached", card)
        return card

    @route("POST", "/v1/payment_methods/{id}/attach", "customer")
    def attach_card(self, call: Call) -> Obj:
        customer = self.find(call.params.need("customer"), "customer")
        card = self._card(call.id, Params({}))
        if card["customer"] not in (None, customer["id"]):
            text = "The payment method you provided has already been attached to a customer."
            raise StripeError(text)
        if card.get("_detached"):
            text = "This PaymentMethod was detached from a Customer and may not be used again."
            raise StripeError(text)
        return self.attach(card, customer)

    @route("POST", "/v1/payment_methods/{id}/detach")
    def detach_card(self, call: Call) -> Obj:
        card = self.account.get("payment_method", call.id)
        owner = self.account.objects.get("customer", {}).get(str(card["customer"]))
        if owner is None:
            raise StripeError("The payment method you provided is not attached to a customer.")
        self.account.change(card, None, customer=None, _detached=True)
        if owner["invoice_settings"]["default_payment_method"] == card["id"]:
            owner["invoice_settings"]["default_payment_method"] = None
        for sub in self.account.all("subscription"):
            if sub["default_payment_method"] == card["id"]:
                sub["default_payment_method"] = None
        self.account.emit("payment_method.detached", card, previous={"customer": owner["id"]})
        return card

    @route("GET", "/v1/payment_methods", "customer type", paged=True)
    def list_cards(self, call: Call) -> Obj:
        owner = call.params.text("customer")
        rows = self.cards(owner) if owner is not None else []
        return self.account.page(call, rows)

    @route("GET", "/v1/customers/{id}/payment_methods", "type", paged=True)
    def customer_cards(self, call: Call) -> Obj:
        return self.account.page(call, self.cards(self.find(call.id)["id"]))

    @route("GET", "/v1/customers/{id}/payment_methods/{card}")
    def customer_card(self, call: Call) -> Obj:
        card = self.account.get("payment_method", call.ids[1])
        if card["customer"] != call.id:
            raise StripeError("No such payment method", status=404, code="resource_missing")
        return card

    @route("GET", "/v1/payment_methods/{id}")
    def retrieve_card(self, call: Call) -> Obj:
        return self.account.get("payment_method", call.id)

    def set_outcome(self, customer: str, outcome: str | None) -> None:
        """From now on the bank answers like this for all of the customer's cards."""
        if outcome is not None and outcome not in DECLINES:
            raise ValueError(f"there is no decline called {outcome!r}")
        for card in self.cards(customer):
            card["_charge"] = outcome


def refuse_tax(params: Params) -> None:
    """Automatic tax is not set up in this account."""
    tax = params.nested("automatic_tax")
    if tax is not None and tax.flag("enabled"):
        text = "You must have a valid head office address to enable automatic tax calculation"
        raise params.bad("automatic_tax", f"{text} in test mode.")

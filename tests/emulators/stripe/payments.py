"""Payment and setup intents: the charge itself, on or off session."""

from tests.emulators.stripe.core import Call, Obj, Part, StripeError, route
from tests.emulators.stripe.customers import Customers, declined

INTENT = (
    "amount automatic_payment_methods confirm currency customer description metadata off_session"
    " payment_method payment_method_types receipt_email setup_future_usage return_url"
)
MINIMUM = 50


class Payments(Part):
    """Money that moves."""

    customers: Customers

    def intent(
        self,
        amount: int,
        currency: str,
        customer: str | None,
        *,
        description: str | None = None,
        metadata: Obj | None = None,
        reuse: str | None = None,
    ) -> Obj:
        """A new intent that waits for a card."""
        name = self.account.new_id("pi")
        intent = self.account.add(
            "payment_intent",
            "pi",
            id=name,
            amount=amount,
            amount_capturable=0,
            amount_received=0,
            automatic_payment_methods=None,
            canceled_at=None,
            cancellation_reason=None,
            capture_method="automatic",
            client_secret=f"{name}_secret_emulated",
            confirmation_method="automatic",
            currency=currency,
            customer=customer,
            description=description,
            last_payment_error=None,
            latest_charge=None,
            metadata=metadata or {},
            next_action=None,
            payment_method=None,
            payment_method_types=["card"],
            receipt_email=None,
            setup_future_usage=reuse,
            status="requires_payment_method",
        )
        self.account.emit("payment_intent.created", intent)
        return intent

    def confirm(self, intent: Obj, card: Obj) -> None:
        """Charge the card, or raise what the bank says."""
        if card["_charge"] is not None:
            refusal = declined(card["_charge"])
            intent.update(
                status="requires_payment_method",
                payment_method=None,
                last_payment_error=dict(refusal.error),
            )
            refusal.error["payment_intent"] = self.account.show(intent)
            self.account.emit("payment_intent.payment_failed", intent)
            raise refusal
        intent.update(
            status="succeeded",
            payment_method=card["id"],
            amount_received=intent["amount"],
            last_payment_error=None,
        )
        self.account.emit("payment_intent.succeeded", intent)

    @route("POST", "/v1/payment_intents", INTENT)
    def create(self, call: Call) -> Obj:
        params = call.params
        amount, currency = params.integer("amount"), params.need("currency").lower()
        if amount is None:
            raise params.absent("amount")
        if amount < MINIMUM:
            text = "Amount must be at least $0.50 usd"
            raise params.bad("amount", text, "amount_too_small")
        owner = params.text("customer")
        customer = self.customers.find(owner, "customer") if owner is not None else None
        card = self._card(call, customer)
        if params.flag("confirm") and card is None:
            text = "You cannot confirm this PaymentIntent because it's missing a payment method."
            raise StripeError(text, code="payment_intent_unexpected_state")
        intent = self.intent(
            amount,
            currency,
            owner,
            description=params.text("description"),
            metadata=params.metadata(),
            reuse=params.choice("setup_future_usage", "on_session", "off_session"),
        )
        if card is not None and params.flag("confirm"):
            self.confirm(intent, card)
        elif card is not None:
            intent.update(payment_method=card["id"], status="requires_confirmation")
        return intent

    def _card(self, call: Call, customer: Obj | None) -> Obj | None:
        name = call.params.text("payment_method")
        if name is None:
            return None
        card = self.account.get("payment_method", name, "payment_method")
        if card["customer"] is not None and card["customer"] != (customer or {}).get("id"):
            text = "The PaymentMethod belongs to a Customer; please include the Customer."
            raise StripeError(text, param="payment_method")
        return card

    @route("GET", "/v1/payment_intents", "customer", paged=True)
    def index(self, call: Call) -> Obj:
        owner = call.params.text("customer")
        rows = [r for r in self.account.all("payment_intent") if owner in (None, r["customer"])]
        return self.account.page(call, rows)

    @route("GET", "/v1/payment_intents/{id}")
    def retrieve(self, call: Call) -> Obj:
        return self.account.get("payment_intent", call.id)

    @route("POST", "/v1/payment_intents/{id}/confirm", "payment_method off_session return_url")
    def confirm_intent(self, call: Call) -> Obj:
        intent = self.account.get("payment_intent", call.id)
        owner = {"id": intent["customer"]}
        card = self._card(call, owner)
        if card is None and intent["payment_method"] is not None:
            card = self.account.get("payment_method", intent["payment_method"])
        if card is None or not intent["status"].startswith("requires_"):
            text = f"This PaymentIntent's status is {intent['status']} and cannot be confirmed."
            raise StripeError(text, code="payment_intent_unexpected_state")
        self.confirm(intent, card)
        return intent

    @route("POST", "/v1/payment_intents/{id}/cancel", "cancellation_reason")
    def cancel(self, call: Call) -> Obj:
        intent = self.account.get("payment_intent", call.id)
        if not intent["status"].startswith("requires_"):
            text = f"You cannot cancel this PaymentIntent because it is {intent['status']}."
            raise StripeError(text, code="payment_intent_unexpected_state")
        intent.update(
            status="canceled",
            canceled_at=self.now,
            cancellation_reason=call.params.text("cancellation_reason"),
        )
        self.account.emit("payment_intent.canceled", intent)
        return intent

    def setup(self, customer: str | None, metadata: Obj) -> Obj:
        """A new setup intent, which saves a card without a charge."""
        name = self.account.new_id("seti")
        return self.account.add(
            "setup_intent",
            "seti",
            id=name,
            client_secret=f"{name}_secret_emulated",
            customer=customer,
            last_setup_error=None,
            metadata=metadata,
            payment_method=None,
            payment_method_types=["card"],
            status="requires_payment_method",
            usage="off_session",
        )

    @route("GET", "/v1/balance")
    def balance(self, call: Call) -> Obj:
        """What a client asks for to see whether its key works, and in which mode."""
        nothing = {"amount": 0, "currency": "usd", "source_types": {"card": 0}}
        return {
            "object": "balance",
            "available": [nothing],
            "livemode": self.account.livemode,
            "pending": [nothing],
        }

    @route("GET", "/v1/setup_intents/{id}")
    def setup_intent(self, call: Call) -> Obj:
        return self.account.get("setup_intent", call.id)

"""Subscriptions with metered items in flexible billing mode, and what happens as time goes by.

Not settled facts take the cautious reading: cancelling at once bills what was used only when asked
to (`invoice_now`), and a subscription that is `unpaid` is active again when its latest invoice is
paid. Licensed prices, trials, send_invoice and prorations are refused, not approximated.
"""

import calendar
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from tests.emulators.stripe.catalog import Catalog
from tests.emulators.stripe.core import (
    Call,
    Obj,
    Params,
    Part,
    StripeError,
    decimal_text,
    listed,
    route,
)
from tests.emulators.stripe.customers import Customers, refuse_tax
from tests.emulators.stripe.invoices import Invoices, Metered

MAX_ITEMS = 20
COMMON = (
    "automatic_tax billing_cycle_anchor cancel_at cancel_at_period_end collection_method"
    " default_payment_method description items metadata off_session payment_behavior"
    " payment_settings proration_behavior"
)
FINAL = ("canceled", "incomplete_expired")


class Cycle(NamedTuple):
    """How long a period is."""

    interval: str
    each: int

    def boundary(self, anchor: int, number: int) -> int:
        """The `number`-th boundary counted from the anchor; months keep its day."""
        start = datetime.fromtimestamp(anchor, UTC)
        steps = number * self.each
        if self.interval in ("day", "week"):
            days = steps * (7 if self.interval == "week" else 1)
            return int((start + timedelta(days=days)).timestamp())
        months = start.year * 12 + start.month - 1 + steps * (12 if self.interval == "year" else 1)
        year, month = divmod(months, 12)
        day = min(start.day, calendar.monthrange(year, month + 1)[1])
        return int(start.replace(year=year, month=month + 1, day=day).timestamp())

    def following(self, anchor: int, after: int) -> int:
        """The first boundary later than a moment."""
        number = 0
        while (found := self.boundary(anchor, number)) <= after:
            number += 1
        return found


class Billing(Part):
    """The subscriptions of the account."""

    catalog: Catalog
    customers: Customers
    invoices: Invoices

    @route(
        "POST",
        "/v1/subscriptions",
        COMMON + " billing_cycle_anchor_config billing_mode currency customer",
    )
    def create(self, call: Call) -> Obj:
        customer = self.customers.find(call.params.need("customer"), "customer")
        return self.start(customer, call.params, call.params.many("items"))

    def start(self, customer: Obj, params: Params, items: list[Params]) -> Obj:
        """A new subscription with its first, empty invoice."""
        self._refuse(params)
        if not items:
            raise params.absent("items")
        self._room(params, len(items))
        prices = [self._price(item, []) for item in items]
        if len({price["id"] for price in prices}) < len(prices):
            raise params.bad("items", "Cannot add multiple subscription items with the same plan.")
        cycles = {self._cycle_of(price) for price in prices}
        if len(cycles) > 1 or len({price["currency"] for price in prices}) > 1:
            text = "The prices of a subscription must share one currency and one interval."
            raise params.bad("items", text)
        cycle = cycles.pop()
        card = params.text("default_payment_method")
        if card is not None:
            self.customers.own_card(card, customer, params, "default_payment_method")
        anchor = self._anchor(params, cycle)
        end = cycle.following(anchor, self.now)
        empty = (
            "application application_fee_percent billing_cycle_anchor_config billing_thresholds"
            " cancel_at canceled_at days_until_due default_source ended_at latest_invoice"
            " next_pending_invoice_item_invoice on_behalf_of pause_collection"
            " pending_invoice_item_interval pending_setup_intent pending_update schedule"
            " test_clock transfer_data trial_end trial_start trial_settings"
        )
        sub = self.account.add(
            "subscription",
            "sub",
            **dict.fromkeys(empty.split()),
            automatic_tax={"enabled": False, "disabled_reason": None, "liability": None},
            billing_cycle_anchor=anchor,
            billing_mode={"type": "flexible", "flexible": {"proration_discounts": "included"}},
            billing_schedules=[],
            cancel_at_period_end=False,
            cancellation_details={"comment": None, "feedback": None, "reason": None},
            collection_method="charge_automatically",
            currency=prices[0]["currency"],
            customer=customer["id"],
            default_payment_method=card,
            default_tax_rates=[],
            description=params.text("description", 500),
            discounts=[],
            invoice_settings={"account_tax_ids": None, "issuer": {"type": "self"}},
            metadata=params.metadata(),
            payment_settings={
                "payment_method_options": None,
                "payment_method_types": None,
                "save_default_payment_method": "off",
            },
            start_date=self.now,
            status="active",
            _cycle=cycle,
            _period=(self.now, end),
        )
        sub["items"] = listed([], f"/v1/subscription_items?subscription={sub['id']}")
        for price, item in zip(prices, items, strict=True):
            self._add(sub, price, item.metadata(), (self.now, end))
        self._ending(sub, params)
        customer["currency"] = sub["currency"]
        self.account.emit("customer.subscription.created", sub)
        first = self.invoices.draft(
            customer,
            sub,
            items=False,
            after=None,
            reason="subscription_create",
            period=(self.now, self.now),
            metered=tuple(
                replace(part, start=self.now, end=self.now)
                for part in self.invoices.open_parts(sub)
            ),
        )
        self.invoices.finalize(first)
        self._plan(sub, end)
        return sub

    @staticmethod
    def _cycle_of(price: Obj) -> Cycle:
        return Cycle(price["recurring"]["interval"], price["recurring"]["interval_count"])

    def _refuse(self, params: Params) -> None:
        """What a reader of the answer could take for played."""
        refuse_tax(params)
        mode = params.nested("billing_mode")
        if mode is not None and mode.text("type") != "flexible":
            raise mode.bad("type", "Only the flexible billing mode is played.")
        if params.choice("collection_method", "charge_automatically", "send_invoice") not in (
            None,
            "charge_automatically",
        ):
            raise params.bad("collection_method", "Sending invoices is not played.")

    def _room(self, params: Params, count: int) -> None:
        if count > MAX_ITEMS:
            text = f"Subscriptions can have up to {MAX_ITEMS} subscription items."
            raise params.bad("items", text)

    def _price(self, item: Params, present: list[Obj]) -> Obj:
        """The metered price of a new item."""
        price = self.catalog.live_price(item.need("price"), item)
        recurring = price["recurring"]
        if recurring is None:
            text = "The price specified is set to `type=one_time` but this field only accepts"
            raise item.bad("price", f"{text} prices with `type=recurring`.")
        if recurring["usage_type"] != "metered":
            raise item.bad("price", "Licensed prices are not played.")
        if "quantity" in item:
            raise item.bad("quantity", "You cannot set the quantity for metered plans.")
        if price["id"] in {row["price"]["id"] for row in present}:
            text = "Cannot add multiple subscription items with the same plan: "
            raise item.bad("price", text + price["id"])
        return price

    def _anchor(self, params: Params, cycle: Cycle) -> int:
        config, anchor = (
            params.nested("billing_cycle_anchor_config"),
            params.integer("billing_cycle_anchor"),
        )
        if config is not None:
            anchor = self._configured(config)
        if anchor is None:
            return self.now
        if anchor <= self.now:
            text = "Timestamp must be an integer Unix timestamp in the future."
            raise params.bad("billing_cycle_anchor", text)
        if anchor > cycle.boundary(self.now, 1):
            text = "billing_cycle_anchor cannot be later than next natural billing date"
            raise params.bad("billing_cycle_anchor", text)
        return anchor

    def _configured(self, config: Params) -> int:
        config.only("day_of_month", "hour", "minute", "second")
        day = config.integer("day_of_month")
        if day is None or not 1 <= day <= 31:
            raise config.bad("day_of_month", "day_of_month must be between 1 and 31.")
        moment = datetime.fromtimestamp(self.now, UTC)
        moment = moment.replace(
            hour=config.integer("hour") or 0 if "hour" in config else moment.hour,
            minute=config.integer("minute") or 0 if "minute" in config else moment.minute,
            second=config.integer("second") or 0 if "second" in config else moment.second,
        )
        first = int(moment.replace(day=1).timestamp())
        for number in range(3):
            month = datetime.fromtimestamp(Cycle("month", 1).boundary(first, number), UTC)
            last = calendar.monthrange(month.year, month.month)[1]
            found = int(month.replace(day=min(day, last)).timestamp())
            if found > self.now:
                return found
        raise AssertionError("no anchor within two months")

    def _add(self, sub: Obj, price: Obj, metadata: Obj, period: tuple[int, int]) -> Obj:
        item = self.account.add(
            "subscription_item",
            "si",
            billing_thresholds=None,
            current_period_end=period[1],
            current_period_start=period[0],
            discounts=[],
            metadata=metadata,
            price=price,
            subscription=sub["id"],
            tax_rates=[],
            _since=self.now,
        )
        sub["items"]["data"].append(item)
        return item

    # As time goes by

    def _plan(self, sub: Obj, end: int) -> None:
        self.account.clock.at(end, lambda: self._period_over(sub, end))

    def _period_over(self, sub: Obj, end: int) -> None:
        items, ended = sub["items"]["data"], sub["_period"]
        if sub["status"] in FINAL or ended[1] != end:
            return
        parts = self.invoices.open_parts(sub)
        over = sub["cancel_at_period_end"]
        self._invoice(sub, ended, parts, reason="subscription_cycle")
        if over:
            self._end(sub, "cancellation_requested")
            return
        following = sub["_cycle"].following(sub["billing_cycle_anchor"], end)
        before = self.account.show(sub["items"])
        for item in items:
            item.update(current_period_start=end, current_period_end=following)
        sub["_period"] = (end, following)
        self.account.emit("customer.subscription.updated", sub, previous={"items": before})
        self._plan(sub, following)

    def _invoice(
        self, sub: Obj, period: tuple[int, int], parts: tuple[Metered, ...], *, reason: str
    ) -> Obj:
        held = sub["status"] == "unpaid"
        return self.invoices.draft(
            self.account.get("customer", sub["customer"]),
            sub,
            after=None if held else self.account.settings.grace,
            auto=not held,
            reason=reason,
            period=period,
            metered=parts,
        )

    def _end(self, sub: Obj, reason: str) -> None:
        sub["cancellation_details"]["reason"] = reason
        sub.update(status="canceled", canceled_at=sub["canceled_at"] or self.now, ended_at=self.now)
        self.account.emit("customer.subscription.deleted", sub)

    def payment_failed(self, invoice: Obj, last: bool) -> None:
        """An attempt for one of its invoices failed; `last` was the last of the plan."""
        sub = self.invoices.subscription(invoice)
        if sub is None or sub["status"] in FINAL:
            return
        action = self.account.settings.final_action
        if last and action == "cancel":
            self._end(sub, "payment_failed")
            return
        status = "unpaid" if last and action == "unpaid" else "past_due"
        if sub["status"] == "active" or (last and status == "unpaid"):
            self.account.change(sub, "customer.subscription.updated", status=status)

    def payment_made(self, invoice: Obj) -> None:
        """An invoice is paid: with the latest one, the subscription is in order again."""
        sub = self.invoices.subscription(invoice)
        if sub is None or sub["status"] not in ("past_due", "unpaid"):
            return
        if sub["latest_invoice"] == invoice["id"]:
            self.account.change(sub, "customer.subscription.updated", status="active")

    # The API

    @route("GET", "/v1/subscriptions", "collection_method customer price status", paged=True)
    def index(self, call: Call) -> Obj:
        params = call.params
        rows = self.account.all("subscription")
        status = params.text("status")
        if status is None:
            rows = [row for row in rows if row["status"] != "canceled"]
        elif status == "ended":
            rows = [row for row in rows if row["status"] in FINAL]
        elif status != "all":
            rows = [row for row in rows if row["status"] == status]
        if (owner := params.text("customer")) is not None:
            rows = [row for row in rows if row["customer"] == owner]
        if (price := params.text("price")) is not None:
            rows = [r for r in rows if price in {i["price"]["id"] for i in r["items"]["data"]}]
        return self.account.page(call, rows)

    @route("GET", "/v1/subscriptions/{id}")
    def retrieve(self, call: Call) -> Obj:
        return self.account.get("subscription", call.id)

    def live(self, name: str, param: str | None = None) -> Obj:
        """A subscription that can still be changed."""
        sub = self.account.get("subscription", name, param)
        if sub["status"] in FINAL:
            text = "A canceled subscription can only update its cancellation_details and metadata."
            raise StripeError(text)
        return sub

    @route("POST", "/v1/subscriptions/{id}", COMMON + " proration_date")
    def update(self, call: Call) -> Obj:
        sub, params = self.live(call.id), call.params
        self._refuse(params)
        if params.text("billing_cycle_anchor") not in (None, "unchanged"):
            raise params.bad("billing_cycle_anchor", "Moving the anchor is not played.")
        card = params.text("default_payment_method")
        if card is not None:
            owner = self.account.get("customer", sub["customer"])
            self.customers.own_card(card, owner, params, "default_payment_method")
        before = self.account.show(sub)
        self._change_items(sub, params)
        if "default_payment_method" in params:
            sub["default_payment_method"] = card
        if "description" in params:
            sub["description"] = params.text("description", 500)
        sub["metadata"] = params.metadata(sub["metadata"])
        self._ending(sub, params)
        after = self.account.show(sub)
        changed = {name: value for name, value in before.items() if after[name] != value}
        if changed:
            self.account.emit("customer.subscription.updated", sub, previous=changed)
        return sub

    def _change_items(self, sub: Obj, params: Params) -> None:
        """All of the sent items or none."""
        entries, present = params.many("items"), sub["items"]["data"]
        by_id = {item["id"]: item for item in present}
        added: list[tuple[Params, Obj]] = []
        dropped: list[tuple[Params, Obj]] = []
        swapped: list[tuple[Params, Obj, Obj]] = []
        for entry in entries:
            name = entry.text("id")
            if name is None:
                price = self._price(entry, [*present, *({"price": p} for _, p in added)])
                self._fits(sub, price, entry)
                added.append((entry, price))
                continue
            if name not in by_id:
                raise entry.bad("id", f"No such subscription item: '{name}'", "resource_missing")
            if entry.flag("deleted"):
                dropped.append((entry, by_id[name]))
            elif entry.text("price") not in (None, by_id[name]["price"]["id"]):
                price = self._price(entry, present)
                self._fits(sub, price, entry)
                swapped.append((entry, by_id[name], price))
        self._room(params, len(present) + len(added) - len(dropped))
        if len(present) + len(added) == len(dropped):
            raise params.bad("items", "A subscription must have at least one active plan.")
        behaviour = self._behaviour(params)
        for entry, item in dropped:
            self._drop(sub, item, bill=behaviour != "none" and not entry.flag("clear_usage"))
        for _, item, price in swapped:
            self._swap(sub, item, price, bill=behaviour != "none")
        for entry, price in added:
            self._add(sub, price, entry.metadata(), (self.now, sub["_period"][1]))

    @staticmethod
    def _behaviour(params: Params) -> str | None:
        options = ("create_prorations", "always_invoice", "none")
        return params.choice("proration_behavior", *options, default="create_prorations")

    def _fits(self, sub: Obj, price: Obj, item: Params) -> None:
        if self._cycle_of(price) != sub["_cycle"] or price["currency"] != sub["currency"]:
            text = "The prices of a subscription must share one currency and one interval."
            raise item.bad("price", text)

    def _drop(self, sub: Obj, item: Obj, *, bill: bool) -> None:
        self._bill_so_far(sub, item, bill=bill)
        sub["items"]["data"].remove(item)
        del self.account.objects["subscription_item"][item["id"]]

    def _swap(self, sub: Obj, item: Obj, price: Obj, *, bill: bool) -> None:
        self._bill_so_far(sub, item, bill=bill)
        item.update(price=price, _since=self.now)

    def _bill_so_far(self, sub: Obj, item: Obj, *, bill: bool) -> None:
        """Flexible mode: what was used becomes an invoice item, unless prorations are off."""
        self.invoices.cut(item["id"])
        start = max(item["current_period_start"], item["_since"])
        part = Metered(item["id"], item["price"], start, self.now + 1)
        quantity = self.invoices.usage_of(sub["customer"], part)
        if not bill or not quantity:
            return
        customer = self.account.get("customer", sub["customer"])
        product = self.account.get("product", item["price"]["product"])
        amount = self.invoices.rounded(quantity * Decimal(item["price"]["unit_amount_decimal"]))
        made = self.invoices.new_item(
            customer,
            Params({"amount": str(amount), "currency": sub["currency"]}),
            sub=sub["id"],
        )
        made.update(
            description=f"{decimal_text(quantity)} × {product['name']}",
            period={"start": start, "end": self.now},
            pricing={
                "type": "price_details",
                "price_details": {"price": item["price"]["id"], "product": product["id"]},
                "unit_amount_decimal": item["price"]["unit_amount_decimal"],
            },
            quantity=int(quantity),
            quantity_decimal=decimal_text(quantity),
        )

    def _ending(self, sub: Obj, params: Params) -> None:
        """Set or take back the end of the subscription."""
        end = sub["_period"][1]
        if "cancel_at" in params:
            moment = params.text("cancel_at")
            if moment in ("min_period_end", "max_period_end"):
                moment = str(end)
            if moment is not None and int(moment) != end:
                text = "Only the end of the current period is played."
                raise params.bad("cancel_at", text)
            self.end_at_period(sub, moment is not None)
        if "cancel_at_period_end" in params:
            self.end_at_period(sub, params.flag("cancel_at_period_end"))

    def end_at_period(self, sub: Obj, wanted: bool) -> None:
        """Let the subscription end with its period, or continue."""
        if wanted == sub["cancel_at_period_end"]:
            return
        sub.update(
            cancel_at_period_end=wanted,
            cancel_at=sub["_period"][1] if wanted else None,
            canceled_at=self.now if wanted else None,
        )
        sub["cancellation_details"]["reason"] = "cancellation_requested" if wanted else None

    @route("DELETE", "/v1/subscriptions/{id}", "cancellation_details invoice_now prorate")
    def cancel(self, call: Call) -> Obj:
        sub = self.live(call.id)
        if call.params.flag("invoice_now"):
            stop = self.account.clock.time
            parts = self.invoices.open_parts(sub)
            frozen = tuple(replace(part, end=self.now + 1, before=stop) for part in parts)
            period = (sub["_period"][0], self.now)
            self._invoice(sub, period, frozen, reason="subscription_update")
        self._end(sub, "cancellation_requested")
        return sub

    @route("GET", "/v1/subscription_items", "subscription", paged=True)
    def items(self, call: Call) -> Obj:
        sub = self.account.get("subscription", call.params.need("subscription"), "subscription")
        return self.account.page(call, sub["items"]["data"][::-1])

    @route(
        "POST",
        "/v1/subscription_items",
        "metadata payment_behavior price proration_behavior proration_date quantity subscription",
    )
    def create_item(self, call: Call) -> Obj:
        params = call.params
        sub = self.live(params.need("subscription"), "subscription")
        present = sub["items"]["data"]
        price = self._price(params, present)
        self._fits(sub, price, params)
        self._room(params, len(present) + 1)
        before = self.account.show(sub["items"])
        item = self._add(sub, price, params.metadata(), (self.now, sub["_period"][1]))
        self.account.emit("customer.subscription.updated", sub, previous={"items": before})
        return item

    @route("GET", "/v1/subscription_items/{id}")
    def item(self, call: Call) -> Obj:
        return self.account.get("subscription_item", call.id)

    @route(
        "POST",
        "/v1/subscription_items/{id}",
        "metadata payment_behavior price proration_behavior proration_date quantity",
    )
    def update_item(self, call: Call) -> Obj:
        item, params = self.account.get("subscription_item", call.id), call.params
        sub = self.live(item["subscription"])
        before = self.account.show(sub["items"])
        item["metadata"] = params.metadata(item["metadata"])
        if params.text("price") not in (None, item["price"]["id"]):
            price = self._price(params, sub["items"]["data"])
            self._fits(sub, price, params)
            self._swap(sub, item, price, bill=self._behaviour(params) != "none")
        if self.account.show(sub["items"]) != before:
            self.account.emit("customer.subscription.updated", sub, previous={"items": before})
        return item

    @route(
        "DELETE",
        "/v1/subscription_items/{id}",
        "clear_usage payment_behavior proration_behavior proration_date",
    )
    def delete_item(self, call: Call) -> Obj:
        item, params = self.account.get("subscription_item", call.id), call.params
        sub = self.live(item["subscription"])
        if len(sub["items"]["data"]) == 1:
            raise StripeError("A subscription must have at least one active plan.")
        before = self.account.show(sub["items"])
        bill = self._behaviour(params) != "none" and not params.flag("clear_usage")
        self._drop(sub, item, bill=bill)
        self.account.emit("customer.subscription.updated", sub, previous={"items": before})
        return {"id": call.id, "object": "subscription_item", "deleted": True}

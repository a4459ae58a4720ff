"""Products and prices. A price never changes in amount, currency or interval."""

from decimal import Decimal

from tests.emulators.stripe.core import (
    Call,
    Obj,
    Params,
    Part,
    StripeError,
    decimal_text,
    missing,
    route,
)

PRODUCT = (
    "active description images marketing_features metadata name shippable statement_descriptor"
    " tax_code unit_label url"
)
CHANGEABLE = "active lookup_key metadata nickname tax_behavior transfer_lookup_key"


class Catalog(Part):
    """What the account sells."""

    @route("POST", "/v1/products", PRODUCT + " id")
    def create_product(self, call: Call) -> Obj:
        return self.new_product(call.params)

    def new_product(self, params: Params) -> Obj:
        name = params.need("name")
        taken = params.text("id")
        if taken in self.account.objects.get("product", {}):
            raise params.bad("id", "Product already exists.", "resource_already_exists")
        return self.account.add(
            "product",
            "prod",
            id=taken,
            active=params.flag("active", default=True),
            default_price=None,
            description=params.text("description", 40_000),
            images=params.texts("images"),
            marketing_features=[],
            metadata=params.metadata(),
            name=name,
            package_dimensions=None,
            shippable=None,
            statement_descriptor=params.text("statement_descriptor", 22),
            tax_code=params.text("tax_code"),
            unit_label=params.text("unit_label", 12),
            updated=self.now,
            url=params.text("url"),
        )

    @route("GET", "/v1/products", "active ids", paged=True)
    def products(self, call: Call) -> Obj:
        rows = self._active(call, self.account.all("product"))
        wanted = call.params.texts("ids")
        return self.account.page(call, [r for r in rows if not wanted or r["id"] in wanted])

    @staticmethod
    def _active(call: Call, rows: list[Obj]) -> list[Obj]:
        if call.params.text("active") is None:
            return rows
        return [row for row in rows if row["active"] == call.params.flag("active")]

    @route("GET", "/v1/products/{id}")
    def product(self, call: Call) -> Obj:
        return self.account.get("product", call.id)

    @route("POST", "/v1/products/{id}", PRODUCT)
    def update_product(self, call: Call) -> Obj:
        product, params = self.account.get("product", call.id), call.params
        changes: Obj = {name: params.text(name) for name in PRODUCT.split() if name in params}
        changes.pop("images", None), changes.pop("marketing_features", None)
        if "active" in params:
            changes["active"] = params.flag("active")
        if "name" in params:
            changes["name"] = params.need("name")
        changes |= {"metadata": params.metadata(product["metadata"]), "updated": self.now}
        product.update(changes)
        return product

    @route("DELETE", "/v1/products/{id}")
    def delete_product(self, call: Call) -> Obj:
        self.account.get("product", call.id)
        if any(price["product"] == call.id for price in self.account.all("price")):
            text = "This product cannot be deleted because it has one or more user-created prices."
            raise StripeError(text)
        del self.account.objects["product"][call.id]
        return {"id": call.id, "object": "product", "deleted": True}

    @route(
        "POST",
        "/v1/prices",
        CHANGEABLE + " billing_scheme currency product product_data recurring unit_amount"
        " unit_amount_decimal",
    )
    def create_price(self, call: Call) -> Obj:
        params = call.params
        currency = params.need("currency")
        if len(currency) != 3 or not currency.isalpha():
            raise params.bad("currency", f"Invalid currency: {currency}")
        params.choice("billing_scheme", "per_unit")
        recurring = self._recurring(params)
        amount = self.unit_amount(params)
        data = params.nested("product_data")
        if (data is None) == (params.text("product") is None):
            raise params.bad("product", "You must specify either `product` or `product_data`.")
        key = self._lookup_key(params)
        product = (
            self.new_product(data)
            if data is not None
            else self.account.get("product", params.need("product"), "product")
        )
        return self.account.add(
            "price",
            "price",
            active=params.flag("active", default=True),
            billing_scheme="per_unit",
            currency=currency.lower(),
            custom_unit_amount=None,
            lookup_key=key,
            metadata=params.metadata(),
            nickname=params.text("nickname"),
            product=product["id"],
            recurring=recurring,
            tax_behavior=params.text("tax_behavior") or "unspecified",
            tiers_mode=None,
            transform_quantity=None,
            type="recurring" if recurring else "one_time",
            **amount,
        )

    @staticmethod
    def unit_amount(params: Params) -> Obj:
        """The two fields of a unit amount, from the one that was sent."""
        if ("unit_amount" in params) == ("unit_amount_decimal" in params):
            text = "You must specify exactly one of `unit_amount` and `unit_amount_decimal`."
            raise params.bad("unit_amount", text, "parameter_missing")
        whole, exact = params.integer("unit_amount"), params.decimal("unit_amount_decimal")
        number = Decimal(whole) if whole is not None else exact
        if number is None or number < 0:
            raise params.bad("unit_amount", "Invalid non-negative integer", "invalid_amount")
        return {
            "unit_amount": int(number) if number == int(number) else None,
            "unit_amount_decimal": decimal_text(number),
        }

    def _recurring(self, params: Params) -> Obj | None:
        recurring = params.nested("recurring")
        if recurring is None:
            return None
        recurring.need("interval")
        usage = recurring.choice("usage_type", "licensed", "metered", default="licensed")
        meter = recurring.text("meter")
        if (usage == "metered") != (meter is not None):
            text = "A price with usage_type 'metered' must be backed by a meter, and no other may."
            raise recurring.bad("meter", text)
        if meter is not None:
            found = self.account.get("billing.meter", meter, "recurring[meter]")
            if found["status"] != "active":
                raise recurring.bad("meter", f"The meter {meter} is not active.")
        return {
            "interval": recurring.choice("interval", "day", "week", "month", "year"),
            "interval_count": recurring.integer("interval_count") or 1,
            "meter": meter,
            "usage_type": usage,
        }

    def _lookup_key(self, params: Params, mine: str | None = None) -> str | None:
        """The key, free to be taken; with `transfer_lookup_key` it leaves the price that had it."""
        key = params.text("lookup_key", 200)
        transfer = params.flag("transfer_lookup_key")
        for price in self.account.all("price"):
            if key is None or price["lookup_key"] != key or price["id"] == mine:
                continue
            if not transfer:
                text = f"A price (`{price['id']}`) already uses that lookup key."
                raise params.bad("lookup_key", text, "resource_already_exists")
            price["lookup_key"] = None
        return key

    @route("GET", "/v1/prices", "active currency lookup_keys product recurring type", paged=True)
    def prices(self, call: Call) -> Obj:
        params = call.params
        rows = self._active(call, self.account.all("price"))
        if "lookup_keys" in params:
            wanted = params.texts("lookup_keys")
            if len(wanted) > 10:
                raise params.bad("lookup_keys", "You may specify up to 10 lookup keys.")
            rows = [row for row in rows if row["lookup_key"] in wanted]
        for name in ("currency", "product", "type"):
            if (value := params.text(name)) is not None:
                rows = [row for row in rows if row[name] == value]
        for name, value in (params.data.get("recurring") or {}).items():
            rows = [row for row in rows if row["recurring"] and row["recurring"][name] == value]
        return self.account.page(call, rows)

    @route("GET", "/v1/prices/{id}")
    def price(self, call: Call) -> Obj:
        return self.account.get("price", call.id)

    @route("POST", "/v1/prices/{id}", CHANGEABLE)
    def update_price(self, call: Call) -> Obj:
        price, params = self.account.get("price", call.id), call.params
        changes: Obj = {"metadata": params.metadata(price["metadata"])}
        if "active" in params:
            changes["active"] = params.flag("active")
        if "nickname" in params:
            changes["nickname"] = params.text("nickname")
        behaviour = params.text("tax_behavior")
        if behaviour is not None and behaviour != price["tax_behavior"]:
            if price["tax_behavior"] != "unspecified":
                raise params.bad("tax_behavior", "The tax behavior can be set once.")
            changes["tax_behavior"] = behaviour
        if "lookup_key" in params:
            changes["lookup_key"] = self._lookup_key(params, price["id"])
        price.update(changes)
        return price

    def live_price(self, name: str, params: Params) -> Obj:
        """A price that may be used in something new."""
        price = self.account.objects.get("price", {}).get(name)
        if price is None:
            raise missing("price", name, param=params.name("price"), status=400)
        if not price["active"]:
            text = f"The price specified is inactive. This field only accepts active prices: {name}"
            raise params.bad("price", text)
        return price

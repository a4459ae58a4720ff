from django.apps import AppConfig


class BillingConfig(AppConfig):
    """Prices, holds and the ledger."""

    name = "billing"

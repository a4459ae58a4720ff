from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class BillingConfig(AppConfig):
    """Prices, holds and the ledger."""

    name = "billing"
    verbose_name = _("Billing")

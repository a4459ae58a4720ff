"""The billing pages. The page of an invoice's line shows pictures and is in `images.pages`."""

from django.urls import path

from billing.pages import alerts, budgets, invoices, movements, overview

INVOICE = "dashboard/billing/invoices/<slug:invoice_id>"

urlpatterns = [
    path("dashboard/billing", overview.index, name="billing"),
    path("dashboard/billing/card", overview.give_card, name="billing_card"),
    path("dashboard/billing/portal", overview.portal, name="billing_portal"),
    path("dashboard/billing/recharge", overview.recharge, name="billing_recharge"),
    path("dashboard/billing/automatic", overview.automatic, name="billing_automatic"),
    path("dashboard/billing/return", overview.back, name="billing_return"),
    path("dashboard/billing/movements", movements.index, name="billing_movements"),
    path("dashboard/billing/movements.csv", movements.export, name="billing_movements_csv"),
    path("dashboard/billing/invoices", invoices.index, name="billing_invoices"),
    path(INVOICE, invoices.one, name="billing_invoice"),
    path(f"{INVOICE}/charges.csv", invoices.export, name="billing_invoice_csv"),
    path(f"{INVOICE}/pdf", invoices.pdf, name="billing_invoice_pdf"),
    path(f"{INVOICE}/stripe", invoices.stripe_page, name="billing_invoice_stripe"),
    path("dashboard/billing/budgets", budgets.index, name="billing_budgets"),
    path("dashboard/billing/budgets/<int:budget_id>", budgets.change, name="billing_budget"),
    path(
        "dashboard/billing/budgets/<int:budget_id>/remove",
        budgets.remove,
        name="billing_budget_remove",
    ),
    path("dashboard/billing/alerts", alerts.index, name="billing_alerts"),
    path("dashboard/billing/alerts/warning", alerts.warning, name="billing_alerts_warning"),
    path("dashboard/billing/alerts/endpoint", alerts.endpoint, name="billing_alerts_endpoint"),
    path("dashboard/billing/alerts/test", alerts.test, name="billing_alerts_test"),
    path(
        "dashboard/billing/alerts/endpoint/remove",
        alerts.endpoint_remove,
        name="billing_alerts_endpoint_remove",
    ),
]

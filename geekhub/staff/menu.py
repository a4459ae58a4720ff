"""How the staff site looks, and its menu; the settings' UNFOLD."""

from typing import TYPE_CHECKING, Any

from django.templatetags.static import static
from django.urls import reverse_lazy
from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    from django_stubs_ext import StrPromise


def _staff_page(title: "StrPromise", icon: str, name: str) -> dict[str, Any]:
    return {"title": title, "icon": icon, "link": reverse_lazy(f"admin:{name}")}


UNFOLD = {
    "SITE_TITLE": "Geek Hub",
    "SITE_HEADER": "Geek Hub",
    "SITE_SUBHEADER": _("Staff"),
    "SITE_SYMBOL": "shield_person",
    "SITE_URL": reverse_lazy("dashboard"),
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("icon.svg")}
    ],
    "STYLES": [lambda request: static("staff.css")],
    "SCRIPTS": [lambda request: static("drafts.js")],
    "SHOW_HISTORY": False,
    "SHOW_VIEW_ON_SITE": False,
    "COLORS": {
        "primary": {
            "50": "#eef0ff",
            "100": "#e0e4ff",
            "200": "#c9cfff",
            "300": "#a5b0ff",
            "400": "#8189fb",
            "500": "#6366f1",
            "600": "#4f46e5",
            "700": "#4338ca",
            "800": "#3730a3",
            "900": "#312e81",
            "950": "#1e1b4b",
        }
    },
    "SIDEBAR": {
        "navigation": [
            {
                "title": None,
                "items": [
                    _staff_page(_("Platform"), "monitoring", "index"),
                    _staff_page(_("Reconciliation"), "balance", "billing_difference_changelist"),
                ],
            },
            {
                "title": _("Customers"),
                "separator": True,
                "items": [
                    _staff_page(_("Organizations"), "domain", "accounts_organization_changelist"),
                    _staff_page(_("API keys"), "key", "accounts_apikey_changelist"),
                    _staff_page(_("Requests"), "image", "images_generation_changelist"),
                    _staff_page(_("People"), "group", "accounts_user_changelist"),
                    _staff_page(_("Audit log"), "history", "accounts_auditevent_changelist"),
                ],
            },
            {
                "title": _("Money"),
                "separator": True,
                "items": [
                    _staff_page(_("Ledger"), "menu_book", "billing_ledgerentry_changelist"),
                    _staff_page(_("Holds"), "pending", "billing_hold_changelist"),
                    _staff_page(_("Prices"), "sell", "billing_priceversion_changelist"),
                    _staff_page(_("Invoices"), "receipt_long", "billing_invoice_changelist"),
                ],
            },
            {
                "title": "Stripe",
                "separator": True,
                "items": [
                    _staff_page(_("Meter events"), "speed", "billing_meterevent_changelist"),
                    _staff_page(_("Operations"), "upload", "billing_stripeoperation_changelist"),
                    _staff_page(_("Events"), "download", "billing_stripeevent_changelist"),
                    _staff_page(_("Comparisons"), "rule", "billing_reconciliation_changelist"),
                ],
            },
        ]
    },
}

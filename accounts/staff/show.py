"""How values are shown on the staff's pages."""

from django.contrib.admin.utils import quote
from django.db.models import Model
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from geekhub.lib import money


def usd(micro: int | None) -> str:
    """Return an exact amount as it is shown; nothing for None."""
    if micro is None:
        return "–"
    return f"-${money.to_usd(-micro)}" if micro < 0 else f"${money.to_usd(micro)}"


def link(row: Model | None, text: str = "") -> SafeString | str:
    """Return a link to a row's page."""
    if row is None:
        return "–"
    name = f"admin:{row._meta.app_label}_{row._meta.model_name}_change"
    return format_html('<a href="{}">{}</a>', reverse(name, args=[quote(row.pk)]), text or str(row))


def lines(values: list[str]) -> SafeString | str:
    """Return texts under each other; a dash for none."""
    if not values:
        return "–"
    return format_html_join("", "<div>{}</div>", [(value,) for value in values])

"""How amounts are shown."""

from django import template

from geekhub.lib import money
from geekhub.lib.money import MICRO_PER_CENT

register = template.Library()


@register.filter
def dollars(micro: int) -> str:
    """Return micro-USD as exact dollars: `$1,234.50`, `$0.065`, `-$2.50`."""
    whole, _, fraction = money.to_usd(abs(micro)).partition(".")
    return f"{'-' if micro < 0 else ''}${int(whole):,}.{fraction}"


@register.filter
def signed(micro: int) -> str:
    """Return the same, with a plus where money came in."""
    return f"{'+' if micro > 0 else ''}{dollars(micro)}"


@register.filter
def cents(amount: int) -> str:
    """Return cents as dollars."""
    return dollars(amount * MICRO_PER_CENT)

"""Money is an integer of micro-USD: 1 USD = 1,000,000; 0.065 USD = 65,000. No floats, ever."""

from decimal import Context, Decimal, DecimalException, Inexact, InvalidOperation, Overflow

MICRO = 1_000_000
MICRO_PER_CENT = 10_000
# Up to 10^12 USD: what the database's 64 bits hold. Beyond it, and where digits would be lost,
# arithmetic raises instead of rounding.
_EXACT = Context(prec=18, Emax=17, traps=[Inexact, InvalidOperation, Overflow])


def from_usd(amount: str | Decimal) -> int:
    """Return micro-USD for a decimal amount of USD such as `"0.065"`.

    Raises ValueError when it is not a number below 10^12 or finer than one micro-USD.
    """
    try:
        micro = _EXACT.multiply(Decimal(amount), Decimal(MICRO))
        whole = micro.to_integral_value()
    except DecimalException as error:
        raise ValueError(f"{amount!r} is not an amount of USD") from error
    if not micro.is_finite() or micro != whole:
        raise ValueError(f"{amount!r} is not a whole number of micro-USD")
    return int(whole)


def to_decimal(micro: int) -> Decimal:
    """Return the exact amount of USD."""
    return Decimal(micro) / MICRO


def to_usd(micro: int) -> str:
    """Return the exact amount of USD as text, at least two decimals: `0.04`, `0.065`, `-2.50`."""
    sign = "-" if micro < 0 else ""
    whole, fraction = divmod(abs(micro), MICRO)
    return f"{sign}{whole}.{f'{fraction:06}'.rstrip('0').ljust(2, '0')}"

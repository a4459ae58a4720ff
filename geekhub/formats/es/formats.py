"""Spanish as in Mexico: a point before the decimals, as in the amounts beside them."""

DECIMAL_SEPARATOR = "."
THOUSAND_SEPARATOR = ","

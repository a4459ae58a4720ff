"""How numbers are written, where the product differs from Django."""

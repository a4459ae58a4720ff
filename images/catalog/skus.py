"""Which sku a request is of: what a price is published for, and what is charged.

`billing` knows skus by name only. This is the one place that says which order is which.
"""

from collections.abc import Iterable, Mapping

from images.catalog.model import ImageModel, PriceLine
from images.catalog.rows import CATALOG


def sku_of(
    model: ImageModel, *, quality: str | None = None, size: str | None = None, inputs: int = 0
) -> str:
    """Return the sku of an image of this model, by what was asked for."""
    return _sku(model, model.line(quality, size, inputs))


def price_list(models: Iterable[ImageModel] = CATALOG.values()) -> Mapping[str, int]:
    """Return what is on sale: micro-USD by sku."""
    return {
        _sku(model, line): (line or model).price_micro
        for model in models
        for line in (None, *model.lines)
    }


def names(models: Iterable[ImageModel] = CATALOG.values()) -> Mapping[str, str]:
    """Return what skus are called on invoices."""
    return {
        _sku(model, line): f"{model.name}, {line.name}" if line else model.name
        for model in models
        for line in (None, *model.lines)
    }


def _sku(model: ImageModel, line: PriceLine | None) -> str:
    return f"{model.id}:{line.name}" if line else model.id

"""Which sku a request is of: what a price is published for, and what is charged.

`billing` knows skus by name only. This is the one place that says which order is which.
"""

from collections.abc import Mapping

from images.catalog.model import ImageModel
from images.catalog.rows import CATALOG


def sku_of(
    model: ImageModel, *, quality: str | None = None, size: str | None = None, inputs: int = 0
) -> str:
    """Return the sku of a picture: of this model, quality and size, made from so many others.

    Quality and size as they were asked for. Today a model has one price whatever is asked.
    """
    return model.id


def price_list() -> Mapping[str, int]:
    """Return what is on sale: micro-USD by sku."""
    return {sku_of(model): model.price_micro for model in CATALOG.values()}

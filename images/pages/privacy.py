"""Prompts are the customer's own: staff who look at a customer's pages do not see them."""

from collections.abc import Iterable

from accounts.access import Access
from images.models import Generation, Image


def hide_prompts(
    access: Access, images: Iterable[Image] = (), generations: Iterable[Generation] = ()
) -> None:
    """Take the prompts out of rows that staff are about to see; members see what they stored."""
    if access.viewing_until is None:
        return
    for image in images:
        image.revised_prompt = ""
        image.generation.prompt = ""
    for generation in generations:
        generation.prompt = ""

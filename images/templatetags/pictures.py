"""What templates need of pictures and money."""

from django import template
from django.core.files.storage import storages
from django.utils.formats import number_format

from geekhub.lib import money
from images.models import Image
from images.stores import private

register = template.Library()


@register.filter
def usd(micro: int) -> str:
    """Return micro-USD as exact USD."""
    return money.to_usd(micro)


@register.filter
def seconds(ms: int) -> str:
    """Return milliseconds as seconds with two digits after the point, one from ten on."""
    return number_format(ms / 1000, 2 if ms < 10_000 else 1)


@register.simple_tag
def picture_url(image: Image) -> str:
    """Return where the picture is read from."""
    alias = "private_images" if image.name.startswith(private.PREFIX) else "images"
    return storages[alias].url(image.name)

from django.apps import AppConfig


class ImagesConfig(AppConfig):
    """The product: requests, pictures and who draws them."""

    name = "images"

from django.apps import AppConfig


class ImagesConfig(AppConfig):
    """The product: requests, pictures and who draws them."""

    name = "images"

    def ready(self) -> None:
        from images import checks  # noqa: F401 - registers them

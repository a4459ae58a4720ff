from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class ImagesConfig(AppConfig):
    """The product: requests, pictures and who draws them."""

    name = "images"
    verbose_name = _("Images")

    def ready(self) -> None:
        from images import checks  # noqa: F401 - registers them

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """People, organizations and API keys."""

    name = "accounts"

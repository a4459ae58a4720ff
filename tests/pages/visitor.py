"""A person in front of the real application, without a browser."""

from typing import Any

import httpx
from django.conf import settings
from django.test import Client

from accounts.models import User
from tests.pages import log_in
from tests.server import AppServer

CSRF = "c" * 32


class Visitor:
    """A logged-in person's requests to the application on its socket."""

    def __init__(self, app: AppServer, user: User) -> None:
        session = log_in(Client(), user).session.session_key
        assert session
        self.http = httpx.Client(
            base_url=app.origin,
            timeout=60,
            verify=False,  # as in Api: there is no TLS
            cookies={settings.SESSION_COOKIE_NAME: session, settings.CSRF_COOKIE_NAME: CSRF},
        )

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Return the answer to GET."""
        return self.http.get(path, **options)

    def post(self, path: str, **data: Any) -> httpx.Response:
        """Return the answer to a form."""
        return self.http.post(path, data=data, headers={"X-CSRFToken": CSRF})

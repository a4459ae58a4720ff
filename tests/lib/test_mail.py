"""EMAIL_URL becomes a row of Django's MAILERS."""

import io
import sys

import pytest
from django.core.mail import EmailMessage
from pytest_django.fixtures import Settings

from geekhub.lib.mail import mailer


@pytest.mark.parametrize(
    ("url", "host", "port", "tls", "ssl"),
    [
        ("smtp://mail.acme.test", "mail.acme.test", 25, False, False),
        ("smtp+tls://mail.acme.test", "mail.acme.test", 587, True, False),
        ("smtp+ssl://mail.acme.test:4650", "mail.acme.test", 4650, False, True),
    ],
)
def test_a_server(url: str, host: str, port: int, tls: bool, ssl: bool) -> None:
    row = mailer(url, printed=True)
    assert row["BACKEND"] == "django.core.mail.backends.smtp.EmailBackend"
    assert row["OPTIONS"] == {
        "host": host,
        "port": port,
        "username": "",
        "password": "",
        "use_tls": tls,
        "use_ssl": ssl,
        "timeout": 10,
    }


def test_user_and_password_are_unquoted() -> None:
    options = mailer("smtp+tls://me%40acme.test:p%2Fw%3A@mail.acme.test", printed=False)["OPTIONS"]
    assert (options["username"], options["password"]) == ("me@acme.test", "p/w:")


def test_without_a_server_mail_is_printed_or_not_sent_at_all() -> None:
    assert mailer("", printed=True) == {
        "BACKEND": "geekhub.lib.printed_mail.EmailBackend",
        "OPTIONS": {"stream": sys.stderr},
    }
    assert mailer("", printed=False) == {"BACKEND": "django.core.mail.backends.dummy.EmailBackend"}


def test_printed_mail_has_its_links_in_one_piece(settings: Settings) -> None:
    row = mailer("", printed=True)
    printed = io.StringIO()
    settings.MAILERS = {"default": {**row, "OPTIONS": {"stream": printed}}}
    link = "http://localhost:8000/accounts/password/reset/key/" + "4-d9k2m7=" * 12 + "/"
    body = f"Cambia tu contraseña aquí, Nuñez:\n\n{link}\n\nAdiós."
    assert EmailMessage("Tu contraseña", body, "hub@acme.test", ["nuñez@acme.test"]).send() == 1
    assert printed.getvalue() == (
        f"Subject: Tu contraseña\nFrom: hub@acme.test\nTo: nuñez@acme.test\n\n{body}\n{'-' * 79}\n"
    )


@pytest.mark.parametrize("url", ["mail.acme.test", "https://mail.acme.test", "smtp://", "smtp:x"])
def test_what_is_no_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="smtp"):
        mailer(url, printed=True)

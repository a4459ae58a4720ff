"""What carries mail, from one address such as smtp+tls://user:password@smtp.example.com:587."""

import sys
from typing import Any
from urllib.parse import unquote, urlsplit

BACKENDS = "django.core.mail.backends."
PRINTER = "geekhub.lib.printed_mail.EmailBackend"
SCHEMES = {"smtp": 25, "smtp+tls": 587, "smtp+ssl": 465}
SECONDS = 10


def mailer(url: str, *, printed: bool) -> dict[str, Any]:
    """Return a row of Django's MAILERS; without a URL one that prints, or one that sends nothing.

    Raises ValueError for a URL that names no mail server.
    """
    if not url:
        if not printed:
            return {"BACKEND": f"{BACKENDS}dummy.EmailBackend"}
        # Standard output is for what a command is asked for.
        return {"BACKEND": PRINTER, "OPTIONS": {"stream": sys.stderr}}
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise ValueError("is smtp://, smtp+tls:// or smtp+ssl:// and a host")
    return {
        "BACKEND": f"{BACKENDS}smtp.EmailBackend",
        "OPTIONS": {
            "host": parts.hostname,
            "port": parts.port or SCHEMES[parts.scheme],
            "username": unquote(parts.username or ""),
            "password": unquote(parts.password or ""),
            "use_tls": parts.scheme == "smtp+tls",
            "use_ssl": parts.scheme == "smtp+ssl",
            # A page waits for it.
            "timeout": SECONDS,
        },
    }

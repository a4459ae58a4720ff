"""One spelling per mailbox, so that nobody is somebody else by writing their address otherwise.

Mail goes to the domain that IDNA 2003 makes of what was written (`punycode` in Django 6.1's
`utils/encoding.py`, read 2026-11-28): fullwidth letters, ideographic full stops and invisible
signs are gone by then. So a domain is kept as what it becomes, and a local part is plain.
"""

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.utils.translation import gettext_lazy as _

# Of the columns, and of a path in RFC 5321, section 4.5.3.1.3, without its brackets.
MAX_LENGTH = 254
# The same mailboxes under two names, which take no notice of dots ("How Gmail Addresses Work",
# www.vcharts.net/en/help/email-alias, read 2026-11-28).
GMAIL = {"gmail.com", "googlemail.com"}


def spelled(address: str) -> str:
    """Return the one spelling of an address, its domain readable.

    Raises ValidationError if it is not an address, or if the spelling hides where mail would go:
    a quoted local part, one that is not ASCII, a domain that is an IP address or no name.
    """
    validate_email(address)
    local, _at, domain = address.lower().rpartition("@")
    try:
        encoded = domain.encode("idna").decode("ascii").lower().removesuffix(".")
        # Invisible or lookalike characters may have hidden that it is not a domain.
        validate_email(f"{local}@{encoded}")
    except (UnicodeError, ValidationError) as error:
        raise _unusual() from error
    if not local.isascii() or '"' in local or "[" in encoded:
        raise _unusual()
    if len(f"{local}@{encoded}") > MAX_LENGTH:
        raise ValidationError(_("The address is too long."), code="invalid")
    return f"{local}@{_readable(encoded)}"


def as_kept(address: str) -> str:
    """Return the one spelling; an older row that no form accepts today, in lower case."""
    try:
        return spelled(address)
    except ValidationError:
        return address.casefold()


def person_of(address: str) -> str:
    """Return what all addresses of one person's mailbox share, not an address to write to.

    What follows a plus does not matter; at Gmail neither do dots and which of its names is used.
    """
    local, _at, domain = as_kept(address).rpartition("@")
    local = local.partition("+")[0]
    if domain in GMAIL:
        local, domain = local.replace(".", ""), "gmail.com"
    return f"{local}@{domain}"


class AddressField(forms.EmailField):
    """A field whose value is the one spelling."""

    def clean(self, value: Any) -> str:
        """Return the one spelling; raises ValidationError."""
        return spelled(super().clean(value))


def _readable(encoded: str) -> str:
    """Return a domain in its own letters; names that IDNA 2003 cannot write stay encoded."""
    try:
        return encoded.encode("ascii").decode("idna")
    except UnicodeError:
        return encoded


def _unusual() -> ValidationError:
    return ValidationError(
        _(
            "This form of address is not supported. Use name@example.com, without "
            "quotation marks or special characters before the @."
        ),
        code="unusual",
    )

"""Mail that is read in a terminal, as in the demo, where a link has to stay in one piece."""

from django.core.mail import EmailMessage
from django.core.mail.backends import console


class EmailBackend(console.EmailBackend):
    """Prints mail as it reads. Django's own prints it as it travels.

    There a letter beyond ASCII makes the body quoted-printable, which breaks its lines, and links.
    """

    def write_message(self, message: EmailMessage) -> None:
        """Write subject, addresses and the plain text."""
        to = ", ".join(message.recipients())
        head = f"Subject: {message.subject}\nFrom: {message.from_email}\nTo: {to}"
        self.stream.write(f"{head}\n\n{message.body}\n{'-' * 79}\n")

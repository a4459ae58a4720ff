"""Mail to people, as plain text; what is slow or fails here fails nothing else."""

import logging
import smtplib
from typing import Any

from django.core.mail import send_mail
from django.template.loader import render_to_string

log = logging.getLogger("geekhub.mail")

# What sending raises when no server takes it.
NOT_SENT = (OSError, smtplib.SMTPException)


def send(to: list[str], subject: str, template: str, context: dict[str, Any]) -> bool:
    """Send emails/TEMPLATE.txt to each address; False when no server took it.

    Not for inside a transaction: it waits for a server.
    """
    text = render_to_string(f"emails/{template}.txt", context)
    try:
        send_mail(" ".join(subject.split()), text, None, to)
    except NOT_SENT as error:
        log.error("mail about %r was not sent: %s", template, error)
        return False
    return True

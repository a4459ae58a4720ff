"""Identifiers that leave the process."""

import re
import secrets

REQUEST_ID = re.compile(r"req_[0-9a-f]{24}")


def new_request_id() -> str:
    """Return `req_` and 24 hex digits: the name of one call of the public API."""
    return f"req_{secrets.token_hex(12)}"

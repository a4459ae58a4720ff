"""Keys in text that others read: only their beginning, which names a key and opens nothing."""

import re

# Whatever looks like a key of ours, from any place; its first 21 characters are its public prefix.
SECRET = re.compile(r"(ghub_sk_(?:live|test)_[A-Za-z0-9]{8})[A-Za-z0-9]+", re.IGNORECASE)


def masked(text: str) -> str:
    """Return the text with each key cut after its prefix."""
    return SECRET.sub(r"\1…", text)

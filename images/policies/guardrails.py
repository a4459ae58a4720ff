"""What a key may be used for, whatever it asks; its models are checked where they are chosen."""

from accounts.models import ApiKey
from geekhub.lib import addresses


class Blocked(Exception):
    """A policy of the key does not allow it; the message says which."""


def check_network(key: ApiKey, address: str) -> None:
    """Raise Blocked when the key may not be used from this address."""
    if key.allowed_ips and not addresses.within(address, key.allowed_ips):
        raise Blocked(
            f"This API key cannot be used from {address or 'an unknown address'}: its "
            f"allowed IP ranges are {', '.join(key.allowed_ips)}."
        )


def check_paused(key: ApiKey) -> None:
    """Raise Blocked when the key is paused."""
    if key.paused_at is not None:
        raise Blocked(
            f"This API key is paused. {key.paused_reason} An owner can resume it on the keys page "
            "of the dashboard."
        )

"""From where a request comes, and which networks it may come from."""

import ipaddress
from collections.abc import Iterable
from typing import Any, Protocol


class Request(Protocol):
    """Django's, or the REST framework's."""

    @property
    def META(self) -> dict[str, Any]: ...


def of(request: Request, proxies: int) -> str:
    """Return the IP address of a request's client; empty when it is not known."""
    meta = request.META
    return client(meta.get("REMOTE_ADDR") or "", meta.get("HTTP_X_FORWARDED_FOR", ""), proxies)


def client(peer: str, forwarded: str, proxies: int) -> str:
    """Return the client's IP address; empty when it is not known.

    `peer` is the other end of the socket, `forwarded` the X-Forwarded-For header. Each of our
    `proxies` appends the address it talked to; anything further left can be forged.
    """
    if not proxies:
        return _ip(peer)
    added = forwarded.split(",")
    # Fewer than there are proxies: somebody came past one, and nothing there can be believed.
    return _ip(added[-proxies]) if len(added) >= proxies else ""


def network(text: str) -> str:
    """Return a network as CIDR, a single address as a network of one; raises ValueError."""
    return str(ipaddress.ip_network(text.strip(), strict=False))


def within(address: str, networks: Iterable[str]) -> bool:
    """Return whether an address is in one of the networks; an unknown one is not."""
    if not address:
        return False
    one = ipaddress.ip_address(address)
    return any(one in ipaddress.ip_network(each) for each in networks)


def is_address(host: str) -> bool:
    """Return whether a host is an IP address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _ip(text: str) -> str:
    text = text.strip()
    if text.startswith("["):  # [2001:db8::1]:443
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:  # 192.0.2.1:443
        text = text.partition(":")[0]
    try:
        one = ipaddress.ip_address(text)
    except ValueError:
        return ""
    # A socket for both families shows IPv4 clients so; rules are written for the plain one.
    mapped = one.ipv4_mapped if isinstance(one, ipaddress.IPv6Address) else None
    return str(mapped or one)

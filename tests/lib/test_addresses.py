"""Whose address a request has, whatever headers it brings, and which networks that is in."""

import pytest

from geekhub.lib import addresses


@pytest.mark.parametrize(
    ("peer", "forwarded", "proxies", "client"),
    [
        ("192.0.2.1", "", 0, "192.0.2.1"),
        # No proxy in front: the header is the client's own claim.
        ("192.0.2.1", "10.0.0.1", 0, "192.0.2.1"),
        ("127.0.0.1", "192.0.2.1", 1, "192.0.2.1"),
        # Anything left of our proxy's entry was sent by the client.
        ("127.0.0.1", "10.0.0.1, 192.0.2.1", 1, "192.0.2.1"),
        ("127.0.0.1", "10.0.0.1, 192.0.2.1, 198.51.100.7", 2, "192.0.2.1"),
        # Past a proxy: not known.
        ("192.0.2.1", "", 1, ""),
        ("192.0.2.1", "10.0.0.1", 2, ""),
        # A socket of the file system has no address.
        ("", "", 0, ""),
        ("", "192.0.2.1", 1, "192.0.2.1"),
        ("::ffff:192.0.2.1", "", 0, "192.0.2.1"),
        ("127.0.0.1", "[2001:db8::1]:443", 1, "2001:db8::1"),
        ("127.0.0.1", "192.0.2.1:50000", 1, "192.0.2.1"),
        ("127.0.0.1", "unknown", 1, ""),
        ("testclient", "", 0, ""),
    ],
)
def test_the_client_is_who_our_proxies_talked_to(
    peer: str, forwarded: str, proxies: int, client: str
) -> None:
    assert addresses.client(peer, forwarded, proxies) == client


@pytest.mark.parametrize(
    ("text", "cidr"),
    [
        ("203.0.113.0/24", "203.0.113.0/24"),
        ("203.0.113.9/24", "203.0.113.0/24"),
        (" 203.0.113.9 ", "203.0.113.9/32"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("2001:db8::1", "2001:db8::1/128"),
    ],
)
def test_a_network_is_written_one_way(text: str, cidr: str) -> None:
    assert addresses.network(text) == cidr


@pytest.mark.parametrize("text", ["", "acme.test", "203.0.113.0/33", "1.2.3", "1.2.3.4/x"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        addresses.network(text)


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("203.0.113.255", True),
        ("203.0.114.0", False),
        ("2001:db8::99", True),
        ("2001:db9::99", False),
        ("", False),
    ],
)
def test_within(address: str, inside: bool) -> None:
    assert addresses.within(address, ["203.0.113.0/24", "2001:db8::/32"]) is inside
    assert not addresses.within(address, [])

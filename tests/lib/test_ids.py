"""Identifiers."""

import re

from geekhub.lib.ids import new_request_id


def test_a_request_id_is_req_and_24_hex_digits_and_never_the_same() -> None:
    ids = {new_request_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"req_[0-9a-f]{24}", one) for one in ids)

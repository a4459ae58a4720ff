"""Starts the official clients, one process each, for all tests of a file.

The emulators are right when the clients of those who wrote the APIs are content with them.
"""

import os
from collections.abc import Callable, Iterator, Mapping

import pytest
from django.db import connection

from tests import clients, node_sdk
from tests.clients import Client

type Start = Callable[[str, str, Mapping[str, str]], Client]
# The older majors are installed by `make prove`, and run wherever they are.
OLDER = ("first", "second")


@pytest.fixture(autouse=True)
def _once_is_enough() -> None:
    if connection.vendor == "postgresql":
        pytest.skip("no database is touched here: runs beside SQLite")


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start the client of a set, or of `node`, with a module of calls."""
    started: list[Client] = []

    def start(name: str, calls: str, environment: Mapping[str, str]) -> Client:
        if connection.vendor == "postgresql":
            pytest.skip("no database is touched here: runs beside SQLite")
        if name in OLDER and clients.missing(name) and "PROVE" not in os.environ:
            pytest.skip("installs older majors of the official clients; PROVE=1 runs it")
        reason = node_sdk.why_no_node() if name == "node" else clients.why_not(name)
        if reason:
            pytest.skip(reason)
        if name == "node":
            started.append(Client.node(calls, environment))
        else:
            started.append(Client.python(name, calls, environment))
        return started[-1]

    yield start
    for client in started:
        client.close()

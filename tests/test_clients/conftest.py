"""Starts the official clients, one process each, for all tests of a file.

The emulators are right when the clients of those who wrote the APIs are content with them.
"""

from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.clients import Client

type Start = Callable[[str, str, Mapping[str, str]], Client]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start the client of a set, or of `node`, with a module of calls."""
    started: list[Client] = []

    def start(name: str, calls: str, environment: Mapping[str, str]) -> Client:
        started.append(Client.of(name, calls, environment))
        return started[-1]

    yield start
    for client in started:
        client.close()

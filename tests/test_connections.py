"""Connections: how long each may take over what, how many there are, and invalid requests."""

import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from django.conf import settings

from accounts.keys import NewKey
from geekhub.server import HEAD_BYTES, MOST_QUEUED, PIECE_BYTES, Door
from images.models import Generation
from tests.api.checks import (
    connect_raw,
    expect_books_agree,
    expect_error,
    read_answer,
    send_raw,
)
from tests.api.service import Service
from tests.emulators.base import Behaviour, make_picture
from tests.emulators.openai import OpenAIEmulator
from tests.server import AppServer
from tests.test_disconnect import _request

# Long: a test that passes does not wait.
WAIT_SECONDS = 60
SHORT = 0.3
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def read_to_end(connection: socket.socket) -> bytes:
    """Return all that comes until the server closes."""
    read = b""
    try:
        while data := connection.recv(65_536):
            read += data
    except ConnectionResetError:
        pass
    return read


def wait_until(happened: Callable[[], bool], what: str) -> None:
    """Return once something has happened."""
    end = time.monotonic() + WAIT_SECONDS
    while not happened():
        assert time.monotonic() < end, f"the server did not {what}"
        time.sleep(0.02)


def expect_closed(connection: socket.socket) -> None:
    """Check that the server closes a connection, without an answer."""
    assert read_to_end(connection) == b""


# --- Time -------------------------------------------------------------------------------------


def test_a_connection_without_a_whole_head_is_closed_and_a_request_is_not(
    serve: Callable[..., AppServer],
) -> None:
    app = serve(Door(head_seconds=SHORT))
    halves = (b"", b"G", GET[:-2], b"\r\n", GET[:-4] + b"\r\nX-A: " + b"x" * 9000)
    with connect_raw(app.origin) as body, connect_raw(app.origin) as kept:
        # Its head is here, and its body comes later than any head may.
        body.sendall(b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nab")
        kept.sendall(GET)
        assert b"200 OK" in kept.recv(65_536)
        waiting = [connect_raw(app.origin, WAIT_SECONDS) for _ in halves]
        for connection, half in zip(waiting, halves, strict=True):
            connection.sendall(half)
        for connection in waiting:
            expect_closed(connection)
            connection.close()
        assert httpx.get(f"{app.origin}/health").status_code == 200
        body.sendall(b"cd")
        assert read_answer(body).status_code == 403  # for want of a token
        # Idle between two requests is another matter.
        kept.sendall(GET)
        assert b"200 OK" in kept.recv(65_536)


@pytest.mark.parametrize("drip", [b"x", b"\r\n"])
@pytest.mark.parametrize("before", [b"", GET])
def test_a_head_that_drips_is_not_waited_for(
    serve: Callable[..., AppServer], drip: bytes, before: bytes
) -> None:
    app = serve(Door(head_seconds=SHORT))
    with connect_raw(app.origin) as connection:
        connection.sendall(before)
        if before:
            assert b"200 OK" in connection.recv(65_536)
        connection.settimeout(0.02)

        def is_closed() -> bool:
            try:
                connection.sendall(drip)
                return connection.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        wait_until(is_closed, "close it")


def test_a_client_that_reads_nothing_is_cut_off(
    serve: Callable[..., AppServer], tmp_path: Path
) -> None:
    data = make_picture(10, 10, "png", pad=19_000_000)  # more than all buffers on the way hold
    picture = tmp_path / "images" / "a" / "0.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(data)
    app = serve(Door(send_seconds=SHORT))
    path = f"/storage/v1/object/public/{settings.SUPABASE_BUCKET}/a/0.png"
    with connect_raw(app.origin, WAIT_SECONDS) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        begun = connection.recv(12)  # it has come in and is being answered
        wait_until(lambda: app.connections == 0, "cut it off")
        read = begun + read_to_end(connection)
    assert read.startswith(b"HTTP/1.1 200 OK")
    assert len(read) < len(data)
    with httpx.Client(base_url=app.origin) as client:
        assert client.get(path).content == data


# --- How many ---------------------------------------------------------------------------------


def test_when_there_are_too_many_the_oldest_idle_ones_make_room(
    serve: Callable[..., AppServer],
) -> None:
    app = serve(Door(most=20, head_seconds=999))
    wait_until(lambda: app.connections == 0, "close the first connection")
    with connect_raw(app.origin) as busy, connect_raw(app.origin) as kept:
        busy.sendall(b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nab")
        kept.sendall(GET)
        assert b"200 OK" in kept.recv(65_536)
        crowd = [connect_raw(app.origin, WAIT_SECONDS) for _ in range(60)]
        for _ in range(5):
            assert httpx.get(f"{app.origin}/health").status_code == 200
        expect_closed(kept)
        for connection in crowd[:40]:
            expect_closed(connection)
        assert app.connections <= 20
        crowd[-1].sendall(GET)
        assert b"200 OK" in crowd[-1].recv(65_536)
        busy.sendall(b"cd")
        assert read_answer(busy).status_code == 403
        for connection in crowd:
            connection.close()


def limits(process: psutil.Process) -> tuple[str, str]:
    """Return the soft and the hard limit of descriptors."""
    text = Path(f"/proc/{process.pid}/limits").read_text()
    found = re.search(r"Max open files\s+(\S+)\s+(\S+)", text)
    assert found is not None
    return found[1], found[2]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind", ["-S -n", "-n"])
def test_gunicorn_takes_all_the_descriptors_it_may_and_survives_on_few(
    kind: str, tmp_path: Path, openai: OpenAIEmulator
) -> None:
    few = ("sh", "-c", f'ulimit {kind} 128 && exec "$@"', "sh")
    with Service(tmp_path, openai, before=few, WEB_WORKERS="1") as service:
        (parent,) = (one for one in psutil.process_iter() if one.pid == service.pid)
        for process in [parent, *parent.children()]:
            soft, hard = limits(process)
            assert soft == hard
        crowd = [connect_raw(service.origin) for _ in range(300)]
        for connection in crowd:
            connection.sendall(GET[:-2])
        for _ in range(5):
            assert httpx.get(f"{service.origin}/health", timeout=WAIT_SECONDS).status_code == 200
        for connection in crowd:
            connection.close()


# --- What asks for another protocol -------------------------------------------------------------

BODY = b'{"model": "openai/gpt-image-1", "prompt": "a red kite", "n": 0}'
JDK = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
UPGRADES = {
    "JDK": JDK,
    "h2c, and closing": JDK.replace("Upgrade, ", "Upgrade, close, "),
    "TLS": "Connection: upgrade\r\nUpgrade: TLS/1.0\r\n",
    "a WebSocket": "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "two": "Connection: keep-alive, Upgrade\r\nConnection: Upgrade\r\nUpgrade: h2c, foo/2\r\n",
}


@pytest.mark.parametrize("name", list(UPGRADES))
def test_a_request_to_go_on_in_another_protocol_is_ignored_and_its_body_read(
    name: str, app: AppServer, live_key: NewKey
) -> None:
    head = (
        "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {live_key.secret}\r\nContent-Type: application/json\r\n"
        f"{UPGRADES[name]}"
    ).encode()
    plain = head + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    chunked = (
        head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"
    )
    for request in (plain, chunked):
        for size in (len(request), 7):
            with connect_raw(app.origin) as connection:
                for start in range(0, len(request), size):
                    connection.sendall(request[start : start + size])
                answer = read_answer(connection)
                expect_error(answer, "invalid_request_error", param="n", says="1 to 8")
                if "clos" not in name:
                    connection.sendall(GET + GET)
                    assert read_answer(connection).status_code == 200


def test_a_get_with_an_upgrade_is_a_get(app: AppServer) -> None:
    request = f"GET /health HTTP/1.1\r\nHost: localhost\r\n{JDK}\r\n".encode()
    assert send_raw(app.origin, request).json() == {"status": "ok"}


# --- Invalid requests ---------------------------------------------------------------------------

START = "HTTP/1.1\r\nHost: x\r\n"
ODD = {
    "an unknown method": (f"FOO /v1/models {START}\r\n", "method_not_allowed", "GET, HEAD"),
    "one on an id": (f"FOO /v1/models/a/b?x=1 {START}\r\n", "method_not_allowed", "FOO is not"),
    "one on nothing": (f"FOO /v1/nothing {START}\r\n", "not_found", "no FOO /v1/nothing"),
    "one without the v1": (f"FOO /models {START}\r\n", "not_found", "must end in /v1"),
    "a URL in UTF-8": (f"GET /v1/models/caf\xe9 {START}\r\n", "invalid_request_error", "percent"),
    "a bad header": (f"GET /v1/models {START}a b: c\r\n\r\n", "invalid_request_error", "headers"),
    "two lengths": (
        f"POST /v1/images/generations {START}Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "invalid_request_error",
        "length of the body",
    ),
    "a long head": (
        f"GET /v1/models {START}X-A: " + "x" * 400_000, "request_too_large", str(HEAD_BYTES),
    ),
    "a long URL": (f"GET /v1/models?{'x' * 400_000}", "request_too_large", "request line"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ODD))
def test_what_the_server_cannot_read_is_answered_in_the_words_of_the_api(
    name: str, app: AppServer
) -> None:
    request, code, says = ODD[name]
    with connect_raw(app.origin) as connection:
        try:
            connection.sendall(request.encode("utf-8"))
        except ConnectionError:
            pass
        answer = read_answer(connection)
    expect_error(answer, code, says=says)
    assert answer.headers["connection"] == "close"
    assert ("allow" in answer.headers) is (code == "method_not_allowed")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [("FOO /login", 405), ("GET /log\xedn", 400), ("CONNECT example.com:443", 400), ("GET", 400)],
)
def test_elsewhere_it_is_plain_text(request_line: str, status: int, app: AppServer) -> None:
    answer = send_raw(app.origin, f"{request_line} {START}\r\n".encode())
    assert answer.status_code == status
    assert answer.headers["content-type"] == "text/plain"
    assert len(answer.text.splitlines()) == 1
    assert httpx.get(f"{app.origin}/health").status_code == 200


def test_rubbish_behind_a_request_does_not_keep_its_answer_away(app: AppServer) -> None:
    with connect_raw(app.origin, WAIT_SECONDS) as connection:
        connection.sendall(GET + b"rubbish\r\n\r\n")
        read = read_to_end(connection)
    assert read.startswith(b"HTTP/1.1 200 OK")
    assert read.endswith(b'{"status": "ok"}')


BROKEN = {
    "its chunks": f"POST /v1/images/generations {START}Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
    "its trailers": (
        f"POST /v1/images/generations {START}Transfer-Encoding: chunked\r\n\r\n0\r\nX-A: "
        + "x" * 200_000
    ),
    "its head": f"GET /v1/models {START}X-A: " + "x" * 200_000,
    "its headers": f"GET /v1/models {START}a b: c\r\n\r\n",
}


@pytest.mark.parametrize("between", [0, 2])
@pytest.mark.parametrize("what", list(BROKEN))
def test_what_is_broken_behind_a_request_takes_no_answer_away_and_is_not_run(
    what: str, between: int, app: AppServer, live_key: NewKey, openai: OpenAIEmulator
) -> None:
    gate = threading.Event()
    openai.always(Behaviour(gate=gate))
    draw = _request(live_key.secret, {"model": "openai/gpt-image-1", "prompt": "a red kite"})
    with connect_raw(app.origin, WAIT_SECONDS) as connection:
        connection.sendall(draw + between * GET + BROKEN[what].encode() + GET + draw)
        openai.wait_for_calls(1)
        gate.set()
        read = read_to_end(connection)
    assert read.count(b"HTTP/1.1 200 OK") == read.count(b"HTTP/1.1 ") == 1 + between
    assert read.count(b"connection: close") == 1
    app.drain()
    assert len(openai.calls) == Generation.objects.count() == 1
    assert Generation.objects.get().request_id.encode() in read
    expect_books_agree(images=1, cost_micro=190_000)


@pytest.mark.parametrize("header", ["", "Connection: upgrade\r\nUpgrade: x\r\n"])
def test_only_so_many_requests_may_be_sent_ahead(
    header: str, app: AppServer, caplog: pytest.LogCaptureFixture
) -> None:
    request = f"GET /health HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode()
    with connect_raw(app.origin, WAIT_SECONDS) as connection:
        connection.sendall((1 + MOST_QUEUED) * request + GET)
        read = read_to_end(connection)
    assert read.count(b"HTTP/1.1 200 OK") == read.count(b"HTTP/1.1 ") == 1 + MOST_QUEUED
    with connect_raw(app.origin, WAIT_SECONDS) as connection:
        connection.sendall(MOST_QUEUED * request + GET)
        read = b""
        while read.count(b'{"status": "ok"}') < 1 + MOST_QUEUED:
            read += connection.recv(65_536)
        # Nothing was wrong with them.
        connection.sendall(GET)
        assert read_answer(connection).status_code == 200
    with connect_raw(app.origin, WAIT_SECONDS) as connection:
        try:
            connection.sendall(3_000 * request)
        except ConnectionError:
            pass
        assert read_answer(connection).json() == {"status": "ok"}
    assert httpx.get(f"{app.origin}/health").status_code == 200
    assert not caplog.records


def test_a_head_is_not_longer_than_it_may_be_however_it_comes(
    app: AppServer, live_key: NewKey
) -> None:
    """In one packet, or in two of which either is the longer one."""
    head = f"GET /v1/models {START}Connection: close\r\nX-A: ".encode()
    most, over = HEAD_BYTES - len(head) - 4, HEAD_BYTES + 2 * PIECE_BYTES
    for first, second in ((over, 0), (over, 10_000), (10_000, over), (most // 2, over - most // 2)):
        with connect_raw(app.origin, WAIT_SECONDS) as connection:
            try:
                connection.sendall(head + b"x" * first)
                connection.sendall(b"x" * second + b"\r\n\r\n")
            except ConnectionError:
                pass
            expect_error(read_answer(connection), "request_too_large", says=str(HEAD_BYTES))
    whole = head + b"x" * most + b"\r\n\r\n"
    assert len(whole) == HEAD_BYTES
    with connect_raw(app.origin, WAIT_SECONDS) as connection:
        # A body before it, in the same packet, is not part of it.
        connection.sendall(_request(live_key.secret, {"prompt": "x" * 90_000}) + whole)
        read = read_to_end(connection)
    codes = re.findall(rb'"code":"(\w+)"', read)
    assert codes == [b"invalid_request_error", b"missing_api_key"]


def test_trailers_are_no_headers_and_have_an_end(app: AppServer, live_key: NewKey) -> None:
    head = f"GET /v1/models {START}Transfer-Encoding: chunked\r\n".encode()
    key = f"Authorization: Bearer {live_key.secret}\r\n".encode()
    answer = send_raw(app.origin, head + b"\r\n0\r\n" + key + b"\r\n")
    expect_error(answer, "missing_api_key")
    with connect_raw(app.origin, WAIT_SECONDS) as connection:
        connection.sendall(head + key + b"\r\n0\r\n")
        flood = (b"X-A: " + b"x" * 10_000 + b"\r\n") * 10_000
        with pytest.raises(ConnectionError):
            connection.sendall(flood)
    assert httpx.get(f"{app.origin}/health").status_code == 200


def test_a_body_in_the_smallest_chunks_is_a_body(app: AppServer, live_key: NewKey) -> None:
    head = (
        "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        f"Authorization: Bearer {live_key.secret}\r\nContent-Type: application/json\r\n\r\n"
    )
    body = BODY + b" " * 200_000
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    answer = send_raw(app.origin, head.encode() + chunks + b"0\r\n\r\n")
    expect_error(answer, "invalid_request_error", param="n")

"""Bodies at every URL: too large, too slow, compressed, of any type; and nothing stays of them."""

import gzip
import os
import resource
import tempfile
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.test import Client
from django.urls import get_resolver

from accounts.keys import NewKey
from accounts.models import Organization
from geekhub import asgi
from geekhub.lib import bodies
from tests.api.checks import (
    connect_raw,
    expect_error,
    expect_nothing_happened,
    read_answer,
    send_raw,
)
from tests.api.test_edits import edit, file, mask, photo, texts
from tests.api.test_edits import folder as folder
from tests.emulators.openai import OpenAIEmulator
from tests.pages.test_walk import address, walk
from tests.server import Api, AppServer

MEBIBYTE = 1024 * 1024
BAD = "invalid_request_error"
GOOD = b'{"model": "openai/gpt-image-1", "prompt": "a red kite"}'
JSON = {"content-type": "application/json"}
API = [
    *("/v1/images/generations", "/v1/images/edits", "/v1/images/req_" + "0" * 24, "/v1/models"),
    *("/v1/models/openai/gpt-image-1", "/v1/credits", "/v1/usage", "/v1/generation"),
    *("/v1", "/v1/nothing", "/v1/images/generations/", "//v1/models", "/images/generations"),
]
METHODS = ("POST", "GET", "PUT", "DELETE")


@pytest.fixture
def unspooled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder for everything temporary, which must stay empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def urls(acme: Organization) -> list[str]:
    """Return the path of every URL of the map, and of some that lead nowhere."""
    routes = [route for route, _ in walk(get_resolver().url_patterns) if not route.startswith("^")]
    paths = {address(route.removesuffix("$"), acme) for route in routes if "(?P" not in route}
    assert len(paths) > 100
    return sorted(paths | {"/nothing-here", "/"} | set(API))


def sign_in(acme: Organization) -> str:
    """Return the cookie of somebody who may do everything in the dashboard."""
    client = Client()
    client.force_login(acme.memberships.earliest("pk").user)
    return f"sessionid={client.cookies['sessionid'].value}"


def expect_refused(answer: httpx.Response, path: str) -> None:
    """Check that nothing was done with a body, and that the connection is given up."""
    is_api = path in API or path.startswith("/v1/")
    refusals = {401, 404, 405, 413, 415} if is_api else {413}
    assert answer.status_code in refusals, (answer.status_code, answer.text[:200])
    assert answer.headers["connection"] == "close"
    assert answer.headers["cache-control"] == "no-store"
    if is_api:
        assert answer.json()["error"]["message"]
    else:
        assert answer.text == "The body can have at most 1048576 bytes.\n"


def test_no_url_takes_a_body_that_says_it_is_too_large(
    app: AppServer,
    acme: Organization,
    live_key: NewKey,
    openai: OpenAIEmulator,
    unspooled: Path,
    subtests: pytest.Subtests,
) -> None:
    known = f"Cookie: {sign_in(acme)}\r\nAuthorization: Bearer {live_key.secret}\r\n"
    for number, path in enumerate(urls(acme)):
        for method in METHODS if path in API else (METHODS[number % 4],):
            for who in ("", known):
                with subtests.test(f"{method} {path} {bool(who)}"):
                    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{who}"
                    request = f"{head}Content-Length: {64 * MEBIBYTE + 1}\r\n\r\n"
                    answer = send_raw(app.origin, request.encode())
                    expect_refused(answer, path)
    assert list(unspooled.iterdir()) == []
    expect_nothing_happened(openai)


def test_no_url_takes_a_body_that_becomes_too_large(
    app: AppServer,
    acme: Organization,
    openai: OpenAIEmulator,
    unspooled: Path,
    monkeypatch: pytest.MonkeyPatch,
    subtests: pytest.Subtests,
) -> None:
    # Enough to see that more than a few are not gathered.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    for path in urls(acme):
        with subtests.test(path), connect_raw(app.origin) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head.encode())
            try:
                for _ in range(20):
                    connection.sendall(piece)
            except ConnectionError:
                pass
            expect_refused(read_answer(connection), path)
    assert list(unspooled.iterdir()) == []
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024, "KiB of memory"
    expect_nothing_happened(openai)


def test_a_body_that_drips_has_an_end(
    app: AppServer, unspooled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi, "PAGE_BODY_SECONDS", 0.2)
    monkeypatch.setattr(bodies, "LINGER_SECONDS", 0.2)
    for path in ("/login", "/health", "/nothing-here", "/billing/webhooks/stripe"):
        with connect_raw(app.origin) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n"
            connection.sendall(head.encode() + b"a")
            answer = read_answer(connection)
            assert answer.status_code == 408
            assert answer.text == (
                "The body took too long to arrive; it must arrive within 0.2 seconds.\n"
            )
            assert answer.headers["connection"] == "close"
            assert connection.recv(1) == b""
    assert list(unspooled.iterdir()) == []


def test_the_largest_body_that_is_taken_reaches_the_page(app: AppServer, unspooled: Path) -> None:
    for size, status in ((MEBIBYTE, 403), (MEBIBYTE + 1, 413)):
        content = b"x" * size
        assert httpx.post(f"{app.origin}/login", content=content).status_code == status
        chunks: Any = (content[at : at + 50_000] for at in range(0, size, 50_000))
        assert httpx.post(f"{app.origin}/login", content=chunks).status_code == status
    assert list(unspooled.iterdir()) == []


def test_who_is_refused_while_sending_reads_why(app: AppServer) -> None:
    for content in (b"x" * 30 * MEBIBYTE, (b"x" * 65_536 for _ in range(480))):
        answer = httpx.post(f"{app.origin}/login", content=content)
        assert answer.status_code == 413
        assert answer.text == "The body can have at most 1048576 bytes.\n"


# --- Compressed -------------------------------------------------------------------------------


def compressed(api: Api, content: bytes, encoding: str, **headers: str) -> httpx.Response:
    """Return the answer to a generation with a Content-Encoding."""
    return api.http.post(
        "images/generations",
        content=content,
        headers={**JSON, "content-encoding": encoding, **headers},
    )


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", "identity, gzip", "identity"])
def test_a_body_may_be_compressed_once(api: Api, openai: OpenAIEmulator, encoding: str) -> None:
    content = GOOD if encoding == "identity" else gzip.compress(GOOD)
    assert compressed(api, content, encoding).status_code == 200
    pieces: Any = iter([content[:1], content[1:30], b"", content[30:]])
    assert compressed(api, pieces, encoding).status_code == 200
    assert [call.body["prompt"] for call in openai.calls] == ["a red kite"] * 2


OTHERS = [
    ("br", b"\x0b\x1b\x80"),
    ("deflate", zlib.compress(GOOD)),
    ("zstd", b"\x28\xb5\x2f\xfd"),
    ("gzip, gzip", gzip.compress(gzip.compress(GOOD))),
    ("gzip, br", gzip.compress(GOOD)),
    ("compress", GOOD),
    ("utf-8", GOOD),
]


@pytest.mark.parametrize(("encoding", "content"), OTHERS, ids=[name for name, _ in OTHERS])
def test_any_other_encoding_is_415_that_names_it(
    api: Api, openai: OpenAIEmulator, encoding: str, content: bytes
) -> None:
    answer = compressed(api, content, encoding)
    error = expect_error(answer, "unsupported_media_type")
    assert error["message"] == (
        f"Content-Encoding {encoding!r} is not supported. "
        "Send the body as it is, or compressed once with gzip."
    )
    assert answer.headers["accept-encoding"] == "gzip, identity"
    answer = edit(api, headers={"Content-Encoding": encoding})
    expect_error(answer, "unsupported_media_type", says=encoding)
    expect_nothing_happened(openai)


def test_a_page_takes_no_encoding_at_all(app: AppServer) -> None:
    for encoding in ("gzip", "br", "gzip, gzip"):
        answer = httpx.post(
            f"{app.origin}/login",
            content=gzip.compress(b"x"),
            headers={"content-encoding": encoding},
        )
        assert answer.status_code == 415
        assert answer.text == (
            f"Content-Encoding {encoding!r} is not supported. Send the body as it is.\n"
        )


def test_what_is_unpacked_is_measured_and_no_bomb_goes_off(
    api: Api, openai: OpenAIEmulator, unspooled: Path
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    packer = zlib.compressobj(9, wbits=31)
    zeros = bytes(MEBIBYTE)
    bomb = b"".join(packer.compress(zeros) for _ in range(500)) + packer.flush()
    assert len(bomb) < MEBIBYTE
    expect_error(compressed(api, bomb, "gzip"), "request_too_large", says="1048576")
    # Nothing comes out of these, and they do not end.
    packer = zlib.compressobj(9, wbits=31)
    empty = b"".join(packer.flush(zlib.Z_FULL_FLUSH) + b"\0\0\0\xff\xff" * 10 for _ in range(9))
    expect_error(compressed(api, empty + b"\0\0\0\xff\xff" * 300_000, "gzip"), "request_too_large")
    form = {"content-type": "multipart/form-data; boundary=B", "content-encoding": "gzip"}
    answer = api.http.post("images/edits", content=bomb, headers=form)
    expect_error(answer, "request_too_large", says="67108864")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 96 * 1024
    assert list(unspooled.iterdir()) == []
    expect_nothing_happened(openai)


def test_a_stream_that_is_not_one_whole_gzip_is_400(api: Api, openai: OpenAIEmulator) -> None:
    packed = gzip.compress(GOOD)
    for content in (GOOD, packed[:-1], packed[:5], packed + b"x", packed + packed, b"\0" * 50):
        answer = compressed(api, content, "gzip")
        expect_error(answer, BAD, says="not one whole gzip stream")
    expect_error(compressed(api, b"", "gzip"), BAD, param="model", says="the body is empty")
    expect_nothing_happened(openai)


def test_an_edit_may_be_compressed(api: Api, openai: OpenAIEmulator) -> None:
    parts = [*texts(), file("image", photo()), file("mask", mask())]
    plain = api.http.build_request("POST", "images/edits", files=parts)
    content = gzip.compress(plain.read())
    answer = api.http.post(
        "images/edits",
        content=content,
        headers={"content-type": plain.headers["content-type"], "content-encoding": "gzip"},
    )
    assert answer.status_code == 200, answer.text
    assert len(openai.calls) == 1


# --- Of any type ------------------------------------------------------------------------------

HOSTILE = [
    *("application/x-www-form-urlencoded; charset=utf-16", "multipart/form-data"),
    *("multipart/form-data; boundary=", "multipart/form-data; boundary=\xff", "multipart/x"),
    *("multipart/form-data; boundary=x; charset=utf-16", "MULTIPART/FORM-DATA; BOUNDARY=x"),
    *("text/plain; charset=rot13", "application/json; charset=\xe9", ";", "", "x" * 9000),
    "application/x-www-form-urlencoded; charset=nothing",
]


def test_no_content_type_is_our_fault_anywhere(
    app: AppServer, acme: Organization, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
) -> None:
    token = "a" * 32
    known = f"csrftoken={token}; {sign_in(acme)}"
    kinds = [*HOSTILE, "", *HOSTILE] if os.environ.get("PROVE") else HOSTILE[:2]
    with httpx.Client(base_url=app.origin) as client:
        for path in urls(acme):
            for number, kind in enumerate(kinds):
                with subtests.test(f"{path} {kind[:60]}"):
                    cookie = known if number % 2 else f"csrftoken={token}"
                    answer = client.post(
                        path,
                        content=b"--x\r\nContent-Disposition: form-data\r\n\xff\r\n--x--",
                        headers={
                            b"content-type": kind.encode("latin-1"),
                            b"cookie": cookie.encode(),
                            b"x-csrftoken": token.encode(),
                        },
                    )
                    assert answer.status_code < 500, answer.text[:300]
    assert [one for one in caplog.records if one.levelname == "ERROR"] == []


@pytest.mark.parametrize(
    "kind", ["Multipart/Form-Data; boundary=B", "MULTIPART/FORM-DATA;BOUNDARY=B"]
)
def test_media_types_have_no_case(api: Api, app: AppServer, kind: str) -> None:
    form = b"".join(
        b'--B\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % part
        for part in (
            (b"model", b"", b"openai/gpt-image-1"),
            (b"prompt", b"", b"a hat"),
            (b"image", b'; filename="a"', photo()),
        )
    )
    answer = api.http.post(
        "images/edits", content=form + b"--B--\r\n", headers={"content-type": kind}
    )
    assert answer.status_code == 200, answer.text
    assert compressed(api, GOOD, "identity", **{"content-type": "Application/JSON"}).is_success
    # A page: the form is read, and lacks what it must have.
    token = "a" * 32
    login = b'--B\r\nContent-Disposition: form-data; name="login"\r\n\r\nnobody\r\n--B--\r\n'
    answer = httpx.post(
        f"{app.origin}/login",
        content=login,
        headers={"content-type": kind, "cookie": f"csrftoken={token}", "x-csrftoken": token},
    )
    assert answer.status_code == 200
    assert 'value="nobody"' in answer.text


# --- What a GET brings ----------------------------------------------------------------------


def test_head_has_the_length_of_get_everywhere(api: Api) -> None:
    drawn = api.draw().json()["id"]
    for path in (
        *("models", "models/openai/gpt-image-1", "models/nobody/nothing", "credits", "usage"),
        *(f"generation?id={drawn}", "generation", "generation?id=x", "nothing", "usage?x=1"),
    ):
        got, head = api.get(path), api.http.head(path)
        assert head.status_code == got.status_code, path
        assert head.content == b""
        assert len(got.content) > 0
        # Request ids differ, and not in length.
        assert head.headers["content-length"] == got.headers["content-length"], path
        assert head.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize("accept", ["text/html", "image/png", "application/xml;q=0.9", "x", ""])
def test_whatever_is_accepted_the_answer_is_json(api: Api, accept: str) -> None:
    for answer in (
        api.get("models", headers={"accept": accept}),
        api.get("nothing", headers={"accept": accept}),
        api.draw(headers={"accept": accept}),
    ):
        assert answer.headers["content-type"] == "application/json"
    assert answer.status_code == 200

"""Whatever a store says is data: every value of its answers, replaced by every other kind."""

import asyncio
import gzip
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from aiohttp import web

from images.stores.contract import StorageError, StorageUnavailable
from images.stores.supabase import SupabaseStorage
from tests.images.providers.hostile import variants
from tests.lib import Handler, serving

NAME = "o/g/0.png"
SIGNED = {"signedURL": "/object/sign/images/o/g/0.png?token=a.b"}
INFO = {
    "name": NAME,
    "size": 3,
    "created_at": "2026-11-28T00:00:00+00:00",
    "last_modified": "2026-11-28T00:00:00+00:00",
}
BUCKET = {"public": True, "file_size_limit": 9, "allowed_mime_types": ["image/png"]}
PAGE = {"folders": [{"name": "a/"}], "objects": [{"name": "b"}], "hasNext": False}
ERROR = {"statusCode": "404", "error": "not_found", "code": "NoSuchKey", "message": "Gone."}

type Ask = Callable[[SupabaseStorage], Any]


def now[T](ask: Callable[[SupabaseStorage], T]) -> Ask:
    """Return a synchronous question as one that can be waited for."""
    return lambda store: asyncio.to_thread(ask, store)


ASKED: dict[str, tuple[Any, Ask, type | tuple[type, ...]]] = {
    "save": ({"Key": NAME, "Id": "1"}, lambda s: s.asave(NAME, b"abc", "image/png"), str),
    "sign later": (SIGNED, lambda s: s.asign(NAME, 60), str),
    "sign": (SIGNED, now(lambda s: s.sign(NAME, 60)), str),
    "sign many": ([SIGNED | {"path": NAME}], now(lambda s: s.sign_many([NAME], 60)), dict),
    "exists": (INFO, now(lambda s: s.exists(NAME)), bool),
    "size": (INFO, now(lambda s: s.size(NAME)), int),
    "created": (INFO, now(lambda s: s.get_created_time(NAME)), datetime),
    "modified": (INFO, now(lambda s: s.get_modified_time(NAME)), datetime),
    "list": (PAGE, now(lambda s: s.listdir("")), tuple),
    "bucket": (BUCKET, now(lambda s: s.bucket_differences(size_limit=9, mime_types=[])), list),
}


async def asked(ask: Ask, store: SupabaseStorage) -> Any:
    """Return the answer, or the error if it is one that callers know."""
    try:
        return await ask(store)
    except (StorageError, FileNotFoundError) as error:
        found = error
    assert "\0" not in str(found)
    str(found).encode()
    return found


def attack(handler: Handler, work: Callable[[SupabaseStorage], Any]) -> Any:
    async def main() -> Any:
        async with serving(handler) as origin:
            store = SupabaseStorage(url=origin, key="sb_secret_x", bucket="images", attempts=1)
            try:
                return await work(store)
            finally:
                await store.aclose()
                store.close()

    return asyncio.run(main())


@pytest.mark.parametrize("name", ASKED)
def test_every_value_of_a_good_answer(name: str) -> None:
    good, ask, kind = ASKED[name]
    said = [json.dumps(good)]

    async def answer(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.Response(text=said[-1])

    async def work(store: SupabaseStorage) -> None:
        assert isinstance(await ask(store), kind)
        for path, value, changed in variants(good):
            said.append(json.dumps(changed))
            found = await asked(ask, store)
            assert isinstance(found, (kind, StorageUnavailable)), (path, value, found)
            if isinstance(found, str):
                found.encode("ascii")
                assert found == NAME or found.startswith(store.public_base + "/")

    attack(answer, work)


def test_every_value_of_an_error() -> None:
    said: list[tuple[int, str]] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        await request.read()
        status, body = said[-1]
        return web.Response(status=status, text=body)

    async def work(store: SupabaseStorage) -> None:
        bodies = [json.dumps(changed) for _, _, changed in variants(ERROR)]
        bodies += ["[" * 100_000, "", '{"statusCode": 1e400}', '{"statusCode": NaN}']
        for status in (400, 404, 500):
            for body in bodies:
                said.append((status, body))
                for ask in (ASKED["save"][1], ASKED["exists"][1]):
                    found = await asked(ask, store)
                    assert found is False or isinstance(found, (StorageError, FileNotFoundError))

    attack(answer, work)


@pytest.mark.parametrize("encodings", ["gzip", "gzip, gzip", "br"])
@pytest.mark.parametrize("name", ["read", "open", "save", "size"])
def test_an_answer_that_unpacks_to_much_is_not_unpacked(name: str, encodings: str) -> None:
    packed = gzip.compress(bytes(64 * 2**20), 9)

    async def answer(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.Response(body=packed, headers={"Content-Encoding": encodings})

    asks: dict[str, Ask] = {
        "read": lambda store: store.aread(NAME),
        "open": now(lambda store: store.open(NAME)),
        "save": ASKED["save"][1],
        "size": ASKED["size"][1],
    }

    async def work(store: SupabaseStorage) -> Any:
        return await asked(asks[name], store)

    assert isinstance(attack(answer, work), StorageError)


def test_a_list_that_never_ends_does() -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.json_response(PAGE | {"hasNext": True, "nextCursor": "again"})

    async def work(store: SupabaseStorage) -> Any:
        return await asked(ASKED["list"][1], store)

    assert isinstance(attack(answer, work), StorageUnavailable)

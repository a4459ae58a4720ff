"""Whatever is wrong with a request: the catalogue's 4xx, and nothing held, charged or called."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from accounts.keys import NewKey
from images.models import Generation
from tests.api.checks import (
    connect_raw,
    expect_error,
    expect_nothing_happened,
    send_raw,
)
from tests.emulators.openai import OpenAIEmulator
from tests.server import Api, AppServer

ABSENT = object()
BAD = "invalid_request_error"
URL = "images/generations"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Case:
    """A body's fields, and the error they get: its param and words of its message."""

    name: str
    fields: dict[str, Any]
    param: str | None
    says: tuple[str, ...]
    code: str = BAD


def _case(param: str | None, *says: str, code: str = BAD, **fields: Any) -> Case:
    shown = {name: repr(value)[:60] for name, value in fields.items() if value is not ABSENT}
    return Case(f"{shown or f'no {param}'}", fields, param, says, code)


NINE = [
    "openai/gpt-image-1",
    "openai/dall-e-3",
    "google/imagen-4",
    "xai/grok-2-image",
    "fal/flux-1.1-pro",
    "fal/flux-1.1-pro-ultra",
    "fal/recraft-v3",
    "fal/ideogram-v2",
    "fal/sd-3.5-large",
]

CASES = [
    # prompt
    _case("prompt", "is required", prompt=ABSENT),
    _case("prompt", "is required", prompt=None),
    _case("prompt", "1 to 4000 characters", "it has 0", prompt=""),
    _case("prompt", "must not be blank", prompt=" \t\r\n"),
    _case("prompt", "must not be blank", prompt="\u2003\u3000"),
    _case("prompt", "1 to 4000 characters", "it has 4001", prompt="x" * 4001),
    _case("prompt", "1 to 4000 characters", "it has 4001", prompt="\N{ROCKET}" * 4001),
    _case("prompt", "must be a string", prompt=5),
    _case("prompt", "must be a string", prompt=True),
    _case("prompt", "must be a string", prompt=["a red kite"]),
    _case("prompt", "must be a string", prompt={"text": "a red kite"}),
    _case("prompt", "character 6 is U+0000", prompt="a red\0kite"),
    _case("prompt", "character 7 is U+D800", prompt="a red \ud800 kite"),
    # n
    _case("n", "from 1 to 8", n=0),
    _case("n", "from 1 to 8", n=-1),
    _case("n", "from 1 to 8", n=9),
    _case("n", "from 1 to 8", n=10**300),
    _case("n", "an integer from 1 to 8", n="two"),
    _case("n", "an integer from 1 to 8", n="2"),
    _case("n", "an integer from 1 to 8", n=True),
    _case("n", "an integer from 1 to 8", n=False),
    _case("n", "an integer from 1 to 8", n=1.0),
    _case("n", "an integer from 1 to 8", n=1.5),
    _case("n", "an integer from 1 to 8", n=[1]),
    _case("n", "an integer from 1 to 8", n={}),
    # model
    _case("model", "is required", model=ABSENT),
    _case("model", "is required", model=None),
    _case("model", "1 to 100 characters", model=""),
    _case("model", "must not be blank", model="  "),
    _case("model", "1 to 100 characters", model="x" * 101),
    _case("model", "a model id, a list of ids, or auto", model=1),
    _case("model", "a model id, a list of ids, or auto", model={"id": NINE[0]}),
    _case("model", "a model id, a list of ids, or auto", model=True),
    _case("model", "1 to 8 strings", model=[]),
    _case("model", "1 to 8 strings", model=NINE),
    _case("model", "must not contain duplicates", model=[NINE[0], NINE[0]]),
    _case("model", "must be a string", model=[NINE[0], 5]),
    _case("model", "item 2 must be a string", model=[NINE[0], None]),
    _case("model", "must be a string", model=[[NINE[0]]]),
    _case("model", "character 8 is U+DFFF", model="openai/\udfff"),
    _case("model", "character 8 is U+0000", model="openai/\0"),
    _case("model", "auto cannot be part of a list", model=["auto", NINE[0]]),
    _case("model", "'openai/gpt-image-0'", "GET /v1/models", code="model_not_found",
          model="openai/gpt-image-0"),
    _case("model", "'gpt-image-1'", "GET /v1/models", code="model_not_found", model="gpt-image-1"),
    _case("model", "'OpenAI/GPT-Image-1'", code="model_not_found", model="OpenAI/GPT-Image-1"),
    _case("model", "' openai/dall-e-3'", code="model_not_found", model=" openai/dall-e-3"),
    _case("model", "'nobody/nothing'", code="model_not_found", model=[NINE[0], "nobody/nothing"]),
    _case("model", "'nobody/nothing'", code="model_not_found", model=["nobody/nothing", NINE[0]]),
    # size: the message names what the model draws
    _case("size", "openai/gpt-image-1 does not support 512x512",
          "auto, 1024x1024, 1536x1024, 1024x1536", size="512x512"),
    _case("size", "auto, 1024x1024", size="1024X1024"),
    _case("size", "auto, 1024x1024", size="0x0"),
    _case("size", "auto, 1024x1024", size="1024x1024\n"),
    _case("size", "auto, 1024x1024", size="AUTO"),
    _case("size", "1 to 20 characters", size=""),
    _case("size", "1 to 20 characters", size="1" * 21),
    _case("size", "must be a string", size=1024),
    _case("size", "must be a string", size=[1024, 1024]),
    _case("size", "No model fits", "openai/gpt-image-1", "openai/dall-e-3",
          model=[NINE[0], NINE[1]], size="512x512"),
    # words of a few
    _case("quality", "auto, standard, hd, low, medium, high", quality="best"),
    _case("quality", "auto, standard, hd", quality=["hd"]),
    _case("quality", "auto, standard, hd", quality=""),
    _case("style", "vivid, natural", style="gaudy"),
    _case("style", "vivid, natural", style=1),
    _case("response_format", "url, b64_json", response_format="base64"),
    _case("response_format", "url, b64_json", response_format={}),
    _case("output_format", "png, jpeg, webp", output_format="gif"),
    _case("output_format", "png, jpeg, webp", output_format=["png"]),
    _case("background", "auto, transparent, opaque", background="red"),
    _case("background", "png or webp", background="transparent", output_format="jpeg"),
    _case("moderation", "auto, low", moderation="none"),
    # numbers
    _case("output_compression", "from 0 to 100", output_compression=101),
    _case("output_compression", "from 0 to 100", output_compression=-1),
    _case("output_compression", "integer from 0 to 100", output_compression="50"),
    _case("seed", "from 0 to 2147483647", seed=2**31),
    _case("seed", "from 0 to 2147483647", seed=-1),
    _case("seed", "integer from 0 to 2147483647", seed=7.0),
    _case("seed", "integer from 0 to 2147483647", seed="7"),
    _case("partial_images", "from 0 to 3", stream=True, partial_images=4),
    _case("partial_images", "needs stream: true", partial_images=1),
    _case("max_cost", "an amount in USD", max_cost="1"),
    _case("max_cost", "an amount in USD", max_cost=True),
    _case("max_cost", "above 0 and at most 1000000", max_cost=0),
    _case("max_cost", "above 0 and at most 1000000", max_cost=-0.01),
    _case("max_cost", "above 0 and at most 1000000", max_cost=10**400),
    _case("max_cost", "cost 0.38 USD, more than max_cost 0.37.", max_cost=0.37, n=2),
    # truths
    _case("stream", "true or false", stream="true"),
    _case("stream", "true or false", stream=1),
    _case("strict", "true or false", strict="false"),
    _case("strict", "true or false", strict=[]),
    _case("dry_run", "true or false", dry_run=0),
    # strict: what would be adjusted
    _case("seed", "strict", "does not support seed", strict=True, seed=7),
    _case("style", "strict", "no style", strict=True, style="vivid"),
    # lists of texts
    _case("user", "1 to 256 characters", user=""),
    _case("user", "1 to 256 characters", user="u" * 257),
    _case("user", "must be a string", user=42),
    _case("user", "character 2 is U+0000", user="u\0"),
    _case("tags", "a list of 0 to 8 strings", tags="launch"),
    _case("tags", "a list of 0 to 8 strings", tags=[str(number) for number in range(9)]),
    _case("tags", "a list of 0 to 8 strings", tags={"a": "b"}),
    _case("tags", "1 to 40 characters", tags=["t" * 41]),
    _case("tags", "1 to 40 characters", tags=[""]),
    _case("tags", "must be a string", tags=[1]),
    _case("tags", "must not contain duplicates", tags=["a", "a"]),
    _case("tags", "item 1", "character 1 is U+DCFF", tags=["\udcff"]),
    # routing
    _case("routing", "must be an object", model=[NINE[0]], routing="auto"),
    _case("routing", "must be an object", model=[NINE[0]], routing=[]),
    _case("routing", "must be an object", model=[NINE[0]], routing=True),
    _case("routing", "a list of models or auto", routing={"on_refusal": "stop"}),
    _case("routing", "for model auto", model=[NINE[0]], routing={"strategy": "cheapest"}),
    _case("routing.strategy", "cheapest, fastest, balanced", model="auto",
          routing={"strategy": "dearest"}),
    _case("routing.on_refusal", "next, stop", model="auto", routing={"on_refusal": "retry"}),
    _case("routing.candidates", "1 to 8 strings", model="auto", routing={"candidates": []}),
    _case("routing.candidates", "1 to 8 strings", model="auto", routing={"candidates": NINE}),
    _case("routing.candidates", "1 to 8 strings", model="auto", routing={"candidates": NINE[0]}),
    _case("routing.candidates", "must not contain duplicates", model="auto",
          routing={"candidates": [NINE[0], NINE[0]]}),
    _case("routing.weight", "is not a field", model="auto", routing={"weight": 1}),
    _case("model", "'nobody/nothing'", code="model_not_found", model="auto",
          routing={"candidates": ["nobody/nothing"]}),
    # fields nobody knows
    _case("negative_prompt", "negative_prompt is not a field", negative_prompt="rain"),
    _case("N", "N is not a field", N=1),
    _case("prompt ", "is not a field", **{"prompt ": "x"}),
    _case("__proto__", "__proto__ is not a field", __proto__={}),
    _case("x" * 100, "is not a field", **{"x" * 500: 1}),
    _case("extra", "is not a field", extra=None),
]  # fmt: skip


def _encode(fields: dict[str, Any]) -> bytes:
    body = {"model": NINE[0], "prompt": "a red kite", **fields}
    return json.dumps({name: value for name, value in body.items() if value is not ABSENT}).encode()


def test_every_bad_field_gets_a_400_that_names_it_and_nothing_else_happens(
    api: Api, openai: OpenAIEmulator, subtests: pytest.Subtests
) -> None:
    for case in CASES:
        with subtests.test(case.name):
            answer = api.post(_encode(case.fields))
            expect_error(answer, case.code, param=case.param, says=case.says)
        expect_nothing_happened(openai)


def test_a_size_a_model_lacks_is_refused_with_those_it_has(
    api: Api, sandbox: Api, openai: OpenAIEmulator, subtests: pytest.Subtests
) -> None:
    for model in api.get("models").json()["data"]:
        with subtests.test(model["id"]):
            # A sandbox key has every provider, and the same rules.
            answer = sandbox.draw(model=model["id"], size="17x17")
            expect_error(
                answer,
                BAD,
                param="size",
                says=(f"{model['id']} does not support 17x17", ", ".join(model["sizes"])),
            )
    expect_nothing_happened(openai)


def test_a_field_name_that_is_no_text_is_refused_as_any_unknown_field(
    api: Api, openai: OpenAIEmulator, subtests: pytest.Subtests
) -> None:
    for name in ("\ud800", "\udfff" * 80, "a\ud800b", "\0", ""):
        for body in (
            {"model": NINE[0], "prompt": "a red kite", name: 1},
            {"model": "auto", "prompt": "a red kite", "routing": {name: 1}},
        ):
            with subtests.test(ascii(body)):
                answer = api.post(json.dumps(body).encode())
                assert answer.status_code == 400, answer.text
                error = answer.json()["error"]
                assert error["code"] == BAD
                assert "is not a field" in error["message"]
            expect_nothing_happened(openai)


GOOD = b'"model": "openai/gpt-image-1", "prompt": "a red kite"'


def _raw_bodies() -> Iterator[tuple[str, bytes, tuple[str, ...]]]:
    yield "empty", b"", ("is required",)
    yield "white space", b" \n ", ("not valid JSON",)
    yield "cut off", b'{"model": "openai/gpt-image-1", "prompt": "a red', ("not valid JSON",)
    yield "trailing comma", b"{" + GOOD + b",}", ("not valid JSON",)
    yield "single quotes", b"{'model': 'openai/gpt-image-1'}", ("not valid JSON",)
    yield "comment", b"{" + GOOD + b"} // please", ("not valid JSON",)
    yield "two documents", b"{" + GOOD + b"}{" + GOOD + b"}", ("not valid JSON",)
    yield "raw control character", b'{"prompt": "a\x01b"}', ("not valid JSON",)
    yield "raw NUL", b"{" + GOOD + b"}\0", ("not valid JSON",)
    yield "byte order mark", b"\xef\xbb\xbf{" + GOOD + b"}", ("not valid JSON",)
    yield "latin-1", b'{"prompt": "caf\xe9"}', ("not valid UTF-8", "at byte 15")
    yield "overlong UTF-8", b'{"prompt": "\xc0\xaf"}', ("not valid UTF-8",)
    yield "surrogate in UTF-8", b'{"prompt": "\xed\xa0\x80"}', ("not valid UTF-8",)
    yield "cut UTF-8", b'{"prompt": "\xf0\x9f\x9a', ("not valid UTF-8",)
    yield "UTF-16", ("{" + GOOD.decode() + "}").encode("utf-16"), ("not valid UTF-8",)
    yield "gzip", gzip.compress(b"{" + GOOD + b"}"), ("not valid UTF-8",)
    for value in (b"NaN", b"Infinity", b"-Infinity"):
        yield (
            value.decode(),
            b"{" + GOOD + b', "n": ' + value + b"}",
            (value.decode(), "not a JSON"),
        )
    yield "a key twice", b"{" + GOOD + b', "prompt": "a blue kite"}', ("'prompt'", "twice")
    yield (
        "a key twice, once escaped",
        b"{" + GOOD + b', "\\u0070rompt": "x"}',
        ("'prompt'", "twice"),
    )
    twice = b', "routing": {"strategy": "cheapest", "strategy": "fastest"}}'
    yield "a nested key twice", b"{" + GOOD + twice, ("'strategy'", "twice")
    yield "a surrogate key twice", b'{"\\ud800": 1, "\\ud800": 2}', ("twice",)
    yield "5,000 digits", b"{" + GOOD + b', "n": ' + b"9" * 5000 + b"}", ("not valid JSON",)
    yield "21 deep", b'{"prompt": ' + b"[" * 20 + b"]" * 20 + b"}", ("nested too deeply",)
    deep = 100_000
    yield "100,000 brackets", b"[" * deep + b"]" * deep, ("nested too deeply",)
    yield "open brackets", b"[" * deep, ("nested too deeply",)
    yield "100,000 braces", b'{"a":' * deep + b"1" + b"}" * deep, ("nested too deeply",)
    for value in (b"[]", b'[{"prompt": "x"}]', b'"prompt"', b"null", b"true", b"0", b"1.5"):
        yield f"top-level {value.decode()}", value, ("must be a JSON object",)


def test_a_body_that_is_not_one_json_object_is_refused(
    api: Api, openai: OpenAIEmulator, subtests: pytest.Subtests
) -> None:
    for name, body, says in _raw_bodies():
        with subtests.test(name):
            expect_error(api.post(body), BAD, param=None if name != "empty" else "model", says=says)
            expect_nothing_happened(openai)


def test_numbers_beyond_a_double_are_no_numbers_of_ours(
    api: Api, openai: OpenAIEmulator, subtests: pytest.Subtests
) -> None:
    for field in ("n", "seed", "max_cost", "output_compression", "partial_images"):
        for value in (b"1e999", b"-1e999", b"1E400"):
            with subtests.test(f"{field} {value.decode()}"):
                body = b"{" + GOOD + b', "' + field.encode() + b'": ' + value + b"}"
                expect_error(api.post(body), BAD, param=field, says="must be")
            expect_nothing_happened(openai)


def test_null_is_the_same_as_absent(api: Api, openai: OpenAIEmulator) -> None:
    optional = [
        *("n", "size", "quality", "style", "response_format", "output_format", "background"),
        *("output_compression", "moderation", "seed", "user", "stream", "partial_images"),
        *("routing", "strict", "max_cost", "dry_run", "tags"),
    ]
    for fields in ({}, dict.fromkeys(optional)):
        answer = api.draw(**fields)
        assert answer.status_code == 200, answer.text

    plain = {"model": "gpt-image-1", "prompt": "a red kite", "n": 1, "size": "1024x1024"}
    assert [call.body for call in openai.calls] == [plain, plain]
    first, second = Generation.objects.order_by("created_at")
    assert (first.parameters, first.fingerprint) == (second.parameters, second.fingerprint)


def test_a_prompt_may_have_4000_characters_of_any_kind(api: Api, openai: OpenAIEmulator) -> None:
    prompts = [letter * 4000 for letter in ("x", "\N{ROCKET}", "\N{CJK UNIFIED IDEOGRAPH-56FE}")]

    assert [api.draw(prompt=prompt).status_code for prompt in prompts] == [200, 200, 200]
    assert [call.body["prompt"] for call in openai.calls] == prompts


def test_a_body_over_the_limit_is_413_however_it_is_sent(
    api: Api, openai: OpenAIEmulator, subtests: pytest.Subtests
) -> None:
    limit, mebibyte = "1048576 bytes", 1024 * 1024
    head = b"{" + GOOD + b', "user": "'

    def exactly(size: int) -> bytes:
        return head + b"x" * (size - len(head) - 2) + b'"}'

    def pieces(body: bytes) -> Iterator[bytes]:
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000]

    for size in (mebibyte + 1, 2 * mebibyte):
        with subtests.test(f"{size} bytes with a Content-Length"):
            answer = api.post(exactly(size))
            expect_error(answer, "request_too_large", says=limit)
        with subtests.test(f"{size} bytes in chunks"):
            answer = api.http.post(
                URL, content=pieces(exactly(size)), headers={"content-type": JSON}
            )
            expect_error(answer, "request_too_large", says=limit)
        expect_nothing_happened(openai)
    with subtests.test("exactly the limit is read, and refused for what it says"):
        expect_error(api.post(exactly(mebibyte)), BAD, param="user", says="1 to 256")
    with subtests.test("other content types are measured too"):
        answer = api.post(b"x" * 2 * mebibyte, "text/plain")
        expect_error(answer, "request_too_large")
    with subtests.test("a body on GET"):
        answer = api.http.request("GET", "models", content=b"x" * 2 * mebibyte)
        expect_error(answer, "request_too_large")
    expect_nothing_happened(openai)


def test_a_chunked_body_within_the_limit_draws(api: Api, openai: OpenAIEmulator) -> None:
    body = b"{" + GOOD + b"}"
    answer = api.http.post(
        URL, content=iter([body[:10], body[10:]]), headers={"content-type": JSON}
    )

    assert answer.status_code == 200, answer.text
    assert len(openai.calls) == 1


def _head(secret: str, *lines: str) -> bytes:
    head = ["POST /v1/images/generations HTTP/1.1", "Host: 127.0.0.1", f"Authorization: {secret}"]
    return "\r\n".join([*head, f"Content-Type: {JSON}", *lines, "", ""]).encode("latin-1")


def test_a_content_length_that_lies_draws_nothing(
    api: Api, app: AppServer, live_key: NewKey, openai: OpenAIEmulator, subtests: pytest.Subtests
) -> None:
    bearer = f"Bearer {live_key.secret}"
    body = b"{" + GOOD + b"}"
    with subtests.test("less than what comes: the body is cut, the rest is no request"):
        answer = send_raw(app.origin, _head(bearer, "Content-Length: 20") + body)
        assert answer.status_code == 400
    with subtests.test("more than what comes, and the client leaves"):
        with connect_raw(app.origin) as connection:
            connection.sendall(_head(bearer, "Content-Length: 500") + body)
        assert api.get("models").status_code == 200
    with subtests.test("far more than allowed: refused before the body comes"):
        answer = send_raw(app.origin, _head(bearer, "Content-Length: 99999999999"))
        expect_error(answer, "request_too_large")
    for line in ("Content-Length: -1", "Content-Length: two", "Content-Length: 5, 6"):
        with subtests.test(line):
            # The HTTP server itself closes on what is not HTTP; the application never sees it.
            assert send_raw(app.origin, _head(bearer, line) + body).status_code == 400
    with subtests.test("both a length and chunks"):
        lines = ("Content-Length: 5", "Transfer-Encoding: chunked")
        answer = send_raw(app.origin, _head(bearer, *lines) + b"5\r\nhello\r\n0\r\n\r\n")
        assert answer.status_code == 400
    expect_nothing_happened(openai)


OTHER_TYPES = [
    *("", ";", "application", "text/plain", "text/html", "application/xml", "application/jsonp"),
    *("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "image/png"),
    *("application/octet-stream", "application/" + "j" * 20_000, "text/plain; " + "y" * 20_000),
    *("text/plain; charset=rot13", "text/plain; x*=rot13''%41", "text/plain; x*=nothing''%41"),
]


def test_another_content_type_is_415(
    api: Api, openai: OpenAIEmulator, subtests: pytest.Subtests
) -> None:
    for content_type in OTHER_TYPES:
        with subtests.test(content_type[:40]):
            answer = api.post(b"{" + GOOD + b"}", content_type)
            expect_error(answer, "unsupported_media_type", says="Content-Type: application/json")
    with subtests.test("no content type"):
        answer = api.http.post(URL, content=b"{" + GOOD + b"}")
        expect_error(answer, "unsupported_media_type", says="Content-Type: application/json")
    expect_nothing_happened(openai)


def test_forms_are_not_read(api: Api, openai: OpenAIEmulator) -> None:
    fields = {"model": NINE[0], "prompt": "a red kite"}
    for answer in (
        api.http.post(URL, data=fields),
        api.http.post(URL, data=fields, files={"image": b"x"}),
    ):
        expect_error(answer, "unsupported_media_type")
    expect_nothing_happened(openai)


JSON_TYPES = [
    *(JSON, "Application/JSON", f"{JSON}; charset=utf-8", f"{JSON};charset=UTF-8"),
    *(f"{JSON}; charset=rot13", f"{JSON}; charset=undefined", f"{JSON}; charset=\xe9"),
    *(f"{JSON}; charset", f"{JSON}; charset=utf-16", f"{JSON}; x=" + "y" * 20_000),
]


def test_the_body_is_utf8_whatever_the_charset_says(
    api: Api, openai: OpenAIEmulator, subtests: pytest.Subtests
) -> None:
    for content_type in JSON_TYPES:
        with subtests.test(content_type[:40]):
            answer = api.http.post(
                URL + "?x=%41%ff",
                content='{"prompt": "caf\xe9", "model": "openai/gpt-image-1", "n": 0}'.encode(),
                headers={"content-type": content_type.encode("latin-1")},
            )
            expect_error(answer, BAD, param="n")
    expect_nothing_happened(openai)


HEADERS: list[tuple[str, list[tuple[str, str]]]] = [
    ("a long value", [("X-Long", "x" * 60_000)]),
    ("a thousand headers", [(f"X-{number}", "x") for number in range(1000)]),
    ("one name a thousand times", [("X-Same", "x")] * 1000),
    ("latin-1", [("X-Name", "caf\xe9 \xff")]),
    ("a long Accept", [("Accept", "application/" + "x" * 20_000)]),
    ("a thousand in Accept", [("Accept", ",".join(["text/html"] * 1000))]),
    ("rubbish in Accept", [("Accept", ";;,,/;q=;=,*/*/*;q=nan")]),
    ("HTML only", [("Accept", "text/html")]),
    ("a bad range in Accept", [("Accept", "application/json; x*=rot13''%41")]),
    ("an odd Accept-Language", [("Accept-Language", "x" * 5000)]),
    ("an odd Host", [("Host", "evil.example:99999/\\")]),
    ("cookies", [("Cookie", "=;" * 5000)]),
    ("a forged request id", [("X-Request-Id", "req_" + "0" * 24)]),
    ("a method override", [("X-HTTP-Method-Override", "GET")]),
    ("an expectation", [("Expect", "200-maybe")]),
    ("a range", [("Range", "bytes=0-")]),
    ("forwarded", [("X-Forwarded-For", "' OR 1=1 --"), ("X-Forwarded-Proto", "gopher")]),
]


def test_odd_headers_neither_break_nor_change_the_answer(
    api: Api, openai: OpenAIEmulator, subtests: pytest.Subtests
) -> None:
    for name, headers in HEADERS:
        with subtests.test(name):
            encoded = [(key.encode(), value.encode("latin-1")) for key, value in headers]
            answer = api.http.post(
                URL,
                content=b"{" + GOOD + b', "n": 0}',
                headers=[(b"Content-Type", JSON.encode()), *encoded],
            )
            assert answer.status_code == 400, answer.text[:300]
            error = expect_error(answer, BAD, param=answer.json()["error"]["param"])
            assert error["param"] == "n" or "Accept" in error["message"]
            assert error["request_id"] != "req_" + "0" * 24
            expect_nothing_happened(openai)


def test_an_idempotency_key_that_is_none_is_400(
    api: Api, openai: OpenAIEmulator, subtests: pytest.Subtests
) -> None:
    for value in ("", "x" * 256, "caf\xe9", "tab\tin"):
        with subtests.test(ascii(value)[:40]):
            answer = api.http.post(
                URL,
                content=b"{" + GOOD + b"}",
                headers={"content-type": JSON, "idempotency-key": value.encode("latin-1")},
            )
            expect_error(answer, BAD, param="Idempotency-Key", says="1 to 255 printable ASCII")
    expect_nothing_happened(openai)


ENDPOINTS = {
    "images/generations": {"POST"},
    "images/edits": {"POST"},
    "models": {"GET", "HEAD"},
    "models/openai/gpt-image-1": {"GET", "HEAD"},
    "credits": {"GET", "HEAD"},
    "generation": {"GET", "HEAD"},
}


def test_a_wrong_method_is_405_and_names_the_right_ones(
    api: Api, openai: OpenAIEmulator, subtests: pytest.Subtests
) -> None:
    methods = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"}
    for path, allowed in ENDPOINTS.items():
        for method in sorted(methods - allowed):
            with subtests.test(f"{method} {path}"):
                answer = api.http.request(method, path)
                expect_error(answer, "method_not_allowed", says=(method, sorted(allowed)[0]))
                assert set(answer.headers["allow"].split(", ")) == allowed
    with subtests.test("HEAD where only POST is allowed"):
        answer = api.http.head("images/generations")
        assert (answer.status_code, answer.content) == (405, b"")
    expect_nothing_happened(openai)


def test_an_unknown_url_under_v1_is_a_json_404(
    app: AppServer, live_key: NewKey, openai: OpenAIEmulator, subtests: pytest.Subtests
) -> None:
    paths = [
        *("/v1", "/v1/", "/v1/nothing", "/v1/images", "/v1/images/", "/v1/images/generations/"),
        *("/v1/models/", "/v1//models", "/v1/credits/", "/v1/generation/", "/v1/../v1/x"),
        *(
            "/v1/chat/completions",
            "/v1/%2e%2e/health",
            "/v1/%00",
            "/v1/%ff%fe",
            "/v1/" + "x" * 5000,
        ),
        "/v1/<script>alert(1)</script>",
    ]
    with httpx.Client(base_url=app.origin) as client:
        for path in paths:
            for method in ("GET", "POST", "DELETE"):
                for headers in ({}, {"Authorization": f"Bearer {live_key.secret}"}):
                    with subtests.test(f"{method} {path[:40]} {bool(headers)}"):
                        answer = client.request(method, path, headers=headers)
                        error = expect_error(answer, "not_found", says=method)
                        assert len(error["message"]) < 250
    expect_nothing_happened(openai)


def test_what_is_no_http_never_reaches_the_application(
    api: Api, app: AppServer, openai: OpenAIEmulator, subtests: pytest.Subtests
) -> None:
    for name, request in (
        ("no HTTP", b"hello\r\n\r\n"),
        ("another version", b"GET /v1/models HTTP/9.9\r\nHost: x\r\n\r\n"),
        ("NUL in a header", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: a\0b\r\n\r\n"),
        ("a header without a name", b"GET /v1/models HTTP/1.1\r\n: x\r\n\r\n"),
    ):
        with subtests.test(name):
            answer = send_raw(app.origin, request)
            assert answer.status_code == 400
            assert "<html" not in answer.text.lower()
    assert api.get("models").status_code == 200
    expect_nothing_happened(openai)

"""Every message of an error, read aloud: what is wrong, where, and what would be right.

A message in `images/api` that is in no row here is found by the last test.
"""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from accounts import keys
from accounts.keys import NewKey
from accounts.models import ApiKey, Organization
from billing.models import BillingAccount, Period
from billing.spending import budgets
from images.policies import bad_keys
from tests.api.checks import connect_raw, read_answer
from tests.api.test_edits import GOOD, Part, edit, file, mask, part, photo, post
from tests.emulators.base import Behaviour, make_picture
from tests.emulators.openai import OpenAIEmulator
from tests.factories import KeyFactory
from tests.server import Api, AppServer

GPT, DALLE, RECRAFT = "openai/gpt-image-1", "openai/dall-e-3", "fal/recraft-v3"
ABSENT = object()
SIZES = "auto, 1024x1024, 1536x1024, 1024x1536, 1792x1024, 1024x1792"
AN_ID = "An id is req_ and 24 hexadecimal digits."
NO_REQUEST = f"in your organization. {AN_ID}"
UNKNOWN = "is not a field of this endpoint."
COMMON = (
    "model, prompt, n, size, quality, response_format, output_format, output_compression, "
    "background, user, stream, partial_images, routing, strict, max_cost, dry_run, tags"
)
REQ = "req_" + "0" * 24


@dataclass(frozen=True, slots=True)
class Row:
    """A generation's fields, and the param and the message they get."""

    message: str
    param: str | None
    fields: dict[str, Any] = field(default_factory=dict)


def row(message: str, param: str | None = "", **fields: Any) -> Row:
    """Return a row; the message begins with its param unless another is named."""
    return Row(message, message.split()[0] if param == "" else param, fields)


GENERATIONS = [
    row("model is required.", model=ABSENT),
    row("prompt is required.", prompt=None),
    row("prompt must be a string.", prompt=5),
    row("prompt must have 1 to 4000 characters; it has 0.", prompt=""),
    row("prompt must not be blank.", prompt="  "),
    row("prompt must be text that can be stored; character 2 is U+0000.", prompt="a\0"),
    row("The prompt has 1001 characters; fal/recraft-v3 takes at most 1000.", "prompt",
        model=RECRAFT, prompt="x" * 1001),
    row("model must be a model id, a list of ids, or auto.", model=5),
    row("model must be a list of 1 to 8 strings.", model=[]),
    row("model item 2 must be a string.", model=[GPT, None]),
    row("model item 1 must have 1 to 100 characters; it has 101.", model=["x" * 101]),
    row("model must not contain duplicates: 'openai/gpt-image-1'.", model=[GPT, GPT]),
    row("model auto cannot be part of a list; "
        "put the models to choose from into routing.candidates.",
        model=["auto", GPT]),
    row("The model 'gpt-image-2' does not exist. Did you mean openai/gpt-image-2? "
        "GET /v1/models lists the models.", "model", model="gpt-image-2"),
    row("The model 'Flux-1.1-Pro' does not exist. Did you mean fal/flux-1.1-pro? "
        "GET /v1/models lists the models.", "model", model="Flux-1.1-Pro"),
    row("The model 'flux' does not exist. Did you mean fal/flux-1.1-pro or fal/flux-1.1-pro-ultra? "
        "GET /v1/models lists the models.", "model", model="flux"),
    row("The model 'gpt-4o' does not exist. GET /v1/models lists the models.", "model",
        model="gpt-4o"),
    row("n must be an integer from 1 to 8.", n="2"),
    row("n must be from 1 to 8.", n=9),
    row("size must be a string.", size=1024),
    row(f"openai/gpt-image-1 does not support 512x512. Allowed: {SIZES}.", "size", size="512x512"),
    row("openai/gpt-image-1 does not support big. A size is auto or WIDTHxHEIGHT. "
        f"Allowed: {SIZES}.",
        "size", size="big"),
    row("quality must be one of: auto, standard, hd, low, medium, high.", quality="best"),
    row("A transparent background needs output_format png or webp.", "background",
        background="transparent", output_format="jpeg"),
    row("stream must be true or false.", stream="true"),
    row("partial_images needs stream: true.", partial_images=1),
    row("max_cost must be an amount in USD, such as 0.25.", max_cost="1"),
    row("max_cost must be above 0 and at most 1000000 USD.", max_cost=0),
    row("tags must be a list of 0 to 8 strings.", tags="launch"),
    row("routing must be an object.", model="auto", routing=[]),
    row("routing is only for a list of models or auto; model is a single id.",
        routing={"on_refusal": "stop"}),
    row("routing with strategy or candidates is only for model auto; "
        "a list is tried in its own order.",
        model=[GPT], routing={"strategy": "fastest"}),
    row("routing.strategy must be one of: cheapest, fastest, balanced.", model="auto",
        routing={"strategy": "dearest"}),
    row(f"promt {UNKNOWN} Did you mean prompt?", promt="a kite"),
    row(f"N {UNKNOWN} Did you mean n?", N=1),
    row(f"negative_prompt {UNKNOWN} Its fields are {COMMON}, style, moderation, seed.",
        negative_prompt="rain"),
    row(f"input_fidelity {UNKNOWN} It belongs to POST /v1/images/edits.", input_fidelity="high"),
    row(f"image {UNKNOWN} It belongs to POST /v1/images/edits.", image="https://example.com/a.png"),
    row(f"routing.seed {UNKNOWN} Its fields are strategy, candidates, on_refusal.", model="auto",
        routing={"seed": 1}),
    row(f"routing.candidate {UNKNOWN} Did you mean candidates?", model="auto",
        routing={"candidate": [GPT]}),
    row("strict: openai/gpt-image-1 does not support seed.", "seed", strict=True, seed=7),
    row("strict: openai/dall-e-3 has no partial images.", "partial_images", model=DALLE,
        strict=True, stream=True, partial_images=2),
    row("No model fits. The prompt has 1001 characters; fal/recraft-v3 takes at most 1000.",
        "prompt", model=[RECRAFT], prompt="x" * 1001),
    row("No model fits. 1 image of openai/gpt-image-1 costs 0.19 USD, more than max_cost 0.01. "
        "1 image of openai/dall-e-3 costs 0.04 USD, more than max_cost 0.01.", "max_cost",
        model=[GPT, DALLE], max_cost=0.01),
]  # fmt: skip

BODIES = [
    (b"", "model is required, and so is prompt: the body is empty."),
    (b"{}", "model is required, and so is prompt: the body is empty."),
    (b"[]", "The body must be a JSON object."),
    (b'{"a": 1,}', "The body is not valid JSON: Expecting property name enclosed in double quotes: "
                   "line 1 column 9 (char 8)."),
    (b'{"a": "\xe9"}', "The body is not valid UTF-8 at byte 7; it must be JSON in UTF-8."),
    (b"\xef\xbb\xbf{}",
     "The body is not valid JSON: it starts with a byte order mark; remove it."),
    (b'{"a": 1, "a": 2}', "The body is not valid JSON: the key 'a' appears twice."),
    (b'{"a": NaN}', "The body is not valid JSON: NaN is not a JSON number."),
    (b'{"a": ' + b"1" * 4001 + b"}",
     "The body is not valid JSON: a number has more than 4000 digits."),
    (b"[" * 30, "The body is not valid JSON: Expecting value: line 1 column 31 (char 30)."),
    (b"[" * 30 + b"]" * 30, "The body is nested too deeply; at most 20 levels are allowed."),
    (b"x" * 1_048_577, "The body can have at most 1048576 bytes."),
]  # fmt: skip

ONE = file("image", photo())
CUT = make_picture(96, 64, "jpeg")[:-40]
DAMAGED = make_picture(8, 8, "png").replace(b"IHDR\0\0", b"IHDR\0\1")
EDITS: list[tuple[str, list[Part], dict[str, Any]]] = [
    ("image is required: 1 to 16 files.", [file("mask", mask())], {}),
    ("image must be 1 to 16 files; you sent more.", [ONE] * 17, {}),
    ("image must be a PNG, JPEG or WebP; file 2 is none of them.", [ONE, file("image", b"x")], {}),
    ("image file 1 is empty.", [file("image", b"")], {}),
    (f"image file 1 is a JPEG that breaks off at byte {len(CUT)}.", [file("image", CUT)], {}),
    ("image file 2 is a PNG that is damaged at byte 8.", [ONE, file("image", DAMAGED)], {}),
    ("mask file 1 is empty.", [ONE, file("mask", b"")], {}),
    ("image file 1 has too many pixels: 40.1 of 40 megapixels (20001x2000).",
     [file("image", make_picture(20_001, 2000, "png"))], {}),
    ("image must be a file: give its part a filename, as in Content-Disposition: form-data; "
     'name="image"; filename="image.png".', [], {"image": "x"}),
    ("image can have at most 20971520 bytes.",
     [file("image", make_picture(8, 8, "png", pad=20_971_520))], {}),
    ("mask must be a PNG with an alpha channel.", [ONE, file("mask", photo())], {}),
    ("mask must have the first image's size, 96x64; it has 64x96.",
     [ONE, file("mask", mask(64, 96))], {}),
    ("mask appears twice; send it once.", [ONE, file("mask", mask()), file("mask", mask())], {}),
    ("n appears twice; send it once.", [ONE], {"n": ["1", "1"]}),
    ("n must be text, not a file.", [ONE, file("n", b"1")], {}),
    (f"images {UNKNOWN} Did you mean image?", [file("images", photo())], {}),
    *((f"{name} {UNKNOWN} It belongs to POST /v1/images/generations.", [ONE], {name: "1"})
      for name in ("seed", "style", "moderation")),
    (f"steps {UNKNOWN} Its fields are {COMMON}, input_fidelity, image, mask.", [ONE],
     {"steps": "1"}),
    ("routing is not valid JSON: Expecting value: line 1 column 1 (char 0).", [ONE],
     {"model": "auto", "routing": "fastest"}),
    ("routing appears twice, as JSON and with brackets; send only one.", [ONE],
     {"model": "auto", "routing": "{}", "routing[on_refusal]": "stop"}),
    ("openai/dall-e-3 cannot edit images. These can: openai/gpt-image-1, openai/gpt-image-2, "
     "openai/gpt-image-2.5-sunburst, xai/grok-imagine-image, xai/grok-imagine-image-2.0.", [ONE],
     {"model": DALLE}),
    ("xai/grok-imagine-image takes one image as input; you sent 2.", [ONE, ONE],
     {"model": "xai/grok-imagine-image"}),
    ("xai/grok-imagine-image does not support masks.", [ONE, file("mask", mask())],
     {"model": "xai/grok-imagine-image"}),
]  # fmt: skip

FORM = "multipart/form-data"
FORMS = [
    (GOOD, f"{FORM}; boundary=B", "The body ends before its last boundary, --B--."),
    (GOOD, FORM, "The body is not valid multipart/form-data: Invalid boundary in multipart: None."),
    (GOOD + part("user", b"\xff") + b"--B--", f"{FORM}; boundary=B",
     "user is not valid UTF-8 at byte 0."),
    (part("x", b"") * 2000 + b"--B--", f"{FORM}; boundary=B",
     "A request can have at most 1000 parameters or parts."),
    (part("prompt", b"x" * 3_000_000) + b"--B--", f"{FORM}; boundary=B",
     "The text fields can have at most 2621440 bytes in total. A part without a filename is text: "
     "give one to every file."),
    (b"{}", "application/json", "Unsupported media type 'application/json'. Send the body as a "
     "form with files: Content-Type: multipart/form-data."),
]  # fmt: skip

PATHS = [
    ("GET", "usage?x=1",
     "x is not a parameter; the parameters are start, end, group_by, limit, after."),
    ("GET", "usage?start=1.1.2026", "start must be a date, YYYY-MM-DD."),
    ("GET", "usage?end=1999-12-31", "end must be a date, YYYY-MM-DD, in 2000 or later."),
    ("GET", "usage?start=2026-02-02&end=2026-01-01", "start must not be after end."),
    ("GET", "usage?start=2020-01-01", "start and end can be at most 400 days apart."),
    ("GET", "usage?group_by=week",
     "group_by must be one or more of day, model, key, tag, with commas."),
    ("GET", "usage?limit=0", "limit must be an integer from 1 to 1000."),
    ("GET", "usage?after=x",
     "after must be next_after from the previous page, with the same group_by."),
    ("GET", "generation", "id is required: GET /v1/generation?id=req_…"),
    ("GET", "generation?id=42", f"There is no request '42' {NO_REQUEST}"),
    ("GET", f"generation?id={REQ}", f"There is no request '{REQ}' in your organization."),
    ("DELETE", f"images/{REQ}", f"There is no request '{REQ}' in your organization."),
    *(("DELETE", f"images/{one}", f"There is no DELETE /v1/images/{one}. {AN_ID} It can be "
       "followed by / and the index of an image.") for one in ("foo", REQ[:-1], f"{REQ}/x")),
    ("POST", "images/generation", "There is no POST /v1/images/generation. "
     "Did you mean /v1/images/generations?"),
    ("POST", "images/edit", "There is no POST /v1/images/edit. Did you mean /v1/images/edits?"),
    ("GET", "model", "There is no GET /v1/model. Did you mean /v1/models?"),
    ("GET", "images/generation", "There is no GET /v1/images/generation. "
     "POST /v1/images/generations generates images; GET /v1/models lists the models."),
    ("DELETE", "models", "DELETE is not allowed here. Allowed: GET, HEAD."),
    ("GET", "nothing", "There is no GET /v1/nothing. "
     "POST /v1/images/generations generates images; GET /v1/models lists the models."),
    ("POST", "images/generations/", "There is no POST /v1/images/generations/. "
     "Did you mean /v1/images/generations?"),
    ("POST", "v1/images/generations", "There is no POST /v1/v1/images/generations. "
     "Did you mean /v1/images/generations?"),
    ("POST", "../images/generations", "There is no POST /images/generations. The base URL of the "
     "API must end in /v1, as in POST /v1/images/generations."),
    ("GET", "../models/openai/gpt-image-1", "There is no GET /models/openai/gpt-image-1. The base "
     "URL of the API must end in /v1, as in GET /v1/models/openai/gpt-image-1."),
]  # fmt: skip


def told(answer: httpx.Response) -> tuple[str | None, str]:
    """Return the param and the message of an error."""
    error = answer.json()["error"]
    assert answer.headers["content-type"] == "application/json"
    return error["param"], error["message"]


def said(answer: httpx.Response) -> str:
    """Return the message of an error."""
    return told(answer)[1]


def test_of_a_generation(api: Api, openai: OpenAIEmulator, subtests: pytest.Subtests) -> None:
    for one in GENERATIONS:
        with subtests.test(one.message):
            fields = {"model": GPT, "prompt": "a kite"} | one.fields
            body = {name: value for name, value in fields.items() if value is not ABSENT}
            answer = api.http.post("images/generations", json=body)
            assert told(answer) == (one.param, one.message)
    for content, message in BODIES:
        with subtests.test(message):
            assert said(api.post(content)) == message
    with subtests.test("a header"):
        answer = api.draw(headers={"Idempotency-Key": "x" * 256})
        assert said(answer) == "Idempotency-Key must be 1 to 255 printable ASCII characters."
    with subtests.test("a type"):
        assert said(api.post(b"x", "text/plain")) == (
            "Unsupported media type 'text/plain'. "
            "Send the body as JSON: Content-Type: application/json."
        )
    assert openai.calls == []


def test_of_an_edit(api: Api, openai: OpenAIEmulator, subtests: pytest.Subtests) -> None:
    for message, files, fields in EDITS:
        with subtests.test(message):
            answer = edit(api, *files, **fields) if files else edit(api, ONE, **fields)
            assert said(answer) == message
    for content, kind, message in FORMS:
        with subtests.test(message):
            assert said(post(api, content, kind)) == message
    assert openai.calls == []


def test_of_the_others(api: Api, subtests: pytest.Subtests) -> None:
    for method, path, message in PATHS:
        with subtests.test(f"{method} {path}"):
            assert said(api.http.request(method, path)) == message
    with subtests.test("a picture"):
        drawn = api.draw().json()["id"]
        answer = api.http.delete(f"images/{drawn}/3")
        assert said(answer) == (f"The request {drawn} has no image 3; it has 0.")


def test_of_keys_and_money(
    api: Api,
    app: AppServer,
    acme: Organization,
    live_key: NewKey,
    connect: Callable[[str | None], Api],
    openai: OpenAIEmulator,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send = "Send your API key as Authorization: Bearer ghub_sk_live_…"
    assert said(connect(None).get("models")) == send
    basic = httpx.get(f"{app.origin}/v1/models", headers={"Authorization": "Basic x"})
    assert said(basic) == "The Authorization header must be Bearer and a key: Bearer ghub_sk_live_…"
    assert said(connect("sk-proj-x").get("models")) == (
        "This API key is not valid. Keys start with ghub_sk_live_ or ghub_sk_test_ and are 45 "
        "characters long."
    )
    some = connect(KeyFactory(organization=acme, allowed_models=[DALLE, RECRAFT]).secret)
    assert said(some.draw()) == (f"This API key cannot use {GPT}. It can use {DALLE}, {RECRAFT}.")
    far = connect(KeyFactory(organization=acme, allowed_ips=["192.0.2.0/24"]).secret)
    assert said(far.draw()) == (
        "This API key cannot be used from 127.0.0.1: its allowed IP ranges are 192.0.2.0/24."
    )
    spent = KeyFactory(organization=acme)
    budgets.set_budget(spent.row, 1, Period.DAY)
    assert said(connect(spent.secret).draw()) == (
        "The key's budget for this day is used up. GET /v1/credits shows what is left."
    )
    rows = ApiKey.objects.filter(pk=spent.row.pk)
    rows.update(paused_at=timezone.now(), paused_reason="It spent too much.")
    assert said(connect(spent.secret).draw()) == (
        "This API key is paused. It spent too much. An owner can resume it on the keys page of the "
        "dashboard."
    )
    keys.revoke(spent.row)
    assert said(connect(spent.secret).draw()) == ("This API key was revoked. Use another one.")
    old = KeyFactory(organization=acme)
    ApiKey.objects.filter(pk=old.row.pk).update(expires_at=timezone.now())
    assert said(connect(old.secret).draw()) == "This API key has expired. Use another one."
    acme.rate_limit_rpm = 1
    acme.save()
    assert api.draw(headers={"Idempotency-Key": "a"}).status_code == 200
    assert re.fullmatch(
        r"This API key is limited to 1 requests per minute\. Wait \d+ s\.", said(api.draw())
    )
    acme.rate_limit_rpm = 100
    acme.save()
    assert said(api.draw(prompt="another", headers={"Idempotency-Key": "a"})) == (
        "This Idempotency-Key was used for another request body. Use a new one."
    )
    openai.always(Behaviour(error="server_error"))
    assert said(api.draw(model=[GPT, RECRAFT], prompt="x" * 1001)) == (
        f"None of the models delivered: {GPT}: provider_unavailable. "
        "The prompt has 1001 characters; fal/recraft-v3 takes at most 1000."
    )
    BillingAccount.objects.update(balance_micro=0, credit_limit_micro=0)
    assert said(api.draw()) == (
        "The organization's balance does not cover this request. Recharge it on its billing page: "
        f"{settings.PUBLIC_URL}/dashboard/billing"
    )
    monkeypatch.setattr(bad_keys, "PER_MINUTE", 1)
    assert re.fullmatch(
        r"Too many invalid API keys came from 127\.0\.0\.1\. Send a valid key, "
        r"or wait \d+ s\.",
        said(connect("sk-proj-x").get("models")),
    )


def test_of_bodies(app: AppServer) -> None:
    with connect_raw(app.origin) as connection:
        head = "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Encoding: br\r\n"
        connection.sendall(f"{head}Content-Length: 1\r\n\r\n".encode())
        assert said(read_answer(connection)) == (
            "Content-Encoding 'br' is not supported. Send the body as it is, or compressed once "
            "with gzip."
        )


# --- None is missing ----------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]
RAISED = {"invalid", "_away", "ApiError", "ValidationError", "ParseError", "ValueError"}
# Each in another test, which makes what it takes: a database that is away, a provider that fails.
ELSEWHERE = (
    "Something went wrong on our side",
    "Our database is unavailable",
    "The organization is suspended",
    "The request this one repeats is still running",
    "This repeats a request whose images have since been deleted",
    "The request is still running; its images",
    "The model .* has no price yet",
    "Our database did not respond",
    "Image storage is unavailable",
    "An image of the request this one repeats is still being stored",
    "The images were generated but could not be stored",
    "The images arrived too late to be delivered",
    "The request could not be read",
)


def template(node: ast.expr) -> str:
    """Return a pattern of the text that an expression makes; what is filled in may be anything."""
    match node:
        case ast.Constant(value=str()):
            return re.escape(str(node.value))
        case ast.JoinedStr():
            return "".join(template(one) for one in node.values)
        case _:
            return ".*"


def templates() -> list[str]:
    """Return a pattern of each message that `images/api` and the kinds of fields write."""
    found = []
    images = ROOT / "images"
    for path in (*(images / "api").glob("*.py"), images / "catalog" / "fields.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in RAISED:
                found += [template(one) for one in node.args[-3:]]
    # Codes and names of fields are words without a space.
    return sorted({one for one in found if " " in one.replace(".*", "")})


def test_every_message_is_read_here() -> None:
    here = Path(__file__).read_text()
    texts = [one.message for one in GENERATIONS] + [text for _, text in BODIES]
    texts += [text for text, _, _ in EDITS] + [text for *_, text in FORMS + PATHS]
    texts += [
        str(node.value)
        for node in ast.walk(ast.parse(here))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ] + [template(node).replace(".*", "?") for node in ast.walk(ast.parse(here))
         if isinstance(node, ast.JoinedStr)]  # fmt: skip
    found = templates()
    assert len(found) > 50
    missing = [
        one
        for one in found
        if not any(re.search(one, text.replace("\\", "")) for text in texts)
        and not any(re.search(words, one.replace("\\", "")) for words in ELSEWHERE)
    ]
    assert missing == []

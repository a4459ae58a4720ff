"""POST /v1/images/edits: forms with files, from SDKs and by hand, and what is left of them."""

import base64
import io
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import openai as sdk
import pytest
from PIL import Image as Pillow
from pytest_django.fixtures import Settings

from accounts.keys import NewKey
from images.api import uploads
from images.models import Generation, Image
from images.pixels.pictures import Upload
from tests.api.checks import (
    connect_raw,
    expect_books_agree,
    expect_error,
    expect_nothing_charged,
    expect_nothing_happened,
    read_answer,
)
from tests.api.test_streaming import events
from tests.emulators.base import Behaviour, make_bomb, make_picture
from tests.emulators.base import Upload as Sent
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.xai import XaiEmulator
from tests.images.test_shown import CASES as KINDS
from tests.images.test_shown import HEIGHT, WIDTH, expect_corners, with_exif
from tests.server import Api, AppServer

GPT, GPT_2, GROK = "openai/gpt-image-1", "openai/gpt-image-2", "xai/grok-imagine-image"
DALLE, FLUX = "openai/dall-e-3", "fal/flux-1.1-pro"
BAD = "invalid_request_error"
KEY = {"Idempotency-Key": "order-4711"}
PRICE = 190_000
OCTETS = "application/octet-stream"
# Long: a test that passes does not wait.
WAIT_SECONDS = 60

type Part = tuple[str, tuple[str | None, bytes, str] | tuple[None, str]]


def photo(width: int = 96, height: int = 64, fmt: str = "png", colour: str = "red") -> bytes:
    """Return a picture of one colour."""
    out = io.BytesIO()
    Pillow.new("RGB", (width, height), colour).save(out, fmt)
    return out.getvalue()


def mask(width: int = 96, height: int = 64) -> bytes:
    """Return a mask whose left half is to be redrawn."""
    image = Pillow.new("RGBA", (width, height), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, width // 2, height))
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


def file(name: str, data: bytes, filename: str = "a.png", kind: str = "image/png") -> Part:
    """Return a file part."""
    return name, (filename, data, kind)


def texts(**fields: Any) -> list[Part]:
    """Return text parts; a list is repeated, None is left out."""
    found: list[Part] = []
    for name, value in ({"model": GPT, "prompt": "with a hat"} | fields).items():
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                found.append((name, (None, str(one))))
    return found


def edit(
    api: Api, *files: Part, headers: dict[str, str] | None = None, **fields: Any
) -> httpx.Response:
    """Return the answer to an edit of one picture, or of the files given."""
    parts = [*texts(**fields), *(files or [file("image", photo())])]
    return api.http.post("images/edits", files=parts, headers=headers)


def of(emulator: OpenAIEmulator, name: str) -> list[bytes]:
    """Return the bytes of the files that the last upstream call had in a field."""
    form = emulator.calls[-1].form
    assert form is not None
    found = form.get(name, [])
    assert isinstance(found, list)
    assert all(isinstance(one, Sent) for one in found)
    return [one.data for one in found]


@pytest.fixture(autouse=True)
def folder(settings: Settings, tmp_path: Path) -> Iterator[Path]:
    """Where uploads are kept; when a test is over nothing of them is left there, or still open."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    settings.FILE_UPLOAD_TEMP_DIR = str(folder)
    yield folder
    expect_no_uploads(folder)


def still_open(folder: Path) -> list[str]:
    """Return the unnamed files of the folder that this process still holds open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:
            continue
        if target.startswith(str(folder)):
            found.append(target)
    return found


def expect_no_uploads(folder: Path) -> None:
    """Check that neither a name nor an open file is left of any upload."""
    end = time.monotonic() + WAIT_SECONDS
    while still_open(folder) and time.monotonic() < end:
        time.sleep(0.02)
    assert still_open(folder) == []
    assert list(folder.iterdir()) == []


@pytest.fixture
def python(app: AppServer, live_key: NewKey) -> Iterator[sdk.OpenAI]:
    """The official Python SDK with all its defaults."""
    with sdk.OpenAI(api_key=live_key.secret, base_url=f"{app.origin}/v1") as client:
        yield client


# --- What works -------------------------------------------------------------------------------


def test_the_python_sdk_edits_one_file(python: sdk.OpenAI, openai: OpenAIEmulator) -> None:
    first = photo()
    answer = python.images.edit(model=GPT, prompt="with a hat", image=("a.png", first), n=2)

    assert answer.data is not None
    assert [(row.url or "").rpartition("/")[2] for row in answer.data] == ["0.png", "1.png"]
    (call,) = openai.calls
    assert call.path == "/v1/images/edits"
    assert "content-length" in call.headers
    assert of(openai, "image") == [first]
    assert call.form is not None
    assert call.form["n"] == "2"
    assert call.form.keys() == {"model", "prompt", "n", "size", "image"}
    expect_books_agree(images=2, cost_micro=2 * PRICE)


def test_the_python_sdk_edits_files_with_a_mask(python: sdk.OpenAI, openai: OpenAIEmulator) -> None:
    pictures = [photo(), photo(50, 70, "jpeg"), photo(30, 30, "webp")]
    hole = mask()
    answer = python.images.edit(
        model=GPT,
        prompt="with a hat",
        image=[io.BytesIO(one) for one in pictures],
        mask=("mask.png", hole),
        size="1024x1536",
        quality="high",
        background="transparent",
        output_format="webp",
        output_compression=50,
        input_fidelity="high",
        user="u1",
        extra_body={"tags": ["a", "b"], "strict": True},
    )

    assert answer.data is not None
    assert (answer.data[0].url or "").endswith("0.webp")
    assert of(openai, "image[]") == pictures
    assert of(openai, "mask") == [hole]
    sent = openai.calls[0].form or {}
    assert sent["input_fidelity"] == "high"
    assert sent["output_compression"] == "50"
    assert sent["user"] != "u1"
    row = Generation.objects.get()
    assert row.tags == ["a", "b"]
    told = row.parameters
    assert (told["edit"], told["images"], told["mask"]) == (True, 3, True)
    assert told["input_fidelity"] == "high"


def test_the_python_sdk_streams_an_edit(python: sdk.OpenAI, openai: OpenAIEmulator) -> None:
    stream = python.images.edit(
        model=GPT, prompt="a hat", image=photo(), stream=True, partial_images=2, n=2
    )
    kinds = [event.type for event in stream]

    assert kinds.count("image_edit.partial_image") == 4
    assert kinds.count("image_edit.completed") == 2
    assert (openai.calls[0].form or {})["stream"] == "true"
    expect_books_agree(images=2, cost_micro=2 * PRICE)


def test_a_stream_of_a_model_without_early_views(api: Api, xai: XaiEmulator) -> None:
    answer = edit(api, model=GROK, stream="true", n=2, headers=KEY)
    assert [kind for kind, _ in events(answer.text)] == ["image_edit.completed"] * 2

    repeated = edit(api, model=GROK, stream="true", n=2, headers=KEY)
    assert [kind for kind, _ in events(repeated.text)] == ["image_edit.completed"] * 2
    assert len(xai.calls) == 1
    expect_books_agree(images=2, cost_micro=50_000)


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_what_a_file_is_called_and_says_of_itself_does_not_matter(
    api: Api, openai: OpenAIEmulator, name: str
) -> None:
    files = [
        file(name, photo(fmt="jpeg"), "../../etc/passwd", OCTETS),
        file(name, photo(fmt="webp"), "..", "text/html"),
        file(name, photo(), "caf\xe9.exe", ""),
    ]
    answer = edit(api, *files)

    assert answer.status_code == 200, answer.text
    sent = (openai.calls[0].form or {})["image[]"]
    assert isinstance(sent, list)
    assert [(one.filename, one.content_type) for one in sent] == [
        ("0.jpg", "image/jpeg"),
        ("1.webp", "image/webp"),
        ("2.png", "image/png"),
    ]


def test_the_order_of_both_names_is_kept(api: Api, openai: OpenAIEmulator) -> None:
    pictures = [photo(colour=colour) for colour in ("red", "green", "blue")]
    names = ["image[]", "image", "image[]"]
    answer = edit(api, *(file(*one) for one in zip(names, pictures, strict=True)))

    assert answer.status_code == 200, answer.text
    assert of(openai, "image[]") == pictures


def test_a_large_picture_arrives_as_it_was_sent(api: Api, openai: OpenAIEmulator) -> None:
    big = make_picture(100, 100, "png", pad=7_000_000)
    assert edit(api, file("image", big), file("image", big)).status_code == 200
    assert of(openai, "image[]") == [big, big]


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((640, 400), "1536x1024"), ((400, 640), "1024x1536"), ((300, 310), "1024x1024")],
)
def test_without_a_size_the_picture_keeps_its_shape(
    api: Api, size: tuple[int, int], drawn: str
) -> None:
    row = edit(api, file("image", photo(*size))).json()["data"][0]
    assert f"{row['width']}x{row['height']}" == drawn


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_that_a_phone_has_turned_is_upright(
    api: Api, openai: OpenAIEmulator, orientation: int
) -> None:
    """Also for who draws: what is sent on has no orientation, and the mask is as large."""
    case = next(one for one in KINDS if one.name == "jpeg RGB")
    answer = edit(api, file("image", case.file(orientation)), file("mask", mask(WIDTH, HEIGHT)))

    row = answer.json()["data"][0]
    assert f"{row['width']}x{row['height']}" == (openai.calls[0].form or {})["size"] == "1536x1024"
    (sent,) = of(openai, "image")
    expect_corners(sent, case.colours, near=16)
    turned = edit(api, file("image", case.file(orientation)), file("mask", mask(HEIGHT, WIDTH)))
    expect_error(turned, BAD, param="mask", says=f"{WIDTH}x{HEIGHT}")
    assert len(openai.calls) == 1


@pytest.mark.parametrize("orientation", [6, 8])
def test_an_upright_photo_stays_upright(api: Api, sandbox: Api, orientation: int) -> None:
    out = io.BytesIO()
    Pillow.new("RGB", (640, 400), "red").save(out, "jpeg")
    upright = with_exif(out.getvalue(), orientation)
    for client, model in ((api, GPT), (api, GROK), (sandbox, GPT)):
        row = edit(client, file("image", upright), model=model).json()["data"][0]
        assert row["width"] < row["height"], model


def test_a_mask_with_a_clear_colour_in_its_palette_is_sent_with_an_alpha_channel(
    api: Api, openai: OpenAIEmulator
) -> None:
    clear = next(one for one in KINDS if one.name == "png P, keyed")
    opaque = next(one for one in KINDS if one.name == "png P")
    first = file("image", photo(WIDTH, HEIGHT))
    assert edit(api, first, file("mask", clear.file(1))).status_code == 200
    (sent,) = of(openai, "mask")
    assert Pillow.open(io.BytesIO(sent)).mode == "RGBA"
    expect_corners(sent, clear.colours, near=0)
    answer = edit(api, first, file("mask", opaque.file(1)))
    expect_error(answer, BAD, param="mask", says="alpha channel")


def test_the_same_photo_is_the_same_request_however_it_is_sent_on(
    api: Api, openai: OpenAIEmulator
) -> None:
    photo_ = next(one for one in KINDS if one.name == "jpeg RGB").file(6)
    once, again = (edit(api, file("image", photo_), headers=KEY) for _ in range(2))
    assert again.headers["idempotent-replayed"] == "true"
    assert once.json()["id"] == again.json()["id"]
    assert len(openai.calls) == 1


def test_xai_gets_the_picture_as_a_data_uri(api: Api, xai: XaiEmulator) -> None:
    first = photo(640, 400, "webp")
    answer = edit(api, file("image", first), model=GROK, n=3)

    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 3
    (call,) = xai.calls
    assert call.path == "/v1/images/edits"
    kind, _, data = call.body["image"]["url"].partition(",")
    assert kind == "data:image/webp;base64"
    assert base64.b64decode(data) == first
    # xAI uses the picture's ratio and must not be sent one.
    assert "aspect_ratio" not in call.body
    assert "adjusted" not in answer.json()
    expect_books_agree(images=3, cost_micro=75_000)


def test_an_edit_by_xai_keeps_the_shape_of_its_picture_and_says_so(
    api: Api, xai: XaiEmulator
) -> None:
    answer = edit(api, file("image", photo(400, 640)), model=GROK, size="1360x768")

    assert answer.status_code == 200, answer.text
    assert "aspect_ratio" not in xai.calls[0].body
    (told,) = answer.json()["adjusted"]
    assert (told["param"], told["asked"]) == ("size", "1360x768")
    assert told["why"] == f"{GROK} keeps the shape of the input image."

    strict = edit(api, model=GROK, size="1360x768", strict="true")
    expect_error(strict, BAD, param="size", says="keeps the shape")
    assert len(xai.calls) == 1


def test_an_edit_starts_from_no_more_pictures_than_its_price_covers(
    api: Api, openai: OpenAIEmulator
) -> None:
    two = [file("image[]", photo(colour=colour)) for colour in ("red", "green")]

    for quality in (None, "auto", "high", "hd"):
        answer = edit(api, *two, model=GPT_2, quality=quality)
        expect_error(answer, BAD, param="image", says="standard 7, hd 1, low 9")
    expect_nothing_happened(openai)

    answer = edit(api, *two, model=GPT_2, quality="medium")
    assert answer.status_code == 200, answer.text
    assert len(of(openai, "image[]")) == 2
    answer = edit(api, *two[:1], model=GPT_2)
    assert answer.status_code == 200, answer.text


def test_input_fidelity_is_for_the_models_that_have_it(api: Api, openai: OpenAIEmulator) -> None:
    answer = edit(api, model=GPT_2, input_fidelity="high")
    assert answer.status_code == 200, answer.text
    assert [one["param"] for one in answer.json()["adjusted"]] == ["input_fidelity"]
    assert "input_fidelity" not in (openai.calls[0].form or {})
    assert "adjusted" not in edit(api, model=GPT_2, input_fidelity="low").json()

    strict = edit(api, model=GPT_2, input_fidelity="high", strict="true")
    expect_error(strict, BAD, param="input_fidelity", says="strict")


def test_the_request_can_be_looked_up(api: Api) -> None:
    done = edit(api, file("image", photo()), file("mask", mask()), response_format="b64_json")
    assert done.json()["data"][0]["b64_json"]

    told = api.get("generation", params={"id": done.json()["id"]}).json()["data"]
    asked = {"response_format": "b64_json", "edit": True, "images": 1, "mask": True}
    assert told["parameters"].items() >= asked.items()
    assert (told["status"], told["cost_usd"]) == ("succeeded", "0.19")


def test_models_say_whether_they_edit(api: Api) -> None:
    rows = api.get("models").json()["data"]
    able = {row["id"] for row in rows if row["supports"]["edits"]}
    assert {GPT, GPT_2, GROK} <= able
    assert not {DALLE, FLUX} & able


# --- Which model ------------------------------------------------------------------------------


def test_a_model_that_cannot_edit_is_400_and_names_those_that_can(
    api: Api, openai: OpenAIEmulator
) -> None:
    expect_error(edit(api, model=DALLE), BAD, param="model", says=(DALLE, GPT, GROK))
    two = [file("image", photo()), file("image", photo())]
    expect_error(edit(api, *two, model=GROK), BAD, param="image", says="one image")
    masked = [file("image", photo()), file("mask", mask())]
    expect_error(edit(api, *masked, model=GROK), BAD, param="mask", says="not support masks")
    expect_nothing_happened(openai)


@pytest.mark.parametrize("form", ["repeated", "brackets", "json"])
def test_a_list_skips_who_cannot_and_falls_back(
    api: Api, openai: OpenAIEmulator, xai: XaiEmulator, form: str
) -> None:
    openai.always(Behaviour(error="server_is_overloaded", retry_after=0.01))
    ids = [FLUX, GPT, GROK]
    forms: dict[str, dict[str, Any]] = {
        "repeated": {"model": ids},
        "brackets": {"model": None, "model[]": ids},
        "json": {"model": f'["{FLUX}", "{GPT}", "{GROK}"]'},
    }
    first = photo()
    answer = edit(api, file("image", first), **forms[form])

    assert answer.status_code == 200, answer.text
    told = answer.json()["geekhub"]
    assert told["final_model"] == GROK
    assert [one["model"] for one in told["skipped"]] == [FLUX]
    assert told["attempts"][0] == {"model": GPT, "error": "provider_unavailable"}
    # Each try sent the whole picture.
    assert len(openai.calls) == 3
    assert of(openai, "image") == [first]
    assert len(xai.calls) == 1
    expect_books_agree(images=1, cost_micro=25_000)


def test_auto_considers_only_models_that_can(api: Api, xai: XaiEmulator) -> None:
    answer = edit(api, model="auto", routing='{"strategy": "cheapest"}')
    assert answer.json()["model"] == GROK
    assert answer.json()["geekhub"]["skipped"] == []

    masked = edit(api, file("image", photo()), file("mask", mask()), model="auto")
    assert masked.json()["model"] == "openai/gpt-image-2.5-sunburst"
    assert GROK in {one["model"] for one in masked.json()["geekhub"]["skipped"]}
    assert len(xai.calls) == 1


def test_price_is_asked_and_bounded(api: Api, openai: OpenAIEmulator) -> None:
    answer = edit(api, n=3, dry_run="true")
    assert answer.json()["geekhub"]["max_cost_usd"] == "0.57"
    expect_error(edit(api, n=3, max_cost="0.5"), BAD, param="max_cost")
    expect_nothing_happened(openai)
    assert edit(api, n=1, max_cost="0.19").status_code == 200
    expect_books_agree(images=1, cost_micro=PRICE)


BRACKETS: list[dict[str, Any]] = [
    {"model": ["openai/dall-e-3", GPT], "routing[on_refusal]": "stop"},
    {"model": None, "model[]": ["openai/dall-e-3", GPT], "routing[on_refusal]": "stop"},
    {"model": None, "model[0]": DALLE, "model[1]": GPT, "routing": '{"on_refusal": "stop"}'},
    {"model": "auto", "routing[on_refusal]": "stop", "routing[candidates][]": [DALLE, GPT]},
    {
        "model": "auto",
        "routing[candidates][0]": DALLE,
        "routing[candidates][1]": GPT,
        "routing[on_refusal]": "stop",
    },
    {
        "model": "auto",
        "routing[candidates]": f'["{DALLE}", "{GPT}"]',
        "routing[on_refusal]": "stop",
    },
]


@pytest.mark.parametrize("fields", BRACKETS)
def test_brackets_say_what_json_would(
    api: Api, openai: OpenAIEmulator, fields: dict[str, Any]
) -> None:
    first, second = photo(), photo(colour="blue")
    files = [file("image[0]", first), file("image[1]", second)]
    tags = {"tags[0]": "a", "tags[1]": "b"}
    answer = edit(api, *files, **fields, **tags)

    assert answer.status_code == 200, answer.text
    assert of(openai, "image[]") == [first, second]
    row = Generation.objects.get()
    assert row.tags == ["a", "b"]
    assert row.parameters["on_refusal"] == "stop"
    assert [one["model"] for one in answer.json()["geekhub"]["skipped"]] == [DALLE]


def test_the_python_sdk_sends_routing_as_a_dict(
    python: sdk.OpenAI, openai: OpenAIEmulator, xai: XaiEmulator
) -> None:
    openai.always(Behaviour(error="moderation_blocked"))
    with pytest.raises(sdk.BadRequestError, match="content policy"):
        python.images.edit(
            model=cast(Any, [GPT, GROK]),
            prompt="with a hat",
            image=photo(),
            extra_body={"routing": {"on_refusal": "stop"}, "tags": ["a", "b"]},
        )
    assert xai.calls == []
    assert Generation.objects.get().tags == ["a", "b"]


# --- The sandbox ------------------------------------------------------------------------------


def pixel(answer: httpx.Response, folder: Path, at: tuple[int, int]) -> tuple[int, ...]:
    """Return a pixel of the stored picture."""
    assert answer.status_code == 200, answer.text
    name = answer.json()["data"][0]["url"].split("/generated-images/")[1]
    with Pillow.open(folder / "images" / name) as picture:
        found = picture.convert("RGB").getpixel(at)
    assert isinstance(found, tuple)
    return found


def test_the_sandbox_draws_on_what_it_is_given(
    sandbox: Api, openai: OpenAIEmulator, tmp_path: Path
) -> None:
    corner = (1500, 1000)
    red = edit(sandbox)
    assert pixel(red, tmp_path, corner) == (102, 0, 0)
    blue = edit(sandbox, file("image", photo(colour="blue")), model=GROK)
    assert pixel(blue, tmp_path, (1200, 800)) == (0, 0, 102)
    masked = edit(sandbox, file("image", photo()), file("mask", mask()), model=GPT_2)
    assert pixel(masked, tmp_path, corner) == (255, 0, 0)
    assert pixel(masked, tmp_path, (10, 1000)) == (102, 0, 0)
    assert openai.calls == []
    assert red.headers["x-geekhub-cost-usd"] == "0.00"


def test_the_sandbox_refuses_a_picture_that_is_broken_inside(sandbox: Api) -> None:
    broken = make_picture(96, 64, "png")[:60]
    expect_error(edit(sandbox, file("image", broken)), BAD, param="image")


# --- Idempotency ------------------------------------------------------------------------------


def test_the_same_key_and_the_same_files_are_drawn_once(api: Api, openai: OpenAIEmulator) -> None:
    first = edit(api, headers=KEY)
    again = edit(api, file("image[]", photo(), "other.name", OCTETS), headers=KEY)

    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    other = edit(api, file("image", photo(colour="blue")), headers=KEY)
    expect_error(other, "idempotency_key_reused")
    masked = edit(api, file("image", photo()), file("mask", mask()), headers=KEY)
    expect_error(masked, "idempotency_key_reused")
    expect_error(api.draw(headers=KEY, prompt="with a hat"), "idempotency_key_reused")
    assert len(openai.calls) == 1
    expect_books_agree(images=1, cost_micro=PRICE)


# --- Bad input --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """A form, and the error it gets."""

    name: str
    param: str | None
    says: str
    fields: dict[str, Any]
    files: tuple[Part, ...] = (file("image", photo()),)


def _case(param: str | None, says: str, *files: Part, **fields: Any) -> Case:
    name = f"{param}: {says} {fields or [name for name, _ in files]}"[:80]
    return Case(name, param, says, fields, files or (file("image", photo()),))


CASES = [
    _case("prompt", "is required", prompt=None),
    _case("prompt", "it has 0", prompt=""),
    _case("prompt", "it has 4001", prompt="x" * 4001),
    _case("prompt", "character 2 is U+0000", prompt="a\0b"),
    _case("prompt", "appears twice", prompt=["a", "b"]),
    _case("prompt", "must be text, not a file", file("prompt", b"a hat")),
    _case("model", "is required", model=None),
    _case("model", "must not contain duplicates", model=[GPT, GPT]),
    _case("model", "1 to 8 strings", model=[GPT, *"abcdefgh"]),
    _case("model", "must be a string", model=f'["{GPT}", 5]'),
    _case("model", "not valid JSON", model="["),
    _case("model", "appears twice", **{"model[]": [GPT]}),
    _case("n", "from 1 to 8", n="0"),
    _case("n", "from 1 to 8", n="9"),
    _case("n", "an integer from 1 to 8", n="two"),
    _case("n", "an integer from 1 to 8", n=""),
    _case("n", "an integer from 1 to 8", n="1.0"),
    _case("n", "an integer from 1 to 8", n=" 1"),
    _case("n", "an integer from 1 to 8", n="+1"),
    _case("n", "an integer from 1 to 8", n="01"),
    _case("n", "an integer from 1 to 8", n="1_0"),
    _case("n", "an integer from 1 to 8", n="\N{ARABIC-INDIC DIGIT TWO}"),
    _case("n", "an integer from 1 to 8", n="9" * 5000),
    _case("n", "appears twice", n=["1", "1"]),
    _case("n", "must be text, not a file", file("n", b"1")),
    _case("size", f"{GPT} does not support 512x512", size="512x512"),
    _case("quality", "must be one of", quality="best"),
    _case("background", "must be one of", background="red"),
    _case("output_format", "must be one of", output_format="gif"),
    _case("output_compression", "from 0 to 100", output_compression="101"),
    _case("response_format", "must be one of", response_format="html"),
    _case("input_fidelity", "must be one of: low, high", input_fidelity="max"),
    _case("stream", "must be true or false", stream="yes"),
    _case("stream", "must be true or false", stream="True"),
    _case("partial_images", "needs stream", partial_images="1"),
    _case("partial_images", "from 0 to 3", partial_images="4", stream="true"),
    _case("strict", "must be true or false", strict="1"),
    _case("max_cost", "an amount in USD", max_cost="1e3"),
    _case("max_cost", "an amount in USD", max_cost="nan"),
    _case("max_cost", "above 0", max_cost="0"),
    _case("tags", "must not contain duplicates", tags=["a", "a"]),
    _case("tags", "0 to 8 strings", tags=list("abcdefghi")),
    _case("tags", "1 to 40 characters", tags="x" * 41),
    _case("tags", "nested too deeply", tags="[" * 60 + "]" * 60),
    _case("routing", "is only for a list", routing='{"on_refusal": "stop"}'),
    _case("routing", "not valid JSON", routing="cheapest"),
    _case("routing", "must be an object", routing="[]", model="auto"),
    _case("routing.strategy", "must be one of", routing='{"strategy": "x"}', model="auto"),
    _case("routing", "appears twice", routing='{"strategy": "x", "strategy": "x"}', model="auto"),
    _case("seed", "is not a field", seed="1"),
    _case("style", "is not a field", style="vivid"),
    _case("moderation", "is not a field", moderation="low"),
    _case("images", "is not a field", file("images", photo())),
    _case("n[]", "is not a field", **{"n[]": "1"}),
    _case("routing", "as JSON and with brackets", routing="{}", model="auto",
          **{"routing[strategy]": "cheapest"}),
    _case("routing.strategy", "must be one of", model="auto", **{"routing[strategy]": "x"}),
    _case("routing.weight", "is not a field", model="auto", **{"routing[weight]": "1"}),
    _case("routing[a][b]", "is not a field", model="auto", **{"routing[a][b]": "1"}),
    _case("tags", "appears twice", **{"tags": "a", "tags[]": "b"}),
    _case("n[0]", "is not a field", **{"n[0]": "1"}),
    _case("mask[]", "is not a field", file("mask[]", mask())),
    _case("image", 'give its part a filename, as in Content-Disposition: form-data; name="image"; '
          'filename="image.png"', image="data:image/png;base64,"),
    _case("image", "must be a file", **{"image[0]": "x"}),
    _case("image", "must be a file", image="data:image/png;base64,"),
    _case("mask", "must be a file", mask="x"),
    _case("image", "is required", file("mask", mask())),
    _case("image", "1 to 16 files; you sent more", *[file("image", photo())] * 17),
    _case("image", "file 1 is empty", file("image", b"")),
    _case("image", "file 1 is none", file("image", b"hello")),
    _case("image", "file 1 is none", file("image", b"<svg/>", "a.svg", "image/svg+xml")),
    _case("image", "file 1 is none", file("image", photo(fmt="gif"))),
    _case("image", "file 1 is none", file("image", photo(fmt="tiff"))),
    _case("image", "file 2 is none", file("image", photo()), file("image", b"GIF89a")),
    _case("image", "3600.0 of 40 megapixels (60000x60000)", file("image", make_bomb())),
    _case("mask", "appears twice", *[file("mask", mask())] * 2, file("image", photo())),
    _case("mask", "PNG with an alpha", file("image", photo()), file("mask", photo())),
    _case("mask", "PNG with an alpha", file("image", photo()), file("mask", photo(fmt="jpeg"))),
    _case("mask", "96x64", file("image", photo()), file("mask", mask(64, 96))),
    _case("mask", "64x64", file("image", photo(64, 64)), file("image", photo()),
          file("mask", mask())),
]  # fmt: skip


def test_whatever_is_wrong_with_the_form_is_400_and_nothing_happens(
    api: Api, openai: OpenAIEmulator, folder: Path, subtests: pytest.Subtests
) -> None:
    for case in CASES:
        with subtests.test(case.name):
            answer = edit(api, *case.files, **case.fields)
            expect_error(answer, BAD, param=case.param, says=case.says)
            assert still_open(folder) == []
    expect_nothing_happened(openai)


def post(api: Api, content: Any, kind: str = "multipart/form-data; boundary=B") -> httpx.Response:
    """Return the answer to a body written by hand."""
    return api.http.post(
        "images/edits", content=content, headers={b"content-type": kind.encode("latin-1")}
    )


def part(name: str, value: bytes, more: str = "") -> bytes:
    """Return a part written by hand, with the boundary B before it."""
    head = f'--B\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


GOOD = (
    part("model", GPT.encode())
    + part("prompt", b"a hat")
    + part("image", photo(), '; filename="a"\r\nContent-Type: application/octet-stream')
)


def test_forms_that_are_none(api: Api, openai: OpenAIEmulator, subtests: pytest.Subtests) -> None:
    multipart = "multipart/form-data"
    bodies = [
        (b"", f"{multipart}; boundary=B", "last boundary"),
        (GOOD, f"{multipart}; boundary=B", "last boundary"),
        (GOOD[:-40], f"{multipart}; boundary=B", "last boundary"),
        (GOOD + b"--B--", f"{multipart}; boundary=C", "last boundary"),
        (GOOD + b"--B--", multipart, "boundary"),
        (GOOD + b"--B--", f"{multipart}; boundary=", "boundary"),
        (GOOD + b"--B--", f"{multipart}; boundary=\xff", "multipart"),
        (GOOD + part("prompt", b"x") + b"--B--", f"{multipart}; boundary=B", "prompt appears"),
        (GOOD + part("user", b"\xff\xfe") + b"--B--", f"{multipart}; boundary=B", "not valid UTF"),
        (part("x", b"") * 2000 + b"--B--", f"{multipart}; boundary=B", "at most 1000"),
    ]
    for body, kind, says in bodies:
        with subtests.test(says):
            answer = post(api, body, kind)
            expect_error(answer, BAD, param=answer.json()["error"]["param"], says=says)
    for kind in ("application/json", "application/x-www-form-urlencoded", "text/html", ""):
        with subtests.test(kind):
            answer = post(api, b"{}", kind)
            expect_error(answer, "unsupported_media_type", says="multipart/form-data")
    expect_error(api.get("images/edits"), "method_not_allowed", says="POST")
    expect_nothing_happened(openai)


def test_a_picture_without_a_filename_is_asked_to_be_a_file(
    api: Api, openai: OpenAIEmulator
) -> None:
    head = part("model", GPT.encode()) + part("prompt", b"a hat")
    for name in ("image", "image[]", "image[0]", "mask"):
        answer = post(api, head + part(name, photo()) + b"--B--")
        field = name.partition("[")[0]
        expect_error(answer, BAD, param=field, says=("must be a file", f'filename="{field}.png"'))
    answer = post(api, head + part("image", b"x" * 3_000_000) + b"--B--")
    expect_error(answer, "request_too_large", says="A part without a filename is text")
    expect_nothing_happened(openai)


def test_a_photo_of_48_megapixels_has_too_many(api: Api, openai: OpenAIEmulator) -> None:
    big = make_picture(8064, 6048, "png", pad=0)
    expect_error(
        edit(api, file("image", big)),
        BAD,
        param="image",
        says="image file 1 has too many pixels: 48.8 of 40 megapixels (8064x6048).",
    )
    expect_nothing_happened(openai)


def test_a_form_written_by_hand_is_drawn(api: Api) -> None:
    assert post(api, GOOD + b"--B--\r\nepilogue").status_code == 200
    chunked = iter([GOOD[:50], GOOD[50:70], GOOD[70:], b"--B--\r\n"])
    assert post(api, chunked).status_code == 200
    expect_books_agree(images=2, cost_micro=2 * PRICE)


def test_no_damage_to_a_form_is_our_fault(sandbox: Api, folder: Path) -> None:
    dice = random.Random(7)
    whole = GOOD + part("n", b"1") + b"--B--\r\n"
    for _ in range(60):
        body = bytearray(whole)
        for _ in range(dice.randrange(1, 6)):
            at = dice.randrange(len(body))
            match dice.randrange(3):
                case 0:
                    body[at] = dice.randrange(256)
                case 1:
                    del body[at : at + dice.randrange(40)]
                case _:
                    body[at:at] = dice.choice([b"\r\n", b"--B", b"--B--", b"\0", b'"', b";"])
        answer = post(sandbox, bytes(body))
        assert answer.status_code in (200, 400, 404), (answer.text, bytes(body))
    expect_no_uploads(folder)


# --- Sizes, time, and who may send --------------------------------------------------------------


def test_a_file_over_the_limit_is_413(api: Api, openai: OpenAIEmulator) -> None:
    big = make_picture(10, 10, "png", pad=20 * 1024 * 1024)
    answer = edit(api, file("image", photo()), file("image", big))
    expect_error(answer, "request_too_large", param="image", says="20971520")
    answer = edit(api, file("image", photo()), file("mask", big))
    expect_error(answer, "request_too_large", param="mask", says="20971520")
    expect_error(edit(api, prompt="x" * 3_000_000), "request_too_large", says="text fields")
    expect_nothing_happened(openai)


def head(key: str, *lines: str) -> bytes:
    """Return the head of a request whose body is still to come."""
    fixed = ["POST /v1/images/edits HTTP/1.1", "Host: localhost", f"Authorization: Bearer {key}"]
    return "\r\n".join([*fixed, *lines, "", ""]).encode()


FORM = "Content-Type: multipart/form-data; boundary=B"


def test_a_body_over_the_limit_is_413_whether_it_says_so_or_not(
    app: AppServer,
    live_key: NewKey,
    openai: OpenAIEmulator,
    monkeypatch: pytest.MonkeyPatch,
    api: Api,
) -> None:
    with connect_raw(app.origin) as connection:
        connection.sendall(head(live_key.secret, FORM, f"Content-Length: {64 * 1024 * 1024 + 1}"))
        expect_error(read_answer(connection), "request_too_large", says="67108864")
    monkeypatch.setattr(uploads, "MAX_BODY_BYTES", 3_000_000)
    answer = post(api, (b"x" * 65_536 for _ in range(60)))
    expect_error(answer, "request_too_large", says="3000000")
    expect_nothing_happened(openai)


def test_who_may_not_send_is_told_before_the_body_is_here(
    app: AppServer, acme: Any, live_key: NewKey, openai: OpenAIEmulator, folder: Path
) -> None:
    length = "Content-Length: 1000000"

    def ask(key: str, form: str = FORM) -> httpx.Response:
        with connect_raw(app.origin, timeout=WAIT_SECONDS) as connection:
            connection.sendall(head(key, form, length))
            answer = read_answer(connection)
            assert still_open(folder) == []
            return answer

    expect_error(ask("ghub_sk_live_" + "x" * 32), "invalid_api_key")
    expect_error(ask(live_key.secret, "Content-Type: application/json"), "unsupported_media_type")
    acme.rate_limit_rpm = 1
    acme.save()
    expect_error(ask(live_key.secret), "rate_limit_exceeded")
    expect_nothing_happened(openai)


def test_a_body_that_does_not_come_is_400(
    app: AppServer, live_key: NewKey, openai: OpenAIEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "BODY_SECONDS", 0.3)
    with connect_raw(app.origin) as connection:
        connection.sendall(head(live_key.secret, FORM, "Content-Length: 1000000") + GOOD)
        expect_error(read_answer(connection), BAD, says="took too long")
    expect_nothing_happened(openai)


def test_a_client_that_leaves_while_it_sends_leaves_nothing(
    app: AppServer, acme: Any, live_key: NewKey, openai: OpenAIEmulator, folder: Path, api: Api
) -> None:
    acme.max_in_flight = 1
    acme.save()
    with connect_raw(app.origin) as connection:
        connection.sendall(
            head(live_key.secret, FORM, "Content-Length: 9000000") + GOOD + b"x" * 3_000_000
        )
        end = time.monotonic() + WAIT_SECONDS
        while not still_open(folder):
            assert time.monotonic() < end
            time.sleep(0.01)
        # Its place is taken while it sends.
        expect_error(edit(api), "rate_limit_exceeded")
    app.drain()
    expect_no_uploads(folder)
    expect_nothing_happened(openai)
    assert edit(api).status_code == 200


def test_a_client_that_leaves_its_stream_gets_its_pictures_kept(
    app: AppServer, live_key: NewKey, openai: OpenAIEmulator, folder: Path
) -> None:
    gate = threading.Event()
    openai.always(Behaviour(gate=gate))
    body = GOOD + part("stream", b"true") + part("partial_images", b"1") + b"--B--\r\n"
    try:
        with connect_raw(app.origin) as connection:
            length = f"Content-Length: {len(body)}"
            connection.sendall(head(live_key.secret, FORM, length) + body)
            openai.wait_for_calls(1)
        assert still_open(folder)
    finally:
        gate.set()
    app.drain()
    expect_no_uploads(folder)
    expect_books_agree(images=1, cost_micro=PRICE)


# --- What goes wrong later ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("moderation_blocked", "content_policy_violation"),
        ("invalid_value", BAD),
        ("model_not_found", "model_not_found"),
        ("organization_not_verified", "provider_unavailable"),
        ("server_error", "provider_unavailable"),
    ],
)
@pytest.mark.parametrize("stream", ["false", "true"])
def test_an_upstream_error_charges_nothing(
    api: Api, openai: OpenAIEmulator, folder: Path, error: str, code: str, stream: str
) -> None:
    openai.always(Behaviour(error=error))
    answer = edit(api, stream=stream)

    told = answer.json()["error"]
    assert told["code"] == code
    expect_no_uploads(folder)
    expect_nothing_charged()


def test_a_refused_edit_of_xai_charges_nothing(api: Api, xai: XaiEmulator) -> None:
    xai.always(Behaviour(error="moderation_blocked"))
    expect_error(
        edit(api, model=GROK), "content_policy_violation", kind="image_generation_user_error"
    )
    xai.always(Behaviour(drop="after"))
    expect_error(edit(api, model=GROK), "provider_unavailable")
    expect_nothing_charged()


def test_an_error_inside_a_stream_charges_nothing(api: Api, openai: OpenAIEmulator) -> None:
    openai.always(Behaviour(error="stream_server_error"))
    answer = edit(api, stream="true", partial_images=1)
    assert [kind for kind, _ in events(answer.text)] == ["image_edit.partial_image", "error"]
    expect_nothing_charged()


def test_a_fault_of_ours_leaves_nothing(
    api: Api, openai: OpenAIEmulator, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("broken")

    for where, name in ((Upload, "of"), (uploads._Parser, "parse"), (uploads, "_typed")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, fail)
            expect_error(edit(api), "internal_error")
        expect_no_uploads(folder)
    expect_nothing_happened(openai)


def test_no_upload_is_kept_in_the_database_or_the_store(api: Api) -> None:
    answer = edit(api)
    assert Image.objects.count() == 1
    row = Generation.objects.get()
    for field in Generation._meta.concrete_fields:
        value = getattr(row, field.attname)
        assert not isinstance(value, (bytes, memoryview))
        assert len(str(value)) < 1000
    assert answer.json()["id"] == row.request_id

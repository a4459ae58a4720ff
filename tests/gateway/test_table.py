"""Nine models by everything the catalogue says of them, through the whole application.

The expectations are written down a second time on purpose: they are the contract's, not the
catalogue's. The emulators refuse what the real providers refuse.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from images.models import Generation
from tests.api.checks import expect_books_agree
from tests.gateway import (
    DALLE,
    FLUX,
    GPT,
    GROK,
    IDEOGRAM,
    IMAGEN,
    PRICES,
    RECRAFT,
    STABLE,
    ULTRA,
    Emulators,
    calls,
    drawn,
    expect_charged,
    expect_pictures,
)
from tests.server import Api


def same(*sizes: str) -> dict[str, str]:
    return {size: size for size in sizes}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one model must do: sizes in pixels by what is asked, and how a request reads upstream.

    `counts` are the pictures asked for by each call for eight, None where there is no such field.
    `hd` is what of the body says so, None if the model has no quality; `jpeg` likewise.
    """

    model: str
    counts: list[int | None]
    sizes: Mapping[str, str]
    mime: str
    hd: Mapping[str, Any] | None
    hd_size: str | None = None
    jpeg: Mapping[str, Any] | None
    seeds: list[int] = field(default_factory=list)
    revised: bool = False


LANDSCAPE, PORTRAIT = ("1536x1024", "1792x1024"), ("1024x1536", "1024x1792")
TABLE = [
    Row(
        model=GPT,
        counts=[8],
        sizes=same("1024x1024", "1536x1024", "1024x1536")
        | {"1792x1024": "1536x1024", "1024x1792": "1024x1536"},
        mime="image/png",
        hd={"quality": "high"},
        jpeg={"output_format": "jpeg"},
    ),
    Row(
        model=DALLE,
        counts=[1] * 8,
        sizes=same("1024x1024", "1792x1024", "1024x1792")
        | {"1536x1024": "1792x1024", "1024x1536": "1024x1792"},
        mime="image/png",
        hd={"quality": "hd"},
        jpeg=None,
        revised=True,
    ),
    Row(
        model=IMAGEN,
        counts=[4, 4],
        sizes=same("1024x1024", "896x1280", "1280x896", "768x1408", "1408x768")
        | same("2048x2048", "1792x2560", "2560x1792", "1536x2816", "2816x1536")
        | {"1536x1024": "1280x896", "1024x1536": "896x1280"}
        | {"1792x1024": "1408x768", "1024x1792": "768x1408"},
        mime="image/png",
        hd={"sampleImageSize": "2K"},
        hd_size="2048x2048",
        jpeg={"outputOptions": {"mimeType": "image/jpeg"}},
    ),
    Row(
        model=GROK,
        counts=[8],
        sizes=same("1024x768") | dict.fromkeys(["1024x1024", *LANDSCAPE, *PORTRAIT], "1024x768"),
        mime="image/jpeg",
        hd=None,
        jpeg=None,
    ),
    Row(
        model=FLUX,
        counts=[4, 4],
        sizes=same("1024x1024", "768x1024", "1024x768", "576x1024", "1024x576")
        | same("1152x768", "768x1152", "1280x736", "736x1280")
        | {"1536x1024": "1152x768", "1024x1536": "768x1152"}
        | {"1792x1024": "1280x736", "1024x1792": "736x1280"},
        mime="image/jpeg",
        hd=None,
        jpeg={"output_format": "jpeg"},
        seeds=[7, 11],
    ),
    Row(
        model=ULTRA,
        counts=[4, 4],
        sizes=same("2048x2048", "2720x1536", "1536x2720", "2496x1664", "1664x2496")
        | same("2368x1760", "1760x2368", "3136x1344", "1344x3136")
        | {"1024x1024": "2048x2048", "1536x1024": "2496x1664", "1024x1536": "1664x2496"}
        | {"1792x1024": "2720x1536", "1024x1792": "1536x2720"},
        mime="image/jpeg",
        hd=None,
        jpeg={"output_format": "jpeg"},
        seeds=[7, 11],
    ),
    Row(
        model=RECRAFT,
        counts=[None] * 8,
        sizes=same("1024x1024", "1365x1024", "1024x1365", *LANDSCAPE, *PORTRAIT),
        mime="image/webp",
        hd=None,
        jpeg=None,
    ),
    Row(
        model=IDEOGRAM,
        counts=[None] * 8,
        sizes=same("1024x1024", "1376x768", "768x1376", "1248x832", "832x1248")
        | same("1184x896", "896x1184")
        | {"1536x1024": "1248x832", "1024x1536": "832x1248"}
        | {"1792x1024": "1376x768", "1024x1792": "768x1376"},
        mime="image/png",
        hd=None,
        jpeg=None,
        seeds=list(range(7, 15)),
    ),
    Row(
        model=STABLE,
        counts=[4, 4],
        sizes=same("1024x1024", "768x1024", "1024x768", "576x1024", "1024x576")
        | same("1152x768", "768x1152", "1280x736", "736x1280")
        | {"1536x1024": "1152x768", "1024x1536": "768x1152"}
        | {"1792x1024": "1280x736", "1024x1792": "736x1280"},
        mime="image/jpeg",
        hd={"num_inference_steps": 40},
        jpeg={"output_format": "jpeg"},
        seeds=[7, 11],
    ),
]


def asked_upstream(emulators: Emulators, provider: str) -> list[dict[str, Any]]:
    """Return the fields of every call, Google's out of their envelope."""
    return [call.body.get("parameters", call.body) for call in emulators[provider].calls]


def counts(bodies: list[dict[str, Any]]) -> list[int | None]:
    """Return how many pictures each call asked for, the largest first."""
    fields = ("n", "sampleCount", "num_images")
    found = [next((body[name] for name in fields if name in body), None) for body in bodies]
    return sorted(found, key=lambda count: -(count or 0))


def adjusted(answer: Any) -> dict[str, tuple[Any, Any]]:
    """Return (asked, used) by parameter, and check that each says why."""
    told = answer.json().get("adjusted", [])
    for row in told:
        assert row.keys() == {"param", "asked", "used", "why"}
        assert row["why"].strip()
    assert len({row["param"] for row in told}) == len(told)
    return {row["param"]: (row["asked"], row["used"]) for row in told}


def test_the_contract_s_nine_models_are_all_in_the_table() -> None:
    assert [row.model for row in TABLE] == list(PRICES)


@pytest.mark.parametrize("row", TABLE, ids=[row.model for row in TABLE])
def test_a_model_does_all_that_the_catalogue_says(
    api: Api, emulators: Emulators, subtests: pytest.Subtests, row: Row
) -> None:
    provider = row.model.partition("/")[0]
    default = next(iter(row.sizes.values()))
    delivered = 0

    def draw(count: int, **body: Any) -> tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]:
        """Draw, check what every case has in common; return answer, pictures and call bodies."""
        nonlocal delivered
        for one in emulators.values():
            one.reset()
        answer = api.draw(model=row.model, **body)
        data = expect_pictures(answer, count)
        delivered += count
        assert answer.json()["model"] == row.model
        assert "geekhub" not in answer.json()
        assert "filtered_count" not in answer.json()
        expect_charged(answer, row.model, count)
        # Nothing was drawn that is not delivered, and nobody else was asked.
        assert drawn(emulators) == count
        assert calls(emulators).keys() == {provider}
        assert not emulators[provider].leaks
        for picture in data:
            assert ("revised_prompt" in picture) is row.revised
        return answer, data, asked_upstream(emulators, provider)

    with subtests.test("n=1"):
        answer, data, bodies = draw(1)
        assert f"{data[0]['width']}x{data[0]['height']}" == default
        assert data[0]["mime_type"] == row.mime
        assert counts(bodies) == ([None] if row.counts[0] is None else [1])
        assert adjusted(answer) == {}

    with subtests.test("n=8"):
        answer, data, bodies = draw(8, n=8)
        assert counts(bodies) == row.counts
        assert [f"{one['width']}x{one['height']}" for one in data] == [default] * 8
        assert adjusted(answer) == {}

    listed = api.get(f"models/{row.model}").json()["sizes"]
    with subtests.test("every listed size is known here"):
        assert sorted(listed) == sorted(["auto", *row.sizes])

    for size, pixels in {"auto": default, **row.sizes}.items():
        with subtests.test(f"size={size}"):
            answer, data, bodies = draw(1, size=size)
            assert f"{data[0]['width']}x{data[0]['height']}" == pixels
            assert len(bodies) == 1
            told = {} if pixels == size or size == "auto" else {"size": (size, pixels)}
            assert adjusted(answer) == told

    with subtests.test("hd"):
        answer, data, bodies = draw(1, quality="hd")
        assert f"{data[0]['width']}x{data[0]['height']}" == (row.hd_size or default)
        assert len(bodies) == 1
        if row.hd is None:
            assert adjusted(answer) == {"quality": ("hd", None)}
            assert "quality" not in bodies[0]
        else:
            assert adjusted(answer) == {}
            assert bodies[0].items() >= row.hd.items()

    with subtests.test("jpeg"):
        answer, data, bodies = draw(1, output_format="jpeg")
        assert data[0]["mime_type"] == "image/jpeg"
        assert data[0]["url"].endswith(".jpg")
        assert adjusted(answer) == {}
        assert len(bodies) == 1
        if row.jpeg is None:
            assert {"output_format", "outputOptions"}.isdisjoint(bodies[0])
        else:
            assert bodies[0].items() >= row.jpeg.items()
            # What the provider drew is what is delivered: no second loss by transcoding.
            assert data[0]["bytes"] == len(emulators[provider].pictures[0])

    with subtests.test("seed"):
        answer, data, bodies = draw(8, n=8, seed=7)
        assert sorted(body["seed"] for body in bodies if "seed" in body) == row.seeds
        assert adjusted(answer) == ({} if row.seeds else {"seed": (7, None)})

    expect_books_agree(delivered, delivered * PRICES[row.model])
    assert Generation.objects.count() == len(row.sizes) + 6

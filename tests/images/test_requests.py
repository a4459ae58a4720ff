"""A request's fingerprint is of what it asks for, however that was written."""

from collections.abc import Mapping
from dataclasses import replace
from tempfile import TemporaryFile
from typing import Any

import pytest
from PIL import Image as Pillow

from images.api import serializers
from images.api.serializers import DrawingSerializer, EditSerializer, GenerationSerializer
from images.drawing.request import GenerationRequest
from images.pixels.pictures import Upload

REQUIRED: Mapping[str, Any] = {"model": "openai/gpt-image-1", "prompt": "a red kite"}
# Of every optional field: what asks for the same as leaving it out, and what asks for another.
NEUTRAL: Mapping[str, tuple[list[Any], Any]] = {
    "n": ([1], 2),
    "size": (["auto"], "1024x1024"),
    "quality": (["auto"], "standard"),
    "response_format": (["url"], "b64_json"),
    "output_format": ([], "png"),
    "output_compression": ([], 90),
    "background": (["auto"], "opaque"),
    "user": ([], "u1"),
    "stream": ([False], True),
    "partial_images": ([0], 1),
    "routing": ([{}, {"strategy": None}, {"strategy": "cheapest"}], {"strategy": "fastest"}),
    "strict": ([False], True),
    "max_cost": ([], 1),
    "dry_run": ([False], True),
    "tags": ([[]], ["a"]),
    "style": ([], "vivid"),
    "moderation": (["auto"], "low"),
    "seed": ([], 0),
    "input_fidelity": (["low"], "high"),
}
# What a field is only allowed beside.
BESIDE: Mapping[str, Mapping[str, Any]] = {
    "partial_images": {"stream": True},
    "routing": {"model": "auto"},
}


def _upload() -> Upload:
    with TemporaryFile() as file:
        Pillow.new("RGB", (8, 8), "red").save(file, "PNG")
        return Upload.of(file)


def _asked(endpoint: type[DrawingSerializer], body: dict[str, Any]) -> GenerationRequest:
    request = serializers.parse(body, endpoint)
    return replace(request, images=(_upload(),)) if endpoint is EditSerializer else request


@pytest.mark.parametrize("endpoint", [GenerationSerializer, EditSerializer])
def test_left_out_null_and_the_neutral_value_are_the_same_request(
    endpoint: type[DrawingSerializer], subtests: pytest.Subtests
) -> None:
    names = endpoint().fields.keys() - REQUIRED.keys()
    assert names <= NEUTRAL.keys()
    for name in sorted(names):
        neutral, other = NEUTRAL[name]
        bare = {**REQUIRED, **BESIDE.get(name, {})}
        print_of_bare = _asked(endpoint, bare).fingerprint()
        for value in (None, *neutral):
            with subtests.test(f"{name} {value}"):
                assert _asked(endpoint, {**bare, name: value}).fingerprint() == print_of_bare
        with subtests.test(f"{name} {other}"):
            assert _asked(endpoint, {**bare, name: other}).fingerprint() != print_of_bare


def test_all_neutral_values_together_are_the_bare_request() -> None:
    for endpoint in (GenerationSerializer, EditSerializer):
        body = {
            name: NEUTRAL[name][0][0] for name in endpoint().fields if NEUTRAL.get(name, [[]])[0]
        }
        del body["routing"], body["partial_images"]
        bare = _asked(endpoint, dict(REQUIRED))
        assert _asked(endpoint, {**REQUIRED, **body}).fingerprint() == bare.fingerprint()


def test_a_body_keeps_its_fingerprint_from_version_to_version() -> None:
    """An Idempotency-Key does not expire: what was drawn with it years ago must be recognized."""
    bare = _asked(GenerationSerializer, dict(REQUIRED))
    full = _asked(
        GenerationSerializer,
        {
            **{name: other for name, (_, other) in NEUTRAL.items() if name != "input_fidelity"},
            **REQUIRED,
            "model": ["openai/gpt-image-1", "fal/flux-1.1-pro"],
            "quality": "hd",
            "output_format": "webp",
            "output_compression": 50,
            "seed": 7,
            "routing": {"on_refusal": "stop"},
            "max_cost": 1.5,
            "dry_run": False,
        },
    )
    edit = _asked(EditSerializer, dict(REQUIRED))
    assert [one.fingerprint()[:16] for one in (bare, full, edit)] == [
        "908c3fb340178e85",
        "1fe83b027a9b6cfd",
        "84beb07a69f56e08",
    ]
    assert replace(edit, input_fidelity="high").fingerprint()[:16] == "126d660b25ede892"

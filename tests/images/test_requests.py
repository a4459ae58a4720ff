"""A request's fingerprint is of what it asks for, however that was written."""

from collections.abc import Mapping
from dataclasses import replace
from tempfile import TemporaryFile
from typing import Any

import pytest
from PIL import Image as Pillow

from images.api import serializers
from images.api.serializers import DrawingSerializer, EditSerializer, GenerationSerializer
from images.drawing.request import GenerationRequest, Inputs
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


def _inputs() -> Inputs:
    with TemporaryFile() as file:
        Pillow.new("RGB", (8, 8), "red").save(file, "PNG")
        return Inputs((Upload.of(file),))


def _asked(endpoint: type[DrawingSerializer], body: dict[str, Any]) -> GenerationRequest:
    request = serializers.parse(body, endpoint)
    return replace(request, inputs=_inputs()) if endpoint is EditSerializer else request


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

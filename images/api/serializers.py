"""The request body, checked against the table of parameters, and a GenerationRequest of it."""

import re
from functools import cache
from typing import Any, ClassVar

from rest_framework import serializers

from images.api.errors import ApiError
from images.catalog import parameters
from images.catalog.fields import Known
from images.catalog.parameters import AUTO, PARAMETERS, Endpoint
from images.drawing.request import GenerationRequest

IDEMPOTENCY_KEY_MAX = 255
RETRY = re.compile(r"[0-9]{1,4}")
# The parts of an edit that are files.
FILES = ("image", "mask")


class DrawingSerializer(Known):
    """A body that asks for pictures."""

    endpoint: ClassVar[Endpoint]
    # What only one of the endpoints has, and which.
    elsewhere = {row.name: row.only for row in PARAMETERS.values() if row.only is not None} | (
        dict.fromkeys(FILES, Endpoint.EDITS)
    )

    def get_fields(self) -> dict[str, Any]:
        return {row.name: row.make() for row in parameters.of(self.endpoint)}


class GenerationSerializer(DrawingSerializer):
    """The body of POST /v1/images/generations."""

    endpoint = Endpoint.GENERATIONS


class EditSerializer(DrawingSerializer):
    """The text parts of POST /v1/images/edits, already of their types."""

    endpoint = Endpoint.EDITS
    files = FILES


@cache
def _checker(body: type[DrawingSerializer]) -> DrawingSerializer:
    """Return the one instance that checks all bodies: making one copies every field."""
    return body()


def parse(data: Any, body: type[DrawingSerializer] = GenerationSerializer) -> GenerationRequest:
    """Return the checked request; raises ApiError naming the first field at fault."""
    if not data:
        raise invalid("model", "is required, and so is prompt: the body is empty.")
    try:
        fields = dict(_checker(body).run_validation(data))
    except serializers.ValidationError as error:
        raise first_error(error.detail) from error
    models = fields.pop("model")
    listed = isinstance(data["model"], list) or models == [AUTO]
    routing = fields.pop("routing", {})
    if routing and not listed:
        raise invalid("routing", "is only for a list of models or auto; model is a single id.")
    if models != [AUTO] and {"strategy", "candidates"} & routing.keys():
        raise invalid(
            "routing",
            "with strategy or candidates is only for model auto; a list is tried in its own order.",
        )
    if AUTO in models and len(models) > 1:
        raise invalid(
            "model",
            "auto cannot be part of a list; put the models to choose from into routing.candidates.",
        )
    if "partial_images" in fields and not fields.get("stream"):
        raise invalid("partial_images", "needs stream: true.")
    return GenerationRequest(
        models=tuple(models),
        listed=listed,
        strategy=routing.get("strategy", "cheapest"),
        auto_candidates=tuple(routing.get("candidates", ())),
        on_refusal=routing.get("on_refusal"),
        max_cost_micro=fields.pop("max_cost", None),
        tags=tuple(fields.pop("tags", ())),
        **fields,
    )


def idempotency_key(header: str | None) -> str | None:
    """Return the Idempotency-Key header's value; raises ApiError when it is not one."""
    if header is None:
        return None
    if (
        not 0 < len(header) <= IDEMPOTENCY_KEY_MAX
        or not header.isascii()
        or not header.isprintable()
    ):
        raise invalid(
            "Idempotency-Key", f"must be 1 to {IDEMPOTENCY_KEY_MAX} printable ASCII characters."
        )
    return header


def retry(header: str | None) -> int | None:
    """Return which retry of an SDK `x-stainless-retry-count` says it is; None if it is no SDK's."""
    return int(header) if header is not None and RETRY.fullmatch(header) else None


def invalid(param: str, message: str) -> ApiError:
    """Return the 400 that names a field."""
    return ApiError("invalid_request_error", f"{param} {message}", param)


def first_error(errors: Any, path: str = "") -> ApiError:
    """Return the 400 for the first of a serializer's errors, nested fields named with a dot."""
    if isinstance(errors, dict):
        name, inner = next(iter(errors.items()))
        return first_error(inner, f"{path}.{name}".strip("."))
    first = errors[0]
    text = "is required." if getattr(first, "code", "") == "required" else str(first)
    return invalid(path, text)

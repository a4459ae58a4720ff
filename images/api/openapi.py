"""The OpenAPI document of /v1: operations from a table, bodies from `parameters`, answers from
`shapes`, errors from `errors`.

Loads drf-spectacular, which no request to /v1 needs: import it where the document is made.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    NotRequired,
    TypeAliasType,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from django.db.models import TextChoices
from django.urls import URLPattern, path
from django.utils import translation
from drf_spectacular.extensions import OpenApiSerializerFieldExtension
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.settings import patched_settings
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse
from rest_framework import serializers
from rest_framework.views import APIView

from images.api import errors, shapes, usage
from images.api.serializers import IDEMPOTENCY_KEY_MAX, EditSerializer, GenerationSerializer
from images.catalog.fields import Kind, Schema
from images.catalog.model import MAX_INPUTS

JSON, FORM, EVENTS = "application/json", "multipart/form-data", "text/event-stream"
REQUEST_ID = "^req_[0-9a-f]{24}$"
# The target of a Markdown link leads nowhere from here.
LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")

# What any operation may answer with.
COMMON = (
    "invalid_request_error",
    "missing_api_key",
    "invalid_api_key",
    "key_revoked",
    "request_too_large",
    "unsupported_media_type",
    "rate_limit_exceeded",
    "internal_error",
    "service_unavailable",
)
# These are of paths and methods that are not in the document.
DRAWING = tuple(code for code in errors.TABLE if code not in ("not_found", "method_not_allowed"))


class Edit(EditSerializer):
    """The form of POST /v1/images/edits."""

    def get_fields(self) -> dict[str, Any]:
        return super().get_fields() | {
            "image": serializers.ListField(
                child=serializers.FileField(),
                min_length=1,
                max_length=MAX_INPUTS,
                help_text="what it starts from: PNG, JPEG or WebP",
            ),
            "mask": serializers.FileField(
                required=False, help_text="a PNG with an alpha channel, as large as the first image"
            ),
        }


class KindOfField(OpenApiSerializerFieldExtension):
    """Lets a field say itself what it takes."""

    target_class = Kind
    match_subclasses = True

    def map_serializer_field(self, auto_schema: AutoSchema, direction: Any) -> Schema:
        return cast(Kind[Any], self.target).schema()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path; `answer` is the shape of its 200, or several."""

    method: Literal["get", "post", "delete"]
    path: str
    id: str
    summary: str
    answer: Any
    events: Any = None
    codes: tuple[str, ...] = COMMON
    request: Mapping[str, type[serializers.Serializer[Any]]] | None = None
    parameters: tuple[OpenApiParameter, ...] = ()


def _header(name: str, about: str, *statuses: int, schema: Schema | None = None) -> Any:
    """Return a header of the answers with these statuses; of all when there are none."""
    return OpenApiParameter(
        name,
        schema or {"type": "string"},
        "header",
        description=about,
        response=[*statuses] or True,
    )


IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": IDEMPOTENCY_KEY_MAX},
    "header",
    description="The same key with the same body returns the same images and charges once.",
)
COST = _header("x-geekhub-cost-usd", "what the request cost, without `stream`", 200)
REPLAYED = _header("idempotent-replayed", "`true`: the images of an earlier request", 200)
RETRY_AFTER = _header("retry-after", "seconds to wait", 409, 429, 503)
X_REQUEST_ID = _header(
    "x-request-id", "the request's id", schema={"type": "string", "pattern": REQUEST_ID}
)
DRAWING_HEADERS = (IDEMPOTENCY_KEY, COST, REPLAYED)
PATH_REQUEST_ID = OpenApiParameter(
    "request_id", {"type": "string", "pattern": REQUEST_ID}, "path", description="a request's id"
)
DAY: Schema = {"type": "string", "format": "date"}

OPERATIONS = [
    Operation(
        method="post",
        path="/v1/images/generations",
        id="createImage",
        summary="Generate images",
        request={JSON: GenerationSerializer},
        answer=shapes.Drawn | shapes.Priced,
        events=shapes.PartialImage | shapes.Completed | shapes.ErrorEvent,
        codes=DRAWING,
        parameters=DRAWING_HEADERS,
    ),
    Operation(
        method="post",
        path="/v1/images/edits",
        id="createImageEdit",
        summary="Generate images from images",
        request={FORM: Edit},
        answer=shapes.Drawn | shapes.Priced,
        events=shapes.PartialImage | shapes.Completed | shapes.ErrorEvent,
        codes=DRAWING,
        parameters=DRAWING_HEADERS,
    ),
    Operation(
        method="delete",
        path="/v1/images/{request_id}",
        id="deleteImages",
        summary="Delete all images of a request",
        answer=shapes.Deleted,
        codes=(*COMMON, "not_found"),
        parameters=(PATH_REQUEST_ID,),
    ),
    Operation(
        method="delete",
        path="/v1/images/{request_id}/{index}",
        id="deleteImage",
        summary="Delete one image of a request",
        answer=shapes.Deleted,
        codes=(*COMMON, "not_found"),
        parameters=(
            PATH_REQUEST_ID,
            OpenApiParameter("index", {"type": "integer", "minimum": 0, "maximum": 999}, "path"),
        ),
    ),
    Operation(
        method="get",
        path="/v1/generation",
        id="getGeneration",
        summary="The outcome of a request",
        answer=shapes.Audited,
        codes=(*COMMON, "not_found"),
        parameters=(
            OpenApiParameter(
                "id", {"type": "string", "pattern": REQUEST_ID}, "query", required=True
            ),
        ),
    ),
    Operation(
        method="get",
        path="/v1/models",
        id="listModels",
        summary="Models and their prices",
        answer=shapes.Models,
    ),
    Operation(
        method="get",
        path="/v1/models/{model_id}",
        id="getModel",
        summary="One model",
        answer=shapes.Model,
        codes=(*COMMON, "model_not_found"),
        parameters=(
            OpenApiParameter(
                "model_id", {"type": "string"}, "path",
                description="an id; its slash may be sent as it is or as %2F",
            ),
        ),
    ),
    Operation(
        method="get",
        path="/v1/credits",
        id="getCredits",
        summary="Balance, spend and budgets",
        answer=shapes.Credits,
    ),
    Operation(
        method="get",
        path="/v1/usage",
        id="getUsage",
        summary="Requests, images and cost by day, model, key and tag",
        answer=shapes.Usage,
        parameters=(
            OpenApiParameter("start", DAY, description="the first day, in UTC"),
            OpenApiParameter("end", DAY, description="the last day, in UTC"),
            OpenApiParameter(
                "group_by", {"type": "string"}, default=",".join(usage.GROUPS),
                description=f"one or more of {', '.join(usage.GROUPS)}, with commas",
            ),
            OpenApiParameter(
                "limit", {"type": "integer", "minimum": 1, "maximum": usage.MAX_LIMIT},
                default=usage.MAX_LIMIT,
            ),
            OpenApiParameter(
                "after", {"type": "string"}, description="`next_after` of the page before"
            ),
        ),
    ),
]  # fmt: skip


def document() -> Schema:
    """Return the OpenAPI document, in English."""
    components = _components()
    options = {
        "TITLE": "Geek Hub",
        "VERSION": "1",
        "DESCRIPTION": "One OpenAI-shaped API for the image models of OpenAI, Google, xAI and "
        "fal.ai. Answers may gain keys; ignore those you do not know.",
        "OAS_VERSION": "3.1.0",
        "SERVERS": [{"url": "/"}],
        "SCHEMA_PATH_PREFIX": "/v1",
        # A file is bytes where it is sent.
        "COMPONENT_SPLIT_REQUEST": True,
        # It would name the words of a choice.
        "POSTPROCESSING_HOOKS": [],
        "APPEND_COMPONENTS": {
            "schemas": components,
            "securitySchemes": {
                "apiKey": {"type": "http", "scheme": "bearer", "bearerFormat": "ghub_sk_live_…"}
            },
        },
    }
    with patched_settings(options), translation.override("en"):
        made: Schema = SchemaGenerator(patterns=[_pattern(one) for one in OPERATIONS]).get_schema(
            public=True
        )
    for name in ("GenerationRequest", "EditRequest", "RoutingRequest"):
        made["components"]["schemas"][name]["additionalProperties"] = False
    return cast(Schema, _without_links(made))


class Described(AutoSchema):
    """What the generator asks of a view, answered by an operation."""

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self.operation = operation

    def get_operation_id(self) -> str:
        return self.operation.id

    def get_summary(self) -> str:
        return self.operation.summary

    def get_tags(self) -> list[str]:
        return ["images"]

    def get_auth(self) -> list[dict[str, list[str]]]:
        return [{"apiKey": []}]

    def get_override_parameters(self) -> list[Any]:
        return [*self.operation.parameters, X_REQUEST_ID, RETRY_AFTER]

    def get_request_serializer(self) -> Any:
        return self.operation.request

    def get_response_serializers(self) -> Any:
        good = self.operation.summary
        answers: dict[Any, Any] = {
            (200, JSON): OpenApiResponse(_schema(self.operation.answer), good)
        }
        if self.operation.events is not None:
            answers[200, EVENTS] = OpenApiResponse(_schema(self.operation.events), good)
        by_status: dict[int, list[str]] = {}
        for code in self.operation.codes:
            by_status.setdefault(errors.TABLE[code].status, []).append(f"`{code}`")
        for status, codes in sorted(by_status.items()):
            answers[status, JSON] = OpenApiResponse(_schema(shapes.Error), ", ".join(codes))
        return answers


def _pattern(operation: Operation) -> URLPattern:
    """Return a URL for the generator to find, with a view that is never called."""

    def handle(view: APIView, request: Any) -> None:
        raise NotImplementedError

    members = {
        operation.method: handle,
        "schema": Described(operation),
        "authentication_classes": [],
    }
    route = re.sub(r"{(\w+)}", r"<str:\1>", operation.path.removeprefix("/"))
    return path(route, cast(type[APIView], type("View", (APIView,), members)).as_view())


def _components() -> dict[str, Schema]:
    """Return the schema of every shape, and the codes and types of errors there are."""
    found = {
        name: _object(shape)
        for name, shape in vars(shapes).items()
        if is_typeddict(shape) and shape.__module__ == shapes.__name__
    }
    said = found["ErrorObject"]["properties"]
    said["code"]["enum"] = list(errors.TABLE)
    types = [row.type for row in errors.TABLE.values()]
    said["type"]["enum"] = list(dict.fromkeys([*types, "all_candidates_failed"]))
    return found


def _object(shape: Any) -> Schema:
    hints = get_type_hints(shape)
    return {
        "type": "object",
        "description": shape.__doc__,
        "properties": {name: _schema(hint) for name, hint in hints.items()},
        "required": [name for name in hints if name in shape.__required_keys__],
    }


def _schema(hint: Any) -> Schema:
    """Return the JSON Schema of a type; a shape is named."""
    if is_typeddict(hint):
        return {"$ref": f"#/components/schemas/{hint.__name__}"}
    arguments = get_args(hint)
    match get_origin(hint) or hint:
        case origin if origin is UnionType:
            parts = [_schema(one) for one in arguments]
            if NoneType not in arguments or len(parts) > 2 or "$ref" in parts[0]:
                return {"oneOf": parts}
            return parts[0] | {"type": [parts[0]["type"], "null"]}
        case origin if origin is Literal:
            return _schema(type(arguments[0])) | {"enum": list(arguments)}
        case origin if origin is NotRequired:
            return _schema(arguments[0])
        case origin if origin is list:
            return {"type": "array", "items": _schema(arguments[0])}
        case origin if origin is dict:
            return {"type": "object", "additionalProperties": _schema(arguments[1])}
        case origin if origin is Any:
            return {}
        case TypeAliasType():
            return _schema(hint.__value__)
        case type() as origin if issubclass(origin, StrEnum):
            return {"type": "string", "enum": [str(one) for one in origin]}
        case type() as origin if issubclass(origin, TextChoices):
            return {"type": "string", "enum": origin.values}
        case origin:
            return {"type": TYPES[origin]}


TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}


def _without_links(value: Any) -> Any:
    match value:
        case str():
            return LINK.sub(r"\1", value)
        case dict():
            return {name: _without_links(one) for name, one in value.items()}
        case list():
            return [_without_links(one) for one in value]
        case _:
            return value

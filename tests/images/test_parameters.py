"""The table of parameters is whole: each row reaches who it is for, and says what is true."""

import inspect
from dataclasses import fields

import pytest
from openai.resources.images import Images

from images.catalog.parameters import CAPABILITIES, DRAWN, PARAMETERS, Endpoint, Parameter, of
from images.catalog.rows import CATALOG
from images.drawing.request import GenerationRequest
from images.providers.base import Drawing

FILES = {"images", "mask"}
# What a body says in other words than the request, which has an attribute for each of its parts.
REWORDED = {"model": "models", "routing": "strategy", "max_cost": "max_cost_micro"}


def test_what_may_be_asked_of_a_model_is_a_row_and_every_row_is_heard() -> None:
    assert {row.name for row in DRAWN} == {one.name for one in fields(Drawing)} - FILES
    heard = {one.name for one in fields(GenerationRequest)}
    assert {REWORDED.get(name, name) for name in PARAMETERS} <= heard
    assert {row.name for endpoint in Endpoint for row in of(endpoint)} == set(PARAMETERS)


@pytest.mark.parametrize("row", CAPABILITIES, ids=lambda row: row.name)
def test_a_capability_is_of_some_models_and_not_of_others(row: Parameter) -> None:
    assert row in DRAWN
    assert row.lacks.endswith(".")
    assert {row.takes(model) for model in CATALOG.values()} == {True, False}


@pytest.mark.parametrize("row", PARAMETERS.values(), ids=lambda row: row.name)
def test_a_row_names_values_that_its_field_takes(row: Parameter) -> None:
    field = row.make()
    assert field.required is row.required
    assert row.about in str(field.help_text)
    for value in (*row.neutral, *row.free):
        assert field.run_validation(value) == value
    # A model that lacks what a row needs is told so by `lacks`.
    assert bool(row.lacks) == any(not row.takes(model) for model in CATALOG.values())


def test_a_parameter_of_openai_s_own_is_known_to_its_sdk() -> None:
    known = {
        Endpoint.GENERATIONS: inspect.signature(Images.generate).parameters,
        Endpoint.EDITS: inspect.signature(Images.edit).parameters,
    }
    for endpoint, arguments in known.items():
        assert {row.name for row in of(endpoint) if row.openai} <= arguments.keys()
        assert not {row.name for row in of(endpoint) if not row.openai} & arguments.keys()

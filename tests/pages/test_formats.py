"""Numbers in both languages."""

import pytest
from django.utils import translation
from django.utils.formats import localize


@pytest.mark.parametrize("language", ["en", "es"])
def test_a_number_has_a_point_in_both_languages(language: str) -> None:
    with translation.override(language):
        assert localize(94.7) == "94.7"

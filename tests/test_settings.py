"""The keys of models and stages: their descriptions are printed as help and in the
documentation.
"""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from alignkit.data.sources import DataSource
from alignkit.options import Options
from alignkit.recipe.schema import BlockKeys, TopKeys
from alignkit.settings import LoraSpec, Mix, ModelSpec, Rollout, Settings


@pytest.mark.parametrize(
    "model", [TopKeys, BlockKeys, DataSource, ModelSpec, LoraSpec, Rollout, Mix, Settings]
)
def test_every_key_has_a_description_of_one_line(model: type[Options]) -> None:
    for name, info in model.model_fields.items():
        text = info.description or ""
        assert 0 < len(text) <= 180 and "\n" not in text and not text.endswith("."), name


def test_a_response_has_room_for_its_minimum() -> None:
    with pytest.raises(ValidationError, match="min_new_tokens 8 is above max_new_tokens 4"):
        Rollout(min_new_tokens=8, max_new_tokens=4)


def test_none_is_a_word_for_no_adapter() -> None:
    assert ModelSpec(base="tiny", lora="none").lora is None  # type: ignore[arg-type]
    assert ModelSpec(base="tiny").lora == LoraSpec()

"""A saved role as a whole model: what the classifier skips, and where a policy's responses end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from alignkit.io.cache import cache_folder
from alignkit.models.export import end_with, whole_model
from alignkit.models.shared_model import SharedModel
from alignkit.settings import LoraSpec, ModelSpec
from alignkit_plugins import tiny


def test_a_classifier_skips_what_the_reward_model_skipped(tmp_path: Path) -> None:
    """Whatever the tokenizer pads with."""
    source = str(tiny.source(cache_folder()))
    spec = ModelSpec(base="tiny", dtype="float32", lora=LoraSpec(r=2), device="cpu")
    shared = SharedModel(spec, source)
    shared.add_role("reward", head="scalar")
    shared.save("reward", tmp_path / "reward")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward")
    tokenizer.pad_token = "<|im_start|>"
    model = whole_model(tmp_path / "reward", shared.base, spec, torch.float32, tokenizer)
    assert shared.roles["reward"].unread == model.config.pad_token_id == 0


@pytest.mark.parametrize(
    ("own", "ends", "expected"),
    [(2, {2}, 2), (2, {0, 2}, [2, 0]), ([5, 2], {2, 5}, [5, 2]), (None, {7}, 7), (None, set(), None)],
)
def test_ends_are_added_behind_the_bases_own(
    own: int | list[int] | None, ends: set[int], expected: int | list[int] | None
) -> None:
    generation = GenerationConfig(eos_token_id=own)
    end_with(generation, ends)
    assert generation.eos_token_id == expected
    end_with(None, ends)  # of a classifier

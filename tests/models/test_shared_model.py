"""The roles of the shared model."""

from __future__ import annotations

from pathlib import Path

import pytest
from architectures import load, make
from tiny import tiny_model

from alignkit.errors import RunFailed
from alignkit.models.shared_model import SharedModel
from alignkit.settings import LoraSpec, ModelSpec


def test_a_role_that_cannot_be_loaded_leaves_nothing_behind(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    model.add_role("good.1")
    model.save("good.1", tmp_path / "good")
    for _ in range(2):  # a second attempt fails the same way
        with pytest.raises(RunFailed, match=r"adapter_config\.json"):
            model.add_role("bad", start=tmp_path / "nowhere")
    assert list(model.roles) == ["base", "good.1"]
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    model.add_role("good_1", start=tmp_path / "good")
    assert model.parameters_of("good_1") and model.parameters_of("good.1")


def test_embeddings_cannot_have_an_adapter(tmp_path: Path) -> None:
    import alignkit_plugins.models.tiny

    spec = ModelSpec(
        base="tiny", dtype="float32", device="cpu", lora=LoraSpec(target_modules=["embed_tokens"])
    )
    with pytest.raises(RunFailed, match="Embedding cannot have an adapter"):
        SharedModel(spec, str(alignkit_plugins.models.tiny.source(tmp_path))).add_role("new")


def test_the_context_ends_where_positions_would_change_for_a_whole_row(tmp_path: Path) -> None:
    """Transformers chooses Phi-3's short or long factors by the longest position in the whole
    row.
    """
    from transformers import Phi3Config

    config = Phi3Config(max_position_embeddings=64, original_max_position_embeddings=16, rope_parameters={
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [4.0] * 48})  # fmt: skip
    policy = load(make(tmp_path / "llama", "Llama"))
    assert policy.context == policy.model.config.max_position_embeddings
    policy.model.config = config
    assert policy.context == 16

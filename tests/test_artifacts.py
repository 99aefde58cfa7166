"""Folders of saved roles: who may read them, and what is told about weights that do not belong to
the model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import alignkit_plugins.bases.tiny
from alignkit import Group, Response, RunFailed
from alignkit.contract.settings import LoraSpec, ModelSpec
from alignkit.models.models import LoadedModel, WholeRewardModel
from alignkit.models.shared_model import SharedModel
from alignkit.training.trainer import load_checkpoint, save_checkpoint
from tests.rows import assistant, user

LORA = LoraSpec(r=2, lora_alpha=4)


def policy(source: Path, lora: LoraSpec | None) -> SharedModel:
    return SharedModel(
        ModelSpec(base=str(source), dtype="float32", device="cpu", lora=lora), str(source)
    )


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return alignkit_plugins.bases.tiny.source(tmp_path / "models")


@pytest.mark.parametrize(("lora", "umask"), [(LORA, 0o022), (None, 0o077)])
def test_what_is_saved_has_the_permissions_of_the_umask(
    lora: LoraSpec | None, umask: int, tiny: Path, tmp_path: Path
) -> None:
    """Roles and checkpoints."""
    made = policy(tiny, lora)
    made.add_role("new", head="scalar")
    before = os.umask(umask)
    try:
        made.save("new", tmp_path / "saved")
        save_checkpoint(tmp_path / "saved", 1, {"learner": {}})
    finally:
        os.umask(before)
    found = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "saved").rglob("*.*")}
    weights = ("adapter_model" if lora else "model") + ".safetensors"
    assert found.keys() >= {weights, "checkpoint.safetensors"}
    assert set(found.values()) == {0o666 & ~umask}


def test_checkpoints_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for step in (999_998, 999_999, 1_000_000):
        save_checkpoint(tmp_path, step, {"learner": {}, "step": step})
    assert {path.name for path in tmp_path.iterdir()} == {"000999999", "001000000"}
    assert load_checkpoint(tmp_path, pytest.fail) == {"learner": {}, "step": 1_000_000}


@pytest.mark.parametrize("weight", [None, torch.ones(3)], ids=["missing", "another shape"])
def test_weights_that_do_not_fit_are_an_error(
    tiny: Path, capfd: pytest.CaptureFixture[str], weight: torch.Tensor | None
) -> None:
    file, name = tiny / "model.safetensors", "model.norm.weight"
    others = {key: value for key, value in load_file(file).items() if key != name}
    changed = others if weight is None else {**others, name: weight}
    save_file(changed, file, metadata={"format": "pt"})
    with pytest.raises(RunFailed, match=r"LlamaForCausalLM .*: model\.norm\.weight"):
        policy(tiny, LORA)
    assert "REPORT" not in capfd.readouterr().err


def test_a_language_model_is_no_reward_model(tiny: Path) -> None:
    """Its scores would be those of a head drawn at random."""
    with pytest.raises(RunFailed, match=r"are not in its files, .*: score\.weight"):
        LoadedModel(policy(tiny, LORA), Path)[str(tiny)]


def test_what_a_whole_reward_model_cannot_read_is_cut_or_left_out(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, said, read = policy(tiny, None), list[str](), list[tuple[int, ...]]()
    made.add_role("reward", head="scalar")
    made.save("reward", tmp_path / "reward")
    foreign = WholeRewardModel(LoadedModel(made, Path, say=said.append), str(tmp_path / "reward"))

    def scored(rows: list[tuple[int, ...]]) -> list[float]:
        read.extend(rows)
        return [0.5] * len(rows)

    monkeypatch.setattr(foreign, "_score", scored)
    encoder, asked = foreign.encoder, (user("how are you?"),)
    prompt, end = encoder.prompt(asked), encoder.closing
    foreign.network.config.max_position_embeddings = len(prompt) + 1 + len(end)
    fits = Response("", messages=(assistant("a"), user("more")))
    groups = [Group(asked, (fits, Response("well well"))), Group((user("how are you??"),), (fits,))]
    assert foreign.scores(groups) == [0.5, 0.5, None] and foreign.scores(groups[:1]) == [0.5, 0.5]
    assert read == [(*prompt, *encoder.text(word)[:1], *end) for word in ("a", "well")] * 2
    counts = [" 1 responses were cut before scoring, and 1 groups", " 1 responses were cut"]
    assert all(map(str.__contains__, said, counts)) and ", and 0 groups" in said[1]


@pytest.mark.parametrize("pad", ["none", "own"])
def test_responses_are_scored_together_as_one_by_one(tiny: Path, tmp_path: Path, pad: str) -> None:
    made = policy(tiny, None)
    made.add_role("reward", head="scalar")
    made.save("reward", tmp_path / "reward")
    foreign = WholeRewardModel(LoadedModel(made, Path), str(tmp_path / "reward"))
    own = None if pad == "none" else foreign.encoder.tokenizer.pad_token_id
    foreign.network.config.pad_token_id = own
    groups = [
        Group((user("how are you? " * (n % 5 + 1)),), (Response("well " * n), Response("no")))
        for n in range(1, 12)
    ]
    alone = [replace(group, responses=(r,)) for group in groups for r in group.responses]
    wanted = pytest.approx([foreign.scores([group])[0] for group in alone], abs=1e-5)
    together = foreign.scores(groups)
    assert together == wanted and len({round(score or 0, 4) for score in together}) > 15
    assert foreign.network.config.pad_token_id == own
    original, sizes = foreign._logits, []

    def logits(rows: Sequence[tuple[int, ...]]) -> torch.Tensor:
        if sum(map(len, rows)) > 600:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(rows))
        return original(rows)

    foreign._logits = logits  # type: ignore[method-assign, assignment]
    assert foreign.scores(groups) == wanted and len(sizes) > 1

"""Folders of saved roles: who may read them, and what is told about weights that do not belong to
the model.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import alignkit_plugins.models.tiny
from alignkit import Group, Response, RunFailed
from alignkit.models.models import LoadedBase
from alignkit.models.shared_model import SharedModel
from alignkit.settings import LoraSpec, ModelSpec
from alignkit.training.trainer import load_checkpoint, save_checkpoint
from alignkit_plugins.models.whole_model import WholeRewardModel
from tests.rows import user

LORA = LoraSpec(r=2, lora_alpha=4)


def policy(source: Path, lora: LoraSpec | None) -> SharedModel:
    return SharedModel(
        ModelSpec(base=str(source), dtype="float32", device="cpu", lora=lora), str(source)
    )


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return alignkit_plugins.models.tiny.source(tmp_path / "models")


@pytest.fixture(params=[0o022, 0o077], ids=["022", "077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapter", "model"])
def test_what_is_saved_has_the_permissions_of_the_umask(
    lora: LoraSpec | None, umask: int, tiny: Path, tmp_path: Path
) -> None:
    """Roles and checkpoints."""
    made = policy(tiny, lora)
    made.add_role("new", head="scalar")
    made.save("new", tmp_path / "saved")
    save_checkpoint(tmp_path / "saved", 1, {"learner": {}})
    found = modes(tmp_path / "saved")
    weights = ("adapter_model" if lora else "model") + ".safetensors"
    assert found.keys() >= {weights, "checkpoint.safetensors"}
    assert set(found.values()) == {0o666 & ~umask}


def test_checkpoints_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for step in (999_998, 999_999, 1_000_000):
        save_checkpoint(tmp_path, step, {"learner": {}, "step": step})
    assert {path.name for path in tmp_path.iterdir()} == {"000999999", "001000000"}
    assert load_checkpoint(tmp_path, pytest.fail) == {"learner": {}, "step": 1_000_000}


def change(folder: Path, name: str, value: torch.Tensor | None) -> None:
    """Replace or (None) remove weights."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights[name]
    if value is not None:
        weights[name] = value
    save_file(weights, file, metadata={"format": "pt"})


def captured(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> str:
    """What was said in any way; pytest takes what nobody listens to, which goes to stderr
    otherwise.
    """
    out, err = capfd.readouterr()
    return out + err + caplog.text


def test_whole_reward_models_are_read_without_a_word(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    made = policy(tiny, None)
    made.add_role("reward", head="scalar")
    made.save("reward", tmp_path / "reward")
    made.add_role("again", start=tmp_path / "reward", head="scalar")
    LoadedBase(made, Path)[str(tmp_path / "reward")]
    said = captured(capfd, caplog)
    assert "REPORT" not in said and "score.weight" not in said


@pytest.mark.parametrize("weight", [None, torch.ones(3)], ids=["missing", "another shape"])
def test_weights_that_do_not_fit_are_an_error(
    tiny: Path, capfd: pytest.CaptureFixture[str], weight: torch.Tensor | None
) -> None:
    change(tiny, "model.norm.weight", weight)
    with pytest.raises(RunFailed, match=r"LlamaForCausalLM .*: model\.norm\.weight"):
        policy(tiny, LORA)
    assert "REPORT" not in capfd.readouterr().err


def test_a_language_model_is_no_reward_model(tiny: Path) -> None:
    """Its scores would be those of a head drawn at random."""
    with pytest.raises(RunFailed, match=r"are not in its files, .*: score\.weight"):
        LoadedBase(policy(tiny, LORA), Path)[str(tiny)]


@pytest.mark.parametrize("pad", ["none", "own"])
def test_responses_are_scored_together_as_one_by_one(tiny: Path, tmp_path: Path, pad: str) -> None:
    made = policy(tiny, None)
    made.add_role("reward", head="scalar")
    made.save("reward", tmp_path / "reward")
    foreign = WholeRewardModel(LoadedBase(made, Path), str(tmp_path / "reward"))
    foreign.network.config.pad_token_id = (
        None if pad == "none" else foreign.encoder.tokenizer.pad_token_id
    )
    before, called = foreign.network.config.pad_token_id, []
    foreign.network.register_forward_hook(lambda *_: called.append(1))
    groups = [
        Group((user("how are you? " * (n % 5 + 1)),), (Response("well " * n), Response("no")))
        for n in range(1, 12)
    ]
    alone = [replace(group, responses=(r,)) for group in groups for r in group.responses]
    one_by_one = [score for group in alone for score in foreign.scores([group])]
    called.clear()
    together = foreign.scores(groups)
    assert together == pytest.approx(one_by_one, abs=1e-5) and len(called) == 1
    assert len({round(score or 0, 4) for score in together}) > 15
    assert foreign.network.config.pad_token_id == before
    original, sizes = foreign._logits, []

    def logits(rows: Sequence[tuple[int, ...]]) -> torch.Tensor:
        if sum(map(len, rows)) > 600:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(rows))
        return original(rows)

    foreign._logits = logits  # type: ignore[method-assign, assignment]
    assert foreign.scores(groups) == pytest.approx(one_by_one, abs=1e-5) and len(sizes) > 1

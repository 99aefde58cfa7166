"""The second stream of data: every group once an epoch, in an order that depends only on the
step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from watched import Watched, online

from alignkit import DataError, Group, seeds
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import run_recipe
from alignkit.tokens.encoder import Encoded
from alignkit.training.sampler import AuxiliaryLoss, Sampler


def auxiliary(groups: int, batch_size: int) -> AuxiliaryLoss:
    encoded = [Encoded(Group((), id=str(number)), (1,), ()) for number in range(groups)]
    draws = Sampler([0] * len(encoded), None, lambda epoch: seeds.stream(0, "mix", epoch))
    return AuxiliaryLoss(encoded, 1.0, batch_size, draws)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def ids(batch: list[Any]) -> list[str]:
    return [encoded.group.id for encoded in batch]


def test_every_group_comes_once_an_epoch_and_each_epoch_in_another_order() -> None:
    stream = auxiliary(groups=6, batch_size=2)
    epochs = [
        [name for step in range(3 * e, 3 * e + 3) for name in ids(stream.batch(step))]
        for e in range(2)
    ]
    assert [sorted(epoch) for epoch in epochs] == [list("012345")] * 2
    assert epochs[0] != epochs[1]


def test_a_resumed_run_draws_the_same_batch() -> None:
    """Batches of two from three groups: the second one spans two epochs."""
    assert [ids(auxiliary(3, 2).batch(step)) for step in range(4)] == [
        ids(batch) for stream in [auxiliary(3, 2)] for batch in map(stream.batch, range(4))
    ]
    assert ids(auxiliary(3, 2).batch(0)) != ids(auxiliary(3, 2).batch(1))


def test_every_step_of_a_stage_mixes_in_the_next_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six demonstrations, two in each of six steps: all of them twice, in two orders."""
    drawn: list[str] = []
    original = AuxiliaryLoss.batch

    def batch(self: AuxiliaryLoss, step: int) -> list[Encoded]:
        groups = original(self, step)
        drawn.extend(encoded.group.prompt[0]["content"] for encoded in groups)
        return groups

    monkeypatch.setattr(AuxiliaryLoss, "batch", batch)
    mix = {"data": {"path": "demos.jsonl"}, "objective": "sft", "weight": 0.1, "batch_size": 2}
    online(tmp_path, Watched(), mix=mix, epochs=3, batch_size=2)
    first, second = drawn[:6], drawn[6:]
    assert len(set(first)) == 6 and sorted(first) == sorted(second)
    assert first != second


@pytest.mark.silent_bug(
    "masks: mixed data",
    "A second data stream is masked as the first one is.",
    "Demonstrations in a mix are learned whole.",
)
def test_a_mix_learns_demonstrations_whole_and_none_that_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KTO learns the last turn of its own data, where the label is, but every turn of a
    demonstration mixed in.
    """
    counted: list[int] = []
    original = AuxiliaryLoss.batch

    def batch(self: AuxiliaryLoss, step: int) -> list[Encoded]:
        groups = original(self, step)
        counted.extend(sum(row.mask) for encoded in groups for row in encoded.rows)
        return groups

    monkeypatch.setattr(AuxiliaryLoss, "batch", batch)
    labeled = [
        {"prompt": f"is it {n}?", "completion": "yes", "label": n % 2 == 0} for n in range(4)
    ]
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")]
    write(tmp_path / "labeled.jsonl", labeled)
    write(tmp_path / "mix.jsonl", [{"messages": turns}])
    mix = {"data": "mix.jsonl", "objective": "sft", "weight": 0.1, "batch_size": 1}
    stage = {"algorithm": "kto", "data": "labeled.jsonl", "batch_size": 4, "mix": mix}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump({"model": {"base": "tiny"}, "stages": {"only": stage}}), encoding="utf-8"
    )
    run_recipe(load_recipe(recipe), tmp_path / "out")
    assert counted == [4]  # two answers of one token, each with its end of turn
    write(tmp_path / "mix.jsonl", [{"messages": turns, "label": False}])
    with pytest.raises(
        DataError, match=r"only\.mix: the row 'a' is labeled as bad, but would still be learned"
    ):
        run_recipe(load_recipe(recipe), tmp_path / "bad")

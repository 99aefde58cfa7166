"""The second stream of data: every group once an epoch, in an order that depends only on the
step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from watched import Watched, online

from alignkit import DataError, Group, seeds
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import run_recipe
from alignkit.tokens.encoder import Encoded
from alignkit.training.sampler import AuxiliaryLoss, Sampler
from tests.rows import assistant, run, user, write_recipe, write_rows


def auxiliary(groups: int, batch_size: int) -> AuxiliaryLoss:
    encoded = [Encoded(Group((), id=str(number)), (1,), ()) for number in range(groups)]
    draws = Sampler([0] * len(encoded), None, lambda epoch: seeds.stream(0, "mix", epoch))
    return AuxiliaryLoss(encoded, 1.0, batch_size, draws)


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
    turns = [user("a"), assistant("a")] * 2
    write_rows(tmp_path / "labeled.jsonl", labeled)
    write_rows(tmp_path / "mix.jsonl", [{"messages": turns}])
    mix = {"data": "mix.jsonl", "objective": "sft", "weight": 0.1, "batch_size": 1}
    recipe = write_recipe(
        tmp_path,
        {"only": {"algorithm": "kto", "data": "labeled.jsonl", "batch_size": 4, "mix": mix}},
    )
    run(recipe)
    assert counted == [4]  # two answers of one token, each with its end of turn
    write_rows(tmp_path / "mix.jsonl", [{"messages": turns, "label": False}])
    with pytest.raises(DataError, match=r"only\.mix: the row 'a' is labeled as bad"):
        run_recipe(load_recipe(recipe), tmp_path / "bad")

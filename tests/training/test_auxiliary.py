"""The second stream of data: every group once an epoch, in an order that depends only on the
step.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from watched import Watched, online

from alignkit import DataError
from alignkit.io.results import read_record
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import run_recipe
from alignkit.tokens.encoder import Encoded
from alignkit.training.data_sampler import AuxiliaryLoss, auxiliary_loss
from tests.rows import assistant, run, user, write_recipe, write_rows


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Encoded]:
    """Everything that is mixed in."""
    found: list[Encoded] = []
    batch = AuxiliaryLoss.batch

    def noted(self: AuxiliaryLoss, step: int) -> list[Encoded]:
        groups = batch(self, step)
        found.extend(groups)
        return groups

    monkeypatch.setattr(AuxiliaryLoss, "batch", noted)
    return found


def test_every_step_of_a_stage_mixes_in_the_next_groups(
    tmp_path: Path, drawn: list[Encoded]
) -> None:
    """Six demonstrations, two in each of six steps: all of them twice, in two orders."""
    mix = {"data": "demos.jsonl", "objective": "sft", "weight": 0.1, "batch_size": 2}
    online(tmp_path, Watched(), mix=mix, epochs=3, batch_size=2)
    names = [encoded.group.id for encoded in drawn]
    assert len(set(names[:6])) == 6 and sorted(names[:6]) == sorted(names[6:])
    assert names[:6] != names[6:]


@pytest.mark.silent_bug(
    "masks: mixed data",
    "A second data stream is masked as the first one is.",
    "Demonstrations in a mix are learned whole.",
)
def test_a_mix_learns_demonstrations_whole_and_none_that_is_bad(
    tmp_path: Path, drawn: list[Encoded]
) -> None:
    """KTO learns the last turn of its own data, where the label is, but every turn of a
    demonstration mixed in.
    """
    rows = [{"prompt": f"is it {n}?", "completion": "yes", "label": n % 2 == 0} for n in range(4)]
    turns = [user("a"), assistant("a")] * 2
    write_rows(tmp_path / "labeled.jsonl", rows)
    write_rows(tmp_path / "mix.jsonl", [{"messages": turns}])
    mix = {"data": "mix.jsonl", "objective": "sft", "weight": 0.1, "batch_size": 1}
    stage = {"algorithm": "kto", "data": "labeled.jsonl", "batch_size": 4, "mix": mix}
    recipe = write_recipe(tmp_path, {"only": stage})
    summary = read_record(run(recipe) / "only")["summary"]
    assert summary["encoded"] == {"rows": 5, "responses": 9}  # each labeled one twice
    # Two answers of one token, each with its end of turn
    assert [sum(response.mask) for encoded in drawn for response in encoded.responses] == [4]
    write_rows(tmp_path / "mix.jsonl", [{"messages": turns, "label": False}])
    with pytest.raises(DataError, match=r"only\.mix: the row 'a' is labeled as bad"):
        run_recipe(load_recipe(recipe), tmp_path / "bad")
    raw = load_recipe(recipe, ["stages.only.mix.objective=text"])
    with pytest.raises(DataError, match="has a prompt, and objective 'text' needs raw text"):
        run_recipe(raw, tmp_path / "raw")
    mix["weight"] = 0.0
    off: Any = SimpleNamespace(settings=SimpleNamespace(mix=SimpleNamespace(**mix)))
    assert auxiliary_loss(off, off) is None

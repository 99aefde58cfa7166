"""A stage over a data set: its rows are counted, its best epoch is kept, and a stop changes
nothing.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from watched import weights

from alignkit import Group, Response
from alignkit.errors import DataError, Stopped
from alignkit.io.results import read_record
from alignkit.recipe.load import load_recipe
from alignkit.runs import stage
from alignkit.runs.run import run_recipe
from alignkit.training import trainer
from alignkit.training.active_stage import ActiveStage
from alignkit.training.learner import Learner
from tests.rows import Said, assistant, read_rows, user, write_recipe, write_rows

LONG = "why " * 200


def trained(folder: Path, rows: list[Any], out: str = "run", **settings: Any) -> dict[str, Any]:
    """Run one stage over these rows; gives its summary."""
    write_rows(folder / "rows.jsonl", rows)
    stage = {"algorithm": "sft", "data": "rows.jsonl", "batch_size": 2, "epochs": 2}
    recipe = write_recipe(folder, {"only": {**stage, "max_length": 128, **settings}})
    run_recipe(load_recipe(recipe), folder / out)
    found: dict[str, Any] = read_record(folder / out / "only")["summary"]
    return found


def demonstrations(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"is it {n}?", "completion": "yes " * (n + 1)} for n in range(count)]


def test_the_epoch_with_the_lowest_validation_loss_is_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before the first step, too, which is no result; of equals the first counts
    losses = iter([0.5, 2.0, 1.0, 1.0, math.nan])
    monkeypatch.setattr(Learner, "evaluate", lambda self, examples: ({"loss": next(losses)}, {}))
    best: dict[int, Any] = {}  # of each checkpoint

    def save(folder: Path, number: int, state: dict[str, Any]) -> Path:
        best[number] = state["summary"].get("best_epoch")
        return folder

    monkeypatch.setattr(trainer, "save_checkpoint", save)
    data = {"path": "rows.jsonl", "validation": 0.2}
    summary = trained(tmp_path, demonstrations(20), epochs=4, keep_versions=True, data=data)
    assert summary["best_epoch"] == 2 and summary["validation"] == {"loss": 1.0}
    epoch = summary["steps"] // 4
    assert (best[epoch], best[2 * epoch]) == (1, 2)
    first, second, *others = (weights(tmp_path / "run" / "only" / "kept" / k) for k in "1234")
    assert weights(tmp_path / "run" / "only" / "adapter") == second not in (first, *others)


def test_a_stage_ends_at_max_steps(tmp_path: Path) -> None:
    """In the middle of its first epoch, with a rate that falls until then, and with a result."""
    write_rows(tmp_path / "held.jsonl", demonstrations(2))
    keys = {"lr_scheduler_type": "linear", "learning_rate": 0.3, "keep_versions": True}
    summary = trained(tmp_path, demonstrations(8), max_steps=3, validation="held.jsonl", **keys)
    stage = tmp_path / "run" / "only"
    rows = [row for row in read_rows(stage / "metrics.jsonl") if "epoch" in row]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.3, 0.3, 0.15])
    assert [row["epoch"] for row in rows] == [0.25, 0.5, 0.75]
    assert (summary["steps"], summary["best_epoch"]) == (3, 1)
    assert [path.name for path in (stage / "kept").iterdir()] == ["1"]


def test_the_summary_compares_held_out_examples_before_and_after(tmp_path: Path) -> None:
    """By a learning rate that teaches something."""
    data = {"path": "rows.jsonl", "validation": 0.3}
    summary = trained(tmp_path, demonstrations(20), epochs=3, learning_rate=1e-2, data=data)
    loss = summary["held_out"]["loss"]
    mean, start = loss["result"]["mean"], loss["start"]["mean"]
    assert mean == pytest.approx(summary["validation"]["loss"], rel=1e-6)
    assert loss["difference"]["mean"] == pytest.approx(mean - start, rel=1e-6)
    assert loss["difference"]["high"] < 0 and loss["difference"]["p"] < 0.05
    before = read_rows(tmp_path / "run" / "only" / "metrics.jsonl")[0]
    assert before["step"] == 0 and before["validation/loss"] == pytest.approx(start, rel=1e-6)
    accuracy = summary["held_out"]["accuracy"]["start"]["mean"]
    assert accuracy == pytest.approx(before["validation/accuracy"], rel=1e-6)


def test_a_policy_that_is_its_reference_is_right_by_chance(house_run: Path) -> None:
    """Before its first step, and in the metrics of it: all its pairs are ties."""
    accuracy = read_record(house_run / "dpo")["summary"]["held_out"]["accuracy"]
    before, first, *_ = read_rows(house_run / "dpo" / "metrics.jsonl")
    found = accuracy["start"]["mean"], before["validation/accuracy"], first["accuracy"]
    assert (before["step"], first["step"]) == (0, 1) and found == (0.5, 0.5, 0.5)


def test_a_stop_before_the_first_step_repeats_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"path": "rows.jsonl", "validation": 0.5}

    def stopped(self: ActiveStage) -> None:
        raise Stopped("signal")

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(ActiveStage, "should_stop", stopped)
        trained(tmp_path, demonstrations(6), epochs=1, data=data)
    summary = trained(tmp_path, demonstrations(6), epochs=1, data=data)
    rows = read_rows(tmp_path / "run" / "only" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 3]
    assert summary["held_out"]["loss"]["start"]["mean"] == pytest.approx(rows[0]["validation/loss"])


def test_what_does_not_fit_is_counted_once_and_told(tmp_path: Path, said: Said) -> None:
    """Apart from what validation holds, of which three rows have no room either."""
    no_room = {"prompt": LONG, "completion": "yes"}
    write_rows(tmp_path / "held.jsonl", [*demonstrations(1), *[no_room] * 3])
    rows = [*demonstrations(2), no_room, {"prompt": "so?", "completion": LONG}]
    summary = trained(tmp_path, rows, validation="held.jsonl", max_steps=99)
    assert summary["encoding"] == {"no_room": 4, "cut": 1}
    assert (summary["groups"], summary["steps"]) == (3, 4)
    assert summary["encoded"] == {"rows": 8, "responses": 8}  # 4 of these rows have no room
    told = said().replace("\n", " ")
    assert "4 groups: 1 row left out: no room for a response in max_length (" in told
    assert "; 1 response truncated at max_length (" in told
    assert told.count("left out: no room") == 1


def test_rows_without_a_pair_are_counted_and_told(tmp_path: Path, said: Said) -> None:
    yes, no = Response("yes", rank=0), Response("no", rank=1)
    asked: Any = {"role": "system", "content": "Be brief."}, user("is it?")
    pair, tie = (Group(asked, (yes, other)) for other in (no, replace(no, rank=0)))
    write_rows(tmp_path / "held.jsonl", [pair, tie, tie])
    summary = trained(tmp_path, [pair, tie], algorithm="dpo", validation="held.jsonl")
    assert summary["without_signal"] == 3 and summary["groups"] == 1
    told = said()
    assert "left out 2 rows without a pair of a better and a worse response: 'is it?'" in told
    assert "warning: 1 held-out example is too few to say anything" in told


def test_nothing_that_fits_is_an_error(tmp_path: Path) -> None:
    row = {"prompt": [user("why"), assistant("so"), user(LONG)], "completion": "yes"}
    with pytest.raises(DataError, match=r"stage 'only': sft cannot learn from any of 3 rows"):
        trained(tmp_path, [row] * 3)


def test_a_file_that_changes_before_its_stage_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage's hash is of what the file holds by then, and so must be what is learned."""
    key = stage.RunStage.key

    def edit(self: stage.RunStage) -> dict[str, Any]:
        write_rows(tmp_path / "rows.jsonl", demonstrations(1))
        return key(self)

    monkeypatch.setattr(stage.RunStage, "key", edit)
    assert trained(tmp_path, demonstrations(4))["groups"] == 1


@pytest.mark.silent_bug(
    "data: held out",
    "Validation rows are trained on, and the epoch that remembers most is kept.",
    "The run counts them and warns.",
    "OpenRLHF/OpenRLHF#1089",
)
def test_held_out_rows_that_are_trained_on_are_counted(tmp_path: Path, said: Said) -> None:
    held_out = [dict(row, prompt=f"{row['prompt'].upper()}\u200b") for row in demonstrations(5)]
    write_rows(tmp_path / "held.jsonl", held_out)
    keys = {"epochs": 1, "validation": "held.jsonl"}
    assert trained(tmp_path, demonstrations(20)[3:], **keys)["validation_trained_on"] == 2
    assert "warning: 2 of 5 rows of 'validation' have a prompt that is trained on" in said()
    keys["data"] = {"path": "rows.jsonl", "validation": 0.3}  # besides the file
    both = trained(tmp_path, demonstrations(20)[8:], "other", **keys)
    assert "validation_trained_on" not in both
    assert both["groups"] + both["held_out"]["examples"] == 12 + 5

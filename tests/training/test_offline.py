"""A stage over a data set: its rows are counted, its best epoch is kept, and a stop changes
nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from watched import weights

from alignkit.errors import DataError
from alignkit.io.results import read_record
from alignkit.recipe.load import load_recipe
from alignkit.runs import stage
from alignkit.runs.run import run_recipe
from alignkit.tokens.template import ChatTemplate
from alignkit.training.learner import Learner
from tests.rows import assistant, read_rows, user, write_recipe, write_rows

LONG = "why " * 200


def trained(
    folder: Path, rows: list[dict[str, Any]], out: str = "run", **settings: Any
) -> dict[str, Any]:
    """Run one stage over these rows; gives its summary."""
    write_rows(folder / "rows.jsonl", rows)
    stage = {"algorithm": "sft", "data": "rows.jsonl", "batch_size": 2, "epochs": 2}
    recipe = write_recipe(folder, {"only": {**stage, "max_length": 128, **settings}})
    run_recipe(load_recipe(recipe), folder / out)
    found: dict[str, Any] = read_record(folder / out / "only")["summary"]
    return found


def demonstrations(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"is it {n}?", "completion": "yes " * (n + 1)} for n in range(count)]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.replace("\n", " ")


def test_the_epoch_with_the_lowest_validation_loss_is_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.5, 2.0, 1.0, 3.0])  # before the first step, too, which is no result
    monkeypatch.setattr(Learner, "evaluate", lambda self, examples: ({"loss": next(losses)}, {}))
    data = {"path": "rows.jsonl", "validation": 0.2}
    summary = trained(tmp_path, demonstrations(20), epochs=3, keep_versions=True, data=data)
    assert summary["best_epoch"] == 2 and summary["validation"] == {"loss": 1.0}
    first, second, third = (weights(tmp_path / "run" / "only" / "kept" / k) for k in "123")
    assert weights(tmp_path / "run" / "only" / "adapter") == second not in (first, third)


def test_the_summary_compares_held_out_examples_before_and_after(tmp_path: Path) -> None:
    """By a learning rate that teaches something."""
    data = {"path": "rows.jsonl", "validation": 0.3}
    summary = trained(tmp_path, demonstrations(20), epochs=3, learning_rate=1e-2, data=data)
    held_out = summary["held_out"]
    means = {metric: held_out[metric]["result"]["mean"] for metric in ("loss", "accuracy")}
    wanted = {metric: summary["validation"][metric] for metric in means}
    assert means == pytest.approx(wanted, rel=1e-6)
    start, difference = held_out["loss"]["start"]["mean"], held_out["loss"]["difference"]
    assert difference["mean"] == pytest.approx(means["loss"] - start, rel=1e-6)
    assert difference["high"] < 0 and difference["p"] < 0.05
    before = read_rows(tmp_path / "run" / "only" / "metrics.jsonl")[0]
    assert before["step"] == 0 and before["validation/loss"] == pytest.approx(start, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_what_does_not_fit_is_counted_once_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], batch_size: int
) -> None:
    rows = [
        *demonstrations(2),
        {"prompt": LONG, "completion": "yes"},
        {"prompt": "so?", "completion": LONG},
    ]
    summary = trained(tmp_path, rows, batch_size=batch_size)
    assert summary["encoding"] == {"no_room": 1, "cut": 1}
    assert (summary["groups"], summary["steps"]) == (3, {1: 6, 2: 4}[batch_size])
    told = said(capsys)
    assert "4 groups: 1 row left out: no room for a response in max_length (" in told
    assert "; 1 response truncated at max_length (" in told


def test_validation_is_not_counted_among_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = [*demonstrations(1), *[{"prompt": LONG, "completion": "yes"}] * 3]
    write_rows(tmp_path / "held.jsonl", held)
    rows = [*demonstrations(2), {"prompt": LONG, "completion": "yes"}]
    summary = trained(tmp_path, rows, validation="held.jsonl")
    assert summary["groups"] == 2 and summary["encoding"]["no_room"] == 4
    assert summary["encoded"] == {"rows": 7, "responses": 7}  # 4 of these rows have no room
    assert "3 groups: 1 row left out" in said(capsys)


def test_rows_that_the_template_refuses_follow_on_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All refused rows are named before the first step, or left out and counted."""
    whole = ChatTemplate.prompt

    def refusing(self: ChatTemplate, messages: Any, tools: Any = (), **options: Any) -> str:
        if messages[0]["content"] in ("is it 1?", "is it 3?"):
            raise DataError("the chat template refuses the conversation: odd numbers")
        return whole(self, messages, tools, **options)

    monkeypatch.setattr(ChatTemplate, "prompt", refusing)
    with pytest.raises(DataError, match=r"2 bad rows:\n  \S*rows.jsonl:2: .*\n  \S*rows.jsonl:4: "):
        trained(tmp_path, demonstrations(4), "ahead")
    data = {"path": "rows.jsonl", "on_bad_row": "skip"}
    assert trained(tmp_path, demonstrations(4), data=data)["encoding"]["refused"] == 2
    assert "2 rows left out: refused by the chat template" in said(capsys)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": LONG, "completion": "yes"},
        {"prompt": [user("why"), assistant("so"), user(LONG)], "completion": "yes"},
    ],
)
def test_nothing_that_fits_is_an_error(tmp_path: Path, row: dict[str, Any]) -> None:
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
def test_held_out_rows_that_are_trained_on_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "held.jsonl", demonstrations(5))
    keys = {"epochs": 1, "validation": "held.jsonl"}
    assert trained(tmp_path, demonstrations(20)[3:], **keys)["validation_trained_on"] == 2
    assert "warning: 2 of 5 rows of 'validation' have a prompt that is trained on" in said(capsys)
    assert "validation_trained_on" not in trained(tmp_path, demonstrations(20)[8:], "other", **keys)

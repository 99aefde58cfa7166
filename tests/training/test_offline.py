"""A stage over a data set: its rows are counted, its best epoch is kept, and a stop changes
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.algorithm import SelectContext
from alignkit.data.group import Group, Response
from alignkit.errors import DataError
from alignkit.models.packing import Examples
from alignkit.recipe.load import load_recipe
from alignkit.runs import stage
from alignkit.runs.run import run_recipe
from alignkit.tokens.template import ChatTemplate
from alignkit.training.learner import Learner
from alignkit_plugins.algorithms.sft import SFT

LONG = "why " * 200


def trained(
    folder: Path, rows: list[dict[str, Any]], out: str = "out", **settings: Any
) -> dict[str, Any]:
    """Run one stage over these rows; gives its summary."""
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    stage = {
        "algorithm": "sft",
        "data": "rows.jsonl",
        "batch_size": 2,
        "epochs": 2,
        "max_length": 128,
        **settings,
    }
    recipe = {"model": {"base": "tiny", "dtype": "float32"}, "stages": {"only": stage}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    run_recipe(load_recipe(folder / "recipe.yaml"), folder / out)
    found: dict[str, Any] = json.loads(
        (folder / out / "only" / "stage.json").read_text(encoding="utf-8")
    )["summary"]
    return found


def demonstrations(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"is it {n}?", "completion": "yes " * (n + 1)} for n in range(count)]


def weights(folder: Path) -> bytes:
    return (folder / "only" / "adapter" / "adapter_model.safetensors").read_bytes()


def test_the_epoch_with_the_lowest_validation_loss_is_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.5, 2.0, 1.0, 3.0])  # before the first step, too, which is no result
    monkeypatch.setattr(Learner, "evaluate", lambda self, examples: ({"loss": next(losses)}, {}))
    data = {"path": "rows.jsonl", "validation": 0.2}
    summary = trained(tmp_path, demonstrations(20), epochs=3, keep_versions=True, data=data)
    assert summary["best_epoch"] == 2 and summary["validation"] == {"loss": 1.0}
    kept = {
        k: (tmp_path / f"out/only/kept/{k}/adapter_model.safetensors").read_bytes()
        for k in (1, 2, 3)
    }
    assert len(set(kept.values())) == 3 and weights(tmp_path / "out") == kept[2]


def test_the_summary_compares_held_out_examples_before_and_after(tmp_path: Path) -> None:
    """By a learning rate that teaches something, and again after a stop in the second epoch."""
    data = {"path": "rows.jsonl", "validation": 0.3}
    more: dict[str, Any] = {"epochs": 3, "batch_size": 2, "learning_rate": 1e-2, "data": data}
    summary = trained(tmp_path, demonstrations(20), **more)
    held_out = summary["held_out"]
    assert held_out["loss"]["result"]["mean"] == pytest.approx(
        summary["validation"]["loss"], rel=1e-6
    )
    assert held_out["accuracy"]["result"]["mean"] == pytest.approx(
        summary["validation"]["accuracy"], rel=1e-6
    )
    change = held_out["loss"]["result"]["mean"] - held_out["loss"]["start"]["mean"]
    assert held_out["loss"]["difference"]["mean"] == pytest.approx(change, rel=1e-6)
    assert held_out["loss"]["difference"]["high"] < 0 and held_out["loss"]["difference"]["p"] < 0.05
    rows = [
        json.loads(line) for line in (tmp_path / "out/only/metrics.jsonl").read_text().splitlines()
    ]
    assert rows[0]["step"] == 0
    assert rows[0]["validation/loss"] == pytest.approx(held_out["loss"]["start"]["mean"], rel=1e-6)


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
    said = capsys.readouterr().err
    facts = (
        "4 groups: 1 row left out: no room for a response in max_length (",
        "; 1 response truncated at max_length (",
    )
    assert all(fact in said.replace("\n", " ") for fact in facts)


def test_validation_is_not_counted_among_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = [*demonstrations(1), *[{"prompt": LONG, "completion": "yes"}] * 3]
    (tmp_path / "held.jsonl").write_text("\n".join(map(json.dumps, held)), encoding="utf-8")
    rows = [*demonstrations(2), {"prompt": LONG, "completion": "yes"}]
    summary = trained(tmp_path, rows, validation="held.jsonl")
    assert summary["groups"] == 2 and summary["encoding"]["no_room"] == 4
    assert summary["encoded"] == {"rows": 7, "responses": 7}  # 4 of these rows have no room
    assert "3 groups: 1 row left out" in capsys.readouterr().err.replace("\n", " ")


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
    with pytest.raises(
        DataError, match=r"2 bad rows:\n  \S*rows.jsonl:2: the chat .*\n  \S*rows.jsonl:4: "
    ):
        trained(tmp_path, demonstrations(4), "ahead")
    summary = trained(
        tmp_path, demonstrations(4), data={"path": "rows.jsonl", "on_bad_row": "skip"}
    )
    assert summary["encoding"]["refused"] == 2
    assert "2 rows left out: refused by the chat template" in capsys.readouterr().err.replace(
        "\n", " "
    )


@pytest.mark.silent_bug(
    "resume: data",
    "Batches are skipped in every epoch or not at all, and the schedule advances twice.",
    "Batch and learning rate follow from the number of the step.",
    "thinking-machines-lab/tinker-cookbook#448",
    "allenai/open-instruct#681",
    "THUDM/slime#1547",
)
def test_a_stopped_stage_goes_on_in_the_middle_of_its_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same bytes and the same counts."""
    stopped_and_resumed(
        tmp_path, monkeypatch, [*demonstrations(6), {"prompt": LONG, "completion": "yes"}]
    )


def test_held_out_rows_are_selected_by_the_state_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a stage that was stopped, whose algorithm already knows more."""

    def chosen(self: SFT, groups: Sequence[Group], context: SelectContext) -> Sequence[Group]:
        self.state.setdefault("steps", 0)
        return groups[self.state["steps"] :] if context.validation else groups

    monkeypatch.setattr(SFT, "select", chosen)
    monkeypatch.setattr(
        SFT, "before_step", lambda self, batch, out: {"steps": self.state["steps"] + 1}
    )
    data = {"path": "rows.jsonl", "validation": 0.5}
    stopped_and_resumed(tmp_path, monkeypatch, demonstrations(16), data=data)


def stopped_and_resumed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], **settings: Any
) -> None:
    """A stage that is killed after two steps ends as one that is not."""
    wanted = trained(folder, rows, **settings)
    step, left = Learner.step, [2]

    def failing(self: Learner, examples: Examples, factor: float) -> dict[str, float]:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return step(self, examples, factor)

    monkeypatch.setattr(Learner, "step", failing)
    with pytest.raises(KeyboardInterrupt):
        trained(folder, rows, "killed", checkpoint_every=1, **settings)
    monkeypatch.setattr(Learner, "step", step)
    assert trained(folder, rows, "killed", checkpoint_every=1, **settings) == wanted
    assert weights(folder / "killed") == weights(folder / "out")


def test_nothing_that_fits_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stage 'only': sft cannot learn from any of 3 rows"):
        trained(tmp_path, [{"prompt": LONG, "completion": "yes"}] * 3)


def test_a_file_that_changes_before_its_stage_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage's hash is of what the file holds by then, and so must be what is learned."""
    key = stage.RunStage.key

    def edit(self: stage.RunStage) -> dict[str, Any]:
        (tmp_path / "rows.jsonl").write_text(json.dumps(demonstrations(1)[0]), encoding="utf-8")
        return key(self)

    monkeypatch.setattr(stage.RunStage, "key", edit)
    assert trained(tmp_path, demonstrations(4))["groups"] == 1


def test_a_group_takes_little_memory() -> None:
    """A million rows are held as groups: `docs/benchmarks/results.md` says what they take."""
    import tracemalloc

    tracemalloc.start()
    kept = [
        Group(({"role": "user", "content": f"is it {n}?"},), (Response(text=f"{n}"),))
        for n in range(1000)
    ]
    size = tracemalloc.get_traced_memory()[0] / len(kept)
    tracemalloc.stop()
    assert size < 1200


TALK = [
    {"role": "user", "content": "why " * 40},
    {"role": "assistant", "content": "so " * 40},
    {"role": "user", "content": "is it?"},
]


def test_a_question_too_long_is_an_error(tmp_path: Path) -> None:
    rows = [{"prompt": [*TALK[:2], {"role": "user", "content": LONG}], "completion": "yes"}]
    with pytest.raises(DataError, match="cannot learn from any of 1 row"):
        trained(tmp_path, rows)


@pytest.mark.silent_bug(
    "data: held out",
    "Validation rows are trained on, and the epoch that remembers most is kept.",
    "The run counts them and warns.",
    "OpenRLHF/OpenRLHF#1089",
)
def test_held_out_rows_that_are_trained_on_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "held.jsonl").write_text(
        "\n".join(map(json.dumps, demonstrations(5))), encoding="utf-8"
    )
    rows = demonstrations(20)[3:]
    summary = trained(tmp_path, rows, epochs=1, validation="held.jsonl")
    assert summary["validation_trained_on"] == 2
    assert (
        "warning: 2 of 5 rows of 'validation' have a prompt that is trained on"
        in capsys.readouterr().err
    )
    assert "validation_trained_on" not in trained(
        tmp_path, rows[5:], "other", epochs=1, validation="held.jsonl"
    )

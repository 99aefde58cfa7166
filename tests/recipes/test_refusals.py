"""What cannot be verified is refused before anything runs, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from verified import rewrite, verify


def changed_data(run: Path) -> Path:
    with (run.parent / "pairs.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "x", "chosen": "y", "rejected": "z"}\n')
    return run / "liked"


def missing_data(run: Path) -> Path:
    (run.parent / "pairs.jsonl").unlink()
    return run / "liked"


def unfinished(run: Path) -> Path:
    rewrite(run / "align", lambda record: record.update(complete=False))
    return run


def no_result(run: Path) -> Path:
    (run / "report").unlink()
    return run / "report"


def damaged(run: Path) -> Path:
    file = run / "align" / "rollouts" / "0001.jsonl"
    file.write_text(file.read_text(encoding="utf-8") + " ", encoding="utf-8")
    return run / "align"


def other_upstream(run: Path) -> Path:
    rewrite(run / "sft", lambda record: record.update(hash="0" * 64))
    return run / "align"


def damaged_upstream(run: Path) -> Path:
    (run / "sft" / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    return run / "align"


def other_recipe(run: Path) -> Path:
    file = run / "recipe.resolved.yaml"
    file.write_text(
        file.read_text(encoding="utf-8").replace("iterations: 2", "iterations: 3"), encoding="utf-8"
    )
    return run / "align"


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (
            lambda run: run.parent,
            "is no run: it has no recipe.resolved.yaml",
        ),
        (lambda run: run / "algin", "no stage 'algin'\n  help: did you mean 'align'?"),
        (changed_data, "stage 'liked' has other inputs now: data.content has changed"),
        (missing_data, "no such file"),
        (unfinished, "stage 'align': it is not finished, so 'align' cannot be run again"),
        (no_result, "stage 'report': it is not finished, so 'report' cannot be run again"),
        (
            damaged,
            "stage 'align': {folder}/run/align/rollouts/0001.jsonl is not as the stage wrote it",
        ),
        (other_upstream, "stage 'align' has other inputs now: upstream.sft"),
        (damaged_upstream, "stage 'sft': "),
        (other_recipe, "stage 'align' has other inputs now: iterations: 2 -> 3"),
    ],
)
def test_refusals(
    run: Path, prepare: Callable[[Path], Path], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = prepare(run)
    before = sorted(run.parent.rglob("*"))
    assert verify(target) == 2
    err = capsys.readouterr().err
    assert reason.format(folder=run.parent) in err
    assert sorted(run.parent.rglob("*")) == before and "stage 3 of 4" not in err

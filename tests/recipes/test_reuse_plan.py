"""What has changed since the last run is named, and a run's plan is shown without running
anything.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from alignkit import cli
from alignkit_plugins.report.changes import changes, shown
from tests.rows import write_recipe


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({"settings": {"epochs": 2}}, {"settings": {"epochs": 3}}, ["epochs: 2 -> 3"]),
        (
            {"component": {"options": {"beta": 0.1}}},
            {"component": {"options": {}}},
            ["beta: 0.1 -> not set"],
        ),
        (
            {"versions": {"torch": "2.12"}},
            {"versions": {"torch": "2.13"}},
            ["versions.torch: 2.12 -> 2.13"],
        ),
        (
            {"upstream": {"sft": "a" * 64}},
            {"upstream": {"sft": "b" * 64}},
            ["upstream.sft has changed"],
        ),
        (
            {"settings": {"data": [{"path": "a" * 64}]}},
            {"settings": {"data": [{"path": "b" * 64}]}},
            ["data.0.path has changed"],
        ),
        ({"seed": 1, "date": None}, {"seed": 1, "date": None}, []),
    ],
)
def test_differences(old: object, new: object, found: list[str]) -> None:
    assert [shown(one) for one in changes(old, new)] == found


@pytest.mark.silent_bug(
    "resume: data",
    "After a change of the data set, its first rows are skipped.",
    "The stage starts over and says why.",
    "NVIDIA-NeMo/RL#2519",
)
def test_a_run_and_its_preview_say_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    stage = {"algorithm": "sft", "data": "demos.jsonl", "max_steps": 1}
    recipe = write_recipe(tmp_path, {"one": stage, "two": {**stage, "from": "one"}}, name="r")
    rows = tmp_path / "demos.jsonl"
    monkeypatch.chdir(tmp_path)

    def planned(*overrides: str) -> list[str]:
        capsys.readouterr()
        assert cli.main(["check", str(recipe), *overrides]) == 0
        return [
            line
            for line in capsys.readouterr().out.splitlines()
            if line.startswith(("one:", "two:"))
        ]

    assert planned() == [] and not (tmp_path / "runs").exists()
    assert cli.main(["run", str(recipe)]) == 0
    assert planned() == ["one: reused", "two: reused"]
    change = "stages.one.learning_rate=0.003"
    assert planned(change) == [
        "one: starts over (learning_rate: not set -> 0.003)",
        "two: starts over (one has changed)",
    ]
    assert cli.main(["run", str(recipe), change]) == 0
    assert (
        "one: changed since the last run (learning_rate: not set -> 0.003), starting over"
        in capsys.readouterr().err
    )
    assert planned() == ["one: an earlier result is restored", "two: an earlier result is restored"]
    assert cli.main(["run", str(recipe)]) == 0
    err = capsys.readouterr().err
    assert (
        err.count("restored an earlier result for these settings")
        == err.count("unchanged, reused")
        == 2
    )
    weights = Path("runs") / "r" / "one" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert planned()[0] == f"one: runs again, because {weights} is not as the stage wrote it"
    assert cli.main(["run", str(recipe)]) == 0
    assert "is not as the stage wrote it; the stage runs again" in capsys.readouterr().err
    assert planned() == ["one: reused", "two: reused"]
    rows.write_text(rows.read_text(encoding="utf-8") * 2, encoding="utf-8")
    assert planned()[0] == "one: starts over (data: the file has changed)"

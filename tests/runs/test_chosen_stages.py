"""`run --only` and `--until`: some stages of a recipe, with the results that the whole recipe would
have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.cli import main
from alignkit.io.results import RECIPE, damage_of
from tests.processes.forked import together

STAGES = {
    "sft": {
        "algorithm": "sft",
        "data": "demos.jsonl",
        "max_steps": 2,
        "learning_rate": 0.1,
        "max_length": 40,
    },
    "helpful": {
        "algorithm": "reward_model",
        "data": "pairs.jsonl",
        "max_steps": 1,
        "max_length": 300,
    },
    "more": {
        "algorithm": "sft",
        "from": "sft",
        "data": "demos.jsonl",
        "max_steps": 2,
        "max_length": 40,
    },
    "report": {
        "step": "evaluate",
        "policies": ["base", "more"],
        "rewards": [{"length": {"unit": "characters"}}],
        "prompts": "demos.jsonl",
        "sampling": {"max_new_tokens": 4},
    },
}
WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe in the current folder, one stage of which none of the others needs."""
    demo, pair = (
        {"prompt": "is it?", "completion": "yes"},
        {"prompt": "is it?", "chosen": "yes", "rejected": "no"},
    )
    (tmp_path / "demos.jsonl").write_text(json.dumps(demo), encoding="utf-8")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair), encoding="utf-8")
    path = tmp_path / "r.yaml"
    path.write_text(
        yaml.safe_dump({"model": {"base": "tiny"}, "stages": STAGES}, sort_keys=False),
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    return path


def complete(folder: Path) -> list[str]:
    return [name for name in STAGES if damage_of(folder / name) is None]


def test_stages_one_after_the_other_are_those_of_the_whole_run(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, whole = recipe.parent / "runs" / "r", recipe.parent / "whole"
    assert main(["run", "r.yaml", "--until", "helpful"]) == 0
    assert complete(parts) == ["sft", "helpful"] and not (parts / "report").exists()
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.endswith(": r, 2 stages, runs/r") and last.endswith("results: runs/r")
    assert main(["run", "r.yaml", "--only", "more"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert "sft: unchanged, reused" in lines and "more: stage 2 of 2, sft" in lines
    assert not any(line.startswith("helpful:") for line in lines)
    assert main(["run", "r.yaml", "--only", "report"]) == 0 and complete(parts) == [*STAGES]
    assert main(["run", "r.yaml", "--out", str(whole)]) == 0
    for file in (f"sft/{WEIGHTS}", f"helpful/{WEIGHTS}", f"more/{WEIGHTS}", "report/samples.jsonl"):
        assert (parts / file).read_bytes() == (whole / file).read_bytes(), file
    written = [
        yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8")) for folder in (parts, whole)
    ]
    assert written[0] == written[1] and list(written[0]["stages"]) == [*STAGES]


def test_a_stage_alone_needs_complete_results_of_the_earlier_ones(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recipe.parent / "runs" / "r"

    def refused(*words: str) -> str:
        capsys.readouterr()
        assert main(["run", "r.yaml", *words]) == 2
        return capsys.readouterr().err

    said = refused("--only", "report")
    assert (
        "--only needs results of sft, more, which are not complete" in said
        and "--until more" in said
    )
    assert (
        complete(folder) == []
        and not (folder / "report").exists()
        and not (folder / "sft").exists()
    )
    assert main(["run", "r.yaml", "--until", "sft"]) == 0
    assert "--only needs results of more," in refused("--only", "report")
    assert "--only needs results of sft," in refused(
        "stages.sft.learning_rate=0.2", "--only", "more"
    )
    assert main(["run", "r.yaml", "--only", "more"]) == 0, "nothing of what was refused is left"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "mroe"], "no stage 'mroe'\n  help: did you mean 'more'?"),
        (["--until", "x"], "no stage 'x'\n  help: stages: sft, helpful, more, report"),
        (["--only", "sft", "--until", "more"], "--only runs one stage"),
    ],
)
def test_mistakes(
    recipe: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "r.yaml", *words]) == 2
    assert said in capsys.readouterr().err and not (recipe.parent / "runs").exists()


def test_programs_hear_of_the_chosen_stages(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "r.yaml", "--until", "sft", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert list(result["stages"]) == ["sft"] and result["recipe"] == "r"


def test_several_processes_run_a_chosen_stage(recipe: Path) -> None:
    runs: dict[str, Any] = {}
    fewer = ["~stages.helpful", "~stages.more", "~stages.report"]
    for name, words in {"parts": ["--until", "sft"], "whole": fewer}.items():
        ended = together(recipe.parent, ["run", "r.yaml", *words, "--out", name])
        assert [process.code for process in ended] == [0, 0], ended
        runs[name] = (recipe.parent / name / "sft" / WEIGHTS).read_bytes()
    assert runs["parts"] == runs["whole"] and complete(recipe.parent / "parts") == ["sft"]
    first, _ = together(recipe.parent, ["run", "r.yaml", "--only", "more", "--out", "else"])
    assert first.code == 2 and "--only needs results of sft" in first.err


@pytest.mark.parametrize("words", [[], ["seed=3"], ["--json"], ["seed=x"]])
def test_a_dry_run_says_what_check_says(
    recipe: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "r.yaml", "--until", "sft"]) == 0
    before = sorted(recipe.parent.rglob("*"))
    capsys.readouterr()
    checked = main(["check", "r.yaml", *words]), capsys.readouterr()
    assert (
        main(["run", "r.yaml", "--dry-run", "--processes", "2", *words]),
        capsys.readouterr(),
    ) == checked
    assert sorted(recipe.parent.rglob("*")) == before


def test_a_dry_run_says_what_chosen_stages_would_do(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "r.yaml", "--until", "sft"]) == 0
    capsys.readouterr()
    assert main(["run", "r.yaml", "--only", "report", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4:] == [
        "sft: reused",
        "more: needed, but not complete: --until more runs it",
        "report: runs",
        "ok: r: stages report",
    ]
    assert main(["run", "r.yaml", "--until", "sft", "--out", "else", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1:] == ["ok: r: stages sft"], (
        "it looks into the other folder"
    )
    assert main(["run", "r.yaml", "--until", "helpful", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "sft: reused",
        "helpful: runs",
        "ok: r: stages sft -> helpful",
    ]

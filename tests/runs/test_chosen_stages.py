"""`run --only` and `--until`: some stages of a recipe, with the results that the whole recipe would
have.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from alignkit.cli import main
from alignkit.io.results import RECIPE, damage_of
from tests.rows import Said, write_recipe

NAMES = ["sft", "helpful", "more", "report"]
STAGES = """
sft: {algorithm: sft, data: demos.jsonl, max_steps: 2, learning_rate: 0.1}
helpful: {algorithm: reward_model, data: pairs.jsonl, max_steps: 1}
more: {algorithm: sft, from: sft, data: demos.jsonl, max_steps: 2}
report:
  step: evaluate
  policies: [base, sft, more]
  rewards: [{length: {unit: characters}}]
  prompts: demos.jsonl
  sampling: {max_new_tokens: 4}
"""
WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe in the current folder, one stage of which none of the others needs."""
    monkeypatch.chdir(tmp_path)
    return write_recipe(tmp_path, STAGES).rename(tmp_path / "r.yaml")


def complete(folder: Path) -> list[str]:
    return [name for name in NAMES if damage_of(folder / name) is None]


def test_stages_one_after_the_other_are_those_of_the_whole_run(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, whole = recipe.parent / "runs" / "r", recipe.parent / "whole"
    assert main(["run", "r.yaml", "--until", "helpful", "--json"]) == 0
    assert complete(parts) == ["sft", "helpful"] and not (parts / "report").exists()
    out, err = capsys.readouterr()
    result = json.loads(out)["result"]
    assert list(result["stages"]) == ["sft", "helpful"] and list(result["files"]) == [
        "run.log",
        RECIPE,
    ]
    assert result["stages"]["sft"]["metrics"]["step"] == 2
    assert err.splitlines()[0].endswith(": r, 2 stages, runs/r")
    assert main(["run", "r.yaml", "--only", "more"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert "sft: unchanged, reused" in lines and "more: stage 2 of 2, sft" in lines
    assert not any(line.startswith("helpful:") for line in lines)
    assert main(["run", "r.yaml", "--only", "report"]) == 0 and complete(parts) == NAMES
    assert main(["run", "r.yaml", "--out", str(whole)]) == 0
    for file in (f"sft/{WEIGHTS}", f"helpful/{WEIGHTS}", f"more/{WEIGHTS}", "report/samples.jsonl"):
        assert (parts / file).read_bytes() == (whole / file).read_bytes(), file
    one, other = ((folder / RECIPE).read_text(encoding="utf-8") for folder in (parts, whole))
    assert one == other and list(yaml.safe_load(one)["stages"]) == NAMES


def test_a_stage_alone_needs_complete_results_of_the_earlier_ones(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recipe.parent / "runs" / "r"

    def refused(*words: str) -> str:
        capsys.readouterr()
        assert main(["run", "r.yaml", *words]) == 2
        return capsys.readouterr().err

    said = refused("--only", "report")
    assert "--only needs results of sft, more, which are not complete" in said
    assert "help: --until more makes them" in said
    assert not {"sft", "report"} & {path.name for path in folder.iterdir()}
    assert main(["run", "r.yaml", "--until", "sft"]) == 0
    assert "--only needs results of more," in refused("--only", "report")
    changed = refused("stages.sft.learning_rate=0.2", "--only", "more")
    assert "--only needs results of sft," in changed
    assert main(["run", "r.yaml", "--only", "more"]) == 0, "nothing of what was refused is left"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "mroe"], "no stage 'mroe'\n  help: did you mean 'more'?"),
        (["--only", "sft", "--until", "more"], "--only runs one stage"),
    ],
)
def test_mistakes(recipe: Path, words: list[str], message: str, said: Said) -> None:
    assert main(["run", "r.yaml", *words]) == 2
    assert message in said() and not (recipe.parent / "runs").exists()


@pytest.mark.parametrize("words", [["--json"], ["seed=x"]])
def test_a_dry_run_says_what_check_says(
    recipe: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(recipe.parent.rglob("*"))
    commands = (["check", "r.yaml"], ["run", "r.yaml", "--dry-run", "--processes", "2"])
    checked, dry = ((main([*command, *words]), capsys.readouterr()) for command in commands)
    assert dry == checked
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
    assert main(["run", "r.yaml", "--until", "helpful", "--out", "else", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "ok: r: stages sft -> helpful"

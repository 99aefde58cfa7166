"""A run replaces nothing that was in its folder before."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignkit import cli

RECIPE = """
name: short
model: {base: tiny}
stages:
  sft: {algorithm: sft, data: demos.jsonl, max_steps: 1}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "demos.jsonl").write_text('{"prompt": "q", "completion": "a"}\n', encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path / "recipe.yaml"


def run(recipe: Path, out: Path) -> int:
    return cli.main(["run", str(recipe), "--out", str(out)])


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["report.json", "report.html"])
def test_a_folder_with_files_that_a_run_would_replace_is_refused(
    name: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe.parent / name).write_text("mine", encoding="utf-8")
    before = files(recipe.parent)
    assert run(recipe, recipe.parent) == 2
    error = capsys.readouterr().err
    assert f"a run would replace {name}" in error
    assert "help: choose another folder, such as --out runs/NAME" in error
    assert files(recipe.parent) == before


def test_a_run_next_to_a_project_leaves_it_alone(recipe: Path) -> None:
    """Even files whose names look like something temporary."""
    project = recipe.parent
    for name in (
        ".notes.new/a",
        ".notes.old/b",
        ".sft.old/c",
        ".x.12.tmp",
        "src/.y.3.tmp",
        "src/.z.new/d",
    ):
        (project / name).parent.mkdir(exist_ok=True, parents=True)
        (project / name).write_text(name, encoding="utf-8")
    (project / "sft").mkdir()  # empty: nothing to lose
    before = files(project)
    for _ in range(2):
        assert run(recipe, project) == 0
        assert files(project).items() >= before.items()
    assert (project / "sft" / "adapter").is_dir()


def test_a_stage_added_later_leaves_what_has_its_name(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = recipe.parent / "out"
    assert run(recipe, out) == 0
    (out / "more").mkdir()
    (out / "more" / "notes").write_text("mine", encoding="utf-8")
    recipe.write_text(
        RECIPE + RECIPE.splitlines()[-1].replace("sft:", "more:") + "\n", encoding="utf-8"
    )
    capsys.readouterr()
    assert run(recipe, out) == 1
    assert f"{out / 'more'} is no link to a result of this run" in capsys.readouterr().err
    assert (out / "more" / "notes").read_text(encoding="utf-8") == "mine"


def test_a_first_start_that_fails_can_be_repeated(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = recipe.parent / "out"
    (recipe.parent / "demos.jsonl").rename(recipe.parent / "later.jsonl")
    assert run(recipe, out) == 2
    (recipe.parent / "later.jsonl").rename(recipe.parent / "demos.jsonl")
    assert run(recipe, out) == 0

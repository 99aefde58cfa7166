"""A run replaces nothing that was in its folder before."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rows import Said, run, write_recipe

SFT = "sft: {algorithm: sft, data: demos.jsonl, max_steps: 1}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, SFT)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["report.json", "report.html"])
def test_a_folder_with_files_that_a_run_would_replace_is_refused(
    name: str, recipe: Path, said: Said
) -> None:
    (recipe.parent / name).write_text("mine", encoding="utf-8")
    before = files(recipe.parent)
    run(recipe, out=recipe.parent, code=2)
    assert f"a run would replace {name}" in said()
    assert files(recipe.parent) == before


def test_a_run_next_to_a_project_leaves_it_alone(recipe: Path) -> None:
    """Even files whose names look like something temporary."""
    project = recipe.parent
    for name in (".notes.new/a", ".sft.old/c", ".x.12.tmp", "src/.y.3.tmp", "src/.z.new/d"):
        (project / name).parent.mkdir(exist_ok=True, parents=True)
        (project / name).write_text(name, encoding="utf-8")
    (project / "sft").mkdir()  # empty: nothing to lose
    before = files(project)
    for _ in range(2):
        run(recipe, out=project)
        assert files(project).items() >= before.items()
    assert (project / "sft" / "adapter").is_dir()


def test_a_first_start_that_fails_can_be_repeated(recipe: Path) -> None:
    data = recipe.parent / "demos.jsonl"
    later = data.rename(recipe.parent / "later.jsonl")
    run(recipe, code=2)
    later.rename(data)
    run(recipe)

"""Files of a recipe are read and merged; every value remembers its file."""

from pathlib import Path

import pytest
from documents import place, problems, write

from alignkit.errors import RecipeError
from alignkit.recipe.yaml import MAX_BYTES, Document, load_document


def test_too_large_missing_and_folder(tmp_path: Path) -> None:
    assert "larger than 1 MiB" in problems(tmp_path, b"#" * (MAX_BYTES + 1))[0].message
    for path, reason in ((tmp_path / "none.yaml", "no such file"), (tmp_path, "is a directory")):
        with pytest.raises(RecipeError, match=reason):
            load_document(path)


def load_extending(folder: Path, base: str, over: str) -> Document:
    (folder / "sub").mkdir(exist_ok=True)
    write(folder / "sub", base, "base.yaml")
    return load_document(write(folder, "extends: sub/base.yaml\n" + over))


def test_extends_merges_deeply_and_remembers_files(tmp_path: Path) -> None:
    document = load_extending(
        tmp_path, "m: {a: 1, b: {c: 2, d: 3}}\nl: [1, 2]\n", "m: {b: {c: 9}}\nl: [3]\n"
    )
    assert document.data == {"m": {"a": 1, "b": {"c": 9, "d": 3}}, "l": [3]}
    assert document.problem(("m", "b", "d"), "").file.endswith("base.yaml")
    assert document.problem(("m", "b", "c"), "").file.endswith("r.yaml")


def test_a_component_is_replaced_by_another_and_merged_with_its_own(tmp_path: Path) -> None:
    base = "algorithm: {ppo: {a: 1}}\n"
    assert load_extending(tmp_path, base, "algorithm: {dpo: {b: 2}}").data == {
        "algorithm": {"dpo": {"b": 2}}
    }
    assert load_extending(tmp_path, base, "algorithm: {ppo: {b: 2}}").data == {
        "algorithm": {"ppo": {"a": 1, "b": 2}}
    }


def test_extends_problems(tmp_path: Path) -> None:
    write(tmp_path, "extends: r.yaml\n", "b.yaml")
    (problem,) = problems(tmp_path, "extends: b.yaml\n")
    assert "in a cycle: r.yaml -> b.yaml -> r.yaml" in problem.message
    assert problem.file.endswith("b.yaml") and place(problem) == (1, 10, 6)
    (problem,) = problems(tmp_path, "a: 1\nextends: nope.yaml\n")
    assert "no such recipe" in problem.message and place(problem) == (2, 10, 9)
    assert "no such recipe" in problems(tmp_path, "extends: [a]\n")[0].message

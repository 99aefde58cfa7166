"""Files of a recipe are read and merged; every value remembers its file."""

from pathlib import Path

import pytest
import yaml
from documents import place, problems, write

from alignkit.errors import RecipeError
from alignkit.recipe.yaml import MAX_BYTES, load_document


def test_too_large_missing_and_folder(tmp_path: Path) -> None:
    assert "larger than 1 MiB" in problems(tmp_path, b"#" * (MAX_BYTES + 1))[0].message
    for path, reason in ((tmp_path / "none.yaml", "no such file"), (tmp_path, "is a directory")):
        with pytest.raises(RecipeError, match=reason):
            load_document(path)


BASE = "{m: {a: 1, b: {c: 2, d: 3}}, l: [1, 2], algorithm: {ppo: {a: 1}}, reward: {x: {a: 1}}}"
MERGED = """
m: {a: 1, b: {c: 9, d: 3}}
l: [3]
algorithm: {dpo: {b: 2}}
reward: {x: {a: 1, b: 2}}
"""


def test_extends_merges_deeply_and_remembers_files(tmp_path: Path) -> None:
    """A component is replaced by another and merged with its own."""
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", BASE, "base.yaml")
    over = "m: {b: {c: 9}}\nl: [3]\nalgorithm: {dpo: {b: 2}}\nreward: {x: {b: 2}}\n"
    document = load_document(write(tmp_path, f"extends: sub/base.yaml\n{over}"))
    assert document.data == yaml.safe_load(MERGED)
    assert document.problem(("m", "b", "d"), "").file.endswith("base.yaml")
    assert document.problem(("m", "b", "c"), "").file.endswith("r.yaml")


COMPONENTS = "algorithm step reward rewards judge environment engine data prompts validation"


def test_options_of_different_plugins_are_never_merged(tmp_path: Path) -> None:
    one, two = (
        "".join(f"{key}: {{{name}: {{x: 1}}}}\n" for key in COMPONENTS.split())
        for name in ("one", "two")
    )
    write(tmp_path, one, "base.yaml")
    document = load_document(write(tmp_path, f"extends: base.yaml\n{two}"))
    assert document.data == yaml.safe_load(two)


def test_extends_problems(tmp_path: Path) -> None:
    write(tmp_path, "extends: r.yaml\n", "b.yaml")
    (problem,) = problems(tmp_path, "extends: b.yaml\n")
    assert "in a cycle: r.yaml -> b.yaml -> r.yaml" in problem.message
    assert problem.file.endswith("b.yaml") and place(problem) == (1, 10, 6)
    (problem,) = problems(tmp_path, "a: 1\nextends: nope.yaml\n")
    assert "no such recipe" in problem.message and place(problem) == (2, 10, 9)
    assert "no such recipe" in problems(tmp_path, "extends: [a]\n")[0].message

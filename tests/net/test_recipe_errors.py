"""Every mistake of a recipe is reported at its place, with the nearest name: replayed from a table,
without wording.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.net.changes import NET, ROOT, expected

TABLE = NET / "pins" / "errors.jsonl"
CASES = {
    row["name"]: row for row in map(json.loads, TABLE.read_text(encoding="utf-8").splitlines())
}
WANTED = expected("errors", {name: case["problems"] for name, case in CASES.items()})


def problems(folder: Path, case: dict[str, Any]) -> list[list[Any]]:
    """[file, line, column, marked text, nearest name] of every problem that reading the recipe
    reports.
    """
    from alignkit.errors import RecipeError
    from alignkit.recipe.load import load_recipe

    for name, text in case.get("files", {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "repo").symlink_to(ROOT)
    path = folder / case["file"]
    path.write_bytes(case["text"].encode("latin-1"))
    try:
        load_recipe(path, case.get("overrides", ()))
    except RecipeError as error:
        found = error.problems
    else:
        return []
    result = []
    for problem in found:
        marked = problem.source[max(problem.column - 1, 0) : problem.column - 1 + problem.length]
        near = re.search(r"did you mean '([^']+)'", problem.help)
        file = problem.file.replace(f"{folder}/", "")
        result.append([file, problem.line, problem.column, marked, near[1] if near else ""])
    return result


@pytest.mark.silent_bug(
    "advantages: groups",
    "With one sample per prompt every advantage is 0, and training does nothing.",
    "The recipe is refused.",
    "OpenRLHF/OpenRLHF#1250",
)
@pytest.mark.parametrize("name", WANTED)
def test_a_mistake(name: str, here: Path) -> None:
    assert problems(here, CASES[name]) == WANTED[name], CASES[name]["text"]

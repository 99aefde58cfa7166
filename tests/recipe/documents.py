"""Recipes that tests write, and what is read of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignkit.errors import Problem, RecipeError
from alignkit.recipe.yaml import load_document


def write(folder: Path, text: str | bytes, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def data(folder: Path, text: str, *overrides: str) -> dict:
    return load_document(write(folder, text), overrides).data


def problems(folder: Path, text: str | bytes, *overrides: str) -> list[Problem]:
    with pytest.raises(RecipeError) as caught:
        document = load_document(write(folder, text), overrides)
        raise RecipeError(document.problems)
    return caught.value.problems


def place(problem: Problem) -> tuple[int, int, int]:
    return problem.line, problem.column, problem.length

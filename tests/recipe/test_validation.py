"""pydantic's errors in plain words, at their place in the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import Problem
from alignkit.options import Field, Options
from alignkit.recipe.mistakes import problems_of, validated
from alignkit.recipe.yaml import load_document


class Inner(Options):
    size: int = Field(1, ge=1, le=4, description="how large")


class Sample(Options):
    union: int | list[str] = 1
    inner: Inner | None = Field(None, description="a part")
    names: list[str] = Field(default_factory=lambda: ["a"], min_length=1, max_length=2)
    table: dict[str, float] = Field(default_factory=dict)
    word: str | None = Field(None, pattern="^[a-c]+$")
    nested: list[Inner] = Field(default_factory=list)


@pytest.fixture
def check(tmp_path: Path):
    def run(text: str) -> tuple[Sample | None, list[Problem]]:
        path = tmp_path / "r.yaml"
        path.write_text(text)
        document = load_document(path)
        value, mistakes = validated(Sample, document.data)
        return value, problems_of(document, mistakes)

    return run


def test_valid_data_become_the_model(check: Any) -> None:
    value, problems = check("union: [a]\ninner: {size: 2}\n")
    assert value == Sample(union=["a"], inner=Inner(size=2)) and not problems


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("union: {}", "union: must be a valid integer, got {}"),
        # The arm that failed deeper fits best
        ("union: [1]", "union.0: must be a valid string, got 1"),
        ("inner: 3", "inner: must be an object, got 3"),
        ("inner: {size: 5}", "inner.size: must be less than or equal to 4, got 5"),
        ("inner: {size: null}", "inner.size: must be a valid integer, got null"),
        ("names: []", "names: must have at least 1 item after validation, not 0, got []"),
        (
            "names: [a, b, c]",
            'names: must have at most 2 items after validation, not 3, got ["a", "b", "c"]',
        ),
        ("word: xyz", "word: must match pattern '^[a-c]+$', got 'xyz'"),
        ("nested: [{size: 1}, {sise: 1}]", "unknown key 'sise'"),
        (f"inner: {'x' * 99}", f"inner: must be an object, got '{'x' * 56}..."),
    ],
)
def test_a_problem_in_words(check: Any, text: str, message: str) -> None:
    value, problems = check(text)
    assert value is None
    assert [problem.message for problem in problems] == [message]


def test_the_description_is_the_help_if_there_is_no_better_one(check: Any) -> None:
    assert check("inner: 3")[1][0].help == "a part"
    assert check("nested: [{size: 9}]")[1][0].help == "how large"
    assert check("nested: [{sise: 1}]")[1][0].help == "did you mean 'size'?"

"""References are found by the marks in annotations, at any depth, and replaced by what they refer
to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from alignkit.options import DataRef, Field, Options, PolicyRef, RewardRef, StageRef
from alignkit.recipe.mistakes import validated, wrong
from alignkit.recipe.references import Reading
from alignkit.registry import Registry


class Part(Options):
    reward: RewardRef


class Sample(Options):
    stage: StageRef | None = None
    word_or_stage: Literal["none"] | StageRef | None = None
    many: list[PolicyRef] = Field(default_factory=list)
    pair: tuple[StageRef, int] | None = None
    table: dict[str, RewardRef] = Field(default_factory=dict)
    part: Part | None = None
    parts: list[Part] = Field(default_factory=list)
    data: DataRef | None = None
    file: Path | None = None


class Named(Reading):
    """Says what it was asked."""

    def resolve(self, kind: str, value: Any) -> Any:
        if value == "bad":
            raise wrong(f"no {kind}", keys=("inner",))
        return f"{kind} {value}"


@pytest.fixture
def reading(tmp_path: Path) -> Reading:
    (tmp_path / "there").touch()
    return Named(Registry(), tmp_path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"stage": "a"}, "stage a"),
        ({"word_or_stage": "none"}, "none"),
        ({"word_or_stage": "a"}, "stage a"),
        ({"many": ["a", "b"]}, ["policy a", "policy b"]),
        ({"pair": ["a", 3]}, ("stage a", 3)),
        ({"table": {"x": 1}}, {"x": "reward 1"}),
        ({"part": {"reward": "r"}}, Part(reward="reward r")),
        ({"parts": [{"reward": "r"}]}, [Part(reward="reward r")]),
        ({"data": {"path": "d"}}, "data {'path': 'd'}"),
    ],
)
def test_a_reference_is_replaced(reading: Reading, options: dict[str, Any], expected: Any) -> None:
    read, mistakes = validated(Sample, options, reading)
    assert getattr(read, *options) == expected and not mistakes
    assert getattr(Sample.model_validate(options), *options) != expected or options == {
        "word_or_stage": "none"
    }


def test_a_mistake_is_told_with_its_place(reading: Reading) -> None:
    read, mistakes = validated(Sample, {"pair": ["bad", "x"], "file": "gone"}, reading)
    assert read is None
    assert sorted((*mistake.keys, mistake.message.split(":")[0]) for mistake in mistakes) == [
        ("file", "no such file"),
        ("pair", 0, "inner", "no stage"),
        ("pair", 1, "{path}"),
    ]

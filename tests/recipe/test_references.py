"""References are found by the marks in annotations, at any depth, and replaced by what they refer to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from alignkit.options import DataRef, Field, Options, PolicyRef, RewardRef, StageRef
from alignkit.recipe.components import check_references, replace_references
from alignkit.recipe.document import Document, Keys
from alignkit.recipe.paths import Paths
from alignkit.recipe.problems import Problems
from alignkit.recipe.rounds import Rounds
from alignkit.recipe.scope import Scope
from alignkit.recipe.yaml_nodes import Mark
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
    plain: list[int] = Field(default_factory=list)


@pytest.fixture
def scope(tmp_path: Path) -> Scope:
    mark = Mark(str(tmp_path / "r.yaml"))
    problems = Problems(Document(tmp_path / "r.yaml", {}, {(): (mark, mark)}))
    rounds = Rounds(every={"": {"align": ["align_1", "align_2"]}})

    def named(kind: str) -> Any:
        return lambda value, keys, scope: f"{kind} {value} at {'.'.join(map(str, keys))}"

    resolvers = {kind: named(kind) for kind in ("stage", "policy", "reward", "data")}
    return Scope(problems, Paths(problems), Registry(), rounds, resolvers)


def replaced(scope: Scope, **options: Any) -> Sample:
    return replace_references(Sample.model_validate(options), ("s",), scope)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"stage": "a"}, "stage a at s.stage"),
        ({"word_or_stage": "none"}, "none"),
        ({"word_or_stage": "a"}, "stage a at s.word_or_stage"),
        ({"many": ["a", "b"]}, ["policy a at s.many.0", "policy b at s.many.1"]),
        ({"many": ["align@all"]}, ["policy align_1 at s.many.0", "policy align_2 at s.many.0"]),
        ({"pair": ("a", 3)}, ("stage a at s.pair.0", 3)),
        ({"table": {"x": 1}}, {"x": "reward 1 at s.table.x"}),
        ({"part": {"reward": "r"}}, Part(reward="reward r at s.part.reward")),
        ({"parts": [{"reward": "r"}]}, [Part(reward="reward r at s.parts.0.reward")]),
        ({"data": {"path": "d"}}, "data {'path': 'd'} at s.data"),
    ],
)  # fmt: skip
def test_a_reference_is_replaced(scope: Scope, options: dict[str, Any], expected: Any) -> None:
    (name,) = options
    assert getattr(replaced(scope, **options), name) == expected


def test_options_without_references_stay_the_same_object(scope: Scope) -> None:
    options = Sample(plain=[1, 2])
    assert replace_references(options, (), scope) is options


def test_raw_options_are_checked_except_for_values_that_failed(scope: Scope) -> None:
    seen: list[Keys] = []

    def note(value: Any, keys: Keys, scope: Scope) -> None:
        seen.append(keys)

    resolvers = dict.fromkeys(scope.resolvers, note)
    scope = Scope(scope.problems, scope.paths, scope.registry, scope.rounds, resolvers, failed={("s", "stage")})
    raw = {"stage": 3, "many": ["a"], "parts": [{"reward": "r", "x": 1}], "plain": "no list", "unknown": 1}
    check_references(Sample, raw, ("s",), scope)
    assert seen == [("s", "many", 0), ("s", "parts", 0, "reward")]

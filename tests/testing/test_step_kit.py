"""The kit of steps: good ones pass, and each kind of broken one is reported."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from alignkit import (
    Artifact,
    DataError,
    DataRef,
    Field,
    Group,
    Options,
    Step,
    StepContext,
    StepData,
)
from alignkit.contract.report import Report
from alignkit.testing import check_step
from tests.testing.kits import broken, reported

Run = Callable[[Any, StepContext], Any]


class Head(Step):
    """A good one."""

    class Options(Options):
        data: DataRef = Field("rows.jsonl", description="the groups to choose from")
        count: int = Field(2, ge=1, description="number of groups")

    def run(self, context: StepContext) -> Any:
        groups = context.load(self.options.data)[: self.options.count]
        ids = [group.id for group in groups]
        lengths = context.map("length", ids, lambda ids: [len(each) for each in ids])
        context.log(groups=len(groups))
        context.write_json("lengths.json", lengths)
        return Artifact(groups=groups, text=f"{len(groups)} groups")


def test_good_steps_conform() -> None:
    check_step(Head)
    check_step(Head, {"count": 1}, groups=[Group((), id="one"), Group((), id="two")])


def makes(**parts: Callable[[], Any]) -> Run:
    return lambda self, context: Artifact(**{name: part() for name, part in parts.items()})


def with_meta(value: Any) -> Run:
    def run(self: Any, context: StepContext) -> Artifact:
        groups = context.load(self.options.data)
        return Artifact(groups=[replace(group, meta={"words": value}) for group in groups])

    return run


def changes(self: Any, context: StepContext) -> Artifact:
    groups = context.load(self.options.data)
    groups[0].meta["seen"] = True
    return Artifact(groups=groups)


def hidden_model(self: Any, context: StepContext) -> Artifact:
    logprobs = context.models["other"].logprobs(context.load(self.options.data)[:1])
    return Artifact(summary={"first": float(logprobs[0][0])})


def counts_in_map(self: Any, context: StepContext) -> Artifact:
    asked: list[Any] = []

    def ask(ids: Any) -> list[int]:
        asked.extend(ids)
        return [0 for _ in ids]

    context.map("ask", ["a", "b"], ask)
    return Artifact(summary={"asked": len(asked)})


def draws_in_map(self: Any, context: StepContext) -> Artifact:
    drawn = context.map("draw", ["a"], lambda ids: [random.random()])
    return Artifact(summary={"drawn": drawn[0]})


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda self, context: {"groups": 3}, "return an Artifact"),
        (makes(groups=lambda: ["a"]), "groups.0 Input should be an instance"),
        (with_meta(("a", "b")), "group 0 of the artifact changes when it is stored"),
        (with_meta({"a"}), "group 0 of the artifact cannot be stored"),
        (makes(summary=lambda: {"words": {"a"}}), "not JSON serializable"),
        (makes(policy=lambda: "sft@2"), "'sft@2' is not the value of a PolicyRef"),
        (lambda self, context: context.load("other.jsonl"), "takes the value of a DataRef option"),
        (hidden_model, "uses models that no option names .*: other"),
        (changes, "changes the groups that `context.load` returned"),
        (makes(summary=lambda: {"first": random.random()}), "numbers from `context.seed` only"),
        (draws_in_map, "a second run makes another artifact"),
        (makes(report=lambda: Report([str(random.random())])), "a second run makes another"),
        (counts_in_map, "interrupted after all chunks of `context.map`"),
        (lambda self, context: [][1], r"IndexError: .* \(test_step_kit.py:\d+\)"),
    ],
)
def test_broken_runs_are_reported(run: Run, message: str) -> None:
    reported(check_step, broken(Head, run=run), message)


def needs_data(self: Any, data: StepData) -> None:
    assert data.load(self.options.data) is not None


def changes_early(self: Any, data: StepData) -> None:
    for group in data.load(self.options.data) or ():
        group.meta["seen"] = True


def refuses(self: Any, data: StepData) -> None:
    if data.load(self.options.data):
        raise DataError("no row has a margin", option=("data",))


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (
            broken(Head, check_data=needs_data),
            r"[.]check_data`: AssertionError.*\(test_step_kit.py:\d+",
        ),
        (
            broken(Head, check_data=changes_early),
            "`check_data` changes the groups that it is given",
        ),
        (broken(Head, check_data=refuses), "no row has a margin"),
        (Group, r"must be a subclass of alignkit\.Step"),
    ],
)
def test_broken_checks_are_reported(cls: Any, message: str) -> None:
    reported(check_step, cls, message)

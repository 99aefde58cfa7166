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
    PolicyRef,
    RewardRef,
    SamplingOptions,
    Step,
    StepContext,
    StepData,
)
from alignkit.testing import ConformanceError, check_step


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


class Answers(Step):
    """A good one that uses models, and checks its data."""

    class Options(SamplingOptions):
        data: DataRef = Field("rows.jsonl", description="prompts")
        policies: dict[str, list[PolicyRef]] = Field(
            {"all": ["sft"]}, description="models that respond"
        )
        reward: RewardRef | None = Field("helpful", description="scores them")

    def policies_to_sample(self) -> list[str]:
        return self.options.policies["all"]

    def check_data(self, data: StepData) -> None:
        if (groups := data.load(self.options.data)) is not None:
            data.check_prompts(self.options.reward, groups)
            assert data.load(None) is None

    def run(self, context: StepContext) -> Any:
        prompts = context.load(self.options.data)
        (policy,) = self.options.policies["all"]
        groups = context.models[policy].sample(
            prompts, seed=context.seed, samples_per_prompt=2, max_new_tokens=4
        )
        tokens = sum(map(len, context.models["base"].logprobs(groups)))
        scored = context.scorer(self.options.reward).score(groups)
        return Artifact(groups=scored, policy=policy, summary={"tokens": tokens})


def test_good_steps_conform() -> None:
    check_step(Head)
    check_step(Answers)
    check_step(Head, {"count": 1}, groups=[Group((), id="one"), Group((), id="two")])


def with_meta(value: Any) -> Callable[[Any, StepContext], Artifact]:
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


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda self, context: {"groups": 3}, "return an Artifact"),
        (lambda self, context: Artifact(groups=["a"]), "groups.0 Input should be an instance"),  # type: ignore[list-item]
        (with_meta(("a", "b")), "group 0 of the artifact changes when it is stored"),
        (with_meta({"a"}), "group 0 of the artifact cannot be stored"),
        (lambda self, context: Artifact(summary={"words": {"a"}}), "not JSON serializable"),
        (lambda self, context: Artifact(text=3), "Artifact text Input should be a valid"),  # type: ignore[arg-type]
        (lambda self, context: Artifact(policy="sft@2"), "'sft@2' is not the value of a PolicyRef"),
        (lambda self, context: context.load("other.jsonl"), "takes the value of a DataRef option"),
        (hidden_model, "uses models that no option names .*: other"),
        (changes, "changes the groups that `context.load` returned"),
        (
            lambda self, context: Artifact(summary={"first": random.random()}),
            "random numbers from `context.seed` only",
        ),
        (counts_in_map, "interrupted after all chunks of `context.map`"),
        (
            lambda self, context: context.load(self.options.data)[100],
            r"IndexError: .* \(test_step_kit.py:\d+\)",
        ),
    ],
)
def test_broken_runs_are_reported(run: Any, message: str) -> None:
    with pytest.raises(ConformanceError, match=message) as caught:
        check_step(type("Broken", (Head,), {"run": run}))
    assert all(line.startswith("Broken: ") for line in str(caught.value).splitlines())


def needs_data(self: Any, data: StepData) -> None:
    assert data.load(self.options.data) is not None


def changes_early(self: Any, data: StepData) -> None:
    for group in data.load(self.options.data) or ():
        group.meta["seen"] = True


def refuses(self: Any, data: StepData) -> None:
    if data.load(self.options.data):
        raise DataError("no row has a margin", option=("data",))


@pytest.mark.parametrize(
    ("check_data", "message"),
    [
        (needs_data, r"[.]check_data`: AssertionError.*\(test_step_kit.py:\d+\)"),
        (changes_early, "`check_data` changes the groups that it is given"),
        (refuses, "no row has a margin"),
    ],
)
def test_broken_checks_are_reported(check_data: Any, message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        check_step(type("Broken", (Head,), {"check_data": check_data}))
    with pytest.raises(ConformanceError, match=r"must be a subclass of alignkit\.Step"):
        check_step(Group)  # type: ignore[arg-type]

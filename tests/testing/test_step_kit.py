"""The kit of steps: every first-party step passes, and each kind of broken one is reported."""

from __future__ import annotations

import random
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
    Response,
    RewardRef,
    SamplingOptions,
    Step,
    StepContext,
    StepData,
)
from alignkit.plugins import plugins
from alignkit.testing import ConformanceError, check_step

JUDGE = {"local_judge": {"min_mass": 0, "role": "judge"}}
USE_CASES = {"praise": "says that it is good", "doubt": "asks whether it is true"}
SHORT: dict[str, Any] = {"prompts": "held_out.jsonl", "sampling": {"max_new_tokens": 6}}
# The untrained model ends no answer by itself.
ENDS: dict[str, Any] = {"sampling": {"max_new_tokens": 64, "stop": ["e"]}, "critique_tokens": 64}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "calibration": [
        {"policies": ["base", "sft"], "correct": "helpful", "confidence": "token", **SHORT}
    ],
    "categorize": [{"data": "rows.jsonl", "categories": USE_CASES, "by": "base"}],
    "clean": [{"data": "rows.jsonl"}],
    "evaluate": [{"policies": ["base", "sft"], "rewards": ["helpful", {"length": {}}], **SHORT}],
    "evaluate_reward": [
        {"rewards": ["helpful", {"length": {"unit": "characters"}}], "pairs": "rows.jsonl"}
    ],
    "instruct": [{"data": "rows.jsonl", "instruction": "Be brief."}],
    "judge_pairs": [
        {"judge": JUDGE, "data": "rows.jsonl"},
        {"judge": JUDGE, "policy": "sft", **SHORT},
    ],
    "lm_eval": [],  # runs another package, which tests/evaluate/test_lm_eval.py does
    "people": [],  # waits for people, as tests/people/test_people.py does
    "questions": [],  # the untrained model writes none: see tests/ai_feedback/test_make_data.py
    "red_team": [
        {
            "attacker": "base",
            "policy": "sft",
            "goals": "rows.jsonl",
            "reward": "helpful",
            "success": 0.0,
        },
    ],
    "revise": [{"policy": "sft", "critic": "base", "constitution": "harmless", **SHORT, **ENDS}],
    "sample": [
        {"policy": "sft", "samples_per_prompt": 2, "reward": "helpful", "keep": "best", **SHORT}
    ],
    "select_best": [{"policies": ["sft@1", "sft@2"], "reward": "helpful", **SHORT}],
    "sycophancy": [],  # needs known answers: see below
}
CASES = [(name, options) for name, each in OPTIONS.items() for options in each]


def first_party() -> dict[str, type]:
    registrations = plugins().registrations("step")
    return {one.name: one.implementation for one in registrations if one.distribution == "alignkit"}


def test_every_first_party_step_is_checked() -> None:
    assert first_party().keys() == OPTIONS.keys()


@pytest.mark.parametrize(("name", "options"), CASES, ids=[name for name, _ in CASES])
def test_first_party_steps_conform(name: str, options: dict[str, Any]) -> None:
    check_step(first_party()[name], options)


def test_sycophancy_conforms() -> None:
    groups = [
        Group(
            ({"role": "user", "content": f"{text}?"},),
            (Response(text="Yes."),),
            id=text,
            meta={"answers": [text], "opinion": "d"},
        )
        for text in ("a", "b", "c")
    ]
    correct = {"honesty_accuracy": {}}
    check_step(
        first_party()["sycophancy"],
        {"policies": ["base", "sft"], "correct": correct, **SHORT},
        groups=groups,
    )


class Head(Step):
    """A good one."""

    class Options(Options):
        data: DataRef = Field("rows.jsonl", description="the groups to choose from")
        count: int = Field(2, ge=1, description="number of groups")

    def run(self, context: StepContext) -> Any:
        groups = context.load(self.options.data)[: self.options.count]
        lengths = context.map(
            "length", [group.id for group in groups], lambda ids: [len(each) for each in ids]
        )
        context.log(groups=len(groups))
        context.say(f"{len(groups)} groups")
        context.write_json("lengths.json", lengths)
        return self.of(groups)

    def of(self, groups: Any, **summary: Any) -> Artifact:
        return Artifact(groups=groups, summary=summary, text=f"{len(groups)} groups")


class Answers(Step):
    """A good one that uses models."""

    class Options(SamplingOptions):
        data: DataRef = Field("rows.jsonl", description="prompts")
        policies: dict[str, list[PolicyRef]] = Field(
            {"all": ["sft"]}, description="models that respond"
        )
        reward: RewardRef | None = Field("helpful", description="scores them")

        def policies_to_sample(self) -> list[str]:
            return self.policies["all"]

    def run(self, context: StepContext) -> Any:
        scorer = context.scorer(self.options.reward)
        prompts = context.load(self.options.data)
        (policy,) = self.options.policies["all"]
        groups = context.models[policy].sample(
            prompts, seed=context.seed, samples_per_prompt=2, max_new_tokens=4
        )
        logprobs = context.models["base"].logprobs(groups)
        return Artifact(
            groups=scorer.score(groups), policy=policy, summary={"tokens": sum(map(len, logprobs))}
        )


class Careful(Answers):
    """A good one that checks its data."""

    def check_data(self, data: StepData) -> None:
        if (groups := data.load(self.options.data)) is not None:
            data.check_prompts(self.options.reward, groups)
            assert data.load(None) is None


@pytest.mark.parametrize("cls", [Head, Answers, Careful])
def test_good_steps_conform(cls: type[Step]) -> None:
    check_step(cls)


class NoArtifact(Head):
    def run(self, context: StepContext) -> Any:
        return {"groups": 3}


class Texts(Head):
    def run(self, context: StepContext) -> Any:
        return Artifact(groups=["a"])  # type: ignore[list-item]


class TupleInMeta(Head):
    def run(self, context: StepContext) -> Any:
        return self.of(
            [
                replace(group, meta={"words": ("a", "b")})
                for group in context.load(self.options.data)
            ]
        )


class ObjectInMeta(Head):
    def run(self, context: StepContext) -> Any:
        return self.of(
            [replace(group, meta={"words": {"a"}}) for group in context.load(self.options.data)]
        )


class ObjectInSummary(Head):
    def run(self, context: StepContext) -> Any:
        return Artifact(summary={"words": {"a", "b"}})


class TextIsNumber(Head):
    def run(self, context: StepContext) -> Any:
        return Artifact(text=3)  # type: ignore[arg-type]


class UnknownPolicy(Head):
    def run(self, context: StepContext) -> Any:
        return Artifact(policy="sft@2")


class LoadsAFile(Head):
    def run(self, context: StepContext) -> Any:
        return self.of(context.load("other.jsonl"))


class HiddenModel(Head):
    def run(self, context: StepContext) -> Any:
        found = context.models["other"].logprobs(context.load(self.options.data)[:1])
        return self.of([], first=float(found[0][0]))


class Changes(Head):
    def run(self, context: StepContext) -> Any:
        groups = context.load(self.options.data)
        for group in groups:
            group.meta["seen"] = True
        return self.of(groups)


class Shuffles(Head):
    def run(self, context: StepContext) -> Any:
        return self.of(context.load(self.options.data), first=random.random())


class CountsInMap(Head):
    def run(self, context: StepContext) -> Any:
        asked: list[Any] = []

        def ask(ids: Any) -> list[int]:
            asked.extend(ids)
            return [0 for _ in ids]

        context.map("ask", ["a", "b"], ask)
        return self.of([], asked=len(asked))


class Crashes(Head):
    def run(self, context: StepContext) -> Any:
        return self.of([context.load(self.options.data)[100]])


class NeedsData(Head):
    def check_data(self, data: StepData) -> None:
        assert data.load(self.options.data) is not None


class ChangesEarly(Head):
    def check_data(self, data: StepData) -> None:
        for group in data.load(self.options.data) or ():
            group.meta["seen"] = True


class Refuses(Head):
    def check_data(self, data: StepData) -> None:
        if data.load(self.options.data):
            raise DataError("no row has a margin", option=("data",))


BROKEN: list[tuple[Any, str]] = [
    (NoArtifact, "[.]run`: return an Artifact, not {"),
    (
        Texts,
        "[.]run`: ValidationError: .*for Artifact groups.0 Input should be an instance of Group",
    ),
    (TupleInMeta, "`run`: group 0 of the artifact changes when it is stored as JSON"),
    (ObjectInMeta, "`run`: group 0 of the artifact cannot be stored as JSON"),
    (ObjectInSummary, "[.]run`: TypeError: Object of type .* is not JSON serializable"),
    (TextIsNumber, "[.]run`: ValidationError: .*for Artifact text Input should be a valid string"),
    (
        UnknownPolicy,
        "`run`: the artifact's `policy` 'sft@2' is not the value of a PolicyRef option",
    ),
    (LoadsAFile, "[.]run`: .*load takes the value of a DataRef option, not 'other.jsonl'"),
    (
        HiddenModel,
        "`run` uses models that no option names as PolicyRef, RewardRef or StageRef: other",
    ),
    (Changes, "`run` changes the groups that `context.load` returned"),
    (
        Shuffles,
        "`run`: a second run makes another artifact: .* random numbers from `context.seed` only",
    ),
    (
        CountsInMap,
        "`run`: interrupted after all chunks of `context.map`, it makes another artifact",
    ),
    (Crashes, r"[.]run`: IndexError: list index out of range \(test_step_kit.py:\d+\)"),
    (NeedsData, r"[.]check_data`: AssertionError.*\(test_step_kit.py:\d+\)"),
    (ChangesEarly, "`check_data` changes the groups that it is given"),
    (Refuses, "no row has a margin"),
    (Group, "Group: step 'Group' must be a subclass of alignkit.Step"),
]


@pytest.mark.parametrize(("cls", "message"), BROKEN, ids=[cls.__name__ for cls, _ in BROKEN])
def test_broken_steps_are_reported(cls: Any, message: str) -> None:
    with pytest.raises(ConformanceError, match=message) as caught:
        check_step(cls)
    assert all(line.startswith(f"{cls.__name__}: ") for line in str(caught.value).splitlines())


def test_the_groups_can_be_given() -> None:
    check_step(Head, {"count": 1}, groups=[Group((), id="one"), Group((), id="two")])

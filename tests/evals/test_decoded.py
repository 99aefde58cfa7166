"""Policies that answer by the best of several samples, or after examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignkit import Group, Response
from alignkit.contract.step import StepData
from alignkit.errors import DataError
from alignkit_plugins.compare.rows import rows_in
from alignkit_plugins.evals import measures
from tests.evals.scripted import HELPFUL, SCORES, Scripted, X, context, prompts, step, summary
from tests.rows import user

RULES = {"role": "system", "content": "Be brief."}
DEMONSTRATION = Group((user("color?"),), (Response("Red."),))
# By whoever wrote an answer: a policy that is sampled says "other"
OF_SFT = {"other": SCORES["sft"], "sft, best of 4": SCORES["sft"]}
BEST = {"policy": "sft", "best_of": 4, "reward": HELPFUL}


def test_the_best_of_each_four_samples_counts(tmp_path: Path) -> None:
    """Sample 2 scores 10 less and sample 3 scores 10 more, and of the second four none does."""
    models = Scripted(SCORES | OF_SFT)
    found = summary(tmp_path, models, policies=["base", "sft", BEST], samples_per_prompt=2, kl=True)
    means = {one.policy: one.estimate["mean"] for one in rows_in(found) if one.metric == "helpful"}
    assert means["sft"] == 6 and means["sft, best of 4"] == (16 + 6) / 2
    asked = {(one["role"], one["samples_per_prompt"], one["seed"]) for one in models.sampled}
    assert asked == {("base", 2, 7), ("sft", 2, 7), ("sft", 8, 7)}
    # Its answers do not have the model's own probabilities
    assert [one.policy for one in rows_in(found) if one.metric == measures.KL] == ["base", "sft"]
    assert found["policies"] == ["base", "sft", "sft, best of 4"] and found["baseline"] == "sft"


def test_no_answer_without_a_score(tmp_path: Path) -> None:
    """A prompt at which nothing can be chosen is left out for all."""
    models, groups = (
        Scripted(SCORES | OF_SFT | {"other": [None, *SCORES["sft"][1:]]}),
        prompts(kind="x"),
    )
    found = summary(tmp_path, models, groups, policies=["base", BEST], kl=False)
    assert found["prompts"] == 5 and found["left_out"] == 1
    assert models.columns[:6] == [{"kind": "x"}] * 6  # the reward that chooses reads them


def test_examples_are_turns_before_the_prompt_and_behind_its_rules(tmp_path: Path) -> None:
    models, asked = Scripted(), list[Any]()
    groups = [replace(group, prompt=(RULES, *group.prompt)) for group in prompts(1)]

    def sample(role: str, groups: Any, **sampling: Any) -> list[Group]:
        asked.append([(one["role"], one["content"]) for one in groups[0].prompt])
        return [Group(group.prompt, (Response("yes", tokens=(0,)),)) for group in groups]

    def load(spec: Any) -> list[Group]:
        return groups if spec == X else [replace(DEMONSTRATION, prompt=(RULES, *(user("color?"),)))]

    models.sample = sample  # type: ignore[method-assign, assignment]
    models.scripted = {"base": [0], "base with examples": [1]}
    models._score = lambda group, answer: models.scripted[answer.source][0]  # type: ignore[method-assign]
    few = {"policy": "base", "examples": "few"}
    found = step(policies=["base", few], kl=False).run(context(models, tmp_path, load=load))
    assert asked == [
        [("system", "Be brief."), ("user", "question 0")],
        [
            ("system", "Be brief."),
            ("user", "color?"),
            ("assistant", "Red."),
            ("user", "question 0"),
        ],
    ]
    assert (found.summary or {})["policies"] == ["base", "base with examples"]


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (
            Group((user("question 3"),), (Response("Red."),)),
            "one of the prompts, whose answer it shows",
        ),
        (Group((user("color?"),)), "no prompt with a response"),
        (Group((), (Response("Red."),)), "no prompt with a response"),
    ],
)
def test_examples_that_cannot_be(example: Group, said: str) -> None:
    data = StepData(lambda spec: prompts() if spec == X else spec and [example], lambda *_: None)
    made = step(policies=["sft", {"policy": "base", "examples": "few"}])
    with pytest.raises(DataError, match=said):
        made.check_data(data)

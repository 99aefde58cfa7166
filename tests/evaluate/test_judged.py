"""Judges in the step `evaluate`: who is asked what, and what comes of the verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from by_policy import by_policy
from test_evaluate import HELPFUL, Scripted, context, judge_component, said, step, triple

from alignkit import Judge, Verdict
from alignkit.evaluation import statistics
from alignkit_plugins.evaluate import judged as numbers
from alignkit_plugins.evaluate.step import judge_names

# P(align is better) if shown first, and if shown second, at six prompts; None is an error.
ORDERS = [(0.9, 0.7), (0.6, 0.2), (0.5, 0.5), (0.1, 0.3), None, (1.0, 1.0)]
P = [0.8, 0.4, 0.5, 0.2, 1.0]  # their averages


class Prepared(Judge):
    """Gives the prepared verdicts; `options` collects what it was asked."""

    def compare(self, items: Any) -> list[Verdict]:
        self.options.extend(items)
        return [_verdict(ORDERS[int(prompt[-1]["content"].split()[-1])]) for prompt, _, _ in items]


def _verdict(orders: tuple[float, float] | None) -> Verdict:
    return (
        Verdict(None, reason="refused: I am sorry")
        if orders is None
        else Verdict(sum(orders) / 2, orders)
    )


class Items(list[Any]):
    """What was asked, as the options of a judge."""


def judged(folder: Path, asked: Items, **options: Any) -> tuple[dict[str, Any], Any]:
    component = judge_component(Prepared, asked)
    options = {"policies": ["sft", "align"], "judges": [component], "rewards": [], **options}
    artifact = step(**options).run(context(Scripted(), folder))
    return by_policy(artifact.summary or {}), artifact


@pytest.fixture
def asked() -> Items:
    return Items()


def test_every_answer_meets_the_baselines(tmp_path: Path, asked: Items) -> None:
    judged(tmp_path, asked)
    assert [item[1:] for item in asked] == [(f"align says {i}", f"sft says {i}") for i in range(6)]


def test_numbers_of_a_judge(tmp_path: Path, asked: Items) -> None:
    found = judged(tmp_path, asked)[0]["judged"]["align"]["judge"]
    mean = sum(P) / 5
    p = statistics.p_value([p - 0.5 for p in P])
    assert found["preference"] == pytest.approx({**statistics.estimate(P), "mean": mean, "p": p})
    assert (found["wins"], found["losses"], found["ties"]) == (2, 2, 1)
    assert found["win_rate"] == statistics.share(2, 4)


@pytest.mark.silent_bug(
    "judges: missing verdicts",
    "A judge that fails counts as a wrong answer or as half a win.",
    "The case is left out and counted by reason.",
    "open-compass/opencompass#2598",
    "NVIDIA-NeMo/Gym#2103",
)
def test_what_has_no_verdict_is_counted(tmp_path: Path, asked: Items) -> None:
    summary, artifact = judged(tmp_path, asked)
    card = summary["judge_cards"]["judge"]
    assert (card["comparisons"], card["unjudged"]) == (6, {"refused": 1})
    assert summary["judged"]["align"]["judge"]["missing"] == 1
    told = "between align and sft in judge, which prefers it in 58%"
    assert f"No clear difference {told}" in said(artifact)


def test_equal_answers_are_a_tie_and_cost_nothing(tmp_path: Path, asked: Items) -> None:
    models = Scripted(texts="the same {i}")
    component = judge_component(Prepared, asked)
    artifact = step(policies=["sft", "align"], judges=[component]).run(context(models, tmp_path))
    found = by_policy(artifact.summary or {})["judged"]["align"]["judge"]
    assert not asked and found["ties"] == 6
    assert triple(found["preference"]) == (0.5, None, None)


def test_samples_of_a_prompt_are_averaged_first(tmp_path: Path, asked: Items) -> None:
    summary, _ = judged(tmp_path, asked, samples_per_prompt=3)
    found, card = summary["judged"]["align"]["judge"], summary["judge_cards"]["judge"]
    assert len(asked) == card["comparisons"] == 18 and card["unjudged"] == {"refused": 3}
    assert triple(found["preference"]) == pytest.approx(triple(statistics.estimate(P)))
    assert found["preference"]["n"] == 5


def test_rewards_and_two_judges(tmp_path: Path, asked: Items) -> None:
    judges = [judge_component(Prepared, asked), judge_component(Prepared, asked)]
    summary, _ = judged(
        tmp_path, asked, rewards=[HELPFUL], judges=judges, policies=["base", "sft", "align"]
    )
    assert list(summary["judge_cards"]) == ["judge", "judge-2"] == judge_names(judges)
    assert {policy: list(found) for policy, found in summary["judged"].items()} == {
        "base": ["judge", "judge-2"],
        "align": ["judge", "judge-2"],
    }
    assert summary["headline"] == "helpful"


def test_without_rewards_there_is_no_headline(tmp_path: Path, asked: Items) -> None:
    summary, _ = judged(tmp_path, asked)
    assert (summary["headline"], summary["rewards"], summary["against"]) == (None, [], {})


def test_probabilities_have_no_interval_beyond_0_and_1() -> None:
    assert triple(numbers.preference([0.25, 1.0], [None, None])) == (0.625, 0.0, 1.0)
    assert triple(numbers.preference([0.25, 0.25], [None, None])) == (0.25, None, None)

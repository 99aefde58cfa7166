"""Pairs judged by principles: which are drawn, how their verdicts are joined, and what is said of
them.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alignkit import Group, Judge, Response, RunFailed, Verdict
from alignkit.registry import Component, Registration
from alignkit_plugins.ai_feedback.constitution import Principle
from alignkit_plugins.ai_feedback.judge import LocalJudge
from alignkit_plugins.ai_feedback.panel import RewardJudge, joint
from alignkit_plugins.ai_feedback.rlaif import JudgePairs
from tests.evaluate.scripted import context

BY = tuple(Principle(name=name, compare=f"By {name}.") for name in ("one", "two", "three"))
SILENT = Principle(name="silent", critique="c", revise="r")
# P(first is better) of the text that sorts first
P = {"By one.": 0.9, "By two.": 0.6, "By three.": 0.3}


class ByRubric(Judge):
    """Decides by the rubric alone; `options` collects what it is asked."""

    compares_by_rubric = True

    def compare(self, items: Any, rubric: str = "") -> list[Verdict]:
        self.options.append((rubric, list(items)))
        return [self.verdict(first < second, rubric) for _, first, second in items]

    def verdict(self, sorted_: bool, rubric: str) -> Verdict:
        p = P[rubric] if sorted_ else 1 - P[rubric]
        return Verdict(p, (p, p), calls=2, tokens=10)


def component(kind: Any = ByRubric, options: Any = None) -> Any:
    registration = Registration(kind.__name__, kind, plugin="x")
    return Component("judge", kind.__name__, registration, options)


def groups(count: int) -> list[Group]:
    prompt = ({"role": "user", "content": "q"},)
    return [Group(prompt, (Response(f"a{n}"), Response(f"b{n}")), id=str(n)) for n in range(count)]


def judged(folder: Path, rows: Any, kind: Any = ByRubric, **options: Any) -> tuple[Any, list[Any]]:
    asked: list[Any] = []
    options = {"constitution": (*BY, SILENT), "principles_per_pair": 3, **options}
    step = JudgePairs(JudgePairs.Options(judge=component(kind, asked), data="x", **options))
    step.check(folder)
    return step.run(context(None, folder, rows)), asked


def test_the_label_is_the_mean_of_probabilities(tmp_path: Path) -> None:
    """(0.9 + 0.6 + 0.3) / 3, not the mean of log-odds, which is above it."""
    artifact, asked = judged(tmp_path, groups(4))
    assert [group.pairs[0].p for group in artifact.groups] == pytest.approx([0.6] * 4)
    by_odds = 1 / (1 + math.exp(-sum(math.log(p / (1 - p)) for p in P.values()) / 3))
    assert abs(by_odds - 0.6) > 0.02
    assert Counter(rubric for rubric, _ in asked) == {"By one.": 1, "By two.": 1, "By three.": 1}
    assert all(len(items) == 4 for _, items in asked)  # a judge gets what is alike at once
    assert all(group.pairs[0].better == 0 for group in artifact.groups)


def test_labels_are_clamped_after_the_mean(tmp_path: Path) -> None:
    assert judged(tmp_path, groups(1), clamp=(0.4, 0.55))[0].groups[0].pairs[0].p == pytest.approx(
        0.55
    )
    clamped_first = (0.55 + 0.55 + 0.4) / 3
    assert clamped_first == pytest.approx(0.5)  # no pair


def test_each_pair_has_principles_of_its_own(tmp_path: Path) -> None:
    artifact, asked = judged(tmp_path, groups(60), principles_per_pair=1)
    counts = {rubric: len(items) for rubric, items in asked}
    assert (
        sum(counts.values()) == 60
        and set(counts) == set(P)
        and all(count > 8 for count in counts.values())
    )
    better = Counter(group.pairs[0].better for group in artifact.groups)
    assert better == {0: counts["By one."] + counts["By two."], 1: counts["By three."]}
    two = judged(tmp_path, groups(60), principles_per_pair=2)[1]
    of_pair: dict[str, list[str]] = {}
    for rubric, items in two:
        for _, first, _ in items:
            of_pair.setdefault(first, []).append(rubric)
    assert all(len(set(rubrics)) == 2 for rubrics in of_pair.values())


def test_the_draw_depends_on_the_pair_and_not_on_its_order(tmp_path: Path) -> None:
    turned = [Group(g.prompt, g.responses[::-1], id=g.id) for g in reversed(groups(20))]
    drawn = []
    for rows in (groups(20), turned):
        asked = judged(tmp_path, rows, principles_per_pair=1)[1]
        drawn.append({tuple(sorted(item[1:])): rubric for rubric, items in asked for item in items})
    assert drawn[0] == drawn[1]


class Gaps(ByRubric):
    def verdict(self, sorted_: bool, rubric: str) -> Verdict:
        if rubric == "By one.":
            return Verdict(None, reason="the judge refused: no", calls=2)
        return super().verdict(sorted_, rubric)


class Silent(ByRubric):
    def verdict(self, sorted_: bool, rubric: str) -> Verdict:
        return Verdict(None, reason="the judge refused: no", calls=2)


def test_a_principle_without_a_verdict_does_not_count(tmp_path: Path) -> None:
    artifact, _ = judged(tmp_path, groups(2), Gaps)
    assert artifact.summary["dropped"] == {} and len(artifact.groups) == 2
    # 1 - (0.6 + 0.3) / 2
    assert [group.pairs[0].p for group in artifact.groups] == pytest.approx([0.55, 0.55])
    with pytest.raises(
        RunFailed, match=r"no pair was labeled(.|\n)*2 of 2 pairs dropped: the judge refused: no"
    ):
        judged(tmp_path, groups(2), Silent)


def test_a_mean_is_made_of_all_that_a_verdict_says() -> None:
    found = [
        Verdict(0.9, (1.0, 0.8), mass=0.5, calls=2, tokens=10),
        Verdict(0.4, (0.2, 0.6), mass=1.0, calls=2, tokens=30),
        Verdict(None, reason="lost", calls=1, tokens=5),
    ]
    mean = joint(found)
    assert mean.p_first == pytest.approx(0.65) and mean.p_orders == pytest.approx((0.6, 0.7))
    assert (mean.mass, mean.calls, mean.tokens) == (0.75, 5, 45)
    unknown = [Verdict(0.5, calls=2), Verdict(0.50004, (0.5, 0.50008))]
    tie = joint(unknown)
    assert tie.p_first == 0.5 and tie.p_orders is None and tie.tokens is None


def test_without_a_constitution_the_judge_has_its_own_measure(tmp_path: Path) -> None:
    class Own(Judge):
        def compare(self, items: Any) -> list[Verdict]:
            return [Verdict(0.7) for _ in items]

    step = JudgePairs(JudgePairs.Options(judge=component(Own), data="x"))
    step.check(tmp_path)
    artifact = step.run(context(None, tmp_path, groups(2)))
    assert [group.pairs[0].p for group in artifact.groups or () if group.pairs] == pytest.approx(
        [0.7, 0.7]
    )


@pytest.mark.parametrize(
    ("kind", "constitution", "count", "message"),
    [
        (
            RewardJudge,
            BY,
            1,
            r"'RewardJudge' has its own measure",
        ),
        (
            LocalJudge,
            (SILENT,),
            1,
            "principles_per_pair is 1, but 0 principles of the constitution have 'compare'",
        ),
        (
            LocalJudge,
            (*BY, SILENT),
            4,
            "principles_per_pair is 4, but 3 principles of the constitution have 'compare'",
        ),
    ],
)
def test_what_cannot_be_judged_stops_before_the_run(
    kind: Any, constitution: Any, count: int, message: str
) -> None:
    options = {"constitution": constitution, "principles_per_pair": count}
    step = JudgePairs(JudgePairs.Options(judge=component(kind), data="x", **options))
    with pytest.raises(RunFailed, match=message):
        step.check(Path())


def test_principles_per_pair_needs_a_constitution() -> None:
    with pytest.raises(ValueError, match="'principles_per_pair' needs a 'constitution'"):
        JudgePairs.Options(judge=component(), data="x", principles_per_pair=2)

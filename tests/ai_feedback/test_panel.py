"""Panels of judges: what they make of several verdicts, and of missing ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignkit import Context, Judge, Rating, RunFailed, Verdict
from alignkit.errors import PluginError
from alignkit.judges import CheckedJudge
from alignkit_plugins.ai_feedback.judge import LocalJudge
from alignkit_plugins.ai_feedback.panel import Panel, RewardJudge
from tests.ai_feedback.test_rlaif import Scripted, component, group, run_step

PROMPT = [{"role": "user", "content": "Which?"}]
LOST = Verdict(None, reason="the judge refused", calls=1, tokens=5)


class Says(Judge):
    """Gives each item the prepared verdict or rating. options: (scale, what it says)."""

    compares_by_rubric = True

    @property
    def scale(self) -> Any:
        return self.options[0]

    def compare(self, items: Sequence[Any], rubric: Any = "") -> Any:
        self.rubric = rubric
        return [self.options[1] for _ in items]

    def rate(self, items: Sequence[Any], rubric: Any = "") -> Any:
        return [self._rating(self.options[1]) for _ in items]

    def _rating(self, score: float | None) -> Rating:
        return Rating(score, "" if score is not None else "the judge refused", calls=1, tokens=7)


def panel(
    says: Sequence[Any], folder: Path, scales: Sequence[Any] = (), **options: Any
) -> CheckedJudge:
    scales = [*scales, *[None] * (len(says) - len(scales))]
    judges = [component(Says, (scale, one)) for scale, one in zip(scales, says, strict=True)]
    around = Context(models=None, cache=folder / "cache", folder=folder, seed=0, load=list)
    return CheckedJudge(component(Panel, Panel.Options(judges=judges, **options)), around)


def verdict(folder: Path, ps: Sequence[Any], **options: Any) -> Verdict:
    says = [p if isinstance(p, Verdict) else Verdict(p, (p, p), calls=2, tokens=10) for p in ps]
    (found,) = panel(says, folder, **options).compare([(PROMPT, "a", "b")])
    return found


def test_a_verdict_is_the_mean(tmp_path: Path) -> None:
    found = verdict(tmp_path, (0.9, 0.8, 0.1))
    assert found.p_first == pytest.approx(0.6) and found.p_orders == pytest.approx((0.6, 0.6))
    assert (found.calls, found.tokens) == (6, 30)


def test_orders_are_averaged_one_by_one(tmp_path: Path) -> None:
    found = verdict(tmp_path, [Verdict(0.5, (1.0, 0.0)), Verdict(0.6, (0.8, 0.4))])
    assert found.p_orders == pytest.approx((0.9, 0.2)) and found.p_first == pytest.approx(0.55)


def test_judges_without_a_verdict_are_left_out(tmp_path: Path) -> None:
    found = verdict(tmp_path, [0.9, LOST, 0.7])
    assert found.p_first == pytest.approx(0.8) and (found.calls, found.tokens) == (5, 25)
    lost = verdict(tmp_path, [LOST, LOST])
    assert lost.p_first is None and lost.reason == "the judge refused"


def test_a_panel_can_do_what_all_its_judges_can(tmp_path: Path) -> None:
    def of(*parts: Any) -> Any:
        return component(Panel, Panel.Options(judges=list(parts)))

    local, reward = component(LocalJudge, None), component(RewardJudge, None)
    CheckedJudge.check_compares(of(local, local), "polite")
    with pytest.raises(RunFailed, match="reads no rubric"):
        CheckedJudge.check_compares(of(local, reward), "polite")
    with pytest.raises(RunFailed, match="only compares"):
        CheckedJudge.check_rates(of(local, local))
    judge = panel([Verdict(0.9), Verdict(0.9)], tmp_path)
    judge.compare([(PROMPT, "a", "b")], "polite")
    assert [part.judge.rubric for part in judge.judge._judges] == ["polite", "polite"]  # type: ignore[attr-defined]


def test_options() -> None:
    for wrong in ({"judges": [1]}, {"judges": [1, 2], "best": 1}):
        with pytest.raises(ValidationError):
            Panel.Options(**wrong)


def test_a_rating_outside_of_the_scale_is_the_authors_mistake(tmp_path: Path) -> None:
    around = Context(models=None, cache=tmp_path, folder=tmp_path, seed=0, load=list)  # type: ignore[arg-type]
    for score in (0.0, 6.0):
        judge = CheckedJudge(component(Says, ((1, 5), score)), around)
        with pytest.raises(PluginError, match="a Rating from 1 to 5, or None, not"):
            judge.rate([(PROMPT, "a")])
    assert (
        CheckedJudge(component(Says, ((1, 5), 5.0)), around).rate([(PROMPT, "a")])[0].score == 5.0
    )


def steered(tmp_path: Path, *orders: tuple[float, float], count: int = 20, **options: Any) -> Any:
    """`judge_pairs` with a judge whose soft verdicts have these probabilities in both orders, in
    turn.
    """
    verdicts = [Verdict(sum(p) / 2, p, calls=2) for p in (orders * count)[:count]]
    data = [group("this", "that", prompt=str(number)) for number in range(count)]
    return run_step(tmp_path, component(Scripted, verdicts), data, **options)


def test_nothing_learns_from_a_judge_that_is_none(tmp_path: Path) -> None:
    """It leans to a place, so every pair has a soft label. In a real run, DPO learned from two of
    40 pairs.
    """
    with pytest.raises(RunFailed) as raised:
        steered(tmp_path, (0.9, 0.2))
    text = str(raised.value)
    assert "nothing should learn from its labels; `no_judge: warn` learns anyway\n20 of 20" in text
    assert (
        "warning: x: its verdicts are of no use, because the order of the answers decides 100% ["
        in text
    )
    artifact = steered(tmp_path, (0.9, 0.2), no_judge="warn")
    assert artifact.summary["labeled"] == 20 and artifact.summary["judge_cards"]["x"]["no_judge"]


def test_the_step_says_what_to_do_about_a_judge_that_always_says_1(tmp_path: Path) -> None:
    with pytest.raises(RunFailed) as raised:
        steered(tmp_path, (1.0, 0.0), count=3)
    lines = str(raised.value).splitlines()
    assert lines[:2] == ["judge_pairs: judge 'x': no pair was labeled", "0 of 3 pairs labeled"]
    assert "the order of the answers decides 100% [" in lines[2] and lines[-1].startswith(
        "help: ask another model"
    )


def test_a_judge_is_not_stopped_for_a_few_pairs(tmp_path: Path) -> None:
    few = steered(tmp_path, (0.9, 0.2), count=3)
    assert few.summary["labeled"] == 3 and "decides 100% [" in few.report.text(200)
    assert steered(tmp_path, (0.9, 0.9), (0.1, 0.1)).summary["judge_cards"]["x"]["no_judge"] == ""

"""Rewards that are a judge's ratings: by weighted criteria of each prompt, and by one measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignkit import Context, DataError, Group, Judge, Rating, Response, RunFailed
from alignkit.judges import spending
from alignkit_plugins.ai_feedback.panel import RewardJudge
from alignkit_plugins.ai_feedback.rubric import Criterion, Rated, Rubric, weighted
from tests.ai_feedback.test_rlaif import Scripted, component

ASKS = ({"role": "user", "content": "How much may I take?"},)


class Finds(Judge):
    """A criterion is met if the response contains its last word; `unsure` has no rating. options:
    its scale.
    """

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.asked: list[tuple[int, Any]] = []

    @property
    def scale(self) -> Any:
        return self.options

    def rate(self, items: Sequence[Any], rubric: Any = "") -> Any:
        self.asked.append((len(items), rubric))
        return [self._rated(text, rubric) for _, text in items]

    def _rated(self, text: str, rubric: Any) -> Rating:
        if "unsure" in text:
            return Rating(None, "the judge refused")
        low, high = self.options or (0, 1)
        return Rating(high if not rubric or rubric[0].rstrip(".)").split()[-1] in text else low)


def made(cls: type, folder: Path, scale: Any = (0, 1), **options: Any) -> Any:
    reward = cls(cls.Options(judge=component(Finds, scale), **options))  # type: ignore[attr-defined]
    reward.check(folder)
    reward.prepare(Context(models=None, cache=folder / "cache", folder=folder, seed=0, load=list))
    return reward


def group(*texts: str, **meta: Any) -> Group:
    return Group(ASKS, tuple(map(Response, texts)), meta=meta)


DOSE, DOCTOR, BLAME = (
    ("It names the dose", 3.0),
    ("It names a doctor", 1.0),
    ("It contains blame", -2.0),
)


def criteria(*rows: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"text": text, "weight": weight} for text, weight in rows]


def test_the_score_is_the_weighted_share_of_criteria_that_are_met(tmp_path: Path) -> None:
    """By hand: 3 of 4, 1 of 4, all, none; and what is bad takes away 2 of 4."""
    reward = made(Rubric, tmp_path)
    texts = ("a dose", "a doctor", "dose, doctor", "nothing", "dose and blame")
    rubric = criteria(DOSE, DOCTOR, BLAME)
    assert reward.score([group(*texts, rubric=rubric)]) == {"": [0.75, 0.25, 1.0, 0.0, 0.25]}
    # Each asked alone
    assert reward._judge.judge.asked == [(5, [text]) for text, _ in (DOSE, DOCTOR, BLAME)]


def test_another_scale_counts_in_part(tmp_path: Path) -> None:
    reward = made(Rubric, tmp_path, (1, 9))
    assert reward.score([group("a dose", "nothing", rubric=criteria(DOSE, DOCTOR))]) == {
        "": [0.75, 0.0]
    }
    assert weighted(
        [Criterion(text="a", weight=3), Criterion(text="b")], [0.5, 0.25]
    ) == pytest.approx(1.75 / 4)


def test_one_missing_rating_is_a_missing_score_and_never_0(tmp_path: Path) -> None:
    reward, rubric = made(Rubric, tmp_path), criteria(DOSE, DOCTOR)
    with spending() as ratings:
        assert reward.score([group("a dose, unsure", "a doctor", rubric=rubric)]) == {
            "": [None, 0.25]
        }
    assert {rating.reason for rating in ratings if rating.score is None} == {"the judge refused"}
    assert weighted([Criterion(text="a"), Criterion(text="b")], [1.0, None]) is None


def test_prompts_have_criteria_of_their_own(tmp_path: Path) -> None:
    """Equal ones of several prompts are asked about in one batch."""
    reward = made(Rubric, tmp_path, column="marks")
    rows = [
        group("a dose", marks=criteria(DOSE, DOCTOR)),
        group("a doctor", marks=[{"text": "It names a doctor"}]),
    ]
    reward.check_prompts(rows)
    assert reward.score(rows) == {"": [0.75, 1.0]}
    assert reward._judge.judge.asked == [(1, [DOSE[0]]), (2, [DOCTOR[0]])]


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"other": 1}, r"has no column 'rubric' \(its columns: other\)"),
        ({"rubric": []}, "has no criterion with a weight above 0"),
        ({"rubric": [{"text": "x", "weight": -1}]}, "has no criterion with a weight above 0"),
        ({"rubric": [{"text": ""}]}, r"'rubric' is no list of \{text, weight\}: 0.text"),
        ({"rubric": [{"title": "x"}]}, "0.text: Field required"),
        ({"rubric": [{"text": "x", "weight": "many"}]}, "0.weight"),
        ({"rubric": 3}, "'rubric' is no list"),
    ],
)
def test_prompts_without_criteria_stop_the_run(
    tmp_path: Path, meta: dict[str, Any], words: str
) -> None:
    reward = made(Rubric, tmp_path)
    with pytest.raises(DataError, match=f"rubric: the prompt .*How much.*{words}"):
        reward.check_prompts([group("a", rubric=criteria(DOSE)), group("a", **meta)])


def test_other_judges_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="only compares"):
        Rubric(Rubric.Options(judge=component(Scripted, None))).check(tmp_path)
    with pytest.raises(RunFailed, match="reads no rubric"):
        Rubric(Rubric.Options(judge=component(RewardJudge, None))).check(tmp_path)
    with pytest.raises(RunFailed, match="judge 'x' has no scale"):
        made(Rubric, tmp_path, None)


def test_a_rating_is_a_reward(tmp_path: Path) -> None:
    reward = made(Rated, tmp_path, (1, 9), rubric=["It names the dose"])
    assert reward.score([group("a dose", "nothing"), group("unsure")]) == {"": [9, 1, None]}
    assert reward._judge.judge.asked == [(3, ["It names the dose"])]


def test_the_judge_reads_what_the_assistant_said(tmp_path: Path) -> None:
    turns = ({"role": "assistant", "content": "a dose"}, {"role": "tool", "content": "blame"})
    response = Response("", messages=(*turns, {"role": "assistant", "content": "a doctor"}))  # type: ignore[arg-type]
    rubric = criteria(DOSE, DOCTOR, BLAME)
    group = Group(ASKS, (response,), meta={"rubric": rubric})
    assert made(Rubric, tmp_path).score([group]) == {"": [1.0]}

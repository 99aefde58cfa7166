"""Rewards that are a judge's ratings: by weighted criteria of each prompt, and by one measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignkit import DataError, Group, Response, RunFailed
from alignkit.judges import spending
from alignkit_plugins.ai_feedback.panel import RewardJudge
from alignkit_plugins.ai_feedback.rubric import Rated, Rubric
from tests.ai_feedback.judge_server import Script, Told, component, context

ASKS = ({"role": "user", "content": "How much may I take?"},)
DOSE, DOCTOR, BLAME = (
    {"text": "It names the dose", "weight": 3},
    {"text": "It names a doctor"},  # of weight 1
    {"text": "It contains blame", "weight": -2},
)


def made(cls: Any, folder: Path, scale: Any = (0, 1), **options: Any) -> tuple[Any, Script]:
    """A reward, and the script of its judge: a criterion is met if the response contains its last
    word; `unsure` has no rating.
    """

    def rate(item: Any, rubric: Any) -> float | None:
        low, high = scale or (0, 1)
        met = rubric[0].split()[-1] in item[1]
        return None if "unsure" in item[1] else high if met else low

    script = Script(rate=rate, scale=scale)
    reward = cls(cls.Options(judge=component(Told, script), **options))
    reward.check(folder)
    reward.prepare(context(folder))
    return reward, script


def group(*texts: str, **meta: Any) -> Group:
    return Group(ASKS, tuple(map(Response, texts)), meta=meta)


SCORES: list[tuple[Any, list[Any], str, float | None]] = [  # scale, criteria, answer, score
    ((0, 1), [DOSE, DOCTOR, BLAME], "a dose", 3 / 4),
    ((0, 1), [DOSE, DOCTOR, BLAME], "a doctor", 1 / 4),
    ((0, 1), [DOSE, DOCTOR, BLAME], "dose, doctor", 1.0),
    ((0, 1), [DOSE, DOCTOR, BLAME], "nothing", 0.0),
    ((0, 1), [DOSE, DOCTOR, BLAME], "dose and blame", (3 - 2) / 4),
    ((0, 1), [DOSE, DOCTOR], "a dose, unsure", None),  # one missing rating is never 0
    ((1, 9), [DOSE, DOCTOR], "a dose", 3 / 4),
    ((1, 9), [DOSE, DOCTOR], "nothing", 0.0),
]


@pytest.mark.parametrize(("scale", "criteria", "answer", "score"), SCORES)
def test_the_score_is_the_weighted_share_of_criteria_that_are_met(
    scale: Any, criteria: Any, answer: str, score: float | None, tmp_path: Path
) -> None:
    reward, script = made(Rubric, tmp_path, scale)
    assert reward.score([group(answer, rubric=criteria)]) == {"": [score]}
    assert [rubric for rubric, _ in script.asked] == [[each["text"]] for each in criteria]


def test_a_rating_between_met_and_not_counts_in_part(tmp_path: Path) -> None:
    half = Script(rate=lambda item, rubric: 3.0, scale=(1, 9))
    reward = Rubric(Rubric.Options(judge=component(Told, half)))
    reward.prepare(context(tmp_path))
    assert reward.score([group("a", rubric=[DOSE, BLAME])]) == {"": [(3 * 0.25 - 2 * 0.25) / 3]}


def test_prompts_have_criteria_of_their_own(tmp_path: Path) -> None:
    """Equal ones of several prompts are asked about in one batch."""
    reward, script = made(Rubric, tmp_path, column="marks")
    rows = [group("a dose, unsure", marks=[DOSE, DOCTOR]), group("a doctor", marks=[DOCTOR])]
    reward.check_prompts(rows)
    with spending() as ratings:
        assert reward.score(rows) == {"": [None, 1.0]}
    asked = [(rubric, len(items)) for rubric, items in script.asked]
    assert asked == [([DOSE["text"]], 1), ([DOCTOR["text"]], 2)]
    assert {each.reason for each in ratings} == {"the judge refused", ""}


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"other": 1}, r"has no column 'rubric' \(its columns: other\)"),
        ({"rubric": []}, "has no criterion with a weight above 0"),
        ({"rubric": [BLAME]}, "has no criterion with a weight above 0"),
        ({"rubric": [{"text": ""}]}, r"'rubric' is no list of \{text, weight\}: 0.text"),
        ({"rubric": [{"title": "x"}]}, "0.text"),
        ({"rubric": [{"text": "x", "weight": "many"}]}, "0.weight"),
        ({"rubric": 3}, "'rubric' is no list"),
    ],
)
def test_prompts_without_criteria_stop_the_run(
    tmp_path: Path, meta: dict[str, Any], words: str
) -> None:
    reward, _ = made(Rubric, tmp_path)
    with pytest.raises(DataError, match=f"rubric: the prompt .*How much.*{words}"):
        reward.check_prompts([group("a", rubric=[DOSE]), group("a", **meta)])


def test_a_judge_without_rubric_or_scale_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="reads no rubric"):
        Rubric(Rubric.Options(judge=component(RewardJudge))).check(tmp_path)
    with pytest.raises(RunFailed, match="judge 'x' has no scale"):
        made(Rubric, tmp_path, None)


def test_a_rating_is_a_reward(tmp_path: Path) -> None:
    reward, script = made(Rated, tmp_path, (1, 9), rubric=["It names the dose"])
    assert reward.score([group("a dose", "nothing"), group("unsure")]) == {"": [9, 1, None]}
    ((rubric, items),) = script.asked
    assert rubric == ["It names the dose"] and len(items) == 3


def test_the_judge_reads_what_the_assistant_said(tmp_path: Path) -> None:
    turns: Any = [("assistant", "a dose"), ("tool", "blame"), ("assistant", "a doctor")]
    messages: Any = tuple({"role": role, "content": text} for role, text in turns)
    said = Group(ASKS, (Response(messages=messages),), meta={"rubric": [DOSE, DOCTOR, BLAME]})
    assert made(Rubric, tmp_path)[0].score([said]) == {"": [1.0]}

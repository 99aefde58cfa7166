"""Rewards that are a judge's ratings: by weighted criteria of each prompt, and by one measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import DataError, Group, Response, RunFailed
from alignkit.contract.reward import spending
from alignkit_plugins.ai_feedback.panel import RewardJudge
from alignkit_plugins.ai_feedback.rubric import Rated, Rubric
from tests.ai_feedback.judge_server import Script, Told, component, context
from tests.rows import assistant, user

# `dose` is of weight 3, `doctor` of weight 1, `blame` of weight -2.
DOSE, DOCTOR, BLAME = CRITERIA = yaml.safe_load("""
- {text: It names the dose, weight: 3}
- {text: It names a doctor}
- {text: It contains blame, weight: -2}
""")


def made(cls: Any, folder: Path, scale: Any = (0, 1), **options: Any) -> tuple[Any, Script]:
    """A reward, and the script of its judge: a criterion is met if the response contains its last
    word, and half met by `half`; `unsure` has no rating.
    """

    def rate(item: Any, rubric: Any) -> float | None:
        low, high = scale
        if "half" in item[1]:
            return float(low + high) / 2
        met = rubric[0].split()[-1] in item[1]
        return None if "unsure" in item[1] else high if met else low

    script = Script(rate=rate, scale=scale)
    reward = cls(cls.Options(judge=component(Told, script), **options))
    reward.check(folder)
    reward.prepare(context(folder))
    return reward, script


def group(*texts: str, **meta: Any) -> Group:
    return Group((user("How much may I take?"),), tuple(map(Response, texts)), meta=meta)


# By scale: the score of an answer by all three criteria.
SCORES = yaml.safe_load("""
- - [0, 1]
  - {a dose: 0.75, a doctor: 0.25, "dose, doctor": 1.0, nothing: 0.0, dose and blame: 0.25, "a dose, unsure": null}
- - [1, 9]
  - {a dose: 0.75, nothing: 0.0, half: 0.25}
""")


@pytest.mark.parametrize(("scale", "scores"), SCORES)
def test_the_score_is_the_weighted_share_of_criteria_that_are_met(
    scale: Any, scores: dict[str, float | None], tmp_path: Path
) -> None:
    """One missing rating is never 0, and one between met and not counts in part."""
    reward, script = made(Rubric, tmp_path, scale)
    assert reward.score([group(*scores, rubric=CRITERIA)]) == list(scores.values())
    assert [rubric for rubric, _ in script.asked] == [[each["text"]] for each in CRITERIA]


def test_prompts_have_criteria_of_their_own(tmp_path: Path) -> None:
    """Equal ones of several prompts are asked about in one batch. The judge reads all turns
    of a response.
    """
    reward, script = made(Rubric, tmp_path, column="marks")
    tool: Any = {"role": "tool", "content": "found"}
    turns = Response(messages=(assistant("a doctor"), tool, assistant("or so")))
    rows = [group("a dose, unsure", marks=[DOSE, DOCTOR])]
    rows.append(Group(rows[0].prompt, (turns,), meta={"marks": [DOCTOR]}))
    reward.check_prompts(rows)
    with spending() as ratings:
        assert reward.score(rows) == [None, 1.0]
    asked = [(rubric, len(items)) for rubric, items in script.asked]
    assert asked == [([DOSE["text"]], 1), ([DOCTOR["text"]], 2)]
    whole = "assistant: a doctor\n\ntool: found\n\nassistant: or so"
    assert script.asked[-1][1][-1][1] == whole
    assert {each.reason for each in ratings} == {"the judge refused", ""}


NO_CRITERIA = yaml.safe_load(r"""
- [{other: 1}, "has no column 'rubric' \\(its columns: other\\)"]
- [{rubric: []}, has no criterion with a weight above 0]
- [{rubric: [{text: It contains blame, weight: -2}]}, has no criterion with a weight above 0]
- [{rubric: [{text: ""}]}, "'rubric' is no list of \\{text, weight\\}: 0.text"]
- [{rubric: [{title: x}]}, 0.text]
- [{rubric: [{text: x, weight: many}]}, 0.weight]
- [{rubric: 3}, "'rubric' is no list"]
- [{rubric: [{text: x, wieght: 2}]}, 0.wieght]
- [{rubric: [{text: x, weight: .nan}]}, 0.weight]
""")


@pytest.mark.parametrize(("meta", "words"), NO_CRITERIA)
def test_prompts_without_criteria_stop_the_run(
    tmp_path: Path, meta: dict[str, Any], words: str
) -> None:
    reward, _ = made(Rubric, tmp_path)
    with pytest.raises(DataError, match=f"rubric: the prompt .*How much.*{words}"):
        reward.check_prompts([group("a", rubric=[DOSE]), group("a", **meta)])


def test_a_judge_without_rubric_or_scale_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="reads no rubric"):
        Rubric(Rubric.Options(judge=component(RewardJudge))).check(tmp_path)
    with pytest.raises(RunFailed, match="reads no rubric"):
        Rated(Rated.Options(judge=component(RewardJudge), rubric="Kind.")).check(tmp_path)
    with pytest.raises(RunFailed, match="judge 'x' has no scale"):
        made(Rubric, tmp_path, None)


def test_a_rating_is_a_reward(tmp_path: Path) -> None:
    reward, script = made(Rated, tmp_path, (1, 9), rubric=["It names the dose"])
    assert reward.score([group("a dose", "nothing"), group("unsure")]) == [9, 1, None]
    ((rubric, items),) = script.asked
    assert rubric == ["It names the dose"] and len(items) == 3

"""Measures: named rewards on some of the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from by_policy import by_policy
from pydantic import ValidationError
from test_evaluate import HELPFUL, Scripted, context, said, step

from alignkit import Artifact, DataError, Group
from alignkit.recipe.schema import RewardSpec
from alignkit.step import StepData

COUNT = 20
REFUSAL = RewardSpec("reward", "refusal")
EXACT = RewardSpec("reward", "exact_match")
REFUSED = {"base": 1, "sft": 2, "align": 10}  # of ten harmful prompts
MEASURES = {
    "harmful refused": {"reward": REFUSAL, "where": {"kind": "harmful"}},
    "ordinary refused": {"reward": REFUSAL, "where": {"kind": ["ordinary"]}, "better": "lower"},
}


def mixed() -> list[Group]:
    """Ten harmful prompts, and ten ordinary ones."""
    kinds = ["harmful"] * 10 + ["ordinary"] * 10
    return [
        Group(({"role": "user", "content": f"question {i}"},), id=str(i), meta={"kind": kinds[i]})
        for i in range(COUNT)
    ]


def models() -> Scripted:
    names = ("base", "sft", "align")
    return Scripted(
        {name: [float(i) for i in range(COUNT)] for name in names},
        {name: [5] * COUNT for name in names},
    )


class Refusals:
    """Counts what it is asked. align refuses all harmful prompts, and no ordinary one."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def score(self, groups: Sequence[Group]) -> list[Group]:
        self.asked.append([group.prompt[-1]["content"].split()[-1] for group in groups])
        return [
            replace(
                group,
                responses=tuple(
                    replace(r, scores={"reward": self._of(group, r)}) for r in group.responses
                ),
            )
            for group in groups
        ]

    def _of(self, group: Group, response: Any) -> float:
        i = int(group.prompt[-1]["content"].split()[-1])
        if i >= 10:
            return float(response.source == "sft" and i < 18)
        return float(i < REFUSED[response.source])


def rows_of(spec: Any) -> list[Group] | None:
    return mixed() if spec is not None else None


def evaluated(folder: Path, scorer: Any, **options: Any) -> Artifact:
    made = context(models(), folder, mixed())
    made = replace(
        made,
        scorer=lambda spec: scorer if spec != HELPFUL else context(models(), folder).scorer(spec),
    )
    return step(**{"rewards": [], "metrics": MEASURES, **options}).run(made)


def test_a_measure_is_a_row_over_its_own_prompts(tmp_path: Path) -> None:
    artifact = evaluated(tmp_path, Refusals())
    found = by_policy(artifact.summary or {})
    harmful = found["against"]["align"]["harmful refused"]
    assert found["headline"] == "harmful refused" and found["rewards"] == list(MEASURES)
    assert harmful["difference"]["n"] == 10 and harmful["difference"]["mean"] == pytest.approx(0.8)
    assert harmful["at_equal_length"] is None  # no length fools it
    assert found["policies"]["align"]["rewards"]["harmful refused"]["unscored"] == 0
    assert found["policies"]["align"]["rewards"]["ordinary refused"]["n"] == 10
    lines = said(artifact).splitlines()
    assert any(
        line.split()[:2] == ["harmful", "refused"] and "20% [" in line and "100% [" in line
        for line in lines
    )


def test_all_or_nothing_is_not_certain(tmp_path: Path) -> None:
    found = by_policy(evaluated(tmp_path, Refusals()).summary or {})["policies"]["align"]["rewards"]
    assert found["harmful refused"]["mean"] == 1.0 and 0.6 < found["harmful refused"]["low"] < 0.8
    assert (
        found["ordinary refused"]["mean"] == 0.0 and 0.2 < found["ordinary refused"]["high"] < 0.4
    )


@pytest.mark.parametrize("policies", [["base", "sft", "align"], ["sft", "align"]])
def test_a_policy_is_compared_with_the_untouched_base_whether_named_or_only_shown(
    tmp_path: Path, policies: list[str]
) -> None:
    found = by_policy(
        evaluated(tmp_path, Refusals(), policies=policies, baseline="sft").summary or {}
    )
    assert list(found["policies"]) == ["base", "sft", "align"]
    over = {name: one["harmful refused"]["mean"] for name, one in found["against_base"].items()}
    assert over == {"align": pytest.approx(0.9)}


def test_less_is_a_win_where_lower_is_better(tmp_path: Path) -> None:
    found = by_policy(evaluated(tmp_path, Refusals()).summary or {})
    ordinary = found["against"]["align"]["ordinary refused"]
    assert ordinary["difference"]["mean"] == pytest.approx(-0.8)
    assert (ordinary["wins"], ordinary["losses"], ordinary["ties"]) == (8, 0, 2)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"kin": "harmful"}, "no prompt has the column kin\nhelp: did you mean 'kind'"),
        ({"kind": "harmfull"}, "no prompt has kind: harmfull\nhelp: did you mean 'harmful'"),
        ({"kind": "harmful", "year": 3}, "no prompt has the column year"),
        (
            {"kind": ["ordinary", "x"]},
            "no prompt has kind: x\nhelp: there are harmful, ordinary",
        ),
    ],
)
def test_a_measure_without_prompts_is_refused_before_any_work(where: Any, message: str) -> None:
    made = step(rewards=[], metrics={"refused": {"reward": REFUSAL, "where": where}})
    with pytest.raises(DataError) as raised:
        made.check_data(StepData(rows_of, lambda reward, groups: None))
    assert message in str(raised.value) and raised.value.option[:2] == ("metrics", "refused")


def test_a_reward_checks_only_the_prompts_of_its_measure() -> None:
    seen: list[tuple[str, int]] = []
    made = step(
        rewards=[HELPFUL], metrics={"right": {"reward": EXACT, "where": {"kind": "harmful"}}}
    )
    made.check_data(
        StepData(
            rows_of,
            lambda reward, groups: seen.append((reward.name, len(groups))),
        )
    )
    assert seen == [("helpful", 20), ("exact_match", 10)]


def test_no_kl_if_none_is_wanted(tmp_path: Path) -> None:
    scripted = models()
    made = replace(
        context(scripted, tmp_path, mixed()),
        scorer=lambda spec: SimpleNamespace(score=Refusals().score),
    )
    artifact = step(rewards=[], metrics=MEASURES, kl=False).run(made)
    assert scripted.measured == [] and "KL" not in said(artifact)
    assert by_policy(artifact.summary or {})["policies"]["align"]["kl"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"metrics": {"helpful": {"reward": HELPFUL}}},
            "has duplicates: helpful",
        ),
        ({"metrics": {"x": {"reward": HELPFUL, "better": "more"}}}, "higher"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        step(**{"rewards": [HELPFUL], **options})


# --- the untouched base


def test_the_base_is_a_column_and_nothing_else(tmp_path: Path) -> None:
    artifact = evaluated(tmp_path, Refusals(), policies=["sft", "align"])
    found = by_policy(artifact.summary or {})
    assert list(found["policies"]) == ["base", "sft", "align"] and found["baseline"] == "sft"
    assert list(found["against"]) == ["align"] and "base against" not in said(artifact)
    assert found["policies"]["base"]["rewards"]["harmful refused"]["mean"] == pytest.approx(0.1)


def test_one_policy_is_shown_next_to_the_base(tmp_path: Path) -> None:
    found = by_policy(evaluated(tmp_path, Refusals(), policies=["align"]).summary or {})
    assert (
        list(found["policies"]) == ["base", "align"]
        and found["baseline"] is None
        and found["against"] == {}
    )


def test_no_base_for_policies_on_several(tmp_path: Path) -> None:
    made = replace(context(models(), tmp_path, mixed()), base_of=lambda policy: policy)
    found = by_policy(step(policies=["sft", "align"]).run(made).summary or {})
    assert list(found["policies"]) == ["sft", "align"]


def test_a_policy_below_the_base_is_told_so(tmp_path: Path) -> None:
    artifact = evaluated(
        tmp_path,
        Refusals(),
        policies=["align", "sft"],
        metrics={"ordinary refused": MEASURES["ordinary refused"]},
    )
    assert "Worse than the base model: ordinary refused (lower is better), +80 points [" in said(
        artifact
    )

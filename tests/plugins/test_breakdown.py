"""Rankings and results by column in the step `evaluate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_evaluate import (
    BASE,
    GAIN,
    HELPFUL,
    SCORES,
    Scripted,
    context,
    judge_component,
    prompts,
    step,
    summary,
)
from test_judged import Items, P, Prepared

from alignkit import DataError, Group
from alignkit.evaluation import statistics
from alignkit.evaluation.ranking import elo_gap, ranked
from alignkit_plugins.evaluate.rows import rows_of
from alignkit_plugins.evaluate.tables import by_column


def with_language() -> list[Group]:
    """Six prompts; the last has no language."""
    languages = ["de", "en", "de", "en", "en"]
    groups = prompts()
    return [
        *(replace(g, meta={"language": name}) for g, name in zip(groups, languages, strict=False)),
        groups[5],
    ]


def test_a_ranking_by_a_reward_is_of_all_pairs(tmp_path: Path) -> None:
    found = summary(tmp_path)["ranking"]["helpful"]
    # align beats sft at five of six prompts, and both beat base always.
    games = [("align", "sft", float(gain > 0)) for gain in GAIN]
    games += [(policy, "base", 1.0) for policy in ("align", "sft") for _ in BASE]
    expected = ranked([games], ["base", "sft", "align"], ridge=0.1, seed=0)
    for policy, row in found.items():
        assert row["strength"]["mean"] == pytest.approx(expected[policy]["mean"], abs=1e-6)
    assert list(found) == ["align", "sft", "base"]
    best = found["align"]
    assert best["strength"]["low"] <= best["strength"]["mean"] <= best["strength"]["high"]
    assert (
        best["elo"]["low"] == pytest.approx(1000 + elo_gap(best["strength"]["low"]))
        and best["elo"]["n"] == 6
    )


def test_a_ranking_by_a_judge_is_of_comparisons_with_the_baseline(tmp_path: Path) -> None:
    options = {
        "judges": [judge_component(Prepared, Items())],
        "rewards": [],
        "policies": ["sft", "align"],
    }
    found = dict(step(**options).run(context(Scripted(), tmp_path)).summary or {})["ranking"][
        "judge"
    ]
    expected = ranked([[("align", "sft", p) for p in P]], ["sft", "align"], ridge=0.1, seed=0)
    for policy, row in found.items():
        assert row["strength"]["mean"] == pytest.approx(expected[policy]["mean"], abs=1e-6)
    assert found["align"]["strength"]["n"] == 5  # one prompt has no verdict


def test_equal_scores_are_ties(tmp_path: Path) -> None:
    found = summary(tmp_path, Scripted({**SCORES, "align": SCORES["sft"]}))["ranking"]["helpful"]
    assert found["align"]["strength"]["mean"] == pytest.approx(found["sft"]["strength"]["mean"])


def test_a_policy_alone_has_no_rank(tmp_path: Path) -> None:
    assert summary(tmp_path, policies=["sft"])["ranking"] == {}


def test_results_by_column(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "judges": [judge_component(Prepared, Items())],
        "policies": ["sft", "align"],
    }
    artifact = step(by=["language"], rewards=[HELPFUL], **options).run(
        context(Scripted(), tmp_path, with_language())
    )
    found = dict(artifact.summary or {})["by"]["language"]
    assert {value: row["prompts"] for value, row in found.items()} == {
        "(none)": 1,
        "de": 2,
        "en": 3,
    }
    at = [1, 3, 4]  # the English prompts
    english = found["en"]
    assert english["policies"]["sft"]["helpful"] == statistics.estimate(
        [SCORES["sft"][i] for i in at]
    )
    gains = [SCORES["align"][i] - SCORES["sft"][i] for i in at]
    assert english["against"]["align"]["helpful"]["difference"] == statistics.paired_difference(
        gains, [0.0] * len(gains)
    )
    assert english["against"]["align"]["helpful"]["wins"] == 2
    within = {"low": 0.0, "high": 1.0}  # an interval of preferences ends there
    assert english["judged"]["align"]["judge"] == {
        **statistics.estimate([0.4, 0.2]),
        **within,
        "p": 0.5,
    }  # one has no verdict
    shown = statistics.shown(english["against"]["align"]["helpful"]["difference"], sign=True)
    assert ["en", "align", "3", shown] in [
        row[:4] for row in by_column(rows_of(artifact.summary or {}), "language").rows
    ]


def test_a_column_that_no_prompt_has(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="no prompt has the column 'safety'\nhelp: the prompts have language"
    ):
        step(by=["safety"]).run(context(Scripted(), tmp_path, with_language()))


def test_binary_rewards_stay_binary_at_a_value(tmp_path: Path) -> None:
    """At the German prompts all scores are equal, and the interval is still that of a rate."""
    scores = {"base": [0.0] * 6, "sft": [1.0, 0.0, 1.0, 1.0, 0.0, 1.0], "align": [1.0] * 6}
    artifact = step(by=["language"]).run(context(Scripted(scores), tmp_path, with_language()))
    german = dict(artifact.summary or {})["by"]["language"]["de"]
    assert german["policies"]["sft"]["helpful"] == statistics.rate([1.0, 1.0])

"""Results by column in the step `evaluate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from by_policy import by_policy
from test_evaluate import HELPFUL, SCORES, Scripted, context, judge_component, prompts, step
from test_judged import Items, Prepared

from alignkit import DataError, Group
from alignkit.evaluation import statistics
from alignkit_plugins.compare.rows import rows_of
from alignkit_plugins.compare.tables import by_column


def with_language() -> list[Group]:
    """Six prompts; the last has no language."""
    languages = ["de", "en", "de", "en", "en"]
    groups = prompts()
    return [
        *(replace(g, meta={"language": name}) for g, name in zip(groups, languages, strict=False)),
        groups[5],
    ]


def test_results_by_column(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "judges": [judge_component(Prepared, Items())],
        "policies": ["sft", "align"],
    }
    artifact = step(by=["language"], rewards=[HELPFUL], **options).run(
        context(Scripted(), tmp_path, with_language())
    )
    found = by_policy(artifact.summary or {})["by"]["language"]
    assert list(found) == ["(none)", "de", "en"]
    at = [1, 3, 4]  # the English prompts
    english = found["en"]
    mean = statistics.estimate([SCORES["sft"][i] for i in at])
    assert english["policies"]["sft"]["rewards"]["helpful"] == {**mean, "unscored": 0}
    gains = [SCORES["align"][i] - SCORES["sft"][i] for i in at]
    assert english["against"]["align"]["helpful"]["difference"] == statistics.paired_difference(
        gains, [0.0] * len(gains)
    )
    assert english["against"]["align"]["helpful"]["wins"] == 2
    within = {"low": 0.0, "high": 1.0}  # an interval of preferences ends there
    assert english["judged"]["align"]["judge"]["preference"] == {
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
    german = by_policy(artifact.summary or {})["by"]["language"]["de"]
    assert german["policies"]["sft"]["rewards"]["helpful"] == {
        **statistics.rate([1.0, 1.0]),
        "unscored": 0,
    }

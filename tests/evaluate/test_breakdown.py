"""Results by column in the step `evaluate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from by_policy import by_policy
from test_evaluate import HELPFUL, SCORES, Scripted, context, prompts, step

from alignkit import DataError, Group
from alignkit.evaluation import statistics
from alignkit_plugins.compare.rows import rows_of
from alignkit_plugins.compare.tables import details


def with_language() -> list[Group]:
    """Six prompts; the last has no language."""
    languages = ["de", "en", "de", "en", "en"]
    groups = prompts()
    return [
        *(replace(g, meta={"language": name}) for g, name in zip(groups, languages, strict=False)),
        groups[5],
    ]


def test_results_by_column(tmp_path: Path) -> None:
    artifact = step(by=["language"], rewards=[HELPFUL], policies=["sft", "align"]).run(
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
    (table,) = details(rows_of(artifact.summary or {}))
    assert [
        "en",
        "align",
        statistics.shown(english["policies"]["align"]["rewards"]["helpful"]),
    ] in [row[:3] for row in table.rows]


def test_a_column_that_no_prompt_has(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="no prompt has the column safety\nhelp: there are language"
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

"""Figures: which metrics share a panel; the same bytes every time, no scripts, text that stays
text.
"""

import warnings
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from made import HOSTILE, align_rows, make_run, sft_rows

from alignkit_plugins.report import figures
from alignkit_plugins.report.facts import facts_of


def test_panels_group_metrics_without_what_is_no_number() -> None:
    found = figures.panels(align_rows())
    assert list(found) == ["Reward", "KL to the reference, nats", "Scores"]
    assert list(found["Scores"]) == ["score/helpful", "score/safety"]
    assert figures.panels(sft_rows())["Loss"]["loss"] == ([1, 2, 4], [2.0, 1.5, 1.0])
    labels = ["a/b_c", "x" * 28, "x" * 29]
    assert [*map(figures._label, labels)] == ["a, b c", "x" * 28, "x" * 27 + "…"]
    # Of a stage without steps
    assert figures.panels([{"loss": 1.0}, {"loss": 0.5}])["Loss"]["loss"][0] == [1.0, 2.0]


def test_figures_are_byte_identical_and_described(tmp_path: Path) -> None:
    facts = facts_of(make_run(tmp_path / "run"))
    found = figures.figures_of(facts)
    assert found == figures.figures_of(facts) and found["report"] == []
    reward, *others = found["align"]
    assert reward.words == "align: Reward; reward from 1.909 to 3.107"
    for one in [reward, *others]:
        text = unquote(one.address.removeprefix("data:image/svg+xml,"))
        assert "dc:date" not in text
        assert ElementTree.fromstring(text).tag.endswith("svg") and len(text) < 30_000
        assert one.title != "Scores" or (">helpful<" in text and ">safety<" in text)


def test_hostile_names_are_text_and_strange_numbers_cost_no_other_figure(tmp_path: Path) -> None:
    rows = align_rows()
    for at, row in enumerate(rows):
        row |= {HOSTILE: at % 3, f"score/{HOSTILE}": at}
        row |= {"loss": (-1) ** at * 1.7e308, "kl": 1e-320 * at}
    facts = facts_of(make_run(tmp_path / "run", {"align": rows}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = figures.figures_of(facts)
    for one in found["align"]:
        text = unquote(one.address.removeprefix("data:image/svg+xml,"))
        assert "<script" not in text and "\u202e" not in text and "\x1b" not in text
    titles = [one.title for one in found["align"]]
    assert "Loss" not in titles and "Scores" in titles and found["sft"]


def gold_rows(*golds: float) -> list[dict[str, float]]:
    """Iterations whose KL is the square of their number, and whose reward rises by 2 each."""
    deviations: Any = {"reward_std": 4.0, "gold_std": 0.5}
    rows = []
    for n, gold in enumerate(golds, 1):
        rows.append({"step": n, "kl": n * n, "reward": 2.0 * n, "gold": gold, **deviations})
        deviations = {}  # those at the start count
    return rows


def test_gold_and_reward_are_gains_in_their_own_deviations(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "_figure", lambda *of: drawn.append(of) or of)
    figures.gold("align", gold_rows(1.0, 1.5, 2.0, 1.25))
    ((_, title, series, _, note),) = drawn
    assert title == figures.GOLD and series["reward"] == ([1, 2, 3, 4], [0.0, 0.5, 1.0, 1.5])
    assert series["gold"] == ([1, 2, 3, 4], [0.0, 1.0, 2.0, 0.5])
    assert note == "gold was highest in iteration 3, at the dotted line"


def test_two_points_of_gold_are_too_few() -> None:
    rows = gold_rows(1.0, 1.5, 2.0)
    assert figures.gold("align", rows)
    del rows[1]["gold"]
    assert figures.gold("align", rows) == []
    same = [row | {"kl": 1.0} for row in gold_rows(1.0, 1.5, 2.0)]
    assert figures.gold("align", same) == []

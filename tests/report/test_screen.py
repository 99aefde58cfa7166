"""The screen of a run: what is said of each policy, where there is little room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignkit_plugins.compare.rows import Row, plain
from alignkit_plugins.report import screen
from alignkit_plugins.report.facts import Stage
from alignkit_plugins.report.screen import _verdict

LONG = " ".join(["B is better than sft in a metric with a very long name."] * 5)


def verdict(policy: str, *sentences: str) -> dict[str, object]:
    return {"policy": policy, "sentences": list(sentences)}


def test_what_is_said_of_a_policy_stays_with_it() -> None:
    """The last policy stands first. B has no room at all, and so nothing else of it is said."""
    every = [
        verdict("A", "A is better than sft."),
        verdict("B", LONG, "Worse: b."),
        verdict("C", "C is better than sft."),
    ]
    assert _verdict(every, 2) == ["C is better than sft.", "A is better than sft."]


def test_a_loss_is_told_before_what_is_not_clear() -> None:
    one = verdict(
        "A", "A is better than sft.", "No clear difference in x.", "Worse than the base model: y."
    )
    assert _verdict([one], 4) == [
        "A is better than sft. Worse than the base model: y. No clear difference in x."
    ]


def test_a_reward_stays_in_a_table_that_metrics_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = [Row("sft", f"metric {at}", "metric", {"mean": 0.5}, tested=True) for at in range(5)]
    gold = Row("sft", "gold", "reward", {"mean": 0.1}, tested=True)
    monkeypatch.setattr(screen, "evaluated", lambda facts: {"report": [*metrics, gold]})
    lines = [line.split("  ")[0] for line in screen._numbers({}, 4)]
    assert lines[2:] == ["metric 0", "gold"]


@pytest.mark.parametrize(
    ("plugin", "right", "says"),
    [
        ("reward_model", (0.53, 0.4, 0.65), "gold is no better than a coin: it has 53% [40, 65]"),
        ("reward_model", (0.7, 0.6, 0.8), ""),
        ("dpo", (0.53, 0.4, 0.65), "gold: by its 60 held-out examples it learned nothing"),
    ],
)
def test_a_stage_that_learned_nothing_is_told_in_a_line(
    plugin: str, right: tuple[float, ...], says: str
) -> None:
    result: dict[str, Any] = dict(zip(("mean", "low", "high"), right, strict=True))
    p = 0.5 if result["low"] < 0.5 else 0.001
    accuracy = {"result": result, "difference": {"mean": 0.1, "p": p}}
    summary = {"held_out": {"examples": 60, "accuracy": accuracy}}
    stage = Stage(Path("gold"), {})
    vars(stage).update(damage=None, rows=[], record={"plugin": plugin, "summary": summary})
    told = stage._weak()
    assert told.startswith(says) and bool(told) == bool(says) and len(told) <= 80


def test_a_sample_has_room_where_much_is_told() -> None:
    warning = {"stage": "", "text": "many " * 60}
    stage = {"name": "sft", "learned": "much " * 60, "weak": "gold is no better than a coin. " * 9}
    answers = [{"policy": name, "text": "word " * 90} for name in ("base", "sft", "align")]
    sample = {"stage": "report", "kind": "random", "prompt": [{"content": "how?"}]}
    row = plain(Row("sft", "metric", "metric", {"mean": 0.5}))
    facts: dict[str, Any] = {
        "stages": [stage] * 3,
        "warnings": [warning],
        "next": {"told": "again " * 90, "chat": ""},
        "verdicts": [{"stage": "report", "outcome": "", **verdict("align", LONG, "Worse: b.")}],
        "evaluations": [{"stage": "report", "evaluation": {"results": [row]}}],
        "swaps": [],
        "reports": [],
        "samples": [{**sample, "answers": answers}],
    }
    lines = screen.screen(facts).splitlines()
    assert len(lines) <= screen.LINES and max(map(len, lines)) <= 80
    assert "prompt: how?" in lines and [line for line in lines if line.startswith("align: word")]
    assert [line for line in lines if line.startswith("metric")]

"""The screen of a run: what is said of each policy, where there is little room."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignkit_plugins.compare.rows import Row, plain
from alignkit_plugins.report import screen
from alignkit_plugins.report.diagnosis import diagnosis
from alignkit_plugins.report.document import chosen
from alignkit_plugins.report.facts import Stage
from tests.rows import cells

WEAK = """
    reward_model | 0.4 | 0.5   | gold is no better than a coin: it has 53% [40, 65]
    reward_model | 0.5 | 0.5   | gold is no better than a coin: it has 53% [50, 65]
    reward_model | 0   | 0.5   | gold is no better than a coin: it has 53% [0, 65]
    reward_model | 0.51 | 0.001 |
    dpo          | 0.4 | 0.5   | gold: by its 60 held-out examples it learned nothing
"""


@pytest.mark.parametrize(("plugin", "low", "p", "says"), cells(WEAK))
def test_a_stage_that_learned_nothing_is_told_in_a_line(
    plugin: str, low: str, p: str, says: str
) -> None:
    result = {"mean": 0.53, "low": float(low), "high": 0.65}
    accuracy = {"result": result, "difference": {"mean": 0.1, "p": float(p)}}
    summary = {"held_out": {"examples": 60, "accuracy": accuracy}, "groups": 1200}
    stage = Stage(Path("gold"), {"algorithm": plugin, "from": "sft"})
    vars(stage).update(damage=None, rows=[], record={"plugin": plugin, "summary": summary})
    about = {"reward_model": "a reward model from sft", "dpo": "sft after DPO"}
    assert stage._about() == f"{about[plugin]} on 1,200 examples"
    told = stage._weak()
    assert told.startswith(says) and bool(told) == bool(says) and len(told) <= 80


LONG = " ".join(["B is better than sft in a metric with a very long name."] * 6)
NUMBERS = [Row("sft", f"metric {at}", "metric", {"mean": 0.5}, tested=True) for at in range(5)]
NUMBERS.append(Row("sft", "gold", "reward", {"mean": 0.1}, tested=True))
SAID = {
    "A": ["A is better than sft.", "No clear difference in x.", "Worse than the base model: y."],
    "B": [LONG, "Worse: b."],
    "C": ["C is better than sft."],
    "base": ["base is worse than sft."],
}
SCREEN = """\
gold is no better than a coin. gold is no better than a coin. gold is no bet ...
sft: Lower it. Lower it. Lower it. Lower it. Lower it. Lower it. Lower it. L ...
gold is no better than a coin. gold is no better than a coin. gold is no bet ...

C is better than sft.
A is better than sft. Worse than the base model: y. No clear difference in x.

           sft
──────────────
metric 0  0.50
metric 1  0.50
metric 2  0.50
metric 3  0.50
metric 4  0.50
gold      0.10

prompt: how?
align: word word word word word word word word word word word word word word ...

Warning: many many many many many many many many many many many many many many
  many many many many many many many many many many many many many many many ...
next: again again again again again again again again again again again again
  again again again again again again again again again again again again ...
"""


def test_a_screen_where_much_is_told() -> None:
    """There is room for a sample. The last policy stands first; B has no room at all, and so
    nothing else of it is said. A loss is told before what is not clear. All that decides stands in
    the table, and answers have the rest.
    """
    stage: Any = {
        "name": "sft",
        "learned": "much " * 60,
        "weak": "",
        "diagnosis": ["Lower it. " * 9],
    }
    weak = {**stage, "weak": "gold is no better than a coin. " * 9}
    answers = [{"policy": name, "text": "word " * 90} for name in ("base", "sft", "align")]
    sample = {
        "stage": "report",
        "kind": "random",
        "prompt": [{"content": "hm"}, {"content": "how?"}],
    }
    verdicts = [
        {"stage": "report", "outcome": "", "policy": policy, "sentences": sentences}
        for policy, sentences in SAID.items()
    ]
    facts: dict[str, Any] = {
        "stages": [weak, stage, weak],
        "warnings": [{"stage": "", "text": "many " * 60}],
        "next": {"told": "again " * 90, "chat": "alignkit chat"},
        "verdicts": verdicts,
        "evaluations": [{"stage": "report", "evaluation": {"results": [*map(plain, NUMBERS)]}}],
        "cells": [],
        "reports": [],
        "samples": [{**sample, "answers": answers}],
    }
    assert screen.screen(facts) == SCREEN.rstrip()
    # A sentence of one stage is whole, with its number
    course = [{"iteration": at, "approx_kl": 0.4 * (at == 1)} for at in (1, 2)]
    (sentence,) = diagnosis([{**row, "response_tokens": 9} for row in course], {})
    facts["stages"] = [{**stage, "diagnosis": [sentence]}]
    assert " ".join(screen.screen(facts).split()).startswith(f"sft: {sentence} C is better")


@pytest.mark.parametrize(
    ("room", "prompts"), [(3, "g"), (5, "g"), (6, "gl"), (9, "glr"), (20, "glr")]
)
def test_three_prompts_are_answered_side_by_side_as_far_as_they_fit(
    room: int, prompts: str
) -> None:
    """That of the verdict first, then those of other kinds."""
    answers = [{"policy": name, "text": "word " * 90} for name in ("base", "align")]
    samples = list[Any]()
    for kind in ("loss", "loss", "gain", "random"):
        prompt = [{"content": kind[0]}]
        samples.append({"stage": "report", "kind": kind, "prompt": prompt, "answers": answers})
    shown = chosen({"samples": samples}, {"stage": "report", "outcome": "mixed"})
    lines = screen._side_by_side(shown, room)
    asked = [line.removeprefix("prompt: ") for line in lines if line.startswith("prompt")]
    assert asked == [*prompts] and len(lines) <= room
    assert sum(line.startswith("align: word") for line in lines) == len(prompts)


# As the quick start's, whose names take much room
DECIDE = """
    right minus wrong refusals
    harmful requests refused
    ordinary requests refused
    refused though only its form is harmful
    refused though it only sounds unsafe
    facts right
"""


def test_all_that_decides_is_on_the_screen_after_a_swap() -> None:
    """What a swap has not changed is without intervals there, and what got worse stands first."""
    share = {"mean": 0.11, "low": 0.012, "high": 0.191}
    results = dict[str, list[Any]]()
    for policy in ("sft", "align@ppo", "align@rejection_sampling"):
        results[policy] = [
            Row(policy, name, "metric", share, lower="ref" in name, percent=True, tested=True)
            for (name,) in cells(DECIDE)
        ]
    *_, newest = results
    loss: Any = {"baseline": "align@ppo", "difference": {"mean": 0.1}, "p": 0.001}
    results[newest][3] = replace(results[newest][3], **loss)
    for name in ("length", "truncated", "KL"):
        results[newest].append(Row(newest, name, "answers", {"mean": 20.0}))
    earlier = list(map(plain, results["align@ppo"] + results[newest]))
    said = ["The newest is worse in what is refused for its form.", "They differ.", LONG]
    swap = {"stage": "report", "policy": "align", "result": newest, "results": earlier}
    now = [plain(row) for row in results["sft"]]
    now += [{**plain(row), "policy": "align"} for row in results[newest]]
    facts: dict[str, Any] = {
        "stages": [{"name": "gold", "learned": "", "weak": "gold", "diagnosis": []}] * 2,
        "warnings": [{"stage": "", "text": "many " * 60}],
        "next": {"told": "again " * 90, "chat": ""},
        "verdicts": [{"stage": "report", "outcome": "", "policy": newest, "sentences": said}],
        "evaluations": [{"stage": "report", "evaluation": {"results": now}}],
        "cells": [swap],
        "reports": [],
        "samples": [],
    }
    lines = screen.screen(facts).splitlines()
    shown = [line.split("  ")[0].rstrip("*") for line in lines if "11%" in line]
    names = [name for (name,) in cells(DECIDE)]
    assert shown == [names.pop(3), *names] and len(lines) <= screen.LINES
    assert {line.count("[") for line in lines if "11%" in line} == {2}
    assert f"{said[0]} {said[1]}" in lines
    assert "* lower is better; 1 more in report.html" in lines

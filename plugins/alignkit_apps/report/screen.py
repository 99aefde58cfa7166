"""One screen of a run: the verdict, a table of policies by metrics, a prompt side by side, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from textwrap import wrap
from typing import Any

from alignkit.io.text import printable
from alignkit.report import WIDTH, Block, Report, Table
from alignkit_apps.report.overview import BASE, chosen
from alignkit_apps.report.side_by_side import evaluated
from alignkit_plugins.evaluate.readable import bounds, duration, mapping, shown
from alignkit_plugins.evaluate.rows import ANSWERS, main_rows
from alignkit_plugins.evaluate.tables import table

LINES = 23  # of the screen; what a run or `show` says besides makes up to 25
OF_VERDICT, OF_STAGES, OF_WARNING, OF_SAMPLE = 4, 3, 2, 3  # lines at most; of a sample, at least
WARNINGS = 2


def screen(facts: Mapping[str, Any], *, stages: bool = True) -> str:
    """The screen of a run, at most LINES lines of WIDTH characters. stages: whether it says what they learned."""
    verdict, warnings = _verdict(facts["verdicts"]), [f"Warning: {one['text']}" for one in facts["warnings"]]
    told = [f"{one['name']}: {text}" for one in facts["stages"] if stages and (text := learned(one))]
    results = _laid_out("; ".join(told))[:OF_STAGES] if told else []
    follow = facts["next"]["told"] or facts["next"]["chat"]
    warned = [line for text in warnings[:1] for line in _wrapped(text, OF_WARNING)]
    last = _wrapped(f"next: {follow}" if follow else "")
    sample = _sample_of(facts)
    room = LINES - sum(len(part) + bool(part) for part in (verdict, results)) - len(warned) - len(last)
    for_sample = 1 + OF_SAMPLE if sample else 0
    for_others = 2 if len(facts["reports"]) > len(facts["evaluations"]) else 0
    numbers = _numbers(facts, room - for_sample - for_others - 1, room - for_others - 1)
    room -= len(numbers) + bool(numbers)
    others = _others(facts, room - for_sample - 1)
    room -= len(others) + bool(others)
    answers = _side_by_side(sample, room - 1) if sample and room > OF_SAMPLE else []
    room -= len(answers) + bool(answers)
    for text in warnings[1:WARNINGS]:
        warned += _wrapped(text, room) if room > 0 else []
    parts = [verdict, numbers, others, results, answers, [*warned, *last]]
    return "\n\n".join("\n".join(part) for part in parts if part)


def stage_lines(facts: Mapping[str, Any]) -> list[str]:
    """A line per stage: how it is, how long it took, and what it learned."""
    names = max((len(stage["name"]) for stage in facts["stages"]), default=0)
    states = max((len(stage["state"]) for stage in facts["stages"]), default=0)
    return [
        _one_line(f"{one['name']:<{names}}  {one['state']:<{states}}  {duration(one['seconds']):>6}  {learned(one)}")
        for one in facts["stages"]
    ]


def learned(stage: Mapping[str, Any]) -> str:
    """What a stage learned, by held-out examples or by the rewards of its samples; empty if nothing says so."""
    known, reward = mapping(stage["summary"].get("held_out")), stage["metrics"].get("reward")
    for name, one in known.items():
        if isinstance(one, Mapping):
            percent = name == "accuracy"
            start = shown({"mean": bounds(one["start"])[0]}, percent=percent)
            return f"held-out {name} {shown(one['result'], percent=percent)}, before {start}"
    return f"reward {reward['first']:.2g} at first, {reward['last']:.2g} at last" if reward else ""


def _verdict(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is said of the last policies, and more of each where there is room."""
    told: list[list[str]] = []
    verdicts = [one for one in reversed(verdicts) if one["policy"] != BASE] or verdicts
    for verdict in verdicts:
        if len(_paragraphs([*told, verdict["sentences"][:1]])) <= OF_VERDICT:
            told.append(verdict["sentences"][:1])
    for said, verdict in zip(told, verdicts, strict=False):
        for sentence in verdict["sentences"][1:]:
            said.append(sentence)
            if len(_paragraphs(told)) > OF_VERDICT:
                said.pop()
    return _paragraphs(told)


def _paragraphs(told: Sequence[Sequence[str]]) -> list[str]:
    return [line for sentences in told for line in _laid_out(" ".join(sentences))]


def _numbers(facts: Mapping[str, Any], room: int, most: int) -> list[str]:
    """The table of policies by metrics, with as many metrics as fit into `room` lines, and at least one."""
    rows, stages = [], evaluated(facts)
    for stage in reversed(stages):
        for row in main_rows(stages[stage]):
            name = f"{stage}: {row.metric}" if len(stages) > 1 else row.metric
            brief = {"mean": row.estimate.get("mean")} if row.kind == ANSWERS else row.estimate
            rows.append(replace(row, metric=name, estimate=brief))
    names = list(dict.fromkeys(row.metric for row in rows))
    for count in range(len(names), 0, -1):
        lines = _laid_out(table([row for row in rows if row.metric in names[:count]], width=WIDTH))
        if len(lines) <= room or count == 1:
            return lines[:most]
    return []


def _others(facts: Mapping[str, Any], room: int) -> list[str]:
    """The first tables of what other steps report, as far as there is room, and where the rest is."""
    evaluations = {item["stage"] for item in facts["evaluations"]}
    lines, left = list[str](), list[str]()
    for item in facts["reports"]:
        if item["stage"] not in evaluations:
            blocks = Report.restored(item["blocks"]).blocks
            found = _laid_out(next((one for one in blocks if isinstance(one, Table)), blocks[0]))
            if len(lines) + len(found) < room:
                lines += found
            else:
                left.append(item["stage"])
    return [*lines, f"{', '.join(left)}: see report.txt in the folder of the stage"] if left else lines


def _sample_of(facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The prompt that shows best what the last verdict says."""
    evaluations = [item["stage"] for item in facts["evaluations"][-1:]]
    verdicts = [one for one in facts["verdicts"] if one["stage"] in evaluations]
    return chosen(facts, verdicts[-1] if verdicts else {"stage": "".join(evaluations), "outcome": ""})


def _side_by_side(sample: Mapping[str, Any], room: int) -> list[str]:
    """A prompt and the last answers to it, as many as fit and in as many lines."""
    answers = sample["answers"][1 - room :]
    each = max(1, (room - 1) // len(answers))
    lines = _wrapped(f"prompt: {sample['prompt'][-1]['content'] if sample['prompt'] else ''}", 1)
    for answer in answers:
        lines += _wrapped(f"{answer['policy']}: {answer['text']}", each)
    return lines


def _laid_out(block: Block) -> list[str]:
    return Report([block]).text(WIDTH).splitlines()


def _wrapped(text: str, lines: int | None = None) -> list[str]:
    words = printable(" ".join(text.split()))
    how: Any = {"subsequent_indent": "  ", "placeholder": " ...", "break_on_hyphens": False}
    return wrap(words, WIDTH, max_lines=lines, **how)


def _one_line(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 4].rstrip()} ..."

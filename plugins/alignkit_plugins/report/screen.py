"""One screen of a run: the verdict, a table of policies by metrics, a prompt side by side, and what
to do next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from textwrap import wrap
from typing import Any

from alignkit.io.text import printable
from alignkit.report import WIDTH, Block, Report
from alignkit_plugins.compare.readable import duration
from alignkit_plugins.evaluate.rows import ANSWERS, main_rows
from alignkit_plugins.evaluate.tables import table
from alignkit_plugins.report.overview import BASE, chosen
from alignkit_plugins.report.side_by_side import evaluated

LINES = 23  # of the screen; what a run or `show` says besides makes up to 25
OF_STAGES, OF_SAMPLE = 3, 3  # lines: at most of what stages learned; at least of a sample
ROOMY, TIGHT = (4, 2), (2, 1)  # lines at most of the verdict, and of a warning


def screen(facts: Mapping[str, Any], *, stages: bool = True) -> str:
    """The screen of a run, at most LINES lines of WIDTH characters. stages: whether it says what
    they learned.
    """
    sample = _sample_of(facts)
    parts = _parts(facts, stages, sample, *ROOMY)
    if sample and not parts["answers"]:
        parts = _parts(facts, stages, sample, *TIGHT)
    return "\n\n".join("\n".join(part) for part in parts.values() if part)


def _parts(
    facts: Mapping[str, Any],
    stages: bool,
    sample: Mapping[str, Any] | None,
    of_verdict: int,
    of_warning: int,
) -> dict[str, list[str]]:
    """The lines of each part. What was planned to be short comes first, and the others have the
    rest of the room.
    """
    told = [
        f"{one['name']}: {one['learned']}" for one in facts["stages"] if stages and one["learned"]
    ]
    weak = [one["weak"] for one in facts["stages"] if one["weak"]]
    warnings = []
    for one in facts["warnings"]:
        told_first = any(one["text"].partition(";")[0] in line for line in weak)
        if not one["logged"] and not told_first:
            warnings.append(f"Warning: {one['text']}")
    names = ("weak", "verdict", "numbers", "others", "learned", "answers", "last")
    parts = {name: list[str]() for name in names}
    parts["weak"] = [_one_line(line) for line in weak[:OF_STAGES]]
    parts["verdict"] = _verdict(facts["verdicts"], of_verdict)
    parts["learned"] = _laid_out("; ".join(told))[:OF_STAGES] if told else []
    parts["last"] = [line for text in warnings[:1] for line in _wrapped(text, of_warning)]
    next_step = facts["next"]["told"] or facts["next"]["chat"]
    parts["last"] += _wrapped(f"next: {next_step}" if next_step else "")

    def room() -> int:
        return LINES - sum(len(part) + bool(part) for part in parts.values())

    for_sample = 1 + OF_SAMPLE if sample else 0
    for_others = 2 if len(facts["reports"]) > len(facts["evaluations"]) else 0
    parts["numbers"] = _numbers(facts, room() - for_sample - for_others, room() - for_others)
    parts["others"] = _others(facts, room() - for_sample)
    if sample and room() >= OF_SAMPLE:
        parts["answers"] = _side_by_side(sample, room())
    if warnings[1:] and room() >= 0:
        parts["last"] = [*_wrapped(warnings[1], room() + 1), *parts["last"]]
    return parts


def stage_lines(facts: Mapping[str, Any]) -> list[str]:
    """A line per stage: how it is, how long it took, and what it learned."""
    names = max((len(stage["name"]) for stage in facts["stages"]), default=0)
    states = max((len(stage["state"]) for stage in facts["stages"]), default=0)
    return [
        _one_line(
            f"{one['name']:<{names}}  {one['state']:<{states}}  {duration(one['seconds']):>6}  "
            f"{one['learned']}"
        )
        for one in facts["stages"]
    ]


def _verdict(verdicts: Sequence[Mapping[str, Any]], most: int) -> list[str]:
    """What is said of the last policies, and more of each where there is room."""
    told: list[list[str]] = []
    more: list[Sequence[str]] = []
    for verdict in [one for one in reversed(verdicts) if one["policy"] != BASE] or verdicts:
        first, *others = verdict["sentences"]
        if len(_paragraphs([*told, [first]])) <= most:
            told.append([first])
            more.append(sorted(others, key=lambda sentence: not sentence.startswith("Worse")))
    for said, others in zip(told, more, strict=True):
        for sentence in others:
            said.append(sentence)
            if len(_paragraphs(told)) > most:
                said.pop()
                break
    return _paragraphs(told)


def _paragraphs(told: Sequence[Sequence[str]]) -> list[str]:
    return [line for sentences in told for line in _laid_out(" ".join(sentences))]


def _numbers(facts: Mapping[str, Any], room: int, most: int) -> list[str]:
    """The table of policies by metrics, with as many metrics as fit into `room` lines, and at least
    one.
    """
    rows, stages = [], evaluated(facts)
    for stage in reversed(stages):
        for row in main_rows(stages[stage]):
            name = f"{stage}: {row.metric}" if len(stages) > 1 else row.metric
            brief = {"mean": row.estimate.get("mean")} if row.kind == ANSWERS else row.estimate
            rows.append(replace(row, metric=name, estimate=brief))
    names = list(dict.fromkeys(row.metric for row in rows))
    headline = names[:1]
    raters = {row.metric for row in rows if row.tested and row.kind != "metric"}
    # A reward model or a judge, which the metrics of examples would crowd out, stays with the headline.
    names.sort(key=lambda name: (name not in headline, name not in raters))
    for count in range(len(names), 0, -1):
        lines = _laid_out(table([row for row in rows if row.metric in names[:count]], width=WIDTH))
        if len(lines) <= room or count == 1:
            return lines[:most]
    return []


def _others(facts: Mapping[str, Any], room: int) -> list[str]:
    """What other steps report, as far as there is room, and where the rest is."""
    evaluations = {item["stage"] for item in facts["evaluations"]}
    reports = {}
    for one in facts["reports"]:
        if one["stage"] not in evaluations:
            blocks = Report.restored(one["blocks"]).blocks
            reports[one["stage"]] = [
                block for block in blocks if not isinstance(block, str)
            ] or blocks
    lines, left = list[str](), dict[str, None]()
    for together in zip_longest(*reports.values()):
        for stage, block in zip(reports, together, strict=True):
            found = _laid_out(block) if block else []
            if len(lines) + len(found) < room:
                lines += found
            else:
                left[stage] = None
    return (
        [*lines, f"{', '.join(left)}: see report.txt in the folder of the stage"] if left else lines
    )


def _sample_of(facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The prompt that shows best what the last verdict says."""
    evaluations = [item["stage"] for item in facts["evaluations"][-1:]]
    verdicts = [one for one in facts["verdicts"] if one["stage"] in evaluations]
    return chosen(
        facts, verdicts[-1] if verdicts else {"stage": "".join(evaluations), "outcome": ""}
    )


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

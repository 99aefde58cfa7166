"""One screen of a run: the verdict, a table of policies by metrics, a prompt side by side, and what
to do next.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from textwrap import wrap
from typing import Any

from alignkit.contract.report import WIDTH, Block, Report, Table
from alignkit.io.text import printable
from alignkit.recipe.schema import BASE
from alignkit_plugins.cells.earlier import evaluated
from alignkit_plugins.command_line.find import is_result_name
from alignkit_plugins.compare.rows import ANSWERS, Row, main_rows, rows_in
from alignkit_plugins.compare.tables import table
from alignkit_plugins.report.document import chosen
from alignkit_plugins.report.facts import facts_of
from alignkit_plugins.text.readable import duration
from alignkit_plugins.text.rows import cut

MORE = " ..."  # the end of a line that is cut
LINES = 23  # the screen's; what a run or `show` adds makes up to 25
OF_VERDICT, OF_STAGES, OF_WARNING, OF_SAMPLE = 5, 3, 2, 4  # lines
LEAST = 3  # lines of a verdict, if the metrics that decide need the others


def results(folder: Path, records: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """The screen of a run that is complete, which is as wide as a page."""
    return [screen(facts_of(folder))]


def screen(facts: Mapping[str, Any], *, stages: bool = True) -> str:
    """The screen of a run, at most LINES lines of WIDTH characters. stages: whether it says what
    they learned, if there is room.

    The table has all metrics that decide, and others as far as they leave room for a sample.
    """
    learned, weak, last = list[str](), list[str](), list[str]()
    for one in facts["stages"]:
        if one["learned"]:
            learned.append(f"{one['name']}: {one['learned']}")
        found = [one["weak"], *[f"{one['name']}: {text}" for text in one["diagnosis"]]]
        weak += [text for text in found if text][:1]
    for one in facts["warnings"]:
        if not last and one["text"].partition(";")[0] not in " ".join(weak):
            last = _wrapped(f"Warning: {one['text']}", OF_WARNING)
    if command := facts["next"]["told"] or facts["next"]["chat"]:
        last += _wrapped(f"next: {command}", OF_WARNING)
    if len(weak) < OF_STAGES:
        weak = [*chain(*(_wrapped(text, OF_WARNING) for text in weak))]
    else:
        weak = [cut(line, WIDTH, MORE) for line in weak[:OF_STAGES]]
    free = LINES - _height(weak, last, _numbers(facts, 0, LINES)) - 1
    verdict = _verdict(facts["verdicts"], max(LEAST, min(OF_VERDICT, free)))
    samples = _samples(facts)
    most = LINES - _height(weak, verdict, last)
    room = most - (OF_SAMPLE + 1 if samples else 0)
    gains = _laid_out("; ".join(learned))[:OF_STAGES]
    numbers = _numbers(facts, room, most)
    if not stages or not learned or room - _height(numbers) <= len(gains):
        gains = []
    others = _others(facts, room - _height(gains, numbers))
    answers = list[str]()
    room = LINES - _height(weak, verdict, numbers, others, gains, last)
    if room > 1:
        answers = _side_by_side(samples, room)
    parts = (weak, verdict, numbers, others, gains, answers, last)
    return "\n\n".join("\n".join(part) for part in parts if part)


def _height(*parts: Sequence[str]) -> int:
    """The lines of parts, with an empty one for each."""
    return sum(len(part) + bool(part) for part in parts)


def stage_lines(facts: Mapping[str, Any]) -> list[str]:
    """A line per stage: how it is, how long it took, and what it learned."""
    stages = facts["stages"]
    names = max(len(one["name"]) for one in stages)
    states = max(len(one["state"]) for one in stages)
    lines = list[str]()
    for one in stages:
        start = f"{one['name']:<{names}}  {one['state']:<{states}}"
        line = f"{start}  {duration(one['seconds']):>6}  {one['learned']}"
        lines.append(cut(line.rstrip(), WIDTH, MORE))
    return lines


def _verdict(verdicts: Sequence[Mapping[str, Any]], most: int) -> list[str]:
    """What is said of each policy, the last one first, as long as there is room; losses before what
    is not clear.
    """
    lines = list[str]()
    for verdict in [one for one in reversed(verdicts) if one["policy"] != BASE] or verdicts:
        first, *others = verdict["sentences"]
        others.sort(key=lambda sentence: "worse" not in sentence[:10].lower())
        found = _laid_out(" ".join([first, *others]))
        while others and len(lines) + len(found) > most:
            others.pop()
            found = _laid_out(" ".join([first, *others]))
        if len(lines) + len(found) <= most:
            lines += found
    return lines


def _numbers(facts: Mapping[str, Any], room: int, most: int) -> list[str]:
    """The table of policies by metrics, what got worse first, with as many as fit, and at least
    one. room: lines; most: for those that decide.
    """
    rows, stages, worse = list[Row](), evaluated(facts), set[str]()
    newest, older = set[str](), list[str]()
    for one in facts["cells"]:
        newest.add(one["result"])
        for row in rows_in(one):
            if row.clear == -1:
                worse.add(row.metric)
            if row.policy not in (*newest, *older):
                older.append(row.policy)
    for stage in reversed(stages):
        for row in main_rows(stages[stage]):
            if row.clear == -1:
                worse.add(row.metric)
            if row.kind == ANSWERS:
                row = replace(row, estimate={"mean": row.mean})
            if len(stages) > 1:
                row = replace(row, metric=f"{stage}: {row.metric}")
            rows.append(row)
    rows.sort(key=lambda row: row.metric not in worse or row.kind == "judge")
    # Rewards and judges, which the metrics of examples would crowd out, stay with the headline.
    raters = {row.metric for row in rows if row.tested and row.kind != "metric"}
    decide = len({row.metric for row in rows if row.tested})
    names = list(dict.fromkeys(row.metric for row in rows))
    headline = names[:1]
    names.sort(key=lambda name: (name not in worse, name not in headline, name not in raters))
    lines = list[str]()
    for count in range(len(names), 0, -1):
        shown = [row for row in rows if row.metric in names[:count]]
        lines = _columns(shown, newest, older)
        if left := len(names) - count:
            files = [f"{stage}/report.txt" for stage in stages]
            rest = f"{left} more in {'report.html' if facts['cells'] else ', '.join(files)}"
            if lines[-1].startswith("* "):
                rest = f"{lines.pop()}; {rest}"
            lines.append(cut(rest, WIDTH, MORE))
        if len(lines) <= (room if count > decide else most):
            break
    return lines[: max(0, most)]


def _columns(rows: Sequence[Row], newest: Container[str], older: Sequence[str]) -> list[str]:
    """A table with the newest results marked, and intervals of what a swap has changed. older: the
    oldest first, which are left out where there is no room, but for the last one.
    """
    named = list[Row]()
    for row in rows:
        name, estimate = row.policy, row.estimate
        if is_result_name(name):  # in narrow columns
            name = name.replace("@", "@\n") + "\n(newest)" * (name in newest)
        elif older:  # not swapped, which leaves its room to the names of metrics
            estimate = {"mean": row.mean}
        named.append(replace(row, policy=name, estimate=estimate))
    lines = _laid_out(table(named))
    if older[1:] and max(map(len, lines)) > WIDTH:
        fewer = [row for row in rows if row.policy != older[0]]
        return _columns(fewer, newest, older[1:])
    return lines


def _others(facts: Mapping[str, Any], room: int) -> list[str]:
    """The first table or text of what other steps report, as far as there is room."""
    evaluations = [item["stage"] for item in facts["evaluations"]]
    lines = list[str]()
    for one in facts["reports"]:
        if one["stage"] not in evaluations:
            blocks = Report.restored(one["blocks"]).blocks
            first = blocks[0]
            for block in reversed(blocks):
                if isinstance(block, Table):
                    first = block
            found = _laid_out(first)
            if len(lines) + len(found) > room:
                found = [f"{one['stage']}: see {one['stage']}/report.txt"]
            lines += found
    return lines[: max(0, room)]


def _samples(facts: Mapping[str, Any]) -> list[Any]:
    """The prompts that show best what the last verdict says, the best one first."""
    if not facts["evaluations"]:
        return []
    last = {"stage": facts["evaluations"][-1]["stage"], "outcome": ""}
    for verdict in facts["verdicts"]:
        if verdict["stage"] == last["stage"]:
            last = verdict
    return chosen(facts, last)


def _side_by_side(samples: Sequence[Mapping[str, Any]], room: int) -> list[str]:
    """Prompts with the last answers to them: as many as fit whole, but at least one, and each text
    in as many lines as there are.
    """
    while len(samples) > 1 and sum(1 + len(one["answers"]) for one in samples) > room:
        samples = samples[:-1]
    lines = list[str]()
    for place, sample in enumerate(samples):
        own = (room - len(lines)) // (len(samples) - place)
        answers = sample["answers"][1 - own :]
        each = max(1, (own - 1) // len(answers))
        prompt = [{"content": ""}, *sample["prompt"]][-1]["content"]
        lines += _wrapped(f"prompt: {prompt}", 1)
        for answer in answers:
            lines += _wrapped(f"{answer['policy']}: {answer['text']}", each)
    return lines


def _laid_out(block: Block) -> list[str]:
    return Report([block]).text(WIDTH).splitlines()


def _wrapped(text: str, lines: int) -> list[str]:
    words = printable(" ".join(text.split()))
    how: Any = {"subsequent_indent": "  ", "placeholder": MORE, "break_on_hyphens": False}
    return wrap(words, WIDTH, max_lines=lines, **how)

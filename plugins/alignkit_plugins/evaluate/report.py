"""The report of `evaluate`: the verdict, the table of policies by metrics, and answers side by
side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import Group
from alignkit.report import WIDTH, Block, Report, SideBySide
from alignkit_plugins.ai_feedback.judge_card import sentence
from alignkit_plugins.compare.comparison import answers_of
from alignkit_plugins.evaluate.rows import Row, main_rows
from alignkit_plugins.evaluate.tables import over, table
from alignkit_plugins.evaluate.verdicts import verdicts

EXCERPT = 300  # longest text of a sample, in characters


def report(summary: Mapping[str, Any], rows: Sequence[Row], groups: Sequence[Group]) -> Report:
    """All of it. rows: of the summary. groups: the prompts whose answers are shown."""
    told = [" ".join(verdict.sentences) for verdict in verdicts(rows, summary)]
    told += [sentence(*each) for each in summary.get("judge_cards", {}).items()]
    blocks: list[Block] = ["\n".join(summary["notes"])]
    blocks += ["\n".join(told)] if told else []
    blocks.append(table(main_rows(rows), over(summary), width=WIDTH))
    blocks += [
        side_by_side(group, list(summary["policies"]), summary["headline"]) for group in groups
    ]
    return Report(blocks)


def side_by_side(group: Group, policies: Sequence[str], headline: str | None) -> SideBySide:
    """The last turn of a prompt, and each policy's first answer with its score."""
    title, heads, texts = f"prompt: {excerpt(group.prompt[-1]['content'])}", [], []
    for name in policies:
        answer = answers_of(group, name)[0]
        score = answer.scores.get(headline or "")
        heads.append(name if score is None else f"{name} ({headline} {score:.3g})")
        texts.append(excerpt(answer.text))
    return SideBySide(title, heads, texts)


def excerpt(text: str) -> str:
    """The beginning of a text, with blanks for control characters, which would act on the
    terminal.
    """
    printable = "".join(c if c.isprintable() or c == "\n" else " " for c in text).strip()
    return printable if len(printable) <= EXCERPT else f"{printable[: EXCERPT - 3].rstrip()}..."

"""What the steps that make data share: questions to a model, what they cost, and what was left
out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import alignkit
from alignkit import Artifact, Field, Group, PolicyRef, RunFailed, Step, StepContext
from alignkit.contract.report import Report
from alignkit.data.group import Response, group_id, user_turn
from alignkit.evaluation import answers
from alignkit_plugins.ai_feedback.writer import (
    Server,
    Writer,
    Written,
    ask,
    bill,
    billed,
    check_sampling,
    kind_of,
)
from alignkit_plugins.servers.remote import key_of
from alignkit_plugins.text.rows import prompt_to_row

WHO = "`base`, a stage, or a server, `{base_url: ..., model: ...}`"


class Writing(alignkit.SamplingOptions):
    """Options of a step whose model writes."""

    writer: PolicyRef | Server = Field(description=f"who writes: {WHO}")

    def check_values(self) -> None:
        check_sampling(self.writer, self)

    def policies_to_sample(self) -> list[str]:
        return policies_of(self.writer)


class AskingStep(Step):
    """A step that asks models."""

    def check(self, folder: Path) -> None:
        for who in vars(self.options).values():
            if isinstance(who, Server):
                key_of(f"model '{who.model}'", who)


class Desk:
    """Asks models in a step, and keeps what that cost and what was left out."""

    def __init__(self, context: StepContext):
        self._context = context
        self.spent: list[Written] = []
        self._dropped: list[dict[str, Any]] = []

    def ask(
        self, name: str, writer: Writer, questions: Sequence[Group], most: int
    ) -> list[Written]:
        """What a writer says next, as `writer.ask`. Equal questions are asked and paid for once."""
        keys = [json.dumps(prompt_to_row(0, question)) for question in questions]
        different = dict(zip(keys, questions, strict=True))
        written = ask(self._context, name, writer, list(different.values()), most)
        self.spent += written
        replies = dict(zip(different, written, strict=True))
        return [replies[key] for key in keys]

    def drop(self, reason: str, **row: Any) -> None:
        """Leave out a row, for the file `dropped.jsonl`.

        What follows `: ` in the reason is not counted apart.
        """
        self._dropped.append({"dropped": reason, **row})

    def artifact(
        self,
        headline: str,
        groups: Sequence[Group],
        facts: Mapping[str, Any],
        *parts: Any,
        usable: bool = True,
    ) -> Artifact:
        """What the step made, what it cost, and what was left out.

        Raises RunFailed with all this if nothing is usable. parts: of the report, after these
        lines.
        """
        counts = Counter(kind_of(row["dropped"]) for row in self._dropped)
        dropped, spent = dict(counts.most_common()), bill(self.spent)
        lines = [headline, *billed(spent)]
        for why, count in dropped.items():
            lines.append(f"  left out, {why}: {count}")
        write_lines(self._context, "dropped.jsonl", self._dropped)
        text = "\n".join(lines)
        if not usable:
            raise RunFailed(f"stage '{self._context.stage}': {text}")
        summary = {**facts, "dropped": dropped, "bill": spent}
        return Artifact(groups=groups, summary=summary, report=Report([text, *parts]))


def policies_of(*writers: str | Server | None) -> list[str]:
    """The writers that are policies of the run."""
    return list(dict.fromkeys(who for who in writers if isinstance(who, str)))


def question_of(text: str) -> Group:
    """A conversation of one question."""
    return Group((user_turn(text),))


def filled(template: str, **values: Any) -> str:
    """The template in one pass, so that braces in texts have no effect."""
    names = "|".join(values)
    return re.sub(rf"\{{({names})\}}", lambda match: str(values[match[1]]), template)


def row(prompt: Group, meta: Mapping[str, Any], responses: Sequence[Response] = ()) -> Group:
    """A row of the artifact."""
    id = group_id(prompt.prompt, responses, prompt.tools)
    return Group(prompt.prompt, tuple(responses), id=id, meta=dict(meta), tools=prompt.tools)


def write_lines(context: StepContext, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows for people who read them into a file of the stage; none: no file."""
    lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in rows]
    if lines:
        context.write_text(name, "".join(lines))


def agreement(one: str, other: str) -> float:
    """The share of the shorter text's words that the other one has in the same order.

    A sentence agrees with a word. 0 for a text without words.
    """
    words, others = answers.words(one), answers.words(other)
    return common_words(words, others) / min(len(words), len(others)) if words and others else 0.0


def common_words(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, by bits of a whole number (Hyyrö 2004).

    Bit i of `column` is 0 if the length grows at word i of `one`.
    """
    places: dict[str, int] = {}
    for number, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << number
    whole = (1 << len(one)) - 1
    column = whole
    for word in other:
        matches = column & places.get(word, 0)
        column = ((column + matches) | (column - matches)) & whole
    return len(one) - column.bit_count()

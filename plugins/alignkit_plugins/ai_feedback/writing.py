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

from pydantic import model_validator

import alignkit
from alignkit import Artifact, Field, Group, PolicyRef, RunFailed, Step, StepContext
from alignkit.data.group import Response, group_id
from alignkit.report import Report
from alignkit_plugins.ai_feedback.remote import key_of
from alignkit_plugins.ai_feedback.server import Server
from alignkit_plugins.ai_feedback.writers import (
    Writer,
    Written,
    ask,
    bill,
    billed,
    check_sampling,
    kind_of,
)
from alignkit_plugins.formats.rows import prompt_to_row

WHO = (
    "`base`, a stage, or a model behind an OpenAI-compatible server, `{base_url: ..., model: ...}`"
)


class Writing(alignkit.SamplingOptions):
    """Options of a step whose model writes."""

    writer: PolicyRef | Server = Field(description=f"who writes: {WHO}")

    @model_validator(mode="after")
    def _as_a_server_takes_it(self) -> Any:
        check_sampling(self.writer, self)
        return self

    def policies_to_sample(self) -> list[str]:
        return policies_of(self.writer)


class Asking(Step):
    """A step that asks models."""

    def check(self, folder: Path) -> None:
        for who in vars(self.options).values():
            if isinstance(who, Server):
                key_of(f"model '{who.model}'", who)


class Desk:
    """Asks models in a step, and keeps what that cost and what was left out."""

    def __init__(self, context: StepContext):
        self._context = context
        self._spent: list[Written] = []
        self._dropped: list[dict[str, Any]] = []

    def ask(
        self, name: str, writer: Writer, questions: Sequence[Group], most: int
    ) -> list[Written]:
        """What a writer says next, as `writers.ask`. Equal questions are asked and paid for
        once.
        """
        keys = [json.dumps(prompt_to_row(0, question)) for question in questions]
        different = dict(zip(keys, questions, strict=True))
        said = ask(self._context, name, writer, list(different.values()), most)
        self._spent += said
        replies = dict(zip(different, said, strict=True))
        return [replies[key] for key in keys]

    def drop(self, reason: str, **row: Any) -> None:
        """Leave out a row, for the file `dropped.jsonl`. What follows `: ` in the reason is not
        counted apart.
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
        """What the step made, what it cost, and what was left out. Raises RunFailed with all this
        if nothing is usable.

        parts: of the report, after these lines.
        """
        dropped = dict(Counter(kind_of(row["dropped"]) for row in self._dropped).most_common())
        spent = bill(self._spent)
        lines = [headline, billed(spent)]
        lines += [f"  no text, {why}: {count}" for why, count in spent["refused"].items()]
        lines += [f"  left out, {why}: {count}" for why, count in dropped.items()]
        write_lines(self._context, "dropped.jsonl", self._dropped)
        text = "\n".join(lines)
        if not usable:
            raise RunFailed(f"stage '{self._context.stage}': {text}")
        return Artifact(
            groups=groups,
            summary={**facts, "dropped": dropped, "bill": spent},
            report=Report([text, *parts]),
        )


def policies_of(*writers: str | Server | None) -> list[str]:
    """Those that are policies of the run."""
    return list(dict.fromkeys(who for who in writers if isinstance(who, str)))


def asked(text: str) -> Group:
    """A conversation of one question."""
    return Group(({"role": "user", "content": text},))


def filled(template: str, **values: Any) -> str:
    """The template in one pass, so that braces in texts have no effect."""
    return re.sub(r"\{(" + "|".join(values) + r")\}", lambda match: str(values[match[1]]), template)


def row(prompt: Group, meta: Mapping[str, Any], responses: Sequence[Response] = ()) -> Group:
    """A row of the artifact."""
    id = group_id(prompt.prompt, responses, prompt.tools)
    return Group(prompt.prompt, tuple(responses), id=id, meta=dict(meta), tools=prompt.tools)


def write_lines(context: StepContext, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows for people who read them into a file of the stage; none: no file."""
    if rows:
        context.write_text(
            name, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)
        )

"""What the steps that make data share: who writes, and how rows and their bill are shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import alignkit
from alignkit import Field, Group, Message, PolicyRef, StepContext
from alignkit.data.group import Response, group_id
from alignkit_http import key_of
from alignkit_http.server import Server
from alignkit_http.writers import billed

WHO = "`base`, a stage, or a model behind an OpenAI-compatible server, `{base_url: ..., model: ...}`"


class Writing(alignkit.SamplingOptions):
    """Options of a step whose model writes."""

    writer: PolicyRef | Server = Field(description=f"who writes: {WHO}")

    def policies_to_sample(self) -> list[str]:
        return policies_of(self.writer)


def policies_of(*writers: str | Server | None) -> list[str]:
    """Those that are policies of the run."""
    return list(dict.fromkeys(who for who in writers if isinstance(who, str)))


def check_keys(step: str, *writers: str | Server | None) -> None:
    """Raise RunFailed if a server's key is missing."""
    for who in writers:
        if isinstance(who, Server):
            key_of(step, who)


def asked(text: str) -> list[Message]:
    """A conversation of one question."""
    return [{"role": "user", "content": text}]


def filled(template: str, **values: Any) -> str:
    """The template in one pass, so that braces in texts have no effect."""
    return re.sub(r"\{(" + "|".join(values) + r")\}", lambda match: str(values[match[1]]), template)


def row(prompt: Sequence[Message], meta: Mapping[str, Any], responses: Sequence[Response] = ()) -> Group:
    """A row of the artifact."""
    return Group(tuple(prompt), tuple(responses), id=group_id(prompt, responses), meta=dict(meta))


def lines_of(headline: str, bill: Mapping[str, Any], dropped: Mapping[str, int]) -> str:
    """What was made, what it cost, and what was left out, each with its reason."""
    reasons = [f"  left out, {why}: {count}" for why, count in dropped.items()]
    refused = [f"  no text, {why}: {count}" for why, count in bill["refused"].items()]
    return "\n".join([headline, billed(bill), *refused, *reasons])


def write_lines(context: StepContext, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows for people who read them, such as what was left out, into a file of the stage."""
    context.write_text(name, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows))

"""Conversations as demonstrations: OpenAI's `messages` and ShareGPT's `conversations`.

The turns before the first assistant turn are the prompt. A single answer becomes the response's text. Several turns
stay messages and keep their `train` flags, for the algorithm to decide which of them to learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignkit import BadRow, Format, Group, Register, hookimpl


class Messages(Format):
    """One conversation per row; `label` says whether its answer is good."""

    summary = "conversations: messages [{role, content}] or conversations [{from, value}]; optional label"
    wants = "messages [{role, content}] or conversations [{from, value}]; optional label (true or false)"

    @classmethod
    def matches(cls, row: Any) -> bool:
        if not cls.lacks(row, "chosen", "rejected", "completion"):
            return False
        return cls.has(row, "messages") or cls.has(row, "conversations")

    def read(self, row: Any) -> Group:
        name = "messages" if self.has(row, "messages") else "conversations"
        if not isinstance(row, Mapping) or row.get(name) is None:
            raise BadRow("column 'messages' or 'conversations' is missing")
        if isinstance(row[name], str) and not row[name].lstrip().startswith("["):
            raise BadRow(f"column '{name}' must be a list of messages, not text")
        prompt, response = self.demonstration(self.conversation(row[name], name), label=self.flag(row, "label"))
        return Group(prompt, (response,), meta=self.rest(row, name, "label"))


@hookimpl
def register_formats(register: Register) -> None:
    register("messages", Messages, summary=Messages.summary)

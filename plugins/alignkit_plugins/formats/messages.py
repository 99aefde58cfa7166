"""Conversations: OpenAI's `messages` and ShareGPT's `conversations`, as demonstrations, labeled
answers or prompts.

The turns before the first answer to the user are the prompt. A single answer becomes the response's
text. Several turns stay messages and keep their `train` flags, for the algorithm to decide which of
them to learn. With a label, the response is the last answer, and all earlier turns are the prompt.
A conversation that ends with the user is a prompt without a response.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignkit import BadRow, Group
from alignkit_plugins.formats.columns import LABEL_COLUMNS, SYSTEM_COLUMNS, ColumnFormat

# With the answers of comparisons, which `preference` reads.
COMPARED = ("chosen", "rejected", "chosen_response", "rejected_response", "rejected_messages")


class Messages(ColumnFormat):
    """One conversation per row; `label` says whether its last answer is good."""

    example = (
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": '
        '"Hello!"}]}'
    )
    wants = (
        "messages [{role, content}] or conversations [{from, value}]; optional label (true or "
        "false), system, tools"
    )

    @classmethod
    def matches(cls, row: Any) -> bool:
        if not cls.lacks(row, "completion", *COMPARED):
            return False
        return cls.has(row, "messages") or cls.has(row, "conversations")

    def read(self, row: Any) -> Group:
        name = "messages" if self.has(row, "messages") else "conversations"
        if not isinstance(row, Mapping) or row.get(name) is None:
            raise BadRow("column 'messages' or 'conversations' is missing")
        if isinstance(row[name], str) and not row[name].lstrip().startswith("["):
            raise BadRow(f"column '{name}' must be a list of messages, not text")
        turns = self.opened(self.conversation(row[name], name), row)
        label, tools = self.label(row), self.tools(row)
        meta = self.rest(row, name, "tools", *SYSTEM_COLUMNS, *LABEL_COLUMNS)
        if label is None and turns and turns[-1]["role"] == "user":
            return Group(turns, meta=meta, tools=tools)
        prompt, response = self.demonstration(turns, label=label)
        return Group(prompt, (response,), meta=meta, tools=tools)

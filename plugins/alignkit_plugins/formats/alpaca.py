"""Instruction demonstrations with the columns of Alpaca, Dolly or Self-Instruct."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from alignkit import BadRow, Group, Message
from alignkit_plugins.formats.columns import LABEL_COLUMNS, SYSTEM_COLUMNS, ColumnFormat

QUESTION = ("instruction", "input", "context")
# What Alpaca's generator wrote for none
NO_INPUT = ("<noinput>", "<no input>", "noinput", "no input", "n/a")


class Alpaca(ColumnFormat):
    """An instruction, what it is about (`input` or `context`), and the answer.

    `system` is an optional system message. `history` holds earlier turns as pairs [instruction,
    answer]. `label` or `kto_tag` says whether the answer is good.
    """

    wants = "instruction and output; optional input or context, system, history, label"
    example = '{"instruction": "Translate", "input": "Hallo", "output": "Hello"}'
    answer_column: ClassVar[str] = "output"

    @classmethod
    def matches(cls, row: Any) -> bool:
        return cls.has(row, "instruction", cls.answer_column) and cls.lacks(
            row, "chosen", "rejected", "messages"
        )

    def read(self, row: Any) -> Group:
        parts = [
            self.text(row, name, None if name == "instruction" else "").strip() for name in QUESTION
        ]
        parts[1:] = ["" if part.lower().rstrip(".") in NO_INPUT else part for part in parts[1:]]
        if all(parts[1:]):
            raise BadRow(
                "columns 'input' and 'context' both hold text; rename one: `columns: "
                "{other_context: context}`"
            )
        question = Message(role="user", content="\n\n".join(part for part in parts if part))
        answer = Message(role="assistant", content=self.text(row, self.answer_column))
        turns = self.opened((*_history(row.get("history")), question, answer), row)
        prompt, response = self.demonstration(turns, label=self.label(row))
        used = (*QUESTION, self.answer_column, "history", "tools", *LABEL_COLUMNS, *SYSTEM_COLUMNS)
        return Group(prompt, (response,), meta=self.rest(row, *used), tools=self.tools(row))


def _history(value: Any) -> Iterable[Message]:
    """Earlier turns from [[instruction, answer], ...]."""
    if not isinstance(value, list | None):
        raise BadRow("column 'history' must be a list of pairs [instruction, answer]")
    for pair in value or []:
        if (
            not isinstance(pair, list | tuple)
            or len(pair) != 2
            or not all(isinstance(text, str) for text in pair)
        ):
            raise BadRow(
                "column 'history' must be a list of pairs [instruction, answer], both texts"
            )
        yield Message(role="user", content=pair[0])
        yield Message(role="assistant", content=pair[1])


class Dolly(Alpaca):
    """The same with Databricks' column names."""

    wants = "instruction and response; optional context or input, system, label"
    example = '{"instruction": "Translate", "context": "Hallo", "response": "Hello"}'
    answer_column = "response"


class SelfInstruct(ColumnFormat):
    """An instruction with instances (Wang et al. 2023, arXiv:2212.10560): every instance is a
    demonstration.
    """

    wants = "instruction and instances [{input, output}]"
    example = '{"instruction": "Translate", "instances": [{"input": "Hallo", "output": "Hello"}]}'

    @classmethod
    def matches(cls, row: Any) -> bool:
        return cls.has(row, "instruction", "instances") and isinstance(row["instances"], list)

    def read(self, row: Any) -> Group:
        """The first instance of a row."""
        return self.groups(row)[0]

    def groups(self, row: Any) -> list[Group]:
        instances = row.get("instances") if isinstance(row, Mapping) else None
        if not isinstance(instances, list) or not instances:
            raise BadRow("column 'instances' must be a list of {input, output} that is not empty")
        if not all(isinstance(instance, Mapping) for instance in instances):
            raise BadRow("column 'instances' must be a list of {input, output}")
        shared = self.rest(row, "instances")
        return [Alpaca().read({**shared, **instance}) for instance in instances]

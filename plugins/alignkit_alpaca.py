"""Instruction demonstrations with the columns of Alpaca or Dolly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from alignkit import BadRow, Format, Group, Message, Register, Response, hookimpl


class Alpaca(Format):
    """An instruction, optional input and the answer; `system` is an optional system prompt."""

    summary = "Alpaca: instruction, input, output"
    wants = "instruction and output; optional input, system"
    about: ClassVar[str] = "input"
    answer_column: ClassVar[str] = "output"

    @classmethod
    def matches(cls, row: Any) -> bool:
        return cls.has(row, "instruction", cls.answer_column) and cls.lacks(row, "chosen", "rejected", "messages")

    def read(self, row: Any) -> Group:
        if not isinstance(row, Mapping):
            raise BadRow("a row must be an object")
        parts = [self.text(row, "instruction").strip(), self.text(row, self.about, "").strip()]
        prompt = [Message(role="user", content="\n\n".join(part for part in parts if part))]
        if system := self.text(row, "system", "").strip():
            prompt.insert(0, Message(role="system", content=system))
        response = Response(text=self.text(row, self.answer_column))
        meta = self.rest(row, "instruction", self.about, self.answer_column, "system")
        return Group(tuple(prompt), (response,), meta=meta)


class Dolly(Alpaca):
    """The same with Databricks' column names."""

    summary = "Dolly: instruction, context, response"
    wants = "instruction and response; optional context, system"
    about = "context"
    answer_column = "response"


@hookimpl
def register_formats(register: Register) -> None:
    register("alpaca", Alpaca, summary=Alpaca.summary)
    register("dolly", Dolly, summary=Dolly.summary)

"""A data format: tickets, with what a customer asked and an agent answered."""

from __future__ import annotations

from typing import Any

from alignkit import Add, Format, Group, Message, Response, hookimpl


class Ticket(Format):
    """One demonstration per row. Other columns are kept for rewards and filters."""

    wants = "customer and agent (texts)"
    example = '{"customer": "Hi", "agent": "Hello!"}'

    @classmethod
    def matches(cls, row: Any) -> bool:
        return cls.has(row, "customer", "agent")

    def read(self, row: Any) -> Group:
        prompt = (Message(role="user", content=self.text(row, "customer")),)
        return Group(
            prompt,
            (Response(text=self.text(row, "agent")),),
            meta=self.rest(row, "customer", "agent"),
        )


@hookimpl
def register(add: Add) -> None:
    add("format", "ticket", Ticket, "questions and their answers")

"""A model behind an OpenAI-compatible server: its options, what it costs, and what its completions
have in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import field_validator

from alignkit import Field
from alignkit_plugins.ai_feedback.server_options import RemoteOptions


class Server(RemoteOptions):
    """A model behind an OpenAI-compatible server."""

    model: str = Field(min_length=1, description="model name on the server")
    price: tuple[float, float] | None = Field(
        None,
        description=(
            "price of 1,000 tokens that the model reads, and of 1,000 that it writes, for the "
            "report"
        ),
    )

    @field_validator("price")
    @classmethod
    def _none_below_0(cls, price: tuple[float, float] | None) -> tuple[float, float] | None:
        if price is not None and min(price) < 0:
            raise ValueError("price must be two numbers of at least 0")
        return price

    def cost(self, tokens: int | None, written: int | None) -> float | None:
        """What tokens cost, by the price; None if that is unknown. tokens: all. written: those that
        the model wrote.
        """
        if self.price is None or tokens is None or written is None:
            return None
        reading, writing = self.price
        return ((tokens - written) * reading + written * writing) / 1000

    def body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return super().body({"model": self.model, **body})


def is_refusal(choice: Mapping[str, Any]) -> bool:
    """Whether the model or its server refused. choice: of a chat completion."""
    return (
        bool((choice.get("message") or {}).get("refusal"))
        or choice.get("finish_reason") == "content_filter"
    )


def used_tokens(reply: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The tokens that a model read and wrote, thoughts included, and those that it wrote; None if
    nobody says.
    """
    usage = reply.get("usage")
    if not isinstance(usage, Mapping):
        return None, None
    total, written = (_count(usage.get(name)) for name in ("total_tokens", "completion_tokens"))
    return total, written


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

"""A constitution: principles by which a model criticizes, revises and compares answers (Bai et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import field_validator, model_validator

from alignkit.options import Field, Options
from alignkit.seeds import stream


class Principle(Options):
    """One principle. `critique` and `revise` ask for a critique and a revision, `compare` says which answer is better.

    A principle without `compare` judges no pairs, and one without `critique` and `revise` revises nothing.
    """

    name: str = Field(min_length=1, max_length=60, description="its name in reports")
    critique: str | None = Field(None, description="what a critic is asked about an answer")
    revise: str | None = Field(None, description="how the answer is to be rewritten")
    compare: str | None = Field(None, description="which of two answers is better, in a sentence that a judge reads")

    @field_validator("name", "critique", "revise", "compare")
    @classmethod
    def _says_something(cls, text: str | None) -> str | None:
        if text is not None and not text.strip():
            raise ValueError("is empty")
        return None if text is None else " ".join(text.split())

    @model_validator(mode="after")
    def _of_use(self) -> Principle:
        if (self.critique is None) != (self.revise is None):
            lacking = "critique" if self.critique is None else "revise"
            raise ValueError(f"'{lacking}' is missing: a critique and a revision need each other")
        if self.critique is None and self.compare is None:
            raise ValueError("a principle needs 'critique' and 'revise', or 'compare', or all of them")
        return self


def drawn(principles: Sequence[Principle], count: int, seed: int, *name: str | int) -> list[Principle]:
    """The first `count` of the principles in an order that depends on the seed and the name, such as a prompt's id.

    None comes twice before each has come once, and a larger count begins with the same ones.
    """
    order = stream(seed, "principles", *name).permutation(len(principles))
    return [principles[order[place % len(order)]] for place in range(count)]

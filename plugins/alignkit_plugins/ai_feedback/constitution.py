"""A constitution: principles by which a model criticizes, revises and compares answers (Bai et al.
2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ValidationInfo,
    field_validator,
)

from alignkit.contract.options import Field, Options
from alignkit.errors import RecipeError, did_you_mean
from alignkit.io.text import exists
from alignkit.recipe.mistakes import Mistakes, problems_of, validated, wrong
from alignkit.recipe.yaml import load_document, shipped_folder
from alignkit.seeds import stream


class Principle(Options):
    """One principle. `critique` and `revise` ask for a critique and a revision, `compare` says
    which answer is better.

    A principle without `compare` judges no pairs, and one without `critique` and `revise` revises
    nothing.
    """

    name: str = Field(min_length=1, max_length=60, description="name in reports")
    critique: str | None = Field(None, "what a critic is asked about an answer")
    revise: str | None = Field(None, "how the answer is to be rewritten")
    compare: str | None = Field(
        None, "which of two answers is better, in a sentence that a judge reads"
    )

    @field_validator("name", "critique", "revise", "compare")
    @classmethod
    def _not_blank(cls, text: str | None) -> str | None:
        if text is not None and not text.strip():
            raise ValueError("is empty")
        return None if text is None else " ".join(text.split())

    def check_values(self) -> None:
        if (self.critique is None) != (self.revise is None):
            lacking = "critique" if self.critique is None else "revise"
            raise ValueError(f"'{lacking}' is missing: a critique and a revision need each other")
        if self.critique is None and self.compare is None:
            raise ValueError(
                "a principle needs 'critique' and 'revise', or 'compare', or all of them"
            )


def drawn(
    principles: Sequence[Principle], count: int, seed: int, *name: str | int
) -> list[Principle]:
    """The first `count` of the principles in an order that depends on the seed and the name, such
    as a prompt's id.

    None comes twice before each has come once, and a larger count begins with the same ones.
    """
    order = stream(seed, "principles", *name).permutation(len(principles))
    return [principles[order[place % len(order)]] for place in range(count)]


def shipped_constitutions() -> dict[str, Path]:
    """The constitutions that come with alignkit, by name."""
    return {file.stem: file for file in sorted((shipped_folder() / "constitutions").glob("*.yaml"))}


def _read(value: Any, info: ValidationInfo) -> Any:
    """The principles of a file, or of a shipped constitution. A list is one of principles."""
    if not isinstance(value, str) or info.context is None:
        return tuple(value) if isinstance(value, list) else value
    path, shipped = info.context.locate(value), shipped_constitutions()
    if not exists(path):
        if value not in shipped:
            help = f"looked for {path}; shipped constitutions: {', '.join(shipped)}"
            raise wrong(f"no such constitution: {value}", did_you_mean(value, shipped) or help)
        path = shipped[value]
    try:
        document = load_document(path)
    except RecipeError as error:
        problems = error.problems
    else:
        read, mistakes = validated(_File, {"principles": document.data})
        if read is not None:
            return read.principles
        problems = problems_of(
            document, [replace(mistake, keys=mistake.keys[1:]) for mistake in mistakes]
        )
    info.context.problems += [
        problem for problem in problems if problem not in info.context.problems
    ]
    raise Mistakes()


def _of_different_names(principles: tuple[Principle, ...]) -> tuple[Principle, ...]:
    names = [principle.name for principle in principles]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise wrong(f"the name '{name}' is used twice", keys=(index, "name"))
    return principles


ConstitutionRef = Annotated[
    tuple[Principle, ...],
    Field(min_length=1),
    AfterValidator(_of_different_names),
    BeforeValidator(_read, json_schema_input_type=str | list[Principle]),
]
"""An option that names a constitution: a file, a shipped one, or a list of principles."""


class _File(Options):
    """A file with a constitution."""

    principles: ConstitutionRef

"""What a command names, read as a recipe reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from alignkit.contract.options import DataRef, Options
from alignkit.contract.settings import ModelSpec
from alignkit.errors import RecipeError
from alignkit.host.plugins import plugins
from alignkit.recipe.mistakes import problems_of, validated
from alignkit.recipe.references import Resolver
from alignkit.recipe.rules import MODEL, broken
from alignkit.recipe.schema import Stage
from alignkit.recipe.sources import DataSpec
from alignkit.recipe.yaml import Document, dump, parse_document

Read = TypeVar("Read", bound=Options)


class _Data(Options):
    data: DataRef


def read_as(
    kind: type[Read], keys: Mapping[str, Any], command: str, overrides: Sequence[str] = ()
) -> tuple[Read, Stage, Document]:
    """Keys as these options, the stage whose they would be, and the document that they are in.

    command: who asks, for errors. overrides: KEY=VALUE. Relative paths start at the current folder.
    Raises RecipeError with every problem found.
    """
    document = parse_document(dump(keys), Path(command), overrides)
    resolver = Resolver(plugins(), document.path.parent)
    options, mistakes = validated(kind, document.data, resolver)
    if isinstance(model := getattr(options, "model", None), ModelSpec):
        mistakes += [mistake.below("model") for mistake in broken(MODEL, model)]
    problems = [*document.problems, *problems_of(document, mistakes)]
    if problems or options is None:
        raise RecipeError(problems)
    return options, resolver.stage, document


def data_of(value: Any, command: str) -> DataSpec:
    """A data entry, as in a recipe. command: who asks, for errors."""
    spec: DataSpec = read_as(_Data, {"data": value}, command)[0].data
    return spec

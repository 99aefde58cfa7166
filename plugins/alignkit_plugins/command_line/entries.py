"""Data that a command names, read as a recipe reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignkit.recipe.load import made_recipe
from alignkit.recipe.schema import Recipe
from alignkit.recipe.sources import DataSpec


def recipe_of(value: Any, command: str, rules: Sequence[str] = (), base: str = "tiny") -> Recipe:
    """A recipe whose only stage, `data`, cleans a data entry. command: who asks, for errors. base:
    its model.

    rules: other options of the step `clean`, as KEY=VALUE.
    """
    data = {"model": {"base": base}, "stages": {"data": {"step": "clean", "data": value}}}
    return made_recipe(data, command, [f"stages.data.{rule}" for rule in rules])


def data_of(value: Any, command: str) -> DataSpec:
    """A data entry, as in a recipe. command: who asks, for errors."""
    options: Any = recipe_of(value, command).stages["data"].component.options
    spec: DataSpec = options.data
    return spec

"""YAML -> Recipe: the types that a recipe consists of, and how one is found and loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field

from alignkit.data.sources import DataSpec
from alignkit.options import Options
from alignkit.registry import Component
from alignkit.settings import ModelSpec, Settings


@dataclass(frozen=True)
class RewardSpec:
    """A reward: a stage's model, a model in a folder (`name` is its path), a plugin, or a combination of these."""

    kind: Literal["stage", "folder", "reward", "combine"]
    name: str
    component: Component | None = None
    children: dict[str, RewardSpec] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One named entry of a recipe. `settings`: None for a step. `upstream`: stages that it needs, by name."""

    name: str
    kind: Literal["algorithm", "step"]
    component: Component
    settings: Settings | None
    upstream: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """A valid recipe. `stages` are in an order in which they can run; `resolved` is its plain data."""

    name: str
    path: Path
    folder: Path
    seed: int
    description: str
    model: ModelSpec
    stages: dict[str, Stage]
    resolved: dict[str, Any]


class TopKeys(Options):
    """The keys of a recipe."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    seed: int = Field(default=0, ge=0)
    requires: list[str] = Field(default_factory=list)
    model: Any
    stages: dict[str, Any] = Field(min_length=1)


class DataKeys(Options):
    """The keys every data source understands, whatever its format."""

    path: str | None = None
    hub: str | None = None
    stage: str | None = None
    limit: int | None = Field(default=None, ge=1)
    split: str | None = None
    validation: float = Field(default=0.0, ge=0, lt=1)
    weight: float = Field(default=1.0, gt=0)
    on_bad_row: Literal["error", "skip"] = "error"
    columns: dict[str, str] = Field(default_factory=dict)
    meta: dict[str, Any] = Field(default_factory=dict)


def fields_of(model: BaseModel) -> dict[str, Any]:
    """What stands in its fields, those included that its class allows without naming them."""
    return {**{name: getattr(model, name) for name in type(model).model_fields}, **(model.model_extra or {})}


# --- what a recipe's parts refer to

Spec = TypeVar("Spec", DataSpec, RewardSpec)


def specs(value: Any, kind: type[Spec]) -> list[Spec]:
    """Every data entry or reward in settings and options, wherever it stands, each once."""
    found: dict[int, Spec] = {}

    def walk(item: Any) -> None:
        if isinstance(item, kind):
            found[id(item)] = item
        if isinstance(item, BaseModel):
            below: Iterable[Any] = fields_of(item).values()
        elif isinstance(item, Component):
            below = [item.options]
        elif isinstance(item, RewardSpec):
            below = [item.component, *item.children.values()]
        elif isinstance(item, Mapping):
            below = item.values()
        else:
            below = item if isinstance(item, list | tuple) else ()
        for part in below:
            walk(part)

    walk(value)
    return list(found.values())


# --- a recipe from the disk

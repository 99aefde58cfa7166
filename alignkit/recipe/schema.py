"""The types of a validated recipe, and the keys of its top level and its data sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel

from alignkit.contract.algorithm import Needs, Source, Trains
from alignkit.contract.options import Field, Options, in_recipe
from alignkit.contract.settings import EngineRef, ModelSpec, Rollout, Settings, TrackerRef
from alignkit.errors import Problem
from alignkit.host.registry import Component
from alignkit.io.text import is_file
from alignkit.recipe.sources import DataSpec
from alignkit.recipe.yaml import Document, Keys, children

BASE = "base"  # a reserved name: the recipe's `model`, and its unmodified weights
ADAPTER = "adapter_config.json"  # only in a folder that holds no whole model
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


@dataclass(frozen=True)
class RewardSpec:
    """A reward: a stage's model, a model in a folder (`name` is its path), a plugin, or a
    combination of rewards.
    """

    kind: Literal["stage", "folder", "reward", "combine"]
    name: str
    component: Component | None = None
    children: dict[str, RewardSpec] = field(default_factory=dict)


UNREAD: Any = None  # the value of a key that is not read yet


@dataclass
class Stage:
    """One named entry of a recipe.

    written: its keys as plain data. kind: `algorithm` or `step`. registration: its plugin.
    settings, needs: None for a step. upstream: names of the stages that must run before it.
    folders: those whose weights it starts from or compares, made by other runs; absolute paths.
    roles: all models that it names: `base`, stages, and folders. engine: what samples; None:
    alignkit itself. log_odds: as the algorithm says. model: the base model.
    """

    name: str
    written: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "step"
    registration: Any = None  # a Registration, if there is such a plugin
    component: Component = UNREAD
    settings: Settings | None = None
    needs: Needs | None = None
    engine: Any = None  # a Component, once the recipe is complete
    log_odds: bool = False
    upstream: dict[str, None] = field(default_factory=dict)
    folders: dict[str, None] = field(default_factory=dict)
    roles: dict[str, None] = field(default_factory=dict)
    model: ModelSpec = UNREAD

    @property
    def whole_models(self) -> tuple[str, ...]:
        """The folders of whole models that it uses as they are."""
        start = self.settings.from_ if self.settings is not None else None
        return tuple(
            each for each in self.folders if each != start and not is_file(Path(each) / ADAPTER)
        )

    @property
    def plugin(self) -> Any:
        """The class of its algorithm or step; None if it is unknown."""
        return self.registration and self.registration.implementation

    @property
    def online(self) -> bool:
        """Whether its algorithm learns from rollouts."""
        return self.kind == "algorithm" and bool(self.plugin.source is Source.ROLLOUTS)

    @property
    def trains_reward(self) -> bool | None:
        """Whether it trains a reward model; None if its plugin is unknown."""
        if self.registration is None:
            return None
        return self.kind == "algorithm" and bool(self.plugin.trains is Trains.REWARD)

    @property
    def rollout(self) -> Rollout:
        """How a training stage samples."""
        return self.settings.rollout if self.settings is not None else Rollout()


@dataclass(frozen=True)
class Recipe:
    """A validated recipe.

    stages: in the order in which they run. resolved: the recipe as plain data with absolute paths.
    document: its text, for errors that are found after it was read. chosen: names of the stages to
    run; empty: all.
    """

    name: str
    path: Path
    folder: Path
    seed: int
    description: str
    model: ModelSpec
    stages: dict[str, Stage]
    resolved: dict[str, Any]
    trackers: tuple[Component, ...]
    document: Document = field(compare=False, repr=False)
    chosen: tuple[str, ...] = ()

    def problem(self, stage: str, text: str, option: Keys) -> Problem:
        """A problem at a stage, or at one of its options: next to `step: NAME`, or inside `step:
        {NAME: {...}}`.

        text: may end with a line that begins with `help: `.
        """
        message, _, help = text.partition("\nhelp: ")
        component = self.stages[stage].component
        for start in (("stages", stage), ("stages", stage, component.kind, component.name)):
            if (*start, *option[:1]) in self.document.places:
                return self.document.problem(
                    (*start, *option), message, at_key=not option, help=help
                )
        return self.document.problem(("stages", stage), message, at_key=True, help=help)


class TopKeys(Options):
    """The keys of a recipe."""

    name: str | None = Field(
        None,
        "name of the run's folder, runs/NAME; default: the name of the file",
        pattern=NAME_PATTERN,
    )
    description: str = Field("", "what the recipe does, for people who read it")
    extends: str | None = Field(
        None,
        (
            "recipe whose keys this one inherits and overrides: a path, relative to this file, "
            "or the name of a shipped recipe"
        ),
    )
    seed: int = Field(0, "seed of all random draws", ge=0)
    trackers: list[TrackerRef] = Field(
        [],
        (
            "where metrics are shown, in addition to metrics.jsonl: [tensorboard, {wandb: "
            "{project: x}}]"
        ),
    )
    model: ModelSpec = Field(
        description="the base model, such as {base: HuggingFaceTB/SmolLM2-135M-Instruct}"
    )
    engine: EngineRef = Field(
        None,
        (
            "what samples in every stage: local (alignkit itself) or an engine plugin; default: "
            "local"
        ),
    )
    stages: dict[Annotated[str, in_recipe("stage_name")], Any] = Field(
        min_length=1, description="stages by name; each runs after the stages that it refers to"
    )


def allowed_keys(model: type[BaseModel]) -> list[str]:
    """Return the keys that a recipe may use for a model."""
    return [info.alias or name for name, info in model.model_fields.items()]


Spec = TypeVar("Spec", DataSpec, RewardSpec, Component)


def walk(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Yield a value of settings or options and everything inside it, with the keys under which a
    recipe writes it.
    """
    yield keys, value
    if isinstance(value, Component):
        value = {value.name: value.options}
    elif isinstance(value, RewardSpec):
        yield from walk(value.component, keys)
        value = {value.name: value.children}
    elif isinstance(value, BaseModel):
        fields = type(value).model_fields
        value = {
            fields[name].alias or name if name in fields else name: inner for name, inner in value
        }
    for key, inner in children(value).items():
        yield from walk(inner, (*keys, key))


def specs(value: Any, kind: type[Spec]) -> list[Spec]:
    """Return every data entry, reward or component inside settings and options, at any depth, each
    once.
    """
    return list({id(item): item for _, item in walk(value) if isinstance(item, kind)}.values())


def keys_of(options: Any, value: Any) -> Keys | None:
    """Return the keys under which options hold this very value, at any depth; None if they do
    not.
    """
    return next((keys for keys, item in walk(options) if item is value), None)

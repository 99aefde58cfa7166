"""A run whose base models have no weights: contexts, roles and data of its stages are those of a real run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from alignkit.algorithm import REWARD
from alignkit.io.progress import Reporter
from alignkit.models.loading import device_of, has_score, load_text
from alignkit.models.service import ModelService
from alignkit.models.shared_model import HeadKind
from alignkit.recipe.schema import Recipe, Stage
from alignkit.runs.base_model import resolved_spec
from alignkit.runs.bases import LEAST_LENGTH
from alignkit.runs.run import Run
from alignkit_apps.check.cards import Machine, this_machine
from alignkit_apps.check.shape_model import ShapeModel, configuration, depth_of


class Notes(Reporter):
    """Keeps what a run would have said, and shows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.lines = False, list[str]()

    def say(self, text: str) -> None:
        self.lines.append(text)


class ShapeService(ModelService):
    """Models without weights. Stages that have not run yet have no folder: their roles are made from the recipe."""

    def __init__(self, model: ShapeModel, recipe: Recipe, max_length: int, name: str):
        super().__init__(model, lambda reference: recipe.folder / reference, max_length, name=name)
        self._recipe = recipe

    def role(self, reference: str) -> str:
        name = self._role_name(reference)
        if name not in self.model.roles:
            self.model.add_role(name, head=self._head(reference))
        return name

    def _head(self, reference: str) -> HeadKind:
        stage = self._recipe.stages.get(reference.partition("@")[0])
        if stage is not None:
            trains = getattr(stage.component.registration.implementation, "trains", None)
            return "scalar" if trains is REWARD else "language"
        return "scalar" if has_score(self._recipe.folder / reference) else "language"


class PlannedRun(Run):
    """A run that is planned.

    machine: on which it is planned; None: this one, with the devices that the recipe names. layers: of its models;
    None: all of them. folder: of the run, whose data are read if stages have made them; nothing is written to it.
    """

    def __init__(self, recipe: Recipe, folder: Path, machine: Machine | None = None, layers: int | None = None):
        super().__init__(recipe, folder, Notes())
        self.machine, self.layers = machine, layers
        self.configuration: Callable[[str], Any] = cache(self._configuration)
        self._text: Callable[[str], Any] = cache(self._read_text)

    @property
    def said(self) -> list[str]:
        """What the run has said so far."""
        assert isinstance(self.reporter, Notes)
        return self.reporter.lines

    def at_depth(self, layers: int | None) -> PlannedRun:
        """The same run with models of fewer layers."""
        other = PlannedRun(self.recipe, self.folder, self.machine, layers)
        other.configuration, other._text = self.configuration, self._text
        return other

    def machine_of(self, base: str) -> Machine:
        """The machine that a base model is planned for."""
        return self.machine or replace(this_machine(device_of(self.recipe.base(base).device)), count=self.processes)

    @property
    def processes(self) -> int:
        """Processes of the run."""
        return self.machine.count if self.machine is not None else self.recipe.processes

    def working(self, stage: Stage) -> int:
        """Processes that work on a stage: process 0 runs steps alone."""
        return self.processes if stage.kind == "algorithm" else 1

    def parts(self, stage: Stage) -> int:
        """Parts into which base models are cut while a stage runs; 1 if every process holds all of them."""
        return self.working(stage) if self.recipe.shard else 1

    def depth(self, base: str) -> int:
        """Layers of a base model."""
        return depth_of(self.configuration(base))

    def shapes(self, base: str, *, layers: int | None = None, real: bool = False) -> ShapeModel:
        """A base model. real: with random numbers, to measure how long they take."""
        found, spec = self.bases[base], resolved_spec(self.recipe, base, None)
        return ShapeModel(
            spec,
            found.source,
            found.commit or spec.revision,
            self.configuration(base),
            self.machine_of(base),
            layers=layers or self.layers,
            text=self._text(base),
            real=real,
        )

    def service(self, model: ShapeModel, base: str) -> ModelService:
        """What uses a base model in stages."""
        stages = self.recipe.stages.values()
        longest = max([LEAST_LENGTH, *(stage.settings.max_length for stage in stages if stage.settings is not None)])
        return ShapeService(model, self.recipe, longest, base)

    def _open(self, base: str) -> ModelService:
        return self.service(self.shapes(base), base)

    def _configuration(self, base: str) -> Any:
        found = self.bases[base]
        return configuration(found.spec, found.source, found.commit or found.spec.revision)

    def _read_text(self, base: str) -> Any:
        found, spec = self.bases[base], resolved_spec(self.recipe, base, None)
        return load_text(spec, found.source, found.commit or spec.revision, with_weights=False)

    def needs(self, stage: Stage) -> tuple[str, ...]:
        """The base models of a stage, its own first."""
        return self.bases.needed(stage)

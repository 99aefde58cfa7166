"""Reads which engine samples in a stage: its own, or the one of the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from alignkit.algorithm import ROLLOUTS
from alignkit.engine import LOCAL
from alignkit.recipe.components import read_component
from alignkit.recipe.document import Keys
from alignkit.recipe.problems import Problems
from alignkit.recipe.schema import Stage
from alignkit.recipe.scope import Scope
from alignkit.registry import Component
from alignkit.settings import ModelSpec


def read_engine(raw: Any, keys: Keys, scope: Scope) -> Any:
    """Return an engine with its options, or LOCAL; None if it is wrong."""
    return LOCAL if raw == LOCAL else read_component("engine", raw, keys, scope)


def fill_engines(
    stages: dict[str, Stage], engine: Component | str | None, bases: Mapping[str, ModelSpec], problems: Problems
) -> None:
    """Give every stage that may sample its engine: its own, or else the recipe's. None is alignkit itself."""
    for name, stage in stages.items():
        chosen = (stage.engine or engine) if _may_sample(stage) else None
        component = chosen if isinstance(chosen, Component) else None
        if component and bases[stage.base].lora is None and not component.registration.implementation.whole_models:
            keys: Keys = ("stages", name, "engine") if stage.engine else ("engine",)
            message = f"engine '{component.name}' takes adapters, but with 'model.lora: none' there are none"
            problems.error(keys, message, help="leave 'lora' out, or write 'engine: local'")
        if component and stage.settings is not None and stage.settings.environment is not None:
            message = f"stage '{name}': engine '{component.name}' cannot sample with an environment yet"
            problems.error(("stages", name, "environment"), message, help="write 'engine: local' in this stage")
        stages[name] = replace(stage, engine=component)


def _may_sample(stage: Stage) -> bool:
    """Whether a stage may sample: steps and rewards do it with `Models.sample`."""
    return stage.kind == "step" or stage.component.registration.implementation.source is ROLLOUTS

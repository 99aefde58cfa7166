"""The context that a run passes to a training stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from alignkit.data.sources import DataSpec, Loaded
from alignkit.io.console import Metrics, Reporter
from alignkit.models.models import LoadedBase
from alignkit.models.shared_model import SharedModel
from alignkit.recipe.schema import RewardSpec, Stage
from alignkit.reward import Context
from alignkit.settings import Settings
from alignkit.training.collectives import ONE_PROCESS, Collectives
from alignkit.training.rewards import Rewards


@dataclass
class StageContext:
    """The objects and callbacks of one training stage.

    models: those on the stage's base model. folder: the stage's own. metrics: opens its metrics file, given how many
    bytes stay. load: read a data entry. reward_context: returns the context of the stage's rewards.
    folder_of: the folder of an earlier stage. base_of: the base model that a reference is on. models_of: the models on
    that base. bases: all base models that the stage uses, by the recipe's names. notify: call an event hook.
    should_stop: raise if the run must stop. collectives: what the processes of the run exchange.
    """

    stage: Stage
    models: LoadedBase
    folder: Path
    metrics: Callable[[int], Metrics]
    seed: int
    load: Callable[[DataSpec], Loaded]
    reward_context: Callable[[], Context]
    folder_of: Callable[[str], Path]
    base_of: Callable[[str], str | None]
    models_of: Callable[[str], LoadedBase]
    bases: Callable[[], Mapping[str, LoadedBase]]
    reporter: Reporter
    notify: Callable[..., None]
    should_stop: Callable[[], None]
    collectives: Collectives = ONE_PROCESS

    @property
    def settings(self) -> Settings:
        assert self.stage.settings is not None  # always set for training stages
        return self.stage.settings

    @property
    def model(self) -> SharedModel:
        """The base model with its roles."""
        return self.models.model

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def adapter(self) -> Path:
        """Where the stage's result goes."""
        return self.folder / "adapter"

    def scorer(self, spec: RewardSpec | None) -> Rewards:
        """What scores responses in all processes of the run."""
        by_engine = self.stage.engine is not None
        return Rewards(spec, self.reward_context(), collectives=self.collectives, by_engine=by_engine)

    def say(self, text: str) -> None:
        """Print one line about this stage, which the user must know."""
        self.reporter.say(f"{self.name}: {text}")

    def activity(self, text: str) -> None:
        """Say what the stage does now."""
        self.reporter.activity(f"{self.name}: {text}")

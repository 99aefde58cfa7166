"""What a trainer asks of its stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import shapes
from alignkit.algorithm import Algorithm, Phase, SelectContext
from alignkit.calls import call
from alignkit.data.group import Group
from alignkit.data.sources import DataSpec, Loaded
from alignkit.io.console import Metrics, Reporter
from alignkit.recipe.schema import BASE, RewardSpec, Stage
from alignkit.reward import Context
from alignkit.settings import Settings

if TYPE_CHECKING:
    from alignkit.models.models import LoadedBase
    from alignkit.models.shared_model import SharedModel
    from alignkit.training.collectives import Collectives
    from alignkit.training.rewards import Rewards


class StageContext:
    """A training stage as its trainer sees it.

    stage: as the recipe has it. settings: with the learning rate that is used. folder: the stage's own. summary: for
    stage.json. notify: calls an event hook. say: prints one line about this
    stage, which the user must know. metrics: opens the metrics file, of which `size` bytes stay. load: reads a data
    entry. select: returns the groups that the algorithm selects, which may be of rows that are held out. take: returns
    the plugin of a component, made once for each time that the recipe names it. reward_context: returns what the
    stage's rewards can use.
    """

    services: Any  # what the stages of the run share
    name: str
    stage: Stage
    settings: Settings
    folder: Path
    seed: int
    summary: dict[str, Any]
    reporter: Reporter
    notify: Callable[..., Any]
    say: Callable[[str], None]
    metrics: Callable[[int], Metrics]
    load: Callable[[DataSpec], Loaded]
    select: Callable[..., list[Group]]
    take: Callable[[Any], Any]
    reward_context: Callable[[], Context]

    @property
    def models(self) -> LoadedBase:
        """The base model, with the policies and reward models on it."""
        return self.models_of(BASE)

    def models_of(self, reference: str) -> LoadedBase:
        """The opened model whose weights a reference shares."""
        return self.services.models.of(reference)

    def bases(self) -> Mapping[str, LoadedBase]:
        """The base model and the whole models that the stage uses, by `base` or folder."""
        return {base: self.models_of(base) for base in (BASE, *self.stage.whole_models)}

    @property
    def collectives(self) -> Collectives:
        """What the processes of the run exchange."""
        return self.services.collectives

    def should_stop(self) -> None:
        """Raise if the run must stop."""
        self.collectives.should_stop(self.services.should_stop)

    @property
    def model(self) -> SharedModel:
        """The base model with its roles."""
        return self.models.model

    @property
    def adapter(self) -> Path:
        """Where the stage's result goes."""
        return self.folder / "adapter"

    def scorer(self, spec: RewardSpec | None) -> Rewards:
        """What scores responses in all processes of the run."""
        from alignkit.training.rewards import Rewards

        by_engine = self.stage.engine is not None
        return Rewards(spec, self.reward_context(), collectives=self.collectives, by_engine=by_engine, make=self.take)


def select(algorithm: Algorithm, groups: Sequence[Group], context: SelectContext) -> list[Phase]:
    """The phases to learn from; groups that the algorithm puts into none form one."""
    chosen = call(algorithm, "select", groups, context, returns=shapes.selection)
    phases = [item for item in chosen if isinstance(item, Phase)]
    return phases or [Phase(chosen)]

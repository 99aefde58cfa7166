"""What a stage's work asks of its stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import seeds
from alignkit.contract.algorithm import Algorithm, Phase, SelectContext
from alignkit.contract.reward import Context
from alignkit.contract.settings import Settings
from alignkit.data.files import skips
from alignkit.data.group import Group
from alignkit.host import returns
from alignkit.host.calls import call, create
from alignkit.host.plugins import plugins, reader_of
from alignkit.host.registry import Component
from alignkit.io.console import Metrics
from alignkit.recipe.schema import BASE, RewardSpec, Stage
from alignkit.recipe.sources import DataSpec, Loaded

if TYPE_CHECKING:
    from numpy.random import Generator

    from alignkit.models.models import LoadedModel
    from alignkit.models.shared_model import SharedModel
    from alignkit.training.collectives import Collectives
    from alignkit.training.rewards import Rewards


class ActiveStage:
    """A stage as its work sees it.

    services: what the stages of the run share. spec: as the recipe has it. settings: of one that
    trains, with the learning rate that is used. folder: the stage's own. summary: for stage.json.
    facts: how its sources were read.
    """

    settings: Settings

    def __init__(self, services: Any, spec: Stage):
        self.services, self.spec, self.name = services, spec, spec.name
        self.recipe, self.reporter, self.seed = (
            services.recipe,
            services.reporter,
            services.recipe.seed,
        )
        self.folder = services.folder / spec.name
        self.summary: dict[str, Any] = {}
        self.read: list[DataSpec] = []  # entries, by its check
        self._plugins: dict[int, Any] = {}  # by the id of their component
        self._sources: list[dict[str, Any]] = []  # what stage.json says of them
        self._described: list[DataSpec] = []
        self._left_out = Counter[str]()  # rows by reason
        self._bad_rows: dict[str, None] = {}  # an ordered set: entries may share a file

    def notify(self, hook: str, **values: Any) -> None:
        """Call an event hook."""
        self.services.event(hook, stage=self.name, **values)

    def say(self, text: str) -> None:
        """Print one line about this stage, which the user must know."""
        self.services.say(f"{self.name}: {text}")

    def rng(self, *name: str | int) -> Generator:
        """The stage's random generator of a name."""
        return seeds.stream(self.seed, self.name, *name)

    def plugin(self, component: Component) -> Any:
        """The plugin of a component, made once: the checked instance does the work."""
        if id(component) not in self._plugins:
            self._plugins[id(component)] = create(component, self.name)
        return self._plugins[id(component)]

    def load(self, spec: DataSpec) -> Loaded:
        """Read a data entry; report what was understood, and the bad rows that it skips."""
        loaded = self.services.data.read(spec)
        if spec in self._described:
            return loaded
        self._described.append(spec)
        self.notify("data_read", loaded=loaded)
        data_facts = plugins().ask("data_facts", loaded) if self.services.is_main_process else ()
        for source, facts, *more in zip(spec.sources, loaded.sources, *data_facts, strict=True):
            if source.path is not None and (reader := reader_of(source.path)) is not None:
                more.append(reader.facts(source.path))
            record = dict(vars(replace(facts, sample=None)))
            for each in more:
                record |= each
            self._sources.append(record)
        self._left_out.update(row.reason for row in loaded.skipped if row.left_out)
        if bad := [row for row in loaded.skipped if not row.left_out]:
            self._bad_rows |= dict.fromkeys(map(str, bad))
            self.say(skips(bad))
        return loaded

    def metrics(self, size: int = 0) -> Metrics:
        """Open the metrics file, of which `size` bytes stay."""
        path = self.folder / "metrics.jsonl" if self.services.is_main_process else None
        return Metrics(path, size, partial(self.notify, "metrics_logged"), stage=self.name)

    def reward_context(self) -> Context:
        """What rewards and judges can use."""
        return Context(
            self.services.models,
            self.services.folder / "cache",
            self.recipe.folder,
            self.seed,
            lambda spec: self.load(spec).groups,
            stage=self.name,
            progress=self.reporter.progress,
        )

    def select(
        self,
        groups: Sequence[Group],
        validation: bool = False,
        algorithm: Algorithm | None = None,
    ) -> list[Group]:
        """The groups that the algorithm selects. validation: of rows that are held out. algorithm:
        default: the one that learns.
        """
        algorithm = algorithm or self.plugin(self.spec.component)
        if type(algorithm).select is Algorithm.select:
            return list(groups)
        log, rng = self.summary.update, self.rng("select")
        context = SelectContext(0, self.seed, list, log, rng, validation, self.say)
        phases = select(algorithm, list(groups), context)
        return [*chain.from_iterable(phase.groups for phase in phases)]

    @property
    def models(self) -> LoadedModel:
        """The base model, with the policies and reward models on it."""
        return self.models_of(BASE)

    def models_of(self, reference: str) -> LoadedModel:
        """The opened model whose weights a reference shares."""
        return self.services.models.of(reference)

    def loaded_models(self) -> Mapping[str, LoadedModel]:
        """The base model and the whole models that the stage uses, by `base` or folder."""
        return {name: self.models_of(name) for name in (BASE, *self.spec.whole_models)}

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

        by_engine = self.spec.engine is not None
        return Rewards(
            spec,
            self.reward_context(),
            collectives=self.collectives,
            by_engine=by_engine,
            make=self.plugin,
        )


def select(algorithm: Algorithm, groups: Sequence[Group], context: SelectContext) -> list[Phase]:
    """The phases to learn from; groups that the algorithm puts into none form one."""
    chosen = call(algorithm, "select", groups, context, returns=returns.selection)
    phases = [item for item in chosen if isinstance(item, Phase)]
    return phases or [Phase(chosen)]

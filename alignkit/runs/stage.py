"""A stage of a run: what its result depends on, what must be right before its weights, and its work.

A mistake is reported by `alignkit check`, and by a run before its first stage trains: with all others, at its place.
What `prepare` makes is what `run` uses. Nothing imports torch before a stage runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import shapes
from alignkit.algorithm import Algorithm, ExternalTrainer, SelectContext, Source, Trains
from alignkit.calls import blame, call, create
from alignkit.data.files import SkippedRow, bad_rows_error
from alignkit.data.group import Group, prompts_of, resolved_pairs, way_out, write_groups
from alignkit.data.sources import OR_SKIP, DataSpec, Loaded, SourceFacts
from alignkit.engine import Engine
from alignkit.environment import Environment, player
from alignkit.errors import AlignkitError, DataError, PluginError, Problem, RecipeError
from alignkit.io.atomic import write_text
from alignkit.io.console import Metrics
from alignkit.kinds import reader_of
from alignkit.recipe.schema import BASE, Recipe, RewardSpec, Stage, keys_of, specs
from alignkit.recipe.yaml import Keys
from alignkit.registry import Component
from alignkit.reward import Context, Judge, Reward, RewardCombination
from alignkit.runs.fingerprint import result_hashes, stage_parts
from alignkit.runs.services import Services, resumable_map
from alignkit.settings import Settings
from alignkit.step import Artifact, StepContext, StepData, run_step
from alignkit.training.context import StageContext

if TYPE_CHECKING:
    from alignkit.models.models import LoadedBase
    from alignkit.tokens.encoder import Encoder
    from alignkit.training.collectives import Collectives

FIRST_ROWS = 200  # of each source that the chat template renders before a run
MOST_ROWS = 2000  # that are tokenized in search of one that fits
MOST_KEPT = 50_000  # rows of an entry that are kept until its stage runs
SCORED = 64  # groups that a reward of a step scores at once
CHECKED = (Judge, Environment, Engine, Reward, RewardCombination)
NO_LICENSE = "not stated"


class Mistakes:
    """Mistakes in the stages of a recipe, and in their data, each once."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.problems: dict[Problem, None] = {}  # an ordered set: stages share files
        self.only_data = True

    @contextmanager
    def gathering(self, stage: str, option: Keys | None = None) -> Iterator[None]:
        """Keep an error of the block, and continue. A plugin's own error ends the search.

        option: of the stage, at which a mistake points; None: bad rows have a place in their file.
        """
        try:
            yield
        except RecipeError as error:
            self.add(error.problems)
        except PluginError:
            if not self.problems:  # else the plugin may have got what is wrong
                raise
        except DataError as error:
            option = option if error.option is None else error.option
            problem = Problem(str(error)) if option is None else self._at(stage, str(error), option)
            self.add([problem], data=True)
        except AlignkitError as error:
            if option is None:
                raise
            prefix = f"stage '{stage}': "
            self.add([self._at(stage, prefix + str(error).removeprefix(prefix), option)])

    def add(self, problems: Iterable[Problem], *, data: bool = False) -> None:
        """Keep problems. data: they are in files."""
        new = dict.fromkeys(problems)
        self.problems |= new
        self.only_data = self.only_data and (data or not new)

    def _at(self, stage: str, text: str, option: Keys) -> Problem:
        """A problem at a stage, or at one of its options. text: may end with a line that begins with `help: `."""
        keys, (message, _, help) = self.recipe.option(stage, option), text.partition("\nhelp: ")
        return self.recipe.problem(keys, message, at_key=len(keys) == 2, help=help)

    def end(self) -> None:
        """Raise RecipeError with every problem, or DataError if all of them are in files."""
        if self.problems:
            error = RecipeError(self.problems)
            raise DataError("\n\n".join(map(str, self.problems))) if self.only_data else error


@contextmanager
def pointing_at(option: Keys, *, inside: bool = False) -> Iterator[None]:
    """Let a DataError point at an option, unless it names one. inside: what it names is below the option."""
    try:
        yield
    except DataError as error:
        error.option = (*option, *(error.option or ())) if inside else error.option or option
        raise


class RunStage:
    """One stage of a run.

    facts: how its sources were read. looked: whether a chat template has rendered rows of it; None: it has none.
    """

    def __init__(self, services: Services, stage: Stage):
        self.services, self.stage, self.name = services, stage, stage.name
        self.recipe, self.reporter, self.seed = services.recipe, services.reporter, services.recipe.seed
        self.folder = services.store.path(stage.name)
        self.summary: dict[str, Any] = {}  # for stage.json
        self.facts: list[SourceFacts] = []
        self._plugins: dict[int, Any] = {}  # by the id of their component
        self._unusable: set[int] = set()  # components whose own check failed
        self._seen: set[int] = set()  # entries whose data are checked
        self._held: dict[int, Loaded] = {}  # until the stage loads them
        self._sources: list[dict[str, Any]] = []  # what stage.json says of them
        self._described: list[DataSpec] = []
        self._bad_rows: dict[str, None] = {}  # an ordered set: data may be read twice

    @property
    def entries(self) -> list[DataSpec]:
        """The data entries of the stage."""
        return specs([self.stage.settings, self.stage.component.options], DataSpec)

    def notify(self, hook: str, **values: Any) -> Any:
        """Call an event hook."""
        return self.services.notify(self.name)(hook, **values)

    def say(self, text: str) -> None:
        """Print one line about this stage, which the user must know."""
        self.services.say(f"{self.name}: {text}")

    # What the result depends on

    def key(self) -> dict[str, Any]:
        """Everything that the result depends on, as plain data; the keys of earlier stages are known already."""
        services = self.services
        upstream = {name: services.hashes[name] for name in self.stage.upstream}
        upstream |= result_hashes(self.stage, self.recipe, services.folder)
        return stage_parts(self.stage, self.recipe, services.bases[BASE].digest, upstream, services.data)

    def record(
        self, seconds: float, summary: Mapping[str, Any], artifact: Artifact, parts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The contents of stage.json, without the hash. parts: what the hash is made of."""
        return {
            "complete": True,
            "name": self.name,
            "plugin": self.stage.component.name,
            "seconds": round(seconds, 1),
            "summary": {**summary, **({"bad_rows": list(self._bad_rows)} if self._bad_rows else {})},
            "policy": artifact.policy,
            "text": artifact.text,
            "report": artifact.report.plain() if artifact.report is not None else None,
            "data": self._sources,
            "versions": parts["versions"],
            "depends_on": parts,
        }

    # Before the weights

    def prepare(self, mistakes: Mistakes, rows: int | None = FIRST_ROWS) -> None:
        """Make the plugins, and read and check the data that are here.

        rows: of each source that the chat template renders; None: all.
        """
        self._check_plugins(mistakes)
        with mistakes.gathering(self.name):
            self._check_models(mistakes)
        self.prepare_data(mistakes, rows)

    def plugin(self, component: Component) -> Any:
        """The plugin of a component, made once."""
        if id(component) not in self._plugins:
            self._plugins[id(component)] = create(component, self.name)
        return self._plugins[id(component)]

    def take(self, component: Component) -> Any:
        """The plugin of a component for whoever uses it; the next one who asks gets another."""
        plugin = self.plugin(component)
        del self._plugins[id(component)]
        return plugin

    def _check_plugins(self, mistakes: Mistakes) -> None:
        """Let the stage's plugins, rewards, combinations, judges, engines and environments check what they can."""
        stage, folder = self.stage, self.recipe.folder
        self._check(mistakes, stage.component, "check", folder)
        for component in specs([stage.settings, stage.component.options, stage.engine], Component):
            kind = component.registration.implementation
            if not isinstance(kind, type) or not issubclass(kind, CHECKED):
                continue
            self._check(mistakes, component, "check", folder)
            if issubclass(kind, Reward) and self.services.download:
                self._check(mistakes, component, "check_machine")

    def _check(self, mistakes: Mistakes, component: Component, method: str, *arguments: Any) -> None:
        usable = False
        with mistakes.gathering(self.name, ()):
            call(self.plugin(component), method, *arguments)
            usable = True
        if not usable:
            self._unusable.add(id(component))

    def _check_models(self, mistakes: Mistakes) -> None:
        """Look for weights that do not fit their base models."""
        mistakes.add(self.services.bases.misfits(self.stage))

    def prepare_data(self, mistakes: Mistakes, rows: int | None = FIRST_ROWS) -> None:
        """Read and check the data that are here and were not checked before."""
        for spec in self.entries:
            if id(spec) not in self._seen:
                with mistakes.gathering(self.name):
                    loaded = self._available(spec)
                    if loaded is not None:
                        self._seen.add(id(spec))
                        self._check_entry(spec, loaded, rows)

    def _available(self, spec: DataSpec) -> Loaded | None:
        """The rows of an entry, which the stage will not read again; None if they are not all here yet."""
        here = tuple(source for source in spec.sources if self._is_here(source))
        whole = len(here) == len(spec.sources)
        if not here:
            return None
        loaded = self.services.data.read(spec if whole else DataSpec(here))
        self.facts += loaded.sources
        if not whole:
            return None
        if len(loaded.groups) <= MOST_KEPT:
            self._held[id(spec)] = loaded
        return loaded

    def _is_here(self, source: Any) -> bool:
        if source.hub is not None:
            return self.services.download
        return source.stage is None or source.stage in self.services.ready

    def _check_entry(self, spec: DataSpec, loaded: Loaded, rows: int | None) -> None:
        """Say what is wrong with the rows of an entry."""

    def check_scoring(self, rewards: Any, groups: Sequence[Group]) -> None:
        """Let rewards, combinations and environments say what the groups lack."""
        for component in specs(rewards, Component):
            kind = component.registration.implementation
            scores = isinstance(kind, type) and issubclass(kind, Environment | Reward | RewardCombination)
            if scores and id(component) not in self._unusable:
                check_scoring(component, self.plugin(component), groups)

    # Its work

    def run(self, folder: Path) -> tuple[dict[str, Any], Artifact]:
        """Do the work in a folder, from the last checkpoint; returns the summary and what the stage made."""
        self.folder = folder
        mistakes = Mistakes(self.recipe)
        self.prepare_data(mistakes)  # of earlier stages
        mistakes.end()
        return self._work()

    def _work(self) -> tuple[dict[str, Any], Artifact]:
        raise NotImplementedError

    def load(self, spec: DataSpec, seed: int | None = None) -> Loaded:
        """Read a data entry; report what was understood, and the bad rows that it skips.

        seed: of the validation split; None: the recipe's, so that all stages split a file in the same way.
        """
        loaded = self.services.data.read(spec, seed)
        self._held.pop(id(spec), None)  # so that the stage can free the rows
        if spec not in self._described:
            self._described.append(spec)
            told = self.notify("data_read", loaded=loaded)
            self._sources += source_records(spec, loaded, told or ())
        if loaded.skipped:
            self._bad_rows |= dict.fromkeys(map(str, loaded.skipped))
            self.reporter.say(_skipped_rows(loaded, self.services.store.path(self.name) / "stage.json"))
        return loaded

    def metrics(self, size: int = 0) -> Metrics:
        """Open the metrics file, of which `size` bytes stay."""
        return self.services.metrics(self.stage, size)

    def reward_context(self) -> Context:
        """What rewards and judges can use."""
        return Context(
            self.services.models,
            self.services.cache(),
            self.recipe.folder,
            self.seed,
            lambda spec: self.load(spec).groups,
            stage=self.name,
            progress=self.reporter.progress,
        )


class TrainingStage(RunStage, StageContext):
    """A stage that trains. settings: with the learning rate that is used."""

    def __init__(self, services: Services, stage: Stage):
        super().__init__(services, stage)
        assert stage.settings is not None
        self.settings: Settings = stage.settings
        self.folder_of = services.store.path
        self._selected: tuple[Loaded, list[Group]] | None = None  # from which data, and by the algorithm that trains
        self.looked: bool | None = None

    # Before the weights

    def _check_plugins(self, mistakes: Mistakes) -> None:
        stage, settings = self.stage, self.settings
        if issubclass(stage.component.registration.implementation, ExternalTrainer):
            self._check(mistakes, stage.component, "check_model", self.recipe.model)
        super()._check_plugins(mistakes)
        rewards = specs([settings.reward, settings.gold], Component)
        of_episodes = any(getattr(each.registration.implementation, "of_episodes", False) for each in rewards)
        environment = settings.environment
        if environment is not None and of_episodes and id(environment) not in self._unusable:
            self.plugin(environment).folder = self.recipe.folder
            self._check(mistakes, environment, "check_reward")

    def _check_models(self, mistakes: Mistakes) -> None:
        bases, environment = self.services.bases, self.settings.environment
        if self.services.download:
            mistakes.add(bases.missing_device())
        super()._check_models(mistakes)
        mistakes.add(bases.other_tokenizer(self.stage))
        if environment is not None and self.services.download:
            with mistakes.gathering(self.name, ("environment",)):
                self._check_template(environment)

    def _check_template(self, component: Component) -> None:
        """Raise RunFailed if the base model's chat template is unfit for the stage's environment."""
        factory = player().Factory(component, self.name, self.seed, self.recipe.folder)
        encoder = self.services.bases[BASE].encoder
        assert encoder is not None
        player().Episodes(factory, encoder, self.settings.max_length)

    def _check_entry(self, spec: DataSpec, loaded: Loaded, rows: int | None) -> None:
        keys = [name for name in ("data", "prompts", "gold_prompts") if getattr(self.settings, name) is spec]
        encoder = self.services.bases[BASE].encoder
        self.looked = encoder is not None
        with pointing_at(tuple(keys)):
            groups = [*loaded.groups, *loaded.validation]
            if encoder is not None:
                groups = self._rendered(groups, encoder, rows)
            if keys == ["data"]:
                self._check_learning(loaded, encoder)
            elif keys:
                self._check_prompts(groups, encoder, keys[0])

    def _rendered(self, groups: Sequence[Group], encoder: Encoder, rows: int | None) -> list[Group]:
        """The groups without those that the chat template refuses among the first rows of each source.

        Raises DataError with the refused rows of sources without `on_bad_row: skip`.
        """
        from alignkit.tokens.encoder import RowRefused

        seen, refused, bad, kept = Counter[int](), list[SkippedRow](), list[SkippedRow](), list[Group]()
        for group in groups:
            source = group.origin.source if group.origin is not None else -1
            seen[source] += 1
            if rows is None or seen[source] <= rows:
                try:
                    encoder.render(group)
                except RowRefused as error:
                    if group.origin is None:
                        raise
                    row = SkippedRow(group.origin.file, group.origin.row, error.reason)
                    (refused if group.origin.skip else bad).append(row)
                    continue
            kept.append(group)
        if bad:
            raise DataError(f"{bad_rows_error(bad)}\nhelp: correct the rows{OR_SKIP}")
        if refused:
            self.say(f"left out, because the chat template refuses them: {bad_rows_error(refused)}")
        return kept

    def _check_learning(self, loaded: Loaded, encoder: Encoder | None) -> None:
        """Let the algorithm select from the data and check them."""
        component, needs = self.stage.component, self.stage.needs
        if needs is not None and needs.pairs and not any(map(resolved_pairs, loaded.groups)):
            files = ", ".join(source.name for source in loaded.sources)
            raise DataError(
                f"stage '{self.name}': {component.name} learns from pairs of a better and a worse response, but no row "
                f"of {files} has a pair{way_out(loaded.groups)}"
            )
        if id(component) in self._unusable or isinstance(self.plugin(component), ExternalTrainer):
            return
        chosen = self._select_once(loaded)
        algorithm = self.plugin(component)
        call(algorithm, "check_data", chosen)
        if encoder is not None and chosen and all(group.prompt for group in chosen):  # a document is learned in pieces
            scoring = algorithm.trains is Trains.REWARD
            fits = partial(_fits, encoder, self.settings.max_length, algorithm.trained_turns(), scoring)
            self._check_room(encoder, chosen, map(fits, chosen), 1)
        if id(self.settings.data) not in self._held:  # too many rows to keep until the stage runs
            self._selected = None
            self.take(component)

    def _check_prompts(self, groups: Sequence[Group], encoder: Encoder | None, key: str) -> None:
        """Check that a prompt leaves room for a response, and that prompts have what the stage's rewards need."""
        prompts, settings, component = prompts_of(groups), self.settings, self.stage.component
        if groups and not prompts:
            raise DataError(f"stage '{self.name}': the rows of '{key}' are raw text, without a prompt to answer")
        used = ["reward"]
        if key == "prompts":
            used.append("environment")
            if id(component) not in self._unusable:
                call(self.plugin(component), "check_prompts", prompts)
        if key == "gold_prompts" or settings.gold_prompts is None:
            used.append("gold")
        for name in used:
            with pointing_at((name,), inside=True):
                self.check_scoring(getattr(settings, name), prompts)
        if encoder is not None and prompts:
            room = settings.rollout.max_new_tokens
            lengths = (len(encoder.prompt(group.prompt, group.tools)) for group in prompts)
            self._check_room(encoder, prompts, (length + room <= settings.max_length for length in lengths), room)

    def _check_room(self, encoder: Encoder, groups: Sequence[Group], fits: Iterable[bool], room: int) -> None:
        """Raise DataError if no group fits. Usually the first one does, so little is tokenized."""
        if any(islice(fits, MOST_ROWS)) or len(groups) > MOST_ROWS:
            return
        lengths = [len(encoder.prompt(group.prompt, group.tools)) for group in groups]
        needed = f"{room} new tokens" if room > 1 else "a response"
        raise DataError(
            f"stage '{self.name}': no prompt leaves room for {needed} in max_length {self.settings.max_length}; the "
            f"shortest prompt has {min(lengths)} tokens, the longest {max(lengths)}"
        )

    # Its data

    def select(self, loaded: Loaded) -> list[Group]:
        chosen = self._select_once(loaded)
        self._selected = None  # so that the stage can free the rows
        return chosen

    def select_held_out(self, groups: Sequence[Group]) -> list[Group]:
        return self._chosen(groups, validation=True)

    def _select_once(self, loaded: Loaded) -> list[Group]:
        """What the algorithm selects of the data. `select` may begin a state, which belongs to its selection."""
        if self._selected is None or self._selected[0] is not loaded:
            if self._selected is not None:
                self.take(self.stage.component)  # which has seen other data
            self._selected = loaded, self._chosen(loaded.groups)
        return self._selected[1]

    def _chosen(self, groups: Sequence[Group], validation: bool = False) -> list[Group]:
        algorithm = self.plugin(self.stage.component)
        if type(algorithm).select is Algorithm.select:
            return list(groups)
        from alignkit import seeds  # imports numpy

        random = seeds.stream(self.seed, self.name, "select")
        context = SelectContext(0, self.seed, list, self.summary.update, random, validation, self.say)
        # A copy, because other stages may hold the same rows.
        chosen = call(algorithm, "select", list(groups), context, returns=shapes.selection)
        return [group for item in chosen for group in ([item] if isinstance(item, Group) else item.groups)]

    # Its work

    def _work(self) -> tuple[dict[str, Any], Artifact]:
        from alignkit.training.learner import learning_rate
        from alignkit.training.offline import DatasetTrainer
        from alignkit.training.online import RolloutTrainer

        data = self.settings.data
        algorithm: Algorithm = self.plugin(self.stage.component)
        rate = learning_rate(self, algorithm.defaults)
        self.settings = self.settings.model_copy(update={"learning_rate": rate})
        trainer: RolloutTrainer | DatasetTrainer
        if isinstance(algorithm, ExternalTrainer):
            return {**call(algorithm, "train", self), "learning_rate": rate}, Artifact()
        if algorithm.source is Source.ROLLOUTS:
            trainer = RolloutTrainer(self, algorithm)
        else:
            assert data is not None
            self._select_once(self.services.data.read(data))
            trainer = DatasetTrainer(self, self.plugin(self.stage.component))
        try:
            return {**trainer.run(), "learning_rate": rate}, Artifact()
        finally:
            trainer.close()

    def record(self, *arguments: Any) -> dict[str, Any]:
        scores = {} if self.trains_policy else {"log_odds": self.stage.log_odds}
        return {**scores, **super().record(*arguments)}

    @property
    def trains_policy(self) -> bool:
        """Whether it trains a policy, and no reward model."""
        return self.stage.component.registration.implementation.trains is not Trains.REWARD

    @property
    def models(self) -> LoadedBase:
        """The models on the stage's base model."""
        return self.services.models.of(BASE)

    def models_of(self, reference: str) -> LoadedBase:
        return self.services.models.of(reference)

    def bases(self) -> Mapping[str, LoadedBase]:
        return {base: self.models_of(base) for base in (BASE, *self.stage.whole_models)}

    def should_stop(self) -> None:
        self.collectives.should_stop(self.services.should_stop)

    @property
    def collectives(self) -> Collectives:
        return self.services.collectives


class StepStage(RunStage):
    """A stage that makes data or files, and trains nothing."""

    def prepare(self, mistakes: Mistakes, rows: int | None = FIRST_ROWS) -> None:
        super().prepare(mistakes, rows)
        if id(self.stage.component) not in self._unusable:
            with mistakes.gathering(self.name, ()):
                call(self.plugin(self.stage.component), "check_data", self._step_data())

    def _step_data(self) -> StepData:
        options = self.stage.component.options

        def load(spec: Any) -> list[Group] | None:
            if id(spec) in self._seen:
                return list(self.services.data.read(spec).groups)
            return None

        def check_prompts(reward: Any, groups: Sequence[Group]) -> None:
            with pointing_at(keys_of(options, reward) or (), inside=True):
                self.check_scoring(reward, groups)

        return StepData(load, check_prompts, self.recipe, self.say)

    def _work(self) -> tuple[dict[str, Any], Artifact]:
        artifact = run_step(self.take(self.stage.component), self.context(self.metrics()))
        if artifact.groups is not None:
            write_groups(self.services.store.data(self.name), artifact.groups)
        if artifact.report is not None:
            write_text(self.folder / "report.txt", artifact.report.text() + "\n")
            write_text(self.folder / "report.md", artifact.report.markdown())
        return dict(artifact.summary or {}), artifact

    def context(self, metrics: Metrics) -> StepContext:
        """What the step can use."""
        services = self.services

        def map_rows(name: str, rows: Sequence[Any], function: Callable[..., Any]) -> list[Any]:
            with self.reporter.progress(name, len(rows)) as done:
                elsewhere = self.notify("map_elsewhere", folder=self.folder, name=name)
                file = self.folder / "map" / f"{name}.sqlite"
                return resumable_map(file, rows, function, services.should_stop, done, next(iter(elsewhere), None))

        return StepContext(
            **vars(self.reward_context()),
            out=self.folder,
            scorer=self._scorer,
            map=map_rows,
            log=lambda **values: metrics.write(stage=self.name, **values),
            say=self.reporter.activity,
            base_of=services.models.base_of,
            recipe=self.recipe,
            read=services.read,
        )

    def _scorer(self, spec: RewardSpec) -> Any:
        from alignkit.training.rewards import Rewards

        return Rewards(spec, self.reward_context(), in_parts=self._in_parts, make=self.take)

    def _in_parts(self, name: str, groups: Sequence[Group], score: Callable[..., list[Any]]) -> list[Any]:
        """The scores of a single reward, one per response.

        A reward model's bits depend on the groups that it sees at once, and on nothing that was scored before.
        """
        column: list[Any] = []
        with self.reporter.progress(f"scoring with {name}", len(groups)) as done:
            for start in range(0, len(groups), SCORED):
                self.services.should_stop()
                column += score(groups[start : start + SCORED])
                done(min(start + SCORED, len(groups)))
        return column


def run_stage(services: Services, stage: Stage) -> RunStage:
    """The stage of a run that a recipe names."""
    return TrainingStage(services, stage) if stage.kind == "algorithm" else StepStage(services, stage)


def check_scoring(component: Component, plugin: Any, groups: Sequence[Group]) -> None:
    """Let a reward, a combination or an environment say what the groups lack."""
    with blame(plugin, "check_prompts"):
        try:
            plugin.check_prompts(groups)
        except DataError as error:
            if error.option is None:
                raise
            text = f"{component.kind} '{component.name}': {error}"
            raise DataError(text, option=(component.name, *error.option)) from error


def _fits(encoder: Encoder, limit: int, turns: str, scoring: bool, group: Group) -> bool:
    from alignkit.tokens.encoder import RowRefused

    try:
        return encoder.encode(group, limit, turns=turns, scoring=scoring) is not None
    except RowRefused:  # behind the first rows; the stage says so
        return False


def _skipped_rows(loaded: Loaded, record: Path) -> str:
    """That a source has bad rows, in words. record: the file that will list them."""
    rows = f"{len(loaded.skipped)} bad row{'s' if len(loaded.skipped) > 1 else ''}"
    return f"skipped {rows}, the first: {loaded.skipped[0]} ({record} lists all of them once the stage is done)"


def source_records(
    spec: DataSpec, loaded: Loaded, told: Sequence[Sequence[Mapping[str, Any]]] = ()
) -> list[dict[str, Any]]:
    """For each source of a data entry, how it was read, and what its file's reader and observers say of it.

    told: what each observer says, by source.
    """
    records = []
    for place, (source, facts) in enumerate(zip(spec.sources, loaded.sources, strict=True)):
        names = ("name", "format", "rows", "held_out", "skipped")
        record: dict[str, Any] = {name: getattr(facts, name) for name in names}
        if facts.notes:
            record["notes"] = list(facts.notes)
        own = (group for group in loaded.groups if group.origin is not None and group.origin.source == place)
        licenses = Counter(str(group.meta.get("license") or NO_LICENSE) for group in own)
        if licenses.keys() - {NO_LICENSE}:
            record["licenses"] = dict(licenses)
        if source.path is not None and (reader := reader_of(source.path)) is not None:
            record |= reader.facts(source.path)
        for each in told:
            record |= each[place]
        records.append(record)
    return records

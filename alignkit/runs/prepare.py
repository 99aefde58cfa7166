"""What stages need before their weights: plugins, models' files, data, and rows as the chat template writes them.

All mistakes of all stages are reported at once: by `alignkit check`, and by a run before its first stage trains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.algorithm import Algorithm, SelectContext, Trains
from alignkit.calls import blame, call, create
from alignkit.data.describe import way_out
from alignkit.data.files import SkippedRow, bad_rows_error
from alignkit.data.group import Group, prompts_of, resolved_pairs
from alignkit.data.sources import OR_SKIP, DataSpec, Loaded
from alignkit.engine import Engine
from alignkit.environment import Environment, player
from alignkit.errors import AlignkitError, DataError, PluginError, Problem, RecipeError, RunFailed
from alignkit.external import ExternalTrainer
from alignkit.io.results import read_record
from alignkit.recipe.schema import Recipe, RewardSpec, Stage, keys_of, specs
from alignkit.recipe.yaml import Keys
from alignkit.registry import Component
from alignkit.reward import Judge, Reward, RewardCombination
from alignkit.runs.data import RunData
from alignkit.runs.fits import local_encoder, local_misfits, misfits, other_tokenizers
from alignkit.step import StepData

if TYPE_CHECKING:
    from alignkit.runs.bases import RunBases
    from alignkit.tokens.encoder import Encoder

FIRST_ROWS = 200  # of each source that the chat template renders
MOST_ROWS = 2000  # that are tokenized in search of one that fits
WEAK = 0.6  # accuracy on validation pairs; 0.5 is chance
CHECKED = (Judge, Environment, Engine, Reward, RewardCombination)


class Mistakes:
    """Mistakes in a recipe and its data, each once."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.problems: dict[Problem, None] = {}  # an ordered set: stages share files
        self.only_data = True

    @contextmanager
    def gathering(self, stage: Stage | None = None, option: Keys | None = None) -> Iterator[None]:
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
            place = option if error.option is None else error.option
            if stage is None or place is None:
                self.add([Problem(str(error))], data=True)
            else:
                self.add([self._at(stage, str(error), place)], data=True)
        except AlignkitError as error:
            if stage is None or option is None:
                raise
            prefix = f"stage '{stage.name}': "
            self.add([self._at(stage, prefix + str(error).removeprefix(prefix), option)])

    def add(self, problems: Iterable[Problem], *, data: bool = False) -> None:
        """Keep problems. data: they are in files."""
        new = dict.fromkeys(problems)
        self.problems |= new
        self.only_data = self.only_data and (data or not new)

    def _at(self, stage: Stage, text: str, option: Keys) -> Problem:
        """A problem at a stage, or at one of its options. text: may end with a line that begins with `help: `."""
        keys, (message, _, help) = self.recipe.option(stage.name, option), text.partition("\nhelp: ")
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


@dataclass
class Preparation:
    """Prepares stages of a recipe.

    load: reads a data entry. encoder: tokenizes as a base model of the recipe will; None if that is not here. say:
    prints a line. rows: of each source that the chat template renders; None: all. bases: of the run; None if there is
    no run, so that nothing is downloaded. plugins: what was made, by the id of its component.
    looked: whether the chat template of a base model has rendered rows, by the recipe's name for it.
    """

    recipe: Recipe
    stages: Sequence[Stage]
    bases: RunBases | None  # None: without a run
    load: Callable[[Stage, DataSpec], Loaded]
    encoder: Callable[[str], Encoder | None]
    say: Callable[[str], None]
    rows: int | None = FIRST_ROWS
    plugins: dict[int, Any] = field(default_factory=dict)
    looked: dict[str, bool] = field(default_factory=dict)

    def prepare(self) -> None:
        """Raise RecipeError, or DataError if only files are wrong, with the mistakes of all stages."""
        self.mistakes = Mistakes(self.recipe)
        self.unusable: set[int] = set()  # components whose own check failed
        self._trackers()
        for stage in self.stages:
            self._components(stage)
        with self.mistakes.gathering():
            self._models()
        for stage in self.stages:
            self._data(stage)
        self.mistakes.end()

    def made(self, component: Component, stage: Stage) -> Any:
        """The plugin of a component, made once."""
        if id(component) not in self.plugins:
            self.plugins[id(component)] = create(component, stage.name)
        return self.plugins[id(component)]

    def _call(self, component: Component, stage: Stage, method: str, *arguments: Any) -> None:
        call(self.made(component, stage), method, *arguments)

    # Plugins

    def _trackers(self) -> None:
        for index, component in enumerate(self.recipe.trackers):
            try:
                call(create(component), "check")
            except RunFailed as error:
                self.mistakes.add([self.recipe.problem(("trackers", index), str(error))])

    def _components(self, stage: Stage) -> None:
        """Let algorithms, steps, rewards, combinations, judges, engines and environments check what they can."""
        kind = stage.component.registration.implementation
        if isinstance(kind, type) and issubclass(kind, ExternalTrainer):
            self._check(stage, stage.component, "check_model", self.recipe.base(stage.base))
        self._check(stage, stage.component, "check", self.recipe.folder)
        rewards = specs([stage.settings and stage.settings.reward, stage.settings and stage.settings.gold], Component)
        of_episodes = any(getattr(each.registration.implementation, "of_episodes", False) for each in rewards)
        for component in specs([stage.settings, stage.component.options, stage.engine], Component):
            plugin = component.registration.implementation
            if not isinstance(plugin, type) or not issubclass(plugin, CHECKED):
                continue
            self._check(stage, component, "check", self.recipe.folder)
            if issubclass(plugin, Environment) and of_episodes:
                self.made(component, stage).folder = self.recipe.folder
                self._check(stage, component, "check_reward")
            if issubclass(plugin, Reward) and self.bases is not None:
                self._check(stage, component, "check_machine")

    def _check(self, stage: Stage, component: Component, method: str, *arguments: Any) -> None:
        usable = False
        with self.mistakes.gathering(stage, ()):
            self._call(component, stage, method, *arguments)
            usable = True
        if not usable:
            self.unusable.add(id(component))

    # Models

    def _models(self) -> None:
        """Look for devices that are missing, and for weights and references that do not fit their base models."""
        if self.bases is None:
            self.mistakes.add(local_misfits(self.recipe))
        else:
            self.bases.check_devices(self.stages)
            self.mistakes.add(misfits(self.recipe, self.stages, self.bases))
            if not self.mistakes.problems and self.recipe.bases:
                self.bases.check_memory(self.stages)
        self.mistakes.add(other_tokenizers(self.recipe, self.stages, self.encoder))

    # Data

    def _data(self, stage: Stage) -> None:
        """Read the data of a stage, and find out what its algorithm or step, and its rewards, say of them."""
        read: list[tuple[DataSpec, Loaded]] = []
        for warning in weak_models(stage):
            self.say(f"{stage.name}: {warning}")
        for spec in specs([stage.settings, stage.component.options], DataSpec):
            with self.mistakes.gathering(stage):
                if (loaded := self._loaded(stage, spec)) is not None:
                    read.append((spec, loaded))
                    self._entry(stage, spec, [*loaded.groups, *loaded.validation])
        usable = id(stage.component) not in self.unusable
        if stage.kind == "step" and usable:
            with self.mistakes.gathering(stage, ()):
                self._call(stage.component, stage, "check_data", self._step_data(stage, read))
        if stage.settings is not None and stage.settings.environment is not None and self.bases is not None:
            with self.mistakes.gathering(stage, ("environment",)):
                self._template(stage, stage.settings.environment, stage.settings.max_length)

    def _loaded(self, stage: Stage, spec: DataSpec) -> Loaded | None:
        """Read the files of an entry, and a row of each source on the hub; None if a stage or the hub has the rest."""
        files = tuple(source for source in spec.sources if source.path is not None)
        whole = len(files) == len(spec.sources)
        loaded = self.load(stage, spec if whole else DataSpec(files)) if files else None
        for source in spec.sources if self.bases is not None else ():
            if source.hub is not None:
                undivided: dict[str, Any] = {"validation": 0.0, "part": None, "group": None, "weight": None}
                self.load(stage, DataSpec((source.model_copy(update={"limit": 1, **undivided}),)))
        return loaded if whole else None

    def _entry(self, stage: Stage, spec: DataSpec, groups: list[Group]) -> None:
        """Let a training stage say what is wrong with its data, or its prompts."""
        settings = stage.settings
        if settings is None:
            return
        names = [name for name in ("data", "prompts", "gold_prompts") if getattr(settings, name) is spec]
        with pointing_at(tuple(names or ["prompts"])):
            encode = self.encoder(stage.base)
            self.looked[stage.base] = encode is not None
            if encode is not None:
                groups = self._rendered(stage, groups, encode)
            if names == ["data"]:
                self._learning(stage, groups, encode)
            elif names:
                self._prompts(stage, groups, encode, names[0])

    def _rendered(self, stage: Stage, groups: Sequence[Group], encoder: Encoder) -> list[Group]:
        """The groups without those that the chat template refuses among the first rows of each source.

        Raises DataError with the refused rows of sources without `on_bad_row: skip`.
        """
        from alignkit.tokens.encoder import RowRefused

        seen, refused, bad, kept = Counter[int](), list[SkippedRow](), list[SkippedRow](), list[Group]()
        for group in groups:
            source = group.origin.source if group.origin is not None else -1
            seen[source] += 1
            if self.rows is None or seen[source] <= self.rows:
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
            self.say(f"{stage.name}: left out, because the chat template refuses them: {bad_rows_error(refused)}")
        return kept

    def _learning(self, stage: Stage, groups: Sequence[Group], encoder: Encoder | None) -> None:
        """Let the algorithm select from the data and check them, as the stage will."""
        name, needs, settings = stage.component.name, stage.needs, stage.settings
        assert settings is not None
        if needs is not None and needs.pairs and not any(map(resolved_pairs, groups)):
            files = ", ".join(source.name for source in settings.data.sources)
            raise DataError(
                f"stage '{stage.name}': {name} learns from pairs of a better and a worse response, but no row of "
                f"{files} has a pair{way_out(groups)}"
            )
        algorithm = self.made(stage.component, stage)
        if id(stage.component) in self.unusable or isinstance(algorithm, ExternalTrainer):
            return
        chosen = selected(self.recipe, stage, groups, algorithm)
        self._call(stage.component, stage, "check_data", chosen)
        with_prompt = [group for group in chosen if group.prompt]  # a document is learned in pieces
        if encoder is not None and with_prompt and len(with_prompt) == len(chosen):
            turns, scoring = algorithm.trained_turns(), algorithm.trains is Trains.REWARD
            fits = (_fits(encoder, group, settings.max_length, turns, scoring) for group in with_prompt)
            _check_room(stage, encoder, with_prompt, fits, 1)

    def _prompts(self, stage: Stage, groups: Sequence[Group], encoder: Encoder | None, name: str) -> None:
        """Check that a prompt leaves room for a response, and that prompts have what the stage's rewards need."""
        prompts, settings = prompts_of(groups), stage.settings
        assert settings is not None
        if groups and not prompts:
            raise DataError(f"stage '{stage.name}': the rows of '{name}' are raw text, without a prompt to answer")
        learns = issubclass(stage.component.registration.implementation, Algorithm)
        if name == "prompts" and learns and id(stage.component) not in self.unusable:
            self._call(stage.component, stage, "check_prompts", prompts)
        used = ["reward", "environment"] if name == "prompts" else ["reward"]
        used += ["gold"] if name == "gold_prompts" or settings.gold_prompts is None else []
        for key in used:
            with pointing_at((key,), inside=True):
                self._scoring(stage, getattr(settings, key), prompts)
        if encoder is not None and prompts:
            room = settings.rollout.max_new_tokens
            lengths = (len(encoder.prompt(group.prompt, group.tools)) for group in prompts)
            _check_room(stage, encoder, prompts, (length + room <= settings.max_length for length in lengths), room)

    def _scoring(self, stage: Stage, rewards: Any, groups: Sequence[Group]) -> None:
        """Let rewards, combinations and environments say what the groups lack."""
        for component in specs(rewards, Component):
            kind = component.registration.implementation
            scores = isinstance(kind, type) and issubclass(kind, Environment | Reward | RewardCombination)
            if scores and id(component) not in self.unusable:
                check_scoring(component, self.made(component, stage), groups)

    def _step_data(self, stage: Stage, read: Sequence[tuple[DataSpec, Loaded]]) -> StepData:
        """What a step checks its data with. read: the entries that are here."""

        def load(spec: Any) -> list[Group] | None:
            return next((list(loaded.groups) for entry, loaded in read if entry is spec), None)

        def check_prompts(reward: Any, groups: Sequence[Group]) -> None:
            with pointing_at(keys_of(stage.component.options, reward) or (), inside=True):
                self._scoring(stage, reward, groups)

        return StepData(load, check_prompts, self.recipe, lambda text: self.say(f"{stage.name}: {text}"))

    def _template(self, stage: Stage, component: Component, max_length: int) -> None:
        """Raise RunFailed if the base model's chat template is unfit for the stage's environment."""
        factory = player().Factory(component, stage.name, self.recipe.seed, self.recipe.folder)
        if (encoder := self.encoder(stage.base)) is not None:
            player().Episodes(factory, encoder, max_length)


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


def selected(recipe: Recipe, stage: Stage, groups: Sequence[Group], algorithm: Algorithm) -> Sequence[Group]:
    """The groups that the algorithm selects, with the same random numbers as in the stage."""
    if type(algorithm).select is Algorithm.select:
        return groups
    from alignkit import seeds  # imports numpy

    random = seeds.stream(recipe.seed, stage.name, "select")
    context = SelectContext(0, recipe.seed, lambda: [], lambda **facts: None, random, False, lambda text: None)
    chosen = call(algorithm, "select", groups, context)
    return [group for item in chosen for group in ([item] if isinstance(item, Group) else item.groups)]


def _fits(encoder: Encoder, group: Group, limit: int, turns: str, scoring: bool) -> bool:
    from alignkit.tokens.encoder import RowRefused

    try:
        return encoder.encode(group, limit, turns=turns, scoring=scoring) is not None
    except RowRefused:  # behind the first rows; the stage says so
        return False


def _check_room(stage: Stage, encoder: Encoder, groups: Sequence[Group], fits: Iterable[bool], room: int) -> None:
    """Raise DataError if no group fits. Usually the first one does, so little is tokenized."""
    if any(islice(fits, MOST_ROWS)) or len(groups) > MOST_ROWS:
        return
    lengths = [len(encoder.prompt(group.prompt, group.tools)) for group in groups]
    assert stage.settings is not None
    needed = f"{room} new tokens" if room > 1 else "a response"
    raise DataError(
        f"stage '{stage.name}': no prompt leaves room for {needed} in max_length {stage.settings.max_length}; the "
        f"shortest prompt has {min(lengths)} tokens, the longest {max(lengths)}"
    )


def weak_models(stage: Stage) -> Iterator[str]:
    """A warning per folder with a reward model of a run whose accuracy on its validation pairs is below WEAK."""
    rewards = specs([stage.settings, stage.component.options], RewardSpec)
    for name in dict.fromkeys(spec.name for spec in rewards if spec.kind == "folder"):
        record = read_record(Path(name)) or read_record(Path(name).parent)  # of RUN/STAGE/adapter
        accuracy = ((record.get("summary") or {}).get("validation") or {}).get("accuracy")
        if isinstance(accuracy, float) and accuracy < WEAK:
            yield (
                f"warning: {name} was right on {accuracy:.0%} of its validation pairs; below {WEAK:.0%} a reward model "
                "says little. Train it on more pairs, or on pairs on which people agree"
            )


# Without a run


def check_recipe(
    recipe: Recipe,
    look: Callable[[Loaded], object] = lambda loaded: None,
    say: Callable[[str], None] = lambda text: None,
    *,
    rows: int | None = FIRST_ROWS,
) -> None:
    """Raise the errors with which a run would stop before its first stage, as far as they show without one.

    Nothing is downloaded, and no model is made. look: is given what is read. say: prints a line. rows: see
    `Preparation`.
    """
    data = RunData(_no_stage, recipe.seed)
    encoder = cache(partial(local_encoder, recipe))

    def load(stage: Stage, spec: DataSpec) -> Loaded:
        look(loaded := data.read(spec))
        return loaded

    stages = list(recipe.stages.values())
    prepared = Preparation(recipe, stages, None, load, encoder, say, rows)
    prepared.prepare()
    for base, here in prepared.looked.items():
        looked = "all rows" if rows is None else f"the first {rows} rows of each source"
        missing = "not looked at: rows as its chat template writes them, because the model is not here yet"
        say(f"{recipe.base(base).base}: {f'looked at {looked} as its chat template writes them' if here else missing}")
    for line in dict.fromkeys(_imported(stages)):
        say(line)


def _imported(stages: Iterable[Stage]) -> Iterator[str]:
    for stage in stages:
        for component in specs([stage.settings, stage.component.options, stage.engine], Component):
            if getattr(component.registration.implementation, "runs_code", False):
                yield f"{stage.name}: imported the code of {component.kind} '{component.name}'"


def _no_stage(name: str) -> Path:
    raise DataError(f"the data of stage '{name}' do not exist yet")

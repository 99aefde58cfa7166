"""Reads a recipe: its files and overrides become a `Recipe` before anything heavy is imported, or all its mistakes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from alignkit.algorithm import ExternalTrainer, Source, StageDefaults
from alignkit.calls import blame, create
from alignkit.errors import PluginError, Problem, RecipeError, did_you_mean
from alignkit.plugins import plugins
from alignkit.recipe.mistakes import (
    Mistake,
    Mistakes,
    problems_of,
    shown,
    validated,
)
from alignkit.recipe.references import Reading, StageHeader, StageKind, options_of
from alignkit.recipe.repeat import expand
from alignkit.recipe.rules import (
    ENGINE,
    MODEL,
    Draft,
    Sampler,
    base_mistakes,
    broken,
    data_mistakes,
    key_mistakes,
    stage_mistakes,
)
from alignkit.recipe.schema import BASE, Recipe, RewardSpec, Stage, TopKeys, allowed_keys, base_keys, specs
from alignkit.recipe.yaml import Document, Keys, Mark, Node, dump, load_document, parse_document
from alignkit.registry import Component, Registration, Registry
from alignkit.sampling import KEYS, SamplingOptions
from alignkit.settings import Rollout, Settings

PLUGIN_ERROR = 3  # exit code if only plugins are wrong, not the recipe
_KINDS: tuple[StageKind, ...] = ("algorithm", "step")
_RESERVED = {
    "stages": (BASE, "none", "folder", "cache", "trackers"),  # the last two are folders of the run
    "bases": (BASE, "none", "folder", "model"),
}


def load_recipe(path: Path | str, overrides: Sequence[str] = (), registry: Registry | None = None) -> Recipe:
    """Read and check a recipe, without importing anything heavy. Raises RecipeError with every problem found."""
    return build(load_document(Path(path), overrides), registry if registry is not None else plugins().registry)


def made_recipe(data: Mapping[str, Any], name: str, overrides: Sequence[str], registry: Registry) -> Recipe:
    """Check a recipe that a command made. name: of the command, in errors. Relative paths start at the current folder.

    Raises RecipeError with every problem found.
    """
    return build(parse_document(dump(data), Path(name), overrides), registry)


def build(document: Document, registry: Registry) -> Recipe:
    """Return the recipe of a document. Raises RecipeError with every problem found."""
    return _Recipe(document, registry).read()


@dataclass
class _Recipe:
    """A recipe while it is read. mistakes: with their places in the document, in which blocks are expanded."""

    source: Document
    registry: Registry
    mistakes: list[Mistake] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.document = expand(self.source)
        self.data = self.document.root.plain()
        stages, bases = self.data.get("stages"), self.data.get("bases")
        self.stages: dict[str, Any] = stages if isinstance(stages, dict) else {}
        self.bases = (BASE, *(bases if isinstance(bases, dict) else ()))
        self.reading = Reading(self.registry, self.source.path.parent, self.stages, bases=self.bases)

    def error(self, message: str, help: str, *keys: str | int, at_key: bool = False, plugin: bool = False) -> None:
        """Add a mistake."""
        self.mistakes.append(Mistake(message, help, keys, at_key, plugin))

    def add(self, mistakes: Iterable[Mistake], *keys: str | int) -> None:
        """Add mistakes of the value at a place."""
        self.mistakes += [mistake.below(*keys) for mistake in mistakes]

    def attempt(self, keys: Keys, function: Callable[..., Any], *args: Any) -> Any:
        """Return what a function returns, or None if it raises Mistakes of the value at a place."""
        try:
            return function(*args)
        except Mistakes as error:
            self.add(error.mistakes, *keys)
            return None

    def raise_all(self) -> None:
        """Raise RecipeError if anything is wrong, in the order of the file."""
        of_recipe = problems_of(self.document, self.mistakes)
        problems = [*self.document.problems, *self.reading.problems, *of_recipe]
        if not problems:
            return
        error = RecipeError(sorted(problems, key=lambda problem: (problem.file, problem.line, problem.column)))
        if len(of_recipe) == len(problems) and all(mistake.plugin for mistake in self.mistakes):
            error.exit_code = PLUGIN_ERROR
        raise error

    def read(self) -> Recipe:
        """Return the recipe. Raises RecipeError with every problem found."""
        top, mistakes = validated(TopKeys, self.data, self.reading)
        self.add(mistakes)
        for name in self.bases[1:]:
            self._check_name("bases", name)
        stages = self._read_stages()
        if top is None:
            self.raise_all()
            raise AssertionError("a recipe without problems is valid")
        models = {BASE: top.model, **top.bases}
        for base, spec in models.items():
            self.add(broken(MODEL, spec), *base_keys(base))
        if not self.mistakes and not self.reading.problems:
            for stage in stages.values():
                samples = _samples(stage)
                engine = stage.engine or (top.engine if samples else None)
                component = engine if isinstance(engine, Component) else None
                sampler = Sampler(stage, component, models[stage.base], samples)
                for mistake in broken(ENGINE, sampler):
                    others = (("engine",),) if mistake.keys == ("engine",) else ()
                    self.mistakes.append(replace(mistake.below("stages", stage.name), others=others))
                stages[stage.name] = replace(stage, engine=sampler.engine)
        path = self.source.path
        name = top.name or re.sub(r"[^A-Za-z0-9._-]", "-", path.stem)
        written = self._portable(self.data)
        recipe = Recipe(
            name=name,
            path=path,
            folder=path.parent.resolve(),
            seed=top.seed,
            description=top.description,
            model=top.model,
            stages=stages,
            trackers=tuple(top.trackers),
            bases=top.bases,
            document=self.document,
            resolved={**({} if top.name else {"name": name}), **written},
        )
        self.raise_all()
        return recipe

    def _portable(self, value: Any) -> Any:
        """Plain data with all files and folders that the recipe names absolute, so that it works in any folder."""
        if isinstance(value, dict):
            return {key: self._portable(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._portable(item) for item in value]
        if not isinstance(value, str) or self.reading.is_stage(value):
            return value
        return self.reading.located.get(value, value)

    # --- stages

    def _read_stages(self) -> dict[str, Stage]:
        """Return the stages without problems, in an order in which they can run."""
        for name, raw in self.stages.items():
            self._check_name("stages", name)
            self.reading.headers[name] = None
            if isinstance(raw, dict):
                self.reading.headers[name] = self._header(name, raw)
            else:
                help = "write '{algorithm: NAME, ...}' or '{step: NAME, ...}'"
                self.error(f"stage '{name}': expected a mapping, got {shown(raw)}", help, "stages", name)
        stages: dict[str, Stage] = {}
        upstream: dict[str, Collection[str]] = {}
        for name, raw in self.stages.items():
            reading = replace(self.reading, stage=name, upstream={}, folders={}, roles={})
            stage = self._stage(reading, raw) if isinstance(raw, dict) else None
            upstream[name] = reading.upstream
            if stage is not None:
                stages[name] = stage
        for stage in stages.values():
            self.add(base_mistakes(stage, stages, self.bases), "stages", stage.name)
        ordered = {name: stages[name] for name in self._ordered(upstream) if name in stages}
        fill_sampling(ordered)
        return ordered

    def _check_name(self, where: str, name: str) -> None:
        """Check the name of a stage or a base model."""
        what = "stage name" if where == "stages" else "base model"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            why = ", because it becomes a folder name" if where == "stages" else ""
            self.error(f"{what} '{name}': expected letters, digits, '_' and '-'{why}", "", where, name, at_key=True)
        elif name in _RESERVED[where]:
            self.error(f"'{name}' is reserved and cannot be a {what}", "", where, name, at_key=True)
        elif where == "stages" and name in self.bases:
            message = f"'{name}' is the name of a stage and of a base model, so that a reference to it is ambiguous"
            help = f"rename the base model, for instance to '{name}-base', in 'bases' and wherever it is meant"
            self.error(message, help, where, name, at_key=True)
        elif where == "stages" and self.registry.has("reward", name):
            help = f"'reward: {name}' would be ambiguous; rename the stage"
            self.error(f"stage '{name}' has the same name as an installed reward", help, where, name, at_key=True)

    def _header(self, name: str, raw: Mapping[str, Any]) -> StageHeader | None:
        keys: Keys = ("stages", name)
        kinds = [kind for kind in _KINDS if raw.get(kind) is not None]
        if len(kinds) != 1:
            got = "has both 'algorithm' and 'step'" if kinds else "has neither 'algorithm' nor 'step'"
            near = "" if kinds else next(filter(None, (did_you_mean(key, _KINDS) for key in raw)), "")
            self.error(f"stage '{name}' {got}", near or "a stage needs one of them", *keys, at_key=True)
            return None
        (kind,) = kinds
        keys = (*keys, kind)
        return self.attempt(keys, self._declared, kind, raw[kind])

    def _declared(self, kind: StageKind, raw: Any) -> StageHeader:
        name, options = self.reading.split(kind, raw)
        inside = () if isinstance(raw, str) else (name,)
        registration = self.reading.find(kind, name, inside, bool(inside))
        if kind == "algorithm":
            algorithm = registration.implementation
            try:
                with blame(algorithm, "specialize", registration=registration):
                    registration = replace(
                        registration, target=algorithm.specialize(options), file=registration.source_path
                    )
            except PluginError as error:
                raise Mistakes(Mistake(str(error), "", inside, bool(inside), plugin=True)) from None
        return StageHeader(kind, registration)

    def _stage(self, reading: Reading, raw: Mapping[str, Any]) -> Stage | None:
        header, before = reading.headers[reading.stage], len(self.mistakes)
        stage: Stage | None = None
        if header is None:
            self._check_settings(reading, raw)
        elif header.kind == "step":
            stage = self._step(reading, header.registration, raw)
        else:
            stage = self._training_stage(reading, header.registration, raw)
        return stage if len(self.mistakes) == before else None

    def _check_settings(self, reading: Reading, raw: Mapping[str, Any]) -> None:
        """Check the settings of a stage whose algorithm is unknown, so that one run reports every problem."""
        if raw.get("step") is None and raw.get("algorithm") is not None:
            settings = {key: value for key, value in raw.items() if key not in _KINDS and value is not None}
            self.add(validated(Settings, settings, reading)[1], "stages", reading.stage)

    def _step(self, reading: Reading, registration: Registration, raw: Mapping[str, Any]) -> Stage | None:
        """Return a step. Its options are next to `step: NAME`, or inside `step: {NAME: {...}}`."""
        keys: Keys = ("stages", reading.stage)
        named = raw["step"]
        options = {key: value for key, value in raw.items() if key not in (*_KINDS, "engine")}
        engine = None
        if raw.get("engine") is not None:
            engine = self.attempt((*keys, "engine"), reading.resolve, "engine", raw["engine"])
        if isinstance(named, dict):
            name = next(iter(named))
            for key in options:
                help = f"write all options either next to 'step: {name}' or inside 'step: {{{name}: {{...}}}}'"
                self.error(f"unknown key '{key}'", help, *keys, key, at_key=True)
            component = self.attempt((*keys, "step"), reading.component, "step", named, registration)
            place: Keys = ("step", name)
        else:
            component = self.attempt(keys, reading.with_options, "step", named, registration, options)
            place = ()
        if component is None:
            return None
        self.add(data_mistakes(component.options), *keys, *place)
        return self._made(reading, component, engine)

    def _made(self, reading: Reading, component: Component, engine: Any, *more: Any) -> Stage:
        """A stage with the references that were read. more: settings, needs and `log_odds` of a training stage."""
        settings, needs, log_odds = more or (None, None, False)
        return Stage(
            reading.stage,
            "step" if component.kind == "step" else "algorithm",
            component,
            settings,
            tuple(reading.upstream),
            needs,
            tuple(reading.folders),
            tuple(reading.roles),
            engine,
            log_odds,
        )

    def _training_stage(self, reading: Reading, registration: Registration, raw: Mapping[str, Any]) -> Stage | None:
        keys: Keys = ("stages", reading.stage)
        name, algorithm = registration.name, registration.implementation
        written = {key: value for key, value in raw.items() if key not in _KINDS and value is not None}
        component = self.attempt((*keys, "algorithm"), reading.component, "algorithm", raw["algorithm"], registration)
        needs, log_odds, chooses = None, False, True
        if component is not None:
            try:
                plugin = create(component)
                with blame(plugin, "needs"):
                    needs, log_odds, chooses = plugin.needs, bool(plugin.log_odds), bool(plugin.chooses)
            except PluginError as error:
                self.error(str(error), "", *keys, "algorithm", plugin=True)
        self.add(key_mistakes(name, algorithm, written, needs), *keys)
        filled = with_defaults(written, algorithm.defaults)
        hints = {
            option: f"it is an option of {name}: write 'algorithm: {{{name}: {{{option}: ...}}}}'"
            for option in allowed_keys(options_of(registration))
        }
        settings, mistakes = validated(Settings, filled, reading, hints)
        self.add(mistakes, *keys)
        wrong = {mistake.keys[0] for mistake in mistakes if mistake.keys}
        if settings is None:  # what does not go together in the keys that are right
            right = {key: value for key, value in filled.items() if key not in wrong}
            settings, _ = validated(Settings, right, reading)
        if settings is None:
            return None
        settings._optimizer_defaults = dict(algorithm.defaults.optimizer)
        chosen = component.options if component else None
        draft = Draft(name, algorithm, written, settings, reading, chosen, needs, chooses)
        self.add(stage_mistakes(draft, wrong), *keys)
        if component is None or mistakes:
            return None
        self.add([*data_mistakes(settings), *data_mistakes({"algorithm": component})], *keys)
        return self._made(reading, component, settings.engine, settings, needs, log_odds)

    def _ordered(self, upstream: Mapping[str, Collection[str]]) -> Iterator[str]:
        """The stages in the declared order, except that each follows its upstream stages. Reports a cycle."""
        sorter = TopologicalSorter(upstream)
        try:
            sorter.prepare()
        except CycleError as error:
            cycle = error.args[1][::-1]  # each stage, and then one that it waits for
            message = f"stages depend on each other in a cycle: {' -> '.join(cycle)}"
            self.error(message, "remove one of these references", "stages", cycle[0], at_key=True)
            yield from upstream
            return
        ready = set(sorter.get_ready())
        while ready:
            name = next(name for name in upstream if name in ready)
            sorter.done(name)
            ready = ready - {name} | set(sorter.get_ready())
            yield name


def with_defaults(written: Mapping[str, Any], defaults: StageDefaults) -> dict[str, Any]:
    """Return a stage's keys with the algorithm's own defaults for those that it does not set."""
    filled = dict(written)
    rollout = filled.get("rollout", {})
    if isinstance(rollout, dict):
        filled["rollout"] = rollout = {key: value for key, value in rollout.items() if value is not None}
    for key, value in vars(defaults).items():
        if value is None or key in ("learning_rate", "optimizer"):  # what they mean depends on others
            continue
        if key not in Rollout.model_fields:
            filled.setdefault(key, value)
        elif isinstance(rollout, dict):
            rollout.setdefault(key, value)
    return filled


# --- trackers of the command line, which are part of no stage's hash


def with_trackers(recipe: Recipe, names: Sequence[str], registry: Registry) -> Recipe:
    """The recipe with more trackers, by name. Raises RecipeError for one that cannot be used."""
    reading = Reading(registry, recipe.folder)
    trackers = {component.name: component for component in recipe.trackers}
    for name in names:
        try:
            trackers.setdefault(name, reading.component("tracker", name))
        except Mistakes as error:
            option = f"--tracker {name}"
            place = Document(Path(option), Node({}, Mark(option)))
            raise RecipeError(problems_of(place, error.mistakes)) from None
    return replace(recipe, trackers=tuple(trackers.values()))


def tracker_problem(recipe: Recipe, index: int, message: str, help: str = "") -> Problem:
    """A mistake in a tracker of a recipe, where the tracker is named: in its document, or on the command line."""
    if index < len(recipe.resolved.get("trackers") or ()):
        return recipe.problem(("trackers", index), message, help=help)
    return Problem(message, f"--tracker {recipe.trackers[index].name}", help=help)


# --- sampling options that steps and rewards leave out are those of stages that train


def _samples(stage: Stage) -> bool:
    """Whether a stage samples: rollouts, or what the options of its plugins say. An engine is part of its hash."""
    if _is_online(stage) and not issubclass(stage.component.registration.implementation, ExternalTrainer):
        return True
    parts = [stage.component, *specs([stage.settings, stage.component.options], Component)]
    return any(part.options.asks_engine() for part in parts)


def _is_online(stage: Stage) -> bool:
    return stage.kind == "algorithm" and stage.component.registration.implementation.source is Source.ROLLOUTS


def fill_sampling(stages: Mapping[str, Stage]) -> None:
    """Fill the options of all stages, before anything depends on them: they are part of the stages' hashes."""
    online = {name: stage for name, stage in stages.items() if _is_online(stage)}
    for stage in stages.values():
        options = stage.component.options
        if isinstance(options, SamplingOptions):
            _fill_step(options, online)
            _fill_rewards(stage, options.sampled(), f"stage {stage.name}")
        elif stage.name in online:
            _fill_rewards(stage, _rollout(stage), f"stage {stage.name}")


def _rollout(stage: Stage) -> dict[str, Any]:
    """The sampling options of an online stage."""
    return {key: getattr(stage.settings.rollout, key) for key in KEYS} if stage.settings else {}


def _fill_step(options: SamplingOptions, online: Mapping[str, Stage]) -> None:
    policies = [reference.partition("@")[0] for reference in options.policies_to_sample()]
    if not policies:
        return
    own = [online[name] for name in dict.fromkeys(policies) if name in online]
    source = next(iter([*own, *online.values()]), None)
    if source is not None:
        options.follow(_rollout(source), f"stage {source.name}")


def _fill_rewards(stage: Stage, values: Mapping[str, Any], source: str) -> None:
    for spec in specs([stage.settings, stage.component.options], RewardSpec):
        if spec.component is not None and isinstance(spec.component.options, SamplingOptions):
            spec.component.options.follow(values, source)

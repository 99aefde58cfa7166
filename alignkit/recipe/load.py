"""Reads a recipe: its files and overrides become a `Recipe` before anything heavy is imported, or
all its mistakes.

Plugins may rewrite it first, as blocks of stages that it repeats.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.contract.algorithm import StageDefaults
from alignkit.contract.settings import Rollout, Sampling, SamplingOptions, Settings
from alignkit.errors import PluginError, RecipeError, did_you_mean, refuse
from alignkit.host.calls import attributed_to, create
from alignkit.host.plugins import load_plugins, plugins
from alignkit.host.registry import Component, Registry
from alignkit.io.results import RECIPE
from alignkit.io.text import Say, is_file, printable
from alignkit.recipe.mistakes import Mistake, Mistakes, problems_of, validated, wrong
from alignkit.recipe.references import Resolver, options_of
from alignkit.recipe.rules import (
    ENGINE,
    MODEL,
    broken,
    key_mistakes,
    stage_mistakes,
)
from alignkit.recipe.schema import Recipe, Stage, TopKeys, allowed_keys, specs
from alignkit.recipe.yaml import (
    Document,
    Keys,
    children,
    find_recipe,
    load_document,
    mapping,
    rewritten,
)

KINDS = ("algorithm", "step")


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe, without importing anything heavy. Raises RecipeError with every
    problem found.
    """
    return build(load_document(Path(path), overrides), plugins())


def load_named(
    name: str,
    overrides: Sequence[str] | None,
    only: str | None = None,
    until: str | None = None,
    warn: Say = lambda text: print(printable(text), file=sys.stderr),
) -> Recipe:
    """Load the plugins, then the recipe. A broken plugin is a warning, unless it was given as a
    file.

    only, until: as options of `alignkit run`. Raises RecipeError for a stage that the recipe does
    not have.
    """
    if is_file(Path(name) / RECIPE):
        refuse(
            f"{name} is the folder of a run, not a recipe",
            f"`alignkit run {Path(name) / RECIPE}` continues it",
        )
    path = find_recipe(name)
    loaded = load_plugins()
    requested = {file.name for file in loaded.files}
    for origin in loaded.broken:
        if origin.distribution in requested:
            raise PluginError(str(origin))
    recipe = load_recipe(path, list(overrides or ()))
    for origin in loaded.broken:  # only now: errors of a recipe already mention broken plugins
        warn(f"warning: {origin}")
    if only and until:
        refuse("--only runs one stage, and --until several", "choose one of them")
    if last := only or until:
        names = (*recipe.stages,)
        end = names.index(stage_of(recipe, last).name)
        recipe = replace(recipe, chosen=names[end if only else 0 : end + 1])
    return recipe


def stages_of(data: Any) -> Mapping[str, Any]:
    """The stages of a recipe, or none instead of anything else, which is a mistake elsewhere."""
    return mapping(children(data).get("stages"))


def stage_of(recipe: Recipe, name: str) -> Stage:
    """The stage with a name. Raises RecipeError if the recipe does not have it."""
    if name not in recipe.stages:
        refuse(f"no stage '{name}'", did_you_mean(name, recipe.stages, "stages"))
    return recipe.stages[name]


def build(document: Document, registry: Registry) -> Recipe:
    """Return the recipe of a document. Raises RecipeError with every problem found."""
    return _Recipe(document, registry).read()


class _Recipe:
    """A recipe while it is read. mistakes: with their places in the document, in which blocks are
    expanded.
    """

    def __init__(self, source: Document, registry: Registry):
        self.document = source
        for one in registry.registrations("rewrite"):
            one.implementation(source)
        self.mistakes = Mistakes()
        self.resolver = Resolver(registry, source.path.parent)

    def raise_all(self) -> None:
        """Raise RecipeError if anything is wrong, in the order of the file."""
        problems = [
            *self.document.problems,
            *self.resolver.problems,
            *problems_of(self.document, self.mistakes.mistakes),
        ]
        if problems:
            raise RecipeError(
                sorted(problems, key=lambda problem: (problem.file, problem.line, problem.column))
            )

    def read(self) -> Recipe:
        """Return the recipe. Raises RecipeError with every problem found."""
        data, stages = self.document.data, self.resolver.stages
        top, mistakes = validated(TopKeys, data, self.resolver)
        self.mistakes.add(mistakes)
        for name, raw in stages_of(data).items():
            stages[name] = Stage(name, mapping(raw))
        for stage in stages.values():
            with self.mistakes.at("stages", stage.name):
                self._find_plugin(stage)
        for stage in stages.values():
            self.resolver.stage = stage
            with self.mistakes.at("stages", stage.name):
                if stage.kind == "step":
                    self._read_step(stage)
                else:
                    self._read_training(stage)
        if top is not None:
            self.mistakes.add(broken(MODEL, top.model), "model")
        self.raise_all()
        assert top is not None
        ordered = self._ordered()
        fill_sampling(ordered)
        for stage in ordered.values():
            stage.model = top.model
            if stage.engine is None and _samples(stage):
                stage.engine = top.engine
            if not isinstance(stage.engine, Component):
                stage.engine = None
            for mistake in broken(ENGINE, stage):
                if mistake.keys != ("engine",) or "engine" in stage.written:
                    mistake = mistake.below("stages", stage.name)
                self.mistakes.add([mistake])
        self.raise_all()
        path = self.document.path
        name = top.name or re.sub(r"[^A-Za-z0-9._-]", "-", path.stem)
        return Recipe(
            name=name,
            path=path,
            folder=path.parent.resolve(),
            seed=top.seed,
            description=top.description,
            model=top.model,
            stages=ordered,
            trackers=tuple(top.trackers),
            document=self.document,
            resolved={"name": name} | rewritten(data, self._portable) | {"name": name},
        )

    def _portable(self, text: str, keys: Keys) -> str:
        """Files and folders that the recipe names are absolute, so that it works in any folder."""
        return text if self.resolver.is_stage(text) else self.resolver.located.get(text, text)

    # --- stages

    def _find_plugin(self, stage: Stage) -> None:
        """Find a stage's kind and plugin, which other stages may name before its keys are read."""
        kinds = [kind for kind in KINDS if stage.written.get(kind) is not None]
        if len(kinds) != 1:
            near = [did_you_mean(key, KINDS) for key in stage.written if not kinds]
            help = next(filter(None, near), "write '{algorithm: NAME, ...}' or '{step: NAME, ...}'")
            raise wrong(
                f"stage '{stage.name}' needs 'algorithm' or 'step', and not both", help, at_key=True
            )
        (stage.kind,) = kinds
        with self.mistakes.at("stages", stage.name, stage.kind):
            if stage.kind == "step" and isinstance(stage.written["step"], dict):
                raise wrong("expected the name of a step", "write its options next to 'step: NAME'")
            _, stage.registration, _ = self.resolver.plugin(stage.kind, stage.written[stage.kind])

    def _read_step(self, stage: Stage) -> None:
        """Read a step. Its options are next to `step: NAME`."""
        if stage.registration is None:
            return
        mistakes = Mistakes()
        written = dict(stage.written)
        name, engine = written.pop("step"), written.pop("engine", None)
        with mistakes.at("engine"):
            if engine is not None:
                stage.engine = self.resolver.resolve("engine", engine)
        with mistakes.at():
            stage.component = self.resolver.with_options(name, stage.registration, written)
        mistakes.end()

    def _read_training(self, stage: Stage) -> None:
        mistakes, others = Mistakes(), {"algorithm": ""}
        stage.written = {key: value for key, value in stage.written.items() if value is not None}
        keys = {key: value for key, value in stage.written.items() if key not in KINDS}
        if stage.registration is not None:
            with mistakes.at("algorithm"):
                stage.component = self.resolver.component("algorithm", stage.written["algorithm"])
                try:
                    plugin = create(stage.component)
                    with attributed_to(plugin, "needs"):
                        stage.needs, stage.log_odds = plugin.needs, bool(plugin.log_odds)
                except PluginError as error:
                    raise wrong(str(error)) from None
            mistakes.add(key_mistakes(stage))
            keys = with_defaults(keys, stage.plugin.defaults)
            if stage.online:
                for key in allowed_keys(Rollout):
                    others[key] = f"it is a key of rollout: write 'rollout: {{{key}: ...}}'"
            name = stage.registration.name
            for option in allowed_keys(options_of(stage.registration)):
                others[option] = (
                    f"it is an option of {name}: write 'algorithm: {{{name}: {{{option}: ...}}}}'"
                )
        settings, wrong_keys = validated(Settings, keys, self.resolver, others)
        mistakes.add(wrong_keys)
        without = {mistake.keys[0] for mistake in wrong_keys if mistake.keys}
        if settings is None:  # what does not go together in the keys that are right
            right = {key: value for key, value in keys.items() if key not in without}
            settings, _ = validated(Settings, right, self.resolver)
        if settings is not None and stage.registration is not None:
            stage.settings, stage.engine = settings, settings.engine
            mistakes.add(stage_mistakes(stage, without))
        mistakes.end()

    def _ordered(self) -> dict[str, Stage]:
        """The stages in the declared order, except that each follows its upstream stages. Raises
        for a cycle.
        """
        ordered: dict[str, Stage] = {}

        def follow(name: str, *chain: str) -> None:
            if name in ordered:
                return
            if name in chain:
                message = f"stages depend on each other in a cycle: {' -> '.join((*chain, name))}"
                help = "remove one of these references"
                self.mistakes.add([Mistake(message, help, at_key=True)], "stages", name)
                self.raise_all()
            for upstream in self.resolver.stages[name].upstream:
                follow(upstream, *chain, name)
            ordered[name] = self.resolver.stages[name]

        for name in self.resolver.stages:
            follow(name)
        return ordered


def with_defaults(written: Mapping[str, Any], defaults: StageDefaults) -> dict[str, Any]:
    """Return a stage's keys with the algorithm's own defaults for those that it does not set."""
    # What `learning_rate` and `optimizer` mean depends on others.
    left_out = {"learning_rate", "optimizer"}
    given = {
        key: value
        for key, value in vars(defaults).items()
        if value is not None and key not in left_out
    }
    own = {key: given.pop(key) for key in Rollout.model_fields if key in given}
    keys = {"rollout": {}, **given, **written}
    if isinstance(keys["rollout"], dict):
        keys["rollout"] = own | {
            key: value for key, value in keys["rollout"].items() if value is not None
        }
    return keys


# --- sampling options that steps and rewards leave out are those of stages that train


def _samples(stage: Stage) -> bool:
    """Whether a stage samples: rollouts, or what the options of its plugins say. An engine is part
    of its hash.
    """
    parts = [stage.component, *specs([stage.settings, stage.component.options], Component)]
    return stage.online or any(part.options.asks_engine() for part in parts)


def fill_sampling(stages: Mapping[str, Stage]) -> None:
    """Fill the options of all stages, before anything depends on them: they are part of the stages'
    hashes.
    """
    rollouts: dict[str, Sampling] = {
        name: stage.rollout for name, stage in stages.items() if stage.online
    }
    for stage in stages.values():
        options, sampling = stage.component.options, rollouts.get(stage.name)
        if isinstance(options, SamplingOptions):
            policies = [reference.partition("@")[0] for reference in options.policies_to_sample()]
            if policies and rollouts:
                options.follow(
                    next(rollouts[name] for name in (*policies, *rollouts) if name in rollouts)
                )
            sampling = options.sampling
        for component in specs([stage.settings, options], Component):
            if sampling is not None and isinstance(component.options, SamplingOptions):
                component.options.follow(sampling)

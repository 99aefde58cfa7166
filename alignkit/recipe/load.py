"""Reads a recipe: its files and overrides become a `Recipe` before anything heavy is imported, or all its mistakes.

Blocks that a recipe repeats (iterated RLHF) become one stage per round, before anything else is read:

    rlhf:
      repeat: 3
      start: {align: sft}
      stages:
        labels: {step: judge_pairs, policy: align, ...}                         # of the round before: align is below
        reward: {algorithm: reward_model, from: sft, data: [human.jsonl, labels@all]}   # labels of all rounds so far
        align: {algorithm: ppo, from: align, reward: reward, ...}

becomes `labels_1`, `reward_1`, `align_1`, `labels_2` and so on. Inside the block, a name means this round's stage if
that stage is above, else the previous round's. `start` sets the meaning of such a name in round 1. Below the block, a
name means the last round's stage. `NAME@all`, in a list or as data, means the stages of all rounds so far.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from alignkit.algorithm import StageDefaults
from alignkit.calls import blame, create
from alignkit.errors import PluginError, RecipeError, did_you_mean
from alignkit.plugins import plugins
from alignkit.recipe.mistakes import Mistake, Mistakes, problems_of, validated, wrong
from alignkit.recipe.references import Reading, options_of
from alignkit.recipe.rules import (
    ENGINE,
    MODEL,
    broken,
    data_mistakes,
    key_mistakes,
    stage_mistakes,
)
from alignkit.recipe.schema import BlockKeys, Recipe, RewardSpec, Stage, TopKeys, allowed_keys, specs
from alignkit.recipe.yaml import Document, Node, dump, load_document, parse_document
from alignkit.registry import Component, Registry
from alignkit.sampling import KEYS, SamplingOptions
from alignkit.settings import Rollout, Settings

_KINDS: tuple[Literal["algorithm"], Literal["step"]] = ("algorithm", "step")


def load_recipe(path: Path | str, overrides: Sequence[str] = (), registry: Registry | None = None) -> Recipe:
    """Read and check a recipe, without importing anything heavy. Raises RecipeError with every problem found."""
    return build(load_document(Path(path), overrides), registry if registry is not None else plugins().registry)


def made_recipe(data: Mapping[str, Any], name: str, overrides: Sequence[str], registry: Registry) -> Recipe:
    """Check a recipe that a command made. name: of the command, in errors. Relative paths start at the current folder.

    Raises RecipeError with every problem found.
    """
    return build(parse_document(dump(data), Path(name), overrides), registry)


def _mapping(value: Any) -> dict[str, Any]:
    """The value, or an empty mapping instead of anything else, which is a mistake elsewhere."""
    return value if isinstance(value, dict) else {}


def build(document: Document, registry: Registry) -> Recipe:
    """Return the recipe of a document. Raises RecipeError with every problem found."""
    return _Recipe(document, registry).read()


class _Recipe:
    """A recipe while it is read. mistakes: with their places in the document, in which blocks are expanded."""

    def __init__(self, source: Document, registry: Registry):
        self.document = expand(source)
        self.data = self.document.root.plain()
        self.mistakes: list[Mistake] = []
        self.reading = Reading(registry, source.path.parent)

    def add(self, mistakes: Iterable[Mistake], *keys: str | int) -> None:
        """Add mistakes of the value at a place."""
        self.mistakes += [mistake.below(*keys) for mistake in mistakes]

    @contextmanager
    def at(self, *keys: str | int) -> Iterator[None]:
        """Keep the mistakes that a block raises for the value at a place."""
        try:
            yield
        except Mistakes as error:
            self.add(error.mistakes, *keys)

    def raise_all(self) -> None:
        """Raise RecipeError if anything is wrong, in the order of the file."""
        problems = [*self.document.problems, *self.reading.problems, *problems_of(self.document, self.mistakes)]
        if problems:
            raise RecipeError(sorted(problems, key=lambda problem: (problem.file, problem.line, problem.column)))

    def read(self) -> Recipe:
        """Return the recipe. Raises RecipeError with every problem found."""
        top, mistakes = validated(TopKeys, self.data, self.reading)
        self.add(mistakes)
        stages = self.reading.stages
        for name, raw in _mapping(self.data.get("stages")).items():
            stages[name] = Stage(name, _mapping(raw))
        for stage in stages.values():
            with self.at("stages", stage.name):
                self._find_plugin(stage)
        for stage in stages.values():
            self.reading.stage = stage
            if stage.kind == "step":
                self._read_step(stage)
            else:
                self._read_training(stage)
        if top is not None:
            self.add(broken(MODEL, top.model), "model")
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
                self.add([mistake])
        self.raise_all()
        path = self.document.path
        name = top.name or re.sub(r"[^A-Za-z0-9._-]", "-", path.stem)
        resolved = {**({} if top.name else {"name": name}), **self._portable(self.data)}
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
            resolved=resolved,
        )

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

    def _find_plugin(self, stage: Stage) -> None:
        """Find a stage's kind and plugin, which other stages may name before its keys are read."""
        kinds = [kind for kind in _KINDS if stage.written.get(kind) is not None]
        if len(kinds) != 1:
            near = next(filter(None, (did_you_mean(key, _KINDS) for key in stage.written if not kinds)), "")
            help = near or "write '{algorithm: NAME, ...}' or '{step: NAME, ...}'"
            raise wrong(f"stage '{stage.name}' needs 'algorithm' or 'step', and not both", help, at_key=True)
        (stage.kind,) = kinds
        with self.at("stages", stage.name, stage.kind):
            if stage.kind == "step" and isinstance(stage.written["step"], dict):
                raise wrong("expected the name of a step", "write its options next to 'step: NAME'")
            _, stage.registration, _ = self.reading.plugin(stage.kind, stage.written[stage.kind])

    def _read_step(self, stage: Stage) -> None:
        """Read a step. Its options are next to `step: NAME`."""
        if stage.registration is None:
            return
        keys = ("stages", stage.name)
        options = {key: value for key, value in stage.written.items() if key not in (*_KINDS, "engine")}
        with self.at(*keys, "engine"):
            if stage.written.get("engine") is not None:
                stage.engine = self.reading.resolve("engine", stage.written["engine"])
        try:
            stage.component = self.reading.component("step", {stage.written["step"]: options})
            mistakes = [*data_mistakes(stage.component)]
        except Mistakes as error:
            mistakes = [*error.mistakes]
        self.add((replace(mistake, keys=mistake.keys[1:]) for mistake in mistakes), *keys)

    def _read_training(self, stage: Stage) -> None:
        keys, hints = ("stages", stage.name), {}
        stage.written = {key: value for key, value in stage.written.items() if value is not None}
        settings_keys = {key: value for key, value in stage.written.items() if key not in _KINDS}
        if stage.registration is not None:
            with self.at(*keys, "algorithm"):
                stage.component = self.reading.component("algorithm", stage.written["algorithm"])
                self._ask_algorithm(stage)
            self.add(key_mistakes(stage), *keys)
            settings_keys = with_defaults(settings_keys, stage.plugin.defaults)
            name = stage.registration.name
            hints = {
                option: f"it is an option of {name}: write 'algorithm: {{{name}: {{{option}: ...}}}}'"
                for option in allowed_keys(options_of(stage.registration))
            }
        settings, mistakes = validated(Settings, settings_keys, self.reading, hints)
        self.add(mistakes, *keys)
        without = {mistake.keys[0] for mistake in mistakes if mistake.keys}
        if settings is None:  # what does not go together in the keys that are right
            right = {key: value for key, value in settings_keys.items() if key not in without}
            settings, _ = validated(Settings, right, self.reading)
        if settings is None or stage.registration is None:
            return
        settings._optimizer_defaults = dict(stage.plugin.defaults.optimizer)
        stage.settings, stage.engine = settings, settings.engine
        self.add(stage_mistakes(stage, without), *keys)
        self.add([*data_mistakes(settings), *data_mistakes({"algorithm": stage.component})], *keys)

    def _ask_algorithm(self, stage: Stage) -> None:
        try:
            plugin = create(stage.component)
            with blame(plugin, "needs"):
                stage.needs, stage.log_odds, stage.chooses = plugin.needs, bool(plugin.log_odds), bool(plugin.chooses)
        except PluginError as error:
            raise wrong(str(error)) from None

    def _ordered(self) -> dict[str, Stage]:
        """The stages in the declared order, except that each follows its upstream stages. Raises for a cycle."""
        ordered: dict[str, Stage] = {}

        def follow(name: str, chain: Collection[str]) -> None:
            if name in chain:
                message = f"stages depend on each other in a cycle: {' -> '.join((*chain, name))}"
                self.add([Mistake(message, "remove one of these references", ("stages", name), at_key=True)])
                self.raise_all()
            for upstream in self.reading.stages[name].upstream:
                if upstream not in ordered:
                    follow(upstream, (*chain, name))
            ordered[name] = self.reading.stages[name]

        for name in self.reading.stages:
            if name not in ordered:
                follow(name, ())
        return ordered


def with_defaults(written: Mapping[str, Any], defaults: StageDefaults) -> dict[str, Any]:
    """Return a stage's keys with the algorithm's own defaults for those that it does not set."""
    filled, rollout = dict(written), written.get("rollout", {})
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


# --- sampling options that steps and rewards leave out are those of stages that train


def _samples(stage: Stage) -> bool:
    """Whether a stage samples: rollouts, or what the options of its plugins say. An engine is part of its hash."""
    if stage.online:
        return True
    parts = [stage.component, *specs([stage.settings, stage.component.options], Component)]
    return any(part.options.asks_engine() for part in parts)


def fill_sampling(stages: Mapping[str, Stage]) -> None:
    """Fill the options of all stages, before anything depends on them: they are part of the stages' hashes."""
    rollouts = {
        name: {key: getattr(stage.rollout, key) for key in KEYS} for name, stage in stages.items() if stage.online
    }
    for stage in stages.values():
        options, values = stage.component.options, rollouts.get(stage.name)
        if isinstance(options, SamplingOptions):
            policies = [reference.partition("@")[0] for reference in options.policies_to_sample()]
            if policies and rollouts:
                options.follow(next(rollouts[name] for name in (*policies, *rollouts) if name in rollouts))
            values = options.sampled()
        if values is None:
            continue
        for spec in specs([stage.settings, options], RewardSpec):
            if spec.component is not None and isinstance(spec.component.options, SamplingOptions):
                spec.component.options.follow(values)


NO_REFERENCES = ("algorithm", "step", "objective", "name", "description")  # keys whose texts name no stage
# Name in a block -> what it means before its first round, or nothing, and then its stages of all rounds so far.
Rounds = dict[str, list[str]]


def expand(document: Document) -> Document:
    """The document with every block replaced by the stages of its rounds."""
    stages = document.root.value.get("stages")
    if stages is None or not isinstance(stages.value, dict):
        return document
    result, rounds = Node({}, stages.mark), Rounds()
    for name, node in stages.value.items():
        if not _is_block(node):
            result.set(name, _rewritten(node, rounds, document), stages.keys[name])
        elif block := _block(document, name):
            inner = node.value["stages"]
            firsts = {stage: block.start.get(stage, "") for stage in block.stages}
            rounds |= {stage: rounds.get(first, [first])[-1:] for stage, first in firsts.items()}
            for number in range(1, block.repeat + 1):
                for stage in block.stages:
                    new = f"{stage}_{number}"
                    result.set(new, _rewritten(inner.value[stage], rounds, document), inner.keys[stage])
                    rounds[stage].append(new)
    root = Node({**document.root.value, "stages": result}, document.root.mark, document.root.keys)
    return replace(document, root=root)


def _is_block(node: Node) -> bool:
    return isinstance(node.value, dict) and "repeat" in node.value and not {"algorithm", "step"} & node.value.keys()


def _block(document: Document, name: str) -> BlockKeys | None:
    """The keys of a block; None if they are wrong. The keys of its stages are read later, like all others."""
    stages = document.root.value["stages"].value
    raw = {key: value for key, value in stages[name].plain().items() if value is not None}
    block, mistakes = validated(BlockKeys, raw)
    if block is not None:
        for stage in block.stages:
            if taken := stages.keys() & {stage, *(f"{stage}_{number}" for number in range(1, block.repeat + 1))}:
                message = f"stage '{min(taken)}' is defined twice: a block has '{stage}', '{stage}_1' ..."
                mistakes.append(Mistake(message, "rename one of the two", ("stages", stage), at_key=True))
        for stage in block.start.keys() - block.stages.keys():
            help = did_you_mean(stage, block.stages) or f"stages of the block: {', '.join(block.stages)}"
            mistakes.append(Mistake(f"start: '{stage}' is not a stage of this block", help, ("start", stage), True))
    document.problems += problems_of(document, [mistake.below("stages", name) for mistake in mistakes])
    return block


def _rewritten(node: Node, rounds: Rounds, document: Document) -> Node:
    """A copy of the node with the stages that its names mean: `NAME`, `NAME@VERSION`, and a list for `NAME@all`."""
    result = deepcopy(node)
    for keys, inner in result.walk(("stages",)):
        if isinstance(inner.value, list):
            inner.value = list(chain.from_iterable(_all(child, rounds) for child in inner.value))
            continue
        name, at, version = str(inner.value).partition("@")
        if name not in rounds or keys[-1] in NO_REFERENCES:
            continue
        meant = rounds[name][-1]
        if version == "all":
            inner.value = _all(inner, rounds)
        elif meant:
            inner.value = f"{meant}{at}{version}"
        else:
            help = f"add 'start: {{{name}: STAGE}}' next to 'repeat' to say what '{name}' means in round 1"
            document.problems.append(inner.mark.problem(f"'{name}' does not exist yet in round 1", help))
            inner.value = None
    return result


def _all(node: Node, rounds: Rounds) -> list[Node]:
    """The stages that `NAME@all` means, or the node itself."""
    name, _, version = str(node.value).partition("@")
    if version != "all" or name not in rounds:
        return [node]
    return [Node(stage, node.mark) for stage in rounds[name][1:]]

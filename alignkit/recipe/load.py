"""Loads a recipe: reads its files, applies overrides, and turns them into a Recipe.

Everything is checked before anything heavy is imported, and all problems are reported.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from alignkit.algorithm import Source
from alignkit.errors import Problem
from alignkit.io.credentials import places_of_keys, redacted
from alignkit.plugins import plugins
from alignkit.recipe.advice import common_name
from alignkit.recipe.bases import base_names, check_bases, read_base, read_bases, read_model
from alignkit.recipe.components import options_of, read_component, read_named
from alignkit.recipe.constitutions import read_constitution
from alignkit.recipe.data_sources import read_data
from alignkit.recipe.document import Document, dump, load_document, parse_document
from alignkit.recipe.paths import Paths
from alignkit.recipe.problems import Problems
from alignkit.recipe.rewards import read_reward
from alignkit.recipe.rounds import MOST_STAGES, expand
from alignkit.recipe.sampling_keys import fill_engines, fill_sampling, read_engine
from alignkit.recipe.schema import BASE, Recipe, Stage, TopKeys, allowed_keys
from alignkit.recipe.scope import Resolver, Scope
from alignkit.recipe.stages import declare, read_stages
from alignkit.recipe.trackers import read_trackers
from alignkit.recipe.validation import validate
from alignkit.recipe.weights import read_policy, read_stage, read_start
from alignkit.registry import Registry
from alignkit.settings import Settings

# Kind of a reference -> the function that reads it.
RESOLVERS: Mapping[str, Resolver] = {
    "stage": read_stage,
    "policy": read_policy,
    "from": read_start,
    "base": read_base,
    "data": read_data,
    "reward": read_reward,
    **{kind: partial(read_component, kind) for kind in ("judge", "filter", "monitor", "environment")},
    "engine": read_engine,
    **{kind: partial(read_named, kind) for kind in ("optimizer", "schedule")},
    "constitution": read_constitution,
}


def load_recipe(path: Path | str, overrides: Sequence[str] = (), registry: Registry | None = None) -> Recipe:
    """Read and check a recipe, without importing anything heavy. Raises RecipeError with every problem found."""
    wrong: list[Problem] = []
    document = load_document(Path(path), overrides, wrong)
    return build(document, registry if registry is not None else plugins().registry, wrong)


def made_recipe(data: Mapping[str, Any], name: str, overrides: Sequence[str], registry: Registry) -> Recipe:
    """Check a recipe that a command made. name: of the command, in errors. Relative paths start at the current folder.

    Raises RecipeError with every problem found.
    """
    wrong: list[Problem] = []
    return build(parse_document(dump(data), Path(name), overrides, wrong), registry, wrong)


def build(document: Document, registry: Registry, wrong: Sequence[Problem] = ()) -> Recipe:
    """Return the recipe of a document. Raises RecipeError with every problem found. wrong: those found before."""
    rounds, problems = expand(document)
    problems.items += wrong
    data = problems.document.data
    bases = base_names(data.get("bases"))
    scope = Scope(problems, Paths(problems), registry, rounds, RESOLVERS, bases=bases)
    if isinstance(data.get("stages"), dict) and len(data["stages"]) > MOST_STAGES:
        problems.error(("stages",), f"{len(data['stages'])} stages; the most is {MOST_STAGES}")
        raise problems.as_error()
    top = validate(TopKeys, data, (), problems, hint=lambda key: _option_hint(key, document.data, registry)).value
    stages = _build_stages(data.get("stages"), scope)
    trackers = read_trackers(data.get("trackers"), scope)
    model = read_model(data["model"], scope) if "model" in data else None
    others = read_bases(data.get("bases"), scope)
    engine = read_engine(data["engine"], ("engine",), scope) if data.get("engine") is not None else None
    if top is None or model is None:
        raise problems.as_error(scope.sources)
    if not len(problems):
        fill_engines(stages, engine, {BASE: model, **others}, problems)
        _refuse_keys(document, problems)  # last: a judge or a tracker says more about a key in its options
    name = top.name or re.sub(r"[^A-Za-z0-9._-]", "-", document.path.stem)
    recipe = Recipe(
        name=name,
        path=document.path,
        folder=document.path.parent.resolve(),
        seed=top.seed,
        description=top.description,
        model=model,
        stages=stages,
        trackers=trackers,
        bases=others,
        document=problems.document,
        # Blocks are not expanded here, so that users can edit the copy in the run's folder.
        resolved={**({} if top.name else {"name": name}), **scope.paths.portable(document.data)},
    )
    if len(problems):
        raise problems.as_error(scope.sources, recipe)
    return recipe


def _option_hint(key: str, data: Mapping[str, Any], registry: Registry) -> str:
    """Help for an algorithm's option at the top level: its full path. Also for `algorithm: {OPTION: ...}`."""
    written = data.get(key) if key == "algorithm" else {key: None}
    paths = []
    stages = data["stages"] if isinstance(data.get("stages"), dict) else {}
    if key in stages:
        return f"'{key}' is a stage: write stages.{key}.KEY"
    if key in allowed_keys(Settings) and stages:
        keys = " or stages.".join(f"{name}.{key}" for name in [*stages][:3])
        return f"'{key}' belongs in a stage: write stages.{keys}"
    for stage, content in stages.items():
        named = content.get("algorithm") if isinstance(content, dict) else None
        for name in [named] if isinstance(named, str) else named if isinstance(named, dict) else ():
            if registry.has("algorithm", name):
                options = allowed_keys(options_of(registry.get("algorithm", name)))
                found = [common_name(option) for option in written if common_name(option) in options] if written else []
                paths += [f"stages.{stage}.algorithm.{name}.{option}" for option in found]
    return f"write {' or '.join(paths[:3])}" if paths else ""


def _refuse_keys(document: Document, problems: Problems) -> None:
    """The run's folder keeps the recipe, and shows its name."""
    for place in places_of_keys(document.data):
        message = f"'{redacted(place)}' seems to hold a key, which the run's folder would keep"
        keys = tuple(int(key) if key.isdecimal() else key for key in place.split("."))
        help = "leave it out, and let the program that needs it read an environment variable"
        problems.error(keys, message, help=help)


def _build_stages(raw: Any, scope: Scope) -> dict[str, Stage]:
    """Return the stages without problems, in an order in which they can run."""
    if not isinstance(raw, dict):
        return {}
    declare(raw, scope)
    stages, upstream = read_stages(raw, scope)
    _check_versions(stages, scope)
    check_bases(stages, scope)
    ordered = {name: stages[name] for name in _ordered(upstream, scope) if name in stages}
    fill_sampling(ordered)
    return ordered


# --- versions


def _check_versions(stages: Mapping[str, Stage], scope: Scope) -> None:
    """Check that the stage of every `stage@k` keeps its versions, and has at least k of them."""
    for keys, reference in scope.versions:
        name, _, version = reference.partition("@")
        declared = scope.declared.get(name)
        if declared is None:
            continue
        if declared.kind == "step":
            scope.problems.error(keys, f"'{reference}': stage '{name}' is a step and has no versions")
            continue
        unit = "iterations" if declared.registration.implementation.source is Source.ROLLOUTS else "epochs"
        kept, count = _versions_of(name, unit, stages.get(name), scope)
        if not kept:
            message = f"'{reference}': stage '{name}' keeps only its last version"
            scope.problems.error(keys, message, help=f"add 'keep_versions: true' to stage '{name}'")
        elif count is not None and int(version) > count:
            scope.problems.error(keys, f"'{reference}': stage '{name}' has only {count} {unit}")
        elif (stage := stages.get(name)) is not None and stage.settings is not None and stage.settings.stop is not None:
            message = f"'{reference}': stage '{name}' may stop before its iteration {version}"
            scope.problems.error(keys, message, help="name the stage without a version, or leave its 'stop' out")


def _versions_of(name: str, unit: str, stage: Stage | None, scope: Scope) -> tuple[bool, int | None]:
    """Return whether a stage keeps its versions, and how many (None if a problem makes that unknown)."""
    if stage is not None and stage.settings is not None:
        return stage.settings.keep_versions, getattr(stage.settings, unit)
    raw = scope.problems.document.data["stages"][name]
    misspelled = difflib.get_close_matches("keep_versions", [key for key in raw if key != "keep_versions"], 1, 0.8)
    count = raw.get(unit)
    known = isinstance(count, int) and not isinstance(count, bool) and count > 0
    return raw.get("keep_versions") not in (None, False) or bool(misspelled), count if known else None


# --- order


def _ordered(upstream: Mapping[str, Sequence[str]], scope: Scope) -> list[str]:
    """Return the stages in the declared order, except that each follows its upstream stages. Reports a cycle."""
    sorter, done = TopologicalSorter(upstream), list[str]()
    try:
        sorter.prepare()
    except CycleError as error:
        cycle = error.args[1][::-1]  # each stage, and then one that it waits for
        message = f"stages depend on each other in a cycle: {' -> '.join(cycle)}"
        scope.problems.error(("stages", cycle[0]), message, at_key=True, help="remove one of these references")
        return list(upstream)
    ready = set(sorter.get_ready())
    while ready:
        done.append(next(name for name in upstream if name in ready))
        sorter.done(done[-1])
        ready = ready - {done[-1]} | set(sorter.get_ready())
    return done

"""Checks that need no weights: models, rewards, judges and data of every stage, before the first one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.calls import call, create
from alignkit.data.sources import DataSpec, Loaded
from alignkit.engine import Engine
from alignkit.environment import Environment
from alignkit.errors import AlignkitError, DataError, PluginError, Problem, RecipeError, RunFailed
from alignkit.external import ExternalTrainer
from alignkit.io.lookup import is_dir, is_file, resolved
from alignkit.io.results import read_record, stage_folder
from alignkit.plugins import source_of
from alignkit.recipe.load import tracker_problem
from alignkit.recipe.schema import BASE, Recipe, RewardSpec, Stage, specs
from alignkit.recipe.yaml import Keys
from alignkit.registry import Component
from alignkit.reward import Judge, Reward, RewardCombination
from alignkit.runs.data import RunData
from alignkit.runs.fingerprint import template_of, template_parts
from alignkit.runs.stage_check import FIRST_ROWS, check_stage_data, check_step_data, check_template

if TYPE_CHECKING:
    from alignkit.models.adapters import Base
    from alignkit.runs.bases import RunBase, RunBases
    from alignkit.settings import LoraSpec, ModelSpec
    from alignkit.tokens.encoder import Encoder


def check_components(recipe: Recipe, stages: Sequence[Stage], *, run_code: bool = True, machine: bool = True) -> None:
    """Let algorithms, steps, rewards, combinations, judges, engines and environments check what they can.

    run_code: whether to run code that the recipe names. machine: whether this machine must have what they need.
    Raises RecipeError with every problem, or DataError if all of them are in files.
    """
    problems: list[Problem] = []
    only_data = True
    for stage in stages:
        for check in _checks(recipe, stage, run_code, machine):
            try:
                check()
            except PluginError:
                raise
            except AlignkitError as error:
                is_data = isinstance(error, DataError)  # whose text names the stage already
                problem = _problem(recipe, stage, f"{error}" if is_data else f"stage '{stage.name}': {error}")
                problems += [problem] if problem not in problems else []
                only_data = only_data and is_data
    if problems:
        every = RecipeError(problems)
        raise DataError(str(every)) if only_data else every


def _checks(recipe: Recipe, stage: Stage, run_code: bool, machine: bool) -> Iterable[Callable[[], None]]:
    kind = stage.component.registration.implementation
    if isinstance(kind, type) and issubclass(kind, ExternalTrainer):
        yield partial(_call, stage.component, stage, "check_model", recipe.base(stage.base))
    yield partial(_call, stage.component, stage, "check", recipe.folder)
    yield partial(_check_optimizer, stage)
    for component in specs([stage.settings, stage.component.options, stage.engine], Component):
        plugin = component.registration.implementation
        if not isinstance(plugin, type):  # a function, which was tried when the recipe was read
            continue
        if issubclass(plugin, Environment | Reward) and plugin.runs_code and not run_code:
            yield partial(_call, component, stage, "check_source", recipe.folder)
        elif issubclass(plugin, Judge | Environment | Engine | Reward | RewardCombination):
            yield partial(_call, component, stage, "check", recipe.folder)
        if issubclass(plugin, Environment) and (run_code or not plugin.runs_code) and _asks_for_rewards(stage):
            yield partial(_check_reward, component, stage, recipe.folder)
        if issubclass(plugin, Reward) and machine:
            yield partial(_call, component, stage, "check_machine")


def _check_optimizer(stage: Stage) -> None:
    """Try the schedule and the optimizer, unless they are alignkit's own."""
    settings = stage.settings
    if settings is None or (isinstance(settings.optimizer, str) and isinstance(settings.lr_scheduler_type, str)):
        return
    from alignkit.optimizers import why_unusable  # it imports torch

    for _, why in why_unusable(settings):
        raise RunFailed(why)


def _asks_for_rewards(stage: Stage) -> bool:
    rewards = specs([stage.settings and stage.settings.reward, stage.settings and stage.settings.gold], Component)
    return any(getattr(each.registration.implementation, "of_episodes", False) for each in rewards)


def _check_reward(component: Component, stage: Stage, folder: Path) -> None:
    environment = create(component, stage.name)
    environment.folder = folder
    call(environment, "check_reward")


def _problem(recipe: Recipe, stage: Stage, text: str, option: Keys = ()) -> Problem:
    """A problem at a stage's name, or at one of its options. text: may end with a line that begins with `help: `."""
    keys, (message, _, help) = recipe.option(stage.name, option), text.partition("\nhelp: ")
    return recipe.problem(keys, message, at_key=len(keys) == 2, help=help)


def _call(component: Component, stage: Stage, method: str, *arguments: Any) -> None:
    call(create(component, stage.name), method, *arguments)


def check_trackers(recipe: Recipe) -> None:
    """Let trackers check their packages. Raises RecipeError with every problem."""
    problems = []
    for index, component in enumerate(recipe.trackers):
        try:
            call(create(component), "check")
        except RunFailed as error:
            problems.append(tracker_problem(recipe, index, str(error)))
    if problems:
        raise RecipeError(problems)


def check_folders(recipe: Recipe, stages: Sequence[Stage], bases: RunBases) -> None:
    """Find out whether the weights of other runs fit their base models. Raises RecipeError with every problem."""
    problems: dict[str, Problem] = {}
    for stage in stages:
        for folder in stage.folders:
            starts_here = stage.settings is not None and stage.settings.from_ == folder
            name = stage.base if starts_here else bases.base_of(folder) or bases.needed(stage)[0]
            if text := _unfit(starts_here, Path(folder), bases[name].origin, recipe.base(name).lora):
                other = bases.base_of(folder) if len(bases) > 1 else None
                fits = f"it is for '{other}': set 'base: {other}' in the stage"
                help = fits if other not in (None, name, BASE) else ""
                problems[text] = _at_folder(recipe, stage, folder, text, help)
        for spec in specs([stage.settings, stage.component.options], RewardSpec):
            if spec.kind != "folder":
                continue
            if text := _unfit_reward(Path(spec.name), bases):
                inner = Path(spec.name) / "adapter"
                help = f"the reward model is in {inner}" if inner.is_dir() else _ADD
                problems[text] = _at_folder(recipe, stage, spec.name, text, help)
            elif theirs := _other_template(Path(spec.name), recipe, bases):
                text = f"the reward model {spec.name} was trained on texts of another chat template: {theirs}"
                help = "score with its own: give a base model of this recipe, or of 'bases', the same 'chat_template'"
                problems[text] = _at_folder(recipe, stage, spec.name, text, help)
    if problems:
        raise RecipeError(problems.values())


def check_local_folders(recipe: Recipe) -> None:
    """Find adapters for other base models, as far as it shows without making or downloading one. Raises RecipeError."""
    problems: dict[str, Problem] = {}
    for stage in recipe.stages.values():
        for folder in stage.folders:
            if not is_file(Path(folder) / "adapter_config.json"):
                continue
            from alignkit.models.adapters import base_name  # imports torch

            names = (BASE, *recipe.bases)
            if not any(_may_fit(recipe.base(name), Path(folder)) for name in names):
                ours = ", ".join(f"'{recipe.base(name).base}'" for name in names)
                text = f"{folder} is an adapter for the base model '{base_name(Path(folder))}', not for {ours}"
                problems[text] = _at_folder(recipe, stage, folder, text, "" if recipe.bases else _ADD)
    if problems:
        raise RecipeError(problems.values())


def _may_fit(spec: ModelSpec, folder: Path) -> bool:
    from alignkit.models.adapters import Base, base_name

    name, ours = base_name(folder), source_of(spec.base)[0]
    if name == spec.base or (not is_dir(spec.base) and ours):
        return source_of(name)[0] in ("", ours)
    base = Base(spec.base, spec.base, spec.revision)
    return base.weights is None or base.fits(folder)


_ADD = "add its base model to the recipe: 'bases: {NAME: {base: ...}}'"


def _at_folder(recipe: Recipe, stage: Stage, folder: str, text: str, help: str) -> Problem:
    """A problem where a stage names a folder."""
    keys: Keys = ("stages", stage.name)
    named = keys
    if recipe.document is not None:
        for place, node in recipe.document.find(keys)[1].walk(keys):
            if isinstance(node.value, str) and resolved(recipe.folder / node.value) == resolved(Path(folder)):
                named = place
    return recipe.problem(named, f"stage '{stage.name}': {text}", at_key=named == keys, help=help)


def _unfit_reward(folder: Path, bases: RunBases) -> str:
    """Why an adapter cannot be a reward; empty if it can, and for a whole model, which needs no base model."""
    from alignkit.models.adapters import base_name, is_adapter  # imports torch

    try:
        if not is_adapter(folder):
            return f"{folder} holds no model" if (folder / "adapter").is_dir() else ""
        if fitting := [base for base in bases.values() if base.origin.fits(folder)]:
            return _other_scale(folder, fitting)
        known = ", ".join(f"'{base.spec.base}'" for base in bases.values())
        return f"{folder} is an adapter for the base model '{base_name(folder)}', not for {known}"
    except RunFailed as error:
        return str(error)


def _other_template(folder: Path, recipe: Recipe, bases: RunBases) -> str:
    """The template that a reward model of another run knows; empty if a base model that it fits has the same."""
    parts = read_record(stage_folder(folder)).get("depends_on") or {}
    if not parts.get("model"):
        return ""
    ours = [template_parts(recipe, base.spec) for base in bases.values() if base.origin.fits(folder)]
    theirs = template_of(parts)
    return "" if not ours or theirs in ours else str(theirs["chat_template"] or "that of its base model")


def _other_scale(folder: Path, bases: Sequence[RunBase]) -> str:
    """Why an adapter's scale is that of none of its base models; empty if it is that of one."""
    text = ""
    for base in bases:
        try:
            base.check_scale(folder)
            return ""
        except RunFailed as error:
            text = str(error)
    return text


def _unfit(starts_here: bool, folder: Path, base: Base, lora: LoraSpec | None) -> str:
    """Why a stage cannot use the weights in a folder; empty if it can. starts_here: whether it starts from them."""
    from alignkit.models.adapters import check_computes
    from alignkit.models.loading import has_score

    try:
        is_adapter = base.has_adapter(folder)
        if lora is None and not is_adapter:
            base.check_vocabulary(folder)
        elif lora is not None and is_adapter:
            check_computes(folder, lora.model_dump(include={"r", "lora_alpha", "use_rslora"}))
        elif lora is not None:
            return f"{folder} holds a whole model, but with model.lora every policy is an adapter on model.base"
    except RunFailed as error:
        return str(error)
    if not starts_here and has_score(folder):
        return f"{folder} holds a reward model, but a policy is needed"
    return ""


def check_data(
    recipe: Recipe,
    stages: Sequence[Stage],
    load: Callable[[Stage, DataSpec], Loaded],
    encoder: Callable[[Stage], Encoder | None],
    probe: Callable[[DataSpec], None] = lambda spec: None,
    say: Callable[[str], None] = lambda text: None,
    *,
    run_code: bool = True,
    rows: int | None = FIRST_ROWS,
) -> None:
    """Read every data file of these stages, and find out what their algorithms would say of it.

    encoder: tokenizes as a stage will; None if the base model is not here yet. probe: reads the start of sources on
    the hub. say: prints a line. run_code: whether to run code that the recipe names. rows: of each
    source that the chat template renders; None: all. Raises DataError with the mistakes of all stages.
    """
    problems: dict[str, None] = {}  # an ordered set: stages share files
    for stage in stages:
        read: list[tuple[DataSpec, Loaded]] = []
        for warning in weak_models(stage):
            say(f"{stage.name}: {warning}")
        for spec in specs([stage.settings, stage.component.options], DataSpec):
            with _gathering(problems, recipe, stage):
                whole = _loaded(stage, spec, load)
                if whole is not None:
                    read.append((spec, whole))
                    check_stage_data(
                        recipe, stage, spec, whole, partial(encoder, stage), say, run_code=run_code, rows=rows
                    )
                probe(spec)
        if stage.kind == "step":
            with _gathering(problems, recipe, stage):
                check_step_data(recipe, stage, read, say, run_code=run_code)
    if problems:
        raise DataError("\n\n".join(problems))


def check_templates(recipe: Recipe, stages: Sequence[Stage], encoder: Callable[[Stage], Encoder]) -> None:
    """Find out whether chat templates fit the environments of stages. Raises RecipeError with every problem."""
    problems = []
    for stage in stages:
        try:
            check_template(recipe, stage, partial(encoder, stage))
        except RunFailed as error:
            problems.append(_problem(recipe, stage, str(error), ("environment",)))
    if problems:
        raise RecipeError(problems)


WEAK = 0.6  # accuracy on validation pairs; 0.5 is chance


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


@contextmanager
def _gathering(problems: dict[str, None], recipe: Recipe, stage: Stage) -> Iterator[None]:
    """Gather a DataError instead of raising it. Bad rows have a place in their file, other mistakes in the recipe."""
    try:
        yield
    except DataError as error:
        text = str(error) if error.option is None else str(_problem(recipe, stage, str(error), error.option))
        problems[text] = None


def _loaded(stage: Stage, spec: DataSpec, load: Callable[[Stage, DataSpec], Loaded]) -> Loaded | None:
    """Read the files of an entry; None if a stage or the hub has the rest."""
    files = tuple(source for source in spec.sources if source.path is not None)
    if len(files) == len(spec.sources):
        return load(stage, spec)
    if files:
        load(stage, DataSpec(files))
    return None


def probe_hub(data: RunData, spec: DataSpec) -> None:
    """Read one row of every source on the hub. Raises DataError if `datasets` cannot load one."""
    for source in spec.sources:
        if source.hub is not None:
            data.read(DataSpec((replace(source, limit=1, validation=0.0, part=None, group=None, weight=None),)))

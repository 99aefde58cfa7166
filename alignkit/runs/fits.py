"""Whether weights, chat templates and tokenizers fit the base models of a recipe, found out without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.errors import Problem, RunFailed
from alignkit.io.commits import cached_snapshot
from alignkit.io.lookup import is_dir, is_file, resolved
from alignkit.io.results import read_record, stage_folder
from alignkit.plugins import source_of
from alignkit.recipe.rules import base_of
from alignkit.recipe.schema import BASE, Recipe, RewardSpec, Stage, specs
from alignkit.recipe.yaml import Keys
from alignkit.runs.fingerprint import template_of, template_parts

if TYPE_CHECKING:
    from alignkit.runs.bases import RunBase, RunBases
    from alignkit.settings import ModelSpec
    from alignkit.tokens.encoder import Encoder

_ADD = "add its base model to the recipe: 'bases: {NAME: {base: ...}}'"


def misfits(recipe: Recipe, stages: Sequence[Stage], bases: RunBases) -> Iterable[Problem]:
    """Weights of other runs that do not fit their base models."""
    problems: dict[str, Problem] = {}
    for stage in stages:
        for folder in stage.folders:
            starts_here = stage.settings is not None and stage.settings.from_ == folder
            name = stage.base if starts_here else bases.base_of(folder) or bases.needed(stage)[0]
            if text := _unfit(starts_here, Path(folder), bases[name]):
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
    return problems.values()


def local_misfits(recipe: Recipe) -> Iterable[Problem]:
    """Adapters for other base models, as far as it shows without making or downloading one."""
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
    return problems.values()


def _may_fit(spec: ModelSpec, folder: Path) -> bool:
    from alignkit.models.adapters import Base, base_name

    name, ours = base_name(folder), source_of(spec.base)[0]
    if name == spec.base or (not is_dir(spec.base) and ours):
        return source_of(name)[0] in ("", ours)
    base = Base(spec.base, spec.base, spec.revision)
    return base.weights is None or base.fits(folder)


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
        if reasons := [base.misfit(folder) for base in bases.values() if base.origin.fits(folder)]:
            return "" if "" in reasons else reasons[0]
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


def _unfit(starts_here: bool, folder: Path, base: RunBase) -> str:
    """Why a stage cannot use the weights in a folder; empty if it can. starts_here: whether it starts from them."""
    from alignkit.models.adapters import is_adapter
    from alignkit.models.loading import has_score

    if base.spec.lora is not None and not is_adapter(folder):
        return f"{folder} holds a whole model, but with model.lora every policy is an adapter on model.base"
    if reason := base.misfit(folder):
        return reason
    if not starts_here and has_score(folder):
        return f"{folder} holds a reward model, but a policy is needed"
    return ""


# References and tokenizers


def other_tokenizers(
    recipe: Recipe, stages: Sequence[Stage], encoder: Callable[[str], Encoder | None]
) -> Iterator[Problem]:
    """References on another base model that would read other tokens than the policy writes.

    encoder: of a base model, by the recipe's name for it; None if it is not here yet.
    """
    for stage, reference, base in _elsewhere(recipe, stages):
        own, other = encoder(stage.base), encoder(base)
        if own is None or other is None or own.digest == other.digest:
            continue
        same = own.tokenizer.get_vocab() == other.tokenizer.get_vocab()
        what = "ends its turns with other tokens" if same else "has another tokenizer"
        message = (
            f"stage '{stage.name}': its reference '{reference}' is on {_named(recipe, base)}, which {what} than "
            f"{_named(recipe, stage.base)}: its log-probabilities of the policy's tokens would mean nothing"
        )
        help = (
            "give both base models the same 'chat_template'"
            if same
            else "name a reference whose base model has the same tokenizer, or let the policy learn its answers as "
            f"text: a step 'sample' with 'policy: {reference}', then a stage with 'algorithm: sft'"
        )
        yield recipe.problem(("stages", stage.name, "reference"), message, help=help)


def local_encoder(recipe: Recipe, name: str) -> Encoder | None:
    """What a base model of the recipe turns text into tokens with; None if its files are not on this machine."""
    if (folder := _local_folder(recipe, name)) is None:
        return None
    from alignkit.runs.bases import base_encoder

    return base_encoder(recipe, str(folder), name=name)


def _elsewhere(recipe: Recipe, stages: Sequence[Stage]) -> Iterator[tuple[Stage, str, str]]:
    """The stages whose reference is on another base model, with the reference and that base."""
    for stage in stages:
        reference = stage.settings.reference if stage.settings is not None else None
        base = base_of(reference, recipe.stages, (BASE, *recipe.bases)) if reference else None
        if reference and base and base != stage.base:
            yield stage, reference, base


def _local_folder(recipe: Recipe, name: str) -> Path | None:
    spec = recipe.base(name)
    if Path(spec.base).is_dir():
        return Path(spec.base)
    return None if source_of(spec.base)[0] else cached_snapshot(spec.base, spec.revision)


def _named(recipe: Recipe, base: str) -> str:
    """`base 'small' (tiny)`."""
    name = "'model'" if base == BASE else f"base '{base}'"
    return f"{name} ({recipe.base(base).base})"

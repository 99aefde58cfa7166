"""Whether a stage's reference on another base model has the policy's tokenizer, found out without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.errors import RecipeError
from alignkit.plugins import source_of
from alignkit.recipe.rules import bases_of
from alignkit.recipe.schema import BASE, Recipe, Stage

if TYPE_CHECKING:
    from alignkit.tokens.encoder import Encoder


def check_references(recipe: Recipe, stages: Sequence[Stage], encoder: Callable[[str], Encoder | None]) -> None:
    """Raise RecipeError for every stage whose reference would read other tokens than the policy writes.

    encoder: of a base model, by the recipe's name for it; None if it is not here yet.
    """
    problems = []
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
        problems.append(recipe.problem(("stages", stage.name, "reference"), message, help=help))
    if problems:
        raise RecipeError(problems)


def check_local_references(recipe: Recipe) -> None:
    """The same for base models whose files are on this machine. Downloads nothing, and makes no model."""
    if not any(_elsewhere(recipe, list(recipe.stages.values()))):
        return  # most recipes; reading tokenizers takes seconds
    check_references(recipe, list(recipe.stages.values()), partial(local_encoder, recipe))


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
        for base in bases_of(reference, recipe.stages, (BASE, *recipe.bases)) if reference else ():
            if base != stage.base:
                yield stage, reference or "", base


def _local_folder(recipe: Recipe, name: str) -> Path | None:
    from alignkit.models.loading import cached_snapshot

    spec = recipe.base(name)
    if Path(spec.base).is_dir():
        return Path(spec.base)
    return None if source_of(spec.base)[0] else cached_snapshot(spec.base, spec.revision)


def _named(recipe: Recipe, base: str) -> str:
    """`base 'small' (tiny)`."""
    name = "'model'" if base == BASE else f"base '{base}'"
    return f"{name} ({recipe.base(base).base})"

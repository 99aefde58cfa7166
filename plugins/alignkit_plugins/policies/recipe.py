"""Policies, rewards and judges of a command line as a recipe has them, and the recipe of `alignkit
evaluate`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from alignkit.commands import refuse
from alignkit.errors import RecipeError
from alignkit.io.text import is_dir, is_file, printable
from alignkit.options import DataRef, Options, RewardRef
from alignkit.plugins import plugins
from alignkit.recipe.mistakes import problems_of, validated
from alignkit.recipe.references import Reading
from alignkit.recipe.rules import MODEL, broken
from alignkit.recipe.schema import BASE, Recipe
from alignkit.recipe.yaml import Keys, dump, parse_document, plain_data, rewritten
from alignkit.registry import Registry
from alignkit.runs.bases import base_source
from alignkit.sampling import KEYS, Sampling
from alignkit.settings import EngineRef, ModelSpec
from alignkit_plugins.policies.named_models import NamedModel, in_run, is_model, named_model
from alignkit_plugins.policies.source import near_run

STAGE = "evaluate"
_OVERRIDE = re.compile(r"[\w-]+(\.[\w-]+)*=|~")
_PATHS = {"path", "folder", "file"}  # keys whose values are never models


@dataclass
class NamedModels:
    """Models that are named on the command line.

    spec: the keys of `model` in a recipe, which all adapters share. policies: what each word means.
    references: what a recipe calls each policy. rewards, judges: as options of a step. data: a file
    of prompts or answers, as in a recipe.
    """

    spec: dict[str, Any] = field(default_factory=dict)
    policies: dict[str, NamedModel] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    rewards: list[Any] = field(default_factory=list)
    judges: list[Any] = field(default_factory=list)
    data: Any = None

    def share(self, models: Sequence[NamedModel]) -> None:
        """Choose `model`: the base of the adapters, or else the first model."""
        models = [model for model in models if model.spec]
        adapters = [model for model in models if model.folder is not None]
        for model in (*adapters, *models):
            if not self.spec or (_same_base(self.spec, model.spec) and len(self.spec) == 1):
                self.spec = dict(model.spec)

    def reference(self, model: NamedModel) -> str:
        """What a recipe calls a model: `base`, or its folder. Raises RecipeError for an adapter on
        another base.
        """
        shared = _same_base(self.spec, model.spec)
        if model.folder is not None and not shared:
            text = (
                f"{model.label} is an adapter for the base model {model.spec['base']}, not for "
                f"{self.spec['base']}"
            )
            refuse(
                text,
                "make it a whole model: alignkit export RUN/STAGE --merge; then name the new "
                "folder",
            )
        if shared and len(model.spec) > 1:
            keys = {**self.spec, **model.spec}.keys() - {"lora"}
            if different := sorted(
                key for key in keys if self.spec.get(key) != model.spec.get(key)
            ):
                used = (
                    f"note: {model.label} is used with the {', '.join(different)} of the policy "
                    "before it"
                )
                print(printable(f"{used}, on the same base"), file=sys.stderr)
        if model.folder is not None:
            return str(model.folder)
        return BASE if shared else _whole_folder(model.spec)

    def value(self, value: Any) -> Any:
        """A reward or a judge, with models as a recipe names them."""

        def written(model: NamedModel) -> Any:
            if not model.reward:
                return self.reference(model)
            if model.spec:
                self.reference(model)
            return {"folder": str(model.folder)}

        return _with_models(value, written)


def _with_models(value: Any, change: Callable[[NamedModel], Any]) -> Any:
    """A reward or a judge, with something else in the place of each model that it names."""

    def changed(text: str, keys: Keys) -> Any:
        return change(named_model(text)) if _PATHS.isdisjoint(keys) and is_model(text) else text

    return rewritten(value, changed)


def _same_base(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return bool(one["base"] == other["base"] and one.get("revision") == other.get("revision"))


def _whole_folder(spec: Mapping[str, Any]) -> str:
    """The folder of a whole model, which may have to be fetched or made."""
    from huggingface_hub import snapshot_download

    from alignkit.models.loading import locate

    source = locate(base_source(spec["base"]), spec.get("revision"))
    return str(
        source if is_dir(source) else snapshot_download(source, revision=spec.get("revision"))
    )


def models_of(
    words: Sequence[str],
    rewards: Sequence[str] = (),
    judges: Sequence[str] = (),
    data: str | None = None,
) -> NamedModels:
    """What policies, rewards, judges and a file mean.

    Raises RecipeError for a word that means no model, and RunFailed for a damaged one.
    """
    named = NamedModels(data=None if data is None else _value(data))
    for word in words:
        model = named_model(word)
        if model.reward:
            refuse(
                f"{word} is a reward model, but a policy is needed",
                f"name it as a reward: --reward {word}",
            )
        named.policies[word] = model
    for word in rewards:
        _check_reward(word, words)
    read = [_value(word) for word in rewards], [_value(word) for word in judges]
    raters: list[NamedModel] = []
    _with_models([*read[0], *read[1]], raters.append)
    named.share([*named.policies.values(), *raters])
    for word, model in named.policies.items():
        reference = named.reference(model)
        if reference in named.references.values():
            refuse(f"{word} names a policy twice", "name each policy once")
        named.references[word] = reference
    named.rewards, named.judges = named.value(read[0]), named.value(read[1])
    return named


def names_of(policies: Mapping[str, NamedModel]) -> dict[str, str]:
    """The word of each policy by its name: RUN-STAGE, or the word itself if several have that
    name.
    """
    labels = [model.label for model in policies.values()]
    return {
        model.label if model.label and labels.count(model.label) == 1 else word: word
        for word, model in policies.items()
    }


def _check_reward(word: str, policies: Iterable[str]) -> None:
    """Refuse a policy, and a name that no reward has if it is almost that of a stage of the
    policies' runs.
    """
    if is_model(word):
        if not named_model(word).reward:
            refuse(
                f"{word} is a policy, but a reward is needed",
                "name a stage that trained a reward model",
            )
    elif re.fullmatch(r"[A-Za-z][\w-]*", word) and not plugins().has("reward", word):
        for policy in filter(in_run, policies):
            if near := near_run(Path(policy).parent / word):
                refuse(f"no reward '{word}'", near)


def rollout_of(policies: Iterable[NamedModel]) -> dict[str, Any]:
    """Sampling as in training, but for the temperature: that of the first policy that learned from
    its own samples.
    """
    rollout = next((policy.rollout for policy in policies if policy.rollout), {})
    return {
        key: rollout[key] for key in KEYS if rollout.get(key) is not None and key != "temperature"
    }


def recipe_of(
    named: NamedModels, prompts: str, baseline: str | None = None, limit: int | None = None
) -> Any:
    """The recipe of `alignkit evaluate` as plain data. baseline: one of the words."""
    keys = {
        "step": "evaluate",
        "policies": list(named.references.values()),
        "rewards": named.rewards,
        "judges": named.judges,
        "prompts": _value(prompts),
        "sampling": rollout_of(named.policies.values()),
        "baseline": None if baseline is None else named.references[baseline],
        "limit": limit,
    }
    step = {key: value for key, value in keys.items() if value}
    return {"name": STAGE, "model": named.spec, "stages": {STAGE: step}}


def without_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The policies among the words of a command, and the overrides."""
    policies = [
        word for word in words if is_file(word) or is_dir(word) or not _OVERRIDE.match(word)
    ]
    return policies, [word for word in words if word not in policies]


def read_models(
    named: NamedModels, command: str, overrides: Sequence[str], registry: Registry
) -> tuple[Recipe, Words]:
    """A recipe without stages, and what else was said. overrides: `KEY=VALUE`, as for a recipe.

    Raises RecipeError for a mistake in the words or in an override.
    """
    written = {
        "model": named.spec or {"base": "no-model-is-named"},
        "rewards": named.rewards,
        "data": named.data,
    }
    document = parse_document(dump(written), Path(command), overrides)
    path, data = document.path, document.data
    words, mistakes = validated(Words, data, Reading(registry, path.parent))
    if words is not None:
        mistakes += [mistake.below("model") for mistake in broken(MODEL, words.model)]
    problems = [*document.problems, *problems_of(document, mistakes)]
    if problems or words is None:
        raise RecipeError(problems)
    return Recipe(
        path.name, path, path.parent.resolve(), 0, "", words.model, {}, {}, (), document
    ), words


class Words(Options):
    """What the words of a command and its overrides may say. sampling: keys that replace those of
    `sampling_of`.
    """

    model: ModelSpec
    engine: EngineRef = None
    rewards: list[RewardRef]
    data: DataRef | None = None
    sampling: Sampling = Field(default_factory=Sampling)


def _value(text: str) -> Any:
    """A word of the command line as YAML."""
    return plain_data(text, f"'{text}'")

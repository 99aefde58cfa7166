"""Policies, rewards and judges of a command line as a recipe has them, and the recipe of `alignkit evaluate`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.commands import refuse
from alignkit.errors import RecipeError
from alignkit.io.text import is_dir, is_file, printable
from alignkit.options import Field, Options, RewardRef
from alignkit.plugins import plugins
from alignkit.recipe.mistakes import problems_of, validated
from alignkit.recipe.references import Reading
from alignkit.recipe.rules import MODEL, broken
from alignkit.recipe.schema import BASE, Recipe, RewardSpec, base_keys
from alignkit.recipe.yaml import dump, parse_document, plain_data
from alignkit.registry import Component, Registry
from alignkit.sampling import KEYS
from alignkit.settings import EngineRef, LoraSpec, ModelSpec
from alignkit_apps.policies.named_models import NamedModel, in_run, is_model, named_model
from alignkit_apps.policies.source import near_run

STAGE = "evaluate"
_OVERRIDE = re.compile(r"[\w-]+(\.[\w-]+)*=|~")
_PATHS = ("path", "folder", "file")  # keys whose values are never models


@dataclass
class NamedModels:
    """Models that are named on the command line, and the base models that they share.

    bases: their keys by their names in a recipe; the first one is `base`. policies: what each word means. references:
    what a recipe calls each policy. rewards, judges: as options of a step.
    """

    bases: dict[str, dict[str, Any]] = field(default_factory=dict)
    policies: dict[str, NamedModel] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    rewards: list[Any] = field(default_factory=list)
    judges: list[Any] = field(default_factory=list)

    @property
    def keys(self) -> dict[str, Any]:
        """`model` and `bases` of a recipe."""
        others = {name: spec for name, spec in self.bases.items() if name != BASE}
        return {"model": self.bases.get(BASE, {}), **({"bases": others} if others else {})}

    def reference(self, model: NamedModel) -> str:
        """What a recipe calls a model: a base by its name, and any other by its folder."""
        base = self._base(model)
        return base if model.folder is None else str(model.folder)

    def _base(self, model: NamedModel) -> str:
        """The name of the base that a model is for, which models with adapters of one scale share."""
        for name, spec in self.bases.items():
            if _is_shared(spec, model.spec):
                if len(spec) == 1:  # a bare name takes the settings of the run that trained on it
                    self.bases[name] = dict(model.spec)
                elif len(model.spec) > 1:
                    _note_difference(model, spec)
                return name
        name = BASE
        if self.bases:
            name = stem = re.sub(r"[^A-Za-z0-9_-]+", "-", model.label).strip("-_") or "other"
        number = 2
        while name in (*self.bases, STAGE, "none", "folder", "model"):
            name, number = f"{stem}-{number}", number + 1
        self.bases[name] = dict(model.spec)
        return name

    def value(self, value: Any) -> Any:
        """A reward or a judge, with models as a recipe names them."""
        if isinstance(value, str) and is_model(value):
            model = named_model(value)
            if not model.reward:
                return self.reference(model)
            if model.spec:
                self._base(model)
            return {"folder": str(model.folder)}
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return {key: item if key in _PATHS else self.value(item) for key, item in value.items()}
        return value


def _is_shared(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether one base model serves both: the same weights, and adapters of the same scale."""
    if (one["base"], one.get("revision")) != (other["base"], other.get("revision")):
        return False
    return len(one) == 1 or len(other) == 1 or _scale(one) == _scale(other)


def _scale(spec: Mapping[str, Any]) -> tuple[Any, ...]:
    lora = LoraSpec.model_validate(spec.get("lora") or {})
    return lora.r, lora.lora_alpha, lora.use_rslora


def _note_difference(model: NamedModel, spec: Mapping[str, Any]) -> None:
    keys = {**spec, **model.spec}.keys() - {"lora"}
    if different := sorted(key for key in keys if spec.get(key) != model.spec.get(key)):
        text = f"note: {model.label} is used with the {', '.join(different)} of the policy before it, on the same base"
        print(printable(text), file=sys.stderr)


def models_of(words: Sequence[str], rewards: Sequence[str] = (), judges: Sequence[str] = ()) -> NamedModels:
    """What policies, rewards and judges mean.

    Raises RecipeError for a word that means no model, and RunFailed for a damaged one.
    """
    named = NamedModels()
    for word in words:
        model = named_model(word)
        if model.reward:
            refuse(f"{word} is a reward model, but a policy is needed", f"name it as a reward: --reward {word}")
        reference = named.reference(model)
        if reference in named.references.values():
            refuse(f"{word} names a policy twice", "name each policy once")
        named.policies[word], named.references[word] = model, reference
    for word in rewards:
        _check_reward(word, words)
        named.rewards.append(named.value(_value(word)))
    named.judges += [named.value(_value(word)) for word in judges]
    return named


def names_of(policies: Mapping[str, NamedModel]) -> dict[str, str]:
    """The word of each policy by its name: RUN-STAGE, or the word itself if several have that name."""
    labels = [model.label for model in policies.values()]
    return {
        model.label if model.label and labels.count(model.label) == 1 else word: word
        for word, model in policies.items()
    }


def _check_reward(word: str, policies: Iterable[str]) -> None:
    """Refuse a policy, and a name that no reward has if it is almost that of a stage of the policies' runs."""
    if is_model(word):
        if not named_model(word).reward:
            refuse(f"{word} is a policy, but a reward is needed", "name a stage that trained a reward model")
    elif re.fullmatch(r"[A-Za-z][\w-]*", word) and not plugins().registry.has("reward", word):
        for policy in filter(in_run, policies):
            if near := near_run(Path(policy).parent / word):
                refuse(f"no reward '{word}'", near)


def rollout_of(policies: Iterable[NamedModel]) -> dict[str, Any]:
    """Sampling as in training: that of the first policy that learned from its own samples."""
    rollout = next((policy.rollout for policy in policies if policy.rollout), {})
    return {key: rollout[key] for key in KEYS if rollout.get(key) is not None}


def recipe_of(named: NamedModels, prompts: str, baseline: str | None = None, limit: int | None = None) -> Any:
    """The recipe of `alignkit evaluate` as plain data. baseline: one of the words."""
    step: dict[str, Any] = {"step": "evaluate", "policies": list(named.references.values()), "rewards": named.rewards}
    step |= {"judges": named.judges} if named.judges else {}
    step |= {"prompts": _value(prompts)}
    sampling = rollout_of(named.policies.values())
    step |= {"sampling": sampling} if sampling else {}
    step |= {"baseline": named.references[baseline]} if baseline is not None else {}
    step |= {"limit": limit} if limit is not None else {}
    return {"name": STAGE, **named.keys, "stages": {STAGE: step}}


def without_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The policies among the words of a command, and the overrides."""
    policies = [word for word in words if is_file(word) or is_dir(word) or not _OVERRIDE.match(word)]
    return policies, [word for word in words if word not in policies]


def read_models(
    named: NamedModels, command: str, overrides: Sequence[str], registry: Registry
) -> tuple[Recipe, list[RewardSpec], Component | None]:
    """A recipe without stages, the rewards, and the engine or None. overrides: `KEY=VALUE`, as for a recipe.

    Raises RecipeError for a mistake in the words or in an override.
    """
    given = {**named.keys, "rewards": named.rewards}
    document = parse_document(dump(given), Path(command), overrides)
    path, data = document.path, document.root.plain()
    bases = data.get("bases")
    reading = Reading(registry, path.parent, bases=(BASE, *(bases if isinstance(bases, dict) else ())))
    words, mistakes = validated(_Words, data, reading)
    models = {BASE: words.model, **words.bases} if words is not None else {}
    for name, spec in models.items():
        mistakes += [mistake.below(*base_keys(name)) for mistake in broken(MODEL, spec)]
    problems = [*document.problems, *problems_of(document, mistakes)]
    if problems or words is None:
        raise RecipeError(problems)
    recipe = Recipe(path.name, path, path.parent.resolve(), 0, "", words.model, {}, {}, (), words.bases, document)
    return recipe, words.rewards, words.engine if isinstance(words.engine, Component) else None


class _Words(Options):
    """What the words of a command and its overrides may say."""

    model: ModelSpec
    bases: dict[str, ModelSpec] = Field(default_factory=dict)
    engine: EngineRef = None
    rewards: list[RewardRef]


def _value(text: str) -> Any:
    """A word of the command line as YAML."""
    return plain_data(text, f"'{text}'")

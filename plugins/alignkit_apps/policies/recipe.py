"""The recipe of `alignkit evaluate`: one step, and the base models that its policies and rewards need."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignkit.arguments import refuse
from alignkit.errors import Problem
from alignkit.io.lookup import is_dir, is_file
from alignkit.plugins import plugins
from alignkit.recipe.bases import base_names, read_bases, read_model
from alignkit.recipe.components import read_options
from alignkit.recipe.document import Document, dump, parse_document, plain_data
from alignkit.recipe.load import RESOLVERS
from alignkit.recipe.paths import Paths
from alignkit.recipe.problems import Problems
from alignkit.recipe.rewards import read_reward
from alignkit.recipe.rounds import Rounds
from alignkit.recipe.sampling_keys import read_engine
from alignkit.recipe.schema import BASE, Recipe, RewardSpec
from alignkit.recipe.scope import Scope
from alignkit.recipe.validation import validate
from alignkit.recipe.yaml_nodes import Mark
from alignkit.registry import Component, Registry
from alignkit.sampling_options import KEYS
from alignkit.settings import LoraSpec
from alignkit_apps.policies.named_models import ADAPTER, CONFIG, NamedModel, in_run, named_model
from alignkit_apps.policies.source import near_run
from alignkit_apps.policies.variant import Variant

STAGE = "evaluate"
_OVERRIDE = re.compile(r"[\w-]+(\.[\w-]+)*=|~")
_PATHS = ("path", "folder", "file")  # keys whose values are never models


@dataclass(frozen=True)
class Request:
    """What to evaluate. options: of the step. Everything else is as on the command line."""

    policies: Sequence[str]
    prompts: str
    rewards: Sequence[str] = ()
    judges: Sequence[str] = ()
    baseline: str | None = None
    reference: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def recipe_of(request: Request) -> tuple[dict[str, Any], list[str]]:
    """The recipe as plain data, and notes; relative paths start at the current folder.

    Raises RecipeError for a word that means no model, and RunFailed for a damaged one.
    """
    for option in (request.baseline, request.reference):
        if option is not None and _braces(option):
            refuse(f"{option} has options, but a plain policy is needed", "in its braces, write `baseline: true`")
    given = [*request.policies, request.baseline, request.reference]
    words = list(dict.fromkeys(word for word in given if word is not None))
    named = _named(words, request.rewards, request.judges)
    _refuse_same(request.policies, named)
    names = named.references
    options = dict(request.options)
    sampling = {**_sampling(named.policies.values()), **options.pop("sampling", {})}
    if sampling:
        options["sampling"] = sampling
    if request.baseline is not None:
        options["baseline"] = names[request.baseline]
    if request.reference is not None:
        options["reference"] = names[request.reference]
    step = {
        "step": "evaluate",
        "policies": [named.variants.get(word, names[word]) for word in request.policies],
        "rewards": named.rewards,
        **({"judges": named.judges} if named.judges else {}),
        "prompts": _value(request.prompts),
        **options,
    }
    others = {"bases": named.others} if named.others else {}
    return {"name": STAGE, "model": named.base, **others, "stages": {STAGE: step}}, list(named.notes)


@dataclass(frozen=True)
class NamedModels:
    """Policies and rewards that are named on the command line, as a recipe has them.

    base, others: its `model` and `bases`. policies: what each word means. references: of each word. rewards, judges: as
    values of RewardRef and JudgeRef options. notes: what a reader of the results must know. overrides: `KEY=VALUE`, as
    for a recipe. variants: for the words in braces, the keys of `Variant`.
    """

    base: Mapping[str, Any]
    others: Mapping[str, Any]
    policies: Mapping[str, NamedModel]
    references: Mapping[str, str]
    rewards: Sequence[Any]
    notes: Sequence[str]
    judges: Sequence[Any] = ()
    overrides: Sequence[str] = ()
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def without_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The policies among the words of a command, and the overrides."""
    policies = [word for word in words if is_file(word) or is_dir(word) or not _OVERRIDE.match(word)]
    return policies, [word for word in words if word not in policies]


def models_of(
    words: Sequence[str], rewards: Sequence[str] = (), judges: Sequence[str] = (), overrides: Sequence[str] = ()
) -> NamedModels:
    """What policies, rewards and judges mean; raises as `recipe_of` does."""
    named = _named(words, rewards, judges)
    _refuse_same(words, named)
    return replace(named, overrides=overrides)


def read_models(
    named: NamedModels, command: str, registry: Registry
) -> tuple[Recipe, list[RewardSpec], dict[str, Variant], Component | None]:
    """A recipe without stages, the rewards, the policies with options by their words, and the engine or None.

    Raises RecipeError for a mistake in the words or in an override.
    """
    given = {"model": named.base, "bases": named.others, "rewards": named.rewards}
    text = dump({**given, "variants": list(named.variants.values())})
    wrong: list[Problem] = []
    document = parse_document(text, Path(command), named.overrides, wrong)
    problems, path, data = Problems(document), document.path, document.data
    problems.items += wrong
    for key in data.keys() - {*given, "variants", "engine"}:
        problems.error((key,), f"'{key}' has no effect here", at_key=True, help="override 'engine', 'model' or 'bases'")
    scope = Scope(problems, Paths(problems), registry, Rounds(), RESOLVERS, bases=base_names(data.get("bases")))
    model, others = read_model(data["model"], scope), read_bases(data.get("bases"), scope)
    rewards = [read_reward(raw, ("rewards", place), scope) for place, raw in enumerate(data["rewards"])]
    read = [read_options(Variant, raw, ("variants", place), scope) for place, raw in enumerate(data["variants"])]
    engine = read_engine(data["engine"], ("engine",), scope) if data.get("engine") is not None else None
    if len(problems) or model is None:
        raise problems.as_error()
    recipe = Recipe(
        path.name, path, path.parent.resolve(), 0, "", model, {}, {}, bases=others, document=problems.document
    )
    variants = {word: one for word, one in zip(named.variants, read, strict=True) if one is not None}
    return (
        recipe,
        [one for one in rewards if one is not None],
        variants,
        engine if isinstance(engine, Component) else None,
    )


def with_best_of(word: str, count: int, reward: str) -> str:
    """The word of a policy that answers with the best of several answers by a reward."""
    return json.dumps({**(_braces(word) or {"policy": word}), "best_of": count, "reward": _value(reward)})


def plain_word(word: str) -> str:
    """The word of the model that answers: of `{policy: WORD, best_of: 4, reward: REWARD}`, or the word itself."""
    return str(_braces(word).get("policy", word))


def _braces(word: str) -> dict[str, Any]:
    """The keys of a policy with options, as a recipe has them; empty for any other word. Raises RecipeError."""
    if not word.lstrip().startswith("{"):
        return {}
    raw = _value(word)
    problems = Problems(Document(Path(word), raw, {(): (Mark(word), Mark(word))}))
    if validate(Variant, raw, (), problems).value is None:
        raise problems.as_error()
    return dict(raw)


def _named(words: Sequence[str], rewards: Sequence[str], judges: Sequence[str]) -> NamedModels:
    given = {word: found for word in words if (found := _braces(word))}
    policies = {word: named_model(plain_word(word)) for word in words}
    if unfit := [word for word, model in policies.items() if model.reward]:
        refuse(f"{unfit[0]} is a reward model, but a policy is needed", f"name it as a reward: --reward {unfit[0]}")
    choosing = [one["reward"] for one in given.values() if "reward" in one]
    models = _named_rewards([*map(_value, rewards), *choosing], list(map(_value, judges)))
    for word in (*rewards, *(one for one in choosing if isinstance(one, str))):
        _check_reward(word, map(plain_word, policies))
    bases = _Bases([*policies.values(), *models.values()])
    references = {word: bases.reference(model) for word, model in policies.items()}
    read, asked = ([_replaced(_value(text), models, bases) for text in texts] for texts in (rewards, judges))
    variants = {}
    for word, one in given.items():
        variants[word] = {**one, "policy": references[word]}
        if "reward" in one:
            variants[word]["reward"] = _replaced(one["reward"], models, bases)
        title = Variant.model_validate(variants[word]).title(policies[word].label)
        policies[word] = replace(policies[word], label=title)
    return NamedModels(bases.model, bases.others, policies, references, read, bases.notes, asked, variants=variants)


def _named_rewards(rewards: Sequence[Any], judges: Sequence[Any]) -> dict[str, NamedModel]:
    """The models in the values of rewards and judges."""
    named = {word: named_model(word) for value in (*rewards, *judges) for word in _models_in(value)}
    for word in rewards:
        if isinstance(word, str) and word in named and not named[word].reward:
            refuse(f"{word} is a policy, but a reward is needed", "name a stage that trained a reward model")
    return named


def _check_reward(word: str, policies: Iterable[str]) -> None:
    """Refuse a name that no reward has if it is almost that of a stage of the policies' runs."""
    if not re.fullmatch(r"[A-Za-z][\w-]*", word) or plugins().registry.has("reward", word) or is_dir(word):
        return
    for policy in filter(in_run, policies):
        if near := near_run(Path(policy).parent / word):
            refuse(f"no reward '{word}'", near)


def _refuse_same(words: Sequence[str], named: NamedModels) -> None:
    references = {**named.references, **named.variants}
    for word in words:
        same = [other for other in words if references[other] == references[word]]
        if len(same) > 1:
            refuse(f"{' and '.join(same)} are the same policy", "name it once")


def _sampling(policies: Iterable[NamedModel]) -> dict[str, Any]:
    """Sampling as in training: that of the first policy that learned from its own samples."""
    rollout = next((policy.rollout for policy in policies if policy.rollout), {})
    return {key: rollout[key] for key in KEYS if rollout.get(key) is not None}


class _Bases:
    """The base models of a recipe, and what its stage calls each model.

    notes: what a reader of the results must know about settings that could not all be kept.
    """

    def __init__(self, models: Sequence[NamedModel]):
        needed = [model for model in models if not (model.whole and model.reward)]  # such a reward needs no base
        needed.sort(key=lambda model: model.folder is None and len(model.spec) == 1)  # a bare name takes their settings
        self.notes: list[str] = []
        self._first: dict[str, NamedModel] = {}  # by what only one base model can serve
        for model in needed:
            self._keep(model)
        self._alone = len(self._first) < 2  # whole weights then go into the one network, one after the other
        self._names: dict[str, str] = {}
        self.model: dict[str, Any] = {}
        self.others: dict[str, Any] = {}
        for key, model in self._first.items():
            if model.whole and not self._alone:
                self._add(str(model.folder), model.as_base, model.label)
            else:
                self._add(key, model.spec, Path(str(model.spec["base"])).name)

    def _keep(self, model: NamedModel) -> None:
        """Find the base model that serves a model, or else let it be the first of its kind."""
        key = self._key(model)
        first = self._first.setdefault(key, model)
        if first is model or model.whole or len(model.spec) == 1:
            return
        both = {**first.spec, **model.spec}
        different = [name for name in both if first.spec.get(name) != model.spec.get(name) and name != "lora"]
        if different:
            note = (
                f"{model.label} is evaluated with the {', '.join(different)} of {first.label}, on the same base model"
            )
            self.notes.append(note)

    def _key(self, model: NamedModel) -> str:
        """Equal for models that one base model can serve."""
        if model.whole:
            return f"{model.folder}"
        base = f"{model.spec['base']}@{model.spec.get('revision', '')}"
        if model.folder is None:
            return next((key for key in self._first if key.startswith(base)), base)
        lora = LoraSpec.model_validate(model.spec.get("lora") or {})
        return f"{base} {lora.r} {lora.lora_alpha} {lora.use_rslora}"

    def _add(self, key: str, spec: Mapping[str, Any], label: str) -> None:
        if not self.model:
            self.model, self._names[key] = dict(spec), BASE
            return
        name = stem = re.sub(r"[^A-Za-z0-9_-]+", "-", label).strip("-_") or "other"
        number = 2
        while name in self.others or name in (BASE, STAGE, "none", "folder", "model"):
            name, number = f"{stem}-{number}", number + 1
        self.others[name], self._names[key] = dict(spec), name

    def reference(self, model: NamedModel) -> str:
        """What a policy is called: a base model's name, or the folder of its weights."""
        if model.folder is None:
            return self._names[self._key(model)]
        return self._names[str(model.folder)] if model.whole and not self._alone else str(model.folder)


# --- rewards


def _value(text: str) -> Any:
    """A word of the command line as YAML."""
    return plain_data(text, f"'{text}'")


def _models_in(value: Any) -> Iterable[str]:
    """The words in a value that name a stage of a run or a folder with a model."""
    if isinstance(value, str):
        if in_run(value) or is_file(Path(value) / ADAPTER) or is_file(Path(value) / CONFIG):
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from _models_in(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in _PATHS:
                yield from _models_in(item)


def _replaced(value: Any, models: Mapping[str, NamedModel], bases: _Bases) -> Any:
    """The value with models as a recipe names them: `{folder: PATH}` for a reward model, a reference for a policy."""
    if isinstance(value, str) and value in models:
        model = models[value]
        return {"folder": str(model.folder or Path(value).resolve())} if model.reward else bases.reference(model)
    if isinstance(value, list):
        return [_replaced(item, models, bases) for item in value]
    if isinstance(value, dict):
        return {key: item if key in _PATHS else _replaced(item, models, bases) for key, item in value.items()}
    return value

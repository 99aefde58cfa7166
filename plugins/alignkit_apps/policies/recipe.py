"""The recipe of `alignkit evaluate`: one step, and the base models that its policies and rewards need."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignkit.arguments import refuse
from alignkit.io.lookup import is_dir, is_file
from alignkit.plugins import plugins
from alignkit.recipe.document import plain_data
from alignkit.recipe.schema import BASE
from alignkit.sampling_options import SamplingOptions
from alignkit.settings import LoraSpec
from alignkit_apps.policies.named_models import ADAPTER, CONFIG, NamedModel, in_run, named_model
from alignkit_apps.policies.source import near_run

STAGE = "evaluate"
SHOTS = 4  # of the step, by default
_OVERRIDE = re.compile(r"[\w-]+(\.[\w-]+)*=|~")
_PATHS = ("path", "folder", "file")  # keys whose values are never models


@dataclass(frozen=True)
class Request:
    """What to evaluate. options: of the step. few_shot: data with examples; shots: how many are put in front of the
    prompts of `prompted`, by default the first policy. Everything else is as on the command line.
    """

    policies: Sequence[str]
    prompts: str
    rewards: Sequence[str] = ()
    judges: Sequence[str] = ()
    baseline: str | None = None
    reference: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    few_shot: str | None = None
    shots: int | None = None
    prompted: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.few_shot is None and (self.shots is not None or self.prompted):
            refuse("there are no examples to put in front of prompts", "name a file: --few-shot FILE")

    @property
    def with_examples(self) -> list[str]:
        """The policies that also answer with examples. If the baseline does, it comes first."""
        if self.few_shot is None:
            return []
        named = list(dict.fromkeys(self.prompted or self.policies[:1]))
        return sorted(named, key=lambda word: word != self.prompted_baseline)

    @property
    def examples(self) -> int:
        """How many examples are put in front of a prompt."""
        return SHOTS if self.shots is None else self.shots

    @property
    def prompted_baseline(self) -> str | None:
        """POLICY, if the baseline is `POLICY+N`, a policy with its examples; else None."""
        word, plus, shots = (self.baseline or "").rpartition("+")
        if self.few_shot is None or not plus or word not in (self.prompted or self.policies[:1]):
            return None
        count = str(self.examples)
        if shots != count:
            refuse(f"{self.baseline}: prompts have {count} examples, not {shots}", f"name it {word}+{count}")
        return word


def recipe_of(request: Request) -> tuple[dict[str, Any], list[str]]:
    """The recipe as plain data, and notes; relative paths start at the current folder.

    Raises RecipeError for a word that means no model, and RunFailed for a damaged one.
    """
    for word in (*request.policies, *request.prompted, request.baseline, request.reference):
        _check_examples(word or "", request)
    named = _named(_words(request), request.rewards, request.judges)
    names = named.references
    _refuse_same(request.policies, names)
    options = {**_sampling(named.policies.values()), **request.options}
    if request.with_examples:
        options["few_shot"] = {
            "policies": [names[word] for word in request.with_examples],
            "examples": _value(request.few_shot or ""),
            "shots": request.examples,
            **({"baseline": True} if request.prompted_baseline else {}),
        }
    if request.baseline is not None and request.prompted_baseline is None:
        options["baseline"] = names[request.baseline]
    if request.reference is not None:
        options["reference"] = names[request.reference]
    step = {
        "step": "evaluate",
        "policies": [names[word] for word in request.policies],
        "rewards": named.rewards,
        **({"judges": named.judges} if named.judges else {}),
        "prompts": _value(request.prompts),
        **options,
    }
    others = {"bases": named.others} if named.others else {}
    return {"name": STAGE, "model": named.base, **others, "stages": {STAGE: step}}, list(named.notes)


def _check_examples(word: str, request: Request) -> None:
    """Refuse `POLICY+N` where it names no policy: results are called that, and a baseline with its examples is."""
    policy, plus, shots = word.rpartition("+")
    is_baseline = word == request.baseline
    if not plus or not shots.isdecimal() or is_dir(word) or (is_baseline and request.prompted_baseline):
        return
    examples = request.few_shot if request.few_shot is not None else "FILE"
    refuse(
        f"{word} is no model: results call {policy} so with {shots} examples in front of each prompt",
        f"{'keep it' if is_baseline else f'name {policy}'}, and add "
        f"--few-shot {examples} --shots {shots} --few-shot-policy {policy}",
    )


@dataclass(frozen=True)
class NamedModels:
    """Policies and rewards that are named on the command line, as a recipe has them.

    base, others: its `model` and `bases`. policies: what each word means. references: of each word. rewards, judges: as
    values of RewardRef and JudgeRef options. notes: what a reader of the results must know. overrides: `KEY=VALUE`, as
    for a recipe.
    """

    base: Mapping[str, Any]
    others: Mapping[str, Any]
    policies: Mapping[str, NamedModel]
    references: Mapping[str, str]
    rewards: Sequence[Any]
    notes: Sequence[str]
    judges: Sequence[Any] = ()
    overrides: Sequence[str] = ()


def without_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The policies among the words of a command, and the overrides."""
    policies = [word for word in words if is_file(word) or is_dir(word) or not _OVERRIDE.match(word)]
    return policies, [word for word in words if word not in policies]


def models_of(
    words: Sequence[str], rewards: Sequence[str] = (), judges: Sequence[str] = (), overrides: Sequence[str] = ()
) -> NamedModels:
    """What policies, rewards and judges mean; raises as `recipe_of` does."""
    named = _named(words, rewards, judges)
    _refuse_same(words, named.references)
    return replace(named, overrides=overrides)


def _named(words: Sequence[str], rewards: Sequence[str], judges: Sequence[str]) -> NamedModels:
    policies, models = named_policies(words), _named_rewards(rewards, judges)
    for word in rewards:
        _check_reward(word, policies)
    bases = _Bases([*policies.values(), *models.values()])
    references = {word: bases.reference(model) for word, model in policies.items()}
    read, asked = ([_replaced(_value(text), models, bases) for text in texts] for texts in (rewards, judges))
    return NamedModels(bases.model, bases.others, policies, references, read, bases.notes, asked)


def named_policies(words: Iterable[str]) -> dict[str, NamedModel]:
    """The policies that words mean. Raises RecipeError if one is a reward model."""
    policies = {word: named_model(word) for word in words}
    if unfit := [word for word, model in policies.items() if model.reward]:
        refuse(f"{unfit[0]} is a reward model, but a policy is needed", f"name it as a reward: --reward {unfit[0]}")
    return policies


def _named_rewards(rewards: Sequence[str], judges: Sequence[str]) -> dict[str, NamedModel]:
    """The models in the values of rewards and judges."""
    named = {word: named_model(word) for text in (*rewards, *judges) for word in _models_in(_value(text))}
    for word in rewards:
        if word in named and not named[word].reward:
            refuse(f"{word} is a policy, but a reward is needed", "name a stage that trained a reward model")
    return named


def _check_reward(word: str, policies: Iterable[str]) -> None:
    """Refuse a name that no reward has if it is almost that of a stage of the policies' runs."""
    if not re.fullmatch(r"[A-Za-z][\w-]*", word) or plugins().registry.has("reward", word) or is_dir(word):
        return
    for policy in filter(in_run, policies):
        if near := near_run(Path(policy).parent / word):
            refuse(f"no reward '{word}'", near)


def _refuse_same(words: Sequence[str], references: Mapping[str, str]) -> None:
    for word in words:
        same = [other for other in words if references[other] == references[word]]
        if len(same) > 1:
            refuse(f"{' and '.join(same)} are the same policy", "name it once")


def _words(request: Request) -> list[str]:
    """The policies, each once."""
    baseline = request.baseline if request.prompted_baseline is None else None
    given = [*request.policies, *request.with_examples, baseline, request.reference]
    return list(dict.fromkeys(word for word in given if word is not None))


def _sampling(policies: Iterable[NamedModel]) -> dict[str, Any]:
    """Sampling as in training: that of the first policy that learned from its own samples."""
    rollout = next((policy.rollout for policy in policies if policy.rollout), {})
    return {key: rollout[key] for key in SamplingOptions.model_fields if rollout.get(key) is not None}


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

"""What is wrong with a recipe, in words: pydantic's errors, and the nearest name."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from alignkit.contract.settings import KEYS
from alignkit.errors import Problem, did_you_mean, path_text
from alignkit.recipe.schema import allowed_keys
from alignkit.recipe.yaml import Document, Keys, children

Model = TypeVar("Model", bound=BaseModel)
PATH = "{path}"  # in messages: the place


@dataclass(frozen=True)
class Mistake:
    """Something wrong below the value that is checked. keys: where. at_key: point at the key, not
    at its value.
    """

    message: str
    help: str = ""
    keys: Keys = ()
    at_key: bool = False

    @property
    def text(self) -> str:
        """The message with its place."""
        return self.message.replace(PATH, path_text(self.keys) or "recipe")

    def below(self, *keys: str | int) -> Mistake:
        """The same mistake, seen from above."""
        return replace(self, keys=(*keys, *self.keys))


class Mistakes(ValueError):
    """What is wrong in the parts of a value, to raise in validators. pydantic knows where the value
    is, and the mistakes know where they are in it.
    """

    def __init__(self, *mistakes: Mistake):
        super().__init__(*mistakes)
        self.mistakes = list(mistakes)

    @contextmanager
    def at(self, *keys: str | int) -> Iterator[None]:
        """Keep the mistakes that a block raises for the value at a place."""
        try:
            yield
        except Mistakes as error:
            self.add(error.mistakes, *keys)

    def add(self, mistakes: Iterable[Mistake], *keys: str | int) -> None:
        """Add the mistakes of the value at a place."""
        self.mistakes += [mistake.below(*keys) for mistake in mistakes]

    def end(self) -> None:
        """Raise them, if there are any."""
        if self.mistakes:
            raise self


def wrong(message: str, help: str = "", keys: Keys = (), at_key: bool = False) -> Mistakes:
    """One mistake, to raise in a validator."""
    return Mistakes(Mistake(message, help, keys, at_key))


def shown(value: Any) -> str:
    """Return a value as an error shows it: as JSON writes it, and at most 60 characters."""
    text = repr(value)
    if not isinstance(value, str):
        text = json.dumps(value, default=repr)
    if len(text) > 60:
        text = f"{text[:57]}..."
    return text


def problems_of(document: Document, mistakes: Iterable[Mistake]) -> list[Problem]:
    """The mistakes at their places, each once."""
    found = [
        document.problem(one.keys, one.text, at_key=one.at_key, help=one.help) for one in mistakes
    ]
    return [*dict.fromkeys(found)]


# --- pydantic's errors


def validated(
    model: type[Model],
    raw: Any,
    context: Any = None,
    others: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Model | None, list[Mistake]]:
    """Validate plain data strictly: '1e-5' in quotes is not a number, and `yes` is not a boolean.

    context: what references mean. others: keys that belong elsewhere, which an unknown key may have
    meant, with help.
    """
    try:
        # In JSON mode pydantic is strict about scalars, but accepts lists for tuples, and text for
        # paths and enums.
        return model.model_validate_json(json.dumps(raw), strict=True, context=context), []
    except ValidationError as error:
        return None, _mistakes(error, model, raw, others)
    except Exception as error:  # a plugin's validator raised something else
        return None, [Mistake(f"{PATH}: {type(error).__name__}: {error}")]


def _mistakes(
    error: ValidationError, model: type[BaseModel], raw: Any, others: Mapping[str, str]
) -> list[Mistake]:
    """A union causes one error per arm. Mistakes inside an arm come first, then what a validator
    says, then the first error.
    """
    found: dict[Keys, list[Mistake]] = {}
    for item in error.errors(include_url=False):
        place = _place(item, raw)
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, Mistakes):
            found[place] = [mistake.below(*place) for mistake in cause.mistakes]
        elif place not in found or item["type"] == "value_error":
            found[place] = [replace(_mistake(item, place, model, others), keys=place)]
    parents: set[Keys] = set()
    for place in found:
        parents.update(place[:end] for end in range(len(place)))
    kept: list[Mistake] = []
    for place, mistakes in found.items():
        if place not in parents:
            kept += mistakes
    return kept


def _place(item: Any, raw: Any) -> Keys:
    """An error's path in the YAML. pydantic's own path also contains names of union arms."""
    place, value = Keys(), raw
    for part in item["loc"]:
        if part in children(value):
            place, value = (*place, part), value[part]
    return (*place, item["loc"][-1]) if item["type"] == "missing" else place


def _mistake(item: Any, place: Keys, model: type[BaseModel], others: Mapping[str, str]) -> Mistake:
    """One of pydantic's errors in words."""
    holder, info = model, None
    for key in place:
        if info is not None:
            holder = _model_in(info.annotation) or holder
        info = {field.alias or name: field for name, field in holder.model_fields.items()}.get(
            str(key), info
        )
    if item["type"] == "extra_forbidden":
        key = str(place[-1])
        known = allowed_keys(holder)
        if "sampling" in known and key in KEYS:
            others = {key: f"write 'sampling.{key}'", **others}
        return Mistake(f"unknown key '{key}'", advice(key, known, others), at_key=True)
    help = (info.description if info is not None else "") or ""
    if item["type"] == "missing":
        return Mistake(f"'{PATH}' is missing", help, at_key=True)
    message, should, wanted = item["msg"].partition(" should ")
    if should and item["type"] != "value_error":
        wanted, _, _ = wanted.partition(" after validation")
        message = f"must {wanted}, got {shown(item['input'])}"
    near = did_you_mean(
        str(item["input"]), re.findall(r"'([^']*)'", item.get("ctx", {}).get("expected", ""))
    )
    return Mistake(f"{PATH}: {message.removeprefix('Value error, ')}", near or help)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model class inside `Model`, `Model | None`, `list[Model]` ..."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for arg in get_args(annotation) if (model := _model_in(arg))), None)


# Keys of TRL and of earlier versions -> the key here.
RENAMED = {
    "ahead": "async_level",
    "num_train_epochs": "epochs",
    "num_ppo_epochs": "epochs",
    "lora_r": "r",
    "model_name_or_path": "base",
    "max_seq_length": "max_length",
    "max_prompt_length": "max_length",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "batch_size",
    "num_generations": "samples_per_prompt",
    "max_completion_length": "max_new_tokens",
    "response_length": "max_new_tokens",
    "dataset_name": "data",
    "reward_funcs": "reward",
    "reward_model_path": "reward",
    "load_in_4bit": "quantization",
    "adam_beta1": "optimizer",
    "adam_beta2": "optimizer",
    "adam_epsilon": "optimizer",
    "weight_decay": "optimizer",
    "max_grad_norm": "optimizer",
    "kl_coef": "kl_coefficient",
    "cliprange": "clip_range",
    "epsilon": "clip_range",
    "epsilon_high": "clip_range_high",
    "beta": "kl_coefficient",
}


# Keys that are gone -> what to write.
RETIRED = {
    "whiten": "remove it; 'whiten: true' is 'whiten_rewards: true' in the options of the algorithm",
    "dynamic_sampling": "set 'filters: [spread]' in the stage's 'rollout'",
}


def advice(key: str, allowed: Collection[str], others: Mapping[str, str]) -> str:
    """Return the help for an unknown key. allowed: the keys at its place. others: those elsewhere,
    with help.
    """
    name = RENAMED.get(key, key)
    if name in allowed:
        return f"use '{name}'"
    near = (
        RETIRED.get(key)
        or others.get(key)
        or others.get(name)
        or did_you_mean(key, [*allowed, *(other for other in others if not others[other])])
    )
    return near or f"known keys: {', '.join(sorted(allowed)) or 'none'}"

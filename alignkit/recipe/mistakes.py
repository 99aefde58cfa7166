"""What is wrong with a recipe, in words: pydantic's errors, and the nearest name."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from alignkit.errors import Problem, did_you_mean
from alignkit.options import Options
from alignkit.recipe.schema import TopKeys, allowed_keys
from alignkit.recipe.yaml import Document, Keys
from alignkit.settings import LoraSpec, ModelSpec, Rollout, Settings

Model = TypeVar("Model", bound=Options)
ErrorItem = Mapping[str, Any]  # one of `ValidationError.errors()`
PATH = "{path}"  # in messages: the place
MOST_HELP = 100  # problems with a nearest name


@dataclass(frozen=True)
class Mistake:
    """Something wrong below the value that is checked.

    keys: where. at_key: point at the key, not at its value. allowed: the keys that an unknown key may have meant.
    """

    message: str
    help: str = ""
    keys: Keys = ()
    at_key: bool = False
    allowed: Sequence[str] | None = None

    @property
    def text(self) -> str:
        """The message with its place."""
        return self.message.replace(PATH, path_text(self.keys) or "recipe")

    def known(self, names: Iterable[str]) -> Mistake:
        """The same mistake, where an unknown key may also have meant one of these names."""
        return self if self.allowed is None else replace(self, allowed=[*self.allowed, *names])

    def below(self, *keys: str | int) -> Mistake:
        """The same mistake, seen from above."""
        return replace(self, keys=(*keys, *self.keys))


class Mistakes(ValueError):
    """Raised in validators. pydantic knows where the value is, and the mistakes know where they are in it."""

    def __init__(self, *mistakes: Mistake):
        super().__init__(*mistakes)
        self.mistakes = mistakes


def wrong(message: str, help: str = "", keys: Keys = (), at_key: bool = False) -> Mistakes:
    """One mistake, to raise in a validator."""
    return Mistakes(Mistake(message, help, keys, at_key))


def path_text(keys: Iterable[str | int]) -> str:
    """Return a path as people write it: `stages.align.epochs`."""
    return ".".join(str(key) for key in keys)


def shown(value: Any) -> str:
    """Return a value as an error shows it: as YAML writes it, and at most 60 characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- their places


def problems_of(document: Document, mistakes: Iterable[Mistake]) -> list[Problem]:
    """The mistakes at their places, each once."""
    problems: dict[Problem, None] = {}
    for mistake in mistakes:
        help = mistake.help
        if mistake.allowed is not None and not help and len(problems) < MOST_HELP:  # the search takes longest
            help = advice(str(mistake.keys[-1]), mistake.allowed)
        problems[document.problem(mistake.keys, mistake.text, at_key=mistake.at_key, help=help)] = None
    return [*problems]


# --- pydantic's errors


def validated(
    model: type[Model],
    raw: Any,
    context: Any = None,
    hints: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Model | None, list[Mistake]]:
    """Validate plain data strictly: '1e-5' in quotes is not a number, and `yes` is not a boolean.

    context: what references mean. hints: help for unknown keys, by key.
    """
    try:
        # In JSON mode pydantic is strict about scalars, but accepts lists for tuples, and text for paths and enums.
        return model.model_validate_json(json.dumps(raw), strict=True, context=context), []
    except ValidationError as error:
        return None, list(_Words(model, raw, hints).of(error))
    except Exception as error:  # a plugin's validator raised something else
        return None, [Mistake(f"{PATH}: {type(error).__name__}: {error}")]


@dataclass(frozen=True)
class _Words:
    """Puts pydantic's errors of one mapping in words."""

    model: type[BaseModel]
    raw: Any
    hints: Mapping[str, str]

    def of(self, error: ValidationError) -> Iterable[Mistake]:
        """The mistakes of a mapping. A union causes one error per arm, and only the best arm's is reported."""
        places: dict[Keys, list[ErrorItem]] = {}
        found: list[Mistake] = []
        for item in error.errors(include_url=False):
            place = self._place(item)
            cause = item.get("ctx", {}).get("error")
            if isinstance(cause, Mistakes):
                found += [mistake.below(*place) for mistake in cause.mistakes]
            else:
                places.setdefault(place, []).append(item)
        inside = {keys[:end] for keys in places for end in range(len(keys))}
        inside |= {mistake.keys[:end] for mistake in found for end in range(len(mistake.keys) + 1)}
        yield from found
        for place, items in places.items():
            if not _type_error(items[0]) or place not in inside:
                yield replace(self._mistake(place, items), keys=place)

    def _place(self, item: ErrorItem) -> Keys:
        """Return an error's path in the YAML. pydantic's own path also contains names of union arms."""
        place: list[str | int] = []
        value = self.raw
        for index, part in enumerate(item["loc"]):
            if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int)):
                value = value[part]
                place.append(part)
            elif item["type"] == "missing" and index == len(item["loc"]) - 1:
                place.append(part)
        return tuple(place)

    def _mistake(self, place: Keys, items: Sequence[ErrorItem]) -> Mistake:
        kinds = {item["type"] for item in items}
        if "extra_forbidden" in kinds:
            key = str(place[-1])
            help = self.hints.get(RENAMED.get(key, key), "") if len(place) == 1 else ""
            model = self._model_at(items[0]["loc"][:-1])
            # A stage's `algorithm` is not part of its settings, but is written next to them.
            allowed = [*(["algorithm"] if model is Settings else []), *(allowed_keys(model) if model else [])]
            return Mistake(f"unknown key '{key}'", help, at_key=True, allowed=allowed)
        info = _field(self._model_at(place[:-1]), place[-1]) if place else None
        described = (info.description or "") if info else ""
        if "missing" in kinds:
            return Mistake(f"'{PATH}' is missing", described, at_key=True)
        message, help = _wrong_value(items)
        return Mistake(f"{PATH}: {message}", help or described)

    def _model_at(self, path: Iterable[str | int]) -> type[BaseModel] | None:
        """Return the model of the mapping at a path, which may contain indices and names of union arms."""
        model: type[BaseModel] | None = self.model
        for part in path:
            info = _field(model, part)
            if info is not None:
                model = _model_in(info.annotation)
        return model


def _field(model: type[BaseModel] | None, key: str | int) -> Any:
    """Return the field that a recipe writes under a key, or None."""
    fields = model.model_fields if model else {}
    return next((info for name, info in fields.items() if key in (name, info.alias)), None)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model class inside `Model`, `Model | None`, `list[Model]` ..."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for arg in get_args(annotation) if (model := _model_in(arg))), None)


def _type_error(item: ErrorItem) -> str:
    """What a value must be, in pydantic's words; empty if a validator has its own."""
    return f"must {item['msg'].partition(' should ')[2]}" if item["type"] not in _OWN_WORDS else ""


_OWN_WORDS = ("value_error", "assertion_error")


def _wrong_value(items: Sequence[ErrorItem]) -> tuple[str, str]:
    """Return message and help for the errors at one place."""
    value = items[0]["input"]
    # An arm whose model has something to say of the whole value fits it better than one of another type.
    items = [item for item in items if item["type"] == "value_error"] or items
    phrases = dict.fromkeys(filter(None, map(_type_error, items)))
    if not phrases:
        return str(items[0]["msg"]).partition(", ")[2], ""
    message = f"{' or '.join(phrases)}, got {shown(value)}"
    return message, did_you_mean(str(value), re.findall(r"'([^']*)'", message.rpartition(", got ")[0]))


# Place -> the keys that belong there, to recognize a key that was written elsewhere.
_PLACES: dict[str, Collection[str]] = {
    "at the top level of the recipe": allowed_keys(TopKeys),
    "under 'model:'": allowed_keys(ModelSpec),
    "under 'model: lora:'": allowed_keys(LoraSpec),
    "in the stage": allowed_keys(Settings),
    "under 'rollout:' of a stage that trains, or 'sampling:' of a step": allowed_keys(Rollout),
}
# Keys of TRL -> the key here.
RENAMED = {
    **dict.fromkeys(("num_train_epochs", "num_ppo_epochs"), "epochs"),
    "lora_r": "r",
    "model_name_or_path": "base",
    **dict.fromkeys(("max_seq_length", "max_prompt_length"), "max_length"),
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps"), "batch_size"),
    "num_generations": "samples_per_prompt",
    **dict.fromkeys(("max_completion_length", "response_length"), "max_new_tokens"),
    "dataset_name": "data",
    **dict.fromkeys(("reward_funcs", "reward_model_path"), "reward"),
    "load_in_4bit": "quantization",
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm"), "optimizer"),
    "kl_coef": "kl_coefficient",
    "cliprange": "clip_range",
}


def advice(key: str, allowed: Collection[str]) -> str:
    """Return the help for an unknown key. allowed: the keys that are known at its place."""
    name = RENAMED.get(key, key)
    if name in allowed:
        return f"use '{name}'"
    if f"{key}s" in allowed:
        return f"did you mean '{key}s'?"
    places = [place for place, keys in _PLACES.items() if name in keys]
    if places:
        return f"write '{name}' {' or '.join(places)}"
    return did_you_mean(key, allowed) or f"known keys: {', '.join(sorted(allowed)) or 'none'}"

"""One mapping of a recipe against its model: strictly, and with every complaint in plain words at its place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from alignkit.errors import Problem, did_you_mean
from alignkit.options import Options
from alignkit.recipe.document import Document, Keys, non_finite
from alignkit.recipe.schema import TopKeys
from alignkit.settings import LoraSpec, ModelSpec, Rollout, Settings

# --- what people write who come from other tools

_BATCH = "'batch_size' counts groups per optimiser step over all devices; micro-batches follow from memory"
_ADVICE = {
    **dict.fromkeys(["num_train_epochs", "num_epochs", "num_ppo_epochs", "ppo_epochs"], "write 'epochs'"),
    **dict.fromkeys(["lr", "learn_rate"], "write 'learning_rate'"),
    **dict.fromkeys(["lora_rank", "lora_r", "rank"], "write 'r' under 'model: lora:'"),
    **dict.fromkeys(["lora_target", "lora_target_modules"], "write 'target_modules' under 'model: lora:'"),
    **dict.fromkeys(["base_model", "model_name_or_path", "model_name"], "write 'base' under 'model:'"),
    **dict.fromkeys(["cutoff_len", "sequence_len", "max_seq_length", "max_seq_len"], "write 'max_length'"),
    **dict.fromkeys(["per_device_train_batch_size", "train_batch_size", "micro_batch_size"], _BATCH),
    **dict.fromkeys(["gradient_accumulation_steps", "mini_batch_size"], _BATCH),
    **dict.fromkeys(["kl_coef", "init_kl_coef", "kl_coeff"], "the pull to the reference is the algorithm's option"),
    **dict.fromkeys(["num_generations", "num_return_sequences"], "write 'samples_per_prompt' under 'rollout:'"),
    **dict.fromkeys(["max_completion_length", "response_length"], "write 'max_new_tokens' under 'rollout:'"),
    **dict.fromkeys(["load_in_4bit", "bnb_4bit_quant_type"], "write 'quantization: nf4' under 'model:'"),
    "load_in_8bit": "write 'quantization: int8' under 'model:'",
    **dict.fromkeys(["adapter", "finetuning_type"], "the default is LoRA; 'model: {lora: none}' trains all weights"),
    **dict.fromkeys(["bf16", "fp16", "torch_dtype"], "write 'dtype' under 'model:'"),
    **dict.fromkeys(["datasets", "dataset", "train_file"], "write 'data' in the stage"),
    **dict.fromkeys(["ref_model", "reference_model"], "write 'reference', naming a stage or 'base'"),
    **dict.fromkeys(["reward_model", "reward_funcs"], "write 'reward', naming a stage or a reward plugin"),
    **dict.fromkeys(["lr_scheduler", "scheduler"], "write 'lr_scheduler_type'"),
    **dict.fromkeys(["warmup_steps"], "write 'warmup_ratio', a share of all steps"),
    **dict.fromkeys(["template", "prompt_template"], "write 'chat_template' under 'model:'"),
    **dict.fromkeys(["save_steps", "save_every"], "write 'checkpoint_every'"),
    **dict.fromkeys(["gradient_clipping", "clip_grad"], "write 'max_grad_norm'"),
    **dict.fromkeys(["depends_on", "after", "needs"], "the order follows from the stages that a stage names"),
    "output_dir": "the folder is given on the command line: --out DIR",
    "type": "a component is its name, or 'name: {options}'",
}
# Where each key belongs, for a key that stands in the wrong place.
_PLACES: dict[str, type[Options]] = {
    "the recipe's top level": TopKeys,
    "'model:'": ModelSpec,
    "'model: lora:'": LoraSpec,
    "the stage": Settings,
    "the stage's 'rollout:'": Rollout,
}


def allowed_keys(model: type[BaseModel]) -> list[str]:
    """The keys a recipe may write for a model."""
    return [info.alias or name for name, info in model.model_fields.items()]


def path_text(keys: Iterable[str | int]) -> str:
    return ".".join(str(key) for key in keys)


# --- pydantic's complaints in plain words

_EXPECTED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda c: "a value",
    "int_type": lambda c: "a whole number",
    "int_from_float": lambda c: "a whole number",
    "int_parsing": lambda c: "a whole number",
    "float_type": lambda c: "a number",
    "float_parsing": lambda c: "a number",
    "finite_number": lambda c: "a finite number",
    "string_type": lambda c: "text",
    "bool_type": lambda c: "true or false",
    "list_type": lambda c: "a list",
    "tuple_type": lambda c: "a list",
    "set_type": lambda c: "a list without repetitions",
    "dict_type": lambda c: "a mapping (key: value)",
    "model_type": lambda c: "a mapping (key: value)",
    "dataclass_type": lambda c: "a mapping (key: value)",
    "none_required": lambda c: "nothing",
    "literal_error": lambda c: f"{c['expected']}",
    "enum": lambda c: f"{c['expected']}",
    "greater_than": lambda c: f"a number above {c['gt']:g}",
    "greater_than_equal": lambda c: f"at least {c['ge']:g}",
    "less_than": lambda c: f"a number below {c['lt']:g}",
    "less_than_equal": lambda c: f"at most {c['le']:g}",
    "multiple_of": lambda c: f"a multiple of {c['multiple_of']:g}",
    "too_short": lambda c: f"at least {c['min_length']} of them",
    "too_long": lambda c: f"at most {c['max_length']} of them",
    "string_too_short": lambda c: f"at least {c['min_length']} character(s)",
    "string_too_long": lambda c: f"at most {c['max_length']} characters",
    "string_pattern_mismatch": lambda c: (
        "letters, digits, '.', '_' and '-'"
        if c["pattern"] == r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
        else f"text like {c['pattern']}"
    ),
}


def _expected(error: Mapping[str, Any]) -> str | None:
    """What was expected, or None where the error has words of its own."""
    phrase = _EXPECTED.get(error["type"])
    return phrase(error.get("ctx", {})) if phrase else None


def shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "nothing" if value is None else str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _wrong_value(where: str, errors: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Message and help for the errors at one place; a union gives one for each of its arms."""
    value = errors[0]["input"]
    phrases = list(dict.fromkeys(phrase for phrase in map(_expected, errors) if phrase))
    if not phrases:
        message = str(errors[0]["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return f"{where}: {message}", ""
    return f"{where}: expected {' or '.join(phrases)}, got {shown(value)}", _value_help(value, phrases)


def _value_help(value: Any, phrases: list[str]) -> str:
    if isinstance(value, str) and any("number" in phrase for phrase in phrases):
        plain = value.replace("_", "").strip()
        if re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", plain):
            return f"write {plain}"
    if "true or false" in phrases and str(value).lower() in ("yes", "no", "on", "off", "0", "1", "true", "false"):
        return f"write {'true' if str(value).lower() in ('yes', 'on', '1', 'true') else 'false'}"
    if isinstance(value, str):
        options = [option for phrase in phrases for option in re.findall(r"'([^']*)'", phrase)]
        return did_you_mean(value, options)
    return ""


# --- one mapping

Model = TypeVar("Model", bound=Options)


class Validator:
    """Validates mappings of a document, collecting problems; a mapping that has one is None."""

    def __init__(self, document: Document):
        self.document = document
        self.problems: list[Problem] = []

    def wrong(self, keys: Keys, message: str, *, at_key: bool = False, help: str = "") -> None:
        problem = self.document.problem(keys, message, at_key=at_key, help=help)
        if problem not in self.problems:
            self.problems.append(problem)

    def unknown(self, keys: Keys, allowed: Iterable[str], extra: str = "") -> None:
        """An unknown key, with the nearest allowed one or the place where it belongs."""
        key, allowed = str(keys[-1]), list(allowed)
        help = extra or self._advice(key, allowed)
        self.wrong(keys, f"unknown key '{key}'", at_key=True, help=help)

    def _advice(self, key: str, allowed: list[str]) -> str:
        homes = [place for place, model in _PLACES.items() if key in allowed_keys(model) and key not in allowed]
        if homes:
            return f"'{key}' belongs in {' or '.join(homes)}"
        near = did_you_mean(key, allowed)
        return _ADVICE.get(key) or near or f"known keys: {', '.join(sorted(allowed)) or 'none'}"

    def validate(
        self,
        model: type[Model],
        raw: Any,
        keys: Keys,
        *,
        hint: Callable[[str], str] | None = None,
        refused: Collection[str] = (),
    ) -> Model | None:
        """Validate plain data, strictly: '1e-5' in quotes is no number and `yes` no boolean.

        hint: what to say of an unknown key. refused: keys of the model that mean nothing here, so none is suggested.
        """
        infinite = list(non_finite(raw))
        for path in infinite:
            self.wrong((*keys, *path), f"{path_text((*keys, *path))}: expected a finite number")
        failed = set(infinite)
        try:
            # JSON mode is strict about scalars, and yet takes lists for tuples and text for paths and enums.
            found = model.model_validate_json(json.dumps(raw), strict=True)
            if not infinite:
                return found
        except ValidationError as error:
            failed |= self._report(model, error, raw, keys, hint, refused, infinite)
        except Exception as error:  # a plugin's validator raised something else
            self.wrong(keys, f"{path_text(keys)}: {type(error).__name__}: {error}")
        self.raw_references(model, raw, keys, failed)
        return None

    def _report(
        self,
        model: type[BaseModel],
        error: ValidationError,
        raw: Any,
        keys: Keys,
        hint: Callable[[str], str] | None,
        refused: Collection[str],
        told: Collection[Keys],
    ) -> set[Keys]:
        """Tell what is wrong, but for places told before; gives the places."""
        places: dict[Keys, list[Mapping[str, Any]]] = {}
        for item in error.errors(include_url=False):
            if (place := self._place(item, raw)) not in told:
                places.setdefault(place, []).append(item)
        for place, errors in places.items():
            deeper = any(other[: len(place)] == place and len(other) > len(place) for other in places)
            if deeper and _expected(errors[0]):
                continue  # an arm of a union that fits less well than the one that failed deeper
            full = (*keys, *place)
            kinds = {item["type"] for item in errors}
            if "extra_forbidden" in kinds:
                extra = hint(str(place[-1])) if hint and len(place) == 1 else ""
                siblings = self._siblings(model, errors[0]["loc"][:-1])
                self.unknown(full, [key for key in siblings if len(place) > 1 or key not in refused], extra)
            elif "missing" in kinds:
                self.wrong(full, f"'{path_text(full)}' is missing", at_key=True, help=self._describe(model, place))
            else:
                message, help = _wrong_value(path_text(full) or "recipe", errors)
                self.wrong(full, message, help=help or self._describe(model, place))
        return set(places)

    @staticmethod
    def _place(item: Mapping[str, Any], raw: Any) -> Keys:
        """The error's path in the YAML: pydantic's has names of union arms in it."""
        place: list[str | int] = []
        value = raw
        loc = item["loc"]
        for index, part in enumerate(loc):
            last = index == len(loc) - 1
            if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int)):
                value = value[part]
                place.append(part)
            elif last and item["type"] == "missing":
                place.append(part)
        return tuple(place)

    @staticmethod
    def _siblings(model: type[BaseModel], loc: Iterable[str | int]) -> list[str]:
        """Keys allowed at an error's place."""
        current: type[BaseModel] | None = model
        for part in loc:
            info = next((i for n, i in current.model_fields.items() if part in (n, i.alias)), None) if current else None
            if info is not None:
                current = _model_in(info.annotation)
        kind = ["algorithm"] if current is Settings else []  # read apart from the settings, and written beside them
        return kind + allowed_keys(current) if current else []

    @staticmethod
    def _describe(model: type[BaseModel], place: Keys) -> str:
        if len(place) != 1:
            return ""
        info = next((i for n, i in model.model_fields.items() if place[0] in (n, i.alias)), None)
        return info.description or "" if info else ""

    def raw_references(self, model: type[BaseModel], raw: Any, keys: Keys, failed: Iterable[Keys]) -> None:
        """Called for a mapping that failed in places, so that what its other keys refer to is checked all the same."""


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model class inside `Model`, `Model | None`, `list[Model]` ..."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)

"""What is wrong with a recipe, in words: pydantic's errors, the nearest name, and the keys of other tools."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from alignkit.errors import MOST_SHOWN, Problem, did_you_mean
from alignkit.options import Options
from alignkit.recipe.schema import NAME_PATTERN, TopKeys, allowed_keys
from alignkit.recipe.yaml import Document, Keys
from alignkit.settings import LoraSpec, ModelSpec, Rollout, SamplingKeys, Settings

Model = TypeVar("Model", bound=Options)
ErrorItem = Mapping[str, Any]  # one of `ValidationError.errors()`
PATH, AROUND = "{path}", "{around}"  # in messages and in help: the place, and that of the mapping around it


@dataclass(frozen=True)
class Mistake:
    """Something wrong below the value that is checked.

    keys: where. others: places that are to blame instead if an override wrote them, or if they are in the file alone.
    at_key: point at the key, not at its value. plugin: the plugin is wrong, not the recipe. allowed: the keys that an
    unknown key may have meant. missing: whether a key is missing.
    """

    message: str
    help: str = ""
    keys: Keys = ()
    at_key: bool = False
    plugin: bool = False
    allowed: Sequence[str] | None = None
    missing: bool = False
    others: tuple[Keys, ...] = ()

    @property
    def text(self) -> str:
        """The message with its place."""
        return self.message.replace(PATH, path_text(self.keys) or "recipe")

    def below(self, *keys: str | int) -> Mistake:
        """The same mistake, seen from above."""
        return replace(self, keys=(*keys, *self.keys), others=tuple((*keys, *other) for other in self.others))


class Mistakes(ValueError):
    """Raised in validators. pydantic knows where the value is, and the mistakes know where they are in it."""

    def __init__(self, *mistakes: Mistake):
        super().__init__(*mistakes)
        self.mistakes = mistakes


def wrong(message: str, help: str = "", keys: Keys = (), at_key: bool = False, plugin: bool = False) -> Mistakes:
    """One mistake, to raise in a validator."""
    return Mistakes(Mistake(message, help, keys, at_key, plugin))


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
    """The mistakes at their places, each once. A missing key is left out if the key next to it is its misspelling."""
    problems: dict[Problem, Mistake] = {}
    meant: set[Keys] = set()
    for mistake in mistakes:
        help = mistake.help
        if mistake.allowed is not None and not help and len(problems) < MOST_SHOWN:  # the search takes longest
            help = advice(str(mistake.keys[-1]), mistake.allowed)
        if mistake.allowed is not None and (guess := re.match("did you mean '([^']+)'", help)):
            meant.add((*mistake.keys[:-1], guess[1]))
        help = help.replace(AROUND, path_text(mistake.keys[:-1]))
        keys = _to_blame(document, mistake)
        problems[document.problem(keys, mistake.text, at_key=mistake.at_key, help=help)] = mistake
    return [problem for problem, mistake in problems.items() if not (mistake.missing and mistake.keys in meant)]


def _to_blame(document: Document, mistake: Mistake) -> Keys:
    overridden = [keys for keys in (*mistake.others, mistake.keys) if document.overridden(keys)]
    written = [keys for keys in (mistake.keys, *mistake.others) if document.has(keys)]
    return next(iter([*overridden, *written]), mistake.keys)


# --- pydantic's errors


def validated(
    model: type[Model],
    raw: Any,
    context: Any = None,
    *,
    hint: Callable[[str], str] = lambda key: "",
    hidden: Collection[str] = (),
) -> tuple[Model | None, list[Mistake]]:
    """Validate plain data strictly: '1e-5' in quotes is not a number, and `yes` is not a boolean.

    context: what references mean. hint: help for an unknown key. hidden: keys that must not be suggested.
    """
    try:
        # In JSON mode pydantic is strict about scalars, but accepts lists for tuples, and text for paths and enums.
        return model.model_validate_json(json.dumps(raw), strict=True, context=context), []
    except ValidationError as error:
        return None, list(_Words(model, raw, hint, hidden).of(error))
    except Exception as error:  # a plugin's validator raised something else
        return None, [Mistake(f"{PATH}: {type(error).__name__}: {error}")]


@dataclass(frozen=True)
class _Words:
    """Puts pydantic's errors of one mapping in words."""

    model: type[BaseModel]
    raw: Any
    hint: Callable[[str], str]
    hidden: Collection[str]

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
            if not _expected(items[0]) or place not in inside:
                yield replace(self._mistake(place, items, places), keys=place)

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

    def _mistake(self, place: Keys, items: Sequence[ErrorItem], places: Mapping[Keys, Sequence[ErrorItem]]) -> Mistake:
        kinds = {item["type"] for item in items}
        if "extra_forbidden" in kinds:
            nested = len(place) > 1
            allowed = [key for key in self._siblings(items[0]["loc"]) if nested or key not in self.hidden]
            help = _only_missing(place, places) if nested else self.hint(str(place[-1]))
            return Mistake(f"unknown key '{place[-1]}'", help, at_key=True, allowed=allowed)
        info = _field(self._model_at(place[:-1]), place[-1]) if place else None
        described = (info.description or "") if info else ""
        if "missing" in kinds:
            return Mistake(f"'{PATH}' is missing", described, at_key=True, missing=True)
        message, help = _wrong_value(items)
        return Mistake(f"{PATH}: {message}", help or described)

    def _siblings(self, loc: Sequence[str | int]) -> list[str]:
        """Return the keys that are allowed at an error's place."""
        model = self._model_at(loc[:-1])
        # A stage's `algorithm` is not part of its settings, but is written next to them.
        return [*(["algorithm"] if model is Settings else []), *(allowed_keys(model) if model else [])]

    def _model_at(self, path: Iterable[str | int]) -> type[BaseModel] | None:
        """Return the model of the mapping at a path, which may contain indices and names of union arms."""
        model: type[BaseModel] | None = self.model
        for part in path:
            info = _field(model, part)
            if info is not None:
                model = _model_in(info.annotation)
        return model


def _only_missing(place: Keys, places: Mapping[Keys, Sequence[ErrorItem]]) -> str:
    """Help for an unknown key if it is the only one in its mapping, which lacks exactly one key; else empty."""
    around = {other: {item["type"] for item in items} for other, items in places.items() if other[:-1] == place[:-1]}
    missing = [other[-1] for other, kinds in around.items() if "missing" in kinds]
    unknown = [other for other, kinds in around.items() if "extra_forbidden" in kinds]
    return f"did you mean '{missing[0]}', which is missing?" if len(missing) == len(unknown) == 1 else ""


def _field(model: type[BaseModel] | None, key: str | int) -> Any:
    """Return the field that a recipe writes under a key, or None."""
    fields = model.model_fields if model else {}
    return next((info for name, info in fields.items() if key in (name, info.alias)), None)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model class inside `Model`, `Model | None`, `list[Model]` ..."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for arg in get_args(annotation) if (model := _model_in(arg))), None)


_MAPPING = "a mapping (key: value)"
_INTEGER = "an integer"
_EXPECTED = {
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing"), _INTEGER),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "dataclass_type"), _MAPPING),
    **dict.fromkeys(("literal_error", "enum"), "{expected}"),
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "set_type": "a list without duplicates",
    "none_required": "null",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "multiple_of": "a multiple of {multiple_of:g}",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
}


def _expected(item: ErrorItem) -> str | None:
    """Return the expected value in words, or None if the error has its own message."""
    phrase, details = _EXPECTED.get(item["type"]), item.get("ctx", {})
    if phrase is None:
        return None
    if details.get("pattern") == NAME_PATTERN:
        return "letters, digits, '.', '_' and '-', starting with a letter or digit"
    return re.sub(r"\b1 (item|character)s$", r"1 \1", phrase.format(**details))


def _wrong_value(items: Sequence[ErrorItem]) -> tuple[str, str]:
    """Return message and help for the errors at one place."""
    value = items[0]["input"]
    # An arm whose model has something to say of the whole value fits it better than one of another type.
    items = [item for item in items if item["type"] == "value_error"] or items
    phrases = list(dict.fromkeys(phrase for phrase in map(_expected, items) if phrase))
    if not phrases:
        return str(items[0]["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, "), ""
    return f"expected {' or '.join(phrases)}, got {shown(value)}", _value_help(value, phrases)


def _value_help(value: Any, phrases: Sequence[str]) -> str:
    """Suggest how to write a value that has the wrong type or is misspelled."""
    text = str(value).lower()
    if text == "none":
        return "write null for no value"
    if "true or false" in phrases and text in ("yes", "no", "on", "off", "0", "1", "true", "false"):
        return f"write {'true' if text in ('yes', 'on', '1', 'true') else 'false'}"
    if not isinstance(value, str):
        return ""
    plain = value.replace("_", "").strip()
    if {_INTEGER, "a number"} & {*phrases} and re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", plain):
        return f"write {plain}"
    return did_you_mean(value, re.findall(r"'([^']*)'", " ".join(phrases)))


# Place -> the keys that belong there, to recognize a key that was written elsewhere.
_PLACES: dict[str, Collection[str]] = {
    "at the top level of the recipe": allowed_keys(TopKeys),
    "under 'model:'": allowed_keys(ModelSpec),
    "under 'model: lora:'": allowed_keys(LoraSpec),
    "in the stage": allowed_keys(Settings),
    "under the stage's 'rollout:'": allowed_keys(Rollout),
    "in a data source": ("hub", "columns", "on_bad_row", "meta"),
    "in a block of stages, next to its 'stages:'": ("repeat",),
}
# Of what asks a server.
_SERVER = ("base_url", "model", "api_key_env", "concurrency", "timeout_seconds", "max_retries", "request", "price")

_BATCH = "use 'batch_size': groups per optimizer step over all devices; micro-batches follow from memory"
# Key of TRL, OpenRLHF, axolotl, LLaMA-Factory or another tool -> what to write here.
_OTHER_TOOLS: dict[tuple[str, ...], str] = {
    ("num_train_epochs", "num_epochs", "num_ppo_epochs", "ppo_epochs", "num_iterations"): "use 'epochs'",
    ("lr", "learn_rate", "actor_learning_rate"): "use 'learning_rate'",
    ("lora_rank", "lora_r", "rank"): "use 'r' under 'model: lora:'",
    ("lora_dropout",): "remove it: alignkit trains without dropout, so that old and new log-probabilities agree",
    ("lora_target", "lora_target_modules"): "use 'target_modules' under 'model: lora:'",
    ("base_model", "model_name_or_path", "model_name", "pretrain"): "use 'base' under 'model:'",
    ("cutoff_len", "sequence_len", "max_seq_length", "max_seq_len", "max_len"): "use 'max_length'",
    ("max_prompt_length", "prompt_max_len"): "use 'max_length', which covers the prompt and its response",
    ("per_device_train_batch_size", "train_batch_size", "micro_batch_size", "micro_train_batch_size"): _BATCH,
    ("gradient_accumulation_steps", "mini_batch_size", "ppo_mini_batch_size", "num_mini_batches"): _BATCH,
    ("rollout_batch_size",): "use 'prompts_per_iteration'",
    ("total_episodes", "num_episodes"): "use 'iterations' and 'prompts_per_iteration'",
    ("ptx_coef", "ptx_coefficient"): "use 'mix: {data: ..., weight: ...}' in the stage",
    ("num_generations", "num_return_sequences", "n_samples_per_prompt"): "use 'samples_per_prompt' under 'rollout:'",
    ("max_completion_length", "response_length", "generate_max_len"): "use 'max_new_tokens' under 'rollout:'",
    ("stop_token", "stop_strings", "stop_sequences"): "use 'stop' under 'rollout:'",
    ("load_in_4bit", "bnb_4bit_quant_type"): "use 'quantization: nf4' under 'model:'",
    ("bnb_4bit_use_double_quant", "use_double_quant", "bnb_4bit_compute_dtype"): (
        "use 'quantization: {type: nf4, double_quant: true}' under 'model:'"
    ),
    ("load_in_8bit",): "use 'quantization: int8' under 'model:'",
    ("adapter", "finetuning_type", "use_peft"): "LoRA is the default; 'model: {lora: none}' trains all weights",
    ("bf16", "fp16", "torch_dtype", "precision"): "use 'dtype' under 'model:'",
    ("datasets", "dataset", "dataset_name", "train_file"): "use 'data' in the stage",
    ("data_dir", "streaming", "dataset_streaming"): "use 'data_files', patterns such as FOLDER/train*, and 'limit'",
    ("eval_dataset", "eval_file"): "use 'validation' in the stage",
    ("ref_model", "reference_model", "ref_policy"): "use 'reference', with the name of a stage or 'base'",
    ("reward_model", "reward_funcs", "reward_model_path"): "use 'reward', with the name of a stage or a reward plugin",
    ("value_model", "critic", "critic_model"): "use 'value_from', with the name of a reward-model stage",
    ("scheduler", "lr_scheduler"): "use 'lr_scheduler_type'",
    ("warmup_steps",): "use 'warmup_ratio', a fraction of all steps",
    ("template", "prompt_template"): "use 'chat_template' under 'model:'",
    ("save_steps", "save_every", "save_strategy"): "use 'checkpoint_every'",
    ("save_total_limit",): "use 'keep_versions: true'; versions are then STAGE@k",
    ("replay_buffer", "replay"): "use 'replay_from', a list of stages",
    (
        "max_grad_norm",
        "gradient_clipping",
        "clip_grad",
        "max_norm",
    ): "use 'optimizer', as in {adamw: {max_grad_norm: 1}}",
    ("adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay"): (
        "use 'optimizer', as in {adamw: {betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: 0.1}}"
    ),
    ("depends_on", "after", "needs"): "leave it out: a stage runs after the stages that it refers to",
    ("resume_from_checkpoint",): "leave it out: an interrupted run resumes when you run it again",
    ("output_dir", "save_path"): "set the folder on the command line: --out DIR",
    ("type",): "write a plugin as its name, or as 'NAME: {options}'",
}
# The same for algorithm options -> the name that all algorithms of alignkit use.
_OPTIONS: dict[tuple[str, ...], str] = {
    ("kl_coef", "init_kl_coef", "kl_coeff", "kl_loss_coef", "kl_penalty"): "kl_coefficient",
    ("clip", "clip_coef", "clip_eps", "eps_clip", "cliprange", "clip_ratio"): "clip_range",
    ("clip_eps_high", "epsilon_high", "clip_ratio_high"): "clip_range_high",
    ("cliprange_value", "value_clip"): "value_clip_range",
    ("scale_rewards",): "scale_by_std",
    ("sft_coef", "sft_weight", "rpo_alpha", "nll_weight", "nll_coef"): "nll_coefficient",
}
_ADVICE = {key: text for keys, text in _OTHER_TOOLS.items() for key in keys}
_OPTION = {key: option for keys, option in _OPTIONS.items() for key in keys}


def common_name(option: str) -> str:
    """The name that alignkit's algorithms give an option of another tool; other names stay."""
    return _OPTION.get(option, option)


def advice(key: str, allowed: Collection[str]) -> str:
    """Return the help for an unknown key. allowed: the keys that are known at its place."""
    if f"{key}s" in allowed:
        return f"did you mean '{key}s'?"
    if key in SamplingKeys.model_fields and key not in allowed:
        if "sampling" in allowed:
            return f"'{key}' belongs under 'sampling:'"
        if "rollout" not in allowed:  # it may be an option of a plugin, whose stage is not known here
            return f"'{key}' belongs under 'rollout:' of a stage that trains, or 'sampling:' of a step"
    if key in _SERVER and "server" in allowed:
        return f"'{key}' belongs under 'server:'"
    places = [place for place, keys in _PLACES.items() if key in keys and key not in allowed]
    if places:
        return f"'{key}' belongs {' or '.join(places)}"
    if option := _OPTION.get(key):
        elsewhere = f"write it as an option of the algorithm: 'algorithm: {{NAME: {{{option}: ...}}}}'"
        return f"use '{option}'" if option in allowed else elsewhere
    known = _ADVICE.get(key, "")
    here = re.fullmatch(r"(use '(\w+)') (under .*|in the stage)", known)
    if here and here[2] in allowed:  # the key is in the right place
        return here[1]
    return known or did_you_mean(key, allowed) or f"known keys: {', '.join(sorted(allowed)) or 'none'}"

"""YAML -> Recipe: everything a run needs, checked before anything is loaded, with all mistakes told at once."""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from alignkit.algorithm import ROLLOUTS, Needs, Options, StageDefaults, Trains
from alignkit.document import Document, Keys, load_document, non_finite
from alignkit.errors import Problem, RecipeError, did_you_mean
from alignkit.plugins import Claim, Registry, Unresolved, plugins
from alignkit.reward import Combine

# --- the types that a recipe consists of


@dataclass(frozen=True)
class Ref:
    """Marks an option as a reference, so that the graph of stages is known before anything runs."""

    kind: Literal["stage", "from", "reward", "data", "judge"]


StageRef = Annotated[str, Ref("stage")]  # stays text: `base`, `sft` or `sft@2`
RewardRef = Annotated[Any, Ref("reward")]  # becomes a RewardSpec
DataRef = Annotated[Any, Ref("data")]  # becomes a DataSpec
JudgeRef = Annotated[Any, Ref("judge")]  # becomes a Component


@dataclass(frozen=True)
class Component:
    """A plugin that a recipe names, with its validated options."""

    kind: str
    name: str
    claim: Claim
    options: Options


@dataclass(frozen=True)
class DataSource:
    """One source of groups: exactly one of `path`, `stage` and `hub` is set. `format` None: detected."""

    format: Component | None = None
    path: Path | None = None
    stage: str | None = None
    hub: str | None = None
    limit: int | None = None
    split: str | None = None
    validation: float = 0.0
    weight: float = 1.0
    on_bad_row: Literal["error", "skip"] = "error"
    columns: dict[str, str] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSpec:
    """Sources that are read as one."""

    sources: tuple[DataSource, ...]


@dataclass(frozen=True)
class RewardSpec:
    """A reward: a stage's model, a model in a folder (`name` is its path), a plugin, or a combination of these."""

    kind: Literal["stage", "folder", "reward", "combine"]
    name: str
    component: Component | None = None
    children: dict[str, RewardSpec] = field(default_factory=dict)


class LoraSpec(Options):
    """The adapter, in peft's own names."""

    r: int = Field(default=16, ge=1, le=4096, description="rank")
    lora_alpha: int = Field(default=32, ge=1, description="scale: the adapter counts lora_alpha / r")
    target_modules: str | list[str] = Field(default="all-linear", description="layers that get an adapter")
    use_rslora: bool = Field(default=False, description="scale by lora_alpha / sqrt(r)")
    lora_dropout: float = Field(default=0.0, description="always 0")

    @field_validator("lora_dropout")
    @classmethod
    def _no_dropout(cls, value: float) -> float:
        if value != 0:
            raise ValueError("alignkit trains without dropout so that old and new log-probabilities agree")
        return value


def _none_word(value: Any) -> Any:
    return None if value == "none" else value


class ModelSpec(Options):
    """The base model and how it is trained."""

    base: str = Field(min_length=1, description="hub id, folder, or a model plugin's name")
    revision: str | None = Field(default=None, description="commit or tag on the hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["none", "nf4", "fp4", "int8"] = "none"
    lora: Annotated[LoraSpec | None, BeforeValidator(_none_word)] = Field(
        default=LoraSpec(), description="adapter options; none: train all weights"
    )
    chat_template: str | None = Field(default=None, description="template for base models that have none")
    trust_remote_code: bool = False
    device: str = "auto"


class Rollout(Options):
    """How responses are sampled."""

    samples_per_prompt: int | None = Field(default=1, ge=1, le=1024, description="responses to each prompt")
    max_new_tokens: int | None = Field(default=128, ge=1, description="longest response")
    min_new_tokens: int = Field(default=0, ge=0, description="no end of turn before this many tokens")
    temperature: float | None = Field(default=1.0, gt=0, description="of sampling; log-probabilities use it too")
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, description="0: all tokens")
    stop: list[str] = Field(default_factory=list, description="texts that end a response")

    @model_validator(mode="after")
    def _ordered(self) -> Rollout:
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}")
        return self


class Mix(Options):
    """A second stream of data beside the algorithm's own (InstructGPT's ptx)."""

    data: DataRef
    objective: Literal["text", "sft"] = "text"
    weight: float = Field(ge=0, description="its loss counts so much")
    batch_size: int | None = Field(default=None, ge=1)


class Settings(Options):
    """The stage-level keys of a training stage; the same for every algorithm."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, populate_by_name=True)

    from_: Annotated[str, Ref("from")] | None = Field(
        default=None, alias="from", description="stage, stage@k, base, or a local adapter folder to start from"
    )
    reference: StageRef | None = Field(
        default=None, description="stage to stay near; default: where the stage starts from"
    )
    data: DataRef = None
    validation: DataRef = None
    prompts: DataRef = None
    reward: RewardRef = None
    rollout: Rollout = Field(default_factory=Rollout)
    iterations: int = Field(default=10, ge=1)
    prompts_per_iteration: int = Field(default=32, ge=1)
    mix: Mix | None = None
    value_from: StageRef | None = Field(default=None, description="reward-model stage that the value role starts from")
    batch_size: int = Field(default=16, ge=1, description="groups per optimiser step, over all devices")
    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "linear"
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_length: int = Field(default=1024, ge=2, description="longest prompt with response, in tokens")
    seed: int | None = Field(default=None, ge=0)
    checkpoint_every: int | None = Field(default=None, ge=1, description="optimiser steps between checkpoints")
    keep_epochs: bool = Field(default=False, description="keep the adapter of every epoch or iteration k as NAME@k")
    carry_from: list[StageRef] = Field(default_factory=list, description="earlier stages whose rollouts count too")


@dataclass(frozen=True)
class Stage:
    """One named entry of a recipe. `settings`: None for a step. `upstream`: stages that it needs, by name."""

    name: str
    kind: Literal["algorithm", "step"]
    component: Component
    settings: Settings | None
    upstream: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """A valid recipe. `stages` are in an order in which they can run; `resolved` is its plain data."""

    name: str
    path: Path
    folder: Path
    seed: int
    description: str
    model: ModelSpec
    stages: dict[str, Stage]
    resolved: dict[str, Any]


class _Top(Options):
    """The keys of a recipe."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    seed: int = Field(default=0, ge=0)
    requires: list[str] = Field(default_factory=list)
    model: Any
    stages: dict[str, Any] = Field(min_length=1)


class _DataKeys(Options):
    """The keys every data source understands, whatever its format."""

    path: str | None = None
    hub: str | None = None
    stage: str | None = None
    limit: int | None = Field(default=None, ge=1)
    split: str | None = None
    validation: float = Field(default=0.0, ge=0, lt=1)
    weight: float = Field(default=1.0, gt=0)
    on_bad_row: Literal["error", "skip"] = "error"
    columns: dict[str, str] = Field(default_factory=dict)
    meta: dict[str, Any] = Field(default_factory=dict)


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
    "the recipe's top level": _Top,
    "'model:'": ModelSpec,
    "'model: lora:'": LoraSpec,
    "the stage": Settings,
    "the stage's 'rollout:'": Rollout,
}
# What stage-level keys mean to algorithms that read a data set; the reason is the error's help.
_ONLY_ROLLOUTS = {
    "prompts": "it learns from 'data' and samples nothing",
    "reward": "it learns from 'data': nothing is sampled that could be scored",
    "rollout": "it learns from 'data' and samples nothing",
    "iterations": "it passes over its data 'epochs' times",
    "prompts_per_iteration": "it learns from 'data' and has no prompts",
    "carry_from": "it learns from 'data' and has no rollouts",
}
_ONLY_DATASET = {
    "data": "it learns from its own responses to 'prompts'; a second stream is 'mix: {data: ...}'",
    "validation": "progress is measured by its reward; use a step to evaluate",
}


def _allowed(model: type[BaseModel]) -> list[str]:
    """The keys a recipe may write for a model."""
    return [info.alias or name for name, info in model.model_fields.items()]


def _path_text(keys: Iterable[str | int]) -> str:
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


def _shown(value: Any) -> str:
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
    return f"{where}: expected {' or '.join(phrases)}, got {_shown(value)}", _value_help(value, phrases)


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


# --- validation

_Model = TypeVar("_Model", bound=Options)


class _Builder:
    """Reads a document into a Recipe, collecting problems; a part that has one is None."""

    def __init__(self, document: Document, registry: Registry):
        self.document = document
        self.registry = registry
        self.problems: list[Problem] = []
        self.plugin_problems = 0
        self.claims: dict[str, tuple[Literal["algorithm", "step"], Claim] | None] = {}  # of every declared stage
        self.stage = ""  # the stage being read
        self.upstream: dict[str, list[str]] = {}
        self.versions: list[tuple[Keys, str]] = []  # `stage@k` references, judged when all stages are read

    # problems

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
        homes = [place for place, model in _PLACES.items() if key in _allowed(model) and key not in allowed]
        if homes:
            return f"'{key}' belongs in {' or '.join(homes)}"
        near = did_you_mean(key, allowed)
        return _ADVICE.get(key) or near or f"known keys: {', '.join(sorted(allowed)) or 'none'}"

    # validation of one mapping

    def validate(
        self, model: type[_Model], raw: Any, keys: Keys, *, hint: Callable[[str], str] | None = None
    ) -> _Model | None:
        """Validate plain data, strictly: '1e-5' in quotes is no number and `yes` no boolean."""
        infinite = list(non_finite(raw))
        for path in infinite:
            self.wrong((*keys, *path), f"{_path_text((*keys, *path))}: expected a finite number")
        if infinite:
            return None
        try:
            # JSON mode is strict about scalars, and yet takes lists for tuples and text for paths and enums.
            return model.model_validate_json(json.dumps(raw), strict=True)
        except ValidationError as error:
            self._report(model, error, raw, keys, hint)
        except Exception as error:  # a plugin's validator raised something else
            self.wrong(keys, f"{_path_text(keys)}: {type(error).__name__}: {error}")
        return None

    def _report(
        self,
        model: type[BaseModel],
        error: ValidationError,
        raw: Any,
        keys: Keys,
        hint: Callable[[str], str] | None,
    ) -> None:
        places: dict[Keys, list[Mapping[str, Any]]] = {}
        for item in error.errors(include_url=False):
            places.setdefault(self._place(item, raw), []).append(item)
        for place, errors in places.items():
            deeper = any(other[: len(place)] == place and len(other) > len(place) for other in places)
            if deeper and _expected(errors[0]):
                continue  # an arm of a union that fits less well than the one that failed deeper
            full = (*keys, *place)
            kinds = {item["type"] for item in errors}
            if "extra_forbidden" in kinds:
                extra = hint(str(place[-1])) if hint and len(place) == 1 else ""
                self.unknown(full, self._siblings(model, errors[0]["loc"][:-1]), extra)
            elif "missing" in kinds:
                self.wrong(full, f"'{_path_text(full)}' is missing", at_key=True, help=self._describe(model, place))
            else:
                message, help = _wrong_value(_path_text(full) or "recipe", errors)
                self.wrong(full, message, help=help or self._describe(model, place))
        if () not in places:
            self.raw_references(model, raw, keys, places)

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
        return _allowed(current) if current else []

    @staticmethod
    def _describe(model: type[BaseModel], place: Keys) -> str:
        if len(place) != 1:
            return ""
        info = next((i for n, i in model.model_fields.items() if place[0] in (n, i.alias)), None)
        return info.description or "" if info else ""

    # components

    def resolve(
        self, kind: str, name: str, keys: Keys, *, at_key: bool = False, also: Iterable[str] = ()
    ) -> Claim | None:
        """The claim on a name; `also`: names of other things that could stand here."""
        try:
            return self.registry.get(kind, name)
        except Unresolved as error:
            self.plugin_problems += error.broken
            help = (did_you_mean(name, [*also, *self.registry.names(kind)]) if also else "") or error.help
            self.wrong(keys, error.message, at_key=at_key, help=help)
            return None

    def split(self, kind: str, raw: Any, keys: Keys) -> tuple[str, Any, Keys] | None:
        """`name` or `name: {options}` -> name, options and the path of the options."""
        if isinstance(raw, str):
            return raw, {}, (*keys, raw)
        if isinstance(raw, dict) and len(raw) == 1:
            ((name, options),) = raw.items()
            if options is None:
                options = {}
            return name, options, (*keys, name)
        got = f"{len(raw)} names" if isinstance(raw, dict) else _shown(raw)
        message = f"{_path_text(keys)}: expected the name of a {kind}, or one 'name: {{options}}', got {got}"
        self.wrong(keys, message)
        return None

    def component(self, kind: str, raw: Any, keys: Keys, claim: Claim | None = None) -> Component | None:
        parts = self.split(kind, raw, keys)
        if parts is None:
            return None
        name, options, path = parts
        claim = claim or self.resolve(kind, name, path if isinstance(raw, dict) else keys, at_key=isinstance(raw, dict))
        if claim is None:
            return None
        return self.with_options(kind, name, claim, options, path)

    def with_options(
        self, kind: str, name: str, claim: Claim, raw: Any, keys: Keys, model: type[Options] | None = None
    ) -> Component | None:
        if not isinstance(raw, dict):
            self.wrong(keys, f"{_path_text(keys)}: expected a mapping of options, got {_shown(raw)}")
            return None
        before = len(self.problems)
        options: Options | None = self.validate(model or _options_of(claim), raw, keys)
        if options is None:
            return None
        options = self.references(options, keys)
        return None if len(self.problems) > before else Component(kind, name, claim, options)

    # references

    def references(self, options: _Model, keys: Keys) -> _Model:
        """A copy of validated options with every marked reference checked and replaced by what it stands for."""
        changes = {}
        for name, info in type(options).model_fields.items():
            value = getattr(options, name)
            annotation = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
            new = self._follow(annotation, value, (*keys, info.alias or name))
            if new is not value:
                changes[name] = new
        return options.model_copy(update=changes) if changes else options

    def raw_references(self, model: type[BaseModel], raw: Any, keys: Keys, failed: Iterable[Keys]) -> None:
        """Check the references in options of which other parts are wrong, so that all is told at once."""
        wrong = {place[0] for place in failed if place}
        for name, info in model.model_fields.items():
            key = info.alias or name
            if isinstance(raw, dict) and key in raw and key not in wrong:
                annotation = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
                self._follow(annotation, raw[key], (*keys, key))

    def _follow(self, annotation: Any, value: Any, keys: Keys) -> Any:
        if value is None:
            return None
        origin, args = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            ref = next((item for item in args[1:] if isinstance(item, Ref)), None)
            return self._resolve_ref(ref, value, keys) if ref else self._follow(args[0], value, keys)
        if origin in (Union, UnionType):
            return self._follow(_fitting(args, value), value, keys)
        if isinstance(value, Options):
            return self.references(value, keys)
        if isinstance(annotation, type) and issubclass(annotation, Options):
            self.raw_references(annotation, value, keys, ())
            return value
        if isinstance(value, Mapping) and len(args) == 2:
            new = {key: self._follow(args[1], item, (*keys, key)) for key, item in value.items()}
            return new if any(new[key] is not value[key] for key in new) else value
        if isinstance(value, (list, tuple)) and args:
            kinds = args if isinstance(value, tuple) and args[-1] is not Ellipsis else [args[0]] * len(value)
            items = [self._follow(kind, v, (*keys, i)) for i, (kind, v) in enumerate(zip(kinds, value, strict=False))]
            return type(value)(items) if any(a is not b for a, b in zip(items, value, strict=False)) else value
        return value

    def _resolve_ref(self, ref: Ref, value: Any, keys: Keys) -> Any:
        if ref.kind == "data":
            return self.data(value, keys)
        if ref.kind == "reward":
            return self.reward(value, keys)
        if ref.kind == "judge":
            return self.component("judge", value, keys)
        if ref.kind == "from":
            return self.start(value, keys)
        return value if self.stage_ref(value, keys) else None

    def stage_ref(self, value: Any, keys: Keys) -> bool:
        """Check `base`, `stage` or `stage@k`, and note that the present stage needs it."""
        if not isinstance(value, str):
            self.wrong(keys, f"{_path_text(keys)}: expected a stage's name, got {_shown(value)}")
            return False
        name, at, version = value.partition("@")
        if name == "base":
            if at:
                self.wrong(keys, "'base' is the untouched model: it has no versions")
            return not at
        if name not in self.claims:
            known = [*self.claims, "base"]
            self.wrong(keys, f"no stage '{name}'", help=did_you_mean(name, known) or f"stages: {', '.join(known)}")
            return False
        if name == self.stage:
            self.wrong(keys, f"stage '{name}' refers to itself")
            return False
        if at and not re.fullmatch(r"[1-9][0-9]{0,8}", version):
            self.wrong(keys, f"'{value}': after '@' stands an epoch or iteration, counted from 1")
            return False
        if at:
            self.versions.append((keys, value))
        self.depend(name)
        return True

    def depend(self, name: str) -> None:
        needed = self.upstream.setdefault(self.stage, [])
        if name not in needed:
            needed.append(name)

    def start(self, value: str, keys: Keys) -> str | None:
        """`from`: a stage, or a folder that holds an adapter (or a model)."""
        if value.partition("@")[0] in (*self.claims, "base"):
            return value if self.stage_ref(value, keys) else None
        folder = self.locate(value, keys)
        if folder.is_dir():
            if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
                self.wrong(keys, f"'{value}' holds neither an adapter (adapter_config.json) nor a model (config.json)")
            return str(folder)
        known = [*self.claims, "base"]
        help = did_you_mean(value, known) or f"stages: {', '.join(known)}"
        self.wrong(keys, f"'{value}' is neither a stage nor a folder", help=help)
        return None

    def locate(self, text: str, keys: Keys) -> Path:
        path = Path(text).expanduser()
        return path if path.is_absolute() else (self.document.folder(keys) / path).resolve()

    def trains_reward(self, name: str) -> bool | None:
        """Whether a stage trains a reward model; None where its algorithm is unknown."""
        entry = self.claims.get(name.partition("@")[0])
        if entry is None:
            return None
        kind, claim = entry
        return kind == "algorithm" and claim.thing.trains is Trains.REWARD

    # data

    def data(self, raw: Any, keys: Keys) -> DataSpec | None:
        if isinstance(raw, list):
            if not raw:
                self.wrong(keys, f"{_path_text(keys)}: expected at least one source, got an empty list")
            sources = [self.source(item, (*keys, i)) for i, item in enumerate(raw)]
        else:
            sources = [self.source(raw, keys)]
        good = [source for source in sources if source is not None]
        return DataSpec(tuple(good)) if good and len(good) == len(sources) else None

    def source(self, raw: Any, keys: Keys) -> DataSource | None:
        if isinstance(raw, str):
            if raw in self.claims:
                return DataSource(stage=raw) if self.data_stage(raw, keys) else None
            path = self.file(raw, keys, also=self.claims)
            return DataSource(path=path) if path else None
        if not isinstance(raw, dict):
            message = f"{_path_text(keys)}: expected a path, a stage or a mapping with one of them, got {_shown(raw)}"
            self.wrong(keys, message)
            return None
        named = self._named_format(raw)
        return self._formatted(named, raw[named], (*keys, named)) if named else self._source(raw, keys, None, "")

    @staticmethod
    def _named_format(raw: dict[str, Any]) -> str:
        """The format's name in `{format: {...}}`, or an empty string."""
        keys = list(raw)
        common = _allowed(_DataKeys)
        if len(keys) != 1 or keys[0] in common:
            return ""
        inner = raw[keys[0]]
        return keys[0] if isinstance(inner, dict) or not difflib.get_close_matches(keys[0], common, 1, 0.8) else ""

    def _formatted(self, name: str, raw: Any, keys: Keys) -> DataSource | None:
        claim = self.resolve("format", name, keys, at_key=True)
        if isinstance(raw, str):  # `{hh_rlhf: file.jsonl}`
            return self._source({"path": raw}, keys, claim, name, short=True) if claim else None
        if not isinstance(raw, dict):
            self.wrong(keys, f"{_path_text(keys)}: expected a path or a mapping, got {_shown(raw)}")
            return None
        return self._source(raw, keys, claim, name) if claim else None

    def _source(
        self, raw: dict[str, Any], keys: Keys, claim: Claim | None, name: str, short: bool = False
    ) -> DataSource | None:
        model = _options_of(claim) if claim else Options
        common, own = _allowed(_DataKeys), _allowed(model)
        before = len(self.problems)
        for key in [key for key in raw if key not in common and key not in own]:
            self.unknown((*keys, key), [*common, *own])
        values = self.validate(_DataKeys, {key: value for key, value in raw.items() if key in common}, keys)
        component = None
        if claim:
            options = {key: value for key, value in raw.items() if key in own}
            component = self.with_options("format", name, claim, options, keys, model)
        if values is None:
            return None
        path, stage = self._origin(values, keys, keys if short else (*keys, "path"))
        if len(self.problems) > before:
            return None
        shared = values.model_dump(exclude={"path", "stage"})
        return DataSource(format=component, path=path, stage=stage, **shared)

    def _origin(self, values: _DataKeys, keys: Keys, path_keys: Keys) -> tuple[Path | None, str | None]:
        given = [name for name in ("path", "hub", "stage") if getattr(values, name) is not None]
        if len(given) != 1:
            got = f"both {' and '.join(given)}" if given else "none of them"
            message = f"{_path_text(keys)}: expected one of 'path', 'hub' and 'stage', got {got}"
            self.wrong(keys, message, at_key=not given)
            return None, None
        if values.stage is not None:
            self.data_stage(values.stage, (*keys, "stage"))
        return self.file(values.path, path_keys) if values.path is not None else None, values.stage

    def data_stage(self, name: str, keys: Keys) -> bool:
        """Data made by another stage: only steps make data."""
        if not self.stage_ref(name, keys):
            return False
        entry = self.claims.get(name)
        if name == "base" or "@" in name or (entry and entry[0] != "step"):
            self.wrong(keys, f"'{name}' makes no data: only steps do")
            return False
        return True

    def file(self, text: str, keys: Keys, also: Iterable[str] = ()) -> Path | None:
        path = self.locate(text, keys)
        if path.exists():
            return path
        near = sorted(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else []
        guess = did_you_mean(path.name, [*near, *also])
        what = f"no such file: {text}" if not also else f"no such file or stage: {text}"
        self.wrong(keys, what, help=guess or f"looked in {path.parent}")
        return None

    # rewards

    def reward(self, raw: Any, keys: Keys) -> RewardSpec | None:
        if isinstance(raw, RewardSpec):  # already replaced in a combination's options
            return raw
        if isinstance(raw, str) and raw.partition("@")[0] in self.claims:
            return self.reward_stage(raw, keys)
        if isinstance(raw, dict) and list(raw) == ["folder"]:
            return self.reward_folder(raw["folder"], (*keys, "folder"))
        parts = self.split("reward", raw, keys)
        if parts is None:
            return None
        name, options, path = parts
        at_key = isinstance(raw, dict)
        if name in self.claims:
            self.wrong(path, f"'{name}' is a stage: it takes no options here", at_key=True, help=f"write just '{name}'")
            return None
        claim = self.resolve("reward", name, path if at_key else keys, at_key=at_key, also=self.claims)
        component = self.with_options("reward", name, claim, options, path) if claim else None
        return self._combined(component, path) if component else None

    def reward_stage(self, name: str, keys: Keys) -> RewardSpec | None:
        if not self.stage_ref(name, keys):
            return None
        trains = self.trains_reward(name)
        if trains is False:
            help = "a reward is a stage whose algorithm trains a reward model, a reward plugin, or {folder: PATH}"
            self.wrong(keys, f"stage '{name.partition('@')[0]}' gives no reward: it trains no reward model", help=help)
            return None
        return RewardSpec("stage", name) if trains else None

    def reward_folder(self, raw: Any, keys: Keys) -> RewardSpec | None:
        if not isinstance(raw, str):
            self.wrong(keys, f"{_path_text(keys)}: expected a path, got {_shown(raw)}")
            return None
        path = self.locate(raw, keys)
        if not path.is_dir():
            self.wrong(keys, f"no such folder: {raw}", help=f"looked in {path.parent}")
            return None
        return RewardSpec("folder", str(path))

    def _combined(self, component: Component, keys: Keys) -> RewardSpec | None:
        if not issubclass(component.claim.thing, Combine):
            return RewardSpec("reward", component.name, component)
        try:
            parts = dict(component.claim.thing(component.options).parts())
        except Exception as error:
            self.wrong(keys, f"combination '{component.name}' cannot name its rewards: {type(error).__name__}: {error}")
            return None
        # `parts` may give values that no RewardRef field held; they are read as if they stood in the options.
        children = {name: self.reward(value, (*keys, name)) for name, value in parts.items()}
        good = {name: child for name, child in children.items() if child is not None}
        return RewardSpec("combine", component.name, component, good) if len(good) == len(children) else None

    # stages

    def declare(self, stages: Mapping[str, Any]) -> None:
        """First pass: which stages there are and what each is, so that references can be judged."""
        for name, raw in stages.items():
            self.claims[name] = None
            keys: Keys = ("stages", name)
            self._check_stage_name(name, keys)
            if not isinstance(raw, dict):
                self.wrong(keys, f"stage '{name}': expected a mapping, got {_shown(raw)}")
                continue
            self.claims[name] = self._stage_claim(name, raw, keys)

    def _check_stage_name(self, name: str, keys: Keys) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            message = f"stage name '{name}': expected letters, digits, '_' and '-' (it becomes a folder)"
            self.wrong(keys, message, at_key=True)
        elif name in ("base", "none", "folder"):
            self.wrong(keys, f"a stage cannot be called '{name}': the word means something else", at_key=True)
        elif self.registry.has("reward", name):
            message = f"stage '{name}' has the name of an installed reward"
            help = f"'reward: {name}' would be ambiguous; rename the stage"
            self.wrong(keys, message, at_key=True, help=help)

    def _stage_claim(
        self, name: str, raw: dict[str, Any], keys: Keys
    ) -> tuple[Literal["algorithm", "step"], Claim] | None:
        kinds: tuple[Literal["algorithm", "step"], ...] = ("algorithm", "step")
        given = [kind for kind in kinds if raw.get(kind) is not None]
        if len(given) != 1:
            got = "has both 'algorithm' and 'step'" if given else "names neither an algorithm nor a step"
            guess = next((did_you_mean(key, ["algorithm", "step"]) for key in raw), "") if not given else ""
            self.wrong(keys, f"stage '{name}' {got}", at_key=True, help=guess or "a stage is one or the other")
            return None
        kind = given[0]
        parts = self.split(kind, raw[kind], (*keys, kind))
        if parts is None:
            return None
        at_key = isinstance(raw[kind], dict)
        claim = self.resolve(kind, parts[0], parts[2] if at_key else (*keys, kind), at_key=at_key)
        return (kind, claim) if claim else None

    def stages(self, stages: Mapping[str, Any]) -> dict[str, Stage]:
        """Second pass: options, settings and references of each stage."""
        result = {}
        for name, raw in stages.items():
            self.stage = name
            self.upstream[name] = []
            entry = self.claims[name]
            if entry is None:
                self._settings_alone(raw, ("stages", name))
                continue
            kind, claim = entry
            read = self._algorithm if kind == "algorithm" else self._step
            stage = read(name, claim, raw, ("stages", name))
            if stage is not None:
                result[name] = stage
        return result

    def _settings_alone(self, raw: Any, keys: Keys) -> None:
        """Check what can be checked of a training stage whose algorithm is unknown, so that all is told at once."""
        if isinstance(raw, dict) and raw.get("algorithm") is not None and raw.get("step") is None:
            given = {key: value for key, value in raw.items() if key not in ("algorithm", "step") and value is not None}
            settings = self.validate(Settings, given, keys)
            if settings is not None:
                self.references(settings, keys)

    def _step(self, name: str, claim: Claim, raw: dict[str, Any], keys: Keys) -> Stage | None:
        named = raw["step"]
        beside = {key: value for key, value in raw.items() if key not in ("step", "algorithm")}
        if isinstance(named, dict):
            for key in beside:
                self.unknown((*keys, key), (), f"options stand beside 'step: {next(iter(named))}', or all inside it")
            component = self.component("step", named, (*keys, "step"), claim)
        else:
            component = self.with_options("step", named, claim, beside, keys)
        return Stage(name, "step", component, None, tuple(self.upstream[name])) if component else None

    def _algorithm(self, name: str, claim: Claim, raw: dict[str, Any], keys: Keys) -> Stage | None:
        before = len(self.problems)
        component = self.component("algorithm", raw["algorithm"], (*keys, "algorithm"), claim)
        given = {key: value for key, value in raw.items() if key not in ("step", "algorithm") and value is not None}
        self._check_keys(claim, given, keys)
        wanted = set(_allowed(_options_of(claim)))

        def hint(key: str) -> str:
            option = claim.name if key in wanted else ""
            return f"'{key}' is an option of {option}: 'algorithm: {{{option}: {{{key}: ...}}}}'" if option else ""

        settings = self.validate(Settings, _filled(given, claim.thing.defaults), keys, hint=hint)
        if settings is not None:
            settings = self.references(settings, keys)
            self._check_settings(claim, settings, given, keys)
        if component is None or settings is None or len(self.problems) > before:
            return None
        return Stage(name, "algorithm", component, settings, tuple(self.upstream[name]))

    def _check_keys(self, claim: Claim, given: Mapping[str, Any], keys: Keys) -> None:
        """Which keys a stage needs and refuses follows from where its algorithm's groups come from."""
        rollouts = claim.thing.source is ROLLOUTS
        for key, reason in (_ONLY_DATASET if rollouts else _ONLY_ROLLOUTS).items():
            if key in given:
                self.wrong((*keys, key), f"{claim.name} takes no '{key}'", at_key=True, help=reason)
        for key in ("prompts", "reward") if rollouts else ("data",):
            if key not in given:
                self.wrong((*keys, key), f"'{_path_text((*keys, key))}' is missing: {claim.name} needs it", at_key=True)
        if claim.thing.trains is Trains.REWARD and "mix" in given:
            help = "a reward model has no language head to train on it"
            self.wrong((*keys, "mix"), f"{claim.name} takes no 'mix'", at_key=True, help=help)

    def _check_settings(self, claim: Claim, settings: Settings, given: Mapping[str, Any], keys: Keys) -> None:
        if settings.value_from and self.trains_reward(settings.value_from) is False:
            self.wrong((*keys, "value_from"), f"'{settings.value_from}' trains no reward model")
        policy = claim.thing.trains is Trains.POLICY
        for key, ref in (("from", settings.from_), ("reference", settings.reference)):
            if policy and ref and self.trains_reward(ref):
                self.wrong((*keys, key), f"'{ref}' is a reward model: {claim.name} needs a policy here")
        needs = claim.thing.needs
        if not isinstance(needs, Needs):  # a property: depends on the options
            return
        if settings.value_from and not needs.values:
            self.wrong((*keys, "value_from"), f"{claim.name} trains no value role", at_key=True)
        samples = settings.rollout.samples_per_prompt or 1
        if claim.thing.source is ROLLOUTS and samples < needs.min_samples:
            message = f"{claim.name} needs at least {needs.min_samples} responses to each prompt, not {samples}"
            self.wrong((*keys, "rollout", "samples_per_prompt"), message, help="rollout: {samples_per_prompt: ...}")

    def check_versions(self, stages: Mapping[str, Stage]) -> None:
        """`stage@k` needs a stage that keeps its versions, and at least k of them."""
        for keys, ref in self.versions:
            name, _, version = ref.partition("@")
            stage = stages.get(name)
            if stage is None:
                continue
            if stage.settings is None:
                self.wrong(keys, f"'{ref}': stage '{name}' is a step and has no versions")
                continue
            rollouts = stage.component.claim.thing.source is ROLLOUTS
            count = stage.settings.iterations if rollouts else stage.settings.epochs
            if not stage.settings.keep_epochs:
                message = f"'{ref}': stage '{name}' keeps only its last version"
                self.wrong(keys, message, help=f"write 'keep_epochs: true' in stage '{name}'")
            elif int(version) > count:
                self.wrong(keys, f"'{ref}': stage '{name}' has only {count} {'iterations' if rollouts else 'epochs'}")

    def order(self, names: Sequence[str]) -> list[str]:
        """Stages in an order in which they can run, the declared one where possible; a cycle is a problem."""
        done: list[str] = []
        waiting = list(names)
        while waiting:
            ready = next((n for n in waiting if all(up in done for up in self.upstream.get(n, ()))), None)
            if ready is None:
                cycle = self._cycle(waiting, done)
                text = " -> ".join([*cycle, cycle[0]])
                self.wrong(("stages", cycle[0]), f"stages wait for each other: {text}", at_key=True)
                return list(names)
            waiting.remove(ready)
            done.append(ready)
        return done

    def _cycle(self, waiting: list[str], done: list[str]) -> list[str]:
        path = [waiting[0]]
        while True:
            following = next(up for up in self.upstream[path[-1]] if up not in done)
            if following in path:
                return path[path.index(following) :]
            path.append(following)

    # the rest

    def model(self, raw: Any) -> ModelSpec | None:
        keys: Keys = ("model",)
        if isinstance(raw, str):
            self.wrong(keys, "model: expected a mapping", help=f"write 'model: {{base: {raw}}}'")
            return None
        spec = self.validate(ModelSpec, raw, keys)
        if spec is None:
            return None
        if spec.quantization != "none" and spec.lora is None:
            message = f"{spec.quantization} weights cannot be trained: use lora, or 'quantization: none'"
            # Laid at the override, where one of the two was made by an override.
            culprit = "lora" if self.document.overridden((*keys, "lora")) else "quantization"
            self.wrong((*keys, culprit), message)
        base = self._base(spec.base, (*keys, "base"))
        return spec.model_copy(update={"base": base})

    def _base(self, base: str, keys: Keys) -> str:
        """A model plugin's name and a hub id stay as they are; a folder becomes absolute."""
        if self.registry.has("model", base):
            self.resolve("model", base, keys)  # two claims are an error
            return base
        path = self.locate(base, keys)
        if path.is_dir():
            return str(path)
        if base.startswith((".", "/", "~")):
            self.wrong(keys, f"no such folder: {base}", help=f"looked for {path}")
        elif "/" not in base:
            near = difflib.get_close_matches(base, self.registry.names("model"), 1, 0.85)
            culprits = [broken for broken in self.registry.broken if broken.would_give(base)]
            if near or culprits:  # hub ids without a namespace are few; a misspelt plugin is likelier
                self.resolve("model", base, keys)
        return base

    def requires(self, items: Sequence[str]) -> None:
        from packaging.requirements import InvalidRequirement, Requirement

        for index, text in enumerate(items):
            keys: Keys = ("requires", index)
            try:
                requirement = Requirement(text)
                installed = importlib.metadata.version(requirement.name)
            except InvalidRequirement:
                self.wrong(keys, f"'{text}' is no requirement", help="like 'alignkit-x>=0.2'")
            except importlib.metadata.PackageNotFoundError:
                self.wrong(keys, f"the recipe requires {text}, which is not installed", help=f"pip install '{text}'")
            else:
                if not requirement.specifier.contains(installed, prereleases=True):
                    message = f"the recipe requires {text}, installed is {installed}"
                    self.wrong(keys, message, help=f"pip install '{text}'")


def _options_of(claim: Claim) -> type[Options]:
    options: type[Options] = getattr(claim.thing, "Options", Options)
    return options


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model class inside `Model`, `Model | None`, `list[Model]` ..."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)


def _belongs(value: Any, plain: Any) -> bool:
    """Whether a value, or the plain data that an options object would be made from, is of a type."""
    if plain is Any or not isinstance(plain, type):
        return False
    return isinstance(value, plain) or (isinstance(value, dict) and issubclass(plain, Options))


def _fitting(arms: Sequence[Any], value: Any) -> Any:
    """The arm of a union that a validated value belongs to; plain types first, `Any` references last."""
    for arm in arms:
        if get_origin(arm) is Literal and value in get_args(arm):
            return arm
        plain = get_origin(arm) or arm
        if get_origin(arm) is not Annotated and _belongs(value, plain):
            return arm
    marked = [arm for arm in arms if get_origin(arm) is Annotated]
    for arm in marked:
        plain = get_args(arm)[0]
        if _belongs(value, get_origin(plain) or plain):
            return arm
    return marked[-1] if marked else None


def _filled(given: Mapping[str, Any], defaults: StageDefaults) -> dict[str, Any]:
    """A stage's keys with the algorithm's own defaults where the recipe is silent."""
    raw = dict(given)
    rollout = raw.get("rollout", {})
    if isinstance(rollout, dict):
        rollout = {key: value for key, value in rollout.items() if value is not None}
    for key, value in vars(defaults).items():
        if value is None:
            continue
        if key not in Rollout.model_fields:
            raw.setdefault(key, value)
        elif isinstance(rollout, dict):
            rollout.setdefault(key, value)
    raw["rollout"] = rollout
    return raw


def load_recipe(path: Path | str, overrides: Sequence[str] = (), registry: Registry | None = None) -> Recipe:
    """Read and check a recipe; raises RecipeError with every problem found. Nothing heavy is imported."""
    path = Path(path)
    document = load_document(path, overrides)
    builder = _Builder(document, registry if registry is not None else plugins().registry)
    recipe = _build(builder, document)
    if builder.problems or recipe is None:
        error = RecipeError(sorted(builder.problems, key=lambda problem: (problem.file, problem.line, problem.column)))
        if builder.plugin_problems == len(builder.problems):
            error.exit_code = 3  # nothing is wrong but a plugin
        raise error
    return recipe


def _build(builder: _Builder, document: Document) -> Recipe | None:
    top = builder.validate(_Top, document.data, ())
    raw_stages = document.data.get("stages")
    stages: dict[str, Stage] = {}
    names: list[str] = []
    if isinstance(raw_stages, dict):
        builder.declare(raw_stages)
        stages = builder.stages(raw_stages)
        builder.check_versions(stages)
        names = builder.order(list(raw_stages))
    model = builder.model(document.data["model"]) if "model" in document.data else None
    if top is not None:
        builder.requires(top.requires)
    if builder.problems or top is None or model is None:
        return None
    return Recipe(
        name=top.name or re.sub(r"[^A-Za-z0-9._-]", "-", document.path.stem),
        path=document.path,
        folder=document.path.parent.resolve(),
        seed=top.seed,
        description=top.description,
        model=model,
        stages={name: stages[name] for name in names},
        resolved=document.data,
    )


# --- where recipes are


def _shipped() -> dict[str, Path]:
    """The recipes that come with alignkit, by name: in a checkout, or beside the installed package."""
    root = Path(__file__).resolve().parent.parent
    folders = (root / "alignkit_recipes", root / "recipes")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str | Path) -> Path:
    """A path, or the name of a shipped recipe (`quickstart`)."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = _shipped()
    if str(name) in shipped:
        return shipped[str(name)]
    if path.is_dir():
        raise RecipeError([Problem("a recipe is a file, this is a folder", str(name))])
    near = [item.name for item in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    help = did_you_mean(path.name, [*near, *shipped]) or f"shipped recipes: {', '.join(shipped) or 'none'}"
    raise RecipeError([Problem(f"no such recipe: {name}", help=help)])

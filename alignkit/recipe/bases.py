"""The base models of a recipe: `model:` and `bases:`, which of them a reference is on, and that no stage mixes two."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from alignkit.data.chat_templates import check_template, read_template
from alignkit.errors import RunFailed, did_you_mean
from alignkit.io.lookup import is_file
from alignkit.recipe.components import find
from alignkit.recipe.document import Keys
from alignkit.recipe.paths import means_folder
from alignkit.recipe.problems import path_text, shown
from alignkit.recipe.schema import BASE, Recipe, RewardSpec, Stage, specs
from alignkit.recipe.scope import Scope, report_two_meanings
from alignkit.recipe.validation import validate
from alignkit.sampling_options import SamplingOptions
from alignkit.settings import ModelSpec

_DEVICE = re.compile(r"auto|cpu(:0)?|(cuda|mps|xpu|hpu|npu|mtia)(:\d{1,3})?")
_RESERVED = (BASE, "none", "folder", "model")
# Keys of a training stage whose weights or tokens become its own -> what to do about another base.
_OWN = {
    "from": "start from a stage on the same base, or leave 'from' out",
    "value_from": "leave 'value_from' out: the values then start from the policy",
    "replay_from": "replay only rollouts of stages on the same base, whose tokens are the same",
}


def read_model(raw: Any, scope: Scope, keys: Keys = ("model",)) -> ModelSpec | None:
    """Return a base model with absolute paths."""
    if isinstance(raw, str):
        help = f"write '{keys[-1]}: {{base: {raw}}}'"
        scope.problems.error(keys, f"{path_text(keys)}: expected a mapping", help=help)
        return None
    spec = validate(ModelSpec, raw, keys, scope.problems).value
    written = raw if isinstance(raw, dict) else {}
    _check_template(written.get("chat_template"), keys, scope)
    base = _read_base(written.get("base"), (*keys, "base"), scope)
    if spec is None:
        return None
    _check_trainable(spec, keys, scope)
    if not _DEVICE.fullmatch(spec.device):  # whether this machine has it is found out by `run`: that takes torch
        message = f"{path_text((*keys, 'device'))}: '{spec.device}' is no device of torch"
        help = "write auto, cpu, cuda (a GPU of NVIDIA or AMD), cuda:1, mps or xpu"
        scope.problems.error((*keys, "device"), message, help=help)
    changes = {"base": base}
    if spec.chat_template is not None and not scope.registry.has("template", spec.chat_template):
        template = scope.paths.for_run(Path(spec.chat_template), (*keys, "chat_template"))
        changes["chat_template"] = str(template)
    return spec.model_copy(update=changes)


def _check_trainable(spec: ModelSpec, keys: Keys, scope: Scope) -> None:
    """Report settings with which training would be impossible or would lose updates."""
    problems, name = scope.problems, path_text(keys)
    if spec.quantization != "none" and spec.lora is None:
        # Point at the key that an override set, if any.
        culprit = "lora" if problems.document.overridden((*keys, "lora")) else "quantization"
        message = f"{name}: {spec.quantization} weights cannot be trained"
        problems.error((*keys, culprit), message, help="train a LoRA adapter, or set 'quantization: none'")
    if spec.mixed_precision != "none" and spec.lora is not None:
        message = f"{name}.mixed_precision: with a LoRA adapter the base is frozen, so 'dtype: bfloat16' does the same"
        help = "leave 'mixed_precision' out, or train all weights with 'lora: none'"
        problems.error((*keys, "mixed_precision"), message, help=help)
    if spec.dtype == "float16":
        message = f"{name}.dtype: float16 would lose small gradients, because alignkit does no loss scaling"
        help = "'dtype: auto' chooses bfloat16 if the hardware is fast at it"
        problems.error((*keys, "dtype"), message, help=help)
    elif spec.dtype == "bfloat16" and spec.lora is None:
        message = f"{name}.dtype: bfloat16 weights would lose most updates at the learning rates of fine-tuning"
        help = "leave 'dtype' out and write 'mixed_precision: bf16', or train a LoRA adapter"
        problems.error((*keys, "dtype"), message, help=help)


def _check_template(template: Any, keys: Keys, scope: Scope) -> None:
    """Check that a chat template has a name, or is a file of Jinja code."""
    if not isinstance(template, str):
        return
    keys = (*keys, "chat_template")
    named = find("template", template, keys, scope) if scope.registry.has("template", template) else None
    path = scope.paths.locate(template, keys)
    if named is None and not is_file(path):
        names = scope.registry.names("template")
        message = f"{path_text(keys)}: '{template}' is neither a template ({', '.join(names)}) nor a Jinja file"
        scope.problems.error(keys, message, help=did_you_mean(template, names) or f"looked for {path}")
        return
    try:
        if named is None:
            read_template(path)
        else:
            check_template(named.implementation, f"template '{template}' of {named.origin}")
    except RunFailed as error:
        scope.problems.error(keys, str(error), help="use a file with a Jinja template")


def _read_base(base: Any, keys: Keys, scope: Scope) -> str:
    """Return the base model. A plugin's name and a Hub id stay as they are; a folder becomes absolute."""
    if not isinstance(base, str) or not base:
        return ""
    name, separator, rest = base.partition("://")
    if separator or scope.registry.has("model", base):
        registration = find("model", name, keys, scope)  # reports a name that two plugins claim
        if registration is not None and ("path" in signature(registration.implementation).parameters) != bool(rest):
            message = f"{path_text(keys)}: model '{name}' takes {'no' if rest else 'a'} path"
            scope.problems.error(keys, message, help=f"write '{name}'" if rest else f"write '{name}://PATH'")
        return scope.paths.address(base, name, rest, keys) if rest else base
    path = scope.paths.folder_or_hub(base, keys)
    if path == base and "/" not in base and not means_folder(base):
        # Few Hub ids have no namespace, so a misspelled plugin is more likely.
        names = scope.registry.names("model")
        near = difflib.get_close_matches(base, names, 1, 0.85) or [name for name in names if name.startswith(base)]
        if near:
            find("model", base, keys, scope)
    return path


def base_keys(name: str) -> Keys:
    """The path of a base model in a recipe."""
    return ("model",) if name == BASE else ("bases", name)


def base_names(raw: Any) -> tuple[str, ...]:
    """BASE and the names in `bases`, before anything is checked."""
    return (BASE, *(str(name) for name in raw)) if isinstance(raw, dict) else (BASE,)


def read_bases(raw: Any, scope: Scope) -> dict[str, ModelSpec]:
    """Return the base models in `bases` that have no problems."""
    read: dict[str, ModelSpec] = {}
    for name, value in raw.items() if isinstance(raw, dict) else ():
        keys: Keys = ("bases", name)
        _check_name(name, keys, scope)
        spec = read_model(value, scope, keys)
        if spec is not None:
            read[name] = spec
    return read


def _check_name(name: str, keys: Keys, scope: Scope) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        message = f"base model '{name}': expected letters, digits, '_' and '-'"
        scope.problems.error(keys, message, at_key=True)
    elif name in _RESERVED:
        scope.problems.error(keys, f"'{name}' is reserved and cannot be the name of a base model", at_key=True)
    elif scope.resolve_name(name) != name:
        report_two_meanings(name, keys, scope)


def read_base(value: Any, keys: Keys, scope: Scope) -> str | None:
    """Return the name of a base model."""
    others = [name for name in scope.bases if name != BASE]
    if isinstance(value, str) and value in others:
        return value
    known = f"base models: {', '.join(others)}" if others else "add it: 'bases: {NAME: {base: ...}}'"
    if value in (BASE, "model"):
        message, help = f"{path_text(keys)}: '{value}' is the default", "leave 'base' out for the recipe's 'model'"
    elif isinstance(value, str) and value in scope.declared:
        message, help = f"'{value}' is a stage, but a base model is needed here", "use 'from' to start from a stage"
    else:
        message = f"no base model {shown(value)} in 'bases'"
        help = did_you_mean(str(value), others) or known
    scope.problems.error(keys, message, help=help)
    return None


def unused_bases(recipe: Recipe) -> list[str]:
    """What to tell of base models that no stage uses. An adapter of another run may be on any of them."""
    stages = recipe.stages.values()
    rewards = [spec.name for s in stages for spec in specs([s.settings, s.component.options], RewardSpec)]
    folders = [Path(name) for name in (*rewards, *(name for stage in stages for name in stage.folders))]
    if any(is_file(folder / "adapter_config.json") for folder in folders):
        return []
    used = {stage.base for stage in stages} | {name.partition("@")[0] for stage in stages for name in stage.roles}
    texts = []
    for name in recipe.bases.keys() - used if recipe.bases else ():
        at = recipe.problem(base_keys(name), "", at_key=True)
        place = f"{at.file}:{at.line}" if at.line else at.file
        texts.append(f"{place}: no stage uses base model '{name}': write 'base: {name}' in a stage, or remove it")
    return sorted(texts)


# --- the base of a reference


def bases_of(reference: str, stages: Mapping[str, Stage], bases: Collection[str]) -> set[str]:
    """The base models that a reference may be on; empty for a folder, and for a stage with problems.

    A step is on those of the policies that it samples: it may choose one of them.
    """
    name = reference.partition("@")[0]
    if name in bases:
        return {name}
    stage = stages.get(name)
    if stage is None:
        return set()
    if stage.kind == "algorithm":
        return {stage.base}
    return {base for policy in sampled_by(stage) for base in bases_of(policy, stages, bases)}


def sampled_by(stage: Stage) -> list[str]:
    """The policies that a step samples."""
    options = stage.component.options
    return list(options.policies_to_sample()) if isinstance(options, SamplingOptions) else []


def check_bases(stages: Mapping[str, Stage], scope: Scope) -> None:
    """Report stages that would mix base models: weights, values and tokens of one mean nothing to another."""
    if len(scope.bases) < 2:
        return
    for stage in stages.values():
        for keys, reference in _own_references(stage):
            others = bases_of(reference, stages, scope.bases) - {stage.base}
            if others:
                message = (
                    f"'{reference}' is on {_named(others)}, but stage '{stage.name}' is on {_named([stage.base])}; "
                    f"{keys[0]!r} must be on the stage's own base model"
                )
                help = _OWN[str(keys[0])] + _or_base(others, stage)
                scope.problems.error(("stages", stage.name, *keys), message, help=help)
        for reference in dict.fromkeys(stage.roles):
            found = bases_of(reference, stages, scope.bases)
            if len(found) > 1:
                message = f"'{reference}' may be on {_named(found)}: its policies are on several base models"
                help = f"name policies of one base model in stage '{reference.partition('@')[0]}'"
                scope.problems.error(("stages", stage.name), message, at_key=True, help=help)


def _own_references(stage: Stage) -> Iterable[tuple[Keys, str]]:
    settings = stage.settings
    if settings is None:
        return
    for key, value in (("from", settings.from_), ("value_from", settings.value_from)):
        if value is not None:
            yield (key,), value
    for index, value in enumerate(settings.replay_from):
        yield ("replay_from", index), value


def _named(bases: Iterable[str]) -> str:
    """`model and base 'small'`"""
    return " and ".join("'model'" if base == BASE else f"base '{base}'" for base in sorted(bases))


def _or_base(others: Collection[str], stage: Stage) -> str:
    """The other way out: the stage may have the wrong base."""
    (other, *more) = sorted(others)
    if more or (other == BASE and stage.base == BASE):
        return ""
    change = f"remove 'base: {stage.base}' from" if other == BASE else f"set 'base: {other}' in"
    return f"; or {change} stage '{stage.name}'"

"""Reads `model:` and `bases:`, the base models of a recipe."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from alignkit.data.chat_templates import TEMPLATES, read_template
from alignkit.errors import RunFailed
from alignkit.io.lookup import is_dir, is_file
from alignkit.recipe.components import find
from alignkit.recipe.document import Keys
from alignkit.recipe.paths import means_folder
from alignkit.recipe.problems import path_text
from alignkit.recipe.scope import Scope
from alignkit.recipe.validation import validate
from alignkit.settings import ModelSpec

_DEVICE = re.compile(r"auto|cpu(:0)?|(cuda|mps|xpu|hpu|npu|mtia)(:\d{1,3})?")


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
    _check_device(spec.device, (*keys, "device"), scope)
    changes = {"base": base}
    if spec.chat_template is not None and spec.chat_template not in TEMPLATES:
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


def _check_device(device: str, keys: Keys, scope: Scope) -> None:
    """Report what no machine has. Whether this one has the device is found out by `run`, because that takes torch."""
    if not _DEVICE.fullmatch(device):
        message = f"{path_text(keys)}: '{device}' is no device of torch"
        scope.problems.error(keys, message, help="write auto, cpu, cuda (a GPU of NVIDIA or AMD), cuda:1, mps or xpu")


def _check_template(template: Any, keys: Keys, scope: Scope) -> None:
    """Check that a chat template is built in, or is a file of Jinja code."""
    if not isinstance(template, str) or template in TEMPLATES:
        return
    keys = (*keys, "chat_template")
    path = scope.paths.locate(template, keys)
    if not is_file(path):
        built_in = ", ".join(f"'{name}'" for name in TEMPLATES)
        message = f"{path_text(keys)}: '{template}' is neither a built-in template ({built_in}) nor a Jinja file"
        scope.problems.error(keys, message, help=f"looked for {path}")
        return
    try:
        read_template(path)
    except RunFailed as error:
        scope.problems.error(keys, str(error), help="use a file with a Jinja template")


def _read_base(base: Any, keys: Keys, scope: Scope) -> str:
    """Return the base model. A plugin's name and a Hub id stay as they are; a folder becomes absolute."""
    if not isinstance(base, str) or not base:
        return ""
    if scope.registry.has("model", base):
        find("model", base, keys, scope)  # reports a name that two plugins claim
        return base
    path = scope.paths.locate(base, keys)
    if is_dir(path):
        return str(path)
    if means_folder(base):
        scope.problems.error(keys, f"no such folder: {base}", help=f"looked for {path}")
    elif "/" not in base:
        # Few Hub ids have no namespace, so a misspelled plugin is more likely.
        names = scope.registry.names("model")
        near = difflib.get_close_matches(base, names, 1, 0.85) or [name for name in names if name.startswith(base)]
        if near or scope.registry.likely_providers(base):
            find("model", base, keys, scope)
    return base

"""The layers that `model.lora.target_modules: all-linear` means: every linear layer but the head and the routers.

In a mixture of experts, peft's own `all-linear` would also wrap the routers and the experts' stacked weights. Stacked
weights are merged with their adapter in every pass, so a pass would store as much as all experts weigh. Routers choose
experts by a hard limit, and some return a tuple, to which nothing can be added. Both stay frozen unless they are named.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import Any

from torch import nn

ALL = "all-linear"


@dataclass(frozen=True)
class LoraTargets:
    """What peft is asked to adapt.

    modules: peft's `target_modules`. parameters: its `target_parameters`. frozen: a sentence on what was left out,
    empty if nothing was.
    """

    modules: str | list[str]
    parameters: list[str] = field(default_factory=list)
    frozen: str = ""


def lora_targets(model: Any, config: Any) -> LoraTargets:
    """Resolve `config.target_modules` for a model without adapters. config: a peft `LoraConfig`, left as it is."""
    if config.target_modules != ALL:
        return LoraTargets(config.target_modules)
    experts = [name for name, module in model.named_modules() if _holds_experts(module)]
    routers = [name for name, module in model.named_modules() if is_router(name, module)]
    states = [name for name, module in model.named_modules() if _is_read_by_its_parent(model, name, module)]
    if not (experts or routers or states):
        return LoraTargets(ALL)  # leaves the choice, and the words in saved adapters, to peft
    inside = tuple(f"{router}." for router in routers)
    names = {name for name in _linear_layers(model) if name not in states and not f"{name}.".startswith(inside)}
    # peft reads some layers' names as those of experts, which had one layer each in earlier versions of transformers.
    renamed = {leaf for leaf in {_leaf(name) for name in names} if _renamed_by_peft(leaf, model, config)}
    shared = _shared_names(model, names)
    return LoraTargets(
        sorted({shared[name] for name in names if _leaf(name) not in renamed}),
        sorted({shared[name] + ".weight" for name in names if _leaf(name) in renamed}),
        _sentence({"experts": experts, "routers": routers, "state space outputs": states}),
    )


def is_router(name: str, module: Any) -> bool:
    """Whether a module chooses experts, or is the linear layer by which one does."""
    kind = type(module).__name__
    named = isinstance(module, nn.Linear) and _leaf(name) in ("router", "gate")
    return named or "Router" in kind or "Gating" in kind or ("Mo" in kind and kind.endswith("Gate"))


def _linear_layers(model: Any) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]


def _holds_experts(module: Any) -> bool:
    """Whether a module has stacked weights, [experts, outputs, inputs]."""
    convolution = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return not convolution and any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))


def _is_read_by_its_parent(model: Any, name: str, module: Any) -> bool:
    """Whether a state space layer passes this layer's weight to a kernel, past any adapter; peft refuses it by name."""
    if _leaf(name) != "out_proj" or not isinstance(module, nn.Linear):
        return False
    parent = type(model.get_submodule(name.rpartition(".")[0])).__name__
    return "Mamba" in parent or "Mixer" in parent


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _shared_names(model: Any, names: set[str]) -> dict[str, str]:
    """What to call each layer: its name behind its block's number, unless that names a layer outside of `names`, too.

    peft takes a name for every layer that ends in it.
    """
    short = {name: re.split(r"\.\d+\.", name)[-1] for name in names}
    others = [name for name, _ in model.named_modules() if name not in names]
    taken = {suffix for suffix in short.values() if any(f".{name}".endswith(f".{suffix}") for name in others)}
    return {name: name if suffix in taken else suffix for name, suffix in short.items()}


def _renamed_by_peft(leaf: str, model: Any, config: Any) -> bool:
    """Whether peft takes the name of a layer for that of an expert's weight."""
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # an older peft, which renames nothing
        return False
    probe = copy.deepcopy(config)
    probe.target_modules = {leaf}
    try:
        convert_peft_config_for_transformers(probe, model=model, conversions=None)
    except ValueError:  # one of two weights that peft expects together
        return True
    return set(probe.target_modules) != {leaf}


def _sentence(frozen: dict[str, list[str]]) -> str:
    parts = [
        f"{what} ({names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''})"
        for what, names in frozen.items()
        if names
    ]
    return f"model.lora.target_modules: {ALL} leaves these frozen: {', '.join(parts)}"

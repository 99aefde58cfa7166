"""The optimizer and the schedule of a stage: made, and kept in checkpoints.

A schedule is `factor(step, total)` for step 0, 1, ... of `total`, so that a resumed run needs none of its past. It may
take `warmup`, the steps in which alignkit lets the rate rise and after which it is asked, and `rate`, the highest one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_unflatten, treespec_dumps, treespec_loads

from alignkit.errors import RunFailed, reason_of
from alignkit.plugins import plugins
from alignkit.registry import Component

if TYPE_CHECKING:
    from alignkit.settings import Settings


def _named(kind: str, value: Component | str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What a stage names, and its options."""
    if isinstance(value, Component):
        return value.registration.implementation, value.options.model_dump(exclude_unset=True)
    return plugins().registry.get(kind, value).implementation, {}


def optimizer_parts(settings: Settings) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What makes the optimizer, and its options: those of the recipe, else of the algorithm, else alignkit's."""
    implementation, options = _named("optimizer", settings.optimizer)
    options.pop("max_grad_norm", None)
    defaults: dict[str, Any] = {"weight_decay": 0.0}
    if "adam" in getattr(implementation, "__name__", "").lower():
        defaults |= settings._optimizer_defaults
    taken = inspect.signature(implementation).parameters.keys()
    return implementation, {name: value for name, value in defaults.items() if name in taken} | options


def factor_of(schedule: Component | str, **given: float) -> float:
    """The factor on the learning rate at a step after the warmup. given: what a schedule may take, see above.

    Raises RunFailed for what is no factor: a negative one would unlearn.
    """
    function, options = _named("schedule", schedule)
    taken = inspect.signature(function).parameters.keys() & given.keys()
    unusable = f"schedule '{getattr(schedule, 'name', schedule)}' cannot be used"
    try:
        factor = float(function(**{name: given[name] for name in taken}, **options))
    except Exception as error:  # an author's code can fail in any way
        raise RunFailed(f"{unusable}: {reason_of(error)}") from error
    if not 0 <= factor < math.inf:
        raise RunFailed(f"{unusable}: its factor is {factor:g}, and must be a number of at least 0")
    return factor


def make_optimizer(settings: Settings, parameters: Iterable[nn.Parameter], rate: float) -> Optimizer:
    """The stage's optimizer. Raises RunFailed if it needs a package that is not installed, or refuses a parameter.

    Weight decay shrinks matrices only: shrinking a norm's factor, which begins at 1, would switch its layer off.
    """
    known = list(parameters)
    groups: list[dict[str, Any]] = [{"params": [p for p in known if p.ndim >= 2]}]
    if vectors := [p for p in known if p.ndim < 2]:
        groups.append({"params": vectors, "weight_decay": 0.0})
    implementation, options = optimizer_parts(settings)
    try:
        made: Optimizer = implementation(groups, lr=rate, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RunFailed(_unusable(settings, reason_of(error))) from error
    if not isinstance(made, Optimizer) or {*map(id, parameters_of(made))} != {*map(id, known)}:
        raise RunFailed(_unusable(settings, "it must be a torch.optim.Optimizer with all parameters in its groups"))
    return made


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Its parameters, in the order of its groups."""
    return [*chain.from_iterable(group["params"] for group in optimizer.param_groups)]


def _unusable(settings: Settings, why: str) -> str:
    return f"optimizer '{getattr(settings.optimizer, 'name', settings.optimizer)}' cannot be used: {why}"


def saved_state(
    optimizer: Optimizer, names: Mapping[int, str], whole: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> tuple[dict[str, Tensor], Any]:
    """The tensors that a checkpoint keeps of an optimizer, as `optimizer/KEY/NAME`, and the rest as JSON.

    names: of its parameters, by their `id`. whole: all of a tensor that may be cut between processes.
    """
    ordered = [names[id(parameter)] for parameter in parameters_of(optimizer)]
    leaves, structure = tree_flatten_with_path(optimizer.state_dict())
    tensors: dict[str, Tensor] = {}
    memory: set[int] = set()
    kept: list[Any] = []
    for path, value in leaves:
        if isinstance(value, Tensor):
            keys: list[Any] = [getattr(part, "key", getattr(part, "idx", "")) for part in path]
            kind, index, *inner = keys
            name = "/".join(map(str, ("optimizer", *inner, ordered[index] if kind == "state" else f"group {index}")))
            # Files must not hold memory twice: bitsandbytes has one table of its numbers in 8 bits for all parameters.
            tensors[name] = whole(value.clone() if value.data_ptr() in memory else value)
            memory.add(value.data_ptr())
            value = {"tensor": name}
        kept.append(value)
    return tensors, [kept, treespec_dumps(structure)]


def restore_state(
    optimizer: Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    plain: Any,
    part: Callable[[Tensor, nn.Parameter], Tensor] = lambda tensor, parameter: tensor,
) -> None:
    """The inverse of `saved_state`. part: what this process holds of a tensor. Raises RunFailed for a missing one."""
    leaves, structure = plain
    for place, value in enumerate(leaves):
        if isinstance(value, Mapping):
            *_, key, name = value["tensor"].split("/")
            if value["tensor"] not in tensors:
                raise RunFailed(f"the checkpoint has no optimizer state for {name} ({key})")
            tensor = tensors[value["tensor"]].clone()
            leaves[place] = part(tensor, parameters[name]) if name in parameters else tensor
    optimizer.load_state_dict(tree_unflatten(leaves, treespec_loads(structure)))
    for loaded, saved in zip(tree_leaves(optimizer.state_dict()), leaves, strict=True):
        # torch casts it to the weights' dtype: what an optimizer keeps in fp32 would be rounded to theirs.
        if isinstance(loaded, Tensor) and loaded.dtype != saved.dtype:
            loaded.data = saved.to(loaded.device)

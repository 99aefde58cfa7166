"""The optimizer and the schedule of a stage: made, and kept in checkpoints.

Reading one for a check does not load torch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from alignkit.contract.kinds import SCHEDULES
from alignkit.errors import RunFailed, reason_of
from alignkit.host.plugins import plugins
from alignkit.host.registry import Component

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from alignkit.contract.settings import Settings


def _named(kind: str, value: Component | str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What a stage names, and its options."""
    if isinstance(value, Component):
        return value.registration.implementation, value.options.model_dump(exclude_unset=True)
    return SCHEDULES.get(value) or plugins().get(kind, value).implementation, {}


def factor_of(schedule: Component | str, **given: float) -> float:
    """The factor on the learning rate at a step after the warmup. given: what a schedule may take;
    see `alignkit.contract.kinds`.

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


def make_optimizer(
    settings: Settings, suited: Mapping[str, Any], parameters: Iterable[nn.Parameter], rate: float
) -> Optimizer:
    """The stage's optimizer. Raises RunFailed if it needs a package that is not installed, or
    refuses a parameter.

    Weight decay shrinks matrices only: shrinking a norm's factor, which begins at 1, would switch
    its layer off.

    suited: options that suit the algorithm, as in its `defaults`, if the optimizer is of Adam's
    family. They count more than alignkit's, and those of the recipe more than both.
    """
    from torch.optim import AdamW, Optimizer

    known = list(parameters)
    groups: list[dict[str, Any]] = [{"params": [p for p in known if p.ndim >= 2]}]
    if vectors := [p for p in known if p.ndim < 2]:
        groups.append({"params": vectors, "weight_decay": 0.0})
    implementation: Callable[..., Any] = AdamW  # alignkit's own, without options
    options: dict[str, Any] = {}
    if settings.optimizer != "adamw":
        implementation, options = _named("optimizer", settings.optimizer)
    options.pop("max_grad_norm", None)
    defaults: dict[str, Any] = {"weight_decay": 0.0}
    if "adam" in getattr(implementation, "__name__", "").lower():
        defaults |= suited
    known_options = inspect.signature(implementation).parameters.keys()
    options = {name: value for name, value in defaults.items() if name in known_options} | options
    try:
        made: Optimizer = implementation(groups, lr=rate, **options)
        taken = chain.from_iterable(group["params"] for group in getattr(made, "param_groups", ()))
        if not isinstance(made, Optimizer) or {*map(id, taken)} != {*map(id, known)}:
            raise TypeError("it must be a torch.optim.Optimizer with all parameters in its groups")
    except (TypeError, ValueError, RuntimeError) as error:
        name = getattr(settings.optimizer, "name", settings.optimizer)
        raise RunFailed(f"optimizer '{name}' cannot be used: {reason_of(error)}") from error
    return made


def saved_state(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], whole: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    """What a checkpoint keeps of an optimizer: its state by the name of the parameter, and its
    groups.

    whole: returns all of a tensor that may be cut between processes.
    """
    from torch import Tensor
    from torch.utils._pytree import tree_map_only

    state = {
        name: dict(optimizer.state.get(parameter, {})) for name, parameter in parameters.items()
    }
    groups = []
    for group in optimizer.param_groups:
        groups.append({key: value for key, value in group.items() if key != "params"})
    return {"state": tree_map_only(Tensor, whole, state), "groups": groups}


def restore_state(
    optimizer: Optimizer,
    parameters: Mapping[str, nn.Parameter],
    saved: Mapping[str, Any],
    part: Callable[..., Tensor],
) -> None:
    """The inverse of `saved_state`. part: returns what this process holds of a tensor.

    Not by `load_state_dict`, which rounds what an optimizer keeps in fp32 to the dtype of the
    weights.
    """
    from torch import Tensor
    from torch.utils._pytree import tree_map_only

    for name, parameter in parameters.items():
        state = saved["state"][name]
        if state:
            optimizer.state[parameter] = tree_map_only(
                Tensor, partial(part, parameter=parameter), state
            )
    for group, kept in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update(kept)

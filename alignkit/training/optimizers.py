"""AdamW as torch has it, or bitsandbytes' with moments in 8 bits or in paged memory, and their checkpoints.

In 8 bits (Dettmers et al. 2022, arXiv:2110.02861) the moments of a weight take 2 bytes instead of 8. bitsandbytes keeps
those of tensors with fewer than 4,096 numbers in fp32. Paged moments (Dettmers et al. 2023, arXiv:2305.14314) move to
the CPU's memory while a GPU's is full; on a CPU nothing moves.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alignkit.errors import RunFailed

if TYPE_CHECKING:
    from alignkit.settings import Settings

# What an optimizer remembers of a parameter: in fp32, and in 8 bits.
ADAM = {"step", "exp_avg", "exp_avg_sq"}
FULL = {"step", "state1", "state2"}
TABLES = {"qmap1", "qmap2"}
EIGHT_BITS = FULL | TABLES | {"absmax1", "absmax2"}


def make_optimizer(settings: Settings, parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """The stage's optimizer. Raises RunFailed if it needs a package that is not installed.

    Weight decay shrinks matrices only: shrinking a norm's factor, which begins at 1, would switch its layer off.
    """
    known = list(parameters)
    groups: list[dict[str, Any]] = [{"params": [p for p in known if p.ndim >= 2]}]
    if vectors := [p for p in known if p.ndim < 2]:
        groups.append({"params": vectors, "weight_decay": 0.0})
    options: dict[str, Any] = {
        "lr": rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_epsilon,
        "weight_decay": settings.weight_decay,
    }
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, **options)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RunFailed(
            f"'optimizer: {settings.optimizer}' needs bitsandbytes, which is not installed\n"
            "help: pip install bitsandbytes, where it exists for this system, or write 'optimizer: adamw'"
        )
    from bitsandbytes import optim

    kinds = {
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw_32bit": optim.PagedAdamW32bit,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
    }
    optimizer: torch.optim.Optimizer = kinds[settings.optimizer](groups, **options)
    return optimizer


def saved_state(kept: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a checkpoint keeps of what an optimizer remembers of a parameter. No tensor shares memory with another."""
    tensors = {key: torch.as_tensor(value) for key, value in kept.items()}
    # bitsandbytes has one table of its numbers in 8 bits for all parameters, and files must not hold a tensor twice.
    return {key: value.clone() if key in TABLES else value for key, value in tensors.items()}


def restored_state(
    optimizer: torch.optim.Optimizer, name: str, parameter: nn.Parameter, saved: Mapping[str, Tensor], expected: bool
) -> dict[str, Any]:
    """What an optimizer continues with; empty if it had not touched the parameter.

    saved: its tensors in the checkpoint. Raises RunFailed if `expected` and something is missing.
    """
    if saved.keys() == ADAM:
        # Adam keeps its step count on the CPU and its moments on the device of the weights.
        return {key: value if key == "step" else value.to(parameter.device) for key, value in saved.items()}
    if saved.keys() in (FULL, EIGHT_BITS):
        state = {key: int(value) if key == "step" else value.to(parameter.device) for key, value in saved.items()}
        if getattr(optimizer, "is_paged", False):  # else a resumed run could no longer move them
            for key in ("state1", "state2"):
                buffer: Tensor = optimizer.get_state_buffer(parameter, dtype=saved[key].dtype)  # type: ignore[attr-defined]
                state[key] = buffer.copy_(saved[key])
        return state
    if saved or expected:
        whole = EIGHT_BITS if saved.keys() & (EIGHT_BITS - ADAM) else ADAM
        raise RunFailed(f"the checkpoint has no optimizer state for {name} ({', '.join(sorted(whole - saved.keys()))})")
    return {}

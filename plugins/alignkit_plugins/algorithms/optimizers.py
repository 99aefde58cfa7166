"""The optimizers of torch, bitsandbytes and transformers, and transformers' schedules, under the
libraries' names.

In 8 bits (Dettmers et al. 2022, arXiv:2110.02861) the moments of a weight take 2 bytes instead of
8. bitsandbytes keeps those of tensors with fewer than 4,096 numbers in fp32. Paged moments
(Dettmers et al. 2023, arXiv:2305.14314) move to the CPU's memory while a GPU's is full; on a CPU
nothing moves. No library is imported before somebody uses it.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from functools import partial
from typing import Any

from pydantic import ConfigDict

from alignkit import Add, Options, RunFailed, hookimpl
from alignkit.contract.kinds import constant, cosine, linear
from alignkit.contract.options import options_of_call

TORCH = "Adadelta Adafactor Adagrad Adam Adamax AdamW ASGD Muon NAdam RAdam RMSprop Rprop SGD"
BITSANDBYTES = (
    "AdamW8bit PagedAdamW32bit PagedAdamW8bit Adam8bit PagedAdam8bit AdEMAMix AdEMAMix8bit "
    "PagedAdEMAMix8bit LAMB LAMB8bit LARS LARS8bit Lion32bit Lion8bit PagedLion8bit RMSprop8bit "
    "SGD8bit"
)
# Functions of the step, as they must be here, without a warmup of their own.
SCHEDULES = {
    "cosine_with_restarts": "get_cosine_with_hard_restarts_schedule_with_warmup",
    "cosine_with_min_lr": "get_cosine_with_min_lr_schedule_with_warmup",
    "polynomial": "get_polynomial_decay_schedule_with_warmup",
    "inverse_sqrt": "get_inverse_sqrt_schedule",
    "warmup_stable_decay": "get_wsd_schedule",
}


class Unknown(Options):
    """The options of a class whose package is not installed, as its use then says."""

    model_config = ConfigDict(extra="allow")


class Class:
    """An optimizer's class, which is imported when it is used."""

    def __init__(self, module: str, name: str):
        self.module, self.__name__ = module, name
        self.packages = (module.partition(".")[0],)  # part of a stage's hash
        # So that a recipe that names it, without options, can be read without bitsandbytes
        self.stays_a_name = name in ("AdamW8bit", "PagedAdamW32bit", "PagedAdamW8bit")

    @property
    def _class(self) -> Any:
        try:
            return imported(self.module, self.__name__)
        except ImportError as error:
            (package,) = self.packages
            raise RunFailed(
                f"'optimizer: {short(self.__name__)}' needs {package}, which is not installed\n"
                f"help: pip install {package}, where it exists for this system, or write "
                "'optimizer: adamw'"
            ) from error

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._class)

    @property
    def Options(self) -> type[Options]:
        try:
            return options_of_call(self._class)
        except RunFailed:
            return Unknown

    def __call__(self, params: Any, **options: Any) -> Any:
        made = self._class(params, **options)
        if getattr(made, "is_paged", False):
            made.to_gpu = partial(_page, made)  # called before the first step
        return made


def _page(optimizer: Any) -> None:
    """Bring a resumed run's state, which is on the device, into memory that can move."""
    for kept in optimizer.state.values():
        # AdEMAMix's first is twice as large as the weight
        for key in kept.keys() & {"state1", "state2"}:
            kept[key] = optimizer.get_state_buffer(kept[key], dtype=kept[key].dtype).copy_(
                kept[key]
            )


class Schedule:
    """A schedule of transformers as `factor(step, total)`."""

    def __init__(self, name: str):
        self.name = name

    @property
    def _function(self) -> Any:
        return imported("transformers.optimization", self.name)

    @property
    def Options(self) -> type[Options]:
        return options_of_call(self._function)

    def __call__(self, step: int, total: int, warmup: int, rate: float, **options: Any) -> float:
        import torch

        given = {"num_warmup_steps": warmup, "num_training_steps": total}
        if "num_stable_steps" in options:
            del given["num_training_steps"]
        taken = inspect.signature(self._function).parameters
        # It reads the highest rate from an optimizer, which takes no step.
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
        made = self._function(
            optimizer, **{key: given[key] for key in given if key in taken}, **options
        )
        return float(made.lr_lambdas[0](step))


def imported(module: str, name: str) -> Any:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says what a CPU lacks
    return getattr(importlib.import_module(module), name)


def short(name: str) -> str:
    """`paged_adamw_8bit`, as transformers calls `PagedAdamW8bit`."""
    plain = name.lower().replace("8bit", "_8bit").replace("32bit", "_32bit")
    return plain.replace("paged", "paged_")


@hookimpl
def register(add: Add) -> None:
    for module, names in (("torch.optim", TORCH), ("bitsandbytes.optim", BITSANDBYTES)):
        for name in names.split():
            add("optimizer", short(name), Class(module, name), f"{name} of {module}")
    adafactor = Class("transformers.optimization", "Adafactor")
    add("optimizer", "transformers_adafactor", adafactor, "Adafactor of transformers.optimization")
    add("schedule", "constant", constant, "the same rate after the warmup")
    add("schedule", "linear", linear, "falls to 0")
    add(
        "schedule",
        "cosine",
        cosine,
        "falls to 0 as half a wave of the cosine",
    )
    for name, function in SCHEDULES.items():
        add("schedule", name, Schedule(function), f"{function} of transformers")

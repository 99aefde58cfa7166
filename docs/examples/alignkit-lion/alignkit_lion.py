"""Lion, which learns by the sign of a moment, and a learning rate that stays high and cools down at
the end.

Source: Chen et al. 2023, arXiv:2302.06675, program 2; Haegele et al. 2024, arXiv:2405.18392,
equation 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from alignkit import Add, hookimpl


class Lion(torch.optim.Optimizer):
    """What it remembers of a weight is one moment, half of what AdamW does. All of it is in
    `state`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        b1: float = 0.9,
        b2: float = 0.99,
        weight_decay: float = 0,
    ):
        if not (0 <= b1 < 1 and 0 <= b2 < 1):
            raise ValueError(f"b1 and b2 must be at least 0 and below 1, not {b1:g} and {b2:g}")
        super().__init__(params, {"lr": lr, "b1": b1, "b2": b2, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                moment = self.state[weight].setdefault("moment", torch.zeros_like(weight))
                direction = torch.lerp(weight.grad, moment, group["b1"]).sign_()
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(
                    direction, alpha=-group["lr"]
                )
                moment.lerp_(weight.grad, 1 - group["b2"])


def cooldown(step: int, total: int, part: float = 0.2) -> float:
    """1, and over the last `part` of all steps 1 - sqrt(share of it that is over)."""
    over = (step - (1 - part) * total) / max(1.0, part * total)
    return 1 - math.sqrt(min(1.0, max(0.0, over)))


@hookimpl
def register(add: Add) -> None:
    add(
        "optimizer",
        "lion",
        Lion,
        "the sign of a moment: half of AdamW's memory, a tenth of its learning rate",
    )
    add("schedule", "cooldown", cooldown, "constant, with a square root's fall at the end")

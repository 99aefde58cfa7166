"""An optimizer: a function that makes one of torch's, whose arguments are the options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from alignkit import Add, hookimpl


def descent(params: Iterable[Any], lr: float, momentum: float = 0.9) -> Any:
    from torch.optim import SGD  # slow, so not at the top: `alignkit plugins` loads every plugin

    return SGD(params, lr=lr, momentum=momentum)


@hookimpl
def register(add: Add) -> None:
    add("optimizer", "descent", descent, "gradient descent")

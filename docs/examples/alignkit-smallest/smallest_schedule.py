"""A schedule: the learning rate falls to 0 like a square root."""

import math

from alignkit import Add, hookimpl


def root(step: int, total: int) -> float:
    """The factor of the learning rate in step 0, 1, ... of `total`."""
    return math.sqrt(1 - step / total)


@hookimpl
def register(add: Add) -> None:
    add("schedule", "root", root, "a square root's fall to 0")

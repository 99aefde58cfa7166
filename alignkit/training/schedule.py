"""Schedules: the learning rate over steps, and minibatches over an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from numpy.random import Generator

from alignkit.models.packing import Examples, indivisible
from alignkit.optimizers import factor_of
from alignkit.settings import Settings


def schedule(settings: Settings, rate: float, step: int, total: int, part: float = 1.0) -> float:
    """Factor on the learning rate at step 0, 1, ... of `total`; it rises to 1 over the first `warmup_ratio` of them.

    rate: the highest one. part: how much of a long step is done, such as an iteration's share of minibatches; the
    factor rises within it.
    """
    warmup = math.ceil(settings.warmup_ratio * total)
    if step < warmup:
        return (step + part) / warmup
    return factor_of(settings.lr_scheduler_type, step=step, total=total, warmup=warmup, rate=rate)


def share_of(total: int, size: int, index: int) -> slice:
    """Place `index` of ceil(total / size) nearly equal parts of `total` entries.

    Full parts and a remainder would make one entry as large a step as `size` of them, because a loss is a mean.
    """
    parts = math.ceil(total / size)
    return slice(index * total // parts, (index + 1) * total // parts)


def minibatches(examples: Examples, size: int | None, random: Generator) -> Iterator[Examples]:
    """Shuffled minibatches of nearly equal size, of at most `size` groups; None: one batch of all.

    Bundles stay whole and count as one group.
    """
    units = indivisible([encoded.group.bundle for encoded in examples.groups])
    order = random.permutation(len(units)).tolist()
    size = size or max(1, len(units))
    for number in range(math.ceil(len(order) / size)):
        yield examples.take([index for unit in order[share_of(len(order), size, number)] for index in units[unit]])

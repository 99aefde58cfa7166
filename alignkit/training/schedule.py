"""The learning rate: its default and its schedule over steps; and minibatches over an epoch.

An algorithm's default is for LoRA on a hidden size of 576 (SmolLM2-135M), where the defaults were measured. The best
rate of AdamW falls with the width of a model, as 1 / width for the same training (Yang et al. 2022, arXiv:2203.03466),
and LoRA takes about ten times the rate of training all weights, whatever its rank (Schulman et al. 2025, "LoRA Without
Regret"). A written rate is used as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain

from numpy.random import Generator

from alignkit.algorithm import StageDefaults
from alignkit.models.packing import Examples, indivisible
from alignkit.optimizers import factor_of
from alignkit.settings import LEARNING_RATE, Settings
from alignkit.training.context import StageContext

HIDDEN_SIZE = 576
ALL_WEIGHTS = 0.1  # all weights take this part of LoRA's rate


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
        chosen = order[share_of(len(order), size, number)]
        yield examples.take([*chain.from_iterable(units[unit] for unit in chosen)])


def scaled(rate: float, hidden_size: int, lora: bool) -> float:
    """An algorithm's default for a model. Narrower models keep the rate: it was not measured on any."""
    return float(f"{rate * min(1.0, HIDDEN_SIZE / hidden_size) * (1.0 if lora else ALL_WEIGHTS):.2g}")


def learning_rate(context: StageContext, defaults: StageDefaults) -> float:
    """The stage's learning rate: as written, or the algorithm's default for this model.

    Raises RunFailed for a schedule that cannot be used, which ten steps show before the first real one.
    """
    for step in range(10):
        factor_of(context.settings.lr_scheduler_type, step=step, total=10, warmup=0, rate=1.0)
    if context.settings.learning_rate is not None:
        return context.settings.learning_rate
    lora, hidden_size = context.model.spec.lora is not None, context.model.hidden_size
    rate = scaled(defaults.learning_rate or LEARNING_RATE, hidden_size, lora)
    trained = "LoRA" if lora else "all weights"
    context.activity(f"learning_rate {rate:g}, the default for {trained} and hidden size {hidden_size}")
    return rate

"""Minibatches: every group once, and none with a larger step than the others. Schedules that are
none.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import pytest

from alignkit import Group, RunFailed
from alignkit.contract.settings import Settings
from alignkit.host.registry import Component, Registration
from alignkit.models.packing import Examples
from alignkit.recipe.references import options_of
from alignkit.tokens.encoder import Encoded
from alignkit.training.learner import minibatch, schedule


@pytest.mark.parametrize(
    ("total", "size", "sizes"),
    [
        (17, 16, [8, 9]),
        (3, 4, [3]),
        (319, 16, [15, *[16] * 19]),
    ],
)
def test_parts_are_nearly_equal(total: int, size: int, sizes: list[int]) -> None:
    examples = Examples([Encoded(Group(()), (n,), ()) for n in range(total)])
    units = [[n] for n in range(total)]
    parts = [minibatch(examples, units, range(total), size, n).groups for n in range(len(sizes))]
    assert sorted(map(len, parts)) == sorted(sizes)
    assert [encoded.prompt[0] for encoded in chain(*parts)] == list(range(total))


def falling(step: int, total: int) -> float:
    return 1 - 1.5 * step / total


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (falling, r"its factor is -0\.05, and must be a number of at least 0"),
        (lambda step: math.nan, "its factor is nan"),
        (lambda step: math.inf, "its factor is inf"),
        (lambda step: 1 / step, "division by zero"),
        (lambda step, *others: None, "not 'NoneType'"),
    ],
)
def test_what_is_no_schedule_is_refused(function: Any, why: str) -> None:
    """A negative factor would unlearn without a word."""
    registration = Registration("theirs", function)
    component = Component("schedule", "theirs", registration, options_of(registration)())
    settings = Settings(lr_scheduler_type=component, learning_rate=1e-3)
    with pytest.raises(RunFailed, match=f"^schedule 'theirs' cannot be used: .*{why}"):
        [schedule(settings, 1e-3, step, 10) for step in range(10)]

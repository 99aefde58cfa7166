"""Minibatches: every group once, and none with a larger step than the others."""

from __future__ import annotations

import numpy as np
import pytest

from alignkit import Group
from alignkit.models.packing import Examples
from alignkit.tokens.encoder import Encoded
from alignkit.training.learner import minibatches, share_of


@pytest.mark.parametrize(
    ("total", "size", "sizes"),
    [(17, 16, [8, 9]), (9, 4, [3, 3, 3]), (8, 4, [4, 4]), (3, 4, [3]), (5, 1, [1] * 5), (319, 16, [15, *[16] * 19])],
)
def test_parts_are_nearly_equal(total: int, size: int, sizes: list[int]) -> None:
    parts = [range(total)[share_of(total, size, index)] for index in range(len(sizes))]
    assert sorted(len(part) for part in parts) == sorted(sizes)
    assert [place for part in parts for place in part] == list(range(total))


def test_the_last_minibatch_is_not_a_single_group() -> None:
    """Nine groups and batches of four: a step of one group would count as much as one of four."""
    groups = [Group(({"role": "user", "content": str(n)},), id=str(n)) for n in range(9)]
    examples = Examples([Encoded(group, (), ()) for group in groups])
    parts = list(minibatches(examples, 4, np.random.default_rng(0)))
    assert [len(part.groups) for part in parts] == [3, 3, 3]
    assert sorted(encoded.group.id for part in parts for encoded in part.groups) == [group.id for group in groups]
    assert [len(part.groups) for part in minibatches(examples, None, np.random.default_rng(0))] == [9]

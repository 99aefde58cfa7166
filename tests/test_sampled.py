"""Samples that differ are told from samples that rounding lets differ."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from alignkit.contract.settings import Sampling
from alignkit.models import generate as decoder
from tests import sampled
from tests.sampled import assert_same_tokens, noting, same_start

GREEDY, NUCLEUS = Sampling(temperature=0), Sampling(top_p=0.6)
EVEN = [0.5, 0.25, 0.25]  # probabilities of tokens 0, 1 and 2
# Logits or probabilities, the draw, and which token rounding may choose in place of the first
CHOICES: list[tuple[Any, list[float], float, int | None]] = [
    (GREEDY, [1.0, 0.99999, 0.5], 0.3, 1),
    (GREEDY, [1.0, 0.999, 0.5], 0.3, None),
    (Sampling(), EVEN, 0.5000001, 0),
    (Sampling(), EVEN, 0.4999999, 1),
    (Sampling(), EVEN, 0.49999, None),
    (NUCLEUS, [0.5999999, 0.3000001, 0.1], 0.8, 0),  # whether one or two tokens have 0.6 in sum
    (NUCLEUS, [0.59, 0.31, 0.1], 0.5, None),
]


@pytest.fixture(autouse=True)
def _own_ties(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sampled, "_ties", type(sampled._ties)(set))
    yield


def choose(sampling: Sampling, values: list[float], draw: float) -> int:
    """One choice of the decoder, behind the tokens 7 and 8."""
    scores = torch.tensor([values])
    logits = scores if sampling.temperature == 0 else scores.log()
    draws = torch.tensor([draw], dtype=torch.float64)
    ids, logprobs = decoder.choose(
        logits, draws, sampling, None, torch.tensor([], dtype=torch.int64)
    )
    row: Any = SimpleNamespace(
        draws=np.array([9, 9, draw]), tokens=[7, 8], logprobs=[], active=True
    )
    encoder = SimpleNamespace(end_ids=())
    owner: Any = SimpleNamespace(
        request=SimpleNamespace(encoder=encoder, sampling=sampling, wrote=None)
    )
    decoder.Decoder.append(owner, [row], ids.tolist(), logprobs.tolist())
    return int(ids)


@pytest.mark.parametrize(("sampling", "values", "draw", "other"), CHOICES)
def test_only_a_choice_that_rounding_decides_may_differ(
    sampling: Sampling, values: list[float], draw: float, other: int | None
) -> None:
    with noting() as undecided:
        token = choose(sampling, values, draw)
    found = (7, 8, token, 5)
    assert same_start(found, found) == 4
    for wrong in {0, 1, 2, 3} - {token}:
        if wrong == other:
            assert same_start(found, (7, 8, wrong)) == 2
            assert same_start((1, *found), (1, 7, 8, wrong)) == 3  # behind what others wrote
            continue
        with pytest.raises(AssertionError):
            same_start(found, (7, 8, wrong))
    for elsewhere in ((7, 9, token, 5), (7, 8, token), (7, 8, token, 6)):
        with pytest.raises(AssertionError):
            same_start(found, elsewhere)
    assert undecided == (set() if other is None else {""})


def test_what_differs_is_next_to_nothing() -> None:
    with noting():
        token = choose(GREEDY, [1.0, 1.0, 0.5], 0.3)
    ours, theirs = (7, 8, token, 1), (7, 8, 1 - token, 2)
    assert assert_same_tokens([ours, *[(4,) * 9] * 2], [theirs, *[(4,) * 9] * 2]) == [2, 9, 9]
    with pytest.raises(AssertionError, match="that much"):
        assert_same_tokens([ours], [theirs])

"""Responses of a role to the prompts of groups, and whether two samples of one stream are the same.

Products round by the processor and by the shape of a batch, so two samples may differ after a token
that rounding decides: where the two likeliest tokens are nearly equal, or the draw is at the edge
between two tokens. Such choices are noted while a test samples, and `same_start` allows a difference
only there, and only between those two tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit.contract.settings import Sampling
from alignkit.data.group import Group
from alignkit.models import generate as decoder
from alignkit.models.generate import attach, build_request, generate
from alignkit.models.shared_model import SharedModel
from alignkit.tokens.encoder import Encoder, Ids
from alignkit.training.active_stage import ActiveStage

# Several times what the models of tests round by
NEAR_LOGITS = 1e-4  # between the two likeliest tokens
NEAR_DRAW = 1e-6  # of probability, between a draw and the edge of its token

# By two tokens: what their rows had written when rounding decided between them
_ties: dict[frozenset[int], set[Ids]] = defaultdict(set)


def sample(
    model: SharedModel,
    role: str,
    encoder: Encoder,
    groups: Sequence[Group],
    sampling: Sampling,
    *,
    done: Callable[[int], None] = lambda responses: None,
    **named: Any,
) -> list[Group]:
    """done: is given the number of finished responses. named: see `build_request`."""
    named = {"path": (), "numbers": range(len(groups)), "samples_per_prompt": 1, **named}
    request = build_request(model, role, encoder, groups, sampling, **named)
    with noting():
        return attach(request, groups, generate(request, done=done))


@contextmanager
def noting() -> Iterator[set[str]]:
    """Note the choices that rounding decides. Yields the stages of a run in which, or before which,
    there was one; outside of runs, a stage without a name.
    """
    undecided, stage = set[str](), ""
    others: dict[float, set[int]] = defaultdict(set)  # by draw, of which every token has its own
    choose, append = decoder.choose, decoder.Decoder.append
    notify = ActiveStage.notify

    def notified(self: Any, hook: str, **values: Any) -> Any:
        nonlocal stage
        if hook == "stage_started":
            stage = self.name
            if not undecided.isdisjoint(self.spec.upstream):
                undecided.add(stage)
        return notify(self, hook, **values)

    def chosen(
        logits: Tensor, draws: Tensor, sampling: Sampling, early: Tensor | None, ends: Tensor
    ) -> tuple[Tensor, Tensor]:
        found = choose(logits, draws, sampling, early, ends)
        for changed in _nearby(logits, draws, sampling, found[0]):
            other, _ = choose(*changed, early, ends)
            for row in (other != found[0]).nonzero()[:, 0].tolist():
                others[float(draws[row])].add(int(other[row]))
        return found

    def appended(self: Any, rows: Any, ids: Any, logprobs: Any) -> None:
        for row, token in zip(rows, ids, strict=True):
            for other in others.get(row.draws[len(row.tokens)], ()) if row.active else ():
                _ties[frozenset({token, other})].add(tuple(row.tokens))
                undecided.add(stage)
        append(self, rows, ids, logprobs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "choose", chosen)
        patch.setattr(decoder.Decoder, "append", appended)
        patch.setattr(ActiveStage, "notify", notified)
        yield undecided


def _nearby(
    logits: Tensor, draws: Tensor, sampling: Sampling, chosen: Tensor
) -> Iterator[tuple[Tensor, Tensor, Sampling]]:
    """What rounding may make of the inputs of a choice."""
    if sampling.temperature == 0:
        lower = torch.full_like(logits[:, :1], -NEAR_LOGITS)
        yield logits.scatter_add(-1, chosen[:, None], lower), draws, sampling
        return
    for change in (-NEAR_DRAW, NEAR_DRAW):
        yield logits, (draws + change).clamp(0.0, 1.0 - 1e-12), sampling
        if 0 < sampling.top_p + change < 1:
            top_p = {"top_p": sampling.top_p + change}
            yield logits, draws, sampling.model_copy(update=top_p)


def same_start(found: Ids, wanted: Ids) -> int:
    """How many first tokens two samples of one stream share: all, or those before a choice that
    rounding decides. Fails if they differ elsewhere.
    """
    for place, pair in enumerate(zip(found, wanted, strict=False)):
        if pair[0] != pair[1]:
            before = found[:place]
            # The policy's own turn may be the end of what is before
            ties = _ties.get(frozenset(pair), ())
            assert any(before[place - len(tie) :] == tie for tie in ties), (found, wanted, place)
            return place
    assert len(found) == len(wanted), (found, wanted)
    return len(found)


def assert_same_tokens(found: Sequence[Any], wanted: Sequence[Any]) -> list[int]:
    """Samples, as responses or tokens, are those of the same streams up to what rounding decides,
    which is next to nothing of them. Returns how many first tokens of each are the same.
    """
    ours, theirs = ([getattr(one, "tokens", one) for one in each] for each in (found, wanted))
    starts = [same_start(tuple(a), tuple(b)) for a, b in zip(ours, theirs, strict=True)]
    assert 2 * sum(map(len, ours)) <= 3 * sum(starts), "rounding does not decide that much"
    return starts

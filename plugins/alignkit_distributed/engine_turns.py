"""Responses of several turns, sampled by an engine: in rounds, one turn of every response that continues.

A turn is asked for with all tokens before it, as they were sampled or read, so an engine that keeps prefixes reads the
new ones only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from alignkit import seeds
from alignkit.models.generate import ActiveSequence, Continuation, Partner
from alignkit.tokens.encoder import Ids
from alignkit_distributed.begun import Steps

# (contexts, a seed of each, most tokens of each, fewest tokens of all) -> the turns, one to each context
SampleTurns = Callable[[Sequence[Ids], Sequence[int], Sequence[int], int], Steps]


def play(
    sample: SampleTurns,
    prompts: Sequence[Ids],
    streams: Sequence[Sequence[int]],
    limits: tuple[int, int],
    partner: Partner,
    done: Callable[[int], None],
) -> Steps:
    """Sample turns until nobody answers, or no token is left.

    limits: fewest and most tokens of the policy in all turns of a response. done: is given the number of responses
    that are complete.
    """
    fewest, most = limits
    rows = [
        # The draws are the engine's; here they only count the tokens that may be written.
        ActiveSequence(p, k, np.zeros(most), partner.max_length - len(prompts[p]), complete=False)
        for p, numbers in enumerate(streams)
        for k in range(len(numbers))
    ]
    partner.counts.update(read=sum(map(len, prompts)))
    oldest: dict[tuple[int, int], int] = {}  # staleness of each response
    turn, tells = 0, True
    while active := [row for row in rows if row.active]:
        for least in sorted({max(0, fewest - row.sampled) for row in active}):
            asked = [row for row in active if max(0, fewest - row.sampled) == least]
            first = [streams[row.prompt][row.sample] for row in asked]
            numbers = [seeds.number(number, "turn", turn) if turn else number for number in first]
            contexts = [(*prompts[row.prompt], *row.tokens) for row in asked]
            written = yield from sample(contexts, numbers, [row.room for row in asked], least)
            for row, (one,) in zip(asked, written, strict=True):
                tells = tells and one.logprobs is not None
                for token, logprob in zip(one.tokens, one.logprobs or [0.0] * len(one.tokens), strict=True):
                    row.write(token, logprob)
                row.ended = one.ended
                oldest[row.prompt, row.sample] = max(one.staleness, oldest.get((row.prompt, row.sample), 0))
        for row in active:
            if row.waiting and (ids := row.answer(partner)) is not None:
                before = len(prompts[row.prompt]) + len(row.tokens) - len(ids)
                partner.counts.update(read=len(ids), saved=before)
        turn += 1
        done(sum(row.over for row in rows))
    found: list[list[Continuation]] = [[] for _ in prompts]
    for row in rows:
        mask = None if all(row.written) else tuple(row.written)
        logprobs, stale = tuple(row.logprobs) if tells else None, oldest.get((row.prompt, row.sample), 0)
        found[row.prompt].append(Continuation(tuple(row.tokens), logprobs, row.ended, mask, stale))
    return found

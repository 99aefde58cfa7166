"""Sampling responses with continuous batching: one prefill per prompt, and finished rows make room for waiting ones.

A sample depends on its prompt and its own random stream, not on the other rows of its batch (up to ties in fp32).
A response can have several turns: when the policy ends one, a `Partner` may answer, and the policy continues
after these tokens. Its row keeps the keys and values of all that it has read, so only the new tokens are read.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from alignkit import seeds
from alignkit.data.group import Group, Response, preview
from alignkit.errors import DataError, memory_ran_out
from alignkit.kernels.memory import release_cached
from alignkit.kernels.sampling_weights import prepacked_weights
from alignkit.models.batcher import RowBatch
from alignkit.models.decoder import Writer
from alignkit.models.next_token import Sampling
from alignkit.models.sequence import ActiveSequence, Partner, Wrote, last_turn
from alignkit.models.shared_model import SharedModel
from alignkit.tokens.encoder import Encoder, Ids


@dataclass(frozen=True)
class Continuation:
    """Sampled tokens, the log-probability of each in nats, and whether an end token or a stop string ended them.

    logprobs: None if an engine cannot tell them.
    written: for each token, whether the policy wrote it; None means all. Others have a log-probability of 0.
    staleness: versions between the weights that wrote the oldest token and those that were to write it.
    """

    tokens: Ids
    logprobs: tuple[float, ...] | None
    ended: bool
    written: tuple[bool, ...] | None = None
    staleness: int = 0


def sample(
    model: SharedModel,
    role: str,
    encoder: Encoder,
    groups: Sequence[Group],
    sampling: Sampling,
    *,
    seed: int,
    place: tuple[str | int, ...] = (),
    numbers: Sequence[int] | None = None,
    done: Callable[[int], None] = lambda responses: None,
    partner: Partner | None = None,
) -> list[Group]:
    """Sample a role's responses to the groups' prompts; they replace the groups' own responses.

    seed, place: name the random streams, with each prompt's number (default: its index) and its sample's number.
    done: is given the number of finished responses. Prompts with their new tokens must fit the model's context.
    partner: answers the policy's turns; `max_new_tokens` are then those of the policy in all of its turns.
    Raises DataError for an empty prompt.
    """
    asked = questions(encoder, groups, sampling, seed, place, numbers if numbers is not None else range(len(groups)))
    written = generate(model, role, encoder, *asked[:2], sampling, done=done, partner=partner, labels=asked[2])
    return answered(encoder, groups, written, role)


def questions(
    encoder: Encoder,
    groups: Sequence[Group],
    sampling: Sampling,
    seed: int,
    place: tuple[str | int, ...],
    numbers: Sequence[int],
) -> tuple[list[Ids], list[list[int]], list[str]]:
    """The prompts, streams and labels with which `generate` samples for groups. See `sample`."""
    prompts = [encoder.prompt(group.prompt, group.tools) for group in groups]
    streams = [[seeds.number(seed, *place, n, k) for k in range(sampling.samples_per_prompt)] for n in numbers]
    return prompts, streams, [str(group.origin or preview(group)) for group in groups]


def answered(
    encoder: Encoder, groups: Sequence[Group], written: Sequence[Sequence[Continuation]], role: str
) -> list[Group]:
    """The groups with what was written for them as their responses."""
    return [
        replace(group, responses=tuple(_response(encoder, one, role) for one in each), pairs=None)
        for group, each in zip(groups, written, strict=True)
    ]


@torch.no_grad()
def generate(
    model: SharedModel,
    role: str,
    encoder: Encoder,
    prompts: Sequence[Ids],
    streams: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    done: Callable[[int], None] = lambda responses: None,
    partner: Partner | None = None,
    labels: Sequence[str] = (),
    wrote: Wrote | None = None,
) -> list[list[Continuation]]:
    """Continue prompts that are given as token ids: once for each of a prompt's random streams, in order.

    streams: their numbers, as from `seeds.number`. A prompt may be the beginning of a conversation with its answers so
    far. labels: of the prompts, for errors. wrote: called after every token; not by an engine. See `sample`.
    """
    if not all(prompts):
        raise DataError("cannot sample from an empty prompt: this tokenizer does not begin texts with a special token")
    if model.engine is not None:
        return list(model.engine.generate(model, role, encoder, prompts, streams, sampling, done, labels, partner))
    model.passes.gather(role)
    # With a partner, the turns of others take tokens of the same room.
    rooms = [sampling.max_new_tokens if partner is None else partner.max_length - len(prompt) for prompt in prompts]
    groups = [
        [
            # All draws in advance: they do not depend on when, or next to which rows, a token is written.
            ActiveSequence(p, k, seeds.generator(n).random(sampling.max_new_tokens), rooms[p], complete=partner is None)
            for k, n in enumerate(numbers)
        ]
        for p, numbers in enumerate(streams)
    ]
    sequences = [sequence for group in groups for sequence in group]
    # Longest prompts first, so that rows of similar lengths are neighbors and little of the cache stays empty.
    queue = deque(sorted(sequences, key=lambda s: (-len(prompts[s.prompt]), s.prompt, s.sample)))
    writer = Writer(
        model, role, encoder, prompts, sampling, lambda: done(sum(s.over for s in sequences)), partner, wrote
    )
    while not _written(writer, deque(s for s in queue if s.active or (s.waiting and writer.continues(s)))):
        # Only here, where the traceback of the error no longer holds the activations.
        gc.collect()
        release_cached(model.device)
    return [[_continuation(sequence) for sequence in group] for group in groups]


def _written(writer: Writer, queue: deque[ActiveSequence]) -> bool:
    """Write all sequences of the queue to their ends. False if memory ran out; the next attempt takes fewer rows.

    Turns that have not ended start over: a sample depends on its draws only, not on who is sampled with it.
    """
    model, waiting = writer.model, list(queue)  # a copy, because writing empties the queue
    limit, weights = writer.most_rows(), model.roles[writer.role]
    try:
        with model.multiplying():
            if model.packs:
                rows = min(limit, len(queue))
                with prepacked_weights(weights.model, weights.adapter, rows, writer.sampling.max_new_tokens):
                    RowBatch(writer, queue, limit).run()
            else:
                writer.write_by_prompt(queue, limit)
        return True
    except (MemoryError, RuntimeError) as error:
        if not memory_ran_out(error) or limit == 1:
            raise
    model.memory.sampling_halvings += 1
    for sequence in waiting:
        if sequence.active:
            sequence.restart_turn()
    return False


def _continuation(sequence: ActiveSequence) -> Continuation:
    written = None if all(sequence.written) else tuple(sequence.written)
    return Continuation(tuple(sequence.tokens), tuple(sequence.logprobs), sequence.ended, written)


def _response(encoder: Encoder, written: Continuation, role: str) -> Response:
    return Response(
        text=encoder.said(last_turn(written.tokens, written.written)),
        tokens=written.tokens,
        logprobs=written.logprobs,
        written=written.written,
        truncated=not written.ended,
        source=role,
        tokenizer=encoder.digest,
        staleness=written.staleness or None,
    )

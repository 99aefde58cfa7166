"""Sampling responses in this process: one prefill a prompt, a preallocated cache, finished sequences leave.

A sample depends on its prompt and its own random stream, not on its place in a batch (up to float ties).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignkit import attention, seeds
from alignkit.attention import Decoding, Packed, Segment
from alignkit.batch import Encoder, Ids
from alignkit.data import Group, Response
from alignkit.policy import Policy

# Rows decoded together: enough to feed the processor, few enough for the cache to stay small.
ROWS = 128


@dataclass(frozen=True)
class Sampling:
    """How to sample. temperature 0: greedy. top_k 0 and top_p 1: the unfiltered policy."""

    samples_per_prompt: int = 1
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: Sequence[str] = ()


@dataclass
class Draft:
    """A response being written: which prompt and sample it is, its uniform draws, and what stands so far."""

    prompt: int
    sample: int
    draws: np.ndarray
    tokens: list[int]
    logprobs: list[float]
    done: bool = False


@torch.no_grad()
def sample(
    policy: Policy,
    role: str,
    encoder: Encoder,
    groups: Sequence[Group],
    sampling: Sampling,
    *,
    seed: int,
    place: tuple[str | int, ...] = (),
    places: Sequence[int] | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> list[Group]:
    """Responses of a role to the groups' prompts, `samples_per_prompt` each; their own responses are replaced.

    seed, place: name the random streams together with the prompt's number (its place in `groups`, or `places`) and
    the sample's.
    progress: called with the number of new tokens after every step. Prompts must fit the model.
    """
    prompts = [encoder.prompt(group.prompt) for group in groups]
    numbers = places if places is not None else range(len(groups))
    waiting = [
        Draft(p, k, seeds.stream(seed, *place, numbers[p], k).random(sampling.max_new_tokens), [], [])
        for p in range(len(groups))
        for k in range(sampling.samples_per_prompt)
    ]
    # Longest prompts first: rows of one wave have like lengths, so little of the cache is empty.
    write = _wave if policy.packs else _wave_unpacked
    waves = sorted(waiting, key=lambda s: (-len(prompts[s.prompt]), s.prompt, s.sample))
    for start in range(0, len(waves), ROWS):
        write(policy, role, encoder, prompts, waves[start : start + ROWS], sampling, progress)
    responses: list[list[Response]] = [[] for _ in groups]
    for sequence in waiting:
        responses[sequence.prompt].append(_response(encoder, sequence, role))
    return [
        Group(group.prompt, tuple(found), None, group.bundle, group.id, group.meta)
        for group, found in zip(groups, responses, strict=True)
    ]


def _response(encoder: Encoder, sequence: Draft, role: str) -> Response:
    return Response(
        text=encoder.decode(sequence.tokens),
        tokens=tuple(sequence.tokens),
        logprobs=tuple(sequence.logprobs),
        truncated=not sequence.done,
        source=role,
    )


def _wave(
    policy: Policy,
    role: str,
    encoder: Encoder,
    prompts: Sequence[Ids],
    sequences: list[Draft],
    sampling: Sampling,
    progress: Callable[[int], None],
) -> None:
    """Write one wave of sequences to their ends."""
    wanted = sorted({sequence.prompt for sequence in sequences})
    segments: list[Segment] = []
    tokens: list[int] = []
    for prompt in wanted:
        segments.append(Segment(len(tokens), len(prompts[prompt]), ()))
        tokens += prompts[prompt]
    prefill = Packed(segments, keep=True)
    hidden = policy.hidden(role, prefill, torch.tensor(tokens))
    ends = {p: s.start + s.prompt - 1 for p, s in zip(wanted, segments, strict=True)}
    logits = policy.next_logits(role, hidden[[ends[s.prompt] for s in sequences]])
    decoding = Decoding(prefill, [wanted.index(s.prompt) for s in sequences], sampling.max_new_tokens)
    lengths = torch.tensor([len(prompts[s.prompt]) for s in sequences])
    active = list(range(len(sequences)))
    for step in range(sampling.max_new_tokens):
        rows = [sequences[i] for i in active]
        chosen = _write(encoder, rows, logits, sampling, step)
        progress(len(active))
        left = [i for i, sequence in enumerate(rows) if not sequence.done]
        if not left or step + 1 == sampling.max_new_tokens:
            return
        # Copying the cache costs a step or so: do it when a fifth of the rows is idle.
        if len(left) <= 0.8 * len(rows):
            keep = torch.tensor(left, device=logits.device)
            decoding.keep_rows(keep)
            lengths, chosen = lengths[left], chosen[keep]
            active = [active[i] for i in left]
        positions = (lengths + step)[:, None].to(policy.device)
        with attention.using(decoding), policy.acting_as(role) as model:
            states = getattr(model, model.base_model_prefix)(
                input_ids=chosen[:, None].to(policy.device), position_ids=positions, use_cache=False
            ).last_hidden_state
        decoding.advance()
        logits = policy.next_logits(role, states[:, 0])


def _write(encoder: Encoder, rows: Sequence[Draft], logits: Tensor, sampling: Sampling, step: int) -> Tensor:
    """Choose and append the next token of every row; gives the tokens, [rows]."""
    chosen, logprobs = choose(logits, [row.draws[step] for row in rows], sampling, step, encoder.end_ids)
    for sequence, token, logprob in zip(rows, chosen.tolist(), logprobs.tolist(), strict=True):
        if not sequence.done:
            sequence.tokens.append(token)
            sequence.logprobs.append(logprob)
            sequence.done = token in encoder.end_ids or _stopped(encoder, sequence, sampling)
    return chosen


def _wave_unpacked(
    policy: Policy,
    role: str,
    encoder: Encoder,
    prompts: Sequence[Ids],
    sequences: list[Draft],
    sampling: Sampling,
    progress: Callable[[int], None],
) -> None:
    """The same for models whose attention cannot be packed: a prompt's samples together, with the model's own cache."""
    for prompt in sorted({sequence.prompt for sequence in sequences}):
        rows = [sequence for sequence in sequences if sequence.prompt == prompt]
        tokens = torch.tensor([prompts[prompt]] * len(rows), device=policy.device)
        cache = None
        for step in range(sampling.max_new_tokens):
            with policy.acting_as(role) as model:
                out = getattr(model, model.base_model_prefix)(input_ids=tokens, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits = policy.next_logits(role, out.last_hidden_state[:, -1])
            tokens = _write(encoder, rows, logits, sampling, step)[:, None]
            progress(len(rows))
            if all(row.done for row in rows):
                break


def _stopped(encoder: Encoder, sequence: Draft, sampling: Sampling) -> bool:
    """Whether a stop string has been written; it stays part of the response."""
    if not sampling.stop:
        return False
    tail = encoder.decode(sequence.tokens[-32:])
    return any(stop in tail for stop in sampling.stop)


def choose(
    logits: Tensor, draws: Sequence[float], sampling: Sampling, step: int, end_ids: frozenset[int]
) -> tuple[Tensor, Tensor]:
    """Next tokens [n] by inverse CDF and their log-probabilities [n] at the sampling temperature, unfiltered.

    logits: [n, vocabulary] fp32. draws: [n] uniform in [0, 1). Until `min_new_tokens` no end token is chosen.
    """
    if sampling.temperature == 0:
        allowed = _forbid_ends(logits, step, sampling, end_ids)
        chosen = allowed.argmax(dim=-1)
        logprobs = torch.log_softmax(logits, dim=-1)
    else:
        logprobs = torch.log_softmax(logits / sampling.temperature, dim=-1)
        allowed = _filter(_forbid_ends(logprobs, step, sampling, end_ids), sampling)
        cumulative = allowed.double().exp().cumsum(dim=-1)
        u = torch.tensor(np.asarray(draws), dtype=torch.float64, device=logits.device)[:, None]
        chosen = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)[:, 0]
        chosen = chosen.clamp_(max=logits.shape[-1] - 1)
    return chosen, logprobs.gather(-1, chosen[:, None])[:, 0]


def _forbid_ends(scores: Tensor, step: int, sampling: Sampling, end_ids: frozenset[int]) -> Tensor:
    if step >= sampling.min_new_tokens:
        return scores
    scores = scores.clone()
    scores[:, sorted(end_ids)] = float("-inf")
    return scores


def _filter(logprobs: Tensor, sampling: Sampling) -> Tensor:
    """Keep the `top_k` likeliest tokens, then the smallest set with probability `top_p`."""
    if sampling.top_k:
        least = logprobs.topk(min(sampling.top_k, logprobs.shape[-1]), dim=-1).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < least, float("-inf"))
    if sampling.top_p < 1.0:
        ordered, order = torch.softmax(logprobs, dim=-1).sort(dim=-1, descending=True)
        outside = ordered.cumsum(dim=-1) - ordered >= sampling.top_p
        logprobs = logprobs.masked_fill(outside.scatter(-1, order, outside), float("-inf"))
    return logprobs

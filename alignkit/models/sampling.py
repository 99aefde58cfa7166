"""Sampling responses in this process: one prefill a prompt, a cache of fixed size; the finished leave, others enter.

A sample depends on its prompt and its own random stream, not on its place in a batch (up to float ties).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit import seeds
from alignkit.data.group import Group, Response
from alignkit.errors import DataError, RunFailed
from alignkit.kernels import attention
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.decoding import Decoding
from alignkit.kernels.layout import GroupSpan
from alignkit.kernels.sampling_weights import prepacked_weights
from alignkit.models.encoding import Encoder, Ids
from alignkit.models.loading import backbone, largest
from alignkit.models.shared_model import SharedModel

# Rows decoded together: enough to feed the processor, fewer where their cache would take more than this.
ROWS = 128
CACHE_BYTES = 2 * 2**30
# Leaving and entering copy the cache, which costs a step or so: worth it when a fifth of the rows is idle.
BUSY = 0.8
BLOCK = 256


@dataclass(frozen=True)
class Sampling:
    """How to sample. temperature 0: greedy. top_k 0 and top_p 1: the unfiltered policy.

    processors: change logits [n, vocabulary] before anything else, given each row's prompt and response so far, [n,
    tokens], as transformers' `LogitsProcessor`s do; n are the rows of one length. What is told of the chosen tokens
    is their log-probability without them.
    """

    samples_per_prompt: int = 1
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: Sequence[str] = ()
    processors: Sequence[Callable[[Tensor, Tensor], Tensor]] = ()

    def __post_init__(self) -> None:
        least = {"samples_per_prompt": 1, "max_new_tokens": 1, "min_new_tokens": 0, "temperature": 0, "top_k": 0}
        wrong = [f"{name} is {getattr(self, name)}, at least {low}" for name, low in least.items()
                 if not getattr(self, name) >= low]  # fmt: skip
        if not 0 < self.top_p <= 1:
            wrong.append(f"top_p is {self.top_p}, above 0 and at most 1")
        if wrong:
            raise ValueError("sampling: " + "; ".join(wrong))


@dataclass
class ActiveSequence:
    """A response being written: which prompt and sample it is, its uniform draws, and what stands so far.

    done: it has ended by itself; one that has used all its draws is cut off.
    """

    prompt: int
    sample: int
    draws: np.ndarray
    tokens: list[int]
    logprobs: list[float]
    done: bool = False

    @property
    def going(self) -> bool:
        return not self.done and len(self.tokens) < len(self.draws)


@torch.no_grad()
def sample(
    policy: SharedModel,
    role: str,
    encoder: Encoder,
    groups: Sequence[Group],
    sampling: Sampling,
    *,
    seed: int,
    place: tuple[str | int, ...] = (),
    places: Sequence[int] | None = None,
) -> list[Group]:
    """Responses of a role to the groups' prompts, `samples_per_prompt` each; their own responses are replaced.

    seed, place: name the random streams together with the prompt's number (its place in `groups`, or `places`) and
    the sample's. Prompts must fit the model.
    """
    prompts = [encoder.prompt(group.prompt) for group in groups]
    if not all(prompts):
        raise DataError("a prompt has no token that a response could follow: the tokenizer begins no text with one")
    numbers = places if places is not None else range(len(groups))
    waiting = [
        ActiveSequence(p, k, seeds.stream(seed, *place, numbers[p], k).random(sampling.max_new_tokens), [], [])
        for p in range(len(groups))
        for k in range(sampling.samples_per_prompt)
    ]
    # Longest prompts first: rows beside each other have like lengths, so little of the cache is empty.
    queue = deque(sorted(waiting, key=lambda s: (-len(prompts[s.prompt]), s.prompt, s.sample)))
    if policy.packs:
        limit = _most_rows(policy, max((len(prompt) for prompt in prompts), default=0), sampling)
        owner = policy.roles[role]
        with prepacked_weights(owner.model, owner.adapter, min(limit, len(queue)), sampling.max_new_tokens):
            _write_packed(policy, role, encoder, prompts, queue, sampling, limit)
    else:
        _write_unpacked(policy, role, encoder, prompts, queue, sampling)
    responses: list[list[Response]] = [[] for _ in groups]
    for sequence in waiting:
        responses[sequence.prompt].append(_response(encoder, sequence, role))
    return [
        Group(group.prompt, tuple(found), None, group.bundle, group.id, group.meta)
        for group, found in zip(groups, responses, strict=True)
    ]


def _response(encoder: Encoder, sequence: ActiveSequence, role: str) -> Response:
    return Response(
        text=encoder.decode(sequence.tokens),
        tokens=tuple(sequence.tokens),
        logprobs=tuple(sequence.logprobs),
        truncated=not sequence.done,
        source=role,
    )


def _write_packed(
    policy: SharedModel,
    role: str,
    encoder: Encoder,
    prompts: Sequence[Ids],
    queue: deque[ActiveSequence],
    sampling: Sampling,
    limit: int,
) -> None:
    """Write all sequences of the queue to their ends, at most `limit` of them at a time."""
    decoding, rows, logits = Decoding(), list[ActiveSequence](), torch.zeros(0, device=policy.device)
    while True:
        keep = [place for place, row in enumerate(rows) if row.going]
        if not keep and not queue:
            return
        if len(keep) <= BUSY * (limit if queue else len(rows)):
            entering = list(_chunks(queue, limit - len(keep), prompts, 4 * policy.token_budget))
            for part in entering or [[]]:
                rows = [rows[place] for place in keep] + part
                logits = torch.cat([logits[keep], _enter(policy, role, prompts, decoding, rows, keep)])
                keep = list(range(len(rows)))
        policy.should_stop()
        chosen = _write(encoder, rows, logits, sampling, prompts)
        if not any(row.going for row in rows):
            continue
        positions = torch.tensor([[len(prompts[row.prompt]) + len(row.tokens) - 1] for row in rows])
        with attention.using(decoding), policy.using_role(role) as model:
            states = backbone(model)(
                input_ids=chosen[:, None].to(policy.device), position_ids=positions.to(policy.device), use_cache=False
            ).last_hidden_state
        decoding.advance()
        logits = policy.next_logits(role, states[:, 0])


def _most_rows(policy: SharedModel, longest: int, sampling: Sampling) -> int:
    """Rows whose keys and values fit CACHE_BYTES, at most ROWS."""
    config = policy.model.config.get_text_config()
    heads = largest(config, "num_key_value_heads") or config.num_attention_heads
    size = largest(config, "head_dim") or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * size * policy.dtype.itemsize
    # Twice the new tokens: a row may be at its end when another enters.
    return max(1, min(ROWS, CACHE_BYTES // (token * (longest + 2 * sampling.max_new_tokens))))


def _room(rows: Sequence[ActiveSequence]) -> int:
    """Tokens that the longest of these may still write."""
    return max((len(row.draws) - len(row.tokens) for row in rows), default=0)


def _chunks(
    queue: deque[ActiveSequence], vacant: int, prompts: Sequence[Ids], budget: int
) -> Iterator[list[ActiveSequence]]:
    """Take up to `vacant` sequences off the queue, in parts whose prompts, each counted once, fit a token budget."""
    while vacant and queue:
        part: list[ActiveSequence] = []
        tokens, last = 0, -1
        while queue and len(part) < vacant:
            new = len(prompts[queue[0].prompt]) if queue[0].prompt != last else 0
            if part and tokens + new > budget:
                break
            tokens, last = tokens + new, queue[0].prompt
            part.append(queue.popleft())
        vacant -= len(part)
        yield part


def _enter(
    policy: SharedModel,
    role: str,
    prompts: Sequence[Ids],
    decoding: Decoding,
    rows: Sequence[ActiveSequence],
    keep: Sequence[int],
) -> Tensor:
    """Let all but `keep` of the decoded rows leave and those of `rows` behind them enter. Gives the first logits of the
    entering ones, from reading their prompts, [entering, vocabulary].
    """
    entering = rows[len(keep) :]
    if not entering:
        decoding.update_rows(keep, _room(rows))
        return torch.zeros(0, device=policy.device)
    wanted = sorted({draft.prompt for draft in entering})
    segments: list[GroupSpan] = []
    tokens: list[int] = []
    for prompt in wanted:
        segments.append(GroupSpan(len(tokens), len(prompts[prompt]), ()))
        tokens += prompts[prompt]
    prefill = TreeLayout(segments, store_kv=True)
    hidden = policy.hidden(role, prefill, torch.tensor(tokens))
    owners = [wanted.index(draft.prompt) for draft in entering]
    decoding.update_rows(keep, _room(rows), prefill, owners)
    ends = [segments[owner].start + segments[owner].prompt - 1 for owner in owners]
    return policy.next_logits(role, hidden[ends])


def _write(
    encoder: Encoder, rows: Sequence[ActiveSequence], logits: Tensor, sampling: Sampling, prompts: Sequence[Ids]
) -> Tensor:
    """Choose the next token of every row and append it to those that go on; gives the tokens, [rows]."""
    draws = [row.draws[len(row.tokens)] if row.going else 0.0 for row in rows]
    lengths = [len(row.tokens) for row in rows]
    processed = logits
    if sampling.processors:
        seen = [[*prompts[row.prompt], *row.tokens] if row.going else None for row in rows]
        processed = _processed(logits, seen, sampling)
    chosen, logprobs = choose(logits, draws, sampling, lengths, encoder.end_ids, processed)
    for sequence, token, logprob in zip(rows, chosen.tolist(), logprobs.tolist(), strict=True):
        if sequence.going:
            sequence.tokens.append(token)
            sequence.logprobs.append(logprob)
            sequence.done = token in encoder.end_ids or _stopped(encoder, sequence, sampling)
    return chosen


def _processed(logits: Tensor, seen: Sequence[Sequence[int] | None], sampling: Sampling) -> Tensor:
    """What the processors make of the logits, [rows, vocabulary]; rows of one length together, so that no filling is
    taken for a token. None: the row has ended, and they are not asked.
    """
    processed = logits.clone()
    for length in sorted({len(row) for row in seen if row is not None}):
        places = [place for place, row in enumerate(seen) if row is not None and len(row) == length]
        ids = torch.tensor([seen[place] for place in places], device=logits.device)
        part = processed[places]
        for processor in sampling.processors:
            part = processor(ids, part)
        processed[places] = part
    return processed


def _write_unpacked(
    policy: SharedModel,
    role: str,
    encoder: Encoder,
    prompts: Sequence[Ids],
    queue: deque[ActiveSequence],
    sampling: Sampling,
) -> None:
    """The same for models whose attention cannot be packed: a prompt's samples together, with the model's own cache."""
    while queue:
        rows = [queue.popleft()]
        while queue and len(rows) < ROWS and queue[0].prompt == rows[0].prompt:
            rows.append(queue.popleft())
        tokens = torch.tensor([prompts[rows[0].prompt]] * len(rows), device=policy.device)
        cache = None
        while any(row.going for row in rows):
            with policy.using_role(role) as model:
                out = backbone(model)(input_ids=tokens, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits = policy.next_logits(role, out.last_hidden_state[:, -1])
            policy.should_stop()
            tokens = _write(encoder, rows, logits, sampling, prompts)[:, None]


def _stopped(encoder: Encoder, sequence: ActiveSequence, sampling: Sampling) -> bool:
    """Whether a stop string has been written; it stays part of the response."""
    if not sampling.stop:
        return False
    longest = max(len(stop.encode()) for stop in sampling.stop)  # a token writes a byte at least, or part of one
    tail = encoder.decode(sequence.tokens[-max(32, longest + 4) :])
    return any(stop in tail for stop in sampling.stop)


def choose(
    logits: Tensor,
    draws: Sequence[float],
    sampling: Sampling,
    lengths: Sequence[int],
    end_ids: frozenset[int],
    processed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Next tokens [n] by inverse CDF and their log-probabilities [n] at the sampling temperature, unfiltered.

    logits: [n, vocabulary] fp32. draws: [n] uniform in [0, 1). lengths: [n] tokens written so far; until there are
    `min_new_tokens` no end token is chosen. processed: the logits to choose by, where processors have changed them.
    """
    changed = logits if processed is None else processed
    if sampling.temperature == 0:
        allowed = _forbid_ends(changed, lengths, sampling, end_ids)
        chosen = allowed.argmax(dim=-1)
        logprobs = torch.log_softmax(logits, dim=-1)
    else:
        logprobs = _warm(logits, sampling)
        likely = logprobs if changed is logits else _warm(changed, sampling)
        allowed = _filter(_forbid_ends(likely, lengths, sampling, end_ids), sampling)
        chosen = inverse_cdf(allowed.exp(), torch.tensor(np.asarray(draws), dtype=torch.float64, device=logits.device))
    if changed is not logits and not bool(allowed.amax(dim=-1).isfinite().all()):
        raise RunFailed("the logits processors leave a response no next token, or make what is not a number")
    found = logprobs.gather(-1, chosen[:, None])[:, 0]
    if not bool(found.isfinite().all()):
        raise RunFailed("the policy's probabilities of the next token are not numbers: it has diverged in training")
    return chosen, found


def _warm(logits: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities at the sampling temperature."""
    return torch.log_softmax(logits if sampling.temperature == 1 else logits / sampling.temperature, dim=-1)


def inverse_cdf(weights: Tensor, draws: Tensor) -> Tensor:
    """The first place whose cumulative share exceeds the draw, [n]; never one of weight 0.

    weights: [n, vocabulary] fp32, at least 0, any sum. draws: [n] fp64 in [0, 1). First the block, then the place in
    it: a cumulative sum over a whole vocabulary in fp64 takes longer than a small model's forward pass.
    """
    count, size = weights.shape
    blocks = F.pad(weights, (0, -size % BLOCK)).view(count, -1, BLOCK)
    cumulative = blocks.sum(dim=-1).double().cumsum(dim=-1)  # [n, blocks]
    wanted = draws[:, None] * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, wanted, right=True).clamp_(max=_last(cumulative))
    inside = blocks.gather(1, block[:, :, None].expand(-1, 1, BLOCK))[:, 0].double().cumsum(dim=-1)  # [n, BLOCK]
    before = F.pad(cumulative, (1, 0)).gather(1, block)
    place = torch.searchsorted(inside, wanted - before, right=True).clamp_(max=_last(inside))
    return (block * BLOCK + place)[:, 0]


def _last(cumulative: Tensor) -> Tensor:
    """The place at which a cumulative sum [n, m] reaches its total, [n, 1]: rounding must not draw what comes after."""
    return (cumulative < cumulative[:, -1:]).sum(dim=-1, keepdim=True)


def _forbid_ends(scores: Tensor, lengths: Sequence[int], sampling: Sampling, end_ids: frozenset[int]) -> Tensor:
    early = [row for row, length in enumerate(lengths) if length < sampling.min_new_tokens]
    if not early or not end_ids:
        return scores
    scores = scores.clone()
    scores[torch.tensor(early)[:, None], torch.tensor(sorted(end_ids))] = float("-inf")
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

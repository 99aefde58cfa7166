"""Sampling responses with continuous batching: one prefill per prompt, and finished rows make room for waiting ones.

A sample depends on its prompt and its own random stream, not on the other rows of its batch (up to ties in fp32).
A response can have several turns: when the policy ends one, a `Partner` may answer, and the policy continues
after these tokens. Its row keeps the keys and values of all that it has read, so only the new tokens are read.
"""

from __future__ import annotations

import gc
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignkit import seeds
from alignkit.data.group import Group, Response, preview
from alignkit.errors import DataError, RunFailed, memory_ran_out
from alignkit.kernels import attention
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.decoding import decoding_for
from alignkit.kernels.layout import GroupSpan
from alignkit.kernels.lora import prepacked_weights
from alignkit.kernels.memory import available, release_cached, total
from alignkit.models.loading import backbone, largest
from alignkit.models.next_token import Processor, choose
from alignkit.models.shared_model import SharedModel
from alignkit.sampling import Sampling
from alignkit.tokens.encoder import Encoder, Ids

# Rows decoded together: enough to keep a CPU busy. A GPU reads all weights for each token, however few rows it has.
ROWS, ROWS_ON_GPU = 128, 1024
CACHE_BYTES = 2 * 2**30  # of keys and values, on a CPU; fewer rows are decoded together if they need more
CACHE_SHARE = 1 / 8  # of a CPU's memory at most
FREE_SHARE = 1 / 2  # of a GPU's free memory, for keys, values and logits
LOGIT_COPIES = 6  # of a row's logits in fp32 that choosing a token takes
CACHES = ("past_key_values", "cache_params")  # what models call what they keep of earlier tokens
# Replacing rows copies the cache, which takes about as long as a step. It pays once a fifth of the rows is idle.
BUSY = 0.8
DIVERGED = "the policy's next-token probabilities are NaN: training has diverged; lower learning_rate"

# (prompt, sample, tokens of the policy's last turn, room) -> the tokens that follow; None if the response is complete.
# prompt, sample: indices. room: most tokens that may follow.
Reply = Callable[[int, int, Sequence[int], int], Ids | None]
# Given the rows: the active ones have just got a token.
Wrote = Callable[[Sequence["ActiveSequence"]], None]


@dataclass(frozen=True)
class Partner:
    """Who answers the policy's turns.

    max_length: most tokens of a prompt with all turns after it. counts: `read` gets the number of tokens that were read
    as prompts and answers, and `saved` of those that would have been read again without the cache.
    """

    reply: Reply
    max_length: int
    counts: Counter[str] = field(default_factory=Counter)


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


# What samples


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
    samples_per_prompt: int = 1,
    done: Callable[[int], None] = lambda responses: None,
    partner: Partner | None = None,
    processors: Sequence[Processor] = (),
) -> list[Group]:
    """Sample a role's responses to the groups' prompts; they replace the groups' own responses.

    seed, place: name the random streams, with each prompt's number (default: its index) and its sample's number.
    done: is given the number of finished responses. Prompts with their new tokens must fit the model's context.
    partner: answers the policy's turns; `max_new_tokens` are then those of the policy in all of its turns.
    Raises DataError for an empty prompt.
    """
    numbers = range(len(groups)) if numbers is None else numbers
    prompts, streams, labels = questions(encoder, groups, samples_per_prompt, seed, place, numbers)
    more: dict[str, Any] = {"done": done, "partner": partner, "labels": labels, "processors": processors}
    written = generate(model, role, encoder, prompts, streams, sampling, **more)
    return answered(encoder, groups, written, role)


def questions(
    encoder: Encoder,
    groups: Sequence[Group],
    samples_per_prompt: int,
    seed: int,
    place: tuple[str | int, ...],
    numbers: Sequence[int],
) -> tuple[list[Ids], list[list[int]], list[str]]:
    """The prompts, streams and labels with which `generate` samples for groups. See `sample`."""
    prompts = [encoder.prompt(group.prompt, group.tools) for group in groups]
    streams = [[seeds.number(seed, *place, n, k) for k in range(samples_per_prompt)] for n in numbers]
    return prompts, streams, [str(group.origin or preview(group)) for group in groups]


def answered(
    encoder: Encoder, groups: Sequence[Group], written: Sequence[Sequence[Continuation]], role: str
) -> list[Group]:
    """The groups with what was written for them as their responses."""
    return [
        replace(group, responses=tuple(_response(encoder, one, role) for one in each), pairs=None)
        for group, each in zip(groups, written, strict=True)
    ]


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


def last_turn(tokens: Sequence[int], written: Sequence[bool] | None) -> Ids:
    """The tokens that the policy wrote after those of others. written: see `Response.written`."""
    start = max((place + 1 for place, own in enumerate(written or ()) if not own), default=0)
    return tuple(tokens[start:])


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
    processors: Sequence[Processor] = (),
) -> list[list[Continuation]]:
    """Continue prompts that are given as token ids: once for each of a prompt's random streams, in order.

    streams: their numbers, as from `seeds.number`. A prompt may be the beginning of a conversation with its answers so
    far. labels: of the prompts, for errors. wrote: called after every token. processors: transformers' logits
    processors. An engine uses neither. See `sample`.
    """
    if not all(prompts):
        raise DataError("cannot sample from an empty prompt: this tokenizer does not begin texts with a special token")
    if model.engine is not None:
        return list(model.engine.generate(model, role, encoder, prompts, streams, sampling, done, labels, partner))
    model.passes.gather(role)
    sequences = [
        # All draws in advance: they do not depend on when, or next to which rows, a token is written.
        ActiveSequence(
            prompt=prompt,
            sample=number,
            draws=seeds.generator(stream).random(sampling.max_new_tokens),
            # With a partner, the turns of others take tokens of the same room.
            most=sampling.max_new_tokens if partner is None else partner.max_length - len(prompts[prompt]),
            complete=partner is None,
        )
        for prompt, numbers in enumerate(streams)
        for number, stream in enumerate(numbers)
    ]
    # Longest prompts first, so that rows of similar lengths are neighbors and little of the cache stays empty.
    queue = deque(sorted(sequences, key=lambda row: (-len(prompts[row.prompt]), row.prompt, row.sample)))

    def finished() -> None:
        done(sum(row.over for row in sequences))

    decoder = Decoder(model, role, encoder, prompts, sampling, finished, partner, wrote, processors)
    while not _written(decoder, deque(row for row in queue if row.active or (row.waiting and decoder.continues(row)))):
        # Only here, where the traceback of the error no longer holds the activations.
        gc.collect()
        release_cached(model.device)
    continuations: list[list[Continuation]] = [[] for _ in prompts]
    for row in sequences:
        written = None if all(row.written) else tuple(row.written)
        one = Continuation(tuple(row.tokens), tuple(row.logprobs), row.ended, written)
        continuations[row.prompt].append(one)
    return continuations


def _written(decoder: Decoder, queue: deque[ActiveSequence]) -> bool:
    """Write all sequences of the queue to their ends. False if memory ran out; the next attempt takes fewer rows.

    Turns that have not ended start over: a sample depends on its draws only, not on who is sampled with it.
    """
    model, waiting = decoder.model, list(queue)  # a copy, because writing empties the queue
    limit, weights = decoder.most_rows(), model.roles[decoder.role]
    try:
        with model.multiplying():
            if model.packs:
                rows = min(limit, len(queue))
                with prepacked_weights(weights.model, weights.adapter, rows, decoder.sampling.max_new_tokens):
                    RowBatch(decoder, queue, limit).run()
            else:
                decoder.write_by_prompt(queue, limit)
        return True
    except (MemoryError, RuntimeError) as error:
        if not memory_ran_out(error) or limit == 1:
            raise
    model.memory.sampling_halvings += 1
    for sequence in waiting:
        if sequence.active:
            sequence.restart_turn()
    return False


# A response while it is sampled


@dataclass(eq=False)
class ActiveSequence:
    """A response being written.

    prompt, sample: index of its prompt and its number among that prompt's samples. draws: uniform in [0, 1), one for
    each token that the policy may write. most: tokens that it may have, with those of others. written: for each token,
    whether the policy wrote it; others have a log-probability of 0. turn: where the policy's last turn begins. ended:
    that turn, by an end token or a stop string. complete: no turn follows. unread: tokens at the end of `tokens` that
    no forward pass has read: an answer, and the token before it.
    """

    prompt: int
    sample: int
    draws: np.ndarray
    most: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    written: list[bool] = field(default_factory=list)
    sampled: int = 0
    turn: int = 0
    unread: int = 0
    ended: bool = False
    complete: bool = False

    @property
    def active(self) -> bool:
        return not self.ended and self.room > 0

    @property
    def waiting(self) -> bool:
        """Whether the policy has ended a turn that may be answered."""
        return self.ended and not self.complete

    @property
    def over(self) -> bool:
        return not self.active and not self.waiting

    @property
    def room(self) -> int:
        """Tokens that the policy may still write."""
        return min(len(self.draws) - self.sampled, self.most - len(self.tokens))

    @property
    def key(self) -> tuple[int, int]:
        """Equal for rows with the same context: the samples of a prompt, before anything is written."""
        return self.prompt, self.sample if self.tokens else -1

    def write(self, token: int, logprob: float) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.written.append(True)
        self.sampled += 1

    def answer(self, partner: Partner) -> Ids | None:
        """Ask for the turn that follows, and append its tokens, which the policy did not write; None: none follows."""
        # One token less, so that the policy can answer, too; none if it may write no more.
        room = self.most - len(self.tokens) - 1 if self.sampled < len(self.draws) else 0
        ids = partner.reply(self.prompt, self.sample, self.tokens[self.turn :], room)
        if ids is None:
            self.complete = True
            return None
        self.tokens += ids
        self.logprobs += [0.0] * len(ids)
        self.written += [False] * len(ids)
        self.turn, self.unread, self.ended = len(self.tokens), len(ids) + 1, False
        return ids

    def abandon(self) -> None:
        """Write no more, because nobody wants the rest."""
        self.most, self.complete = len(self.tokens), True

    def restart_turn(self) -> None:
        self.sampled -= len(self.tokens) - self.turn
        del self.tokens[self.turn :], self.logprobs[self.turn :], self.written[self.turn :]


# A role that continues prompts


def row_bytes(config: Any, width: int, longest: int, new: int) -> int:
    """Bytes of what a row keeps in all layers, at least 1: keys and values of its tokens, and recurrent states in fp32.

    config: of the language model. width: bytes of a number. longest: tokens of the longest prompt. new: tokens that a
    row may write.
    """
    heads = largest(config, "num_attention_heads")
    of_token = 0
    if heads is not None:
        size = largest(config, "head_dim") or config.hidden_size // heads
        of_token = 2 * (largest(config, "num_key_value_heads") or heads) * size * width
    expand = largest(config, "expand") or largest(config, "mamba_expand") or 0
    of_states = (
        4 * expand * config.hidden_size * (largest(config, "state_size") or largest(config, "mamba_d_state") or 0)
    )
    # Twice the new tokens, because a row that has written all of its own may share the cache with a new one.
    return max(1, int(config.num_hidden_layers * (of_states + of_token * (longest + 2 * new))))


def most_rows(row: int, memory: float, halvings: int, vocabulary: int = 0) -> int:
    """Rows whose keys and values fit the memory for them, halved for each time that it ran out while sampling.

    row: bytes of one. memory: free bytes of a GPU, or all of a CPU's. vocabulary: its size, on a GPU; 0 means a CPU.
    """
    if vocabulary:
        rows = int(FREE_SHARE * memory) // (row + LOGIT_COPIES * 4 * vocabulary)
        return max(1, min(ROWS_ON_GPU, rows) >> halvings)
    return max(1, min(ROWS, int(min(CACHE_BYTES, CACHE_SHARE * memory) // row)) >> halvings)


def has_stopped(encoder: Encoder, tokens: Sequence[int], stops: Sequence[str]) -> bool:
    """Whether the end of these tokens contains a stop string."""
    if not stops:
        return False
    longest = max(len(stop.encode()) for stop in stops)  # every token is at least a part of a byte
    tail = encoder.decode(tokens[-max(32, longest + 4) :])
    return any(stop in tail for stop in stops)


@dataclass(frozen=True)
class Decoder:
    """A role that continues prompts: its tokens, the ends of its turns, and the rows that its memory allows.

    finished: called when turns have ended.
    """

    model: SharedModel
    role: str
    encoder: Encoder
    prompts: Sequence[Ids]
    sampling: Sampling
    finished: Callable[[], None]
    partner: Partner | None = None
    wrote: Wrote | None = None
    processors: Sequence[Processor] = ()

    def context(self, row: ActiveSequence) -> Ids:
        """All that a row has: its prompt, and its tokens."""
        return (*self.prompts[row.prompt], *row.tokens) if row.tokens else self.prompts[row.prompt]

    def count(self, **tokens: int) -> None:
        if self.partner is not None:
            self.partner.counts.update(tokens)

    def continues(self, row: ActiveSequence) -> bool:
        """Whether others answer a turn that has ended; the row then has their tokens."""
        assert self.partner is not None  # otherwise no row waits
        if row.answer(self.partner) is not None:
            return True
        self.finished()
        return False

    @property
    def looks_at_every_token(self) -> bool:
        """Whether something here has to see a token before the next one is drawn."""
        return self.wrote is not None or bool(self.processors)

    def write(
        self,
        rows: Sequence[ActiveSequence],
        logits: Tensor,
        count: int = 1,
        read: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Append up to `count` tokens to every active row, and return the last ones of all rows, [rows].

        logits: [rows, vocabulary] of the first. read: given tokens and their positions, [rows] each, returns the
        logits of the next ones. Ended rows stay until the next refill. What is drawn for them is dropped, and no other
        row reads it.
        """
        device, sampling = logits.device, self.sampling
        draws = np.zeros((count, len(rows)))
        for column, row in enumerate(rows):
            if row.active:
                own = row.draws[row.sampled : row.sampled + count]
                draws[: len(own), column] = own
        uniform = torch.from_numpy(draws).to(device)
        short = torch.tensor([row.sampled for row in rows]) + torch.arange(count)[:, None] < sampling.min_new_tokens
        ends = torch.tensor(sorted(self.encoder.end_ids) if short.any() else [], dtype=torch.int64, device=device)
        early = short.to(device) if len(ends) else [None] * count
        contexts: list[Ids | None] = []
        if self.processors:
            contexts = [self.context(row) if row.active else None for row in rows]
        positions = self._positions(rows, count).to(device) if count > 1 else None
        drawn: list[Tensor] = []
        for step in range(count):
            chosen, logprobs = choose(logits, uniform[step], sampling, early[step], ends, self.processors, contexts)
            drawn.append(torch.stack([chosen.double(), logprobs.double()]))  # both exact in fp64
            if step + 1 < count:  # the caller reads the last token, if any row still needs more
                assert read is not None and positions is not None
                logits = read(chosen, positions[step])
        self._append(rows, torch.stack(drawn).tolist())  # the only time that the host waits for a GPU
        return chosen

    def _positions(self, rows: Sequence[ActiveSequence], count: int) -> Tensor:
        """The positions of the next tokens, [count, rows]. A row without room stays at its last one."""
        lengths = torch.tensor([len(self.prompts[row.prompt]) + len(row.tokens) for row in rows])
        room = torch.tensor([row.room if row.active else 0 for row in rows])
        return lengths + torch.minimum(torch.arange(count)[:, None], room - 1)

    def _append(self, rows: Sequence[ActiveSequence], drawn: Sequence[tuple[list[float], list[float]]]) -> None:
        """Append tokens up to the end of each row. drawn: of each step, the ids and log-probabilities of all rows."""
        ended = False
        for ids, logprobs in drawn:
            for row, token, logprob in zip(rows, map(int, ids), logprobs, strict=True):
                if not row.active:
                    continue
                if not math.isfinite(logprob):
                    raise RunFailed(DIVERGED)
                row.write(token, logprob)
                stopped = has_stopped(self.encoder, row.tokens[row.turn :], self.sampling.stop)
                row.ended = stopped or token in self.encoder.end_ids
                ended = ended or not row.active
        if self.wrote is not None:
            self.wrote(rows)
        if ended:
            self.finished()

    def most_rows(self) -> int:
        """Rows whose keys and values fit the memory for them, halved for each time that it ran out while sampling."""
        device, halvings = self.model.device, self.model.memory.sampling_halvings
        config = self.model.model.config.get_text_config()
        longest = max((len(prompt) for prompt in self.prompts), default=0)
        new = self.sampling.max_new_tokens if self.partner is None else max(0, self.partner.max_length - longest)
        row = row_bytes(config, self.model.dtype.itemsize, longest, new)
        if device.type == "cuda":
            return most_rows(row, available(device), halvings, config.vocab_size)
        return most_rows(row, total(device), halvings)

    def write_by_prompt(self, queue: deque[ActiveSequence], limit: int) -> None:
        """Write all sequences with the model's own attention and cache, up to `limit` samples of a prompt at a time."""
        while queue:
            rows = [queue.popleft()]
            # Rows with the same context have the same length, so this needs no padding and no mask.
            while queue and len(rows) < limit and queue[0].key == rows[0].key:
                rows.append(queue.popleft())
            tokens = torch.tensor([self.context(rows[0])] * len(rows), device=self.model.device)
            self.count(read=tokens.numel())
            kept: dict[str, Any] = {}
            # RecurrentGemma would keep its states in its layers, and not give them back.
            keeps = backbone(self.model.model).config.model_type != "recurrent_gemma"
            while any(row.active for row in rows):
                with self.model.using_role(self.role) as network:
                    output = backbone(network)(input_ids=tokens, use_cache=keeps, **kept)
                kept = {name: output[name] for name in CACHES if output.get(name) is not None}
                logits = self.model.next_logits(self.role, output.last_hidden_state[:, -1])
                self.model.should_stop()
                new = self.write(rows, logits)[:, None]
                # With nothing kept, every token is computed from all before it.
                tokens = new if kept else torch.cat([tokens, new], dim=1)
            # Answered rows have a longer context now, which is read from its start.
            queue.extendleft(row for row in rows if row.waiting and self.continues(row))


# Rows that are decoded together


class RowBatch:
    """Rows that share a cache: finished ones leave, and ones from the queue are admitted."""

    def __init__(self, decoder: Decoder, queue: deque[ActiveSequence], limit: int):
        """limit: most rows at a time."""
        self.decoder, self.model, self.queue, self.limit = decoder, decoder.model, queue, limit
        self.decoding = decoding_for(self.model.device)
        self.look_every = 1 if decoder.looks_at_every_token else self.decoding.look_every
        self.rows: list[ActiveSequence] = []
        self.logits = torch.zeros(0, device=self.model.device)  # [rows, vocabulary] of the next tokens

    def run(self) -> None:
        """Write all sequences of the queue to their ends."""
        prompts = self.decoder.prompts
        while self._refill():
            self.model.should_stop()
            count = self.look_every
            if count > 1:
                count = min(count, max((row.room for row in self.rows if row.active), default=1))
            tokens = self.decoder.write(self.rows, self.logits, count, self._read)
            if any(row.active for row in self.rows):
                # The token just appended is read next; as positions count from 0, its position is the length minus 1.
                lengths = [len(prompts[row.prompt]) + len(row.tokens) for row in self.rows]
                self.logits = self._read(tokens, torch.tensor(lengths) - 1)

    def _read(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Read a new token of each row [rows], at these positions [rows], and return the logits of the next ones."""
        tokens, positions = tokens[:, None].to(self.model.device), positions[:, None].to(self.model.device)
        with attention.using(self.decoding), self.model.using_role(self.decoder.role) as network:
            output = backbone(network)(input_ids=tokens, position_ids=positions, use_cache=False)
        self.decoding.advance()
        return self.model.next_logits(self.decoder.role, output.last_hidden_state[:, 0])

    def _refill(self) -> bool:
        """Replace finished rows once enough are idle. Returns whether there is anything left to write."""
        active = [row for row in self.rows if row.active]
        if active and len(active) > BUSY * (self.limit if self.queue else len(self.rows)):
            return True
        continued = [row for row in self.rows if row.waiting and self.decoder.continues(row)]
        new = [self.queue.popleft() for _ in range(min(len(self.queue), self.limit - len(active) - len(continued)))]
        kept, waiting = list(active), list(continued)
        for part in self._parts(continued, [row.unread for row in continued]):
            waiting = waiting[len(part) :]
            self._extend(part, [*kept, *waiting])
            kept += part
        for part in self._parts(new, [len(self.decoder.context(row)) for row in new]):
            self._admit(part)
        if not (continued or new) and active:  # nobody enters, but idle rows leave
            self._update(active, [])
        return bool(active or continued or new)

    def _parts(self, rows: Sequence[ActiveSequence], lengths: Sequence[int]) -> Iterator[list[ActiveSequence]]:
        """Cut rows into parts whose new tokens fit a packed row. lengths: new tokens; equal contexts are read once."""
        budget = self.model.inference_budget >> self.model.memory.sampling_halvings
        part: list[ActiveSequence] = []
        tokens = 0
        for row, length in zip(rows, lengths, strict=True):
            # The queue keeps a prompt's samples together, and they read it once.
            more = 0 if part and row.key == part[-1].key else length
            if part and tokens + more > budget:
                yield part
                part, tokens, more = [], 0, length
            part.append(row)
            tokens += more
        if part:
            yield part

    def _admit(self, new: Sequence[ActiveSequence]) -> None:
        """Append rows, whose prompts are read here, each once."""
        contexts = {row.key: self.decoder.context(row) for row in new}
        keys = sorted(contexts)
        tokens: list[int] = []
        spans: list[GroupSpan] = []
        for key in keys:
            spans.append(GroupSpan(len(tokens), len(contexts[key]), ()))
            tokens += contexts[key]
        owners = [keys.index(row.key) for row in new]
        # The state at a prompt's last token predicts the first new one.
        ends = [spans[owner].start + spans[owner].prompt - 1 for owner in owners]
        layout = TreeLayout(spans, store_kv=True)
        self._update([row for row in self.rows if row.active], new, layout, tokens, owners, ends)

    def _extend(self, answered: Sequence[ActiveSequence], kept: Sequence[ActiveSequence]) -> None:
        """Move rows behind the kept ones. Only their new tokens are read here."""
        index = {id(row): number for number, row in enumerate(self.rows)}
        # row -> (tokens in the cache that stay, tokens to read). What it drew after its end does not stay.
        lengths = {index[id(row)]: (len(self.decoder.context(row)) - row.unread, row.unread) for row in answered}
        tokens = [token for row in answered for token in row.tokens[-row.unread :]]
        # The new tokens of these rows are side by side; each one's last predicts what follows.
        ends = (np.cumsum([row.unread for row in answered]) - 1).tolist()
        self.decoder.count(saved=sum(cached for cached, _ in lengths.values()))
        self._update(kept, answered, self.decoding.extension(lengths), tokens, range(len(answered)), ends)

    def _update(
        self,
        kept: Sequence[ActiveSequence],
        entering: Sequence[ActiveSequence],
        layout: TreeLayout | None = None,
        tokens: Sequence[int] = (),
        owners: Sequence[int] = (),
        ends: Sequence[int] = (),
    ) -> None:
        """Drop all rows but the kept ones, and append those that enter.

        layout, tokens: what is read for them. owners: each one's span of the layout. ends: its last token there.
        """
        index = {id(row): number for number, row in enumerate(self.rows)}
        places = [index[id(row)] for row in kept]
        logits = [self.logits[places]]
        if layout is not None:
            hidden = self.model.hidden(self.decoder.role, layout, torch.tensor(tokens))
            self.decoder.count(read=len(tokens))
        self.rows = [*kept, *entering]
        self.decoding.update_rows(places, max(row.room for row in self.rows), layout, owners)
        if layout is not None:
            logits.append(self.model.next_logits(self.decoder.role, hidden[torch.tensor(ends).to(hidden.device)]))
        self.logits = torch.cat(logits)  # in the order of `rows` and of the cache

"""Sampling responses with continuous batching: one prefill per prompt, and finished rows make room for waiting ones.

A sample depends on its prompt and its own random stream, not on the other rows of its batch (up to ties in fp32).
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from alignkit import seeds
from alignkit.data.group import Group, Response
from alignkit.errors import DataError, memory_ran_out
from alignkit.kernels import attention
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.decoding import Decoding
from alignkit.kernels.layout import GroupSpan
from alignkit.kernels.memory import available, release_cached, total
from alignkit.kernels.sampling_weights import prepacked_weights
from alignkit.models.encoding import Encoder
from alignkit.models.loading import backbone, largest
from alignkit.models.next_token import Sampling, choose, process
from alignkit.models.shared_model import SharedModel
from alignkit.models.text_tokens import Ids

# Rows decoded together: enough to keep a CPU busy. A GPU reads all weights for each token, however few rows it has.
ROWS, ROWS_ON_GPU = 128, 1024
CACHE_BYTES = 2 * 2**30  # of keys and values, on a CPU; fewer rows are decoded together if they need more
CACHE_SHARE = 1 / 8  # of a CPU's memory at most
FREE_SHARE = 1 / 2  # of a GPU's free memory, for keys, values and logits
LOGIT_COPIES = 6  # of a row's logits in fp32 that choosing a token takes
# Replacing rows copies the cache, which takes about as long as a step. It pays once a fifth of the rows is idle.
BUSY = 0.8


@dataclass(frozen=True)
class Continuation:
    """Sampled tokens, the log-probability of each in nats, and whether an end token or a stop string ended them."""

    tokens: Ids
    logprobs: tuple[float, ...]
    ended: bool


@dataclass
class ActiveSequence:
    """A response being written.

    prompt, sample: index of its prompt and its number among that prompt's samples. draws: uniform in [0, 1), one for
    each token that it may have. ended: by an end token or a stop string.
    """

    prompt: int
    sample: int
    draws: np.ndarray
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False

    @property
    def active(self) -> bool:
        return not self.ended and self.room > 0

    @property
    def room(self) -> int:
        """Tokens that may still be written."""
        return len(self.draws) - len(self.tokens)


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
) -> list[Group]:
    """Sample a role's responses to the groups' prompts; they replace the groups' own responses.

    seed, place: name the random streams, with each prompt's number (default: its index) and its sample's number.
    done: is given the number of finished responses. Prompts with their new tokens must fit the model's context.
    Raises DataError for an empty prompt.
    """
    prompts = [encoder.prompt(group.prompt, group.tools) for group in groups]
    streams = [
        [seeds.number(seed, *place, number, k) for k in range(sampling.samples_per_prompt)]
        for number in (numbers if numbers is not None else range(len(groups)))
    ]
    written = generate(model, role, encoder, prompts, streams, sampling, done=done)
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
) -> list[list[Continuation]]:
    """Continue prompts that are given as token ids: once for each of a prompt's random streams, in order.

    streams: their numbers, as from `seeds.number`. A prompt may be the beginning of a conversation with its answers so
    far. See `sample`.
    """
    if not all(prompts):
        raise DataError("cannot sample from an empty prompt: this tokenizer does not begin texts with a special token")
    groups = [
        [ActiveSequence(p, k, seeds.generator(n).random(sampling.max_new_tokens)) for k, n in enumerate(numbers)]
        for p, numbers in enumerate(streams)
    ]
    sequences = [sequence for group in groups for sequence in group]
    # Longest prompts first, so that rows of similar lengths are neighbors and little of the cache stays empty.
    queue = deque(sorted(sequences, key=lambda s: (-len(prompts[s.prompt]), s.prompt, s.sample)))
    writer = _Writer(model, role, encoder, prompts, sampling, lambda: done(sum(not s.active for s in sequences)))
    while not _written(writer, deque(sequence for sequence in queue if not sequence.ended and sequence.room)):
        gc.collect()
        release_cached(model.device)
    return [[Continuation(tuple(s.tokens), tuple(s.logprobs), s.ended) for s in group] for group in groups]


def _written(writer: _Writer, queue: deque[ActiveSequence]) -> bool:
    """Write all sequences of the queue to their ends. False if memory ran out; the next attempt takes fewer rows.

    Sequences that have not ended start over: a sample depends on its draws only, not on who is sampled with it.
    """
    model, waiting = writer.model, list(queue)
    limit, weights = writer.most_rows(), model.roles[writer.role]
    try:
        if model.packs:
            rows = min(limit, len(queue))
            with prepacked_weights(weights.model, weights.adapter, rows, writer.sampling.max_new_tokens):
                _Batch(writer, queue, limit).run()
        else:
            writer.write_by_prompt(queue, limit)
        return True
    except (MemoryError, RuntimeError) as error:
        if not memory_ran_out(error) or limit == 1:
            raise
    model.memory.sampling_halvings += 1
    for sequence in waiting:
        if sequence.active:
            sequence.tokens.clear()
            sequence.logprobs.clear()
    return False


def _response(encoder: Encoder, written: Continuation, role: str) -> Response:
    return Response(
        text=encoder.decode(written.tokens),
        tokens=written.tokens,
        logprobs=written.logprobs,
        truncated=not written.ended,
        source=role,
        tokenizer=encoder.digest,
    )


@dataclass(frozen=True)
class _Writer:
    """A role that continues prompts."""

    model: SharedModel
    role: str
    encoder: Encoder
    prompts: Sequence[Ids]
    sampling: Sampling
    finished: Callable[[], None]  # called when responses have ended

    def write(self, rows: Sequence[ActiveSequence], logits: Tensor) -> Tensor:
        """Append a token to every active row and return all rows' tokens, [rows]. logits: [rows, vocabulary]."""
        draws = [row.draws[len(row.tokens)] if row.active else 0.0 for row in rows]
        lengths = [len(row.tokens) for row in rows]
        processed = logits
        if self.sampling.processors:
            texts = [[*self.prompts[row.prompt], *row.tokens] if row.active else None for row in rows]
            processed = process(logits, texts, self.sampling)
        before = sum(row.active for row in rows)
        chosen, logprobs = choose(logits, draws, self.sampling, lengths, self.encoder.end_ids, processed)
        for row, token, logprob in zip(rows, chosen.tolist(), logprobs.tolist(), strict=True):
            if row.active:
                row.tokens.append(token)
                row.logprobs.append(logprob)
                row.ended = token in self.encoder.end_ids or self._stopped(row)
        if sum(row.active for row in rows) < before:
            self.finished()
        return chosen

    def _stopped(self, row: ActiveSequence) -> bool:
        """Whether the response now contains a stop string."""
        if not self.sampling.stop:
            return False
        longest = max(len(stop.encode()) for stop in self.sampling.stop)  # every token is at least a part of a byte
        tail = self.encoder.decode(row.tokens[-max(32, longest + 4) :])
        return any(stop in tail for stop in self.sampling.stop)

    def most_rows(self) -> int:
        """Rows whose keys and values fit the memory for them, halved for each time that it ran out while sampling."""
        device, halvings = self.model.device, self.model.memory.sampling_halvings
        row_bytes = self._row_bytes()
        if device.type == "cuda":
            vocabulary = self.model.model.config.get_text_config().vocab_size
            rows = int(FREE_SHARE * available(device)) // (row_bytes + LOGIT_COPIES * 4 * vocabulary)
            return max(1, min(ROWS_ON_GPU, rows) >> halvings)
        memory = min(CACHE_BYTES, CACHE_SHARE * total(device))
        return max(1, min(ROWS, int(memory // row_bytes)) >> halvings)

    def _row_bytes(self) -> int:
        """Bytes of a row's keys and values."""
        config = self.model.model.config.get_text_config()
        heads = largest(config, "num_key_value_heads") or config.num_attention_heads
        size = largest(config, "head_dim") or config.hidden_size // config.num_attention_heads
        token_bytes = 2 * config.num_hidden_layers * heads * size * self.model.dtype.itemsize
        longest = max((len(prompt) for prompt in self.prompts), default=0)
        # Twice the new tokens, because a row that has written all of its own may share the cache with a new one.
        return int(token_bytes * (longest + 2 * self.sampling.max_new_tokens))

    def write_by_prompt(self, queue: deque[ActiveSequence], limit: int) -> None:
        """Write all sequences with the model's own attention and cache, up to `limit` samples of a prompt at a time."""
        while queue:
            rows = [queue.popleft()]
            while queue and len(rows) < limit and queue[0].prompt == rows[0].prompt:
                rows.append(queue.popleft())
            tokens = torch.tensor([self.prompts[rows[0].prompt]] * len(rows), device=self.model.device)
            cache = None
            while any(row.active for row in rows):
                with self.model.using_role(self.role) as network:
                    output = backbone(network)(input_ids=tokens, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                logits = self.model.next_logits(self.role, output.last_hidden_state[:, -1])
                self.model.should_stop()
                tokens = self.write(rows, logits)[:, None]


class _Batch:
    """Rows that share a cache: finished ones leave, and ones from the queue are admitted."""

    def __init__(self, writer: _Writer, queue: deque[ActiveSequence], limit: int):
        """limit: most rows at a time."""
        self.writer, self.model, self.prompts = writer, writer.model, writer.prompts
        self.queue, self.limit = queue, limit
        self.decoding = Decoding()
        self.rows: list[ActiveSequence] = []
        self.logits = torch.zeros(0, device=self.model.device)  # [rows, vocabulary] of the next tokens

    def run(self) -> None:
        """Write all sequences of the queue to their ends."""
        while self._refill():
            self.model.should_stop()
            tokens = self.writer.write(self.rows, self.logits)
            if any(row.active for row in self.rows):
                self._step(tokens)

    def _refill(self) -> bool:
        """Replace finished rows once enough are idle. Returns whether there is anything left to write."""
        keep = [index for index, row in enumerate(self.rows) if row.active]
        if not keep and not self.queue:
            return False
        if len(keep) <= BUSY * (self.limit if self.queue else len(self.rows)):
            for admitted in list(self._dequeue(self.limit - len(keep))) or [[]]:
                self._admit(keep, admitted)
                keep = list(range(len(self.rows)))
        return True

    def _dequeue(self, vacant: int) -> Iterator[list[ActiveSequence]]:
        """Take up to `vacant` sequences off the queue, in parts whose distinct prompts fit a packed row."""
        budget = self.model.inference_budget >> self.model.memory.sampling_halvings
        while vacant and self.queue:
            part: list[ActiveSequence] = []
            tokens, last = 0, -1
            while self.queue and len(part) < vacant:
                prompt = self.queue[0].prompt
                new = len(self.prompts[prompt]) if prompt != last else 0
                if part and tokens + new > budget:
                    break
                tokens, last = tokens + new, prompt
                part.append(self.queue.popleft())
            vacant -= len(part)
            yield part

    def _admit(self, keep: Sequence[int], admitted: list[ActiveSequence]) -> None:
        """Drop all rows but `keep` and append the admitted sequences, whose prompts are read here."""
        self.rows = [self.rows[index] for index in keep] + admitted
        room = max((row.room for row in self.rows), default=0)
        logits = self.logits[list(keep)]
        if not admitted:
            self.decoding.update_rows(keep, room)
            self.logits = logits
            return
        prompts = sorted({row.prompt for row in admitted})
        tokens: list[int] = []
        spans: list[GroupSpan] = []
        for prompt in prompts:
            spans.append(GroupSpan(len(tokens), len(self.prompts[prompt]), ()))
            tokens += self.prompts[prompt]
        prefill = TreeLayout(spans, store_kv=True)
        hidden = self.model.hidden(self.writer.role, prefill, torch.tensor(tokens))
        owners = [prompts.index(row.prompt) for row in admitted]
        self.decoding.update_rows(keep, room, prefill, owners)
        ends = [spans[owner].start + spans[owner].prompt - 1 for owner in owners]
        self.logits = torch.cat([logits, self.model.next_logits(self.writer.role, hidden[ends])])

    def _step(self, tokens: Tensor) -> None:
        """Read the rows' new tokens [rows] and compute the logits of the next ones."""
        lengths = [len(self.prompts[row.prompt]) + len(row.tokens) for row in self.rows]
        positions = torch.tensor(lengths)[:, None] - 1
        with attention.using(self.decoding), self.model.using_role(self.writer.role) as network:
            states = backbone(network)(
                input_ids=tokens[:, None].to(self.model.device),
                position_ids=positions.to(self.model.device),
                use_cache=False,
            ).last_hidden_state
        self.decoding.advance()
        self.logits = self.model.next_logits(self.writer.role, states[:, 0])

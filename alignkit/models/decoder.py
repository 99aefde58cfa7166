"""A role that continues prompts: its tokens, the ends of its turns, and the rows that its memory allows."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignkit.errors import RunFailed
from alignkit.kernels.memory import available, total
from alignkit.models.loading import backbone, largest
from alignkit.models.next_token import DIVERGED, Sampling, choose, process
from alignkit.models.sequence import ActiveSequence, Partner, Wrote, key_of
from alignkit.models.shared_model import SharedModel
from alignkit.tokens.encoder import Encoder, Ids

# Rows decoded together: enough to keep a CPU busy. A GPU reads all weights for each token, however few rows it has.
ROWS, ROWS_ON_GPU = 128, 1024
CACHE_BYTES = 2 * 2**30  # of keys and values, on a CPU; fewer rows are decoded together if they need more
CACHE_SHARE = 1 / 8  # of a CPU's memory at most
FREE_SHARE = 1 / 2  # of a GPU's free memory, for keys, values and logits
CACHES = ("past_key_values", "cache_params")  # what models call what they keep of earlier tokens
LOGIT_COPIES = 6  # of a row's logits in fp32 that choosing a token takes


def token_bytes(config: Any, width: int) -> int:
    """Bytes of a token's keys and values in all layers; 0 without attention, as in a model of state spaces alone.

    config: of the language model. width: bytes of a number.
    """
    heads = largest(config, "num_attention_heads")
    if heads is None:
        return 0
    size = largest(config, "head_dim") or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * (largest(config, "num_key_value_heads") or heads) * size * width)


def state_bytes(config: Any) -> int:
    """Bytes of the recurrent states of a row, in fp32, as if every layer had one; 0 without state spaces."""
    inner = (largest(config, "expand") or largest(config, "mamba_expand") or 0) * config.hidden_size
    size = largest(config, "state_size") or largest(config, "mamba_d_state") or 0
    return int(4 * config.num_hidden_layers * inner * size)


def row_bytes(config: Any, width: int, longest: int, new: int) -> int:
    """Bytes of what a row keeps. longest: tokens of the longest prompt. new: tokens that a row may write."""
    # Twice the new tokens, because a row that has written all of its own may share the cache with a new one.
    return max(1, state_bytes(config) + token_bytes(config, width) * (longest + 2 * new))


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
class Writer:
    """A role that continues prompts."""

    model: SharedModel
    role: str
    encoder: Encoder
    prompts: Sequence[Ids]
    sampling: Sampling
    finished: Callable[[], None]  # called when turns have ended
    partner: Partner | None = None
    wrote: Wrote | None = None

    def context(self, row: ActiveSequence) -> Ids:
        """All that a row has: its prompt, and its tokens."""
        return (*self.prompts[row.prompt], *row.tokens) if row.tokens else self.prompts[row.prompt]

    def count(self, **tokens: int) -> None:
        if self.partner is not None:
            self.partner.counts.update(tokens)

    def continues(self, row: ActiveSequence) -> bool:
        """Whether others answer a turn that has ended; the row then has their tokens."""
        assert self.partner is not None  # otherwise no row waits
        # One token less, so that the policy can answer, too; none if it may write no more.
        room = row.most - len(row.tokens) - 1 if row.sampled < len(row.draws) else 0
        ids = self.partner.reply(row.prompt, row.sample, row.tokens[row.turn :], room)
        if ids is None:
            row.complete = True
            self.finished()
            return False
        row.read(ids)
        return True

    def write(self, rows: Sequence[ActiveSequence], logits: Tensor) -> Tensor:
        """Append a token to every active row and return all rows' tokens, [rows]. logits: [rows, vocabulary]."""
        # Ended rows stay until the next refill. Tokens drawn for them are dropped.
        draws = [row.draws[row.sampled] if row.active else 0.0 for row in rows]
        lengths = [row.sampled for row in rows]
        processed = logits
        if self.sampling.processors:
            texts = [self.context(row) if row.active else None for row in rows]
            processed = process(logits, texts, self.sampling)
        before = sum(row.active for row in rows)
        chosen, logprobs = choose(logits, draws, self.sampling, lengths, self.encoder.end_ids, processed)
        self._append(rows, chosen.tolist(), logprobs.tolist())
        if self.wrote is not None:
            self.wrote(rows)
        if sum(row.active for row in rows) < before:
            self.finished()
        return chosen

    @property
    def ahead(self) -> bool:
        """Whether several tokens may be drawn before anything here looks at them."""
        return self.wrote is None and not self.sampling.processors

    def write_all(self, rows: Sequence[ActiveSequence], tokens: Sequence[tuple[list[float], list[float]]]) -> None:
        """Append tokens that were drawn ahead, up to the end of each row.

        tokens: of each, the ids and the log-probabilities of all rows.
        """
        before = sum(row.active for row in rows)
        for ids, logprobs in tokens:
            self._append(rows, [int(token) for token in ids], logprobs)
        if sum(row.active for row in rows) < before:
            self.finished()

    def _append(self, rows: Sequence[ActiveSequence], ids: Sequence[int], logprobs: Sequence[float]) -> None:
        for row, token, logprob in zip(rows, ids, logprobs, strict=True):
            if row.active:
                # Tokens that are drawn ahead have not been checked: that would make the GPU wait.
                if not math.isfinite(logprob):
                    raise RunFailed(DIVERGED)
                row.write(token, logprob)
                stopped = has_stopped(self.encoder, row.tokens[row.turn :], self.sampling.stop)
                row.ended = stopped or token in self.encoder.end_ids

    def most_rows(self) -> int:
        """Rows whose keys and values fit the memory for them, halved for each time that it ran out while sampling."""
        device, halvings = self.model.device, self.model.memory.sampling_halvings
        if device.type == "cuda":
            vocabulary = self.model.model.config.get_text_config().vocab_size
            return most_rows(self._row_bytes(), available(device), halvings, vocabulary)
        return most_rows(self._row_bytes(), total(device), halvings)

    def _row_bytes(self) -> int:
        """Bytes of a row's keys and values."""
        longest = max((len(prompt) for prompt in self.prompts), default=0)
        new = self.sampling.max_new_tokens if self.partner is None else max(0, self.partner.max_length - longest)
        return row_bytes(self.model.model.config.get_text_config(), self.model.dtype.itemsize, longest, new)

    def write_by_prompt(self, queue: deque[ActiveSequence], limit: int) -> None:
        """Write all sequences with the model's own attention and cache, up to `limit` samples of a prompt at a time."""
        while queue:
            rows = [queue.popleft()]
            # Rows with the same context have the same length, so this needs no padding and no mask.
            while queue and len(rows) < limit and key_of(queue[0]) == key_of(rows[0]):
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

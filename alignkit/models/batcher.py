"""Rows that are decoded together: finished ones leave, and ones from the queue enter.

On a CPU every token is looked at when it is drawn. A GPU would stand idle meanwhile, so the host looks at several
tokens at a time, and cuts rows that have ended in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignkit.kernels import attention
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import GroupSpan
from alignkit.kernels.static_decoding import StaticDecoding, decoding_for
from alignkit.models.decoder import Writer
from alignkit.models.loading import backbone
from alignkit.models.next_token import draw
from alignkit.models.sequence import ActiveSequence, key_of

# Replacing rows copies the cache, which takes about as long as a step. It pays once a fifth of the rows is idle.
BUSY = 0.8
LOOK_EVERY = 8  # tokens that a GPU writes between two looks of the host


class RowBatch:
    """Rows that share a cache: finished ones leave, and ones from the queue are admitted."""

    def __init__(self, writer: Writer, queue: deque[ActiveSequence], limit: int):
        """limit: most rows at a time."""
        self.writer, self.model, self.prompts = writer, writer.model, writer.prompts
        self.queue, self.limit = queue, limit
        self.decoding = decoding_for(self.model.device)
        self.ahead = isinstance(self.decoding, StaticDecoding) and writer.ahead
        self.rows: list[ActiveSequence] = []
        self.logits = torch.zeros(0, device=self.model.device)  # [rows, vocabulary] of the next tokens

    def run(self) -> None:
        """Write all sequences of the queue to their ends."""
        while self._refill():
            self.model.should_stop()
            tokens = self._write_ahead() if self.ahead else self.writer.write(self.rows, self.logits)
            if any(row.active for row in self.rows):
                # The token just appended is read next; as positions count from 0, its position is the length minus 1.
                lengths = [len(self.prompts[row.prompt]) + len(row.tokens) for row in self.rows]
                self._step(tokens, torch.tensor(lengths) - 1)

    def _write_ahead(self) -> Tensor:
        """Draw LOOK_EVERY tokens, or all that rows may still have, before the host looks; return the last ones, [rows].

        A row that ends before keeps drawing. Its later tokens are dropped, and no other row reads them.
        """
        sampling, device = self.writer.sampling, self.model.device
        count = min(LOOK_EVERY, max(row.room for row in self.rows if row.active))
        plan = _Plan.of(self.rows, [len(self.prompts[row.prompt]) for row in self.rows], count)
        draws, positions = plan.draws.to(device), plan.positions.to(device)
        short = plan.written < sampling.min_new_tokens
        ends = torch.tensor(
            sorted(self.writer.encoder.end_ids) if short.any() else [], dtype=torch.int64, device=device
        )
        early = short.to(device) if len(ends) else None
        drawn: list[Tensor] = []
        for step in range(count):
            chosen, logprobs, _ = draw(self.logits, draws[step], sampling, None if early is None else early[step], ends)
            drawn.append(torch.stack([chosen.double(), logprobs.double()]))  # both exact in fp64
            # `run` reads the last token, if any row still needs more.
            if step + 1 < count:
                self._step(chosen, positions[step])
        # One transfer for all of these tokens, and the only time that the host waits.
        self.writer.write_all(self.rows, torch.stack(drawn).tolist())
        return chosen

    def _refill(self) -> bool:
        """Replace finished rows once enough are idle. Returns whether there is anything left to write."""
        keep = [index for index, row in enumerate(self.rows) if row.active]
        if keep and len(keep) > BUSY * (self.limit if self.queue else len(self.rows)):
            return True
        answered = [index for index, row in enumerate(self.rows) if row.waiting and self.writer.continues(row)]
        if answered:
            self._continue(keep, answered)
            keep = list(range(len(self.rows)))
        if not keep and not self.queue:
            return False
        parts = list(self._dequeue(self.limit - len(keep)))
        # [[]]: nobody enters, but idle rows leave.
        for admitted in parts or ([] if answered else [[]]):
            self._admit(keep, admitted)
            keep = list(range(len(self.rows)))
        return True

    def _dequeue(self, vacant: int) -> Iterator[list[ActiveSequence]]:
        """Take up to `vacant` sequences off the queue, in parts whose distinct prompts fit a packed row."""
        budget = self.model.inference_budget >> self.model.memory.sampling_halvings
        while vacant and self.queue:
            part: list[ActiveSequence] = []
            tokens, last = 0, (-1, -1)
            while self.queue and len(part) < vacant:
                key = key_of(self.queue[0])
                # The queue keeps a prompt's samples together, and they read it once.
                new = len(self.writer.context(self.queue[0])) if key != last else 0
                if part and tokens + new > budget:
                    break
                tokens, last = tokens + new, key
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
        contexts = {key_of(row): self.writer.context(row) for row in admitted}
        prompts = sorted(contexts)
        tokens: list[int] = []
        spans: list[GroupSpan] = []
        for prompt in prompts:
            spans.append(GroupSpan(len(tokens), len(contexts[prompt]), ()))
            tokens += contexts[prompt]
        prefill = TreeLayout(spans, store_kv=True)
        hidden = self.model.hidden(self.writer.role, prefill, torch.tensor(tokens))
        self.writer.count(read=len(tokens))
        owners = [prompts.index(key_of(row)) for row in admitted]
        self.decoding.update_rows(keep, room, prefill, owners)
        # The state at a prompt's last token predicts the first new one.
        ends = [spans[owner].start + spans[owner].prompt - 1 for owner in owners]
        # In the order of `rows` and of the cache: kept rows, then new ones.
        self.logits = torch.cat([logits, self.model.next_logits(self.writer.role, hidden[ends])])

    def _continue(self, keep: Sequence[int], answered: Sequence[int]) -> None:
        """Drop all rows but `keep` and the answered ones, of which only the new tokens are read."""
        others, waiting = [self.rows[index] for index in keep], [self.rows[index] for index in answered]
        budget = self.model.inference_budget >> self.model.memory.sampling_halvings
        while waiting:
            part = [waiting.pop(0)]
            while waiting and sum(row.unread for row in part) + waiting[0].unread <= budget:
                part.append(waiting.pop(0))
            self._read([*others, *waiting], part)
            others += part

    def _read(self, keep: Sequence[ActiveSequence], part: Sequence[ActiveSequence]) -> None:
        """Drop all rows but `keep` and `part`, whose new tokens are read here."""
        # Rows of the cache, as numbered before this call changes them.
        places = {id(row): index for index, row in enumerate(self.rows)}
        # row -> (tokens in the cache that stay, tokens to read). What it drew after its end does not stay.
        lengths = {places[id(row)]: (len(self.writer.context(row)) - row.unread, row.unread) for row in part}
        tokens = [token for row in part for token in row.tokens[-row.unread :]]
        layout = self.decoding.extension(lengths)
        hidden = self.model.hidden(self.writer.role, layout, torch.tensor(tokens))
        self.writer.count(read=len(tokens), saved=sum(cached for cached, _ in lengths.values()))
        kept = [places[id(row)] for row in keep]
        self.rows = [*keep, *part]
        self.decoding.update_rows(kept, max(row.room for row in self.rows), layout, range(len(part)))
        # The new tokens of these rows are side by side; each one's last predicts what follows.
        ends = torch.tensor([row.unread for row in part]).cumsum(0) - 1
        logits = self.model.next_logits(self.writer.role, hidden[ends.to(hidden.device)])
        self.logits = torch.cat([self.logits[kept], logits])

    def _step(self, tokens: Tensor, positions: Tensor) -> None:
        """Read the rows' new tokens [rows], at these positions [rows], and compute the logits of the next ones."""
        tokens, positions = tokens[:, None].to(self.model.device), positions[:, None].to(self.model.device)
        with attention.using(self.decoding), self.model.using_role(self.writer.role) as network:
            read = backbone(network)(input_ids=tokens, position_ids=positions, use_cache=False)
        self.logits = self.model.next_logits(self.writer.role, read.last_hidden_state[:, 0])
        self.decoding.advance()


@dataclass(frozen=True)
class _Plan:
    """What the next tokens of rows need from the host, [tokens, rows] each.

    draws: fp64 in [0, 1). positions: of the tokens. written: tokens that the policy has written before.
    """

    draws: Tensor
    positions: Tensor
    written: Tensor

    @classmethod
    def of(cls, rows: Sequence[ActiveSequence], prompts: Sequence[int], count: int) -> _Plan:
        """prompts: their lengths. A row without room stays where it is, as positions may end with the context."""
        steps = torch.arange(count)[:, None]
        lengths = torch.tensor([n + len(row.tokens) for n, row in zip(prompts, rows, strict=True)])
        # 0 makes `room - 1` negative: an ended row stays at the position of its last token.
        room = torch.tensor([row.room if row.active else 0 for row in rows])
        draws = np.zeros((count, len(rows)))
        for column, row in enumerate(rows):
            # The draws that the same tokens would get one at a time.
            given = row.draws[row.sampled : row.sampled + count] if row.active else ()
            draws[: len(given), column] = given
        positions = lengths + torch.minimum(steps, room - 1)
        return cls(torch.from_numpy(draws), positions, torch.tensor([row.sampled for row in rows]) + steps)

"""Sampling responses with continuous batching: one prefill per prompt, and finished responses make room
for waiting ones.

A sample depends on its prompt and its own random stream, not on the other slots of its batch (up to
ties in fp32).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignkit import seeds
from alignkit.contract.engine import Completion
from alignkit.contract.settings import Sampling
from alignkit.data.group import Group, Response, preview, with_responses
from alignkit.errors import DataError, RunFailed
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.memory import available
from alignkit.models.loading import backbone, largest
from alignkit.models.memory import last_states, within_memory
from alignkit.models.next_token import choose
from alignkit.models.packing import cut, read_prompts
from alignkit.models.shared_model import SharedModel
from alignkit.tokens.encoder import Encoder, Ids

# Slots decoded together: enough to keep a CPU busy. A GPU reads all weights for each token, however
# few slots it has.
SLOTS, SLOTS_ON_GPU = 128, 1024
# Keys and values take at most this on a CPU; fewer slots are decoded together if they need more.
CACHE_BYTES = 2 * 2**30
CACHE_SHARE = 1 / 8  # share of a CPU's memory, at most
FREE_SHARE = 1 / 2  # share of a GPU's free memory for keys, values and logits
LOGIT_COPIES = 6  # copies of a slot's logits in fp32 that choosing a token takes
CACHES = ("past_key_values", "cache_params")  # what models call what they keep of earlier tokens
# Replacing slots copies the cache, which takes about as long as a step. It pays once a fifth of the
# slots is idle.
BUSY = 0.8
DIVERGED = (
    "the policy's next-token probabilities are NaN: training has diverged; lower learning_rate"
)

Completions = list[list[Completion]]  # those of each prompt
# Is given the number of complete responses.
Done = Callable[[int], None]
# Is given the tokens of a response so far, and the logits [vocabulary] from which the last one was
# chosen; returns whether more are wanted.
Wrote = Callable[[Sequence[int], Tensor], bool]


@dataclass(frozen=True)
class SamplingRequest:
    """What a role is asked to write: one completion for each of a prompt's random streams, in
    order.

    prompts: token ids, at least one each. A prompt may be a conversation with its answers so far.
    streams: numbers, as from `seeds.number`. labels: of the prompts, for errors. rooms: most new
    tokens of each prompt; empty: `max_new_tokens`. Prompts with their new tokens must fit the
    model's context. wrote: alignkit's own decoder calls it after every token.
    """

    model: SharedModel
    role: str
    encoder: Encoder
    prompts: Sequence[Ids]
    streams: Sequence[Sequence[int]]
    sampling: Sampling
    labels: Sequence[str] = ()
    rooms: Sequence[int] = ()
    wrote: Wrote | None = None

    def __post_init__(self) -> None:
        if not all(self.prompts):
            raise DataError(
                "cannot sample from an empty prompt: this tokenizer does not begin texts with a "
                "special token"
            )

    def room(self, prompt: int) -> int:
        """Most new tokens of a prompt, by its index."""
        return self.rooms[prompt] if self.rooms else self.sampling.max_new_tokens


def build_request(
    model: SharedModel,
    role: str,
    encoder: Encoder,
    groups: Sequence[Group],
    sampling: Sampling,
    *,
    seed: int,
    path: tuple[str | int, ...],
    numbers: Sequence[int],
    samples_per_prompt: int,
) -> SamplingRequest:
    """Ask for responses to the groups' prompts.

    seed, path: name the random streams, with each prompt's number and its sample's number.
    """
    prompts = [encoder.prompt(group.prompt, group.tools) for group in groups]
    labels = [str(group.origin or preview(group)) for group in groups]
    streams = []
    for n in numbers:
        streams.append([seeds.number(seed, *path, n, k) for k in range(samples_per_prompt)])
    return SamplingRequest(model, role, encoder, prompts, streams, sampling, labels)


def attach(
    request: SamplingRequest, groups: Sequence[Group], completions: Sequence[Sequence[Completion]]
) -> list[Group]:
    """The groups with the completions of their prompts as their responses."""
    encoder, answered = request.encoder, []
    for group, each in zip(groups, completions, strict=True):
        responses = []
        for one in each:
            responses.append(
                Response(
                    text=encoder.shown_text(one.tokens),
                    tokens=tuple(one.tokens),
                    logprobs=None if one.logprobs is None else tuple(one.logprobs),
                    truncated=not has_ended(encoder, one.tokens, request.sampling.stop),
                    source=request.role,
                    tokenizer=encoder.digest,
                )
            )
        answered.append(with_responses(group, responses, pairs=None))
    return answered


# What samples in a stage


class EngineCall:
    """A request to alignkit's own decoder, which writes when the completions are needed. The call
    of another engine is a subclass, and may write while something else is computed.

    seconds: that another engine has worked.
    """

    seconds = 0.0

    def __init__(self, request: SamplingRequest):
        self.request = request

    def result(self, done: Done = lambda responses: None) -> Completions:
        """Wait for the completions of each prompt."""
        return generate(self.request, done)

    def follow(self, request: SamplingRequest) -> Completions:
        """Completions by the same weights, even if the policy has learned since: the next turns."""
        return generate(request)

    def drop(self) -> None:
        """End the call, because nobody wants the completions any more."""


class StageEngine:
    """What samples in a stage: the engine `local`, which is alignkit's own decoder. Another engine
    is a subclass.

    samples_for_all: the first process asks it for all of them.
    """

    samples_for_all = False

    def request(self, request: SamplingRequest) -> EngineCall:
        """Begin to sample by the weights that the role has now."""
        return EngineCall(request)

    def close(self) -> None:
        """Free what it holds."""


@torch.no_grad()
def generate(request: SamplingRequest, done: Done = lambda responses: None) -> Completions:
    """Write the completions of a request with the weights in this process."""
    request.model.passes.gather(request.role)
    decoder = Decoder(request, done)
    within_memory(request.model.memory, decoder.run, decoder.halve)
    completions: Completions = [[] for _ in request.prompts]
    for slot in decoder.sequences:
        # No version is published of weights that are read where they are.
        completions[slot.prompt].append(Completion(tuple(slot.tokens), tuple(slot.logprobs), 0))
    return completions


# A response while it is sampled


@dataclass(eq=False)
class Slot:
    """What the decoder keeps of a response that it writes.

    prompt: index of its prompt. draws: uniform in [0, 1), one for each token that the policy may
    write. ended: by an end token or a stop text.
    """

    prompt: int
    draws: np.ndarray
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False

    @property
    def active(self) -> bool:
        return not self.ended and self.room > 0

    @property
    def room(self) -> int:
        """Tokens that the policy may still write."""
        return len(self.draws) - len(self.tokens)

    def abandon(self) -> None:
        """Write no more, because nobody wants the rest."""
        self.draws = self.draws[: len(self.tokens)]


# Slots that are decoded together


def slot_bytes(config: Any, width: int, longest: int, new: int) -> int:
    """Bytes of what a slot keeps in all layers, at least 1: keys and values of its tokens.

    config: of the language model. width: bytes of a number. longest: tokens of the longest prompt.
    new: tokens that a slot may write.
    """
    heads = largest(config, "num_attention_heads")
    of_token = 0
    if heads is not None:
        size = largest(config, "head_dim") or config.hidden_size // heads
        of_token = 2 * (largest(config, "num_key_value_heads") or heads) * size * width
    # Twice the new tokens, because a slot that has written all of its own may share the cache with a
    # new one.
    return max(1, int(config.num_hidden_layers * of_token * (longest + 2 * new)))


def most_slots(slot: int, memory: float, halvings: int, vocabulary: int = 0) -> int:
    """Slots whose keys and values fit the memory for them, halved for each time that it ran out
    while sampling.

    slot: bytes of one. memory: free bytes of a GPU, or all of a CPU's. vocabulary: its size, on a
    GPU; 0 means a CPU.
    """
    if vocabulary:
        slots = int(FREE_SHARE * memory) // (slot + LOGIT_COPIES * 4 * vocabulary)
        return max(1, min(SLOTS_ON_GPU, slots) >> halvings)
    return max(1, min(SLOTS, int(min(CACHE_BYTES, CACHE_SHARE * memory) // slot)) >> halvings)


def has_ended(encoder: Encoder, tokens: Sequence[int], stops: Sequence[str]) -> bool:
    """Whether an end token or a stop text ends these tokens."""
    return not encoder.end_ids.isdisjoint(tokens[-1:]) or has_stopped(encoder, tokens, stops)


def has_stopped(encoder: Encoder, tokens: Sequence[int], stops: Sequence[str]) -> bool:
    """Whether the end of these tokens contains a stop text."""
    if not stops:
        return False
    longest = max(len(stop.encode()) for stop in stops)  # every token is at least a part of a byte
    tail = encoder.decode(tokens[-max(32, longest + 4) :])
    return any(stop in tail for stop in stops)


class Decoder:
    """Writes a request. Slots share a cache: finished ones leave, and ones from the queue are
    admitted.

    sequences: all of the request, by prompt and sample. ends: the tokens that end a turn, on the
    model's device.
    """

    def __init__(self, request: SamplingRequest, done: Done):
        self.request, self.done = request, done
        self.model, self.role = request.model, request.role
        self.ends = torch.tensor(
            sorted(request.encoder.end_ids), dtype=torch.int64, device=self.model.device
        )
        self.sequences: list[Slot] = []
        for prompt, streams in enumerate(request.streams):
            for stream in streams:
                # All draws in advance: they do not depend on when, or next to which slots, a token
                # is written.
                draws = seeds.generator(stream).random(request.room(prompt))
                self.sequences.append(Slot(prompt, draws))
        self._clear()

    def _clear(self) -> None:
        """Begin without slots."""
        self.decoding = self.model.backend.decoding()
        self.slots: list[Slot] = []
        # [slots, vocabulary] of the next tokens
        self.logits = torch.zeros(0, device=self.model.device)

    def run(self) -> None:
        """Write all sequences that have not ended."""
        # Longest prompts first, so that slots of similar lengths are neighbors and little of the
        # cache stays empty.
        self.queue = sorted(
            (slot for slot in self.sequences if slot.active), key=self.length, reverse=True
        )
        self.limit, weights = self.most_slots(), self.model.roles[self.role]
        with self.model.multiplying():
            if not self.model.packs:
                self._write_by_prompt()
                return
            slots = min(self.limit, len(self.queue))
            with self.model.backend.prepare(
                weights.model, weights.adapter, slots, self.request.sampling.max_new_tokens
            ):
                self._write_together()

    def halve(self) -> bool:
        """Take fewer slots from now on, because memory ran out. Returns whether that is possible.

        Those that have not ended start over: a sample depends on its draws only, not on who is
        sampled with it.
        """
        self._clear()
        for slot in self.sequences:
            if slot.active:
                slot.tokens.clear()
                slot.logprobs.clear()
        self.model.memory.sampling_halvings += 1
        return self.limit > 1

    def most_slots(self) -> int:
        """Slots whose keys and values fit the memory for them, halved for each time that it ran out
        while sampling.
        """
        device, halvings = self.model.device, self.model.memory.sampling_halvings
        config, prompts = self.model.model.config.get_text_config(), self.request.prompts
        longest = max(map(len, prompts), default=0)
        new = max(map(self.request.room, range(len(prompts))), default=0)
        slot = slot_bytes(config, self.model.dtype.itemsize, longest, new)
        vocabulary = config.vocab_size if device.type == "cuda" else 0
        return most_slots(slot, available(device), halvings, vocabulary)

    def length(self, slot: Slot) -> int:
        """Tokens of a slot, with its prompt."""
        return len(self.request.prompts[slot.prompt]) + len(slot.tokens)

    def write(self, slots: Sequence[Slot], logits: Tensor, ahead: int = 1) -> Tensor:
        """Append up to `ahead` tokens to every active slot, then look at them; return the last ones,
        [slots]. The caller reads these, if any slot still needs more.

        logits: [slots, vocabulary] of the first. Ended slots stay until the next refill. What is drawn
        for them is dropped, and no other slot reads it.
        """
        device, sampling, count = logits.device, self.request.sampling, 1
        if ahead > 1:
            lengths = torch.tensor(list(map(self.length, slots)))
            room = torch.tensor([slot.room if slot.active else 0 for slot in slots])
            count = min(ahead, max(1, int(room.max())))
            # [count, slots]. A slot without room stays at its last position.
            positions = (lengths + torch.minimum(torch.arange(count)[:, None], room - 1)).to(device)
        draws = np.zeros((count, len(slots)))
        for column, slot in enumerate(slots):
            if slot.active:
                left = slot.draws[len(slot.tokens) :][:count]
                draws[: len(left), column] = left
        uniform = torch.from_numpy(draws).to(device)
        tokens = np.array([len(slot.tokens) for slot in slots])
        short = torch.from_numpy(tokens + np.arange(count)[:, None] < sampling.min_new_tokens)
        early = short.to(device) if short.any() else [None] * count
        chosen, logprobs = list[Tensor](), list[Tensor]()
        for step in range(count):
            if step:
                logits = self._read(chosen[-1], positions[step - 1])
            found = choose(logits, uniform[step], sampling, early[step], self.ends)
            chosen.append(found[0])
            logprobs.append(found[1])
        wrote = self.request.wrote
        heard = [row for row, slot in enumerate(slots) if wrote and slot.active]
        # The only time that the host waits for the device
        ids, values = torch.stack(chosen).tolist(), torch.stack(logprobs).tolist()
        for step in range(count):
            self.append(slots, ids[step], values[step])
        for row in heard:  # then, one token is written at a time
            if wrote and not wrote(slots[row].tokens, logits[row]):
                slots[row].abandon()
        return chosen[-1]

    def append(self, slots: Sequence[Slot], ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Append a token to every active slot, which may end it."""
        encoder, stops, ended = self.request.encoder, self.request.sampling.stop, False
        for slot, token, logprob in zip(slots, ids, logprobs, strict=True):
            if not slot.active:
                continue
            if not math.isfinite(logprob):
                raise RunFailed(DIVERGED)
            slot.tokens.append(token)
            slot.logprobs.append(logprob)
            slot.ended = token in encoder.end_ids or has_stopped(encoder, slot.tokens, stops)
            ended = ended or not slot.active
        if ended:
            self.done(sum(not slot.active for slot in self.sequences))

    def _write_by_prompt(self) -> None:
        """Write with the model's own attention and cache, up to `limit` samples of a prompt at a
        time.
        """
        # RecurrentGemma would keep its states in its layers, and not give them back.
        keeps = backbone(self.model.model).config.model_type != "recurrent_gemma"
        while self.queue:
            prompt = self.queue[0].prompt
            # Slots of the same prompt have the same length, so this needs no padding and no mask.
            slots = [slot for slot in self.queue[: self.limit] if slot.prompt == prompt]
            del self.queue[: len(slots)]
            tokens = torch.tensor(
                [self.request.prompts[prompt]] * len(slots), device=self.model.device
            )
            kept: dict[str, Any] = {}
            while any(slot.active for slot in slots):
                with self.model.using_role(self.role) as network:
                    output = backbone(network)(input_ids=tokens, use_cache=keeps, **kept)
                kept = {name: output[name] for name in CACHES if output.get(name) is not None}
                logits = self.model.next_logits(self.role, output.last_hidden_state[:, -1])
                self.model.should_stop()
                new = self.write(slots, logits)[:, None]
                # With nothing kept, every token is computed from all before it.
                tokens = new if kept else torch.cat([tokens, new], dim=1)

    def _write_together(self) -> None:
        """Write in slots that share a cache."""
        while self._refill():
            self.model.should_stop()
            ahead = 1 if self.request.wrote is not None else self.decoding.ahead
            tokens = self.write(self.slots, self.logits, ahead)
            # It may be large, so it must not wait for the next one
            self.logits = self.logits.new_zeros(0, self.logits.shape[1])
            if any(slot.active for slot in self.slots):
                # The token just appended is read next; as positions count from 0, its position is
                # the length minus 1.
                self.logits = self._read(tokens, torch.tensor([*map(self.length, self.slots)]) - 1)

    def _read(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Read a new token of each slot [slots], at these positions [slots], and return the logits of
        the next ones.
        """
        tokens, positions = (
            tokens[:, None].to(self.model.device),
            positions[:, None].to(self.model.device),
        )
        with self.model.using_role(self.role, self.decoding) as network:
            states = last_states(network, tokens, positions)
        self.decoding.advance()
        return self.model.next_logits(self.role, states[:, 0])

    def _refill(self) -> bool:
        """Replace finished slots once enough are idle. Returns whether there is anything left to
        write.
        """
        active = [slot for slot in self.slots if slot.active]
        if active and len(active) > BUSY * (self.limit if self.queue else len(self.slots)):
            return True
        of_prompts: dict[int, list[Slot]] = {}
        for slot in self.queue[: self.limit - len(active)]:
            of_prompts.setdefault(slot.prompt, []).append(slot)
        del self.queue[: self.limit - len(active)]
        budget = self.model.inference_budget >> self.model.memory.sampling_halvings
        # A prompt's samples read it once.
        for part in cut(
            of_prompts.values(), lambda slots: len(self.request.prompts[slots[0].prompt]), budget
        ):
            self._admit(part)
        if active and not of_prompts:  # nobody enters, but idle slots leave
            self._update([])
        return bool(active or of_prompts)

    def _admit(self, new: Sequence[Slot]) -> None:
        """Append slots, whose prompts are read here, each once."""
        prompts = sorted({slot.prompt for slot in new})
        owners = [prompts.index(slot.prompt) for slot in new]
        texts = [self.request.prompts[prompt] for prompt in prompts]
        layout, hidden = read_prompts(self.model, self.role, texts, store_kv=True)
        self._update(new, layout, owners)
        # The state at a prompt's last token predicts the first new one. In the order of `slots` and
        # of the cache.
        self.logits = torch.cat([self.logits, self.model.next_logits(self.role, hidden[owners])])

    def _update(
        self,
        entering: Sequence[Slot],
        layout: TreeLayout | None = None,
        owners: Sequence[int] = (),
    ) -> None:
        """Drop the slots that have ended, and append those that enter. owners: each one's span of
        the layout.
        """
        kept = [index for index, slot in enumerate(self.slots) if slot.active]
        self.logits = self.logits[kept]
        self.slots = [*(self.slots[index] for index in kept), *entering]
        self.decoding.update_slots(kept, max(slot.room for slot in self.slots), layout, owners)

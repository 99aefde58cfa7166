"""The path of numbers: encoded groups in packs, the forward pass of training and measuring, and
batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from alignkit.contract.batch import Batch, Outputs, Pairs
from alignkit.data.group import Pair
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import GroupSpan
from alignkit.models.memory import within_memory
from alignkit.models.shared_model import LOGPROBS, SharedModel, Wants
from alignkit.tokens.encoder import Encoded, Ids, ResponseTokens

T = TypeVar("T")

# Columns that are fields of a batch; others are advantages
FIELDS = ("old_logprobs", "reference_logprobs", "old_values", "rewards")


# Packs


@dataclass(frozen=True)
class Pack:
    """Encoded groups side by side: N tokens, with R responses of up to T tokens, n of which count.

    layout: which tokens attend to which. tokens: [N] of all groups. targets: [n] the counted tokens.
    before: [n] index in `tokens` of each target's predecessor. cells: [n, 2] response and token
    index of each target. scored: [R] index in `tokens` of the token at which each response is
    scored. shape: (R, T). All tensors are int64.
    """

    layout: TreeLayout
    tokens: Tensor
    targets: Tensor
    before: Tensor
    cells: Tensor
    scored: Tensor
    shape: tuple[int, int]

    def unpack(self, values: Tensor) -> Tensor:
        """Arrange one value per target [n] as [R, T], zero elsewhere; differentiable."""
        response, token = self.cells.unbind(1)
        return values.new_zeros(self.shape).index_put((response, token), values)


def pack(
    groups: Sequence[Encoded], pad_token_id: int | None = None, device: torch.device | str = "cpu"
) -> Pack:
    """Lay groups side by side; each prompt appears once, before its responses.

    pad_token_id: the token that a reward model skips at the end of a response, and of the prompt if
    nothing else is left.
    """
    ids: list[int] = []
    spans: list[GroupSpan] = []
    # Each response has its first token, the last one of its prompt, the last one that is read, and
    # its length.
    starts: list[int] = []
    prompt_ends: list[int] = []
    scored: list[int] = []
    sizes: list[int] = []
    counts: list[float] = []  # one per token of the responses
    for group in groups:
        spans.append(
            GroupSpan(
                len(ids),
                len(group.prompt),
                tuple(len(response.tokens) for response in group.responses),
            )
        )
        ids += group.prompt
        # An empty prompt has no last token, but then no response's first token counts, and nothing
        # reads this index.
        prompt_end = len(ids) - 1
        for response in group.responses:
            read = len(response.tokens)
            if pad_token_id is not None:
                read = _read(group.prompt, response.tokens, pad_token_id)
            # What precedes the response in the pack may be another one.
            scored.append(len(ids) + read - 1 if read > 0 else prompt_end + read)
            starts.append(len(ids))
            prompt_ends.append(prompt_end)
            sizes.append(len(response.tokens))
            ids += response.tokens
            counts += response.mask
    tokens, lengths = np.array(ids, dtype=np.int64), np.array(sizes, dtype=np.int64)
    counted = np.array(counts, dtype=bool)
    # [n] each, of the counted tokens: the response, and the index in it (a running number minus
    # where it starts).
    response_index = np.repeat(np.arange(len(lengths)), lengths)[counted]
    token_index = (np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths))[
        counted
    ]
    targets = np.array(starts, dtype=np.int64)[response_index] + token_index
    # In the pack, a first token may follow another response; what predicts it is the end of its
    # prompt.
    before = np.where(
        token_index > 0, targets - 1, np.array(prompt_ends, dtype=np.int64)[response_index]
    )

    def copied(values: np.ndarray) -> Tensor:
        # The host does not wait for earlier work of the device.
        return torch.from_numpy(values).to(device, non_blocking=True)

    return Pack(
        layout=TreeLayout(spans),
        tokens=copied(tokens),
        targets=copied(tokens[targets]),
        before=copied(before),
        cells=copied(np.stack([response_index, token_index], axis=1)),
        scored=copied(np.array(scored, dtype=np.int64)),
        shape=(len(lengths), int(lengths.max(initial=0))),
    )


def _read(prompt: Sequence[int], response: Sequence[int], pad_token_id: int) -> int:
    """The number of response tokens before the padding at its end; negative if the padding reaches
    back into the prompt, whose first token is always read.
    """
    tokens = [*prompt, *response]
    while len(tokens) > 1 and tokens[-1] == pad_token_id:
        tokens.pop()
    return len(tokens) - len(prompt)


def indivisible(bundles: Sequence[str | None]) -> list[list[int]]:
    """Group indices in units that no batch may split: a bundle's groups together, every other group
    on its own.

    bundles: each group's bundle, or None. Units are in the order of their first groups.
    """
    units: dict[str | int, list[int]] = {}
    for index, bundle in enumerate(bundles):
        units.setdefault(index if bundle is None else bundle, []).append(index)
    return list(units.values())


def micro_batches(groups: Sequence[Encoded], budget: int) -> Iterator[list[int]]:
    """Cut groups into batches of at most `budget` tokens, as lists of indices; indivisible units
    stay together.
    """
    units = indivisible([encoded.group.bundle for encoded in groups])
    return cut(units, lambda unit: sum(groups[index].length for index in unit), budget)


def cut(
    units: Iterable[Sequence[T]], length: Callable[[Sequence[T]], int], budget: int
) -> Iterator[list[T]]:
    """Join consecutive units to batches of at most `budget` tokens; a unit over the budget makes
    one of its own.
    """
    batch: list[T] = []
    used = 0
    for unit in units:
        if batch and used + length(unit) > budget:
            yield batch
            batch, used = [], 0
        batch += unit
        used += length(unit)
    if batch:
        yield batch


# Examples and batches


@dataclass
class Examples:
    """Encoded groups with columns of measured numbers, in the order of their responses.

    token_columns: fp32 [N], for the N tokens of all responses, one response after the other.
    columns: [responses].
    """

    groups: list[Encoded]
    token_columns: dict[str, Tensor] = field(default_factory=dict)
    columns: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def responses(self) -> list[ResponseTokens]:
        """The responses of all groups."""
        return [*chain.from_iterable(group.responses for group in self.groups)]

    @cached_property
    def offsets(self) -> list[int]:
        """Index of each group's first response, and the number of responses."""
        return [0, *np.cumsum([len(group.responses) for group in self.groups]).tolist()]

    @cached_property
    def token_offsets(self) -> np.ndarray:
        """Index of each response's first token, and the number of tokens, int64 [responses + 1]."""
        return np.cumsum([0, *(len(response.tokens) for response in self.responses)])

    def places_of(self, indices: Sequence[int]) -> list[int]:
        """Indices of these groups' responses."""
        places: list[int] = []
        for i in indices:
            places += range(self.offsets[i], self.offsets[i + 1])
        return places

    def take(self, indices: Sequence[int]) -> Examples:
        """Select groups, with their columns."""
        places = self.places_of(indices)
        starts, ends = self.token_offsets[:-1], self.token_offsets[1:]
        tokens = [np.arange(starts[place], ends[place]) for place in places if self.token_columns]
        of_tokens = torch.from_numpy(np.concatenate([np.arange(0), *tokens]))
        return Examples(
            [self.groups[i] for i in indices],
            {name: column[of_tokens] for name, column in self.token_columns.items()},
            {name: column[places] for name, column in self.columns.items()},
        )

    def add_advantages(self, advantages: Mapping[str, Tensor]) -> None:
        """Add the tensors that an algorithm's `signal` returned as columns, each [R, T] or [R]."""
        for name, tensor in advantages.items():
            values = tensor.detach().float()
            if tensor.dim() == 2:
                self.token_columns[name] = values[self._in_response]
            else:
                self.columns[name] = values

    def batch(self, device: torch.device | str = "cpu") -> Batch:
        """Pad everything to the longest response: tables [R, T] of R responses and T tokens."""
        # Copies: what an algorithm changes in a batch must not reach the next batch.
        arrays = {
            name: column.to(device, torch.float32, copy=True)
            for name, column in self.columns.items()
        }
        for name, column in self.token_columns.items():
            arrays[name] = self._padded(column).to(device)
        masks = chain.from_iterable(response.mask for response in self.responses)
        tokens = chain.from_iterable(response.tokens for response in self.responses)
        weights = self._padded(torch.tensor([*masks], dtype=torch.float32))
        mask = weights > 0
        fields = {name: arrays.pop(name) for name in FIELDS if name in arrays}
        # Compared here: a GPU would have to be waited for
        weighted = not torch.equal(weights, mask.float())
        return Batch(
            groups=[encoded.group for encoded in self.groups],
            tokens=self._padded(torch.tensor([*tokens], dtype=torch.int64)).to(device),
            mask=mask.to(device),
            group_index=_integers(
                np.repeat(range(len(self.groups)), np.diff(self.offsets)), device
            ),
            pairs=self._pairs(device),
            truncated=torch.tensor(
                [response.truncated for response in self.responses], dtype=torch.bool, device=device
            ),
            signals=arrays,
            turn_weights=weights.to(device) if weighted else None,
            **fields,
        )

    @cached_property
    def _in_response(self) -> Tensor:
        """Whether an entry of [R, T] is a token of its response, and not after its end."""
        lengths = np.diff(self.token_offsets)
        return torch.from_numpy(np.arange(lengths.max(initial=0)) < lengths[:, None])

    def _padded(self, column: Tensor) -> Tensor:
        """A column of tokens as [R, T], zero after the end of a response."""
        places = self._in_response
        return column.new_zeros(places.shape).masked_scatter(places, column)

    def _pairs(self, device: torch.device | str) -> Pairs:
        pairs: list[tuple[Pair, int]] = []
        for g, group in enumerate(self.groups):
            pairs += [(pair, g) for pair in group.pairs]
        # A margin may be a level's name instead of a number.
        margins = [
            float(pair.margin) if isinstance(pair.margin, int | float) else 0.0 for pair, _ in pairs
        ]
        return Pairs(
            better=_integers([self.offsets[g] + pair.better for pair, g in pairs], device),
            worse=_integers([self.offsets[g] + pair.worse for pair, g in pairs], device),
            p=torch.tensor([pair.p for pair, _ in pairs], dtype=torch.float32, device=device),
            margin=torch.tensor(margins, dtype=torch.float32, device=device),
            group_index=_integers([g for _, g in pairs], device),
            levels=tuple(
                pair.margin if isinstance(pair.margin, str) else None for pair, _ in pairs
            ),
        )


def flat(columns: Sequence[Tensor]) -> Tensor:
    """Numbers of responses, fp32 [tokens] each, as a column of `Examples`."""
    return torch.cat([torch.empty(0), *columns])


def _integers(values: Sequence[int] | np.ndarray, device: torch.device | str) -> Tensor:
    return torch.as_tensor(values, dtype=torch.int64, device=device)


def join_outputs(outs: Sequence[Outputs], places: Sequence[Sequence[int]]) -> Outputs:
    """The outputs of micro-batches as one, padded to the longest response of all.

    places: of each micro-batch's responses in the result; together they are all places.
    """
    order = torch.tensor([*chain.from_iterable(places)]).argsort()
    joined: dict[str, Tensor] = {}
    for name in vars(outs[0]):
        tables = [getattr(out, name) for out in outs]
        if tables[0].dim() > 1:
            longest = max(table.shape[1] for table in tables)
            tables = [nn.functional.pad(table, (0, longest - table.shape[1])) for table in tables]
        whole = torch.cat(tables)
        joined[name] = whole[order.to(whole.device)]
    return Outputs(**joined)


# Forward passes


def read_prompts(
    model: SharedModel, role: str, prompts: Sequence[Ids], *, store_kv: bool = False
) -> tuple[TreeLayout, Tensor]:
    """Read prompts in one pack: its layout, and the states at their last tokens, [prompts, hidden]."""
    tokens: list[int] = []
    spans: list[GroupSpan] = []
    for prompt in prompts:
        spans.append(GroupSpan(len(tokens), len(prompt), ()))
        tokens += prompt
    layout = TreeLayout(spans, store_kv=store_kv)
    hidden = model.hidden(role, layout, torch.tensor(tokens))
    return layout, hidden[[span.start + span.prompt - 1 for span in spans]]


def forward(model: SharedModel, role: str, examples: Examples, wants: Wants) -> Outputs:
    """Run a role over examples in one pack.

    Returns fp32 tables [responses, tokens], zero where no token counts; scores are [responses].
    With gradients enabled they reach the role's parameters and those of the value role.
    """
    packed = pack(examples.groups, model.roles[role].pad_token_id, model.device)
    hidden = model.hidden(role, packed.layout, packed.tokens)
    outputs = Outputs()
    if wants.scores:
        outputs.scores = model.scalars(role, hidden[packed.scored])
    if wants.logprobs:
        # The shift by one: the state at a token predicts the next, so it is read at `before`.
        found = model.logprobs(role, hidden[packed.before], packed.targets, wants)
        for name, column in found._asdict().items():
            if column is not None:
                setattr(outputs, name, packed.unpack(column))
    if wants.values is not None:
        # A head on the policy's backbone reads the states that are already here.
        if model.backbone_role(wants.values) != model.backbone_role(role):
            hidden = model.hidden(wants.values, packed.layout, packed.tokens)
        # The value before a token is written, at the state that predicts it.
        outputs.values = packed.unpack(model.scalars(wants.values, hidden[packed.before]))
    return outputs


def measure(
    model: SharedModel,
    role: str,
    groups: Sequence[Encoded],
    wants: Wants = LOGPROBS,
    done: Callable[[int], None] = lambda groups: None,
) -> dict[str, list[Tensor]]:
    """Compute outputs of a role for every response, without gradients, as fp32 tensors on the CPU;
    none of no response.

    `logprobs` (nats) and `values` are [tokens], zero for tokens that do not count; `scores` are [].
    A backbone that roles share runs once. done: is given the number of groups measured so far.
    """
    examples = Examples(list(groups))

    @torch.no_grad()
    def in_micro_batches() -> dict[str, list[Tensor]]:
        measured: dict[str, list[Tensor]] = {}
        count = 0
        # A micro-batch is not a run of consecutive groups: it keeps bundles together.
        for indices in micro_batches(examples.groups, model.inference_budget):
            model.should_stop()
            part = examples.take(indices)
            count += len(indices)
            if not part.responses:
                continue
            for name, table in vars(forward(model, role, part, wants)).items():
                column = measured.setdefault(name, [torch.empty(0)] * len(examples.responses))
                for place, response, values in zip(
                    examples.places_of(indices), part.responses, table.cpu(), strict=True
                ):
                    # Cloned, because a view would keep the whole padded table in memory.
                    column[place] = (
                        values[: len(response.tokens)].clone() if values.dim() else values
                    )
            done(count)
        return measured

    return within_memory(model.memory, in_micro_batches)


def by_response(columns: Mapping[str, Sequence[Tensor]]) -> list[dict[str, Tensor]]:
    """What `measure` returns, by response and then by name."""
    return [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]

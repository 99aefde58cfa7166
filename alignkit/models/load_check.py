"""Checks on two dozen tokens whether a newly loaded base model computes what alignkit expects.

Transformers has hundreds of architectures. Without these checks, an unusual one would train on wrong numbers, without
an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from alignkit.errors import RunFailed
from alignkit.kernels import attention, tiled_attention
from alignkit.kernels.attention import TreeLayout, UnsupportedAttention
from alignkit.kernels.layout import GroupSpan
from alignkit.kernels.static_decoding import decoding_for
from alignkit.models.full_precision import full_precision, widened
from alignkit.models.loading import backbone, largest
from alignkit.models.moe_routing import Routes, recording, repeating

if TYPE_CHECKING:
    from alignkit.settings import ModelSpec

# Two groups: a prompt of 5 tokens with responses of 6 and 3, and a prompt of 4 with a response of 6.
SPANS = [GroupSpan(0, 5, (6, 3)), GroupSpan(14, 4, (6,))]
LENGTH = 24
TOLERANCE = 1e-3  # of states in fp32, relative: correct models differ by 1e-6, and the least wrong one seen by 1e-1


class CheckedModel(Protocol):
    """The parts of `SharedModel` that the checks use."""

    model: Any
    device: torch.device
    dtype: torch.dtype
    spec: ModelSpec

    @property
    def context(self) -> int: ...

    def hidden(self, name: str, layout: TreeLayout, tokens: Tensor) -> Tensor: ...

    def next_logits(self, name: str, hidden: Tensor) -> Tensor: ...

    def using_role(self, name: str) -> AbstractContextManager[Any]: ...


@dataclass(frozen=True)
class _Change:
    """Tokens of the packed row to change, tokens whose states must keep every bit, and tokens whose states must not."""

    description: str
    changed: tuple[int, ...]
    kept: tuple[int, ...]
    moved: tuple[int, ...] = ()


CHANGES = (
    _Change("a response", (5, *range(7, 11), 19, 20, 21), (*range(5), *range(11, 19)), moved=(6, 22)),
    _Change("a response or a group", tuple(range(11, 24)), tuple(range(11))),
    _Change("a prompt", (4, 13), (*range(4), *range(14, 24)), moved=(5, 11)),
)


@torch.no_grad()
def why_not_packable(model: CheckedModel, base: str) -> str:
    """Return why the base model (role `base`) cannot use packed rows; empty if it can.

    Which token sees which is checked by bits, in the model's own precision. The values are checked in fp32.
    """
    # Ids from the whole vocabulary: the first ones are often special tokens with huge activations, which amplify
    # rounding errors.
    size = model.model.config.get_text_config().vocab_size
    ids = torch.linspace(size // 4, size - 1, LENGTH).long()
    try:
        # A quantization to 8 bits looks at all tokens of a pass.
        with full_precision(model.model) if model.spec.quantization == "int8" else nullcontext():
            failure = _wrong_views(model, base, ids)
        return failure or _wrong_states(model, base, ids)
    except UnsupportedAttention as error:
        return str(error)
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, LookupError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        _use_own_attention(model)


def _use_own_attention(model: CheckedModel) -> None:
    model.model.set_attn_implementation("sdpa" if model.model._supports_sdpa else "eager")


def _wrong_views(model: CheckedModel, base: str, ids: Tensor) -> str:
    packed = TreeLayout(SPANS, store_kv=True)
    with recording(model.model) as routes:
        states = model.hidden(base, packed, ids)
    return (
        _refusal(model, packed)
        or _wrong_view_in_a_row(model, base, ids, states, routes)
        or _wrong_view_in_decoding(model, base, ids)
    )


def _wrong_view_in_a_row(model: CheckedModel, base: str, ids: Tensor, states: Tensor, routes: Routes) -> str:
    """Change tokens: the states of those that do not see them must keep every bit. Shapes stay, so rounding does."""
    size = model.model.config.get_text_config().vocab_size
    for change in CHANGES:
        others = torch.ones(LENGTH, dtype=torch.bool).index_fill_(0, torch.tensor(change.kept), False)
        tokens = ids.clone()
        tokens[list(change.changed)] = (tokens[list(change.changed)] + 1) % size
        with repeating(model.model, routes, others, torch.arange(LENGTH)):
            after = model.hidden(base, TreeLayout(SPANS), tokens)
        if not torch.equal(after[list(change.kept)], states[list(change.kept)]):
            return f"changing {change.description} changes tokens that do not see it"
        if any(torch.equal(after[token], states[token]) for token in change.moved):
            return f"changing {change.description} does not change tokens that see it"
    return ""


def _wrong_view_in_decoding(model: CheckedModel, base: str, ids: Tensor) -> str:
    """The same for the rows of a batch that is sampled."""
    size = model.model.config.get_text_config().vocab_size
    rows = [_rows(ids)[0], _rows(ids)[2]]
    first = _Decoded(model, base, rows)
    again = _Decoded(model, base, [(rows[0] + 1) % size, rows[1]], first)
    if not torch.equal(first.states[1], again.states[1]) or torch.equal(first.states[0], again.states[0]):
        return "rows of a sampled batch see each other"
    return ""


def _wrong_states(model: CheckedModel, base: str, ids: Tensor) -> str:
    """Compare with the model's own attention, in fp32, with the same experts for every token."""
    rows = _rows(ids)
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)  # padding is after all that count
    table = torch.arange(padded.numel()).view(padded.shape)
    places = [place[: len(row)] for place, row in zip(table, rows, strict=True)]  # of each row's tokens
    # In the packed row, the first two share a prompt.
    everywhere, packed = torch.ones(LENGTH, dtype=torch.bool), torch.cat([places[0], places[1][5:], places[2]])
    with full_precision(model.model):
        _use_own_attention(model)
        with recording(model.model) as routes:
            native = backbone(model.model)(input_ids=padded).last_hidden_state.flatten(0, 1).float()
        model.model.set_attn_implementation(attention.NAME)
        for costs, name in ((None, "packed attention"), (tiled_attention.ALWAYS_TILE, "packed attention in tiles")):
            with repeating(model.model, routes, everywhere, packed):
                ours = model.hidden(base, TreeLayout(SPANS, costs=costs), ids)
            if distance := _distance(ours, native[packed]):
                return f"{name} differs from the model's own by {distance:.2g}"
        decoded = _Decoded(model, base, [rows[0], rows[2]], routes=routes, places=[places[0], places[2]])
        if distance := _distance(decoded.states, native[[int(places[0][-1]), int(places[2][-1])]]):
            return f"decoding token by token differs from the model's own reading by {distance:.2g}"
    return ""


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest relative distance of a token's states, 0.0 if it is only rounding."""
    distance = ((ours - theirs).float().norm(dim=-1) / theirs.float().norm(dim=-1).clamp_min(1e-9)).max()
    return 0.0 if distance <= TOLERANCE else float(distance)  # a nan is a difference


def _refusal(model: CheckedModel, packed: TreeLayout) -> str:
    """Return why the configuration rules out packed rows, which two dozen tokens may not show. packed: after a pass."""
    config = model.model.config.get_text_config()
    if len(packed.kv) < config.num_hidden_layers:
        return f"only {len(packed.kv)} of its layers use transformers' attention interface"
    if getattr(config, "attn_temperature_tuning", None):  # only takes effect after thousands of tokens
        return "it scales queries by their position in the row"
    window = _window(config)
    if window and window < model.context and packed.windows == {None}:
        return f"its window of {window} tokens is only in its own mask, which packed rows do not use"
    return ""


def _rows(ids: Tensor) -> list[Tensor]:
    """The token rows of SPANS' three responses, each behind its prompt."""
    return [ids[:11], torch.cat([ids[:5], ids[11:14]]), ids[14:]]


@torch.no_grad()
def check_head(model: CheckedModel, base: str) -> None:
    """Raise RunFailed if the model's logits are not those of `SharedModel.next_logits`, which replaces its head."""
    network = model.model
    row = (torch.arange(1, 9, device=model.device) % network.config.get_text_config().vocab_size)[None]
    with attention.using(TreeLayout([GroupSpan(0, 8, ())])), full_precision(network):
        theirs = network(input_ids=row).logits[0].float()
        states = backbone(network)(input_ids=row).last_hidden_state[0]
        with widened(network.get_output_embeddings()):
            ours = model.next_logits(base, states)
    if _distance(ours, theirs):
        raise RunFailed(
            f"{type(network).__name__} computes its logits in a way that alignkit does not support; please report this"
        )


class _Decoded:
    """The states of each row's last token, computed the way sampling does, [rows, hidden].

    like: an earlier pass with other tokens in its first row, whose routes that row repeats. routes, places: of a pass
    over the same tokens, and each row's indices in it.
    """

    prefill: Routes
    step: Routes

    def __init__(
        self,
        model: CheckedModel,
        base: str,
        rows: Sequence[Tensor],
        like: _Decoded | None = None,
        routes: Routes | None = None,
        places: Sequence[Tensor] = (),
    ):
        network, count = model.model, len(rows)
        prompts = [len(row) - 1 for row in rows]
        starts = [sum(prompts[:number]) for number in range(count)]
        spans = [GroupSpan(start, length, ()) for start, length in zip(starts, prompts, strict=True)]
        owner, number = torch.arange(count).repeat_interleave(torch.tensor(prompts)), torch.arange(count)
        earlier: list[tuple[Routes, Tensor, Tensor]] = []  # of the prompts and of the last tokens
        if like is not None:
            earlier = [(like.prefill, owner == 0, torch.arange(sum(prompts))), (like.step, number == 0, number)]
        elif routes is not None:
            prefilled, last = torch.cat([place[:-1] for place in places]), torch.stack([place[-1] for place in places])
            earlier = [(routes, owner >= 0, prefilled), (routes, number >= 0, last)]
        prefill = TreeLayout(spans, store_kv=True)
        with repeating(network, *earlier[0]) if earlier else nullcontext(), recording(network) as self.prefill:
            model.hidden(base, prefill, torch.cat([row[:-1] for row in rows]))
        decoding = decoding_for(model.device)
        decoding.update_rows([], 1, prefill, range(count))
        ids = torch.stack([row[-1:] for row in rows]).to(model.device)
        positions = torch.tensor(prompts, device=model.device)[:, None]
        with repeating(network, *earlier[1]) if earlier else nullcontext(), recording(network) as self.step:
            with attention.using(decoding), model.using_role(base) as used:
                output = backbone(used)(input_ids=ids, position_ids=positions, use_cache=False)
        self.states: Tensor = output.last_hidden_state[:, 0]


def _window(config: Any) -> int | None:
    """The longest attention window or chunk of a model's layers, in tokens; None if all layers see everything."""
    kinds = getattr(config, "layer_types", None)
    if kinds and not {"sliding_attention", "chunked_attention"} & set(kinds):
        return None
    return largest(config, "sliding_window") or largest(config, "attention_chunk_size")

"""Checks on two dozen tokens whether a newly loaded base model computes what alignkit expects.

Transformers has hundreds of architectures. Without these checks, an unusual one would train on wrong numbers, without
an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from alignkit.errors import RunFailed
from alignkit.kernels import attention, tiled_attention
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.decoding import Decoding
from alignkit.kernels.layout import GroupSpan
from alignkit.models.loading import backbone, largest

# Two groups: a prompt of 5 tokens with responses of 6 and 3, and a prompt of 4 with a response of 6.
SPANS = [GroupSpan(0, 5, (6, 3)), GroupSpan(14, 4, (6,))]
LENGTH = 24


class CheckedModel(Protocol):
    """The parts of `SharedModel` that the checks use."""

    model: Any
    device: torch.device
    dtype: torch.dtype

    @property
    def context(self) -> int: ...

    def hidden(self, name: str, layout: TreeLayout, tokens: Tensor) -> Tensor: ...

    def next_logits(self, name: str, hidden: Tensor) -> Tensor: ...

    def using_role(self, name: str) -> AbstractContextManager[Any]: ...


@dataclass(frozen=True)
class _Check:
    """Two computations of the same hidden states, and the tolerated relative distance in fp32 and in other dtypes."""

    description: str
    ours: Tensor
    theirs: Tensor
    tolerance: float
    tolerance_fp32: float = 1e-3

    def failure(self, dtype: torch.dtype) -> str:
        """Describe the difference if it is too large, else return an empty string."""
        distance = float((self.ours - self.theirs).float().norm() / self.theirs.float().norm())
        tolerance = self.tolerance_fp32 if dtype == torch.float32 else self.tolerance
        return "" if distance <= tolerance else f"{self.description} by {distance:.2g}"  # a nan fails


@torch.no_grad()
def why_not_packable(model: CheckedModel, base: str) -> str:
    """Return why the base model (role `base`) cannot use packed rows; empty if it can."""
    # Ids from the whole vocabulary: the first ones are often special tokens with huge activations, which amplify
    # rounding errors.
    size = model.model.config.get_text_config().vocab_size
    ids = torch.linspace(size // 4, size - 1, LENGTH).long()
    failure = ""
    try:
        packed = TreeLayout(SPANS, store_kv=True)
        together = model.hidden(base, packed, ids)
        if refusal := _refusal(model, packed):
            return refusal
        tiled = model.hidden(base, TreeLayout(SPANS, costs=tiled_attention.ALWAYS_TILE), ids)
        rows = _rows(ids)
        separate = [model.hidden(base, TreeLayout([_one_row(row)]), row) for row in rows]
        decoded = _decoded(model, base, [rows[0], rows[2]])
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, LookupError) as error:
        failure = f"{type(error).__name__}: {error}"
    model.model.set_attn_implementation("sdpa" if model.model._supports_sdpa else "eager")
    if failure:
        return failure
    native = [backbone(model.model)(input_ids=row[None].to(model.device)).last_hidden_state[0] for row in rows]
    checks = [
        # The same attention code, so the tolerance is tight. Two correct kernels differ much more in bf16.
        _Check("packed attention differs from separate rows", together, _unshared(separate), 0.05),
        _Check("packed attention differs from itself in tiles", together, tiled, 0.3),
        _Check("packed attention differs from the model's own", together, _unshared(native), 0.5),
        _Check(
            "decoding token by token differs from reading the whole row",
            decoded,
            torch.stack([separate[0][-1], separate[2][-1]]),
            0.5,
        ),
    ]
    return next((failure for check in checks if (failure := check.failure(model.dtype))), "")


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


def _one_row(row: Tensor) -> GroupSpan:
    return GroupSpan(0, len(row), ())


def _unshared(rows: Sequence[Tensor]) -> Tensor:
    """Arrange the hidden states of `_rows` as in the packed row, where the first two share a prompt."""
    return torch.cat([rows[0], rows[1][5:], rows[2]])


@torch.no_grad()
def check_head(model: CheckedModel, base: str) -> None:
    """Raise RunFailed if the model's logits are not those of `SharedModel.next_logits`, which replaces its head."""
    network = model.model
    row = (torch.arange(1, 9, device=model.device) % network.config.get_text_config().vocab_size)[None]
    with attention.using(TreeLayout([GroupSpan(0, 8, ())])):
        theirs = network(input_ids=row).logits[0].float()
        ours = model.next_logits(base, backbone(network)(input_ids=row).last_hidden_state[0])
    if (ours - theirs).norm() > (1e-3 if model.dtype == torch.float32 else 0.05) * theirs.norm():
        raise RunFailed(
            f"{type(network).__name__} computes its logits in a way that alignkit does not support; please report this"
        )


def _decoded(model: CheckedModel, base: str, rows: Sequence[Tensor]) -> Tensor:
    """Compute the hidden states of each row's last token the way sampling does, [rows, hidden]."""
    starts = [sum(len(row) - 1 for row in rows[:number]) for number in range(len(rows))]
    prefill = TreeLayout([GroupSpan(s, len(row) - 1, ()) for s, row in zip(starts, rows, strict=True)], store_kv=True)
    model.hidden(base, prefill, torch.cat([row[:-1] for row in rows]))
    decoding = Decoding()
    decoding.update_rows([], 1, prefill, range(len(rows)))
    positions = torch.tensor([[len(row) - 1] for row in rows], device=model.device)
    last = torch.stack([row[-1:] for row in rows]).to(model.device)
    with attention.using(decoding), model.using_role(base) as network:
        states: Tensor = backbone(network)(input_ids=last, position_ids=positions, use_cache=False).last_hidden_state
    return states[:, 0]


def _window(config: Any) -> int | None:
    """The longest attention window or chunk of a model's layers, in tokens; None if all layers see everything."""
    kinds = getattr(config, "layer_types", None)
    if kinds and not {"sliding_attention", "chunked_attention"} & set(kinds):
        return None
    return largest(config, "sliding_window") or largest(config, "attention_chunk_size")

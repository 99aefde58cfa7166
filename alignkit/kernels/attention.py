"""Attention over packs: several groups side by side, each prompt computed once for all its
responses.

A model loaded with `attn_implementation="alignkit"` leaves its attention to the current `Layout`.
There is no padding, and a response's tokens see only their prompt and themselves. Transformers
builds no mask for an implementation that it does not know, so this is exact for every model that
uses its attention interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from alignkit.kernels.backends import chosen
from alignkit.kernels.layout import AttentionArgs, GroupSpan, Layout, setting
from alignkit.kernels.plain_attention import GroupAttention

NAME = "alignkit"

_layout: ContextVar[Layout] = ContextVar("alignkit_layout")


def using(layout: Layout) -> AbstractContextManager[None]:
    """Let the forward passes inside compute their attention by `layout`."""
    return setting(_layout, layout)


class UnsupportedAttention(NotImplementedError):
    """A model's attention takes an argument that no `Layout` knows."""


# Beginnings of arguments that transformers passes to every implementation: the layout knows the
# places of tokens, and nothing else than the result is wanted.
_WITHOUT_EFFECT = ("position_ids", "cache_position", "use_cache", "output_")


def _interface(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Raises UnsupportedAttention for an argument that would change the result, such as GPT-OSS's
    sinks (`s_aux`).
    """
    unknown = [
        name
        for name, value in kwargs.items()
        if value is not None and not name.startswith(_WITHOUT_EFFECT)
    ]
    unknown += ["attention_mask"] * (attention_mask is not None) + ["dropout"] * (dropout != 0)
    if unknown:
        raise UnsupportedAttention(f"its attention takes {', '.join(unknown)}")
    args = AttentionArgs(scaling, sliding_window, softcap)
    out = _layout.get().attend(module.layer_idx, query, key, value, args)  # type: ignore[arg-type]
    return out.transpose(1, 2).contiguous(), None  # some models view it with other sizes


AttentionInterface.register(NAME, _interface)


@dataclass
class TreeLayout:
    """Groups in a pack. Groups do not see each other; a response sees its prompt and
    itself.

    store_kv: store each layer's keys and values in `kv`, [heads, tokens, size] each; sampling
    continues from them.
    """

    spans: Sequence[GroupSpan]
    store_kv: bool = False
    kv: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    # Made for the first layer, and shared by all
    _attention: GroupAttention | None = field(default=None, init=False, repr=False)

    @property
    def position_ids(self) -> Tensor:
        """[1, tokens]."""
        return torch.cat([span.positions() for span in self.spans])[None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        """Attention of the pack, [1, heads, tokens, size] -> [1, heads, tokens, size of v]."""
        if self.store_kv:
            self.kv[layer] = (k[0].detach(), v[0].detach())
        if self._attention is None:
            self._attention = chosen(q.device, q.dtype).attention(self.spans)
        return self._attention(q, k, v, args)

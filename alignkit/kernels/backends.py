"""What depends on a processor: attention, linear layers, and the probabilities of the next token.

`Backend` is the reference, in plain torch. Plugins register faster ones as `_backend`, a kind that
no recipe names: each says how well it computes a dtype on a device, and the best is chosen. The kit
in tests/backends holds them to the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.errors import PluginError
from alignkit.host.plugins import Plugins, plugins
from alignkit.kernels.decoding import Decoding
from alignkit.kernels.lm_head import HeadSpec, NextToken, TokenWants, logprobs_and_entropy
from alignkit.kernels.plain_attention import GroupAttention


class LowRank(NamedTuple):
    """The LoRA adapter of a linear layer (Hu et al. 2021), scale B A (equation 3).

    down: A, [rank, inputs]. up: B, [outputs, rank]. Both may be wider than what the layer computes
    in.
    """

    down: Tensor
    up: Tensor
    scale: float

    def term(self, x: Tensor, linear: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """What it adds, scale (x A^T) B^T, [..., outputs] in the dtype of x."""
        return linear(linear(x, self.down.to(x.dtype)), self.scaled_up(x.dtype))

    def scaled_up(self, dtype: torch.dtype) -> Tensor:
        """The factor is in the small matrix, before rounding, and not in [rows, outputs]."""
        return (self.up * self.scale).to(dtype)


class Backend:
    """The reference, for any device and dtype.

    One that cannot do something raises an error, and never leaves it to another.

    label: its name, and the version of a plugin, for records. library: of its products, if it
    chooses among several that round differently, and this is not the usual one. attention: is given
    a pack's spans, and computes the attention of all of its layers. decoding: computes the attention
    of one new token per slot, while responses are sampled.
    """

    label = "reference"
    library = ""
    attention: ClassVar[type[GroupAttention]] = GroupAttention
    decoding: ClassVar[type[Decoding]] = Decoding

    def priority(self, device: torch.device, dtype: torch.dtype) -> int | None:
        """How well it computes this dtype there; None: it cannot.

        The highest is chosen. `dtype: auto` is bf16 where that has a higher one than fp32. It
        follows from names and versions, never from timings: a resumed run must round as before.
        """
        return 0

    def start(self) -> None:
        """Called before a model is loaded."""

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, adapter: LowRank | None = None
    ) -> Tensor:
        """x W^T + b, and what the adapter adds, in the dtype of x.

        x: [..., inputs]. weight: [outputs, inputs], frozen if there is an adapter. bias: [outputs].
        """
        out = F.linear(x, weight, bias)
        return out if adapter is None else out + adapter.term(x, self.linear)

    def prepare(
        self, model: Any, adapter: str | None, slots: int, tokens: int
    ) -> AbstractContextManager[None]:
        """Let `linear` use copies of a role's weights inside, if they are worth it. Raises
        RuntimeError if they are used after a weight has changed.

        model: of transformers, with peft's adapters. adapter: the role's. slots, tokens: as many are
        sampled at most.
        """
        return nullcontext()

    def next_token(
        self, hidden: Tensor, tokens: Tensor, head: HeadSpec, wants: TokenWants
    ) -> NextToken:
        """What is requested of tokens [N], by the states before them.

        hidden: [N, D]. The product has the dtype of the head, the
        rest is float32, or float64 if the head is. Gradients reach the hidden states and the
        parameters of the head that learn.
        """
        return logprobs_and_entropy(hidden, tokens, head, self.linear, wants)


def chosen(device: torch.device, dtype: torch.dtype) -> Backend:
    """What computes a dtype on a device. Raises PluginError if two do it best."""
    return _choose(plugins(), device, dtype)


@lru_cache(maxsize=32)
def _choose(found: Plugins, device: torch.device, dtype: torch.dtype) -> Backend:
    able = [(0, Backend())]
    for one in found.registrations("_backend"):
        made: Backend = one.implementation()
        made.label = f"{one.name} {one.version}"
        if (priority := made.priority(device, dtype)) is not None:
            able.append((priority, made))
    most = max(priority for priority, _ in able)
    best = [made for priority, made in able if priority == most]
    if len(best) > 1:
        names = " and ".join(made.label for made in best)
        raise PluginError(
            f"{names} both compute {dtype} on {device} with priority {most}\n"
            "  disable one with --no-plugin"
        )
    return best[0]


def lora_layers(model: Any) -> list[Any]:
    """The layers with adapters."""
    from peft.tuners.lora import LoraLayer

    return [layer for layer in model.modules() if isinstance(layer, LoraLayer)]

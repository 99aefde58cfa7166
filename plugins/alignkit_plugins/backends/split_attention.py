"""Attention of a group with many responses, which are padded to one length."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from alignkit.kernels.layout import AttentionArgs, GroupSpan
from alignkit.kernels.plain_attention import GroupAttention


class SplitAttention(GroupAttention):
    """The prompt, then its responses, padded, that also see the prompt's keys, where that
    takes clearly fewer products than one mask over the whole group: the mask would compute products
    between responses that do not see each other.
    """

    def __init__(self, spans: Sequence[GroupSpan]):
        super().__init__(spans)
        self._padding = functools.cache(_padding)

    def group(
        self, span: GroupSpan, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs
    ) -> Tensor:
        """See `GroupAttention.group`."""
        if not saves_products(span):
            return super().group(span, q, k, v, args)
        count, longest = len(span.responses), max(span.responses)
        gather, restore = self._padding(span.responses, q.device)

        def padded(x: Tensor) -> Tensor:
            """[1, heads, tokens, size] -> [responses, heads, longest, size]; nothing reads the
            padding.
            """
            return x[0].index_select(1, gather).unflatten(1, (count, longest)).transpose(0, 1)

        lengths = [span.prompt, span.length - span.prompt]
        (q, own_q), (k, own_k), (v, own_v) = (x.split(lengths, dim=2) for x in (q, k, v))
        mask = self.mask(GroupSpan(0, span.prompt, ()), q, args)
        of_prompt = self.masked(q, k, v, mask, args)
        k = torch.cat([k.expand(count, -1, -1, -1), padded(own_k)], dim=2)
        v = torch.cat([v.expand(count, -1, -1, -1), padded(own_v)], dim=2)
        # Padding is on the right, so causal order hides it from every token that is kept.
        mask = self.mask(GroupSpan(0, span.prompt, (longest,)), q, args, first=span.prompt)
        of_responses = self.masked(padded(own_q), k, v, mask, args)
        of_responses = of_responses.transpose(0, 1).flatten(1, 2).index_select(1, restore)
        return torch.cat([of_prompt, of_responses[None]], dim=2)


def saves_products(span: GroupSpan) -> bool:
    """Whether padded responses take less than half of the products of one mask."""
    if len(span.responses) < 2 or min(span.prompt, *span.responses) == 0:
        return False
    longest = max(span.responses)
    # Pairs of tokens: the prompt's own, and each padded response's with the prompt and itself.
    split = span.prompt**2 + len(span.responses) * longest * (span.prompt + longest)
    return 2 * split < span.length**2


def _padding(responses: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices that pad a group's response tokens to [responses x longest], and indices that undo
    it.
    """
    # [responses, longest], true for a token.
    filled = torch.arange(max(responses)) < torch.tensor(responses)[:, None]
    restore = filled.flatten().nonzero()[:, 0]
    # Padding is the first token, as good as any other
    gather = torch.zeros(filled.numel(), dtype=torch.int64)
    gather[restore] = torch.arange(len(restore))
    return gather.to(device), restore.to(device)

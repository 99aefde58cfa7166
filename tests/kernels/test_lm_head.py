"""The language head in chunks: as from whole logits, whether its parameters learn or not, without
ever holding all.
"""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from alignkit.functional.kl import entropy_of
from alignkit.kernels import lm_head
from alignkit.kernels.backends import chosen
from alignkit.kernels.lm_head import HeadSpec, TokenWants
from tests.by_hand import token_logprobs
from tests.same import gradients, same

ROWS, WIDTH, VOCABULARY = 11, 5, 17


def logprobs_and_entropy(
    hidden: Tensor,
    tokens: Tensor,
    head: HeadSpec,
    entropy: Any = False,
    chunk: int = 256,
    **more: Any,
) -> Any:
    with patch.object(lm_head, "CHUNK", chunk):
        backend = chosen(hidden.device, hidden.dtype)
        return backend.next_token(hidden, tokens, head, TokenWants(entropy=entropy, **more))[
            : 2 + len(more)
        ]


either_way = pytest.mark.parametrize("frozen", [True, False])


def inputs(
    frozen: bool = False, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, the head, its bias, and the tokens whose log-probabilities are wanted."""
    generator = torch.Generator().manual_seed(0)
    hidden, head, bias = (
        (2 * torch.randn(*shape, dtype=torch.float64, generator=generator)).to(dtype)
        for shape in ((ROWS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    )
    tokens = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    learns = not frozen
    return hidden.requires_grad_(), head.requires_grad_(learns), bias.requires_grad_(learns), tokens


@either_way
@pytest.mark.parametrize("chunk", [1, 4, ROWS, 128])
@pytest.mark.parametrize(("softcap", "scale", "temperature"), [(None, 1.0, 1.0), (3.0, 0.5, 0.7)])
def test_chunks_equal_whole_logits(
    chunk: int, softcap: float | None, scale: float, temperature: float, frozen: bool
) -> None:
    """Also without gradients, and where a bias of -inf forbids a token."""
    hidden, head, bias, tokens = inputs(frozen)
    with torch.no_grad():
        bias[(tokens[0] + 1) % VOCABULARY] = -math.inf if softcap is None else 0.0
    logits = scale * (hidden @ head.T + bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    wanted = (
        token_logprobs(logits, tokens, temperature),
        entropy_of(torch.log_softmax(logits / temperature, -1)),
    )
    spec = HeadSpec(head, bias, temperature, softcap, scale)
    found = logprobs_and_entropy(hidden, tokens, spec, entropy=True, chunk=chunk)
    ours, theirs = (
        torch.stack([x for x in both if x is not None])[:, 1:] for both in (found, wanted)
    )
    same(ours, theirs, [hidden] if frozen else [hidden, head])
    with torch.no_grad():
        plain, none = logprobs_and_entropy(hidden, tokens, spec, chunk=chunk)
    assert none is None and not plain.requires_grad
    same(plain, wanted[0].detach())


@either_way
@pytest.mark.parametrize("learns", [True, False])
def test_the_likeliest_tokens_are_those_of_the_largest_logits(frozen: bool, learns: bool) -> None:
    """They change neither log-probabilities nor their gradients."""
    hidden, head, bias, tokens = inputs(frozen)
    # Equal columns of a product may differ in the last bit. A state of zeros has the biases as its
    # logits, of which the two largest are equal: the first token is the likeliest one.
    with torch.no_grad():
        hidden[0], bias[-1] = 0.0, bias[:-1].max()
    spec = HeadSpec(head, bias, 0.7)
    best = (hidden @ head.T + bias).argmax(dim=-1)
    tokens[::2] = best[::2]
    tokens[0] = len(bias) - 1
    with torch.set_grad_enabled(learns):
        plain = logprobs_and_entropy(hidden, tokens, spec, entropy=True, chunk=4)
        *found, likeliest = logprobs_and_entropy(hidden, tokens, spec, True, 4, likeliest=True)
    assert likeliest.tolist() == (tokens == best).double().tolist()
    assert tokens[0] != best[0] and not likeliest.requires_grad
    for ours, theirs in zip(found, plain, strict=True):
        same(ours, theirs, [hidden] if learns else [], rtol=0, atol=0)


@either_way
def test_a_reported_entropy_has_no_gradient(frozen: bool) -> None:
    hidden, head, _, tokens = inputs(frozen)
    (logprobs, learned), (others, reported), (_, truthy) = (
        logprobs_and_entropy(hidden, tokens, HeadSpec(head), entropy=entropy, chunk=4)
        for entropy in (True, "reported", 1)
    )
    assert learned is not None and reported is not None and truthy is not None
    same(truthy, learned, [hidden])
    assert gradients(learned, [hidden])[0].any() and not reported.requires_grad
    same(reported, learned.detach())
    same(others, logprobs, [hidden])


@either_way
def test_all_logits_are_never_held(frozen: bool) -> None:
    hidden, head, _, tokens = inputs(frozen)
    given = {x.untyped_storage().data_ptr() for x in (hidden, head, tokens)}
    held = 0

    def record(saved: Tensor) -> Tensor:
        nonlocal held
        held += saved.numel() * (saved.untyped_storage().data_ptr() not in given)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(record, lambda saved: saved):
        logprobs_and_entropy(hidden, tokens, HeadSpec(head), chunk=4, entropy=True)
    assert held <= (2 * hidden.numel() if frozen else 2 * ROWS)


def test_a_likely_tokens_gradient_does_not_cancel_out_in_bf16() -> None:
    sure, weight = (torch.zeros(rows, WIDTH, dtype=torch.bfloat16) for rows in (1, VOCABULARY))
    sure[0, 0], weight[0] = 6.0, 1.0
    sure.requires_grad_()
    found, _ = logprobs_and_entropy(sure, torch.zeros(1, dtype=torch.int64), HeadSpec(weight))
    (own,) = torch.autograd.grad(found.sum(), sure)
    left = 1 - float(found.detach().exp())
    assert 0 < left < 0.1 and float(own[0, 0]) == pytest.approx(left, rel=0.01)


def test_no_rows_have_a_backward() -> None:
    hidden, head, _, tokens = inputs()
    logprobs, _ = logprobs_and_entropy(hidden[:0], tokens[:0], HeadSpec(head))
    logprobs.sum().backward()
    assert logprobs.shape == (0,) and head.grad is not None and not head.grad.any()


def test_half_precision_is_widened_before_the_softmax() -> None:
    hidden, head, _, tokens = inputs(dtype=torch.bfloat16)
    logprobs, _ = logprobs_and_entropy(hidden, tokens, HeadSpec(head))
    logits = torch.nn.functional.linear(hidden, head).float()
    assert logprobs.dtype == torch.float32
    same(logprobs, token_logprobs(logits, tokens), rtol=0, atol=0)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature"):
        HeadSpec(inputs()[1], temperature=0.0)

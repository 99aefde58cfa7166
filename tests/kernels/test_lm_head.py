"""The language head in chunks: as from whole logits, whether its parameters learn or not, without
ever holding all.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from alignkit import functional as F
from alignkit.kernels.lm_head import HeadSpec, logprobs_and_entropy

ROWS, WIDTH, VOCABULARY = 11, 5, 17


def head_inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, head, bias = (
        (2 * torch.randn(*shape, dtype=torch.float64, generator=generator))
        .to(dtype)
        .requires_grad_()
        for shape in ((ROWS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    )
    return hidden, head, bias, torch.randint(VOCABULARY, (ROWS,), generator=generator)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("chunk", [1, 4, ROWS, 128])
@pytest.mark.parametrize(("softcap", "scale", "temperature"), [(None, 1.0, 1.0), (3.0, 0.5, 0.7)])
def test_chunks_equal_whole_logits(
    chunk: int, softcap: float | None, scale: float, temperature: float, frozen: bool
) -> None:
    hidden, head, bias, tokens = head_inputs()
    learned = (hidden,) if frozen else (hidden, head, bias)
    if frozen:
        head, bias = head.detach(), bias.detach()
    logits = scale * (hidden @ head.T + bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = F.token_logprobs(logits, tokens, temperature), F.token_entropy(logits, temperature)
    spec = HeadSpec(head, bias, temperature, softcap, scale)
    found = logprobs_and_entropy(hidden, tokens, spec, entropy=True, chunk=chunk)
    weights = torch.linspace(-1, 1, ROWS, dtype=torch.float64)
    gradients = []
    for logprobs, entropy in (expected, found):
        assert entropy is not None
        gradients.append(
            torch.autograd.grad((weights * (logprobs + 0.3 * entropy**2)).sum(), learned)
        )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("learns", [True, False])
def test_the_likeliest_tokens_are_those_of_the_largest_logits(frozen: bool, learns: bool) -> None:
    """They change neither log-probabilities nor their gradients."""
    hidden, head, bias, tokens = head_inputs()
    spec = HeadSpec(head.detach(), bias.detach(), 0.7) if frozen else HeadSpec(head, bias, 0.7)
    best = (hidden @ head.T + bias).argmax(dim=-1)
    tokens[::2] = best[::2]
    # The largest logit of the last row, twice: the first token is the likeliest one
    with torch.no_grad():
        head[-1], bias[-1] = head[best[0]], bias[best[0]]
        tokens[0] = len(bias) - 1
    with torch.set_grad_enabled(learns):
        logprobs, likeliest = logprobs_and_entropy(
            hidden, tokens, spec, entropy="likeliest", chunk=4
        )
        plain, _ = logprobs_and_entropy(hidden, tokens, spec, chunk=4)
    assert likeliest is not None and likeliest.tolist() == (tokens == best).double().tolist()
    assert tokens[0] != best[0]
    assert torch.equal(logprobs, plain)
    if learns:
        gradients = [
            torch.autograd.grad(found.sum(), hidden, retain_graph=True)[0]
            for found in (logprobs, plain)
        ]
        assert torch.equal(*gradients)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_reported_entropy_has_no_gradient(frozen: bool) -> None:
    hidden, head, _, tokens = head_inputs()
    weight = head.detach() if frozen else head
    learned, reported, truthy = (
        logprobs_and_entropy(hidden, tokens, HeadSpec(weight), entropy=entropy, chunk=4)  # type: ignore[arg-type]
        for entropy in (True, "reported", 1)
    )
    bonuses = [
        torch.autograd.grad(entropy.sum(), hidden, retain_graph=True)[0]
        for _, entropy in (learned, truthy)
    ]  # type: ignore[union-attr]
    torch.testing.assert_close(bonuses[0], bonuses[1])
    assert bonuses[0].any()
    for found, wanted in zip(reported, learned, strict=True):
        assert found is not None
        torch.testing.assert_close(found, wanted)
    assert reported[0].requires_grad
    assert reported[1] is not None
    assert not reported[1].requires_grad
    gradients = [
        torch.autograd.grad(logprobs.square().sum(), hidden)[0]
        for logprobs, _ in (learned, reported)
    ]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_frozen_head_and_no_grad() -> None:
    hidden, head, _, tokens = head_inputs()
    logprobs, entropy = logprobs_and_entropy(hidden, tokens, HeadSpec(head.detach()), chunk=4)
    assert entropy is None
    assert torch.autograd.grad(logprobs.sum(), hidden)[0].abs().sum() > 0
    trained, _ = logprobs_and_entropy(hidden.detach(), tokens, HeadSpec(head), chunk=4)
    assert torch.autograd.grad(trained.sum(), head)[0].abs().sum() > 0
    with torch.no_grad():
        plain, _ = logprobs_and_entropy(hidden, tokens, HeadSpec(head), chunk=4)
    assert not plain.requires_grad
    torch.testing.assert_close(plain, logprobs.detach())


@pytest.mark.parametrize("frozen", [True, False])
def test_all_logits_are_never_held(frozen: bool) -> None:
    hidden, head, _, tokens = head_inputs()
    if frozen:
        head = head.detach()
    given = {x.untyped_storage().data_ptr() for x in (hidden, head, tokens)}
    held = 0

    def record(saved: Tensor) -> Tensor:
        nonlocal held
        held += saved.numel() * (saved.untyped_storage().data_ptr() not in given)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(record, lambda saved: saved):
        logprobs_and_entropy(hidden, tokens, HeadSpec(head), chunk=4, entropy=True)
    assert held <= (2 * hidden.numel() if frozen else 2 * ROWS)


def test_a_frozen_head_forbids_tokens_and_keeps_its_precision() -> None:
    """A bias of -inf forbids a token; a likely token's gradient does not cancel out in bfloat16."""
    hidden, head, bias, tokens = (x.detach() for x in head_inputs())
    bias[(tokens[0] + 1) % VOCABULARY] = -math.inf
    hidden = hidden.requires_grad_()
    logprobs, entropy = logprobs_and_entropy(hidden, tokens, HeadSpec(head, bias), entropy=True)
    assert entropy is not None
    expected = (
        F.token_logprobs(hidden @ head.T + bias, tokens),
        F.token_entropy(hidden @ head.T + bias),
    )
    weights = torch.linspace(-1, 1, ROWS, dtype=torch.float64)
    for found, other in zip((logprobs, entropy), expected, strict=True):
        torch.testing.assert_close(found[1:], other[1:])
        (own,) = torch.autograd.grad((weights * found)[1:].sum(), hidden, retain_graph=True)
        torch.testing.assert_close(
            own, torch.autograd.grad((weights * other)[1:].sum(), hidden, retain_graph=True)[0]
        )
    sure = torch.zeros(1, WIDTH, dtype=torch.bfloat16)
    sure[0, 0] = 6.0
    sure.requires_grad_()
    weight = torch.zeros(VOCABULARY, WIDTH, dtype=torch.bfloat16)
    weight[0] = 1.0
    found, _ = logprobs_and_entropy(sure, torch.zeros(1, dtype=torch.int64), HeadSpec(weight))
    (own,) = torch.autograd.grad(found.sum(), sure)
    left = 1 - float(found.detach().exp())
    assert 0 < left < 0.1 and float(own[0, 0]) == pytest.approx(left, rel=0.01)


def test_no_rows_have_a_backward() -> None:
    hidden, head, _, tokens = head_inputs()
    logprobs, _ = logprobs_and_entropy(hidden[:0], tokens[:0], HeadSpec(head))
    assert logprobs.shape == (0,)
    logprobs.sum().backward()
    assert head.grad is not None and not head.grad.any()


def test_half_precision_is_widened_before_the_softmax() -> None:
    hidden, head, _, tokens = head_inputs(torch.bfloat16)
    logprobs, _ = logprobs_and_entropy(hidden, tokens, HeadSpec(head))
    logits = torch.nn.functional.linear(hidden, head)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, F.token_logprobs(logits.float(), tokens), rtol=0, atol=0)


def test_a_temperature_of_zero_is_refused() -> None:
    _, head, _, _ = head_inputs()
    with pytest.raises(ValueError, match="temperature"):
        HeadSpec(head, temperature=0.0)

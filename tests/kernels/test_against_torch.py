"""A whole step by the kernels is that of torch's own operators up to rounding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit import functional as F
from alignkit.io.text import cache_folder
from alignkit.kernels import capabilities, lm_head, lora, matmul, tiled_attention
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import GroupSpan
from alignkit.models import adapters
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.settings import LoraSpec, ModelSpec
from alignkit.testing.tiny import add_noise
from alignkit_plugins.models import tiny

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)
SPANS = [GroupSpan(0, 12, (9, 14)), GroupSpan(35, 7, (11, 5))]  # two pairs
RESPONSES = torch.cat([torch.arange(12, 35), torch.arange(42, 58)])
IDS = torch.arange(3, 61)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets torch's public operators compute everything."""

    def adapted(
        x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        return torch.nn.functional.linear(x, weight, bias) + lora.low_rank(x, down, up, scale)

    def switch() -> None:
        monkeypatch.setattr(capabilities, "uses_onednn", lambda: False)
        monkeypatch.setattr(tiled_attention, "supported", lambda x: False)
        monkeypatch.setattr(lm_head.HeadSpec, "learns", True)
        monkeypatch.setattr(adapters, "adapted", adapted)

    return switch


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls of each kernel, all of which are worth using on this small model and processor."""
    counts: Counter[str] = Counter()

    def spy(name: str, owner: Any, attribute: str) -> None:
        original = getattr(owner, attribute)

        def counted(*args: Any, **options: Any) -> Any:
            counts[name] += 1
            return original(*args, **options)

        monkeypatch.setattr(owner, attribute, counted)

    monkeypatch.setattr(capabilities, "is_amd", lambda: True)
    monkeypatch.setattr(matmul, "MIN_MULTIPLICATIONS", 1)
    monkeypatch.setattr(tiled_attention, "QUERIES", 4)
    monkeypatch.setattr(tiled_attention, "SETUP", 0)
    monkeypatch.setattr(GroupSpan, "split_responses", property(lambda span: False))
    spy("products", torch.ops.mkldnn, "_linear_pointwise")
    spy("tiles", tiled_attention, "attention")
    spy("lora", lora._Adapted, "apply")
    spy("head", lm_head._FrozenHead, "apply")
    return counts


@pytest.fixture(scope="module")
def model() -> SharedModel:
    source, adapter = str(tiny.source(cache_folder())), LoraSpec(r=2, lora_alpha=6)
    made = SharedModel(ModelSpec(base=source, dtype="float32", lora=adapter, device="cpu"), source)
    made.add_role("policy")
    made.add_role("value", head="scalar")
    for role in ("policy", "value"):
        made.make_trainable(role)
        add_noise(made, role, 0.1, seed=len(role))
    return made


def hidden(model: SharedModel, role: str) -> Tensor:
    """Before each of the responses' tokens, [tokens, width]."""
    return model.hidden(role, TreeLayout(SPANS), IDS)[RESPONSES - 1]


def logprobs(model: SharedModel, role: str, **options: Any) -> tuple[Tensor, Tensor | None]:
    return model.logprobs(role, hidden(model, role), IDS[RESPONSES], **options)


def ppo(model: SharedModel) -> Tensor:
    with torch.no_grad():
        old, _ = logprobs(model, BASE)
    new, entropy = logprobs(model, "policy", entropy=True)
    assert entropy is not None
    values = model.scalars("value", hidden(model, "value"))
    advantages = torch.linspace(-1, 1, len(new))
    policy = F.ppo_policy_loss(new, old, advantages, 0.2, 0.2).mean()
    return policy - 0.01 * entropy.mean() + 0.1 * (values - advantages).square().mean()


def step(model: SharedModel) -> list[Tensor]:
    """The loss of PPO and all gradients."""
    parameters = [p for role in ("policy", "value") for p in model.parameters_of(role).values()]
    result = ppo(model)
    gradients = torch.autograd.grad(result, parameters, allow_unused=True, materialize_grads=True)
    return [result.detach(), *gradients]


def test_a_step_agrees(model: SharedModel, used: Counter[str], plain: Callable[[], None]) -> None:
    fast = step(model)
    assert set(used) == {"products", "tiles", "lora", "head"}
    used.clear()
    plain()
    expected = step(model)
    assert not used and any(gradient.any() for gradient in expected[1:])
    # float32 has 1e-7, and sums over tokens and layers amplify it.
    torch.testing.assert_close(fast, expected, rtol=1e-4, atol=1e-5)

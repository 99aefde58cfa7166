"""`ALIGNKIT_KERNELS`: with `torch` no kernel runs, and results are those of the kernels up to rounding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit import Group, kernels
from alignkit import functional as F
from alignkit.data.group import Message
from alignkit.errors import RecipeError
from alignkit.io.digest import digest
from alignkit.kernels import capabilities, lm_head, lora, matmul, memory, tiled_attention
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import AttentionArgs, GroupSpan
from alignkit.kernels.lora import MIN_TOKENS
from alignkit.models.generate import Sampling, sample
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.recipe.load import load_recipe
from alignkit.runs.fingerprint import stage_parts
from alignkit.settings import LoraSpec, ModelSpec
from alignkit.tokens.encoder import Encoder

CPU = torch.device("cpu")
# Relative and absolute; float32 has 1e-7, and sums over tokens and layers amplify it.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
SPANS = [GroupSpan(0, 12, (9, 14)), GroupSpan(35, 7, (11, 5))]  # two pairs
RESPONSES = torch.cat([torch.arange(12, 35), torch.arange(42, 58)])
OWNER = torch.repeat_interleave(torch.arange(4), torch.tensor([9, 14, 11, 5]))
IDS = torch.arange(3, 61)


@pytest.fixture(autouse=True)
def _reread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    kernels.mode.cache_clear()
    yield
    kernels.mode.cache_clear()


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def to(mode: str) -> None:
        monkeypatch.setenv(kernels.VARIABLE, mode)
        kernels.mode.cache_clear()

    return to


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
    monkeypatch.setattr(tiled_attention, "cost_model", lambda x: tiled_attention.ALWAYS_TILE)
    monkeypatch.setattr(GroupSpan, "split_responses", property(lambda span: False))
    spy("products", capabilities, "onednn_linear")
    spy("tiles", tiled_attention, "attention")
    spy("lora", lora._Adapted, "apply")
    spy("head", lm_head._FrozenHead, "apply")
    spy("packing", capabilities, "onednn_pack")
    return counts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SharedModel:
    import alignkit_plugins.models.tiny

    source = str(alignkit_plugins.models.tiny.source(tmp_path_factory.mktemp("tiny")))
    spec = ModelSpec(base=source, dtype="float32", lora=LoraSpec(r=2, lora_alpha=6), device="cpu")
    model = SharedModel(spec, source)
    generator = torch.Generator().manual_seed(0)
    model.add_role("policy")
    model.add_role("value", head="scalar")
    for role in ("policy", "value"):
        for parameter in model.make_trainable(role).values():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def logprobs(model: SharedModel, role: str, *, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
    """Of the responses' tokens, [tokens]."""
    hidden = model.hidden(role, TreeLayout(SPANS), IDS)
    return model.logprobs(role, hidden[RESPONSES - 1], IDS[RESPONSES], entropy=entropy)


def sft(model: SharedModel) -> Tensor:
    return -logprobs(model, "policy")[0].mean()


def dpo(model: SharedModel) -> Tensor:
    with torch.no_grad():
        reference, _ = logprobs(model, BASE)
    ratios = torch.zeros(4).index_add(0, OWNER, logprobs(model, "policy")[0] - reference)
    return -torch.nn.functional.logsigmoid(0.1 * (ratios[0::2] - ratios[1::2])).mean()


def ppo(model: SharedModel) -> Tensor:
    with torch.no_grad():
        old, _ = logprobs(model, BASE)
    new, entropy = logprobs(model, "policy", entropy=True)
    assert entropy is not None
    values = model.scalars("value", model.hidden("value", TreeLayout(SPANS), IDS)[RESPONSES - 1])
    advantages = torch.linspace(-1, 1, len(new))
    policy = F.ppo_policy_loss(new, old, advantages, 0.2, 0.2).mean()
    return policy - 0.01 * entropy.mean() + 0.1 * (values - advantages).square().mean()


def step(model: SharedModel, loss: Callable[[SharedModel], Tensor]) -> list[Tensor]:
    """The loss and all gradients."""
    parameters = [p for role in ("policy", "value") for p in model.parameters_of(role).values()]
    result = loss(model)
    gradients = torch.autograd.grad(result, parameters, allow_unused=True, materialize_grads=True)
    return [result.detach(), *gradients]


@pytest.mark.skipif(not capabilities.has_onednn(), reason="torch was built without oneDNN")
@pytest.mark.parametrize("loss", [sft, dpo, ppo])
def test_steps_agree(
    loss: Callable[[SharedModel], Tensor], model: SharedModel, used: Counter[str], switch: Callable[[str], None]
) -> None:
    fast = step(model, loss)
    assert set(used) == {"products", "tiles", "lora", "head"}
    used.clear()
    switch("torch")
    plain = step(model, loss)
    assert not used
    assert any(gradient.any() for gradient in plain[1:])
    for ours, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours, theirs, **ROUNDING)


@pytest.mark.skipif(not capabilities.has_onednn(), reason="torch was built without oneDNN")
def test_samples_agree(model: SharedModel, used: Counter[str], switch: Callable[[str], None]) -> None:
    group = Group((Message(role="user", content="Say something."),), ())

    def samples() -> Any:
        sampling = Sampling(3, MIN_TOKENS, min_new_tokens=MIN_TOKENS)
        (found,) = sample(model, "policy", Encoder(model.tokenizer), [group], sampling, seed=1)
        return [response.tokens for response in found.responses]

    fast = samples()
    assert {"products", "packing"} <= set(used)
    used.clear()
    switch("torch")
    assert samples() == fast
    assert not used


def test_capped_scores_and_the_allocator_are_plain_too(
    used: Counter[str], switch: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    switch("torch")
    calls: list[tuple[int, ...]] = []
    monkeypatch.setattr(capabilities, "glibc", lambda name: lambda *args: calls.append(args))
    memory.retain_freed_memory()
    assert not memory.trim() and not calls
    q = torch.randn(1, 2, 58, 4)
    TreeLayout(SPANS).attend(0, q, q, q, AttentionArgs(None, None, 3.0))
    assert not used
    switch("fast")
    memory.retain_freed_memory()
    assert memory.trim() and len(calls) == 3


def test_stage_hashes_differ(tmp_path: Path, switch: Callable[[str], None]) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "how are you", "completion": "well"}\n')
    (tmp_path / "r.yaml").write_text("model: {base: tiny}\nstages:\n  sft: {algorithm: sft, data: d.jsonl}\n")
    recipe = load_recipe(tmp_path / "r.yaml", ())
    hashes = []
    for mode in ("fast", "torch"):
        switch(mode)
        hashes.append(digest(stage_parts(recipe.stages["sft"], recipe, "base", {})))
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize(("value", "mode"), [(None, "fast"), ("", "fast"), ("fast", "fast"), ("torch", "torch")])
def test_values(value: str | None, mode: str, switch: Callable[[str], None]) -> None:
    if value is not None:
        switch(value)
    assert kernels.mode() == mode


def test_an_unknown_value_is_an_error_that_names_the_known_ones(switch: Callable[[str], None]) -> None:
    switch("slow")
    with pytest.raises(RecipeError, match="ALIGNKIT_KERNELS is 'slow'; it must be 'fast' or 'torch'"):
        kernels.mode()

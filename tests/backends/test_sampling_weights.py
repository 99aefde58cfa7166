"""Sampling with packed weights: the same samples, from weights that nothing else sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from alignkit.contract.settings import LoraSpec, Sampling
from alignkit.data.group import responses_of
from alignkit.kernels import memory
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.backends import lora_layers
from alignkit.kernels.layout import GroupSpan, setting
from alignkit.models.shared_model import UNMODIFIED, SharedModel
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.backends import cpu, gpu, processor, products
from alignkit_plugins.backends.cpu import Cpu
from alignkit_plugins.backends.fast import MIN_TOKENS
from alignkit_plugins.backends.gpu import Gpu
from alignkit_plugins.backends.prepared import PREPARED, PreparedWeight, prepared_for
from alignkit_plugins.backends.products import PackedWeight
from tests.models.tiny import shared
from tests.rows import prompts
from tests.same import same
from tests.sampled import assert_same_tokens, sample

pytestmark = [
    pytest.mark.skipif(
        not processor.can_pack_weights(), reason="this build of torch cannot pack weights"
    ),
    pytest.mark.cpu_only("weights are packed on CPUs"),
]
LONG = Sampling(max_new_tokens=MIN_TOKENS, min_new_tokens=MIN_TOKENS)
SHORT = Sampling(max_new_tokens=MIN_TOKENS - 1)
QUESTIONS = prompts(["Say something.", "What is it?", "Name a colour, please."])


@pytest.fixture(params=["MKL", "oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed weights of this library, whichever the processor's is."""
    monkeypatch.setattr(processor, "uses_onednn", lambda: request.param == "oneDNN")
    if not processor.can_pack_weights():
        pytest.skip(f"torch was built without {request.param}")


def rows_of(kind: type[PreparedWeight], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every product by such a weight, from now on."""
    rows: list[int] = []
    original = kind.__call__

    def spy(self: PreparedWeight, x: torch.Tensor) -> torch.Tensor:
        rows.append(x.numel() // x.shape[-1])
        return original(self, x)

    monkeypatch.setattr(kind, "__call__", spy)
    return rows


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return rows_of(PackedWeight, monkeypatch)


def change(policy: SharedModel, role: str) -> None:
    """Give the role's adapter a large effect."""
    generator = torch.Generator().manual_seed(len(role))
    for parameter in policy.parameters_of(role).values():
        parameter.data.normal_(0, 0.2, generator=generator)


def loaded() -> SharedModel:
    made = shared(lora=LoraSpec(r=2, lora_alpha=6))
    for role in ("one", "other"):
        made.add_role(role)
    return made


@pytest.fixture(scope="module", params=["biased", "without biases"])
def policy(request: pytest.FixtureRequest) -> SharedModel:
    made = loaded()
    change(made, "one")
    change(made, "other")
    if request.param == "biased":
        layers = [layer.base_layer for layer in lora_layers(made.model)]
        for layer in (*layers, made.model.get_output_embeddings()):
            bias = torch.linspace(-0.5, 0.5, len(layer.weight))
            layer.bias = torch.nn.Parameter(bias, requires_grad=False)
    return made


def written(policy: SharedModel, role: str, sampling: Sampling = LONG) -> list[Any]:
    """Two responses to each of three questions."""
    encoder = Encoder(policy.tokenizer)
    found = sample(policy, role, encoder, QUESTIONS, sampling, samples_per_prompt=2, seed=4)
    return responses_of(found)


def check_same(found: list[Any], wanted: list[Any]) -> None:
    starts = assert_same_tokens(found, wanted)
    for mine, theirs, start in zip(found, wanted, starts, strict=True):
        assert mine.logprobs[:start] == pytest.approx(theirs.logprobs[:start], abs=1e-4)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(4,), (1,), (1, 3), (2, 2)])
def test_a_packed_weight_is_a_copy_with_torchs_product(
    shape: tuple[int, ...], biased: bool
) -> None:
    x, weight = torch.randn(*shape, 5), torch.randn(6, 5)
    bias = torch.randn(6) if biased else None
    packed, wanted = PackedWeight(weight, bias, 4), F.linear(x, weight, bias)
    weight.zero_()
    same(packed(x), wanted)


@torch.no_grad()
def test_which_products_a_packed_weight_replaces() -> None:
    weight, x, rows = torch.randn(6, 5), torch.randn(3, 5), 2 * products.MAX_PADDING
    packed = {id(weight): PackedWeight(2 * weight, None, rows)}
    with setting(PREPARED, packed):
        assert prepared_for(weight, x, None) is packed[id(weight)]
        same(Cpu().linear(x, weight), 2 * F.linear(x, weight))
        assert prepared_for(weight.clone(), x, None) is None
        assert prepared_for(weight, x, torch.zeros(6)) is None  # it adds no bias
        with torch.enable_grad():
            assert prepared_for(weight, x, None) is None
        # Not for more rows, and not when nearly all have left
        counts = (0, 1, 2, 3, rows, rows + 1)
        used = [prepared_for(weight, torch.zeros(n, 5), None) is not None for n in counts]
    assert used == [False, False, True, True, True, False]
    assert prepared_for(weight, x, None) is None


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("role", ["one", "other", UNMODIFIED])
def test_samples_are_those_of_the_role(
    role: str, policy: SharedModel, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = written(policy, role)
    # The first token follows from the prompts' many rows, of which only the head gets 6.
    layers = len(lora_layers(policy.model))
    assert calls == [6] * ((layers + 1) * (LONG.max_new_tokens - 1) + 1)
    calls.clear()
    monkeypatch.setattr(cpu, "MAX_SLOTS", 0)
    check_same(found, written(policy, role))
    others = {"one", "other", UNMODIFIED} - {role}
    assert found[0].tokens not in [written(policy, other)[0].tokens for other in others]
    assert not calls


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("entered", ["one", UNMODIFIED])
@torch.no_grad()
def test_inside_another_role_is_itself(entered: str, policy: SharedModel, calls: list[int]) -> None:
    row, ids = TreeLayout([GroupSpan(0, 3, ())]), torch.tensor([5, 6, 7])
    apart = {role: policy.hidden(role, row, ids) for role in ("one", "other", UNMODIFIED)}
    packed = policy.roles[entered]
    with Cpu().prepare(packed.model, packed.adapter, 6, MIN_TOKENS):
        for role, wanted in apart.items():
            same(policy.hidden(role, row, ids), wanted)
    assert calls


@torch.no_grad()
def test_copies_are_refused_once_the_adapter_has_moved(policy: SharedModel) -> None:
    role, row = policy.roles["one"], TreeLayout([GroupSpan(0, 3, ())])
    with Cpu().prepare(role.model, role.adapter, 3, MIN_TOKENS):
        policy.hidden("one", row, torch.arange(3))
        next(iter(policy.parameters_of("one").values())).mul_(1)
        with pytest.raises(RuntimeError, match="was changed while its copy was in use"):
            policy.hidden("one", row, torch.arange(3))


def test_updates_show_in_the_next_samples() -> None:
    policy = loaded()
    before = written(policy, "one")
    change(policy, "one")
    assert written(policy, "one")[0].tokens != before[0].tokens


def test_packed_weights_end_with_sampling_even_if_it_fails(
    policy: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(policy, "should_stop", stop)
    with pytest.raises(KeyboardInterrupt):
        written(policy, "one")
    assert PREPARED.get({}) == {}


@pytest.mark.parametrize("why", ["few tokens", "many rows", "little memory", "another torch"])
def test_weights_are_packed_only_if_that_helps(
    why: str, policy: SharedModel, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "many rows":
        monkeypatch.setattr(cpu, "MAX_SLOTS", 5)
    elif why == "little memory":
        size = sum(parameter.nbytes for parameter in policy.model.parameters())
        monkeypatch.setattr(memory, "total", lambda device: (size - 1) / cpu.MEMORY_SHARE)
    elif why == "another torch":
        monkeypatch.setattr(processor, "can_pack_weights", lambda: False)
    written(policy, "one", SHORT if why == "few tokens" else LONG)
    assert not calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_fp32(dtype: torch.dtype) -> None:
    class Model(torch.nn.Linear):
        def get_output_embeddings(self) -> torch.nn.Linear:
            return self

    assert Cpu().prepares(Model(3, 4, dtype=dtype), None, 4) is (dtype == torch.float32)


def test_sampling_works_without_memory_for_packed_weights(
    policy: SharedModel, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(message: str) -> None:
        def pack(*of: Any) -> None:
            raise RuntimeError(message)

        monkeypatch.setattr(Cpu, "copies", pack)

    fails("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
    assert written(policy, "one") and not calls
    fails("another fault")
    with pytest.raises(RuntimeError, match="another fault"):
        written(policy, "one")


def test_quantized_layers_keep_their_own_products(
    policy: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their weights are no plain matrices. As theirs, this stand-in is a subclass of the linear
    layer.
    """

    class Quantized(torch.nn.Linear):
        pass

    for layer in lora_layers(policy.model)[1:]:
        monkeypatch.setattr(layer.base_layer, "__class__", Quantized)
    role = policy.roles["one"]
    assert len(Cpu().copies(role.model, role.adapter, 4)) == 2  # the head and the remaining layer


# On a GPU, weights are merged, not packed


def test_merged_weights_write_the_same_samples(
    policy: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = rows_of(PreparedWeight, monkeypatch)
    for name in ("decoding", "prepares", "copy"):
        monkeypatch.setattr(Cpu, name, getattr(Gpu, name))
    ours = written(policy, "one")
    assert 6 in merged
    merged.clear()
    monkeypatch.setattr(gpu, "FREE_SHARE", 0.0)
    check_same(ours, written(policy, "one"))
    assert not merged


def test_half_precision_is_merged_in_full(policy: SharedModel) -> None:
    """Rounded once, as the sum of the weight and the adapter's product."""
    layer, adapter = lora_layers(policy.model)[0], policy.roles["one"].adapter
    weight, up, down = (
        layer.base_layer.weight,
        *(factor[adapter].weight for factor in (layer.lora_B, layer.lora_A)),
    )
    before = weight.data
    try:
        weight.data = before.bfloat16()
        merged = Gpu().copies(policy.model, adapter, 1)[id(up)]
        exact = weight.double() + layer.scaling[adapter] * (up.double() @ down.double())
        assert merged.weight.dtype == torch.bfloat16
        same(merged.weight.double(), exact, rtol=2**-8, atol=0)
    finally:
        weight.data = before


@pytest.mark.parametrize(("free", "merges"), [(2.0**40, True), (9.0, False)])
def test_weights_are_merged_where_copies_have_room(
    policy: SharedModel, free: float, merges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda device: free)
    assert Gpu().prepares(policy.model, policy.roles["one"].adapter, 1) is merges
    assert not Gpu().prepares(policy.model, None, 1)

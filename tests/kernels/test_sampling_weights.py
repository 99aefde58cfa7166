"""Sampling with packed weights: the same samples, from weights that nothing else sees."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from alignkit import Group
from alignkit.data.group import Message
from alignkit.kernels import capabilities, lora, matmul, memory
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import GroupSpan, setting
from alignkit.kernels.matmul import PACKED, PackedWeight, packed_weight_for
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.sampling import Sampling
from alignkit.settings import LoraSpec, ModelSpec
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.gpu import sampling as gpu
from tests.sampled import sample

pytestmark = [
    pytest.mark.skipif(
        not capabilities.can_pack_weights(), reason="this build of torch cannot pack weights"
    ),
    pytest.mark.cpu_only("weights are packed on CPUs"),
]
LONG = Sampling(max_new_tokens=lora.MIN_TOKENS, min_new_tokens=lora.MIN_TOKENS)
LIBRARIES = {"MKL": False, "oneDNN": True}


@pytest.fixture(params=list(LIBRARIES))
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Packed weights of this library, whichever the processor's is."""
    monkeypatch.setattr(capabilities, "uses_onednn", lambda: LIBRARIES[request.param])
    if not capabilities.can_pack_weights():
        pytest.skip(f"torch was built without {request.param}")
    yield request.param


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every product by a packed weight."""
    rows: list[int] = []
    original = PackedWeight.__call__

    def spy(self: PackedWeight, x: torch.Tensor) -> torch.Tensor:
        rows.append(x.numel() // x.shape[-1])
        return original(self, x)

    monkeypatch.setattr(PackedWeight, "__call__", spy)
    return rows


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import alignkit_plugins.models.tiny

    return Path(alignkit_plugins.models.tiny.source(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module", params=["biased", "without biases"])
def policy(tiny: Path, request: pytest.FixtureRequest) -> SharedModel:
    """Its roles `one` and `other` have adapters with large effects."""
    spec = ModelSpec(
        base=str(tiny), dtype="float32", lora=LoraSpec(r=2, lora_alpha=6), device="cpu"
    )
    made = SharedModel(spec, str(tiny))
    generator = torch.Generator().manual_seed(0)
    for name in ("one", "other"):
        made.add_role(name)
        for parameter in made.parameters_of(name).values():
            parameter.data.normal_(0, 0.2, generator=generator)
    if request.param == "biased":
        for layer in (
            *(layer.base_layer for layer in lora_layers(made)),
            made.model.get_output_embeddings(),
        ):
            bias = torch.randn(len(layer.weight), generator=generator)
            layer.bias = torch.nn.Parameter(0.3 * bias, requires_grad=False)
    return made


def questions(count: int) -> list[Group]:
    texts = ["Say something.", "What is it?", "Name a colour, please.", "Go on."]
    return [Group((Message(role="user", content=texts[n % 4]),), ()) for n in range(count)]


def written(policy: SharedModel, role: str, sampling: Sampling = LONG) -> list[tuple[Any, Any]]:
    found = sample(
        policy,
        role,
        Encoder(policy.tokenizer),
        questions(3),
        sampling,
        samples_per_prompt=2,
        seed=4,
    )
    return [(r.tokens, r.logprobs) for group in found for r in group.responses]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(4,), (1,), (1, 3), (2, 2)])
def test_a_product_by_a_packed_weight(shape: tuple[int, ...], biased: bool, library: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(size, generator=generator) for size in ((*shape, 5), (6, 5), (6,))
    )
    product = PackedWeight(weight, bias if biased else None, 4)(x)
    torch.testing.assert_close(product, F.linear(x, weight, bias if biased else None))


def test_a_packed_weight_is_a_copy(library: str) -> None:
    weight, x = torch.randn(6, 5), torch.randn(3, 5)
    packed, wanted = PackedWeight(weight, None, 3), F.linear(x, weight)
    weight.zero_()
    torch.testing.assert_close(packed(x), wanted)


@torch.no_grad()
def test_which_products_a_packed_weight_replaces() -> None:
    weight, x = torch.randn(6, 5), torch.randn(3, 5)
    packed = {id(weight): PackedWeight(2 * weight, None, 3)}
    with setting(PACKED, packed):
        assert packed_weight_for(weight, x, None) is packed[id(weight)]
        torch.testing.assert_close(matmul.linear(x, weight), 2 * F.linear(x, weight))
        assert packed_weight_for(weight.clone(), x, None) is None
        assert packed_weight_for(weight, torch.randn(2, 2, 5), None) is None  # more rows
        assert packed_weight_for(weight, x[:0], None) is None
        assert packed_weight_for(weight, x, torch.zeros(6)) is None  # it adds no bias
        with torch.enable_grad():
            assert packed_weight_for(weight, x, None) is None
    assert packed_weight_for(weight, x, None) is None


@torch.no_grad()
def test_no_packed_weight_when_nearly_all_rows_have_left() -> None:
    weight = torch.randn(6, 5)
    rows = 2 * matmul.MAX_PADDING
    with setting(PACKED, {id(weight): PackedWeight(weight, None, rows)}):
        counts = (1, 2, 3, rows, rows + 1)
        used = [
            packed_weight_for(weight, torch.zeros(count, 5), None) is not None for count in counts
        ]
    assert used == [False, True, True, True, False]


@pytest.mark.parametrize("role", ["one", "other", BASE])
def test_samples_are_those_of_the_role(
    role: str, policy: SharedModel, library: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = written(policy, role)
    layers = sum(1 for _ in lora_layers(policy))
    # The first token follows from the prompts' many rows, of which only the head gets 6.
    products_made = (layers + 1) * (LONG.max_new_tokens - 1) + 1
    assert len(calls) == products_made
    assert set(calls) == {6}
    monkeypatch.setattr(lora, "MAX_ROWS", 0)
    wanted = written(policy, role)
    assert len(calls) == products_made
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in wanted]
    for (_, mine), (_, theirs) in zip(found, wanted, strict=True):
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs), atol=1e-5, rtol=1e-5)


def lora_layers(policy: SharedModel) -> Iterator[Any]:
    from peft.tuners.lora import LoraLayer

    return (module for module in policy.model.modules() if isinstance(module, LoraLayer))


def test_the_roles_differ(policy: SharedModel) -> None:
    """Otherwise the test above would not show which adapter is merged."""
    assert (
        len(
            {
                tuple(tokens for tokens, _ in written(policy, role))
                for role in ("one", "other", BASE)
            }
        )
        == 3
    )


@pytest.mark.parametrize("entered", ["one", BASE])
@torch.no_grad()
def test_inside_another_role_is_itself(
    entered: str, policy: SharedModel, library: str, calls: list[int]
) -> None:
    row, ids = TreeLayout([GroupSpan(0, 3, ())]), torch.tensor([5, 6, 7])
    apart = {role: policy.hidden(role, row, ids) for role in ("one", "other", BASE)}
    packed = policy.roles[entered]
    with lora.prepacked_weights(packed.model, packed.adapter, 6, lora.MIN_TOKENS):
        for role, wanted in apart.items():
            torch.testing.assert_close(policy.hidden(role, row, ids), wanted)
    assert calls


def test_updates_show_in_the_next_samples(tiny: Path) -> None:
    spec = ModelSpec(
        base=str(tiny), dtype="float32", lora=LoraSpec(r=2, lora_alpha=6), device="cpu"
    )
    policy = SharedModel(spec, str(tiny))
    policy.add_role("one")
    before = written(policy, "one")
    for parameter in policy.parameters_of("one").values():
        parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    assert written(policy, "one") != before


def test_packed_weights_end_with_sampling_even_if_it_fails(
    policy: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(policy, "should_stop", stop)
    with pytest.raises(KeyboardInterrupt):
        written(policy, "one")
    assert PACKED.get({}) == {}


def test_packed_weights_are_freed_before_memory_is_returned(
    policy: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, made, alive = lora._pack, [], []

    def watched(*of: Any) -> dict[int, PackedWeight]:
        packed = pack(*of)
        made.extend(map(weakref.ref, packed.values()))
        return packed

    monkeypatch.setattr(lora, "_pack", watched)
    monkeypatch.setattr(
        memory, "trim", lambda: alive.append(sum(one() is not None for one in made))
    )
    written(policy, "one")
    assert made
    assert alive == [0, 0]  # before packing and after sampling


@pytest.mark.parametrize(
    "why", ["too few tokens", "too many rows", "too little memory", "another torch"]
)
def test_weights_are_packed_only_if_that_helps(
    why: str, policy: SharedModel, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = LONG
    if why == "too few tokens":
        sampling = Sampling(max_new_tokens=lora.MIN_TOKENS - 1)
    elif why == "too many rows":
        monkeypatch.setattr(lora, "MAX_ROWS", 5)
    elif why == "too little memory":
        size = sum(parameter.nbytes for parameter in policy.model.parameters())
        monkeypatch.setattr(memory, "total", lambda device: (size - 1) / lora.MEMORY_SHARE)
    else:
        monkeypatch.setattr(capabilities, "can_pack_weights", lambda: False)
    written(policy, "one", sampling)
    assert not calls


@pytest.mark.parametrize(("device", "dtype", "packable"), [
    ("cpu", torch.float32, True), ("cpu", torch.bfloat16, False), ("meta", torch.float32, False)])  # fmt: skip
def test_only_fp32_on_a_cpu(device: str, dtype: torch.dtype, packable: bool) -> None:
    class Model(torch.nn.Linear):
        def get_output_embeddings(self) -> torch.nn.Linear:
            return self

    assert lora._packable(Model(3, 4, device=device, dtype=dtype)) is packable


def test_sampling_works_without_memory_for_packed_weights(
    policy: SharedModel, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*args: Any) -> None:
        raise RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
        )

    monkeypatch.setattr(lora, "_pack", none_left)
    assert written(policy, "one")
    assert not calls

    def broken(*args: Any) -> None:
        raise RuntimeError("another fault")

    monkeypatch.setattr(lora, "_pack", broken)
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

    layers = list(lora_layers(policy))
    for layer in layers[1:]:
        monkeypatch.setattr(layer.base_layer, "__class__", Quantized)
    assert len(pack(policy, "one")) == 2  # the head and the remaining layer


def test_memory_is_trimmed_before_and_after(
    policy: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    trims: list[bool] = []
    monkeypatch.setattr(memory, "trim", lambda: trims.append(True))
    written(policy, "one", Sampling(max_new_tokens=lora.MIN_TOKENS - 1))
    assert not trims
    written(policy, "one")
    assert trims == [True, True]


def test_a_layer_looks_its_product_up_by_the_right_parameter(
    policy: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the two sides used different parameters as keys, the packed weights would lie idle."""
    asked: list[int] = []

    def note(parameter: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None) -> None:
        asked.append(id(parameter))

    monkeypatch.setattr(lora, "packed_weight_for", note)
    with torch.no_grad(), policy.using_role("one") as model:
        for layer in lora_layers(policy):
            model.get_submodule(_name(model, layer))(torch.zeros(1, layer.base_layer.in_features))
    assert set(asked) == set(pack(policy, "one")) - {
        id(policy.model.get_output_embeddings().weight)
    }


def pack(policy: SharedModel, role: str) -> dict[int, PackedWeight]:
    return lora._pack(policy.roles[role].model, policy.roles[role].adapter, 4)


def _name(model: Any, wanted: Any) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def test_rows_that_have_ended_leave(
    policy: SharedModel, library: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product has the rows that remain, not those that the weights were packed for."""
    encoder = Encoder(policy.tokenizer)
    free = written(policy, "one")
    calls.clear()
    encoder.__dict__["end_ids"] = frozenset(
        token for tokens, _ in free[:4] for token in tokens[2:4]
    )

    def responses() -> list[Any]:
        sampling = Sampling(max_new_tokens=lora.MIN_TOKENS)
        return [
            r
            for g in sample(
                policy, "one", encoder, questions(3), sampling, samples_per_prompt=2, seed=4
            )
            for r in g.responses
        ]

    found = responses()
    assert min(calls) < max(calls) <= 6
    monkeypatch.setattr(lora, "MAX_ROWS", 0)
    wanted = responses()
    assert [r.tokens for r in found] == [r.tokens for r in wanted]
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(
            torch.tensor(mine.logprobs), torch.tensor(theirs.logprobs), atol=1e-5, rtol=1e-5
        )
    assert len({len(r.tokens) for r in found}) > 1


# On a GPU


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are merged, not packed."""
    monkeypatch.setattr(
        capabilities, "on_gpu", lambda _, module: gpu if module == "sampling" else None
    )


def test_merged_weights_write_the_same_samples(
    policy: SharedModel, on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged: list[int] = []
    original = gpu.MergedWeight.__call__

    def spy(self: gpu.MergedWeight, x: torch.Tensor) -> torch.Tensor:
        merged.append(x.numel() // x.shape[-1])
        return original(self, x)

    encoder, groups = (
        Encoder(policy.tokenizer),
        [Group((Message(role="user", content=text),)) for text in ("a", "b c")],
    )
    monkeypatch.setattr(gpu.MergedWeight, "__call__", spy)
    ours = sample(policy, "one", encoder, groups, LONG, samples_per_prompt=2, seed=1)
    assert merged and 4 in merged
    merged.clear()
    monkeypatch.setattr(gpu, "FREE_SHARE", 0.0)
    theirs = sample(policy, "one", encoder, groups, LONG, samples_per_prompt=2, seed=1)
    assert not merged
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(one.responses, other.responses, strict=True):
            assert a.tokens == b.tokens and a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_half_precision_is_merged_in_full(policy: SharedModel) -> None:
    """Rounded once, as the sum of the weight and the adapter's product."""
    layer = next(iter(lora_layers(policy)))
    adapter, weight = policy.roles["one"].adapter, layer.base_layer.weight
    assert adapter is not None
    up, down = layer.lora_B[adapter].weight, layer.lora_A[adapter].weight
    before = weight.data
    try:
        weight.data = before.bfloat16()
        merged = gpu.merged_weights(policy.model, adapter)[id(up)]
        exact = weight.double() + layer.scaling[adapter] * (up.double() @ down.double())
        assert isinstance(merged, gpu.MergedWeight) and merged.weight.dtype == torch.bfloat16
        torch.testing.assert_close(merged.weight.double(), exact, rtol=2**-8, atol=0)
    finally:
        weight.data = before


@pytest.mark.parametrize(("free", "merges"), [(2.0**40, True), (9.0, False)])
def test_weights_are_merged_where_copies_have_room(
    policy: SharedModel, free: float, merges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = policy.roles["one"].adapter
    monkeypatch.setattr(memory, "available", lambda device: free)
    assert bool(gpu.merged_weights(policy.model, adapter)) is merges
    assert not gpu.merged_weights(policy.model, None)

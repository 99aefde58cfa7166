"""One attention call per pack, against torch's own mask of all pairs and against the
attention of each group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import AttentionArgs, GroupSpan
from alignkit_plugins.backends import flex_attention
from alignkit_plugins.backends.flex_attention import BLOCK, PackMasks
from tests.same import same
from tests.simulated_cuda.flex import seen

CPU = torch.device("cpu")
# Groups as (prompt, responses): blocks that one response fills, blocks of many short ones, none at
# all, empty prompts.
PACKS = {
    "pairs": [(150, (200, 60)), (30, (40, 41))],
    "many short responses": [(10, (7,) * 40)] * 3,
    "short responses to a long prompt": [(300, (20,) * 20)],
    "long prompt": [(700, (300, 5)), (3, ())],
    "no prompt": [(0, (300,)), (0, (20, 20))],
    "one block": [(128, (128,))],
    "an empty response": [(100, (30, 0, 60))],
}


def spans(groups: Sequence[tuple[int, tuple[int, ...]]]) -> list[GroupSpan]:
    found, start = [], 0
    for prompt, responses in groups:
        found.append(GroupSpan(start, prompt, responses))
        start += found[-1].length
    return found


def reference(groups: list[GroupSpan], window: int | None) -> np.ndarray:
    """[tokens, tokens], token by token."""
    owner: list[tuple[int, int, int]] = []  # of each token: group, response, position
    for number, span in enumerate(groups):
        owner += [(number, 0, place) for place in range(span.prompt)]
        for response, length in enumerate(span.responses, start=1):
            owner += [(number, response, span.prompt + place) for place in range(length)]
    sees = np.zeros((len(owner), len(owner)), dtype=bool)
    for query, (group, response, position) in enumerate(owner):
        for key, (other, part, place) in enumerate(owner[: query + 1]):
            near = window is None or position - place < window
            sees[query, key] = group == other and part in (0, response) and near
    return sees


@pytest.mark.parametrize("window", [None, 1, 100, 128, 300])
@pytest.mark.parametrize("name", PACKS)
def test_the_mask_of_a_row_is_that_of_its_tokens(name: str, window: int | None) -> None:
    groups = spans(PACKS[name])
    pack = PackMasks(groups, CPU)
    mask = seen(pack.mask(window))
    assert torch.equal(
        mask[: pack.tokens, : pack.tokens], torch.from_numpy(reference(groups, window))
    )
    assert not mask[: pack.tokens, pack.tokens :].any() and len(mask) % BLOCK == 0
    # No block is listed in vain, and none that needs no mask is computed with one.
    some, full = pack.blocks(window)
    tiles = mask.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    assert np.array_equal(some, tiles.any(dim=3).any(dim=1).numpy())
    # Of a prompt's last and a response's first tokens
    mixed = [(span.start + span.prompt) // BLOCK for span in groups]
    full[:, mixed] = False
    tiles[..., mixed, :] = False
    assert np.array_equal(full, tiles.all(dim=3).all(dim=1).numpy())


def inputs(tokens: int, key_heads: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k and v; values differ in size from keys."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, heads, tokens, size, generator=generator).to(dtype).requires_grad_()
        for heads, size in ((4, 16), (key_heads, 16), (key_heads, 24))
    ]


def test_torch_takes_the_call_and_agrees(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own function, uncompiled. It refuses gradients on CPUs, though its operators have
    them.
    """
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    groups, args = spans([(60, (70, 90)), (20, (30,))]), AttentionArgs(None, 200, 3.0)
    pack = PackMasks(groups, CPU)
    ours, others = inputs(pack.tokens, 2, torch.float32), inputs(pack.tokens, 2, torch.float32)
    found = flex_attention.attention(*ours, pack, args, torch_flex.flex_attention)
    wanted = TreeLayout(groups).attend(0, *others, args)
    same(found, wanted, ours, others, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lacks", ["", "cuda", "capability", "triton", "compiler"])
def test_attention_is_compiled_for_gpus_with_triton(
    lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton needs a compiler."""
    capability = (7, 5) if lacks == "capability" else (8, 0)
    compiler, triton = (None if lacks == name else "there" for name in ("compiler", "triton"))
    uncached: Callable[[], bool] = flex_attention.has_triton.__wrapped__
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(flex_attention, "has_triton", uncached)
    monkeypatch.setattr(flex_attention.shutil, "which", lambda name: compiler)
    monkeypatch.setattr(flex_attention.importlib.util, "find_spec", lambda name: triton)
    device = torch.device("cpu" if lacks == "cuda" else "cuda")
    assert flex_attention.can_compile_attention(device) is not bool(lacks)

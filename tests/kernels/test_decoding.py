"""Decoding against the same attention over whole sequences, with rows that leave and enter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from alignkit.kernels import decoding as decoding_module
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.decoding import Decoding
from alignkit.kernels.layout import AttentionArgs, GroupSpan
from alignkit_plugins.gpu import sampling as static_decoding
from alignkit_plugins.gpu.sampling import StaticDecoding

HEADS, KEY_HEADS, SIZE = 4, 2, 8
PROMPTS = (5, 2, 7, 3)
TOKENS = 6  # written after each prompt


@pytest.fixture
def sequences() -> list[tuple[Tensor, Tensor, Tensor]]:
    """q, k and v of whole sequences, [1, heads, tokens, size] each."""
    generator = torch.Generator().manual_seed(0)
    heads = (HEADS, KEY_HEADS, KEY_HEADS)
    return [
        tuple(
            torch.randn(1, h, prompt + TOKENS, SIZE, generator=generator, dtype=torch.float64)
            for h in heads
        )  # type: ignore[misc]
        for prompt in PROMPTS
    ]


def prefilled(
    sequences: list[tuple[Tensor, Tensor, Tensor]], indices: list[int], args: AttentionArgs
) -> TreeLayout:
    """The stored keys and values of these sequences' prompts."""
    starts = [sum(PROMPTS[i] for i in indices[:n]) for n in range(len(indices))]
    spans = [GroupSpan(start, PROMPTS[i], ()) for start, i in zip(starts, indices, strict=True)]
    layout = TreeLayout(spans, store_kv=True)
    q, k, v = (
        torch.cat([sequences[i][part][:, :, : PROMPTS[i]] for i in indices], dim=2)
        for part in range(3)
    )
    layout.attend(0, q, k, v, args)
    return layout


@pytest.mark.parametrize("block", [32, 2, None], ids=["one block", "small blocks", "static"])
@pytest.mark.parametrize(
    "args",
    [AttentionArgs(None, None, None), AttentionArgs(0.3, 4, None), AttentionArgs(None, None, 2.0)],
)
def test_every_token_attends_as_in_its_whole_sequence(
    args: AttentionArgs,
    block: int | None,
    sequences: list[tuple[Tensor, Tensor, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoding_module, "BLOCK", block or 32)
    monkeypatch.setattr(static_decoding, "STEP", 4)
    expected = [
        TreeLayout([GroupSpan(0, q.shape[2], ())]).attend(0, q, k, v, args) for q, k, v in sequences
    ]
    decoding, rows, written = (
        StaticDecoding() if block is None else Decoding(),
        [0, 1, 2],
        dict.fromkeys(range(4), 0),
    )
    decoding.update_rows([], TOKENS, prefilled(sequences, rows, args), range(3))
    for step in range(TOKENS):
        if step == 2:  # the longest leaves and another enters
            decoding.update_rows([0, 1], TOKENS, prefilled(sequences, [3], args), [0])
            rows = [0, 1, 3]
        if step == 4:
            decoding.update_rows([1, 2], TOKENS)
            rows = [1, 3]
        at = [PROMPTS[i] + written[i] for i in rows]
        q, k, v = (
            torch.cat([sequences[i][part][:, :, n : n + 1] for i, n in zip(rows, at, strict=True)])
            for part in range(3)
        )
        out = decoding.attend(0, q, k, v, args)
        decoding.advance()
        for row, (i, n) in enumerate(zip(rows, at, strict=True)):
            torch.testing.assert_close(out[row], expected[i][0, :, n : n + 1])
            written[i] += 1


def test_the_cache_drops_columns_that_no_row_uses(
    sequences: list[tuple[Tensor, Tensor, Tensor]],
) -> None:
    args, decoding = AttentionArgs(None, None, None), Decoding()
    decoding.update_rows([], 4, prefilled(sequences, [0, 1, 2], args), range(3))
    assert decoding.column == 7 and decoding.starts.tolist() == [2, 5, 0]
    decoding.update_rows([0, 1], 4)  # without the longest
    assert decoding.column == 5 and decoding.starts.tolist() == [0, 3]
    keys, values = decoding.cache[0]
    assert keys.shape == values.shape == (2, KEY_HEADS, 5 + 4, SIZE)
    assert not keys[1, :, :3].any()
    torch.testing.assert_close(keys[1, :, 3:5], sequences[1][1][0, :, :2])
    decoding.update_rows([], 4)
    assert decoding.column == 0 and len(decoding.starts) == 0


def test_all_prompts_enter_at_once_as_they_do_one_by_one(
    sequences: list[tuple[Tensor, Tensor, Tensor]],
) -> None:
    """A GPU fills the cache with a few calls for all rows."""
    prefill = prefilled(sequences, [0, 1, 2], AttentionArgs(None, None, None))
    prompts = [prefill.spans[owner] for owner in (2, 0, 0, 1)]
    old = torch.randn(3, KEY_HEADS, 9, SIZE, dtype=torch.float64)
    change = decoding_module.Change(torch.tensor([2, 0]), slice(4, 9), prompts, 8, 3)
    keys, _ = prefill.kv[0]
    one_by_one = change.applied(old, keys)
    gathered = static_decoding.PaddedChange(
        torch.tensor([2, 0]), slice(4, 9), prompts, 8, 3
    ).applied(old, keys)
    assert torch.equal(gathered, one_by_one)
    assert one_by_one.shape == (6, KEY_HEADS, 11, SIZE) and one_by_one.any()


def test_shapes_repeat_for_many_tokens(
    sequences: list[tuple[Tensor, Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all columns up to the next step are allocated."""
    monkeypatch.setattr(static_decoding, "STEP", 4)
    shapes = []
    original = static_decoding.attention

    def spy(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, args: AttentionArgs) -> Tensor:
        shapes.append((tuple(k.shape), tuple(mask.shape)))
        return original(q, k, v, mask, args)

    monkeypatch.setattr(static_decoding, "attention", spy)
    args, decoding = AttentionArgs(None, None, None), StaticDecoding()
    # Filled up to column 5
    decoding.update_rows([], TOKENS, prefilled(sequences, [0, 1], args), range(2))
    for _ in range(5):
        decoding.attend(
            0,
            *(
                torch.ones(2, h, 1, SIZE, dtype=torch.float64)
                for h in (HEADS, KEY_HEADS, KEY_HEADS)
            ),
            args,
        )
        decoding.advance()
    assert [keys[2] for keys, _ in shapes] == [8, 8, 8, 12, 12] and shapes[0][1] == (2, 1, 1, 8)
    assert decoding.cache[0][0].shape[2] == 12

"""Examples, and the batches made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import encoded, encoder, tiny_model, user, words

from alignkit.batch import Outputs
from alignkit.data.group import Group, Pair, Response
from alignkit.models.packing import Examples, join_outputs
from alignkit.tokens.encoder import Encoder


def test_pairs_point_at_the_batchs_rows() -> None:
    made = encoder()
    first = Group((user("a"),), (words(2), words(3)), pairs=(Pair(1, 0, p=0.7, margin="better"),))
    second = Group(
        (user("b"),), (words(2), words(3), words(4)), pairs=(Pair(2, 0, margin=1.5), Pair(0, 1))
    )
    batch = Examples([encoded(made.encode(group, 100)) for group in (first, second)]).batch()
    pairs = batch.pairs
    assert (pairs.better.tolist(), pairs.worse.tolist()) == ([1, 4, 2], [0, 2, 3])
    assert pairs.p.tolist() == pytest.approx([0.7, 1, 1]) and pairs.margin.tolist() == [0, 1.5, 0]
    assert pairs.group_index.tolist() == [0, 1, 1] and pairs.levels == ("better", None, None)
    assert batch.group_index.tolist() == [0, 0, 1, 1, 1] and batch.tokens.shape == (5, 4)
    assert batch.mask.sum(1).tolist() == [2, 3, 2, 3, 4] and bool(
        (batch.tokens[~batch.mask] == 0).all()
    )


def test_outputs_of_micro_batches_are_joined_in_order(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    encoder = Encoder(model.tokenizer)
    said = [("a", "bcd"), ("e", "fgh ijk lmn")]
    groups = [Group(({"role": "user", "content": q},), (Response(text=a),), id=q) for q, a in said]
    short, long = (
        Examples([e]).batch() for g in groups if (e := encoder.encode(g, 200)) is not None
    )
    n, wide = short.mask.shape[1], long.mask.shape[1]
    assert n < wide
    outs = [
        Outputs(
            logprobs=torch.full((1, n), -1.0), values=torch.ones(1, n), scores=torch.tensor([1.0])
        )
    ]
    outs.append(
        Outputs(
            logprobs=torch.full((1, wide), -2.0),
            values=torch.ones(1, wide),
            scores=torch.tensor([2.0]),
        )
    )
    joined = join_outputs(outs, [[0], [1]])
    assert joined.logprobs.tolist() == [[-1] * n + [0] * (wide - n), [-2] * wide]
    assert joined.values.tolist() == [[1] * n + [0] * (wide - n), [1] * wide]
    assert joined.scores.tolist() == [1, 2] and "entropy" not in vars(joined)
    two = Outputs(logprobs=torch.tensor([[-3.0], [-4.0]]))
    turned = join_outputs([two, Outputs(logprobs=torch.full((1, 2), -5.0))], [[2, 0], [1]])
    assert turned.logprobs.tolist() == [[-4, 0], [-5, -5], [-3, 0]]

"""Packs, how groups are cut into them, and what is measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tiny import encoded, encoder, tiny_model, user, words

from alignkit.contract.batch import Outputs
from alignkit.contract.settings import Sampling
from alignkit.data.group import Group, Pair, Response
from alignkit.models.packing import (
    Examples,
    indivisible,
    join_outputs,
    measure,
    micro_batches,
    pack,
)
from alignkit.models.shared_model import SharedModel, Wants
from alignkit.tokens.encoder import Encoded, Encoder
from tests.sampled import sample
from tests.test_train import encoded as questions


def encode(*groups: Group) -> list[Encoded]:
    made = encoder()
    return [encoded(made.encode(group, 100)) for group in groups]


@pytest.mark.silent_bug(
    "losses: masks",
    "Log-probabilities are off by one, or include the prompt.",
    "A token is read at the state before it, and the prompt does not count.",
    "AI-Hypercomputer/maxtext#2103",
    "OpenRLHF/OpenRLHF#237",
)
def test_a_token_is_predicted_from_the_one_before_it() -> None:
    """The prompt's last token predicts each response's first one, wherever the response is in the
    pack.
    """
    silent = Response(tokens=(40, 41, 42), action_mask=(True, False, True))
    groups = encode(
        Group((user("q"),), (words(4), silent, words(2, 50))),
        Group((user("another"),), (words(1, 60),)),
    )
    first, second = groups[0].prompt, groups[1].prompt
    packed = pack(groups)
    ids = [*first, *range(30, 34), 40, 41, 42, 50, 51, *second, 60]
    assert packed.tokens.tolist() == ids
    p, last = len(first), len(first) + 9 + len(second)
    #                   the first response | the second without its silent token | the third
    assert str(packed.targets.tolist()) == "[30, 31, 32, 33, 40, 42, 50, 51, 60]"
    assert str((packed.before[:-1] - p).tolist()) == "[-1, 0, 1, 2, -1, 5, -1, 7]"
    assert packed.before[-1] == last - 1
    cells = "[[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 2], [2, 0], [2, 1], [3, 0]]"
    assert str(packed.cells.tolist()) == cells
    assert packed.scored.tolist() == [p + 3, p + 6, p + 8, last]


def test_an_empty_response_is_scored_at_the_end_of_its_prompt() -> None:
    """With and without a token that scoring skips: what precedes it in the pack is another
    response.
    """
    groups = [Encoded.of((9, 3, 3), (7, 8), ())]
    assert pack(groups).scored.tolist() == pack(groups, -1).scored.tolist() == [4, 2]
    assert pack(groups, 8).scored.tolist() == [3, 2]
    assert pack(groups, 3).scored.tolist() == [4, 0]
    groups[0] = replace(groups[0], prompt=(8, 8))
    assert pack(groups, 8).scored.tolist() == [2, 0]  # the first token of all is read


def test_micro_batches_keep_the_order_the_budget_and_the_bundles() -> None:
    bundles = ((3, "b"), (4, None), (6, None), (2, "b"), (9, None))
    groups = encode(
        *(Group((user("q"),), (words(1), words(n - 1)), bundle=bundle) for n, bundle in bundles)
    )
    prompt = len(groups[0].prompt)
    assert indivisible([group.group.bundle for group in groups]) == [[0, 3], [1], [2], [4]]
    assert list(micro_batches(groups, 10**6)) == [[0, 3, 1, 2, 4]]
    assert list(micro_batches(groups, 2 * prompt + 11)) == [[0, 3], [1, 2], [4]]
    # A unit over the budget is a batch of its own
    assert list(micro_batches(groups, 1)) == [[0, 3], [1], [2], [4]]


def test_pairs_point_at_the_batchs_responses() -> None:
    first = Group((user("a"),), (words(2), words(3)), pairs=(Pair(1, 0, p=0.7, margin="better"),))
    pairs_of_second = (Pair(2, 0, margin=1.5), Pair(0, 1, margin=2))
    second = Group((user("b"),), (words(2), words(3), words(4)), pairs=pairs_of_second)
    batch = Examples(encode(first, second)).batch()
    pairs = batch.pairs
    assert (pairs.better.tolist(), pairs.worse.tolist()) == ([1, 4, 2], [0, 2, 3])
    assert pairs.p.tolist() == pytest.approx([0.7, 1, 1]) and pairs.margin.tolist() == [0, 1.5, 2]
    assert pairs.group_index.tolist() == [0, 1, 1] and pairs.levels == ("better", None, None)
    assert str(batch.group_index.tolist()) == "[0, 0, 1, 1, 1]" and batch.tokens.shape == (5, 4)
    assert str(batch.mask.sum(1).tolist()) == "[2, 3, 2, 3, 4]"
    assert not batch.tokens[~batch.mask].any()


def outputs(*rows: Sequence[float]) -> Outputs:
    logprobs = torch.tensor(rows, dtype=torch.float32)
    return Outputs(logprobs=logprobs, values=-logprobs, scores=logprobs[:, 0])


def test_outputs_of_micro_batches_are_joined_in_order() -> None:
    """Shorter ones are padded with zeros."""
    joined = join_outputs([outputs([1, 2]), outputs([3, 4, 5])], [[0], [1]])
    assert joined.logprobs.tolist() == [[1, 2, 0], [3, 4, 5]]
    assert joined.values.tolist() == [[-1, -2, 0], [-3, -4, -5]]
    assert joined.scores.tolist() == [1, 3] and "entropy" not in vars(joined)
    turned = join_outputs([outputs([3], [4]), outputs([5, 6])], [[2, 0], [1]])
    assert turned.logprobs.tolist() == [[4, 0], [5, 6], [3, 0]]
    assert turned.scores.tolist() == [4, 5, 3]


@pytest.mark.silent_bug(
    "models: reference",
    "Measured log-probabilities belong to other responses.",
    "They keep the order of the groups.",
    "huggingface/trl#2423",
)
def test_measurements_keep_the_order_of_the_groups() -> None:
    """A bundle's groups are packed together, but results keep the order of the groups."""
    model, wants = tiny_model(), Wants(values="rm", scores=True)
    said = ("yes", "no, never", "perhaps, who knows?", "well", "it is late, and I am tired")
    groups = [
        Group((user(f"is it {text}?"),), (Response(text), Response(text + "!")), bundle=bundle)
        for text, bundle in zip(said, ("a", "b", "a", None, "b"), strict=True)
    ]
    whole = encode(*groups)
    model.add_role("rm", head="scalar")
    found = measure(model, "rm", whole, wants)
    alone = [measure(model, "rm", [one], wants) for one in whole]
    assert found.keys() == {"logprobs", "values", "scores"}
    for name, rows in found.items():
        own = [row for one in alone for row in one[name]]
        torch.testing.assert_close(rows, own, atol=1e-4, rtol=1e-4)


def test_a_long_pass_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the next micro-batch or token."""
    model = tiny_model()
    monkeypatch.setattr(SharedModel, "token_budget", 1)
    groups, seen = questions(model, 9).groups, list[int]()

    def stop() -> None:
        seen.append(1)
        if len(seen) % 4 == 0:
            raise KeyboardInterrupt

    model.should_stop = stop
    with pytest.raises(KeyboardInterrupt):
        measure(model, "base", groups)
    assert len(seen) == 4
    sampling, asked = Sampling(max_new_tokens=50, min_new_tokens=40), [e.group for e in groups]
    with pytest.raises(KeyboardInterrupt):
        sample(model, "base", Encoder(model.tokenizer), asked, sampling, seed=0)
    assert len(seen) == 8


def test_what_is_changed_in_a_batch_does_not_reach_the_next_one() -> None:
    examples = Examples(encode(Group((user("a"),), (words(2), words(3)))))
    examples.add_advantages({"advantages": torch.ones(2)})
    examples.batch().signals["advantages"].zero_()
    assert examples.batch().signals["advantages"].tolist() == [1, 1]


def test_advantages_are_float32_whatever_a_plugin_returns() -> None:
    examples = Examples(encode(Group((user("a"),), (words(2), words(3)))))
    wide = torch.ones(2, dtype=torch.float64)
    examples.add_advantages({"advantages": wide, "returns": wide[:, None].expand(2, 3)})
    assert {each.dtype for each in examples.batch().signals.values()} == {torch.float32}

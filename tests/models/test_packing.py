"""Packed rows, and how groups are cut into them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import encoded, encoded_groups, encoder, tiny_model, user, words

from alignkit.data.group import Group, Response
from alignkit.models.packing import indivisible, micro_batches, pack
from alignkit.tokens.encoder import Encoded, ResponseTokens


@pytest.mark.silent_bug(
    "losses: masks",
    "Log-probabilities are off by one, or include the prompt.",
    "A token is read at the state before it, and the prompt does not count.",
    "AI-Hypercomputer/maxtext#2103",
    "OpenRLHF/OpenRLHF#237",
)
def test_a_token_is_predicted_from_the_one_before_it() -> None:
    """The prompt's last token predicts each response's first one, wherever the response is in the
    row.
    """
    made = encoder()
    mask = (True, False, True)
    responses = (words(4), Response(text="", tokens=(40, 41, 42), written=mask), words(2, 50))
    groups = [Group((user("q"),), responses), Group((user("another"),), (words(1, 60),))]
    rows = [encoded(made.encode(group, 100)) for group in groups]
    packed = pack(rows)
    everything = [*rows[0].prompt, *range(30, 34), 40, 41, 42, 50, 51, *rows[1].prompt, 60]
    assert packed.tokens.tolist() == everything
    p, second = len(rows[0].prompt), len(rows[0].prompt) + 9 + len(rows[1].prompt)
    assert packed.targets.tolist() == [30, 31, 32, 33, 40, 42, 50, 51, 60]
    assert packed.before.tolist() == [
        p - 1,
        p,
        p + 1,
        p + 2,
        p - 1,
        p + 5,
        p - 1,
        p + 7,
        second - 1,
    ]
    assert packed.cells.tolist() == [
        [0, 0],
        [0, 1],
        [0, 2],
        [0, 3],
        [1, 0],
        [1, 2],
        [2, 0],
        [2, 1],
        [3, 0],
    ]
    assert packed.scored.tolist() == [p + 3, p + 6, p + 8, second]


def test_an_empty_response_is_scored_at_the_end_of_its_prompt() -> None:
    """With and without a token that scoring skips: what precedes it in the row is another
    response.
    """
    rows = tuple(ResponseTokens(tokens, (True,) * len(tokens), False) for tokens in ((7, 8), ()))
    groups = [Encoded(Group((user("q"),), ()), (9, 8, 3), rows)]
    assert pack(groups).scored.tolist() == pack(groups, -1).scored.tolist() == [4, 2]
    assert pack(groups, 8).scored.tolist() == [3, 2]


BUNDLES = ((3, "b"), (4, None), (6, None), (2, "b"), (9, None))


def test_micro_batches_keep_the_order_the_budget_and_the_bundles() -> None:
    made = encoder()
    groups = [Group((user("q"),), (words(n),), id=str(n), bundle=bundle) for n, bundle in BUNDLES]
    rows = [encoded(made.encode(group, 100)) for group in groups]
    prompt = len(rows[0].prompt)
    assert list(micro_batches(rows, 10**6)) == [[0, 3, 1, 2, 4]]
    assert list(micro_batches(rows, 2 * prompt + 11)) == [[0, 3], [1, 2], [4]]
    # A unit over the budget is a batch of its own
    assert list(micro_batches(rows, 1)) == [[0, 3], [1], [2], [4]]


def test_groups_of_a_bundle_are_one_unit_and_stay_in_one_micro_batch(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    apart, together = encoded_groups(model, 6).groups, encoded_groups(model, 6, bundles=2).groups
    assert indivisible([e.group.bundle for e in apart]) == [[n] for n in range(6)]
    assert indivisible([e.group.bundle for e in together]) == [[0, 2, 4], [1, 3, 5]]
    assert list(micro_batches(apart, 1)) == [[n] for n in range(6)]
    assert list(micro_batches(together, 1)) == [[0, 2, 4], [1, 3, 5]]

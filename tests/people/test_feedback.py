"""Labels of people as groups: pairs with margins, rankings with ties, demonstrations, thumbs."""

from __future__ import annotations

from typing import Any

import pytest

from alignkit import BadRow, Group, Pair
from alignkit.data.group import resolved_pairs
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.store import Stored
from alignkit_plugins.people.votes import Labeled, Vote, below, groups_of

ANSWERS = {"pair": 2, "safety": 2, "ranking": 3, "demonstration": 0, "thumb": 1}


def entry(task: str, *labels: Any, **more: Any) -> Labeled:
    """An item that person 0, person 1 ... labeled."""
    answers = tuple(f"answer {number}" for number in range(ANSWERS[task]))
    item = Item(task, ({"role": "user", "content": "Hi"},), answers, **more)
    votes = [Vote(f"person {number}", label) for number, label in enumerate(labels)]
    return Labeled(Stored(item, 1, 1, len(votes), False), votes)


def read(*row: Any, **more: Any) -> Group:
    (group,) = groups_of(entry(*row, **more))
    return group


def choice(better: int, margin: str = "better", **more: Any) -> dict[str, Any]:
    return {"better": better, "margin": margin, **more}


def test_one_label_of_a_pair() -> None:
    more = {"origins": ("sft", "base"), "meta": {"use": "chat"}, "license": "MIT"}
    group = read("pair", choice(1, "slightly"), **more)
    assert group.pairs == (Pair(1, 0, margin="slightly"),)
    assert [response.source for response in group.responses] == ["sft", "base"]
    assert group.meta == {"use": "chat", "license": "MIT"}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        # (4 + 4 - 1) / 3 = 2.33
        ([choice(0, "significantly"), choice(0, "significantly"), choice(1, "unsure")], (0, 2 / 3, "slightly")),
        # -3 -4 +1
        ([choice(1, "better"), choice(1, "significantly"), choice(0, "unsure")], (1, 2 / 3, "slightly")),
        ([choice(0, "unsure"), choice(0, "unsure"), choice(1, "significantly")], (0, 2 / 3, "unsure")),
        ([choice(1, "better"), choice(1, "better")], (1, 1, "better")),
    ],
)  # fmt: skip
def test_several_labels_of_a_pair(labels: Any, expected: Any) -> None:
    (pair,) = read("pair", *labels).pairs or ()
    assert (pair.better, pair.p, pair.margin) == (
        expected[0],
        pytest.approx(expected[1]),
        expected[2],
    )
    assert pair.worse == 1 - pair.better


def test_as_many_for_either_response() -> None:
    assert read("pair", choice(0, "significantly"), choice(1, "unsure")).pairs == ()


def test_a_gold_label_replaces_the_others() -> None:
    assert read("pair", choice(0), choice(0), gold={"better": 1}).pairs == (Pair(1, 0),)


def test_a_safety_bin_is_a_column() -> None:
    labels = [
        choice(0, safety="both_safe"),
        choice(0, safety="preferred_safe"),
        choice(0, safety="preferred_safe"),
    ]
    assert read("safety", *labels).meta == {"safety_bin": "preferred_safe"}


def test_ties_of_a_ranking_are_kept() -> None:
    group = read("ranking", {"ranks": [2, 1, 1]})
    assert [response.rank for response in group.responses] == [2, 1, 1]
    assert resolved_pairs(group) == (Pair(1, 0), Pair(2, 0))


def test_several_rankings() -> None:
    ranks = [{"ranks": [1, 2, 3]}, {"ranks": [1, 2, 2]}, {"ranks": [2, 1, 3]}]
    pairs = read("ranking", *ranks).pairs or ()
    assert [(pair.better, pair.worse, round(pair.p, 3)) for pair in pairs] == [
        (0, 1, 0.667),
        (0, 2, 1),
        (1, 2, 1),
    ]


def test_demonstrations_are_learned_each() -> None:
    groups = groups_of(entry("demonstration", {"text": "One."}, {"text": "Two."}))
    assert [group.responses[0].text for group in groups] == ["One.", "Two."]
    assert all(len(group.responses) == 1 for group in groups)


def test_thumbs_are_labels() -> None:
    good, bad = {"good": True}, {"good": False}
    assert read("thumb", good, good, bad).responses[0].label is True
    assert read("thumb", bad).responses[0].label is False
    assert groups_of(entry("thumb", good, bad)) == []


# Whose labels count


def test_gold_items_decide_who_is_left_out() -> None:
    gold = {"better": 0}
    known = [entry("pair", choice(0), choice(int(n < 3)), gold=gold) for n in range(9)]
    known += [entry("pair", choice(1), gold=gold), entry("pair", choice(0), choice(1))]
    unsure = entry("pair", gold=gold)
    unsure.votes.append(Vote("eve", choice(1)))
    worse, notes = below([*known, unsure], 0.8)
    assert worse == {"person 1"}  # person 0: 9 of 10; person 1: 6 of 9
    assert notes == [
        "left out, gold below 80%: person 1 6 of 9",
        "kept, under 5 gold items: eve 0 of 1",
    ]
    assert below(known, 0.6)[0] == set()


@pytest.mark.parametrize(
    ("gold", "fault"),
    [
        (None, "'min_gold' needs gold items .* --gold FILE"),
        ({"better": 0}, "leaves nobody; gold items right: person 0 0 of 5"),
    ],
)
def test_gold_items_that_leave_nobody(gold: Any, fault: str) -> None:
    with pytest.raises(BadRow, match=fault):
        below([entry("pair", choice(1), gold=gold) for _ in range(5)], 0.5)


def test_nobody_is_left_out_for_texts_which_agree_with_no_gold_text() -> None:
    texts = [entry("demonstration", {"text": "a"}, gold={"text": "b"}) for _ in range(5)]
    known = [entry("pair", choice(0), gold={"better": 0})]
    assert below([*texts, *known], 0.8) == (set(), ["kept, under 5 gold items: person 0 1 of 1"])

"""Labels of people as groups: pairs with margins, rankings with ties, demonstrations, thumbs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alignkit import BadRow, Pair
from alignkit.data.group import group_to_json, resolved_pairs
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.store import Stored
from alignkit_plugins.people.votes import Labeled, Vote, below, groups_of
from tests.rows import cells

ANSWERS = {"pair": 2, "safety": 2, "ranking": 3, "demonstration": 0, "thumb": 1}


def entry(task: str, *labels: Any, **more: Any) -> Labeled:
    """An item that person 0, person 1 ... labeled."""
    answers = tuple(f"answer {number}" for number in range(ANSWERS[task]))
    item = Item(task, ({"role": "user", "content": "Hi"},), answers, **more)
    votes = [Vote(f"person {number}", label) for number, label in enumerate(labels)]
    return Labeled(Stored(item, 1, 1, len(votes), False), votes)


def choice(better: int, margin: str = "better") -> dict[str, Any]:
    return {"better": better, "margin": margin}


def test_one_label_of_a_pair() -> None:
    more = {"origins": ("sft", "base"), "meta": {"use": "chat"}, "license": "MIT"}
    (group,) = groups_of(entry("pair", choice(1, "slightly"), **more))
    assert group.pairs == (Pair(1, 0, margin="slightly"),)
    assert [response.source for response in group.responses] == ["sft", "base"]
    assert group.meta == {"use": "chat", "license": "MIT"}


# The degrees of margins are 4 (significantly), 3, 2 and 1 (unsure): (4 + 4 - 1) / 3 = 2.33 is
# "slightly".
SEVERAL = """
pair | 0 significantly, 0 significantly, 1 unsure | [0, 1, 0.6667, "slightly"]
pair | 1 better, 1 significantly, 0 unsure        | [1, 0, 0.6667, "slightly"]
pair | 0 unsure, 0 unsure, 1 significantly        | [0, 1, 0.6667, "unsure"]
pair | 1 better, 1 better                         | [1, 0, 1.0, "better"]
pair | 0 significantly, 1 unsure                  |
ranking | 123, 122, 213                | [0, 1, 0.6667, null], [0, 2, 1.0, null], [1, 2, 1.0, null]
"""


@pytest.mark.parametrize(("task", "labels", "expected"), cells(SEVERAL))
def test_several_labels_of_an_item(task: str, labels: str, expected: str) -> None:
    given: list[Any] = []
    for words in map(str.split, labels.split(", ")):
        if task == "pair":
            given.append(choice(int(words[0]), words[1]))
        else:
            given.append({"ranks": list(map(int, words[0]))})
    (group,) = groups_of(entry(task, *given))
    found = [[pair.better, pair.worse, round(pair.p, 4), pair.margin] for pair in group.pairs or ()]
    assert found == json.loads(f"[{expected}]")


LEARNED = """
pair   | {"gold": {"better": 1}} | {"better": 0}, {"better": 0} | {"pairs": [{"better": 1, "worse": 0}]}
safety | {} | {"better": 0, "safety": "both_safe"}, {"better": 0, "safety": "preferred_safe"}, \
{"better": 0, "safety": "preferred_safe"} | {"meta": {"safety_bin": "preferred_safe"}}
demonstration | {} | {"text": "One."}, {"text": "Two."} | \
{"responses": [{"text": "One."}]}, {"responses": [{"text": "Two."}]}
thumb | {} | {"good": true}, {"good": true}, {"good": false} | {"responses": [{"text": "answer 0", "label": true}]}
thumb | {} | {"good": false} | {"responses": [{"text": "answer 0", "label": false}]}
thumb | {} | {"good": true}, {"good": false} |
"""


@pytest.mark.parametrize(("task", "more", "labels", "expected"), cells(LEARNED))
def test_what_is_learned_of_an_item(task: str, more: str, labels: str, expected: str) -> None:
    groups = groups_of(entry(task, *json.loads(f"[{labels}]"), **json.loads(more)))
    known = json.loads(f"[{expected}]")
    for group, parts in zip(map(group_to_json, groups), known, strict=True):
        assert {name: json.loads(group)[name] for name in parts} == parts


def test_ties_of_a_ranking_are_kept() -> None:
    (group,) = groups_of(entry("ranking", {"ranks": [2, 1, 1]}))
    assert [response.rank for response in group.responses] == [2, 1, 1]
    assert resolved_pairs(group) == (Pair(1, 0), Pair(2, 0))


# Whose labels count


def test_gold_items_decide_who_is_left_out() -> None:
    gold = {"better": 0}
    known = [entry("pair", choice(0), choice(int(n < 3)), gold=gold) for n in range(9)]
    known += [entry("pair", choice(1), gold=gold), entry("pair", choice(0), choice(1))]
    # With a text that is another one than the gold text, nobody is wrong
    known += [entry("demonstration", {"text": "a"}, gold={"text": "b"}) for _ in range(9)]
    unsure = entry("pair", gold=gold)
    unsure.votes.append(Vote("eve", choice(1)))
    worse, notes = below([*known, unsure], 0.9)
    assert worse == {"person 1"}  # person 0: 9 of 10; person 1: 6 of 9
    assert notes == [
        "left out, gold below 90%: person 1 6 of 9",
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

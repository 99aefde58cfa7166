"""Labels of people as groups: pairs with margins, rankings with ties, reviews, thumbs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alignkit import BadRow
from alignkit.data.group import group_to_json
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.step import _review_of
from alignkit_plugins.people.store import Stored
from alignkit_plugins.people.votes import Labeled, below, labeled_groups
from tests.rows import cells

ANSWERS = {"pair": 2, "safety": 2, "ranking": 3, "review": 3, "demonstration": 0, "thumb": 1}


def entry(task: str, *labels: Any, **more: Any) -> Labeled:
    """An item that person 0, person 1 ... labeled."""
    answers = tuple(f"answer {number}" for number in range(ANSWERS[task]))
    item = Item(task, ({"role": "user", "content": "Hi"},), answers, **more)
    votes = {f"person {number}": label for number, label in enumerate(labels)}
    return Labeled(Stored(item, 1, 1, len(votes), False), votes)


LEARNED = """
pair | {"origins": ["sft", "base"], "meta": {"use": "chat"}, "license": "MIT"} \
| {"better": 1, "margin": "slightly"} | {"pairs": [{"better": 1, "worse": 0, "margin": "slightly"}], \
"responses": [{"text": "answer 0", "source": "sft"}, {"text": "answer 1", "source": "base"}], \
"meta": {"use": "chat", "license": "MIT"}}

pair | {} | {"better": 0, "margin": "significantly"}, {"better": 0, "margin": "significantly"}, \
{"better": 1, "margin": "unsure"} \
| {"pairs": [{"better": 0, "worse": 1, "p": 0.6666666666666666, "margin": "slightly"}]}

pair | {} | {"better": 1, "margin": "better"}, {"better": 1, "margin": "significantly"}, \
{"better": 0, "margin": "unsure"} \
| {"pairs": [{"better": 1, "worse": 0, "p": 0.6666666666666666, "margin": "slightly"}]}

pair | {} | {"better": 0, "margin": "unsure"}, {"better": 0, "margin": "unsure"}, \
{"better": 1, "margin": "significantly"} \
| {"pairs": [{"better": 0, "worse": 1, "p": 0.6666666666666666, "margin": "unsure"}]}

pair | {} | {"better": 1, "margin": "significantly"}, {"better": 1, "margin": "better"} \
| {"pairs": [{"better": 1, "worse": 0, "margin": "better"}]}

pair | {} | {"better": 0, "margin": "significantly"}, {"better": 1, "margin": "unsure"} | {"pairs": []}

pair | {"gold": {"better": 1}} | {"better": 0}, {"better": 0} | {"pairs": [{"better": 1, "worse": 0}]}

safety | {} | {"better": 0, "safety": "both_safe"}, {"better": 0, "safety": "preferred_safe"}, \
{"better": 0, "safety": "preferred_safe"}, {"better": 1, "safety": "both_safe"} \
| {"meta": {"safety_bin": "preferred_safe"}}

safety | {} | {"better": 0, "safety": "preferred_safe"}, {"better": 0, "safety": "both_safe"} \
| {"meta": {"safety_bin": "both_safe"}}

ranking | {} | {"ranks": [2, 1, 1]} | {"responses": [{"text": "answer 0", "rank": 2}, \
{"text": "answer 1", "rank": 1}, {"text": "answer 2", "rank": 1}]}

ranking | {} | {"ranks": [1, 2, 3]}, {"ranks": [1, 2, 2]}, {"ranks": [2, 1, 3]} \
| {"pairs": [{"better": 0, "worse": 1, "p": 0.6666666666666666}, {"better": 0, "worse": 2}, \
{"better": 1, "worse": 2}]}

review | {} | {"ranks": [2, 1, 2], "scores": [3, 7, 4], "flags": [["harmful", "invented"], [], []]} \
| {"responses": [{"text": "answer 0", "rank": 2, "scores": {"reward": 3}}, \
{"text": "answer 1", "rank": 1, "scores": {"reward": 7}}, \
{"text": "answer 2", "rank": 2, "scores": {"reward": 4}}], \
"meta": {"overall": [3, 7, 4], "flags": [["invented", "harmful"], [], []]}}

review | {} | {"ranks": [2, 1, 2], "scores": [3, 7, 4], "flags": [["harmful", "invented"], [], []]}, \
{"ranks": [3, 1, 2], "scores": [2, 6, 5], "flags": [["harmful"], [], []]} \
| {"pairs": [{"better": 1, "worse": 0}, {"better": 2, "worse": 0}, {"better": 1, "worse": 2}], \
"meta": {"overall": [2.5, 6.5, 4.5], "flags": [["harmful"], [], []]}}

review | {"gold": {"ranks": [1, 2, 3]}} | {"ranks": [2, 1, 3], "scores": [7, 4, 1], "flags": [[], [], []]} \
| {"responses": [{"text": "answer 0", "rank": 1}, {"text": "answer 1", "rank": 2}, \
{"text": "answer 2", "rank": 3}]}

demonstration | {} | {"text": "One."}, {"text": "Two."} \
| {"responses": [{"text": "One."}]}, {"responses": [{"text": "Two."}]}

thumb | {} | {"good": true}, {"good": true}, {"good": false} \
| {"responses": [{"text": "answer 0", "label": true}]}
thumb | {} | {"good": false} | {"responses": [{"text": "answer 0", "label": false}]}
thumb | {} | {"good": true}, {"good": false} |
"""


@pytest.mark.parametrize(("task", "more", "labels", "expected"), cells(LEARNED))
def test_what_is_learned_of_an_item(task: str, more: str, labels: str, expected: str) -> None:
    """The degrees of margins are 4 (significantly), 3, 2 and 1 (unsure), and their mean counts."""
    groups = labeled_groups(entry(task, *json.loads(f"[{labels}]"), **json.loads(more)))
    known = json.loads(f"[{expected}]")
    for group, parts in zip(map(group_to_json, groups), known, strict=True):
        assert {name: json.loads(group)[name] for name in parts} == parts


def choice(better: int) -> dict[str, Any]:
    return {"better": better}


def test_a_review_is_of_what_somebody_wrote() -> None:
    more: Any = {"tools": ({"name": "add"},), "license": "MIT"}
    one = entry("demonstration", {"text": "One."}, author="eve", **more)
    more |= {"author": "person 0", "origins": ("author",)}
    assert _review_of(one, "person 0") == Item("thumb", one.item.prompt, ("One.",), **more)


# Whose labels count


def test_gold_items_decide_who_is_left_out() -> None:
    gold = {"better": 0}
    known = [entry("pair", choice(0), choice(int(n < 3)), gold=gold) for n in range(9)]
    known += [entry("pair", choice(1), gold=gold), entry("pair", choice(0), choice(1))]
    # With a text that is another one than the gold text, nobody is wrong
    known += [entry("demonstration", {"text": "a"}, gold={"text": "b"}) for _ in range(9)]
    unsure = entry("pair", gold=gold)
    unsure.votes["eve"] = choice(1)
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

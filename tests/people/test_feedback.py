"""Labels of people as groups: pairs with margins, rankings with ties, scores, demonstrations,
thumbs.
"""

from __future__ import annotations

from typing import Any

import pytest

from alignkit import BadRow, Group, Pair
from alignkit.data.group import resolved_pairs
from alignkit.testing import check_format
from alignkit_plugins.people.format import Feedback

ANSWERS = {"pair": 2, "safety": 2, "ranking": 3, "scores": 2, "demonstration": 0, "thumb": 1}


def row(task: str, *labels: Any, final: Any = None, **more: Any) -> dict[str, Any]:
    answers = [f"answer {number}" for number in range(ANSWERS[task])]
    item = {
        "task": task,
        "prompt": [{"role": "user", "content": "Hi"}],
        "responses": answers,
        **more,
    }
    votes = [
        {"annotator": f"person {number}", "label": label} for number, label in enumerate(labels)
    ]
    return {"feedback": 1, "item": item, "votes": votes, **({"final": final} if final else {})}


def read(row: Any, **options: Any) -> Group:
    (group,) = Feedback(Feedback.Options(**options)).groups(row)
    return group


def choice(better: int, margin: str = "better", **more: Any) -> dict[str, Any]:
    return {"better": better, "margin": margin, **more}


@pytest.mark.parametrize("votes", ["soft", "majority", "each"])
def test_one_label_of_a_pair(votes: str) -> None:
    group = read(
        row("pair", choice(1, "slightly"), origins=["sft", "base"], meta={"use": "chat"}),
        votes=votes,
    )
    assert group.pairs == (Pair(1, 0, margin="slightly"),)
    assert [response.source for response in group.responses] == ["sft", "base"]
    assert group.meta == {"use": "chat"}


def test_several_labels_of_a_pair() -> None:
    two_to_one = row(
        "pair", choice(0, "significantly"), choice(0, "significantly"), choice(1, "unsure")
    )
    (soft,) = read(two_to_one).pairs or ()
    # (4 + 4 - 1) / 3 = 2.33
    assert (soft.better, soft.p, soft.margin) == (0, pytest.approx(2 / 3), "slightly")
    assert read(two_to_one, votes="majority").pairs == (Pair(0, 1, margin="slightly"),)
    each = read(two_to_one, votes="each").pairs
    assert each == (Pair(0, 1, margin="significantly"),) * 2 + (Pair(1, 0, margin="unsure"),)


def test_as_many_for_either_response() -> None:
    split = row("pair", choice(0, "significantly"), choice(1, "unsure"))
    assert read(split).pairs == ()
    # The mean is (4 - 1) / 2
    assert read(split, votes="majority").pairs == (Pair(0, 1, margin="unsure"),)
    even = row("pair", choice(0), choice(1))
    assert read(even).pairs == ()
    assert Feedback(Feedback.Options(votes="majority")).groups(even) == []


def test_a_settled_item_has_one_label() -> None:
    settled = row("pair", choice(0), choice(0), final=choice(1, "unsure"))
    for votes in ("soft", "majority", "each"):
        assert read(settled, votes=votes).pairs == (Pair(1, 0, margin="unsure"),)
    gold = row("pair", final={"better": 1})
    assert read(gold).pairs == (Pair(1, 0),)


def test_a_safety_bin_is_a_column() -> None:
    labels = [
        choice(0, safety="both_safe"),
        choice(0, safety="preferred_safe"),
        choice(0, safety="preferred_safe"),
    ]
    assert read(row("safety", *labels)).meta == {"safety_bin": "preferred_safe"}


def test_ties_of_a_ranking_are_kept() -> None:
    group = read(row("ranking", {"ranks": [2, 1, 1]}))
    assert [response.rank for response in group.responses] == [2, 1, 1]
    assert resolved_pairs(group) == (Pair(1, 0), Pair(2, 0))


def test_several_rankings() -> None:
    three = row("ranking", {"ranks": [1, 2, 3]}, {"ranks": [1, 2, 2]}, {"ranks": [2, 1, 3]})
    soft = read(three).pairs or ()
    assert [(pair.better, pair.worse, round(pair.p, 3)) for pair in soft] == [
        (0, 1, 0.667),
        (0, 2, 1),
        (1, 2, 1),
    ]
    majority = read(three, votes="majority")
    # Mean ranks 4/3, 5/3, 8/3
    assert [response.rank for response in majority.responses] == [1, 2, 3]
    assert len(read(three, votes="each").pairs or ()) == 3 + 2 + 3


def test_scores_are_margins() -> None:
    rated = [{"helpful": 6, "harmless": 7}, {"helpful": 3, "harmless": 7}]
    again = [{"helpful": 4, "harmless": 7}, {"helpful": 4, "harmless": 7}]
    group = read(row("scores", {"scores": rated}, {"scores": again}))
    assert [response.scores["reward"] for response in group.responses] == [6, 5.25]
    assert group.pairs == (Pair(0, 1, margin=0.75),)
    assert read(row("scores", {"scores": rated}, {"scores": again}), votes="each").pairs == (
        Pair(0, 1, margin=1.5),
    )


def test_demonstrations_are_learned_each() -> None:
    groups = Feedback().groups(row("demonstration", {"text": "One."}, {"text": "Two."}))
    assert [group.responses[0].text for group in groups] == ["One.", "Two."]
    assert all(len(group.responses) == 1 for group in groups)


def test_thumbs_are_labels() -> None:
    good, bad = {"good": True}, {"good": False}
    assert read(row("thumb", good, good, bad)).responses[0].label is True
    assert read(row("thumb", bad)).responses[0].label is False
    assert Feedback().groups(row("thumb", good, bad)) == []


def test_only_the_tasks_asked_for_are_read() -> None:
    assert Feedback(Feedback.Options(tasks=["pair"])).groups(row("thumb", {"good": True})) == []
    assert read(row("pair", choice(0)), tasks=["pair"]).pairs


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"feedback": 2}, "not feedback of version 1"),
        ({"item": {"task": "pair"}}, "KeyError"),
        ({"item": "x"}, "not a row of feedback"),
        ({"votes": []}, "no label"),
        ({"votes": [{}]}, "KeyError: 'label'"),
    ],
)
def test_a_damaged_row_is_bad(change: Any, fault: str) -> None:
    with pytest.raises(BadRow, match=fault):
        read({**row("pair", choice(0)), **change})


def test_the_format_keeps_the_rules() -> None:
    check_format(
        Feedback, rows=[row("ranking", {"ranks": [1, 2, 2]}), row("thumb", {"good": True})]
    )

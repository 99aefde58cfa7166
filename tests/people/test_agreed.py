"""How far annotators agree: what each task asks, and the tables of reports and of `alignkit labels
STORE`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stores import event, opened, pair, ranking, turn

from alignkit.cli import main
from alignkit.evaluation.statistics import shown
from alignkit_plugins.people.agreement import agreement, agreement_of, people_table, sentence
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import labeled


def store_of(folder: Path, *rows: tuple[Item, dict[str, Any]]) -> Store:
    """A store with labels: (item, {annotator: payload}). Every label shows the responses in the
    item's order.
    """
    store = opened(folder, *(item for item, _ in rows))
    for item, given in rows:
        for who, payload in given.items():
            store.submit(event(item, payload, who=who))
    return store


def side(letter: str, margin: str = "better", **more: Any) -> dict[str, Any]:
    return {"side": letter, "margin": margin, **more}


def facts(store: Store) -> dict[str, Any]:
    return {
        question["question"]: question
        for question in json.loads(json.dumps(agreement(labeled(store))))
    }


def test_pairs_ask_which_one_is_better(tmp_path: Path) -> None:
    given = [("A", "better"), ("A", "slightly"), ("B", "unsure"), ("A", "better")]
    rows = [
        (pair(f"prompt {n}"), {"ann": side("A"), "bob": side(*label)})
        for n, label in enumerate(given)
    ]
    with store_of(tmp_path, *rows) as store:
        found = facts(store)
    which = found["pair"]
    assert which["same"]["mean"] == 3 / 4
    lots = [int(item.id, 16) % 2 for item, _ in rows]  # which response is 0 is drawn for each item
    assert set(lots) == {0, 1}
    sides = [[lot, lot ^ (n == 2)] for n, lot in enumerate(lots)]
    assert which["alpha"]["mean"] == pytest.approx(agreement_of(sides)["alpha"]["mean"])
    assert which["people"]["ann"]["with_others"]["mean"] == 3 / 4


def test_data_with_the_better_response_first_show_agreement_beyond_chance(tmp_path: Path) -> None:
    """80 pairs whose first response is better, and two people of whom each denies it of every
    tenth.
    """
    rows = []
    for n in range(80):
        said = {
            who: side("B" if n % 10 == place else "A") for place, who in enumerate(("ann", "bob"))
        }
        rows.append((pair(f"prompt {n}", f"good {n}"), said))
    with store_of(tmp_path, *rows) as store:
        found = facts(store)["pair"]
    assert found["same"]["mean"] == 0.8 and found["alpha"]["mean"] == pytest.approx(0.6, abs=0.05)


def test_labels_are_compared_in_the_items_order(tmp_path: Path) -> None:
    item = pair()
    with opened(tmp_path, item) as store:
        store.submit(event(item, side("A"), order=(1, 0)))
        store.submit(event(item, side("B"), who="bob", order=(0, 1)))
        assert facts(store)["pair"]["same"]["mean"] == 1


def test_rankings_are_comparisons_of_two_responses(tmp_path: Path) -> None:
    ranks = [[1, 2, 3, 4], [1, 2, 4, 3], [2, 1, 1, 4]]
    given = {who: {"ranks": row} for who, row in zip(("ann", "bob", "eve"), ranks, strict=True)}
    with store_of(
        tmp_path, (ranking(), given), (ranking("alone"), {"ann": {"ranks": [1, 1, 1, 1]}})
    ) as store:
        found = facts(store)["ranking"]
    # Without pairs that one of the two ties
    assert found["same"]["mean"] == (5 + 3 + 2) / (6 + 5 + 5)
    assert (found["items"], found["shared"], found["people"]["ann"]["items"]) == (1, 1, 1)
    assert found["alpha"]["low"] is None  # six comparisons, but one item


def test_thumbs(tmp_path: Path) -> None:
    thumb = Item("thumb", (turn("Good?"),), ("yes",))
    with store_of(tmp_path, (thumb, {"ann": {"good": True}, "bob": {"good": True}})) as store:
        assert facts(store)["thumb"]["same"]["mean"] == 1


def test_gold_labels(tmp_path: Path) -> None:
    rows = [
        (pair("a", gold={"better": 0}), {"ann": side("A"), "bob": side("B")}),
        (pair("b"), {"ann": side("B"), "bob": side("B")}),
    ]
    with store_of(tmp_path, *rows) as store:
        found = facts(store)["pair"]
    assert [found["people"][who]["with_gold"]["mean"] for who in ("ann", "bob")] == [1, 0]


def test_the_report_of_a_store(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One sentence, and a line per person; the JSON has all questions."""
    rows = [
        (pair(f"prompt {n}"), {"ann": side("A"), "bob": side("AB"[n % 3 == 0])}) for n in range(12)
    ]
    path = store_of(tmp_path, *rows).path
    assert main(["labels", str(path)]) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert (
        "pair: 67% of labels agree, alpha 0." in said
        and "over 12 items: too few items to say" in said
    )
    assert "how much better" not in said
    assert main(["labels", str(path), "--json"]) == 0
    (which,) = json.loads(capfd.readouterr().out)["result"]["agreement"]
    assert which["same"]["mean"] == pytest.approx(8 / 12)


def test_enough_items_say_how_far_people_agree(tmp_path: Path) -> None:
    rows = [
        (pair(f"prompt {n}", f"good {n}"), {"ann": side("A"), "bob": side("AB"[n % 5 == 0])})
        for n in range(50)
    ]
    with store_of(tmp_path, *rows) as store:
        found = agreement(labeled(store))
    told, alpha = sentence(found), shown(found[0]["alpha"])
    assert told == f"pair: 80% of labels agree, alpha {alpha} over 50 items" and "[" in alpha
    assert people_table(found).rows[0] == [
        "pair",
        "ann",
        "50",
        shown(found[0]["same"], percent=True),
        "-",
    ]


def test_one_annotator_agrees_with_nobody(tmp_path: Path) -> None:
    with opened(tmp_path, pair(), ranking()) as store:
        store.submit(event(pair()))
        found = agreement(labeled(store))
    assert (
        sentence(found)
        == "pair: no item has labels of two people, so how far they agree is not known"
    )
    assert people_table(found).rows == [["pair", "ann", "1", "-", "-"]]
    assert sentence([]) == "" and people_table([]).rows == []

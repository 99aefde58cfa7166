"""How far annotators agree: what each task asks, and the tables of reports and of `alignkit labels
STORE`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stores import event, opened, pair, ranking, reviewed, several, side

from alignkit.cli import main
from alignkit.evaluation.statistics import interval_text
from alignkit_plugins.people.agreement import agreement, agreement_of, people_table, sentence
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import labeled

AGAINST = {"ann": side("A"), "bob": side("B")}
Labels = tuple[Item, dict[str, Any]]  # of an item, by who gave them


def store_of(folder: Path, *rows: Labels) -> Store:
    """A store with labels. Every label shows the responses in the item's order."""
    store = opened(folder, *(item for item, _ in rows))
    for item, given in rows:
        for who, payload in given.items():
            store.submit(event(item, payload, who=who))
    return store


def facts(folder: Path, *rows: Labels) -> dict[str, Any]:
    """The agreement by question, next to items on which nobody agrees, one retired, one flagged."""
    retired, flagged = pair("retired"), pair("flagged")
    with store_of(folder, *rows, (retired, AGAINST), (flagged, AGAINST)) as store:
        store.put(retired, wanted=1, retired=True)
        store.submit(event(flagged, {"note": "a name"}, kind="flag"))
        found = json.loads(json.dumps(agreement(labeled(store))))
    return {question["question"]: question for question in found}


def test_pairs_ask_which_one_is_better(tmp_path: Path) -> None:
    """Whose better response is the first one in the data is drawn by lot, so that agreement on it
    is no habit.
    """
    said = [side("A"), side("A", "slightly"), side("B", "unsure"), side("A")]
    gold: list[Any] = [{"better": 0}, None, {"better": 0}, None]
    rows = []
    for n, label in enumerate(said):
        rows.append((pair(f"prompt {n}", gold=gold[n]), {"ann": side("A"), "bob": label}))
    which = facts(tmp_path, *rows)["pair"]
    lots = [int(item.id, 16) % 2 for item, _ in rows]  # which response is 0 is drawn for each item
    assert set(lots) == {0, 1}
    sides = [[lot, lot ^ (n == 2)] for n, lot in enumerate(lots)]
    assert which["alpha"]["mean"] == pytest.approx(agreement_of(sides)["alpha"]["mean"])
    ann, bob = (which["people"][who] for who in ("ann", "bob"))
    assert which["same"]["mean"] == ann["with_others"]["mean"] == 3 / 4
    assert (ann["with_gold"]["mean"], bob["with_gold"]["mean"]) == (1, 1 / 2)


def test_rankings_are_comparisons_of_two_responses(tmp_path: Path) -> None:
    ranks = [[1, 2, 3, 4], [1, 2, 4, 3], [2, 1, 1, 4]]
    given = {who: {"ranks": row} for who, row in zip(("ann", "bob", "eve"), ranks, strict=True)}
    alone = ranking("alone"), {"ann": {"ranks": [1, 1, 1, 1]}}
    thumb = several("thumb", "Good?", 1), {"ann": {"good": True}, "bob": {"good": True}}
    bad = several("thumb", "Bad?", 1), {"abe": {"good": False}}
    text = several("demonstration", "Write.", 0), {"ann": {"text": "a"}}
    found = facts(tmp_path, (ranking(), given), alone, thumb, bad, text)
    assert set(found) == {"ranking", "thumb"} and found["thumb"]["same"]["mean"] == 1
    assert list(found["thumb"]["people"]) == ["abe", "ann", "bob"]
    found = found["ranking"]
    # Without pairs that one of the two ties
    assert found["same"]["mean"] == (5 + 3 + 2) / (6 + 5 + 5) and found["same"]["n"] == 6
    assert (found["items"], found["shared"], found["people"]["ann"]["items"]) == (1, 1, 1)
    assert found["alpha"]["low"] is None  # six comparisons, but one item


def test_the_report_of_a_store(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One sentence, and a line per person; the JSON has all questions, and why some items teach
    nothing.
    """
    rows = [(pair(f"prompt {n}"), {**AGAINST, "bob": side("AB"[n % 3 == 0])}) for n in range(12)]
    rows.append((pair("known", gold={"better": 0}), {}))
    path = store_of(tmp_path, *rows).path
    assert main(["labels", str(path)]) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "pair: 67% of labels agree, alpha 0." in said
    assert "over 12 items: too few items to say" in said
    assert main(["labels", str(path), "--json"]) == 0
    result = json.loads(capfd.readouterr().out)["result"]
    (which,) = result["agreement"]
    assert result["tasks"] == {"pair": {"items": 13, "labels": 24, "learned from": 9, "gold": 1}}
    assert result["not_learned_from"] == {"votes tied": 4}
    assert "not learned from: votes tied: 4" in said
    assert which["same"]["mean"] == pytest.approx(8 / 12)


SAID = """
base good 2 50% [9, 91]
base off_task 1 0% [
base invented 1 100% [
base harmful 1 0% [
base unsuited 1 0% [
run/ppo good 1 0% [
run/ppo harmful 1 100% [
"""


def test_what_people_say_of_each_policy(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Thumbs of what they typed, and flags; not of an answer on which as many say the opposite."""
    flagged = {"ann": reviewed([1, 2], [4, 4], ["invented"], ["harmful"])}
    rows: list[Labels] = [(several("review", "r", 2, origins=("base", "run/ppo")), flagged)]
    rows.append((several("review", "known", 2, gold={"ranks": [1, 2]}), {}))
    typed = [("base", "a", {"ann": True}), ("base", "b", {"ann": False})]
    typed += [("run/ppo", "c", {"ann": False}), ("run/ppo", "d", {"ann": False, "bob": True})]
    for policy, text, given in typed:
        said = {who: {"good": good} for who, good in given.items()}
        rows.append((several("thumb", text, 1, origins=(policy,)), said))
    assert main(["labels", str(store_of(tmp_path, *rows).path)]) == 0
    lines = [" ".join(line.split()) for line in capfd.readouterr().out.splitlines()]
    for row in SAID.strip().splitlines():
        assert any(line.startswith(row) for line in lines), row


def test_fifty_items_say_how_far_people_agree() -> None:
    agreed = agreement_of([[1, 0]] * 10 + [[1, 1], [0, 0]] * 20)
    ann = {"items": 50, "with_others": agreed["same"], "with_gold": None}
    found = {"question": "pair", "shared": 50, **agreed, "people": {"ann": ann}}
    told, alpha = sentence([found]), interval_text(agreed["alpha"])
    assert told == f"pair: 80% of labels agree, alpha {alpha} over 50 items" and "[" in alpha
    assert "alpha 0.00" in sentence([{**found, "alpha": {**agreed["alpha"], "mean": 0.0}}])
    assert sentence([{**found, "shared": 49}]).endswith("over 49 items: too few items to say")
    same = interval_text(agreed["same"], percent=True)
    assert people_table([found], "", {}).rows == [["pair", "ann", "50", same, "-"]]


def test_one_annotator_agrees_with_nobody(tmp_path: Path) -> None:
    found = list(facts(tmp_path, (pair(), {"ann": side("A")}), (ranking(), {})).values())
    unknown = "no item has labels of two people, so how far they agree is not known"
    assert sentence(found) == f"pair: {unknown}"
    assert people_table(found, "", {}).rows == [["pair", "ann", "1", "-", "-"]]
    assert sentence([]) == "" and people_table([], "", {}).rows == []

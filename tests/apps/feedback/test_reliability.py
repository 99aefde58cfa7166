"""Whose labels count: people who fail gold items are left out, and the others weighed as Dawid and Skene did."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkit import BadRow, DataError
from alignkit.data.reading import DataSource
from alignkit.data.sources import DataSpec, load
from alignkit.registry import Component
from alignkit_apps.charts.data_lines import source_lines
from alignkit_plugins.people.records import Plan
from alignkit_plugins.people.reliability import Whose, chosen_rows, dawid_skene
from alignkit_plugins.steps.feedback import Feedback
from tests.stores import event, opened, pair

# Dawid and Skene (1979), table 1: what five anesthetists said of 45 patients, the first of them three times.
TABLE_1 = (
    "1111111 3334334 1122122 2223121 2223222 2223322 1222111 3333433 2222223 2322223 4444444 2223343 1111111 "
    "2223212 1211111 1112111 1111111 1111111 2222221 2221322 2222222 2222221 2223222 2212222 1111111 1111111 "
    "2322222 1111111 1111111 1121121 1111111 3333233 1111111 2222222 2223232 4334343 2212232 2323233 3333432 "
    "1111111 1111111 1212111 2322222 1211111 2222222"
)
OBSERVERS = (0, 0, 0, 1, 2, 3, 4)


def row(number: int, *, final: int | None = None, gold: bool = False, task: str = "pair", **said: Any) -> Any:
    item = {"task": task, "prompt": [{"role": "user", "content": f"Hi {number}"}], "responses": ["one", "two"]}
    labels = {
        who: {"better": side, "margin": "better"} if isinstance(side, int) else side for who, side in said.items()
    }
    votes = [{"annotator": who, "label": label} for who, label in labels.items()]
    more = ({} if final is None else {"final": {"better": final}}) | ({"gold": True} if gold else {})
    return number, {"feedback": 1, "item": item, "votes": votes, **more}


def chosen(rows: list[Any], **whose: Any) -> tuple[dict[int, dict[str, Any]], str]:
    """The votes that are left, as {row: {person: weight}}, and the notes."""
    found, notes = chosen_rows(rows, Whose(**whose), lambda row: True)
    votes = {n: {vote["annotator"]: vote.get("weight") for vote in one["votes"]} for n, one in found}
    return votes, "\n".join(notes)


def test_the_estimates_are_those_of_the_paper() -> None:
    answers = [
        (who, patient, int(said) - 1)
        for patient, line in enumerate(TABLE_1.split())
        for who, said in zip(OBSERVERS, line, strict=True)
    ]
    shares, errors, truths = dawid_skene(*zip(*answers, strict=True), 4, {})
    assert shares.round(2).tolist() == [0.40, 0.42, 0.11, 0.07]
    first = [[0.89, 0.11, 0, 0], [0.07, 0.88, 0.05, 0], [0, 0.34, 0.66, 0], [0, 0, 0.56, 0.44]]
    assert errors[0].T.round(2).tolist() == first  # a row for each true class
    assert truths[2].round(2).tolist() == [0, 1, 0, 0]  # patient 3, of whom three said 1 and four 2
    assert np.allclose(truths.sum(axis=1), 1) and np.allclose(errors.sum(axis=1), 1)


def test_known_truths_are_not_overruled() -> None:
    said = [item % 2 for item in range(6)] * 2  # two people, of six items
    people, items = [0] * 6 + [1] * 6, [*range(6)] * 2
    assert dawid_skene(people, items, said, 2, {})[2].round(3).tolist() == [[1, 0], [0, 1]] * 3
    _, errors, truths = dawid_skene(people, items, said, 2, {0: 1})
    assert truths[0].tolist() == [0, 1] and truths[1].round(3).tolist() == [0, 1]
    assert errors[0, 0, 1] > 0.2 and errors[1, 0, 1] > 0.2  # both are known to say 0 where 1 is true


def guessing(count: int = 200, seed: int = 0) -> list[Any]:
    """Rows in which two are right in 85% and the third guesses; the file has the better answer first."""
    rng = random.Random(seed)
    right = {"ada": 0.85, "bob": 0.85, "cleo": 0.5}
    return [row(n, **{who: int(rng.random() > share) for who, share in right.items()}) for n in range(count)]


def test_one_who_guesses_weighs_next_to_nothing_and_first_is_not_better() -> None:
    rows = guessing()
    swapped = [row(n, **{v["annotator"]: 1 - v["label"]["better"] for v in r["votes"]}) for n, r in rows]
    votes, notes = chosen(rows, weights="dawid_skene")
    weights = votes[0]
    assert weights["ada"] == pytest.approx(math.log(0.85 / 0.15), abs=0.5)
    assert weights["bob"] == pytest.approx(math.log(0.85 / 0.15), abs=0.5)
    assert weights.get("cleo", 0) < 0.4
    assert "weighed by Dawid and Skene, right in: ada 8" in notes
    assert chosen(swapped, weights="dawid_skene")[0][0] == weights


def test_one_who_is_worse_than_chance_counts_nothing() -> None:
    rows = [row(n, ada=n % 2, bob=n % 2, cleo=1 - n % 2) for n in range(20)]
    votes, notes = chosen(rows, weights="dawid_skene")
    assert set(votes[0]) == {"ada", "bob"} and "cleo 4.6%, counts nothing" in notes


def test_two_labels_say_little_and_none_in_common_nothing() -> None:
    rows = [row(n, ada=0, bob=0) for n in range(40)] + [row(40, ada=0, dan=0), row(41, bob=0, dan=0), row(42, eve=1)]
    votes, notes = chosen(rows, weights="dawid_skene")
    assert votes[40]["dan"] == pytest.approx(math.log(3), abs=0.05)  # as if 3 of 4 were right
    assert votes[40]["ada"] > votes[40]["dan"] + 2
    assert votes[42]["eve"] is not None and "weighed like the mean, no shared item: eve" in notes


def test_ties_of_two_stay_ties() -> None:
    rows = [row(0, ada=0, bob=1), *(row(n, ada=0, bob=0) for n in range(1, 5))]
    votes, _ = chosen(rows, weights="dawid_skene")
    assert votes[0]["ada"] == votes[0]["bob"]


def test_gold_items_decide_who_is_left_out() -> None:
    gold = [row(n, final=0, gold=True, ada=0, bob=int(n < 3), dan=0) for n in range(9)]
    gold += [row(9, final=0, gold=True, ada=1, eve=1), row(10, final=0, bob=1)]  # one adjudicated, which is no gold
    rest = [row(20, ada=0, bob=1, eve=0), row(21, bob=1)]
    votes, notes = chosen([*gold, *rest], min_gold=0.8)
    assert votes[20] == {"ada": None, "eve": None} and 21 not in votes  # ada: 9 of 10; bob: 6 of 9
    assert "left out, gold below 80%: bob 6 of 9" in notes
    assert "kept, under 5 gold items: eve 0 of 1" in notes
    assert votes[0] == {"ada": None, "dan": None} and votes[10] == {}  # what is settled stays
    assert chosen([*gold, *rest], min_gold=0.6)[0][21] == {"bob": None}


def test_only_the_people_asked_for_are_read() -> None:
    votes, notes = chosen([row(0, ada=0, bob=1), row(1, bob=1)], annotators=["ada"])
    assert votes == {0: {"ada": None}} and not notes


@pytest.mark.parametrize(
    ("whose", "said", "fault"),
    [
        ({"annotators": ["adda"]}, {"ada": 0}, "nobody called 'adda' labeled anything here; did you mean 'ada'"),
        ({"annotators": ["zoe"]}, {"ada": 0, "bob": 0}, "annotators: ada, bob"),
        ({"min_gold": 0.8}, {"ada": 0}, "'min_gold' needs gold items .* --gold FILE"),
        ({"weights": "dawid_skene"}, {"ada": 0}, "needs items that two people labeled, or gold items"),
        ({"weights": "dawid_skene"}, {"ada": 0, "bob": 1}, "no label is left; .*ada 50.0%, counts nothing"),
    ],
)
def test_options_that_do_not_suit_the_labels(whose: Any, said: Any, fault: str) -> None:
    with pytest.raises(BadRow, match=fault):
        chosen([row(0, **said)], **whose)


def test_min_gold_that_leaves_nobody_is_an_error() -> None:
    with pytest.raises(BadRow, match="leaves nobody; gold items right: ada 0 of 5"):
        chosen([row(n, final=0, gold=True, ada=1) for n in range(5)], min_gold=0.5)


def test_rows_that_cannot_be_read_are_left_to_the_format() -> None:
    damaged = [(5, BadRow("no JSON")), (6, {"feedback": 1, "item": {"task": "ranking"}, "votes": [{"label": {}}]})]
    found, _ = chosen_rows([*damaged, row(0, ada=0)], Whose(annotators=["ada"]), lambda row: True)
    assert found[:2] == damaged


def groups_of(rows: list[Any], **options: Any) -> list[Any]:
    form = Feedback(Feedback.Options(**options))
    return [group for _, one in form.rows(iter(rows)) for group in form.groups(one)]


def test_the_probability_of_a_pair_is_the_model_s() -> None:
    rows = [*guessing(), row(1000, ada=0, bob=0, cleo=1), row(1001, ada=1)]
    weights = chosen(rows, weights="dawid_skene")[0][1000]
    both, one = groups_of(rows, weights="dawid_skene")[-2:]
    odds = weights["ada"] + weights["bob"] - weights.get("cleo", 0)
    assert both.pairs[0].p == pytest.approx(1 / (1 + math.exp(-odds))) and both.pairs[0].p > 0.9
    assert (one.pairs[0].better, one.pairs[0].p) == (1, pytest.approx(1 / (1 + math.exp(-weights["ada"]))))
    (settled,) = groups_of([*rows, row(9, final=1, ada=0)], weights="dawid_skene")[-1:]
    assert (settled.pairs[0].better, settled.pairs[0].p) == (1, 1.0)
    assert groups_of([row(1, ada=0, bob=0, cleo=1)])[0].pairs[0].p == pytest.approx(2 / 3)


def test_rankings_and_scores_are_weighed() -> None:
    agreed, other = {"ranks": [1, 2]}, {"ranks": [2, 1]}
    rows = [row(n, task="ranking", ada=agreed, bob=agreed, cleo=[agreed, other][n % 2]) for n in range(40)]
    rows.append(row(40, task="ranking", ada=agreed, cleo=other))
    assert groups_of(rows)[-1].pairs == ()
    (pair_of_ada,) = groups_of(rows, weights="dawid_skene")[-1].pairs
    assert (pair_of_ada.better, pair_of_ada.worse) == (0, 1) and pair_of_ada.p > 0.9
    high, low = ({"scores": [{"overall": a}, {"overall": b}]} for a, b in ((7, 1), (1, 7)))
    rows = [row(n, task="scores", ada=high, bob=high, cleo=[high, low][n % 2]) for n in range(40)]
    rows.append(row(40, task="scores", ada=high, cleo=low))
    assert groups_of(rows)[-1].pairs == ()
    assert groups_of(rows, weights="dawid_skene")[-1].pairs[0].better == 0


def test_weights_join_labels() -> None:
    with pytest.raises(ValueError, match="'weights' needs 'votes: soft' or 'votes: majority'"):
        Feedback.Options(weights="dawid_skene", votes="each")


def source(path: Path, **options: Any) -> Any:
    from alignkit.plugins import load_plugins

    registration = load_plugins().registry.get("format", "feedback")
    found = DataSource(Component("format", "feedback", registration, Feedback.Options(**options)), path=path)
    return load(DataSpec((found,)), formats={"feedback": Feedback}, seed=0, stage_data=lambda stage: path)


def test_a_run_says_who_was_left_out(tmp_path: Path) -> None:
    gold = [pair(f"gold {n}", gold={"better": 0, "margin": "better"}) for n in range(5)]
    item = pair("Hi")
    with opened(tmp_path, item, *gold) as store:
        store.set_plan(Plan(overlap=2))
        for who, side in (("ada", "A"), ("bob", "B")):
            for one in (item, *gold):
                store.submit(event(one, {"side": side, "margin": "better"}, who=who, order=(0, 1)))
    path = tmp_path / "labels.feedback"
    loaded = source(path, min_gold=0.8)
    assert loaded.groups[0].pairs[0].better == 0
    note = "left out, gold below 80%: bob 0 of 5"
    assert list(loaded.sources[0].notes) == [note]
    assert f"read {path}: {note}" in source_lines(loaded.sources[0])
    assert not source(path).sources[0].notes
    with pytest.raises(DataError, match=r"labels\.feedback: 'annotators': nobody called 'adam'"):
        source(path, annotators=["adam"])

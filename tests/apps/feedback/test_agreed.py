"""How far annotators agree, in brief: the tables for reports of runs and steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stores import event, opened, pair, ranking, scores

from alignkit.errors import DataError
from alignkit.evaluation.agreement import interval
from alignkit.report import Table
from alignkit_plugins.people.agreement_summary import ALONE, agreement, agreement_tables
from alignkit_plugins.people.effective_labels import labeled
from alignkit_plugins.people.measure import measured
from alignkit_plugins.people.questions import questions_of
from alignkit_plugins.people.store import Store


def labeled_by_three(folder: Path) -> Store:
    """Ann and bob disagree on the first of four pairs, and eve labels only the last. The reward prefers A."""
    gold = {"better": 0, "margin": "better"}
    opinions = {"helpful": [1.0, -1.0], "judge": [0.5, 0.5]}
    items = [pair(f"prompt {n}", opinions=opinions, gold=gold if n == 3 else None) for n in range(4)]
    store = opened(folder, *items)
    for n, item in enumerate(items):
        store.submit(event(item, {"side": "A", "margin": "better"}))
        store.submit(event(item, {"side": "AB"[n == 0], "margin": "slightly"}, who="bob"))
    store.submit(event(items[3], {"side": "B", "margin": "unsure"}, who="eve"))
    return store


def titled(tables: list[Table], title: str) -> Table:
    (found,) = [table for table in tables if table.title.startswith(title)]
    return found


def test_the_tables_show_what_was_measured(tmp_path: Path) -> None:
    with labeled_by_three(tmp_path) as store:
        entries = labeled(store)
    facts = json.loads(json.dumps(agreement(entries)))
    tables = agreement_tables(facts, "labels.feedback")
    assert all(table.title.endswith("(labels.feedback)") for table in tables)
    which = {row[1]: row for row in titled(tables, "how far annotators agree").rows if "which" in row[0]}
    units = [list(unit.ratings.values()) for unit in questions_of(entries)[0].units]
    assert which["Gwet's AC1"][2].startswith(f"{interval(units, 'gwet_ac1')['mean']:.2f}")
    assert which["Gwet's AC1"][3] == "4"
    assert "Fleiss' kappa" not in which  # needs as many labels of each item
    people = {row[1]: row[2:] for row in titled(tables, "annotators").rows if row[0] == "pair: which is better"}
    assert people["eve"][0] == "1" and people["eve"][1].startswith("0%") and people["eve"][2].startswith("0%")
    assert people["ann"][0] == "4" and people["ann"][1].startswith("60%")  # of five comparisons
    against = {row[1]: row[2:] for row in titled(tables, "people against").rows}
    assert list(against) == ["gold labels", "helpful"]  # a judge that is undecided says nothing
    assert against["helpful"][0].startswith("78%")  # of nine labels


def test_rankings_have_their_own_coefficients(tmp_path: Path) -> None:
    item = ranking(count=3, opinions={"helpful": [3.0, 2.0, 1.0]})
    with opened(tmp_path, item) as store:
        store.submit(event(item, {"ranks": [1, 2, 3]}))
        store.submit(event(item, {"ranks": [1, 3, 2]}, who="bob"))
        tables = agreement_tables(agreement(labeled(store)))
    found = {row[1]: row[2:] for row in titled(tables, "how far annotators agree").rows}
    assert found.keys() == {"raw agreement", "Kendall's tau-b", "Kendall's W"}
    assert found["raw agreement"] == ["0.67", "1"]
    name, rater, share, *_ = titled(tables, "people against").rows[0]
    assert (name, rater) == ("ranking", "helpful") and share.startswith("83%")  # of six pairs


def test_one_annotator_agrees_with_nobody(tmp_path: Path) -> None:
    with opened(tmp_path, pair(), scores()) as store:
        store.submit(event(pair()))
        tables = agreement_tables(agreement(labeled(store)))
    (table, people) = tables
    assert table.note == ALONE and {tuple(row[1:]) for row in table.rows} == {("-", "-", "0")}
    assert {tuple(row[1:]) for row in people.rows} == {("ann", "1", "-", "-")}
    assert agreement_tables([]) == []


def test_an_opinion_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with labeled_by_three(tmp_path) as store:
        entries = labeled(store)
    (which, _) = questions_of(entries, "helpful")
    assert list(measured(which)["against"]) == ["helpful"]
    with pytest.raises(DataError, match="did you mean 'helpful'"):
        questions_of(entries, "helpfull")


def test_people_who_say_the_same_are_no_more_items(tmp_path: Path) -> None:
    items = [pair(f"prompt {n}", opinions={"helpful": [1.0, 0.0] if n % 4 else [0.0, 1.0]}) for n in range(20)]
    with opened(tmp_path, *items) as store:
        for item in items:
            for who in ("ann", "bob", "eve"):
                store.submit(event(item, who=who))
        which, _ = agreement(labeled(store))
    found = which["against"]["helpful"]
    widths = [found[name]["high"] - found[name]["low"] for name in ("ratings", "majority")]
    assert (found["ratings"]["mean"], found["ratings"]["n"]) == (0.75, 60)
    assert widths[0] == pytest.approx(widths[1], rel=0.05)

"""The card of a stage's data: tables, and sources without one."""

from pathlib import Path
from typing import Any

import pytest
from made import SOURCES, make_run, write_stage

from alignkit_plugins.report import data_card as data_cards
from alignkit_plugins.report.document import page
from alignkit_plugins.report.facts import facts_of


@pytest.mark.parametrize("card", [None, {}])
def test_runs_without_a_card_have_a_report(card: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plain = {key: value for key, value in SOURCES["sft"][0].items() if key != "card"}
    write_stage(run / "sft", "sft", data=[plain if card is None else {**plain, "card": card}])
    facts = facts_of(run)
    assert facts["data"][0]["rows"] == 40
    assert "demos.jsonl" in page(facts)


def test_names_and_shares_are_short() -> None:
    names = ("/a/b/c.jsonl", "../c.jsonl", "org/set[train]", "stage sft")
    assert [data_cards.brief_name(name) for name in names] == [
        "c.jsonl",
        "c.jsonl",
        "org/set[train]",
        "stage sft",
    ]
    item = {"rows": 1200, "reason": "rows left out", "of": 4000}
    assert data_cards.left_out(item) == "1,200 rows left out (30% of 4,000)"
    assert data_cards.left_out({**item, "of": None}) == "1,200 rows left out"


def test_what_was_counted_twice_has_no_share(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_stage(
        run / "sft", "sft", summary={"encoded": {"rows": 4, "responses": 4}, "encoding": {"cut": 9}}
    )
    (item,) = facts_of(run)["dropped"]
    assert item == {
        "stage": "sft",
        "reason": "responses truncated at max_length",
        "rows": 9,
        "of": None,
    }

"""The card of a stage's data: histograms, tables, and files of older versions or with something odd in them."""

from pathlib import Path
from typing import Any

import pytest
from made import SOURCES, make_run, write_stage

from alignkit_apps.charts import data_cards, figures
from alignkit_apps.report.facts import facts_of
from alignkit_apps.report.page import page

SOURCE = {"stage": "sft", **SOURCES["sft"][0], **SOURCES["sft"][0]["card"]}


def test_histograms_show_shares_below_the_ends_of_their_bins() -> None:
    lengths, margins = data_cards.figures([SOURCE])
    assert lengths["title"] == "Lengths in demos.jsonl" and lengths["x_label"] == "up to this many characters"
    prompts, responses = lengths["series"]
    assert prompts["labels"] == responses["labels"] == ["20", "50", "100", "200"]
    assert prompts["y"] == [62.5, 37.5, 0.0, 0.0] and responses["y"] == [0.0, 25.0, 50.0, 25.0]
    assert (lengths["y_label"], margins["y_label"]) == ("%", "% of pairs")
    assert margins["series"][0]["labels"] == ["significantly", "unsure", "none"]
    assert margins["series"][0]["y"] == pytest.approx([100 * n / 12 for n in (4, 6, 2)])
    numbers = {"count": 4, "bins": [[0.5, 1], [1.25, 3]]}
    _, margins = data_cards.figures([{**SOURCE, "pairs": {**SOURCE["pairs"], "margins": numbers}}])
    assert margins["series"][0]["labels"] == ["0.5", "1.2"] and margins["series"][0]["y"] == [25.0, 75.0]


def test_stages_that_read_the_same_rows_share_a_histogram() -> None:
    assert len(data_cards.figures([SOURCE, {**SOURCE, "stage": "dpo"}])) == 2
    assert len(data_cards.figures([SOURCE, {**SOURCE, "stage": "dpo", "name": "other.jsonl"}])) == 4


def test_bars_are_drawn_side_by_side_with_their_names() -> None:
    lengths, margins = data_cards.figures([SOURCE])
    drawn = figures.svg(lengths, "f0")
    assert all(f">{label}<" in drawn for label in ("20", "50", "100", "200", "prompts", "responses"))
    assert drawn.count("fill: var(--series-0)") == 4 + 1 and "stroke: var(--series-1)" in drawn  # and the legend
    assert "fill: var(--series-1)" not in drawn
    assert all(f">{label}<" in figures.svg(margins, "f1") for label in ("significantly", "unsure", "none"))
    many = [[10 * at, 1] for at in range(1, 60)]
    (crowded,) = data_cards.figures([{"stage": "s", "name": "n", "response_characters": {"bins": many}}])
    assert 5 < figures.svg(crowded, "f2").count("<text") < 30


@pytest.mark.parametrize(
    "card",
    [None, 3, {}, {"responses": "x", "pairs": 3, "labels": []}, {"prompt_characters": {"bins": [1, [2], ["x", 3]]}}],
)
def test_runs_without_a_card_have_a_report(card: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plain = {key: value for key, value in SOURCES["sft"][0].items() if key != "card"}
    write_stage(run / "sft", "sft", data=[plain if card is None else {**plain, "card": card}])
    facts = facts_of(run)
    assert facts["data"][0]["rows"] == 40 and not any(map(data_cards.is_histogram, facts["figures"]))
    assert "demos.jsonl" in page(facts)


def test_bins_with_the_same_end_are_added() -> None:
    """Margins that differ by a rounding have bins whose ends do not."""
    bins = [[1e16, 1], [1e16, 0], [1.0000000000000002e16, 0], [1.0000000000000002e16, 3]]
    pairs = {"count": 4, "margins": {"bins": bins}}
    (figure,) = data_cards.figures([{"stage": "rm", "name": "p.jsonl", "pairs": pairs}])
    assert figure["series"][0]["y"] == [25.0, 75.0]


def test_names_and_shares_are_short() -> None:
    names = ("/a/b/c.jsonl", "../c.jsonl", "org/set[train]", "stage sft")
    assert [data_cards.brief_name(name) for name in names] == ["c.jsonl", "c.jsonl", "org/set[train]", "stage sft"]
    item = {"rows": 1200, "reason": "rows left out", "of": 4000}
    assert data_cards.left_out(item) == "1,200 rows left out (30% of 4,000)"
    assert data_cards.left_out({**item, "of": None}) == "1,200 rows left out"


def test_what_was_counted_twice_has_no_share(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_stage(run / "sft", "sft", summary={"encoded": {"rows": 4, "responses": 4}, "encoding": {"cut": 9}})
    (item,) = facts_of(run)["dropped"]
    assert item == {"stage": "sft", "reason": "responses truncated at max_length", "rows": 9, "of": None}

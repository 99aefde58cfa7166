"""Figures: the same bytes every time, no scripts, and text that stays text."""

import warnings
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from made import HOSTILE, align_rows, make_run

from alignkit_plugins.report import curves, figures
from alignkit_plugins.report.facts import facts_of


def test_figures_are_byte_identical_and_small(tmp_path: Path) -> None:
    found = facts_of(make_run(tmp_path / "run"))["figures"]
    drawn = figures.drawn(found)
    assert drawn == figures.drawn(found)
    for address, words, _ in drawn:
        text = unquote(address.removeprefix("data:image/svg+xml,"))
        assert ElementTree.fromstring(text).tag.endswith("svg") and len(text) < 30_000
        assert "<script" not in text and words


def test_hostile_names_are_text() -> None:
    rows = [
        {**row, HOSTILE: at % 3, f"score/{HOSTILE}": at, "score/$": 1}
        for at, row in enumerate(align_rows())
    ]
    for panel in curves.panels(HOSTILE, rows):
        text = figures.svg(panel)
        ElementTree.fromstring(text)
        assert "<script" not in text and "\u202e" not in text and "\x1b" not in text


def test_numbers_that_cannot_be_drawn_cost_no_other_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"step": at, "loss": (-1) ** at * 1.7e308, "kl": 1e-320 * at, "reward": 1e-12 * at}
        for at in range(1, 9)
    ]
    panels = curves.panels("align", rows)
    assert all(
        address or note.startswith("could not be drawn: ")
        for address, _, note in figures.drawn(panels)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.svg({**panels[1], "title": "損失", "x_label": "歩"})
    monkeypatch.setattr(figures, "_draw", lambda canvas, figure: 1 / 0)
    assert {(address, note) for address, _, note in figures.drawn(panels)} == {
        ("", "could not be drawn: ZeroDivisionError: division by zero")
    }


def test_a_figure_is_described_for_those_who_cannot_see_it() -> None:
    panel = curves.panels("align", align_rows())[0]
    assert figures.described(panel) == "align: Reward; reward from 1.909 to 3.107"

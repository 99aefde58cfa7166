"""Figures: the same bytes every time, no scripts, colors of the page, and text that stays text."""

import itertools
import re
import warnings
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import pytest
from made import HOSTILE, align_rows, make_run

from alignkit_apps.charts import curves, figures
from alignkit_apps.report.facts import facts_of

WIDE = 32  # of `policy_0`, in points


def test_figures_are_byte_identical_and_whole(tmp_path: Path) -> None:
    drawn = figures.drawn(facts_of(make_run(tmp_path / "run"))["figures"])
    assert [text for _, text in drawn] == [text for _, text in figures.drawn([figure for figure, _ in drawn])]
    found = [re.findall(r'\bid="([^"]+)"', text) for _, text in drawn]
    ids = [name for names in found for name in names]
    assert len(ids) == len(set(ids))
    for _, text in drawn:
        ElementTree.fromstring(text)
        assert not re.search(r"<script|<style|<metadata|xlink|#01|#02|#03|http|font-family", text)
        assert set(re.findall(r"var\((--[a-z]+)", text)) <= {"--ink", "--muted", "--grid", "--series"}


def test_figures_are_small() -> None:
    (panel,) = curves.panels("sft", [{"step": at, "loss": at % 3} for at in range(9)])
    assert len(figures.svg(panel, "f")) < 4500


def test_hostile_names_are_text(tmp_path: Path) -> None:
    rows = [{**row, HOSTILE: at % 3, f"score/{HOSTILE}": at, "score/$": 1} for at, row in enumerate(align_rows())]
    for _, text in figures.drawn(curves.panels(HOSTILE, rows)):
        ElementTree.fromstring(text)
        assert "<script" not in text and "\u202e" not in text and "\x1b" not in text


def test_numbers_that_cannot_be_drawn_cost_no_other_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"step": at, "loss": (-1) ** at * 1.7e308, "kl": 1e-320 * at, "reward": 1e-12 * at} for at in range(1, 9)]
    panels = curves.panels("align", rows)
    found = {figure["title"]: (figure["note"], text) for figure, text in figures.drawn(panels)}
    assert all(text or note.startswith("could not be drawn: ") for note, text in found.values())
    assert found["Reward"][1].startswith("<svg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.svg({**panels[1], "title": "損失", "x_label": "歩"}, "f")
    monkeypatch.setattr(figures, "_draw", lambda canvas, figure: 1 / 0)
    assert {note for figure, text in figures.drawn(panels) for note in [figure["note"]] if not text} == {
        "could not be drawn: ZeroDivisionError: division by zero"
    }


def test_a_figure_is_described_for_those_who_cannot_see_it() -> None:
    panel = curves.panels("align", align_rows())[0]
    assert 'aria-label="align: Reward; reward from 1.909 to 3.107"' in figures.svg(panel, "f")


def test_names_of_points_do_not_cover_each_other() -> None:
    x, y = [0, 0, 0.1, 0.4, 0.41, 0.42, 0.41, 0.9], [0, 0, 0.01, 0.3, 0.31, 0.29, 0.3, 0.5]
    points: curves.Series = {"name": "policies", "style": "points", "x": x, "y": y}
    points["labels"] = [f"policy_{at}" for at in range(len(x))]
    panel = {**curves.panels("align", align_rows())[0], "series": [points]}
    drawn = re.findall(
        r'anchor: (\w+);[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>policy_\d<', figures.svg(cast(Any, panel), "f")
    )
    boxes = [(float(left) - (WIDE if anchor == "end" else 0), float(top)) for anchor, left, top in drawn]
    assert len(boxes) == len(x)
    for one, other in itertools.combinations(boxes, 2):
        assert abs(one[0] - other[0]) > WIDE or abs(one[1] - other[1]) > 8, (one, other)

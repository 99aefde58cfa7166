"""What a report says of the people whose labels a run learned from."""

from __future__ import annotations

import json
from pathlib import Path

from made import SOURCES, make_run, write_stage

from alignkit.io.results import AGREEMENT
from alignkit_plugins.report.document import page
from alignkit_plugins.report.facts import facts_of

AGREED = SOURCES["sft"][0]["agreement"]  # two people agree on half of 8 pairs


def run_of(folder: Path, *stages: str) -> Path:
    """A run of which these stages read one store."""
    run = make_run(folder / "run")
    source = {**SOURCES["sft"][0], "name": "/data/labels.feedback"}
    for name in ("sft", "labels"):
        write_stage(run / name, name, data=[source] * (name in stages))
    return run


def test_the_report_shows_how_far_people_agree(tmp_path: Path) -> None:
    facts = facts_of(run_of(tmp_path, "sft", "labels"))
    assert [one["stage"] for one in facts["people"]] == ["sft", "labels"]
    text = page(facts).replace("\xa0", " ")
    assert text.count("of labels agree") == 1  # both stages read the same labels
    assert "labels.feedback, sft, labels: pair: " in text and "50% of labels agree" in text
    assert "bob" in text and "50% [25, 75]" in text and '<a href="#people">' in text


def test_a_step_that_asked_people_is_shown(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    assert facts_of(run)["people"] == [] and 'id="people"' not in page(facts_of(run))
    (run / "labels" / AGREEMENT).write_text(json.dumps({"questions": AGREED}))
    facts = facts_of(run)
    assert [(one["stage"], one["source"]) for one in facts["people"]] == [("labels", "")]
    assert "<p>labels: pair: which is better: 50% of labels agree" in page(facts)

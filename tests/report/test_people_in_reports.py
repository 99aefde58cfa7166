"""What a report says of the people whose labels a run learned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made import SOURCES, make_run, write_stage
from stores import event, opened, pair

from alignkit.io.results import AGREEMENT
from alignkit_plugins.people.agreement import agreement
from alignkit_plugins.people.votes import labeled
from alignkit_plugins.report.document import page
from alignkit_plugins.report.facts import facts_of


@pytest.fixture
def agreed(tmp_path: Path) -> list[dict[str, Any]]:
    """Two people agree on the first of two pairs only."""
    with opened(tmp_path, *(pair(f"prompt {n}") for n in range(2))) as store:
        for n, stored in enumerate(store.items()):
            store.submit(event(stored.item))
            store.submit(event(stored.item, {"side": "AB"[n], "margin": "better"}, who="bob"))
        return agreement(labeled(store))


def run_of(folder: Path, agreed: Any, **stages: str) -> Path:
    """A run whose stages read one store."""
    run = make_run(folder / "run")
    source = {**SOURCES["sft"][0], "name": "/data/labels.feedback", "agreement": agreed}
    write_stage(run / "sft", "sft", data=[])
    for name, plugin in stages.items():
        write_stage(run / name, plugin, data=[source])
    return run


def test_the_report_shows_how_far_people_agree(tmp_path: Path, agreed: Any) -> None:
    facts = facts_of(run_of(tmp_path, agreed, sft="sft", labels="judge_pairs"))
    stages = [(one["stage"], one["source"]) for one in facts["people"]]
    assert stages == [(stage, "/data/labels.feedback") for stage in ("sft", "labels")]
    text = page(facts).replace("\xa0", " ")
    assert text.count("of labels agree") == 1  # both stages read the same labels
    assert "labels.feedback, sft, labels: pair: " in text
    assert "50% of labels agree" in text and "over 2 items: too few items to say" in text
    assert "bob" in text and "50% [9, 91]" in text and '<a href="#people">' in text


def test_a_step_that_asked_people_is_shown(tmp_path: Path, agreed: Any) -> None:
    run = run_of(tmp_path, agreed)
    assert facts_of(run)["people"] == [] and 'id="people"' not in page(facts_of(run))
    (run / "labels" / AGREEMENT).write_text(json.dumps({"questions": agreed}))
    facts = facts_of(run)
    assert [(one["stage"], one["source"]) for one in facts["people"]] == [("labels", "")]
    assert "labels: pair: 50% of labels agree" in page(facts)

"""What `alignkit label` says when it stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignkit_apps.label.start import said_last
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.store import Store
from tests.stores import event, pair


def test_what_it_says_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of plain files are for a recipe; those that a run waits for are for that run."""
    monkeypatch.chdir(tmp_path)
    stage = tmp_path / "runs" / "a" / "ask"
    stage.mkdir(parents=True)

    def last(path: str, *items: Item) -> str:
        with Store.open(path, new=True) as store:
            store.add(items)
            for item in items:
                store.submit(event(item))
            return said_last(store)

    assert last("none.feedback") == "no labels yet; they will be in none.feedback"
    assert last("runs/p.feedback", pair("a")) == (
        "1 label is in runs/p.feedback; train on it with `data: runs/p.feedback`"
    )
    absolute = str(tmp_path / "two.feedback")
    assert last(absolute, pair("a"), pair("b", held_out=True)) == (
        "2 labels are in two.feedback; train on them with `data: two.feedback`"
    )
    assert last("held.feedback", pair("a", held_out=True)).endswith("run the recipe again to continue")
    before = last("shared.feedback", pair("a", batch="runs/a/ask"))
    (stage.parent / "starts.jsonl").touch()
    after = last("shared.feedback", pair("b", batch="runs/a/ask"))
    assert "train on it" in before and after.endswith("`alignkit run` with the same recipe continues")
    assert "2 labels are in runs/a/labels.feedback; `alignkit run`" in last(
        "runs/a/labels.feedback", pair("a"), pair("b")
    )

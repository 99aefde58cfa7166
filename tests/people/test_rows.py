"""A store is read in a recipe with one line, as it is at that moment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from stores import event, opened, pair

from alignkit.cli import main
from alignkit.data.group import Pair
from alignkit.data.sources import DataSource, DataSpec, content_digest, load
from alignkit.io.digest import file_digest
from alignkit.plugins import plugins
from alignkit_plugins.people.agreement import StoreReader

FORMATS = {entry.name: entry.implementation for entry in plugins().registrations("format")}


def read(path: Path) -> Any:
    return load(
        DataSpec((DataSource(path=path),)), formats=FORMATS, seed=0, commit=Mock(), stage_data=Path
    )


def test_what_counts_is_read_and_nothing_else(tmp_path: Path) -> None:
    kinds = ["labeled", "skipped", "undone", "flagged", "nobody's", "retired", "gold"]
    items = {kind: pair(kind, batch="old" if kind == "retired" else "") for kind in kinds}
    items["gold"] = pair("gold", gold={"better": 1, "margin": "better"})
    with opened(tmp_path, *items.values()) as store:
        for kind in [*kinds[:-3], "retired"]:
            if kind != "nobody's":
                store.submit(event(items[kind], {"side": "A", "margin": "slightly"}, order=(1, 0)))
        store.submit(event(items["skipped"], {"reason": "unclear"}, kind="skip"))
        last = next(event for event in store.events() if event.item == items["undone"].id)
        store.submit(event(items["undone"], {"of": last.uuid}, kind="undo"))
        store.submit(event(items["flagged"], {"note": "private"}, kind="flag", who="bob"))
        store.ask([], "old")
        loaded = read(store.path)  # while it is open elsewhere
    assert [group.prompt[0]["content"] for group in loaded.groups] == ["labeled", "gold"]
    assert loaded.groups[0].pairs == (Pair(1, 0, margin="slightly"),)
    assert str(loaded.groups[0].origin) == f"{tmp_path / 'labels.feedback'}:1"
    assert loaded.sources[0].format == "groups" and loaded.sources[0].recognized


def test_rows_do_not_show_what_only_the_store_needs(tmp_path: Path) -> None:
    item = pair(license="MIT", batch="round 1", origins=("sft", None), priority=2.0)
    with opened(tmp_path, item) as store:
        store.submit(event(item, who="ann", seconds=3))
    ((number, row),) = StoreReader().rows(tmp_path / "labels.feedback")
    shown = json.dumps(row)
    assert number == 1 and not [word for word in ("priority", "round", "ann") if word in shown]
    assert row["responses"][0]["source"] == "sft" and row["meta"] == {"license": "MIT"}


def test_the_digest_is_of_what_counts(tmp_path: Path) -> None:
    item, other = pair(), pair("another")
    with opened(tmp_path, item, other) as store:
        path = store.path
        known = [content_digest(path)]

        def changes() -> bool:
            known.append(content_digest(path))
            return known[-1] != known[-2]

        label = store.submit(event(item))
        assert changes()  # though it is only in the log next to the file
        store.submit(event(other, {"reason": "unclear"}, kind="skip"))
        assert not changes()
        store.submit(event(item, {"of": label.uuid}, kind="undo"))
        assert changes() and known[-1] == known[0]
        store.ask([replace(item, gold={"better": 1})], "")
        assert changes()
        store.submit(event(item, {"note": "wrong"}, kind="flag"))
        assert changes()
    assert not changes()
    text = tmp_path / "a.jsonl"
    text.write_text("{}")
    assert content_digest(text) == file_digest(text)


def test_the_prompts_of_people_who_withdrew_are_not_read(tmp_path: Path) -> None:
    item = pair(author="ann")
    with opened(tmp_path, item) as store:
        store.submit(event(None, {"granted": True}, kind="consent", who="ann"))
        store.submit(event(item, who="bob"))
        assert len(list(StoreReader().rows(store.path))) == 1
        known = content_digest(store.path)
        store.submit(event(None, {"granted": False}, kind="consent", who="ann"))
        assert list(StoreReader().rows(store.path)) == []
        assert content_digest(store.path) != known


RECIPE = """
name: people
model: {base: tiny}
stages:
  reward:
    algorithm: {reward_model: {margin: llama2-small}}
    data: labels.feedback
    max_steps: 2
    batch_size: 2
"""


def test_a_store_without_labels_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path, pair()):
        pass
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 4
    assert "labels.feedback: no usable row" in capsys.readouterr().err
    (tmp_path / "labels.feedback").write_bytes(b"")
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 4
    assert "not a store of feedback" in capsys.readouterr().err

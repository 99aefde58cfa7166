"""An export holds what may be shared and nothing else; `data convert` reads it, and it becomes a
store again.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from stores import event, opened, pair, ranking, several, side, turn

from alignkit.cli import main
from alignkit.host.plugins import plugins
from alignkit.recipe.sources import DataSource, DataSpec, load
from alignkit_plugins.people import sharing
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import labeled
from tests.rows import Said, read_rows

FREE = {"license": "CC0-1.0"}
KNOWN: dict[str, Any] = {"origins": ("sft", "base"), "meta": {"from": "x@mail.example"}, **FREE}
RANKED = ranking("rank", 3, **FREE), {"ranks": [2, 1, 1]}
CALL = {"text": "Call me: +49 30 1234567"}
LABELED: list[tuple[Item, dict[str, Any]]] = [
    (
        pair("one", batch="../../home/ann/runs/labels", settled_by="bob", **KNOWN),
        side("B", "slightly"),
    ),
    (several("safety", "Harm?", 2, **FREE), side("A", "significantly", safety="preferred_safe")),
    RANKED,
    (
        several("demonstration", "Write to me at ann@mail.example.", 0, gold=CALL, **FREE),
        CALL,
    ),
    (several("thumb", "Good?", 1, author="zoe", **FREE), {"good": False}),
]


def consent(store: Store, who: str = "ann", granted: bool = True, **more: Any) -> None:
    store.submit(event(None, {"granted": granted, **more}, kind="consent", who=who))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A store with a label of each task by Ann, who shares, and two of Bob's, who does not.

    One item is retired, one is flagged, and one means nothing once it is redacted.
    """
    items = [item for item, _ in LABELED]
    unlicensed, written = pair("no license"), pair("Bob's", author="bob", **FREE)
    retired, alike = pair("Old?", **FREE), pair("Who?", "a@mail.example", "b@mail.example", **FREE)
    flagged, other = pair("Flagged", **FREE), pair("Bob only", **FREE)
    more = unlicensed, written, retired, alike, flagged, other
    with opened(tmp_path, *items, *more) as store:
        store.add_guidelines("Nobody has labeled by these")
        guidelines = store.add_guidelines("Questions to boss@mail.example")
        for who in ("ann", "zoe", "cat"):
            consent(store, who, terms="v1", about="me@mail.example · PhD")
        consent(store, "bob", granted=False, about="Bob has an MSc")
        for item, label in LABELED:
            order = (1, 0) if item is items[0] else ()
            store.submit(event(item, label, order=order, guidelines=guidelines, seconds=2.5))
        store.submit(event(items[0], side("B"), who="bob"))
        store.submit(event(other, who="bob"))
        store.submit(event(flagged, {"note": "Ask ann@mail.example"}, kind="flag"))
        store.submit(event(unlicensed))
        for item in (written, retired, alike, flagged):
            store.submit(event(item))
        store.put(retired, wanted=1, retired=True)
        return store.path


HEAD = (
    "6 items, 6 labels of 1 people, who agreed that they are shared. `alignkit labels merge` reads "
    "labels.feedback, and a recipe reads a file, or the data set: `data: {hub: ORG/NAME, name: preference}`."
)


def exported(store: Path, name: str = "out", *words: str, code: int = 0) -> Path:
    out = store.parent / name
    assert main(["labels", "export", str(store), "--out", str(out), *words]) == code
    return out


def merged(source: Path, into: Path, code: int = 0) -> Path:
    assert main(["labels", "merge", str(source), "--into", str(into)]) == code
    return into


def test_only_what_may_be_shared(made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = exported(made)
    said = capfd.readouterr().out
    assert "left out: items without a license: 1" in said
    assert "left out: items whose author has not agreed to share them: 1" in said
    assert "left out: items whose row has changed since: 1" in said
    assert "left out: items that mean nothing once they are redacted: 1" in said
    assert "left out: items without a label that may be shared: 1" in said
    assert "left out: events of people who have not agreed to share them: 3" in said
    assert "people: 2; texts in which something was redacted: 7" in said
    assert re.search(r"\[phone\] replaces \+49 30 1234567 \(item \w+\)", said)
    assert re.search(r"\[e-mail\] replaces .*ann@mail\.example \(item \w+\)", said)
    assert "old@" not in said and "ann@mail.example (a flag)" in said
    everything = b"".join(path.read_bytes() for path in out.iterdir()).replace(b"annotator", b"")
    secrets = b"ann,bob,Bob,mail.example,1234567,no license,boss,Old?,Nobody,zoe,MSc,Contributors"
    assert not [secret for secret in secrets.split(b",") if secret in everything]
    with Store.open(out / "labels.feedback") as shared:
        assert len(shared.items()) == 6 and len({event.annotator for event in shared.events()}) == 2
        assert shared.items()[0].item.batch == "labels"
    card = (out / "README.md").read_text()
    assert HEAD in card and "| [e-mail] · PhD |" in card


def test_rows_are_in_the_layouts_of_trainers(made: Path) -> None:
    """With a license for items that state none."""
    out = exported(made, "out", "--license", "CC-BY-4.0")
    found = read_rows(out / "preference.jsonl")
    one, safe, *ranked, _ = found
    # Side B of the swapped responses
    assert one["chosen"] == [{"role": "assistant", "content": "Hello!"}]
    assert (one["margin"], safe["margin"]) == (0.333333, 1.0)
    assert [row["license"] for row in found] == ["CC0-1.0"] * 4 + ["CC-BY-4.0"]
    assert [row["chosen"][0]["content"] for row in ranked] == ["answer 1", "answer 2"]
    assert read_rows(out / "ranked.jsonl")[0]["ranks"] == [2, 1, 1]
    assert {row["label"] for row in read_rows(out / "kto.jsonl")} == {True, False}
    (demonstration,) = read_rows(out / "sft.jsonl")
    assert demonstration["prompt"][0]["content"] == "Write to me at [e-mail]."
    assert demonstration["completion"] == [{"role": "assistant", "content": "Call me: [phone]"}]


def test_an_export_becomes_a_store_and_the_same_export_and_replaces_none(
    made: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = exported(made)
    again = made.with_name("again.feedback")
    for _ in range(2):
        merged(first, again)
    second = exported(again, "second")
    for name in ("preference.jsonl", "sft.jsonl", "README.md"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    held = []
    for folder in (first, second):
        with Store.open(folder / "labels.feedback") as store:
            held.append((store.items(), store.events(), store.guidelines()))
    assert held[0] == held[1]
    assert "them: 0" not in capfd.readouterr().out
    (first / "thesis.txt").write_text("x")
    exported(again, first.name, code=4)
    assert "there is such a folder; name a new one" in capfd.readouterr().err
    assert (first / "thesis.txt").exists()


def test_consent_can_be_withdrawn(made: Path, said: Said) -> None:
    with Store.open(made) as store:
        consent(store, granted=False)
    out = exported(made, code=4)
    told = said()
    assert "nothing may be exported: people: 0" in told
    assert "left out: items without a license" in told and "--license NAME" in told
    assert not out.exists()


def test_a_damaged_export_is_named(made: Path, said: Said) -> None:
    """What strangers send is checked like what the page sends, and nothing of it is kept."""
    out = exported(made)
    with Store.open(out / "labels.feedback") as shared, shared.transaction():
        shared.append(event(shared.items()[0].item, side("C"), created="2026"))
    new = merged(out, made.with_name("new.feedback"), code=4)
    assert "the label of a pair: side: must be" in said()
    with Store.open(new) as store:
        assert store.items() == [] and store.events() == []


def test_merging_and_showing(made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    into = merged(made, made.with_name("all.feedback"))
    assert "11 new items, 17 new events" in capfd.readouterr().out
    merged(made, made.parent / ".." / made.parent.name / made.name, code=4)
    assert "cannot be merged into itself" in capfd.readouterr().err
    assert main(["labels", str(into), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)["result"]
    # Of seven pairs one is retired and one flagged, and Bob has labeled one that Ann has labeled
    expected = {"items": 7, "labels": 8, "learned from": 5, "gold": 0}
    assert facts["tasks"]["pair"] == expected
    assert main(["labels", "missing.feedback"]) == 4


# Exports that come back


def labels(store: Path) -> dict[str, list[dict[str, Any]]]:
    with Store.open(store) as opened_store:
        entries = labeled(opened_store)
    return {e.item.id: sorted(e.votes.values(), key=str) for e in entries}


@pytest.mark.silent_bug(
    "people: labels",
    "An exported label returns under a pseudonym and counts twice.",
    "A label is counted once, wherever it has been.",
)
def test_a_label_counts_once_wherever_it_has_been(tmp_path: Path) -> None:
    """Of three people, with texts and a note that an export redacts."""
    item = pair("Mail ann@mail.example", "Call +49 170 1234567", "Never", **FREE)
    with opened(tmp_path, item, RANKED[0]) as own:
        for who in ("ann", "bob", "cat"):
            consent(own, who)
            own.submit(event(item, side("B", note=f"ask {who}@mail.example"), who=who))
            own.submit(event(*RANKED, who=who, order=(2, 0, 1)))
        store = own.path
    known, out, other = labels(store), exported(store), tmp_path / "other.feedback"
    assert labels(merged(out, store)) == known  # home
    # Away, where the store itself comes later
    shared = labels(merged(out, other))
    assert labels(merged(store, other)) == shared
    assert [len(votes) for votes in shared.values()] == [3, 3]
    merged(out, other)
    assert labels(merged(other, store)) == known  # and back


# A pool on the hub


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of the hub, for which a folder stands."""
    there = tmp_path / "hub"
    there.mkdir()

    class Api:
        def file_exists(self, repo: str, name: str, repo_type: str) -> bool:
            assert (repo, repo_type) == ("lab/labels", "dataset")
            return (there / name).exists()

        def hf_hub_download(self, repo: str, name: str, repo_type: str) -> str:
            return str(there / name)

    def push(folder: Path, repo: str) -> str:
        shutil.copytree(folder, there, dirs_exist_ok=True)
        return repo

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr(sharing, "check_target", lambda repo: repo)
    monkeypatch.setattr(sharing, "upload", push)
    return there


def test_several_places_share_a_pool(
    tmp_path: Path, pool: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A recipe reads it as a data set; who takes the consent back is gone from it; thanks are as
    they wish.
    """
    shared = pair("one", origins=("sft", "base"), meta={"n": 1})
    hm, yes = ({"role": "assistant", "content": text} for text in ("Hm.", "Yes."))
    talk: Any = (hm, turn("?"), yes)
    more = Item("thumb", (turn("Good?"),), (talk,), meta={"n": "one"}, **FREE)
    places = []
    for who, credit in (("ann", "Ann Lee"), ("bob", "")):
        with opened(tmp_path, shared, more, name=f"{who}.feedback") as store:
            consent(store, who, credit=credit)
            store.submit(event(shared, who=who))
            store.submit(event(more, {"good": True}, who=who))
            places.append(store.path)
    one, other = places

    def push(store: Path, out: str) -> list[int]:
        """The number of votes of each item in the pool."""
        exported(store, out, "--push", "lab/labels", "--license", "MIT")
        assert "pushed to lab/labels" in capfd.readouterr().out
        return [len(votes) for votes in labels(pool / "labels.feedback").values()]

    assert [push(one, "a"), push(other, "b"), push(one, "c")] == [[1, 1], [2, 2], [2, 2]]
    assert not (tmp_path / "a" / "ranked.jsonl").exists()
    card = (pool / "README.md").read_text()
    assert "Ann Lee | 2" in " ".join(card.replace("|", " | ").split()) and "bob" not in card
    assert "ann" not in card.replace("annotator", "")
    formats = {entry.name: entry.implementation for entry in plugins().registrations("format")}
    loaded = []
    for name in ("preference", "kto"):
        data = DataSpec((DataSource(hub=str(pool), name=name),))
        loaded.append(load(data, formats=formats, commit=Mock(), stage_data=Path).groups)
    (preferred,), thumbs = loaded
    assert preferred.responses[0].text == "Hello!" and preferred.meta["license"] == "MIT"
    assert [answer.label for group in thumbs for answer in group.responses] == [True, False, True]
    with Store.open(one) as store:
        consent(store, granted=False)
        store.submit(event(shared, who="cat"))
        consent(store, "cat")
    assert push(one, "d") == [2, 1]
    assert "Ann Lee" not in (pool / "README.md").read_text()

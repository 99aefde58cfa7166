"""An export holds what may be shared and nothing else; `data convert` reads it, and it becomes a
store again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from stores import event, opened, pair, ranking, turn

from alignkit.cli import main
from alignkit.data.sources import DataSource, DataSpec, load
from alignkit.plugins import plugins
from alignkit_plugins.people import sharing
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import labeled

FORMATS = {entry.name: entry.implementation for entry in plugins().registrations("format")}
FREE = {"license": "CC0-1.0"}
WRITE = Item("demonstration", (turn("Write to me at ann@mail.example."),), **FREE)
THUMB = Item("thumb", (turn("Good?"),), ("yes",), **FREE)
ITEMS = {
    "pair": pair("one", origins=("sft", "base"), meta={"language": "en"}, **FREE),
    "safety": Item("safety", (turn("Harm?"),), ("no", "yes"), **FREE),
    "ranking": ranking("rank", 3, **FREE),
    "demonstration": WRITE,
    "thumb": THUMB,
}
LABELS: dict[str, Any] = {
    "pair": {"side": "B", "margin": "slightly"},
    "safety": {"side": "A", "margin": "significantly", "safety": "preferred_safe"},
    "ranking": {"ranks": [2, 1, 1]},
    "demonstration": {"text": "Call me: +49 30 1234567"},
    "thumb": {"good": False},
}


def made(folder: Path) -> Path:
    """A store with a label of each task by Ann, who shares, and one of Bob's, who does not."""
    with opened(
        folder, *ITEMS.values(), pair("no license"), pair("Bob's", author="bob", **FREE)
    ) as store:
        guidelines = store.add_guidelines("Questions to boss@mail.example")
        store.submit(event(None, {"granted": True, "terms": "v1"}, kind="consent", who="ann"))
        for name, item in ITEMS.items():
            order = (1, 0) if name == "pair" else ()
            store.submit(event(item, LABELS[name], order=order, guidelines=guidelines, seconds=2.5))
        store.submit(event(ITEMS["pair"], {"side": "B", "margin": "better"}, who="bob"))
        store.submit(event(pair("no license")))
        store.submit(event(pair("Bob's")))
        return store.path


def rows(folder: Path, name: str) -> list[Any]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def exported(folder: Path, store: Path, name: str = "out") -> Path:
    assert main(["labels", "export", str(store), "--out", str(folder / name)]) == 0
    return folder / name


def test_only_what_may_be_shared(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = exported(tmp_path, made(tmp_path))
    said = capfd.readouterr().out
    assert "left out: items without a license: 1" in said
    assert "left out: items whose author has not agreed to share them: 1" in said
    assert "left out: events of people who have not agreed to share them: 1" in said
    assert "people: 1; texts in which something was redacted: 2" in said
    everything = b"".join(path.read_bytes() for path in out.iterdir()).replace(b"annotator", b"")
    for secret in (b"ann", b"bob", b"Bob", b"mail.example", b"1234567", b"no license", b"boss"):
        assert secret not in everything
    with Store.open(out / "labels.feedback") as shared:
        assert len(shared.items()) == 5 and len({event.annotator for event in shared.events()}) == 1


def test_folders_of_this_machine_are_not_shared(tmp_path: Path) -> None:
    with opened(
        tmp_path,
        pair(batch="../../home/ann/runs/x/labels", **FREE),
        pair("b", batch="week 1/2", **FREE),
    ) as store:
        store.submit(event(None, {"granted": True}, kind="consent"))
        for stored in store.items():
            store.submit(event(stored.item))
    with Store.open(exported(tmp_path, store.path) / "labels.feedback") as shared:
        assert [stored.item.batch for stored in shared.items()] == ["labels", "2"]


def test_a_license_for_items_that_state_none(tmp_path: Path) -> None:
    path, out = made(tmp_path), tmp_path / "out"
    assert main(["labels", "export", str(path), "--out", str(out), "--license", "CC-BY-4.0"]) == 0
    licenses = [row["license"] for row in rows(out, "preference.jsonl")]
    assert licenses == ["CC0-1.0"] * 4 + ["CC-BY-4.0"]


def test_rows_are_in_the_layouts_of_trainers(tmp_path: Path) -> None:
    out = exported(tmp_path, made(tmp_path))
    one, safe, *ranked = rows(out, "preference.jsonl")
    # Side B of the swapped responses
    assert one["chosen"] == [{"role": "assistant", "content": "Hello!"}]
    assert (one["margin"], safe["margin"], one["license"]) == (0.333333, 1.0, "CC0-1.0")
    assert [row["chosen"][0]["content"] for row in ranked] == ["answer 1", "answer 2"]
    assert rows(out, "ranked.jsonl")[0]["ranks"] == [2, 1, 1]
    assert {row["label"] for row in rows(out, "kto.jsonl")} == {True, False}
    (demonstration,) = rows(out, "sft.jsonl")
    assert demonstration["prompt"][0]["content"] == "Write to me at [e-mail]."
    assert demonstration["completion"] == [{"role": "assistant", "content": "Call me: [phone]"}]


def test_an_export_becomes_a_store_and_the_same_export(tmp_path: Path) -> None:
    first = exported(tmp_path, made(tmp_path))
    again = tmp_path / "again.feedback"
    for _ in range(2):
        assert main(["labels", "merge", str(first), "--into", str(again)]) == 0
    second = exported(tmp_path, again, "second")
    for name in ("preference.jsonl", "sft.jsonl", "README.md"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    with (
        Store.open(first / "labels.feedback") as one,
        Store.open(second / "labels.feedback") as two,
    ):
        assert (one.items(), one.events(), one.guidelines()) == (
            two.items(),
            two.events(),
            two.guidelines(),
        )


def test_consent_can_be_withdrawn(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = made(tmp_path)
    with Store.open(path) as store:
        store.submit(event(None, {"granted": False}, kind="consent", who="ann"))
    assert main(["labels", "export", str(path), "--out", str(tmp_path / "out")]) == 4
    said = capfd.readouterr().err
    assert (
        "nothing may be exported: people: 0" in said and "left out: items without a license" in said
    )
    assert "--license NAME" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_not_replaced(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = made(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert main(["labels", "export", str(path), "--out", str(tmp_path / "mine")]) == 4
    assert "there is such a folder; name a new one" in capfd.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_a_damaged_export_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What strangers send is checked like what the page sends, and nothing of it is kept."""
    out = exported(tmp_path, made(tmp_path))
    with Store.open(out / "labels.feedback") as shared, shared.transaction():
        bad = event(shared.items()[0].item, {"side": "C", "margin": "better"}, created="2026")
        shared.append(bad)
    assert main(["labels", "merge", str(out), "--into", str(tmp_path / "new.feedback")]) == 4
    assert "the label of a pair: 'side'" in capfd.readouterr().err
    with Store.open(tmp_path / "new.feedback") as new:
        assert new.items() == [] and new.events() == []


def test_merging_and_showing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = made(tmp_path)
    assert main(["labels", "merge", str(path), "--into", str(tmp_path / "all.feedback")]) == 0
    assert "7 new items, 9 new events" in capfd.readouterr().out
    assert main(["labels", "merge", str(path), "--into", str(path)]) == 4
    assert "cannot be merged into itself" in capfd.readouterr().err
    assert main(["labels", str(tmp_path / "all.feedback")]) == 0
    said = capfd.readouterr().out
    assert "ranking" in said and "ann" in said
    assert main(["labels", str(path), "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)["result"]
    assert facts["tasks"]["pair"] == {"items": 3, "labels": 4, "read by recipes": 3, "gold": 0}
    assert main(["labels", str(tmp_path / "missing.feedback")]) == 4


# Exports that come back


def labels(store: Path) -> dict[str, list[dict[str, Any]]]:
    with Store.open(store) as opened_store:
        entries = labeled(opened_store)
    return {e.stored.item.id: sorted((vote.label for vote in e.votes), key=str) for e in entries}


def private(folder: Path) -> tuple[Path, Item]:
    """A store of three people, with texts and a note that an export redacts."""
    item = pair("Mail ann@mail.example", "Call +49 170 1234567", "Never", **FREE)
    with opened(folder, item, ITEMS["ranking"], name="own.feedback") as store:
        for who in ("ann", "bob", "cat"):
            store.submit(event(None, {"granted": True}, kind="consent", who=who))
            store.submit(
                event(
                    item,
                    {"side": "B", "margin": "better", "note": f"ask {who}@mail.example"},
                    who=who,
                )
            )
            store.submit(event(ITEMS["ranking"], LABELS["ranking"], who=who, order=(2, 0, 1)))
        return store.path, item


@pytest.mark.silent_bug(
    "people: labels",
    "An exported label returns under a pseudonym and counts twice.",
    "A label is counted once, wherever it has been.",
)
def test_a_label_counts_once_wherever_it_has_been(tmp_path: Path) -> None:
    store, _ = private(tmp_path)
    known, out, other = labels(store), exported(tmp_path, store), tmp_path / "other.feedback"
    assert main(["labels", "merge", str(out), "--into", str(store)]) == 0  # home
    assert labels(store) == known
    # Away, where the store itself comes later
    assert main(["labels", "merge", str(out), "--into", str(other)]) == 0
    shared = labels(other)
    assert main(["labels", "merge", str(store), "--into", str(other)]) == 0
    assert labels(other) == shared and [len(votes) for votes in shared.values()] == [3, 3]
    assert main(["labels", "merge", str(out), "--into", str(other)]) == 0
    assert main(["labels", "merge", str(other), "--into", str(store)]) == 0  # and back
    assert labels(store) == known


# A pool on the hub


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of the hub, for which a folder stands."""
    there = tmp_path / "hub"
    there.mkdir()

    class Api:
        endpoint = "https://hub.example"

        def file_exists(self, repo: str, name: str, repo_type: str) -> bool:
            assert (repo, repo_type) == ("lab/labels", "dataset")
            return (there / name).exists()

        def hf_hub_download(self, repo: str, name: str, repo_type: str) -> str:
            return str(there / name)

    def push(folder: Path, repo: str) -> str:
        shutil.copytree(folder, there, dirs_exist_ok=True)
        return f"https://hub.example/{repo}"

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
    one, other = tmp_path / "one", tmp_path / "other"
    shared = pair("one", license="MIT", origins=("sft", "base"), meta={"n": 1})
    talk = (
        {"role": "assistant", "content": "Hm."},
        turn("?"),
        {"role": "assistant", "content": "Yes."},
    )
    more = Item("thumb", (turn("Good?"),), (talk,), meta={"n": "one"}, license="CC0-1.0")
    for folder, who, credit in ((one, "ann", "Ann Lee"), (other, "bob", "")):
        folder.mkdir()
        with opened(folder, shared, more) as store:
            store.submit(event(None, {"granted": True, "credit": credit}, kind="consent", who=who))
            store.submit(event(shared, {"side": "A", "margin": "better"}, who=who))
            store.submit(event(more, {"good": True}, who=who))

    def push(folder: Path, out: str) -> list[int]:
        """The number of votes of each item in the pool."""
        words = ["labels", "export", str(folder / "labels.feedback"), "--out", str(tmp_path / out)]
        assert main([*words, "--push", "lab/labels"]) == 0
        assert "pushed to https://hub.example/lab/labels" in capfd.readouterr().out
        return [len(votes) for votes in labels(pool / "labels.feedback").values()]

    assert [push(one, "a"), push(other, "b"), push(one, "c")] == [[1, 1], [2, 2], [2, 2]]
    card = (pool / "README.md").read_text()
    assert "Ann Lee | 2" in " ".join(card.replace("|", " | ").split()) and "bob" not in card
    assert "ann" not in card.replace("annotator", "")
    loaded = []
    for name in ("preference", "kto"):
        data = DataSpec((DataSource(hub=str(pool), name=name),))
        loaded.append(load(data, formats=FORMATS, seed=0, commit=Mock(), stage_data=Path).groups)
    (preferred,), thumbs = loaded
    assert preferred.responses[0].text == "Hello!" and preferred.meta["license"] == "MIT"
    assert [answer.label for group in thumbs for answer in group.responses] == [True, False, True]
    with Store.open(one / "labels.feedback") as store:
        store.submit(event(None, {"granted": False}, kind="consent", who="ann"))
        store.submit(event(shared, {"side": "A", "margin": "better"}, who="cat"))
        store.submit(event(None, {"granted": True}, kind="consent", who="cat"))
    assert push(one, "d") == [2, 1]
    assert "Ann Lee" not in (pool / "README.md").read_text()

"""Labels go to Label Studio and come back, and its files become stores."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from stores import event, opened, pair, ranking, review, reviewed, scores, turn

from alignkit.cli import main
from alignkit_plugins.people.effective_labels import labeled
from alignkit_plugins.people.items import TASKS, Item
from alignkit_plugins.people.store import Store

FREE = {"license": "CC0-1.0"}
ITEMS = {
    "pair": pair("one", meta={"language": "en", "length": 3}, batch="week 1", **FREE),
    "safety": Item("safety", (turn("Harm?"),), ("no", "yes"), held_out=True, **FREE),
    "ranking": ranking("rank", 3, **FREE),
    "scores": scores("score", **FREE),
    "demonstration": Item("demonstration", (turn("Write."), {"role": "assistant", "content": "What?"}, turn("It."))),
    "edit": Item("demonstration", (turn("Edit."),), ("Draft.",), **FREE),
    "thumb": Item("thumb", (turn("Good?"),), ("=SUM(A1)",), **FREE),
    "review": review(**FREE),
}
LABELS: dict[str, Any] = {
    "pair": {"side": "B", "margin": "slightly", "note": "close\nto a tie"},
    "safety": {"side": "A", "margin": "significantly", "safety": "preferred_safe"},
    "ranking": {"ranks": [3, 1, 2]},
    "scores": {"scores": [{"helpful": 6, "harmless": 7}, {"helpful": 3, "harmless": 7}]},
    "demonstration": {"text": "Done."},
    "edit": {"text": "<b>Better</b>"},
    "thumb": {"good": False},
    "review": reviewed([2, 1, 2], [3, 7, 4], ["invented", "harmful"]),
}


def made(folder: Path) -> Path:
    """Ann labels everything, in the opposite order shown for the pair, and bob the pair."""
    with opened(folder, *ITEMS.values()) as store:
        for who in ("ann", "bob"):
            store.submit(event(None, {"granted": True}, kind="consent", who=who))
        for name, item in ITEMS.items():
            store.submit(event(item, LABELS[name], order=(1, 0) if name == "pair" else (), seconds=2.5))
        store.submit(event(ITEMS["pair"], {"side": "B", "margin": "better"}, who="bob"))
        return store.path


def exported(store: Path, out: Path, *layouts: str) -> Path:
    words = [word for name in layouts for word in ("--layout", name)]
    assert main(["labels", "export", str(store), "--out", str(out), *words]) == 0
    return out


def imported(file: Path, into: Path, *words: str) -> int:
    return main(["labels", "import", str(file), "--into", str(into), *words])


def labels(store: Path) -> dict[str, list[dict[str, Any]]]:
    with Store.open(store) as opened_store:
        entries = labeled(opened_store)
    return {e.stored.item.id: sorted((vote.label for vote in e.votes), key=str) for e in entries}


def test_labels_come_back_and_go_out_byte_for_byte(tmp_path: Path) -> None:
    store, tool = made(tmp_path), "label-studio"
    first = exported(store, tmp_path / "first", tool)
    names = sorted(path.name for path in (first / tool).iterdir())
    assert names == [f"{name}.json" for name in sorted(TASKS)]
    again = tmp_path / "again.feedback"
    for name in names:
        assert imported(first / tool / name, again, "--consent", "all agreed") == 0
    known = labels(store)
    found = labels(again)
    assert found == {item: known[item] for item in found} and len(found) == 7  # one item has no license
    second = exported(again, tmp_path / "second", tool)
    for name in names:
        assert (first / tool / name).read_bytes() == (second / tool / name).read_bytes(), name


def test_importing_twice_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = exported(made(tmp_path), tmp_path / "out", "label-studio") / "label-studio" / "pair.json"
    into = tmp_path / "again.feedback"
    for expected in ("1 new items, 4 new events", "0 new items, 0 new events"):
        capsys.readouterr()
        assert imported(file, into, "--consent", "all agreed") == 0
        assert expected in capsys.readouterr().out


def private(folder: Path, name: str = "own.feedback") -> tuple[Store, Item]:
    """A store of three people, with texts and a note that an export redacts."""
    item = pair("Mail ann@mail.example", "Call +49 170 1234567", "Never", **FREE)
    store = opened(folder, item, ITEMS["ranking"], name=name)
    for who in ("ann", "bob", "cat"):
        store.submit(event(None, {"granted": True}, kind="consent", who=who))
        store.submit(event(item, {"side": "B", "margin": "better", "note": f"ask {who}@mail.example"}, who=who))
        store.submit(event(ITEMS["ranking"], LABELS["ranking"], who=who, order=(2, 0, 1)))
    return store, item


@pytest.mark.silent_bug(
    "people: labels",
    "An exported label returns under a pseudonym and counts twice.",
    "A label is counted once, wherever it has been.",
)
@pytest.mark.parametrize("by", ["tool", "folder"])
def test_a_label_counts_once_wherever_it_has_been(tmp_path: Path, by: str) -> None:
    store, _ = private(tmp_path)
    with store:
        known = labels(store.path)
        out = exported(store.path, tmp_path / "out", "label-studio")
    other, files = tmp_path / "other.feedback", sorted((out / "label-studio").iterdir())

    def brought(into: Path) -> None:
        for file in files if by == "tool" else []:
            assert imported(file, into, "--consent", "all agreed") == 0
        if by == "folder":
            assert main(["labels", "merge", str(out), "--into", str(into)]) == 0

    brought(store.path)  # home
    assert labels(store.path) == known
    brought(other)  # away, where the store itself comes later
    shared = labels(other)
    assert main(["labels", "merge", str(store.path), "--into", str(other)]) == 0
    assert labels(other) == shared and [len(votes) for votes in shared.values()] == [3, 3]
    brought(other)
    assert main(["labels", "merge", str(other), "--into", str(store.path)]) == 0  # and back
    assert labels(store.path) == known


def test_merging_keeps_what_the_other_store_says_of_an_item(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its gold label, license and columns, and which of two items a label is about."""
    alike = [pair(f"Mail {who}@mail.example") for who in ("ann", "bob")]  # exports have one text for both
    known = pair("one", license="MIT", gold={"better": 1}, meta={"language": "de"})
    stores = [tmp_path / "ours.feedback", tmp_path / "theirs.feedback"]
    for path, item in zip(stores, (pair("one"), known), strict=True):
        opened(tmp_path, item, *alike, name=path.name).close()
    with Store.open(stores[1]) as theirs:
        theirs.submit(event(alike[0], {"side": "A", "margin": "better"}, who="cat"))
    into = ["labels", "merge", str(stores[1]), "--into", str(stores[0])]
    assert main(into) == 0
    with Store.open(stores[0]) as ours:
        assert ours.items()[0].item == known
        assert [one.labels for one in ours.items()] == [0, 1, 0]
        ours.revise(known.id, gold={"better": 0})
    assert main(into) == 0 and "1 gold labels differ" in capsys.readouterr().out


def test_a_label_that_was_changed_elsewhere_is_a_new_one_of_the_same_person(tmp_path: Path) -> None:
    store, item = private(tmp_path)
    with store:
        store.submit(event(None, {"granted": False}, kind="consent", who="cat"))
        store.submit(event(None, {"granted": True}, kind="consent", who="cat"))
        file = exported(store.path, tmp_path / "out", "label-studio") / "label-studio" / "pair.json"
        store.submit(event(None, {"granted": False}, kind="consent", who="cat"))
    (task,) = json.loads(file.read_text())
    for one in task["annotations"]:
        one["created_at"] = "2030-01-01T00:00:00.000000Z"
        one["result"][0]["value"]["selected"] = "left"
    file.write_text(json.dumps([task]))
    assert imported(file, store.path, "--consent", "all agreed") == 0
    with Store.open(store.path) as again:
        (entry,) = (entry for entry in labeled(again) if entry.stored.item.id == item.id)
    # Cat took the consent back, and the file does not give it again.
    assert {vote.annotator: vote.label["better"] for vote in entry.votes} == {"ann": 0, "bob": 0}


def test_the_fields_of_label_studio(tmp_path: Path) -> None:
    out = exported(made(tmp_path), tmp_path / "out", "label-studio") / "label-studio"
    (task,) = json.loads((out / "pair.json").read_text())
    assert list(task) == ["data", "meta", "annotations", "predictions"]
    ann = next(one for one in task["annotations"] if "lead_time" in one)
    assert ann["lead_time"] == 2.5 and ann["was_cancelled"] is False
    assert ann["completed_by"]["email"].endswith("@alignkit.invalid")
    assert ann["result"][0] == {
        "from_name": "preference",
        "to_name": "response_1,response_2",
        "type": "pairwise",
        "value": {"selected": "left"},
    }
    (task,) = json.loads((out / "ranking.json").read_text())
    assert [one["id"] for one in task["data"]["items"]] == ["response_1", "response_2", "response_3"]
    ranked = {"rank_1": ["response_2"], "rank_2": ["response_3"], "rank_3": ["response_1"]}
    assert task["annotations"][0]["result"][0]["value"] == {"ranker": ranked}
    (task,) = json.loads((out / "scores.json").read_text())
    ratings = {one["from_name"]: one["value"]["rating"] for one in task["annotations"][0]["result"]}
    assert ratings == {"helpful_1": 6, "harmless_1": 7, "helpful_2": 3, "harmless_2": 7}


def test_what_a_tool_cannot_hold_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fits = ranking("fits", 3, **FREE)
    calls = Item("pair", (turn("Call"),), (({"role": "assistant", "content": "1"}, turn("x")), "2"), **FREE)
    with opened(tmp_path, fits, calls) as store:
        store.submit(event(None, {"granted": True}, kind="consent"))
        store.submit(event(fits, {"ranks": [1, 1, 2]}))
        store.submit(event(calls))
    out = exported(store.path, tmp_path / "out", "label-studio")
    assert "items with tools or answers of several turns: 1" in capsys.readouterr().out
    assert [path.name for path in (out / "label-studio").iterdir()] == ["ranking.json"]


RANKED = {
    "data": {"input": "What is 1 + 1?", "reply-1": "2", "reply-2": "3", "reply-3": "4"},
    "meta": {"source": "mail"},
    "annotations": [
        {"completed_by": 5, "result": [{"type": "ranker", "value": {"ranker": ["reply-2", "reply-1", "reply-3"]}}]}
    ],
}
STUDIO = {
    "id": 12,
    "data": {"prompt": "Hi", "answer1": "Hello!", "answer2": "What?"},
    "annotations": [
        {"completed_by": 3, "result": [], "was_cancelled": True},
        {
            "completed_by": {"email": "bob@mail.example"},
            "result": [{"from_name": "pw", "to_name": "a,b", "type": "pairwise", "value": {"selected": "right"}}],
            "lead_time": 3,
            "created_at": "2021-03-09T22:16:08.728353Z",
        },
    ],
}


def test_files_that_people_made_with_the_tools(tmp_path: Path) -> None:
    into = tmp_path / "labels.feedback"
    (tmp_path / "tasks.json").write_text(json.dumps([RANKED, STUDIO]))
    assert imported(tmp_path / "tasks.json", into, "--license", "CC-BY-4.0") == 0
    with Store.open(into) as store:
        ranked, compared = labeled(store)
    assert ranked.stored.item.responses == ("2", "3", "4") and ranked.stored.item.meta == {"source": "mail"}
    assert [(vote.annotator, vote.label) for vote in ranked.votes] == [("user-5", {"ranks": [2, 1, 3]})]
    (vote,) = compared.votes
    assert (vote.annotator, vote.label, vote.seconds) == ("bob@mail.example", {"better": 1, "margin": "better"}, 3.0)
    assert vote.created == "2021-03-09T22:16:08.728353Z" and compared.stored.item.license == "CC-BY-4.0"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": "Hi"}, "no task of Label Studio (data, annotations)"),
        ([1], "no task of Label Studio"),
        ({**RANKED, "data": {"text": "Hi"}}, "no prompt: expected a field prompt, instruction"),
        ({**RANKED, "data": 3}, "must be objects"),
        ({**RANKED, "data": STUDIO["data"]}, "a ranking must name answer1, answer2"),
        ({**RANKED, "annotations": [3]}, "not as the tool writes it: AttributeError"),
        ({**STUDIO, "annotations": [{"result": [{"type": "brush", "value": {}}]}]}, "a result of the type 'brush'"),
        ({**STUDIO, "data": {"prompt": "Hi", "answer1": "Hello!"}}, "a pair has 2 responses, not 1"),
        ({**STUDIO, "data": {"prompt": [1], "answer1": "a", "answer2": "b"}}, "the prompt must be a text, or turns"),
    ],
)  # fmt: skip
def test_what_is_no_label_is_named(tmp_path: Path, row: Any, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([STUDIO, row]))
    assert imported(tmp_path / "rows.json", tmp_path / "new.feedback") == 4
    said = capsys.readouterr().err
    assert fault in said and "rows.json:2" in said
    assert not (tmp_path / "new.feedback").exists()


def test_an_unknown_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made(tmp_path)
    assert main(["labels", "export", str(path), "--out", str(tmp_path / "out"), "--layout", "labelstudio"]) == 2
    assert "did you mean 'label-studio'" in capsys.readouterr().err


def test_parquet_is_a_data_set(tmp_path: Path) -> None:
    import datasets

    out = exported(made(tmp_path), tmp_path / "out", "parquet")
    assert not (out / "preference.jsonl").exists() and (out / "labels.jsonl").exists()
    assert "data_files: preference.parquet" in (out / "README.md").read_text()
    rows = datasets.load_dataset(str(out), "preference", split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.num_rows == 7 and set(rows.column_names) >= {"prompt", "chosen", "rejected", "margin", "group_id"}
    assert rows["rejected_flags"][-2:] == [["invented", "harmful"], []] and rows["chosen_overall"][-1] == 7
    assert rows[0]["prompt"] == [{"role": "user", "content": "one"}]
    again = exported(made(tmp_path / "again"), tmp_path / "second", "parquet")
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in out.iterdir())


def test_a_ranking_gives_all_its_pairs_with_one_group_id(tmp_path: Path) -> None:
    item = ranking("rank", 5, **FREE)
    with opened(tmp_path, item) as store:
        store.submit(event(None, {"granted": True}, kind="consent"))
        store.submit(event(item, {"ranks": [5, 3, 1, 2, 4]}))
    rows = (exported(store.path, tmp_path / "out") / "preference.jsonl").read_text().splitlines()
    assert len(rows) == 5 * 4 // 2 and {json.loads(row)["group_id"] for row in rows} == {item.id}


def test_stores_of_three_people_merge_in_any_order(tmp_path: Path) -> None:
    """Each labels all of five items, and shares two with the next person; all orders say the same."""
    shared = [pair(f"prompt {n}", **FREE) for n in range(5)]
    paths = []
    for number, who in enumerate(("ann", "bob", "eve")):
        own = pair(f"only {who}", **FREE)
        items = [*shared[number:], *shared[:number], own]
        with opened(tmp_path, *items, name=f"{who}.feedback") as store:
            store.submit(event(None, {"granted": True}, kind="consent", who=who))
            for place, item in enumerate(items):
                store.submit(event(item, {"side": "AB"[(place + number) % 2], "margin": "better"}, who=who))
            paths.append(store.path)
    found = []
    for order in itertools.permutations(paths):
        target = tmp_path / f"{len(found)}.feedback"
        assert main(["labels", "merge", *map(str, order), "--into", str(target)]) == 0
        assert main(["labels", "merge", *map(str, reversed(order)), "--into", str(target)]) == 0
        with Store.open(target) as store:
            entries = {entry.stored.item.id: (entry.final, entry.votes) for entry in labeled(store)}
            found.append((entries, store.events()))
    assert len(found[0][0]) == 8 and len(found[0][1]) == 3 + 18
    assert all(one == found[0] for one in found)

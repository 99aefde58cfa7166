"""A store keeps every acknowledged event once, and says in words what it does not take."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stores import Clock, event, opened, pair, ranking, several, side, turn

from alignkit.data.group import Group, Message, Response
from alignkit.errors import BadRow, DataError
from alignkit_plugins.people.collection import Collection
from alignkit_plugins.people.items import Item, item_of, joined, questions_of
from alignkit_plugins.people.labels import BadLabel
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.votes import labeled
from tests.rows import cells

HERE = Path(__file__).parents[1]  # where `python -c` finds the module `stores`
TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": {}}}


def test_what_was_stored_is_read_back(tmp_path: Path) -> None:
    gold = {"better": 0, "margin": "better"}
    item = pair(meta={"language": "de"}, license="CC0", origins=("sft", "base"), gold=gold)
    seen: Any = {"order": (1, 0), "seconds": 0.0, "guidelines": "abc"}
    sent = event(item, side("B", "slightly"), who="a" * 64, **seen)
    with opened(tmp_path, item) as store:
        store.submit(sent)
        store.add([pair()], wanted=2)  # stays as it is
    with Store.open(tmp_path / "labels.feedback") as again:
        safe = {"trusted_schema": 0, "foreign_keys": 1, "fullfsync": 1, "synchronous": 2}
        assert {name: again.rows(f"PRAGMA {name}")[0][0] for name in safe} == safe
        (found,) = again.events()
        assert found == replace(sent, created=found.created)
        (entry,) = labeled(again)
        assert (entry.item, entry.stored.wanted) == (item, 1)
        assert entry.votes["a" * 64] == {"better": 0, "margin": "slightly"}


def test_an_item_is_its_content() -> None:
    known = pair()
    assert known.id == pair(meta={"a": 1}, license="MIT", origins=("x", "y"), priority=3).id
    others = [pair("Ho"), pair(second="Why?"), replace(known, task="safety"), pair(tools=({},))]
    assert len({item.id for item in [known, *others]}) == 5
    named, other = (
        pair(
            origins=(name, "y"), license=name, author=name, meta={"a": name}, gold={"better": gold}
        )
        for gold, name in enumerate("xz")
    )
    assert named.filled(other) == named == pair(origins=(None, None)).filled(named)


def test_a_group_becomes_an_item() -> None:
    prompt = (Message(role="user", content="Hi"),)
    answers = (Response(text="a", source="sft@1"), Response(text="b", source="base"))
    meta: Any = {"license": "MIT", "use": "chat"}
    group = Group(prompt, answers, pairs=(), meta=meta, tools=(TOOL,))
    item = item_of(group)
    assert (item.task, item.origins, item.license) == ("pair", ("sft@1", "base"), "MIT")
    assert item.group == group
    one, other = Group(prompt, answers[:1], meta=meta), Group(prompt, answers[1:])
    more = replace(other, meta={"use": 2, "n": 3})
    both, alone = joined([one, more, replace(one, tools=(TOOL,))])
    assert (both.responses, both.meta, alone.tools) == (answers, {**meta, "n": 3}, (TOOL,))
    (asked,) = questions_of(Group(prompt, (*answers, replace(answers[0], source="c"))), None)
    assert asked.responses == answers and questions_of(one, None)[0].responses == answers[:1]
    assert item_of(one).task == "demonstration"
    assert item_of(Group(prompt)).task == "demonstration"
    assert item_of(Group(prompt, (*answers, Response(text="c")))).task == "ranking"


@pytest.mark.parametrize(
    ("item", "fault"),
    [
        (several("pair", "Hi", 1), "the task pair takes 2, not 1 response"),
        (ranking(count=10), "the task ranking takes 2 to 9, not 10 responses"),
        (pair(first="same", second="same"), "two responses are the same"),
        (pair(first="it’s", second="it's"), "two responses are the same"),
        (pair(first="\0"), "NUL"),
        (several("pairs", "Hi", 2), "did you mean 'pair'"),
        (Item("pair", (), ("a", "b")), "there is no prompt"),
        (pair(gold={"better": 2}), "a gold label: "),
        (ranking(gold={"ranks": [1, 2]}), "a gold label: "),
        (several("review", "Hi", 1), "the task review takes 2 to 9"),
        (several("demonstration", "Hi", 2), "the task demonstration takes 0 to 1"),
        (pair(origins=("sft",)), "2 responses, but 1 origins"),
    ],
)
def test_an_item_that_nobody_could_label_is_refused(tmp_path: Path, item: Item, fault: str) -> None:
    with opened(tmp_path) as store:
        with pytest.raises(BadRow, match=fault):
            store.add([pair(), item])
        with pytest.raises(BadRow, match=fault):
            store.ask([pair(), item], "rows")
        assert store.items() == []


def test_the_same_event_twice_is_one(tmp_path: Path) -> None:
    item, other = pair(), pair("other")
    with opened(tmp_path, item, other) as store:
        sent = event(item)
        assert store.submit(sent) == store.submit(sent)
        assert len(store.events()) == 1
        changes: Any = {"payload": side("B"), "annotator": "bob", "item": other.id}
        for name, value in changes.items():
            with pytest.raises(BadLabel, match=f"stored before with another {name}"):
                store.submit(replace(sent, **{name: value}))


NO_LABELS = r"""
pair   | {"side": "C", "margin": "better"}                         | side:
pair   | {"side": "A"}                                             | 'margin'
pair   | {"side": "A", "margin": "better", "extra": 1}             | 'extra'
pair   | [] | must be an object, got \[\]
pair   | {"side": "A", "margin": "better", "note": "\ud800"}       | Invalid
safety | {"side": "A", "margin": "better"}                         | 'safety'
thumb  | {"good": 1}                                               | good:
demonstration | {"text": "  "}                                     | text:
ranking | {"ranks": [1, 2]}                                        | must have 3 entries
ranking | {"ranks": [0, 1, 2]}                                     | with ranks from 1
ranking | {"ranks": [2, 2, 3]}                                     | with ranks from 1
ranking | {"ranks": [1, 2, 4]}                                     | must have 3 entries
ranking | {"ranks": [1, 2, true]}                                  | ranks.2:
review | {"ranks": [1, 1, 1], "scores": [8, 1, 1], "flags": [[], [], []]}       | scores.0:
review | {"ranks": [1, 1, 1], "scores": [1, 1, 0], "flags": [[], [], []]}       | scores.2:
review | {"ranks": [1, 1, 1], "scores": [1, 1, 1], "flags": [[], []]}           | 'flags' must have 3 entries
review | {"ranks": [1, 1, 1], "scores": [1, 1, 1], "flags": [["rude"], [], []]} | flags.0.0:
"""
COUNTS = {"pair": 2, "safety": 2, "thumb": 1, "demonstration": 0}


@pytest.mark.parametrize(("task", "payload", "fault"), cells(NO_LABELS))
def test_a_label_that_is_none_is_refused(
    tmp_path: Path, task: str, payload: str, fault: str
) -> None:
    item = several(task, "Hi", COUNTS.get(task, 3))
    with opened(tmp_path, item) as store:
        with pytest.raises(BadLabel, match=f"the label of a {task}: .*{fault}"):
            store.submit(event(item, json.loads(payload)))
        assert store.events() == []


NO_EVENTS = r"""
{"uuid": "1"}                                    | uuid must be one such as
{"who": ""}                                      | annotator's name
{"who": "a\nb"}                                  | annotator's name
{"who": "ann "}                                  | without blanks around them
{"kind": "lable"}                                | unknown kind of event 'lable'
{"kind": "skip", "payload": {"reason": " "}}     | reason:
{"kind": "flag", "payload": {"note": ""}}        | note:
{"kind": "undo", "payload": {"of": "x"}}         | no event 'x' to undo
{"kind": "consent", "payload": {"granted": true}} | must name no item
{"uuid": "00000000-0000-0000-0000-0000000000000"} | uuid must be one such as
{"seconds": NaN}                                 | seconds
{"seconds": Infinity}                            | seconds
{"seconds": -1}                                  | seconds
{"order": [0, 0]}                                | order
{"order": [0]}                                   | order
"""


@pytest.mark.parametrize(("change", "fault"), cells(NO_EVENTS))
def test_an_event_that_is_none_is_refused(tmp_path: Path, change: str, fault: str) -> None:
    item = pair()
    with opened(tmp_path, item) as store:
        with pytest.raises(BadLabel, match=fault):
            store.submit(event(item, **json.loads(change)))
        with pytest.raises(BadLabel, match="no item 'other'"):
            store.submit(replace(event(item), item="other"))
        assert store.events() == []


def test_events_are_never_changed(tmp_path: Path) -> None:
    item = pair()
    with opened(tmp_path, item) as store:
        store.submit(event(item))
        for query in ("UPDATE events SET annotator = 'bob'", "DELETE FROM events"):
            with pytest.raises(sqlite3.IntegrityError, match="events are never"):
                store.connection.execute(query)


def test_undo_brings_the_earlier_label_back(tmp_path: Path) -> None:
    item = pair()
    with opened(tmp_path, item, pair("other")) as store:
        first = store.submit(event(item))
        second = store.submit(event(item, side("B", "unsure")))
        assert store.last("ann") == second
        undo = {"of": second.uuid}
        store.submit(event(item, undo, kind="undo"))
        assert labeled(store)[0].votes["ann"]["better"] == 0
        assert store.item(item.id).labels == 1
        with pytest.raises(BadLabel, match="undone already"):
            store.submit(event(item, undo, kind="undo"))
        assert store.last("ann") == first
        undo = {"of": first.uuid}
        for about, who in ((item, "bob"), (pair("other"), "ann")):
            with pytest.raises(BadLabel, match="another annotator"):
                store.submit(event(about, undo, kind="undo", who=who))
        store.submit(event(item, undo, kind="undo"))
        assert labeled(store)[0].votes == {}
        assert len(store.events()) == 4


def test_a_label_of_an_item_that_nobody_is_asked_about_any_more_is_kept(tmp_path: Path) -> None:
    old, new = pair(), pair(second="Changed")
    with opened(tmp_path) as store:
        store.ask([old], "data.jsonl")
        store.ask([new], "data.jsonl")
        assert [stored.retired for stored in store.items()] == [True, False]
        for item in (old, new):
            store.submit(event(item))
        store.ask([old], "data.jsonl")
        assert [stored.retired for stored in store.items()] == [False, True]
        assert len(store.events()) == 2


def test_an_item_belongs_to_the_batch_that_wants_most(tmp_path: Path) -> None:
    """Of two that want as many, to the first one, unless that one asks no more."""
    one, two = pair("one"), pair("two")

    def known() -> list[Any]:
        return [(stored.item.batch, stored.wanted, stored.retired) for stored in store.items()]

    with opened(tmp_path, one, wanted=2) as store:
        store.ask([one, two], "a", 2)
        for wanted in (2, 1):
            store.ask([two], "b", wanted)
            assert known() == [("a", 2, False), ("a", 2, False)]
        store.ask([], "a")
        store.ask([two], "b")
        assert known() == [("a", 2, True), ("b", 1, False)]


def test_what_is_kept_of_a_chat(tmp_path: Path) -> None:
    chat = Collection(tmp_path / "chat.feedback", "MIT", {"online": "run/online"})
    chat.agree("ann", False)
    assert not chat.path.exists()
    chat.agree("ann", True)
    said: Any = (turn("Hi"), {"role": "assistant", "content": "Yes?"}, turn("Why?"))
    meta = {"seed": 3, "temperature": 0.5}
    assert (
        chat.keep("ann", "online", said, " ", meta) == chat.keep("bob", "", said, "So.", {}) == ""
    )
    facts: Any = {"license": "MIT", "author": "ann", "batch": "chat", "origins": ("run/online",)}
    item = Item("thumb", said, ("So.",), meta=meta, **facts)
    assert chat.keep("ann", "online", said, "So.", meta) == item.id
    assert [stored.item for stored in chat.store().items()] == [item]
    echo = {"role": "assistant", "content": "\0?"}
    assert chat.keep("ann", "online", (*said[:1], echo, *said[2:]), "a\0b\ud800", meta)
    kept = chat.store().items()[1].item
    assert (kept.prompt[1]["content"], kept.responses) == ("⟦U+0000⟧?", ("a⟦U+0000⟧b⟦U+D800⟧",))
    again = Collection(chat.path)
    assert again.agreed("ann") and not again.agreed("bob")
    chat.store().submit(event(None, {"granted": True, "terms": "older"}, kind="consent"))
    assert not chat.agreed("ann")
    chat.close()
    again.close()


def test_times_are_ordered_even_if_the_clock_is_set_back(tmp_path: Path) -> None:
    item, clock = pair(), Clock()
    with opened(tmp_path, item, clock=clock) as store:
        first = store.submit(event(item))
        clock.wait(-3600)
        last = store.submit(event(item, side("B")))
        assert last.created > first.created
        assert labeled(store)[0].votes["ann"]["better"] == 1


def test_guidelines_have_versions_of_which_the_last_one_holds(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        one, two = store.add_guidelines("Be kind."), store.add_guidelines("Be kind and brief.")
        assert store.add_guidelines("Be kind and brief.") == two
        assert [*store.guidelines().items()] == [(one, "Be kind."), (two, "Be kind and brief.")]
        assert store.add_guidelines("Be kind.") == one
        assert [*store.guidelines()] == [two, one]


# Files that are no stores


def test_files_that_are_no_stores_are_named(tmp_path: Path) -> None:
    path = tmp_path / "other.feedback"
    with pytest.raises(DataError, match="no such file"):
        Store.open(path)
    sqlite3.connect(path).execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(DataError, match="not a store"):
        Store.open(path, new=True)
    path.write_text("hello, this is no database at all" * 40)
    with pytest.raises(DataError, match="no store of labels"):
        Store.open(path)
    with opened(tmp_path, *(pair(f"prompt {index}") for index in range(300))) as store:
        whole = store.path
    content = whole.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 5 // 4096 * 4096 + 100])
    with pytest.raises(DataError, match=r"damaged|malformed"):
        Store.open(path)
    with Store.open(whole) as store:
        store.connection.execute("PRAGMA user_version = 99")
    with pytest.raises(DataError, match="another alignkit"):
        Store.open(whole)


def test_of_two_processes_that_make_a_store_the_first_one_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, pair()) as store:
        path = store.path
    with monkeypatch.context() as late:
        # The other one was made just after this one looked
        late.setattr(Path, "exists", lambda self: False)
        Store.open(path, new=True).close()
    with Store.open(path) as store:
        assert len(store.items()) == 1
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


# Crashes, full disks and several writers

WRITER = """
import sys
from stores import event, pair
from alignkit_plugins.people.store import Store
store, number = Store.open(sys.argv[1]), 0
while True:
    receipt = store.submit(event(pair(), {"side": "AB"[number % 2], "margin": "better"}, who=sys.argv[2]))
    print(receipt.uuid, flush=True)
    number += 1
"""


def writer(path: Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, path, name], stdout=subprocess.PIPE, text=True, cwd=HERE
    )


def test_an_acknowledged_label_survives_kill_9(tmp_path: Path) -> None:
    with opened(tmp_path, pair()) as store:
        path = store.path
    acknowledged: list[str] = []
    for count in (1, 7, 23):
        with writer(path, "ann") as process:
            assert process.stdout is not None
            acknowledged += [process.stdout.readline().strip() for _ in range(count)]
            process.send_signal(signal.SIGKILL)
            acknowledged += process.stdout.read().split()
    with Store.open(path) as store:
        stored = [found.uuid for found in store.events()]
        assert set(acknowledged) <= set(stored)
        assert len(stored) - len(acknowledged) <= 3  # stored, and killed before it was said
        assert store.connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert store.item(pair().id).labels == 1


FULL = """
import resource, signal, sys
from alignkit.errors import DataError
from alignkit_plugins.people.store import Store
from stores import event, pair
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store.open(sys.argv[1])
size = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    while True:
        print(store.submit(event(pair(), {"side": "A", "margin": "better", "note": "x" * 9000})).uuid, flush=True)
except DataError as error:
    print("error:", error)
"""


def test_a_full_disk_loses_no_label(tmp_path: Path) -> None:
    with opened(tmp_path, pair()) as store:
        path = store.path
    done = subprocess.run(
        [sys.executable, "-c", FULL, path, str(path.stat().st_size + 200_000)],
        capture_output=True,
        text=True,
        cwd=HERE,
    )
    *acknowledged, message = done.stdout.splitlines()
    assert message.startswith("error:"), done.stderr
    assert "the store" in message or "disk is full" in message
    with Store.open(path) as store:
        assert [found.uuid for found in store.events()] == acknowledged
        assert acknowledged

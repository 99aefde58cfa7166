"""A store is read in a recipe with one line, as it is at that moment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from stores import event, opened, pair, several, side

from alignkit.cli import main
from alignkit.errors import LeftOut
from alignkit.recipe.sources import content_digest
from alignkit_plugins.people.agreement import StoreReader
from tests.rows import TINY, Said, write_recipe


def test_what_counts_is_read_and_nothing_else(tmp_path: Path) -> None:
    kinds = ["labeled", "skipped", "undone", "flagged", "nobody's", "retired", "gold"]
    items = {kind: pair(kind) for kind in kinds}
    items["retired"] = pair("retired", batch="old")
    items["gold"] = pair("gold", gold={"better": 1, "margin": "better"})
    with opened(tmp_path, *items.values()) as store:
        given = {}
        for kind in ("labeled", "skipped", "undone", "flagged", "retired"):
            sent = event(items[kind], side("A", "slightly"), order=(1, 0))
            given[kind] = store.submit(sent).uuid
        store.submit(event(items["skipped"], {"reason": "unclear"}, kind="skip"))
        store.submit(event(items["undone"], {"of": given["undone"]}, kind="undo"))
        store.submit(event(items["flagged"], {"note": "private"}, kind="flag", who="bob"))
        store.ask([], "old")
        rows = dict(StoreReader().rows(store.path))  # while it is open elsewhere
    assert {number: str(row) for number, row in rows.items() if isinstance(row, LeftOut)} == {
        2: "without labels",
        3: "without labels",
        4: "flagged",
        5: "without labels",
        6: "changed since",
    }
    assert [rows[number]["prompt"][0]["content"] for number in (1, 7)] == ["labeled", "gold"]
    assert rows[1]["pairs"] == [{"better": 1, "worse": 0, "margin": "slightly"}]


def test_answers_that_nobody_rated_leave_their_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thumbs = [several("thumb", text, 1) for text in ("good", "bad", "no thumb", "tied", "flagged")]
    with opened(tmp_path, *thumbs) as store:
        for place, who, good in ((0, "ann", 1), (1, "ann", 0), (3, "ann", 1), (3, "bob", 0)):
            store.submit(event(thumbs[place], {"good": bool(good)}, who=who))
        store.submit(event(thumbs[4], {"note": "private"}, kind="flag"))
    kto = {"algorithm": "kto", "data": "labels.feedback"}
    assert main(["check", str(write_recipe(tmp_path, {"kto": kto}, TINY))]) == 0
    text = "".join(capsys.readouterr())
    assert "2 conversations, 2 prompts\n" in text
    assert text.count("labels.feedback: left out: flagged (1: row 5)\n") == 1
    assert "kto: 2 left out (without_label): 'no thumb', 'tied'" in text


def test_rows_do_not_show_what_only_the_store_needs(tmp_path: Path) -> None:
    item = pair(license="MIT", batch="round 1", origins=("sft", None), priority=2.0)
    with opened(tmp_path, item) as store:
        store.submit(event(item, seconds=3))
    assert list(StoreReader().rows(store.path)) == [(1, {
        "alignkit": 1,
        "prompt": [{"role": "user", "content": "Hi"}],
        "responses": [{"text": "Hello!", "source": "sft"}, {"text": "What?"}],
        "pairs": [{"better": 0, "worse": 1, "margin": "better"}],
        "meta": {"license": "MIT"},
    })]  # fmt: skip


def test_the_digest_is_of_what_counts(tmp_path: Path) -> None:
    item, other = pair(author="eve"), pair("another")
    with opened(tmp_path, item, other) as store:
        path = store.path
        known = [content_digest(path)]

        def changes() -> bool:
            known.append(content_digest(path))
            return known[-1] != known[-2]

        def reads() -> int:
            return sum(isinstance(row, dict) for _, row in StoreReader().rows(path))

        label = store.submit(event(item))
        assert changes()  # though it is only in the log next to the file
        store.submit(event(other, {"reason": "unclear"}, kind="skip"))
        assert not changes()
        store.submit(event(item, {"of": label.uuid}, kind="undo"))
        assert changes() and known[-1] == known[0]
        store.ask([replace(item, gold={"better": 1})], "")
        assert changes()
        for granted in (True, False):
            assert reads() == 1 and not changes()
            store.submit(event(None, {"granted": granted}, kind="consent", who="eve"))
        assert changes()  # nobody learns from the prompts of people who withdrew
        assert reads() == 0


def test_a_store_without_labels_says_so(tmp_path: Path, said: Said) -> None:
    opened(tmp_path, pair()).close()
    reward = {"algorithm": "reward_model", "data": "labels.feedback", "max_steps": 2}
    recipe = write_recipe(tmp_path, {"reward": reward}, TINY)
    assert main(["check", str(recipe)]) == 4
    assert "labels.feedback: no usable row" in said()
    (tmp_path / "labels.feedback").write_bytes(b"")
    assert main(["check", str(recipe)]) == 4
    assert "not a store of feedback" in said()

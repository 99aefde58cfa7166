"""A store is read in a recipe with one line, as it is at that moment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stores import event, opened, pair, side

from alignkit.cli import main
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
        rows = list(StoreReader().rows(store.path))  # while it is open elsewhere
    found = [(number, row["prompt"][0]["content"]) for number, row in rows]
    assert found == [(1, "labeled"), (7, "gold")]
    assert rows[0][1]["pairs"] == [{"better": 1, "worse": 0, "margin": "slightly"}]


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

        label = store.submit(event(item))
        assert changes()  # though it is only in the log next to the file
        store.submit(event(other, {"reason": "unclear"}, kind="skip"))
        assert not changes()
        store.submit(event(item, {"of": label.uuid}, kind="undo"))
        assert changes() and known[-1] == known[0]
        store.ask([replace(item, gold={"better": 1})], "")
        assert changes()
        for granted in (True, False):
            assert len(list(StoreReader().rows(path))) == 1 and not changes()
            store.submit(event(None, {"granted": granted}, kind="consent", who="eve"))
        assert changes()  # nobody learns from the prompts of people who withdrew
        assert list(StoreReader().rows(path)) == []


def test_a_store_without_labels_says_so(tmp_path: Path, said: Said) -> None:
    opened(tmp_path, pair()).close()
    reward = {"algorithm": "reward_model", "data": "labels.feedback", "max_steps": 2}
    recipe = write_recipe(tmp_path, {"reward": reward}, TINY)
    assert main(["check", str(recipe)]) == 4
    assert "labels.feedback: no usable row" in said()
    (tmp_path / "labels.feedback").write_bytes(b"")
    assert main(["check", str(recipe)]) == 4
    assert "not a store of feedback" in said()

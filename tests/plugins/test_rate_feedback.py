"""The step `rate_feedback`: opinions of rewards and judges in a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from stores import event, opened, pair, ranking

from alignkit.cli import main
from alignkit_plugins.people.assignment import next_item
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.store import Store

JUDGE = """
from alignkit import Judge, Options, Verdict, hookimpl

class Shortest(Judge):
    class Options(Options):
        pass

    def compare(self, items):
        return [Verdict(0.5 + 0.4 * ((len(a) < len(b)) - (len(a) > len(b)))) for _, a, b in items]

@hookimpl
def register_judges(register):
    register("shortest", Shortest, summary="prefers what is short")
"""


def store_of(folder: Path, *items: Item) -> Path:
    with opened(folder, *items) as store:
        return store.path


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    path = tmp_path / "shortest.py"
    path.write_text(JUDGE)
    return path


def rate(store: Path, *words: str, judges: Sequence[str] = ()) -> int:
    rewards = [{"length": {"unit": "characters"}}]
    step = {"step": "rate_feedback", "store": str(store), "rewards": rewards, "judges": list(judges)}
    recipe = store.parent / "rate.yaml"
    recipe.write_text(yaml.safe_dump({"model": {"base": "tiny"}, "stages": {"rate": step}}))
    return main(["run", str(recipe), "--out", str(store.parent / "rated"), *words])


def test_opinions_are_stored_and_the_page_follows(
    tmp_path: Path, judge: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far, near, equal = pair("far", "x" * 90, "x"), pair("near", "x" * 9, "x"), pair("equal", "aa", "bb")
    ranked = ranking("rank", 3)
    path = store_of(tmp_path, near, ranked, equal, far)
    assert rate(path, "--plugin", str(judge), judges=["shortest"]) == 0
    said = capsys.readouterr()
    assert "4 items rated, of which 4 wait for labels" in said.out
    assert "length and shortest" in said.out and "0% [0, " in said.out
    with Store.open(path) as store:
        found = {stored.item.prompt[0]["content"]: stored.item for stored in store.items()}
        given = next_item(store, "ann")
        store.submit(event(far))
    assert found["far"].opinions == {"length": [90, 1], "shortest": [pytest.approx(0.1), pytest.approx(0.9)]}
    assert found["rank"].opinions["shortest"] == [0.5, 0.5, 0.5]
    assert given is not None and given.stored.item.prompt[0]["content"] == "far"


def test_a_store_without_two_responses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rate(store_of(tmp_path)) == 4
    assert "has no item with two responses" in capsys.readouterr().err


def test_pairs_of_an_evaluation_keep_the_order_in_which_they_were_drawn(tmp_path: Path) -> None:
    path = store_of(tmp_path, pair(), pair("tested", held_out=True))
    assert rate(path) == 0
    with Store.open(path) as store:
        assert [bool(stored.item.opinions) for stored in store.items()] == [True, False]
        assert store.items()[1].item.priority == 0

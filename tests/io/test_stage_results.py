"""A result has a name that says what made it, and keeps it when another result takes its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from alignkit.errors import RecipeError
from alignkit.io.stage_results import find_result, is_result_name, results_of_stage
from alignkit.runs.stage_store import StageStore


def made(store: StageStore, algorithm: str, hash: str, when: float) -> None:
    """A result of `align`; the one before it is set aside."""
    if store.record("align"):
        store.set_aside("align")
    store.begin("align", hash)
    settings = {"depends_on": {"settings": {"epochs": 1}}}
    store.finish("align", {"hash": hash, "complete": True, "plugin": algorithm, **settings})
    os.utime(store.path("align") / "stage.json", (when, when))


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    store = StageStore(tmp_path, ["align"])
    for number, algorithm in enumerate(("ppo", "dpo", "ppo", "ppo"), 1):
        made(store, algorithm, f"hash{number}", number)
    return store


def test_the_newest_result_of_an_algorithm_has_its_name(store: StageStore) -> None:
    found = [(result.name, result.hash, result.current) for result in results_of_stage(store.folder, "align")]
    assert found == [
        ("align@ppo", "hash4", True),
        ("align@ppo~1", "hash3", False),
        ("align@dpo", "hash2", False),
        ("align@ppo~2", "hash1", False),
    ]
    assert find_result(store.folder, "align@ppo~2").folder == store.folder / ".earlier" / "align" / "hash1"
    assert store.artifact("align@ppo~2") == store.folder / ".earlier" / "align" / "hash1" / "adapter"


def test_a_restored_result_keeps_its_name(store: StageStore) -> None:
    store.restore("align", "hash2")
    assert find_result(store.folder, "align@dpo").folder == store.folder / "align"
    assert find_result(store.folder, "align@ppo").hash == "hash4"


def test_what_is_not_complete_and_what_a_step_made_has_no_name(store: StageStore) -> None:
    store.set_aside("align")
    (store.begin("align", "hash5", {"settings": {}}) / "checkpoints" / "1").mkdir(parents=True)
    store.begin("report", "hash6")
    store.finish("report", {"hash": "hash6", "complete": True, "plugin": "evaluate", "depends_on": {"settings": None}})
    assert [result.hash for result in results_of_stage(store.folder, "align")] == ["hash4", "hash3", "hash2", "hash1"]
    assert results_of_stage(store.folder, "report") == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("align@kto", "has no result by kto; it has align@ppo, align@ppo~1, align@dpo, align@ppo~2"),
        ("align@dpo~1", "has no earlier result by dpo, ~1; it has"),
        ("align@pp", "did you mean 'align@ppo'?"),
        ("best@kto", "stage best of RUN has no result by kto; it has no complete result"),
        ("best@kto", "`alignkit show RUN` lists all results"),
    ],
)
def test_a_result_that_is_not_there(store: StageStore, name: str, message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        find_result(store.folder, name)
    assert message in str(raised.value).replace(str(store.folder), "RUN")


def test_versions_and_rounds_are_no_results() -> None:
    assert [name for name in ("a@ppo", "a@ppo~1", "a@2", "a@all", "a", "a@", "a@0") if is_result_name(name)] == [
        "a@ppo",
        "a@ppo~1",
    ]

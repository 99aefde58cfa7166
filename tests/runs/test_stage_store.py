"""Stage folders: what counts as complete, what a change sets aside, and where results are."""

from pathlib import Path

import pytest

from alignkit.errors import RunFailed
from alignkit.runs.stage_store import StageStore


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return StageStore(tmp_path, ["sft", "best"])


def finished(store: StageStore, stage: str, stage_hash: str, **record: str) -> None:
    """A complete stage, whose folder says with which hash it was made."""
    folder = store.begin(stage, stage_hash)
    (folder / "made_with").write_text(stage_hash, encoding="utf-8")
    (folder / "checkpoints").mkdir()
    store.finish(stage, {"hash": stage_hash, "complete": True, **record})


def made_with(store: StageStore, stage: str = "sft") -> str:
    return (store.path(stage) / "made_with").read_text(encoding="utf-8")


def test_a_stage_is_complete_when_it_is_finished(store: StageStore) -> None:
    assert not store.is_complete("sft", "one")
    store.begin("sft", "one")
    assert not store.is_complete("sft", "one")
    finished(store, "sft", "one")
    assert store.is_complete("sft", "one") and not store.is_complete("sft", "two")
    assert not (store.path("sft") / "checkpoints").exists()


def test_a_result_comes_back_when_the_recipe_does(store: StageStore) -> None:
    finished(store, "sft", "one")
    store.set_aside("sft")
    finished(store, "sft", "two")
    store.restore("sft", "three")
    assert made_with(store) == "two"
    store.restore("sft", "one")
    assert made_with(store) == "one" and store.is_complete("sft", "one")
    store.restore("sft", "two")
    assert made_with(store) == "two"


def test_an_incomplete_result_never_replaces_a_complete_one(store: StageStore) -> None:
    finished(store, "sft", "one")
    store.set_aside("sft")
    store.begin("sft", "two")
    store.set_aside("sft")
    assert not store.path("sft").exists()
    store.restore("sft", "one")
    assert made_with(store) == "one"


def test_artifacts(store: StageStore) -> None:
    finished(store, "sft", "one")
    for folder in ("adapter", "kept/2", "kept/10"):
        (store.path("sft") / folder).mkdir(parents=True)
    finished(store, "best", "one", policy="sft@2")
    assert store.artifact("sft") == store.path("sft") / "adapter"
    assert store.artifact("sft@10") == store.path("sft") / "kept" / "10"
    assert store.artifact("best") == store.path("sft") / "kept" / "2"
    with pytest.raises(RunFailed, match=r"'sft@3' does not exist: .*; kept versions: 2, 10"):
        store.artifact("sft@3")


def test_a_version_that_was_not_kept_says_how_to_keep_it(store: StageStore) -> None:
    finished(store, "sft", "one")
    with pytest.raises(RunFailed, match=r"set 'keep_versions: true' in stage 'sft'"):
        store.artifact("sft@3")


def test_metrics_are_joined_in_the_order_of_the_stages(store: StageStore) -> None:
    for stage in ("best", "sft"):
        (store.begin(stage, "one") / "metrics.jsonl").write_text(f"{stage}\n", encoding="utf-8")
    store.join_metrics()
    assert (store.folder / "metrics.jsonl").read_text(encoding="utf-8") == "sft\nbest\n"

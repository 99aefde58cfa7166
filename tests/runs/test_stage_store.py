"""Stage folders: what counts as complete, what a change sets aside, and where results are."""

import json
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


def test_every_result_comes_back_when_its_recipe_does(store: StageStore) -> None:
    for stage_hash in ("one", "two", "three"):
        finished(store, "sft", stage_hash)
        store.set_aside("sft")
    for stage_hash in ("one", "three", "two", "one"):
        assert store.restore("sft", stage_hash)
        assert made_with(store) == stage_hash and store.is_complete("sft", stage_hash)
        assert store.damage("sft") is None
    assert not store.restore("sft", "four") and made_with(store) == "one"
    assert not store.restore("sft", "one") and made_with(store) == "one"


def test_what_was_interrupted_is_kept_if_it_has_a_checkpoint(store: StageStore) -> None:
    finished(store, "sft", "one")
    store.set_aside("sft")
    store.begin("sft", "two")
    store.set_aside("sft")
    assert not store.path("sft").exists() and not store.restore("sft", "two")
    (store.begin("sft", "three") / "checkpoints" / "000001").mkdir(parents=True)
    assert store.restore("sft", "one") and made_with(store) == "one"
    assert store.restore("sft", "three") and (store.path("sft") / "checkpoints" / "000001").is_dir()
    assert not store.is_complete("sft", "three")


@pytest.mark.parametrize("name", ["adapter/weights", "kept/2/weights", "data.jsonl", "made_with"])
def test_changed_files_of_a_complete_stage_are_found(store: StageStore, name: str) -> None:
    file = with_files(store) / name
    assert store.damage("sft") is None
    file.write_bytes(b"changed")
    assert store.damage("sft") == f"{file} has changed since the stage wrote it"
    file.unlink()
    assert store.damage("sft") == (None if name == "made_with" else f"{file} is missing")


def with_files(store: StageStore) -> Path:
    folder = store.begin("sft", "one")
    for name in ("adapter/weights", "kept/2/weights", "data.jsonl", "made_with"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"something")
    store.finish("sft", {"hash": "one", "complete": True})
    return folder


def test_every_flipped_bit_of_a_record_is_found(store: StageStore) -> None:
    file = with_files(store) / "stage.json"
    whole, read = file.read_bytes(), store.record("sft")
    for bit in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        record = store.record("sft")
        assert record in ({}, read)
    file.write_bytes(whole[:-20])
    assert store.damage("sft") == f"{file} is damaged" and not store.is_complete("sft", "one")
    store.bring_back("sft", "one", lambda text: None)
    place = store.folder / ".earlier" / "sft" / "damaged"
    assert (place / "adapter" / "weights").exists() and not store.path("sft").exists()
    with_files(store)
    assert not place.exists() and store.damage("sft") is None, "it is kept until the new result is complete"


@pytest.mark.parametrize("folder", [True, False])
def test_what_is_no_result_is_named_and_left_alone(store: StageStore, folder: bool) -> None:
    notes = store.path("sft") / "notes" if folder else store.path("sft")
    notes.parent.mkdir(exist_ok=True)
    notes.write_text("mine", encoding="utf-8")
    with pytest.raises(RunFailed, match="has files, but no stage.json" if folder else "is a file"):
        store.bring_back("sft", "one", print)
    assert notes.read_text(encoding="utf-8") == "mine"


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
    store.join_metrics("best")
    assert (store.folder / "metrics.jsonl").read_text(encoding="utf-8") == "sft\nbest\n"
    store.join_metrics("sft")
    assert (store.folder / "metrics.jsonl").read_text(encoding="utf-8") == "sft\n"


def steps(file: Path) -> list[int]:
    return [json.loads(line)["step"] for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_runs_metrics_grow_with_the_stages_and_have_each_step_once_after_a_crash(store: StageStore) -> None:
    joined = store.folder / "metrics.jsonl"
    store.begin("best", "stale")
    store.metrics("best").write(step=7)  # of an earlier run with other settings
    store.begin("sft", "one")
    metrics = store.metrics("sft")
    metrics.write(step=1)
    file = joined.stat().st_ino
    assert steps(joined) == [1]
    size = metrics.sync()
    metrics.write(step=2)
    assert steps(joined) == [1, 2]
    store.join_metrics("sft")
    assert joined.stat().st_ino == file  # whoever follows the file keeps it
    with joined.open("a", encoding="utf-8") as cut:
        cut.write('{"step": 3, "lo')  # killed while it wrote
    metrics = store.metrics("sft", size)
    assert steps(joined) == [1]
    metrics.write(step=2)
    assert steps(joined) == steps(store.path("sft") / "metrics.jsonl") == [1, 2]


def test_a_damaged_copy_of_the_metrics_is_written_again(store: StageStore) -> None:
    store.begin("sft", "one")
    store.metrics("sft").write(step=1)
    joined = store.folder / "metrics.jsonl"
    joined.write_bytes(b"\xff\xfe" + joined.read_bytes())
    store.join_metrics("sft")
    assert steps(joined) == [1]

"""A second `--out` reuses the finished stages of a first one, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from alignkit.cli import main
from alignkit.io.digest import file_digest
from alignkit.runs import reuse as module
from alignkit.runs.reuse import reuse
from alignkit.runs.stage_store import StageStore


def store_of(folder: Path) -> StageStore:
    folder.mkdir()
    (folder / "recipe.resolved.yaml").touch()
    return StageStore(folder, ["sft"])


def finished(store: StageStore, stage_hash: str) -> None:
    folder = store.begin("sft", stage_hash)
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "weights").write_text(stage_hash, encoding="utf-8")
    (folder / "note.txt").write_text("not needed", encoding="utf-8")
    store.finish("sft", {"hash": stage_hash, "complete": True})


@pytest.fixture
def first(tmp_path: Path) -> StageStore:
    store = store_of(tmp_path / "first")
    finished(store, "one")
    return store


@pytest.fixture
def second(tmp_path: Path) -> StageStore:
    return store_of(tmp_path / "second")


def reused(second: StageStore, stage_hash: str, *runs: StageStore) -> Sequence[str]:
    said: list[str] = []
    reuse(second, "sft", stage_hash, [run.folder for run in runs], said.append)
    assert not list(second.folder.glob(".*"))  # no part is left
    return said


def test_a_finished_stage_is_linked(first: StageStore, second: StageStore) -> None:
    assert reused(second, "one", first) == [f"sft: reused from {first.folder}"]
    assert second.is_complete("sft", "one") and second.damage("sft") is None
    weights = [store.path("sft") / "adapter" / "weights" for store in (first, second)]
    assert weights[0].samefile(weights[1])


def test_it_is_copied_where_links_are_impossible(
    first: StageStore, second: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*paths: Path) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", no_link)
    assert reused(second, "one", first)
    weights = [store.path("sft") / "adapter" / "weights" for store in (first, second)]
    assert not weights[0].samefile(weights[1]) and file_digest(weights[0]) == file_digest(weights[1])
    assert second.damage("sft") is None


def test_an_earlier_result_is_found(first: StageStore, second: StageStore) -> None:
    first.set_aside("sft")
    finished(first, "two")
    assert reused(second, "one", first) and second.is_complete("sft", "one")


def test_another_hash_is_not_reused(first: StageStore, second: StageStore) -> None:
    assert reused(second, "two", first) == [] and not second.path("sft").exists()


@pytest.mark.parametrize("harm", ["changed", "missing", "record", "incomplete", "asked"])
def test_what_is_damaged_or_not_finished_is_never_used(first: StageStore, second: StageStore, harm: str) -> None:
    folder = first.path("sft")
    if harm == "changed":
        (folder / "adapter" / "weights").write_text("onE", encoding="utf-8")
    elif harm == "missing":
        (folder / "adapter" / "weights").unlink()
    elif harm == "record":
        (folder / "stage.json").write_text((folder / "stage.json").read_text()[:-9], encoding="utf-8")
    elif harm == "incomplete":
        first.begin("sft", "one")
    else:
        (folder / "agreement.json").write_text("{}", encoding="utf-8")
    assert reused(second, "one", first) == [] and not second.path("sft").exists()


def test_the_next_run_has_it_if_one_is_damaged(first: StageStore, second: StageStore, tmp_path: Path) -> None:
    finished(third := store_of(tmp_path / "third"), "one")
    (first.path("sft") / "adapter" / "weights").write_text("x", encoding="utf-8")
    assert reused(second, "one", first, third) == [f"sft: reused from {third.folder}"]


def test_a_process_that_dies_leaves_no_part(
    first: StageStore, second: StageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*paths: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "move_folder", die)
    with pytest.raises(KeyboardInterrupt):
        reuse(second, "sft", "one", [first.folder], print)
    assert not second.path("sft").exists() and second.record("sft") == {}
    (left,) = second.folder.glob(".sft*")
    assert left.name.endswith(".alignkit-new")  # which the next run removes


def test_an_own_result_for_other_settings_is_set_aside(first: StageStore, second: StageStore) -> None:
    finished(second, "two")
    reuse(second, "sft", "one", [first.folder], print)
    assert second.is_complete("sft", "one") and second.waits("sft", "two")


def test_what_has_begun_continues(first: StageStore, second: StageStore) -> None:
    second.begin("sft", "one")
    assert reused(second, "one", first) == [] and not second.is_complete("sft", "one")


def test_a_second_out_trains_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ALIGNKIT_REUSE")
    monkeypatch.chdir(tmp_path)
    rows = tmp_path / "demos.jsonl"
    rows.write_text('{"prompt": "is it?", "completion": "yes"}\n', encoding="utf-8")
    train = {"algorithm": "sft", "data": "demos.jsonl", "max_steps": 1}
    report = {"step": "evaluate", "policies": ["sft"], "rewards": ["length"], "prompts": "demos.jsonl"}
    recipe = tmp_path / "r.json"
    stages = {"sft": train, "report": {**report, "sampling": {"max_new_tokens": 4}}}
    recipe.write_text(json.dumps({"model": {"base": "tiny"}, "stages": stages}), encoding="utf-8")

    def run(*words: str) -> str:
        capsys.readouterr()
        assert main(["run", str(recipe), *words]) == 0
        return capsys.readouterr().err

    assert "reused" not in run()  # in runs/r
    both = "sft: reused from {0}\nreport: reused from {0}\n"
    assert both.format("runs/r") in run("--out", "elsewhere/a")
    assert both.format("elsewhere/a") in run("--out", "elsewhere/b").replace("runs/r", "elsewhere/a")
    assert "sft: reused from runs/r\nreport" not in run("--out", "runs/s", "stages.sft.max_steps=2")
    monkeypatch.setenv("ALIGNKIT_REUSE", "0")
    assert "reused" not in run("--out", "runs/t")

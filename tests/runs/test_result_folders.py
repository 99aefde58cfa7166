"""Results by key: complete or absent, found again by key or by name, in this run or in another
one.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from alignkit.cli import main
from alignkit.errors import RecipeError, RunFailed
from alignkit.io import results as module
from alignkit.io.digest import digest
from alignkit.io.results import RECIPE, Results, read_record, stage_folder
from alignkit_plugins.command_line.find import find, find_result, is_result_name, results_of_stage
from tests.faults.disk import synced
from tests.rows import Said, write_recipe

FILES = ("adapter/weights", "kept/2/weights", "data.jsonl", "made_with")


@pytest.fixture
def store(tmp_path: Path) -> Results:
    return Results(tmp_path / "run")


def finished(store: Results, name: str, stage: str = "sft", **record: Any) -> str:
    """Make a result, whose files say what it was made with. Returns its key."""
    key = digest(name)
    store.begin(stage, key, {})
    folder = (store.folder / stage).resolve()
    for file in FILES:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(name, encoding="utf-8")
    (folder / "checkpoints" / "000001").mkdir(parents=True)
    store.finish(stage, {"hash": key, "complete": True, **record})
    return key


def brought(store: Results, key: str, *others: Results) -> list[str] | None:
    """What is said while the result for a key is brought; None if there is none."""
    said: list[str] = []
    there = store.link("sft", key, [other.folder for other in others], said.append)
    assert not [path for path in store.folder.rglob("*") if ".alignkit-" in path.name]
    return said if there else None


def made_with(store: Results) -> str:
    return (store.folder / "sft" / "made_with").read_text(encoding="utf-8")


def test_a_result_is_complete_or_absent(store: Results) -> None:
    key = digest("one")
    store.begin("sft", key, {})
    folder = store.folder / "sft"
    assert brought(store, key) is None and os.readlink(folder) == f".work/sft-{key[:16]}"
    store.wait("sft", 2, Path("/labels"))
    waits = {"labels": 2, "store": "/labels"}
    assert store.record("sft").items() >= {"hash": key, "waits_for": waits}.items()
    finished(store, "one")
    assert brought(store, key) == [] and os.readlink(folder) == f".results/sft-{key[:16]}"
    assert not (folder / "checkpoints").exists() and not list((store.folder / ".work").iterdir())
    assert brought(store, digest("two")) is None


def test_every_result_comes_back_when_its_recipe_does(store: Results) -> None:
    keys = {name: finished(store, name) for name in ("one", "two", "three")}
    store.begin("sft", digest("four"), {})
    (store.folder / "sft" / "checkpoints" / "000001").mkdir(parents=True)
    for name in ("one", "three", "two", "one"):
        assert brought(store, keys[name]) == ["sft: restored an earlier result for these settings"]
        assert made_with(store) == name
    assert brought(store, keys["one"]) == []
    store.begin("sft", digest("four"), {})
    assert (store.folder / "sft" / "checkpoints" / "000001").is_dir()


def test_the_names_of_a_result_survive_a_crash(store: Results) -> None:
    names: list[str] = []
    with synced(lambda handle: names.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)):
        finished(store, "one")
    assert {"adapter", "kept", "2", ".work", ".results", "run"} <= {*names}


def test_what_lacks_a_file_or_differs_is_kept_until_it_is_made_again(store: Results) -> None:
    key = finished(store, "one")
    (result,) = (store.folder / ".results").iterdir()
    for name in FILES:
        times = (result / name).stat()
        (result / name).write_text("onE", encoding="utf-8")
        os.utime(result / name, ns=(times.st_atime_ns, times.st_mtime_ns))
        damaged = f"{store.folder / 'sft' / name} is not as the stage wrote it"
        assert module.damage_of(store.folder / "sft") == damaged
        (result / name).unlink()
        assert brought(store, key) is None and len(list(result.rglob("*"))) > 5
        store.begin("sft", key, {})
        assert result.exists()
        finished(store, "one")
        assert brought(store, key) == []


def test_a_large_file_is_read_only_if_its_size_or_time_differs(
    store: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ALWAYS_READ", 3)
    finished(store, "one")
    monkeypatch.setattr(module, "file_digest", lambda path: "another")
    assert module.damage_of(store.folder / "sft") is None
    os.utime(store.folder / "sft" / "data.jsonl", (1, 1))
    assert str(module.damage_of(store.folder / "sft")).endswith(
        "data.jsonl is not as the stage wrote it"
    )


def test_every_flipped_bit_of_a_record_is_found(store: Results) -> None:
    key = finished(store, "one")
    file = store.folder / "sft" / "stage.json"
    whole, read = file.read_bytes(), store.record("sft")
    for bit in range(0, len(whole) * 8, 7):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        assert store.record("sft") in ({}, read)
    file.write_bytes(whole[:-20])
    assert module.damage_of(store.folder / "sft") == f"{file} is missing or damaged"
    assert brought(store, key) is None


@pytest.mark.parametrize("step", ["move_folder", "replace_link"])
def test_a_kill_when_a_result_is_complete_loses_nothing(
    store: Results, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def die(*paths: Path) -> None:
        if "result" in str(paths[-1]):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        store.begin("sft", digest("one"), {})
        patch.setattr(module, step, die)
        finished(store, "one")
    assert brought(store, digest("one")) == []
    assert not (store.folder / "sft" / "checkpoints").exists(), "it is cleaned when it is found"


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("complete", [True, False])
def test_a_run_that_was_copied_with_its_links_followed(
    store: Results, tmp_path: Path, complete: bool, hidden: bool
) -> None:
    """By `scp -r` or `zip`, with the hidden folders, or without them. Then the folder is the
    result, or the work on one, unless a file of it has changed; notes in it stay.
    """
    copy, key = Results(tmp_path / "copy"), digest("one")
    if complete:
        finished(store, "one")
    else:
        store.begin("sft", key, {})
        (store.folder / "sft" / "checkpoints" / "000001").mkdir(parents=True)
    shutil.copytree(store.folder, copy.folder)
    folder = copy.folder / "sft"
    if not hidden:
        for name in (".results", ".work"):
            shutil.rmtree(copy.folder / name, ignore_errors=True)
    again = Results(tmp_path / "again")
    shutil.copytree(copy.folder, again.folder)
    (again.folder / "sft" / "notes").write_text("mine", encoding="utf-8")
    assert brought(copy, key) == ([] if complete else None)
    kind, name = ".results" if complete else ".work", f"sft-{key[:16]}"
    assert [path.name for path in (copy.folder / kind).iterdir()] == [name]
    assert complete or (copy.folder / kind / name / "checkpoints" / "000001").is_dir()
    assert not complete or (os.readlink(folder) == f"{kind}/{name}" and made_with(copy) == "one")
    brought(again, digest("two"))
    assert (again.folder / kind / name / "notes").exists()
    if complete:
        (store.folder / "sft").unlink()
        shutil.copytree(copy.folder / kind / name, store.folder / "sft")
        (store.folder / "sft" / FILES[0]).write_text("other", encoding="utf-8")
        with pytest.raises(RunFailed, match="is no link to a result of this run"):
            brought(store, key)
        assert brought(again, key) == []
    for text in ("{}", '{"hash": "../../../../../"}'):
        (again.folder / "sft").unlink() if (again.folder / "sft").is_symlink() else None
        (again.folder / "sft").mkdir(exist_ok=True)
        (again.folder / "sft" / "stage.json").write_text(text, encoding="utf-8")
        with pytest.raises(RunFailed, match="is no link to a result of this run"):
            brought(again, key)


@pytest.mark.parametrize("folder", [True, False])
def test_what_is_no_result_is_named_and_left_alone(store: Results, folder: bool) -> None:
    notes = store.folder / "sft" / "notes" if folder else (store.folder / "sft")
    notes.parent.mkdir(parents=True, exist_ok=True)
    notes.write_text("mine", encoding="utf-8")
    with pytest.raises(RunFailed, match="is no link to a result of this run"):
        brought(store, digest("one"))
    assert notes.read_text(encoding="utf-8") == "mine"


# Other runs


@pytest.mark.parametrize("harm", ["adapter/weights", "stage.json", "agreement.json"])
def test_what_is_damaged_or_asked_people_is_not_taken(
    store: Results, tmp_path: Path, harm: str
) -> None:
    second, third = Results(tmp_path / "second"), Results(tmp_path / "third")
    key = finished(store, "one")
    (store.folder / "sft" / harm).write_text("{}", encoding="utf-8")
    assert brought(second, key, store) is None and not (second.folder / "sft").exists()
    assert (brought(store, key) == []) == (harm == "agreement.json")
    finished(third, "one")
    finished(third, "two")
    assert brought(second, key, store, third) == [f"sft: reused from {third.folder}"]
    assert made_with(second) == "one"


def test_a_second_out_trains_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    monkeypatch.delenv("ALIGNKIT_REUSE")
    monkeypatch.chdir(tmp_path)
    stages = """
    sft: {algorithm: sft, data: demos.jsonl, max_steps: 1}
    report:
      step: evaluate
      policies: [sft]
      rewards: [length]
      prompts: demos.jsonl
      sampling: {max_new_tokens: 4}
    """
    write_recipe(tmp_path, stages).rename("r.yaml")

    def run(*words: str) -> str:
        said()
        assert main(["run", "r.yaml", *words]) == 0
        return said()

    assert "reused" not in run()  # in runs/r
    both = "sft: reused from {0}\nreport: reused from {0}\n"
    assert both.format("runs/r") in run("--out", "runs/a")
    assert both.format("runs/a") in run("--out", "runs/b").replace("runs/r", "runs/a")
    assert "reused" not in run("--out", "elsewhere/a")
    monkeypatch.setenv("ALIGNKIT_REUSE", "1")
    assert "sft: reused from runs/r\nreport" not in run("--out", "runs/s", "stages.sft.max_steps=2")
    monkeypatch.setenv("ALIGNKIT_REUSE", "0")
    assert "reused" not in run("--out", "runs/t")


# Names


@pytest.fixture
def named(tmp_path: Path) -> Results:
    store = Results(tmp_path)
    settings = {"depends_on": {"settings": {"epochs": 1}}}
    for number, algorithm in enumerate(("ppo", "dpo", "ppo", "ppo"), 1):
        finished(store, f"{number}", "align", plugin=algorithm, **settings)
        # As a copy may have it
        os.utime(store.folder / "align" / "stage.json", (9 - number, 9 - number))
    finished(store, "5", "align-b", plugin="ppo", **settings)
    return store


def test_the_newest_result_of_an_algorithm_has_its_name(named: Results) -> None:
    names = {"align@ppo": "4", "align@ppo~1": "3", "align@dpo": "2", "align@ppo~2": "1"}
    found = results_of_stage(named.folder, "align")
    hashes = [(name, read_record(folder)["hash"]) for name, folder in found.items()]
    assert hashes == [(name, digest(key)) for name, key in names.items()]
    earlier = named.folder / ".results" / f"align-{digest('1')[:16]}"
    assert find_result(named.folder, "align@ppo~2") == earlier
    for folder in (earlier / "kept" / "2", named.artifact("align")):
        assert stage_folder(folder) == named.folder / "align"
    assert stage_folder(named.artifact("align-b").with_name("model")) == named.folder / "align-b"
    named.link("align", digest("2"), (), print)
    assert find_result(named.folder, "align@dpo") == (named.folder / "align").resolve()
    assert read_record(find_result(named.folder, "align@ppo"))["hash"] == digest("4")


def test_what_is_not_complete_and_what_a_step_made_has_no_name(named: Results) -> None:
    named.begin("align", digest("5"), {"settings": {}})
    assert stage_folder(named.folder / "align" / "adapter") == named.folder / "align"
    finished(named, "6", "report", plugin="evaluate", depends_on={"settings": None})
    assert len(results_of_stage(named.folder, "align")) == 4
    assert results_of_stage(named.folder, "report") == {}
    assert is_result_name("a@all_pairs") and is_result_name("a@ppo~1")
    assert not any(map(is_result_name, ("a@2", "a@all", "a", "a@", "a@0")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("align@kto", "results of align: align@ppo, align@ppo~1, align@dpo, align@ppo~2"),
        ("align@pp", "did you mean 'align@ppo'?"),
        ("best@kto", "RUN has no result best@kto; results of best: none"),
    ],
)
def test_a_result_that_is_not_there(named: Results, name: str, message: str) -> None:
    (named.folder / ".results" / f"align-{digest('4')[:16]}" / "data.jsonl").unlink()
    (named.folder / RECIPE).touch()
    with pytest.raises(RunFailed, match="run the recipe that made align@ppo again"):
        find(str(named.folder / "align@ppo"))
    with pytest.raises(RecipeError) as raised:
        find_result(named.folder, name)
    assert message in str(raised.value).replace(str(named.folder), "RUN")


def test_artifacts(store: Results) -> None:
    finished(store, "one")
    finished(store, "one", "best", policy="sft@2", summary={1: Path("x")})
    assert store.record("best")["summary"] == {"1": "x"}
    assert store.artifact("best") == store.folder / "sft" / "kept" / "2"
    with pytest.raises(RunFailed, match=r"'sft@3' does not exist: .*(\n.*)kept versions: 2"):
        store.artifact("sft@3")
    shutil.rmtree(store.folder / "sft" / "kept")
    with pytest.raises(RunFailed, match=r"set 'keep_versions: true' in stage 'sft'"):
        store.artifact("sft@3")

"""Crashes, signals, flipped bits, hostile recipes, rows, models and templates: nothing is lost or
silently wrong.

A few cheap cases of each kind run with all tests, every 20th with `make slow`, and all with `make
faults`.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from pathlib import Path

import pytest

from alignkit.io import atomic
from alignkit.io.atomic import move_folder, replace_folder, replace_link, write_text
from alignkit_plugins.bases.templates import CHATML
from tests.faults.case import command, results, write_world
from tests.faults.damages import damages
from tests.faults.disk import Disk, restore, synced
from tests.killed import forked
from tests.rows import cells

pytestmark = pytest.mark.usefixtures("one_thread")
EVERY = int(os.environ.get("FAULTS_EVERY", "20"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    (folder / "template.jinja").write_text(CHATML)
    return folder


RUN = ("run", "recipe.yaml", "--out", "run")
# The files of a kind, the command that meets their damages, and how many cases all tests have.
KINDS = """
recipe   | recipe.yaml    | check recipe.yaml            | 8
row      | row?.jsonl     | check rows.yaml              | 4
model    | model/*        | run model.yaml --out out     | 2
adapter  | adapter/*      | run adapter.yaml --out out   | 2
template | template.jinja | run template.yaml --out out  | 3
run      | run/**/*       | run recipe.yaml --out run    | 1
"""


@pytest.mark.parametrize("often", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "pattern", "words", "few"), cells(KINDS))
def test_a_damaged_file_is_refused_in_words_or_does_no_harm(
    kind: str, pattern: str, words: str, few: str, often: bool, world: Path, tmp_path: Path
) -> None:
    files = [file for file in sorted(world.glob(pattern)) if file.is_file() and file.suffix]
    cases = [(file, *case) for file in files for case in damages(file.name, file.read_bytes())]
    whole = results(world / "run")
    for number, (file, what, content) in enumerate(
        cases[:: len(cases) // int(few) if often else EVERY]
    ):
        folder = shutil.copytree(world, tmp_path / str(number), symlinks=True)
        damaged = folder / file.relative_to(world)
        damaged.unlink()
        if content is not None:
            damaged.write_bytes(content)
        if kind == "run":  # the last stage has to be done again, so that all results are needed
            shutil.rmtree((folder / "run" / "report").resolve(), ignore_errors=True)
        code, said = command(folder, *words.split())
        if kind == "run" and code:
            code, said = command(folder, *words.split())
            assert code == 0, f"{file}, {what}: lost\n{said}"
        assert kind != "run" or results(folder / "run") == whole, f"{file}, {what}: silently wrong"
        shutil.rmtree(folder)


@pytest.mark.slow
def test_a_run_whose_power_fails_continues(world: Path, tmp_path: Path) -> None:
    """What a finished stage has is not done again."""
    disk, whole = Disk(tmp_path / "run"), results(world / "run")
    shutil.copytree(world, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("run"))
    with disk.watching():
        command(tmp_path, *RUN)
    for tree in disk.points[::EVERY]:
        shutil.rmtree(tmp_path / "run")
        restore(tree, tmp_path / "run")
        code, said = command(tmp_path, *RUN)
        assert code == 0 and results(tmp_path / "run") == whole, said
        for name, content in tree.items():
            if isinstance(content, bytes) and b'"complete": true' in content:
                assert f"{Path(name).parts[-2].partition('-')[0]}: unchanged, reused" in said


SIGNALS = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT", "SIGKILL")


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_anywhere_stops_a_run_which_continues_to_the_same_bytes(
    world: Path, tmp_path: Path, name: str
) -> None:
    """Anywhere: after a call that makes something durable."""
    number, whole = signal.Signals[name], results(world / "run")
    shutil.copytree(world, tmp_path, dirs_exist_ok=True, symlinks=True)
    for place in itertools.count(1, EVERY):
        shutil.rmtree(tmp_path / "run")
        calls = itertools.count(1)

        def stop(handle: int, place: int = place, calls: itertools.count[int] = calls) -> None:
            if next(calls) == place:
                os.kill(os.getpid(), number)

        with synced(stop):
            code = forked("run", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
        if code == 0:  # it was at its end
            break
        assert code in (75, 130, -number)
        code, said = command(tmp_path, *RUN)
        assert code == 0 and results(tmp_path / "run") == whole, said


def replaced(root: Path) -> Disk:
    disk = Disk(root)
    with disk.watching():
        for text in ("old", "new"):
            with replace_folder(root / "target") as folder:
                (folder / "file").write_text(text, encoding="utf-8")
            write_text(root / "done", text)
    return disk


def test_a_replaced_folder_is_whole_after_every_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = replaced(tmp_path / "root").points
    assert [tree["target/file"] for tree in trees if tree.get("done")][-1] == b"new"
    for tree in trees:
        assert not tree.get("done") or tree["target/file"] in (b"old", b"new")
    # Where folders are not synced, the model of the disk notices it.
    monkeypatch.setattr(atomic, "sync_folder", lambda folder: None)
    assert not any("target/file" in tree for tree in replaced(tmp_path / "other").points)


def test_what_is_moved_or_linked_is_there_after_a_crash(tmp_path: Path) -> None:
    root = tmp_path / "root"
    disk = Disk(root)
    with disk.watching():
        with replace_folder(root / "work" / "new") as folder:
            (folder / "in").mkdir()
            (folder / "in" / "file").write_text("x", encoding="utf-8")
        move_folder(root / "work" / "new", root / "made" / "kept")
        replace_link(root / "link", Path("made/kept"))
        write_text(root / "deep" / "er" / "file", "y")
    folders = dict.fromkeys(("work", "made", "made/kept", "made/kept/in", "deep", "deep/er"))
    files = {"made/kept/in/file": b"x", "deep/er/file": b"y", "link": Path("made/kept")}
    assert disk.points[-1] == {**folders, **files}

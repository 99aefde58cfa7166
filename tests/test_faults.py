"""Crashes, signals, flipped bits, hostile recipes, rows, models and templates: nothing is lost or silently wrong.

A few cheap cases of each kind run with all tests, every 20th with `make slow`, and all with `make faults`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from alignkit.io import atomic
from alignkit.io.atomic import replace_folder, write_text
from tests.faults import crashes, flips, models, runs, signals, texts
from tests.faults.case import HELD, HUNG, UNTIDY, Case, TooLong, command

pytestmark = pytest.mark.usefixtures("one_thread")
EVERY = int(os.environ.get("FAULTS_EVERY", "20"))


@dataclass(frozen=True)
class Finished:
    """A whole run, and what it is for."""

    recipe: Path
    folder: Path
    results: dict[str, str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("faults")
    recipe = runs.write(folder)
    said = command(["run", str(recipe), "--out", str(folder / "run")])
    assert said.code == 0, said.text
    return Finished(recipe, folder / "run", runs.results(folder / "run"))


FAMILIES: dict[str, Callable[[Finished, Path], list[Case]]] = {
    "flip": lambda whole, scratch: flips.cases(whole.recipe, whole.results, whole.folder),
    "recipe": lambda whole, scratch: texts.recipes(whole.recipe),
    "row": lambda whole, scratch: texts.rows(whole.recipe),
    "model": lambda whole, scratch: models.folders(whole.recipe, whole.folder / "sft" / "adapter"),
    "template": lambda whole, scratch: models.templates(whole.recipe),
    "crash": lambda whole, scratch: crashes.cases(whole.recipe, whole.results, scratch),
    "signal": lambda whole, scratch: signals.cases(whole.recipe, whole.results, scratch),
}
FEW = {"flip": 3, "recipe": 12, "row": 12, "model": 3, "template": 3}  # cases with all tests


def assert_held(cases: Sequence[Case], folder: Path) -> None:
    bad = []
    for number, case in enumerate(cases):
        (place := folder / str(number)).mkdir()
        try:
            outcome, text = case.run(place)
        except TooLong:
            outcome, text = HUNG, ""
        if outcome not in (HELD, UNTIDY):
            bad.append(f"{outcome}: {case.name}\n{text[-1500:]}")
    assert not bad, "\n\n".join(bad[:5])


@pytest.mark.parametrize("family", FEW)
def test_a_few_faults_of_a_kind_hold(family: str, finished: Finished, tmp_path: Path) -> None:
    cases = FAMILIES[family](finished, tmp_path)
    assert_held(cases[:: len(cases) // FEW[family]], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_faults_of_a_kind_hold(family: str, finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    assert_held(FAMILIES[family](finished, tmp_path)[::EVERY], tmp_path / "cases")


def replaced(root: Path) -> crashes.Disk:
    disk = crashes.Disk(root)
    disk.root.mkdir()
    with disk.watching():
        for text in ("old", "new"):
            with replace_folder(disk.root / "target") as folder:
                (folder / "file").write_text(text, encoding="utf-8")
            write_text(disk.root / "done", text)
    return disk


def test_a_replaced_folder_is_whole_after_every_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = [tree for tree, _ in replaced(tmp_path / "root").points]
    assert [tree["target/file"] for tree in trees if tree.get("done")][-1] == b"new"
    for tree in trees:
        assert not tree.get("done") or tree["target/file"] in (b"old", b"new")
    # Where folders are not synced, the model of the disk notices it.
    monkeypatch.setattr(atomic, "sync_folder", lambda folder: None)
    assert not any("target/file" in tree for tree, _ in replaced(tmp_path / "other").points)

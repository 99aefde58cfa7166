"""Files and folders are complete or absent."""

import json
import os
from pathlib import Path

import pytest

from alignkit.io import atomic
from alignkit.io.atomic import (
    discard_folder,
    remove_leftovers,
    replace_folder,
    whole_file,
    write_json,
    write_text,
)


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "file") as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text(encoding="utf-8") == "old"


def test_json_is_readable_text(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "file.json", {"name": "Ωmega"})
    text = (tmp_path / "new" / "file.json").read_text(encoding="utf-8")
    assert "Ωmega" in text and json.loads(text) == {"name": "Ωmega"}


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with replace_folder(tmp_path / "target") as folder:
            (folder / name).write_text(name, encoding="utf-8")
    with pytest.raises(RuntimeError), replace_folder(tmp_path / "target") as folder:
        (folder / "three").write_text("three", encoding="utf-8")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["two"]


def test_files_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o007)
    with replace_folder(tmp_path / "target") as folder:
        os.umask(before)
        (folder / "file").touch(0o600)
    assert (tmp_path / "target" / "file").stat().st_mode & 0o777 == 0o660


KEPT = """sft/.hidden sft/data.tmp sft/.config.tmp .earlier/sft/12/stage.json b/adapter/file
.notes.new/text .notes.old/text .draft.123.tmp .venv/.pip.7.tmp sft/alignkit-new/file
other/.lock other/.adapter.alignkit-new/file other/.stage.json.5.alignkit-tmp .lock"""
LEFTOVERS = """sft/.stage.json.123.alignkit-tmp sft/checkpoints/.000003.alignkit-new/state.json
b/.adapter.alignkit-old/file .earlier/sft/.34.alignkit-discarded/stage.json"""


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    """A user's own files may lie next to a run, and another run below it."""
    kept, leftovers = KEPT.split(), LEFTOVERS.split()
    for name in [*kept, *leftovers]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()
    ) == sorted(kept)


def test_links_to_folders_elsewhere_are_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / ".x.alignkit-new"
    elsewhere.mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(elsewhere.parent)
    (tmp_path / "run" / ".link.alignkit-new").symlink_to(elsewhere.parent)
    remove_leftovers(tmp_path / "run")
    assert elsewhere.is_dir() and [path.name for path in (tmp_path / "run").iterdir()] == ["link"]


def test_a_folder_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    for name in (".adapter.alignkit-old/file", ".adapter.alignkit-new/file"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name, encoding="utf-8")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert (tmp_path / "adapter" / "file").read_text(
        encoding="utf-8"
    ) == ".adapter.alignkit-old/file"


def test_what_a_killed_process_had_begun_to_delete_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never looks like a part of what it was."""

    def killed(path: Path, *_: object) -> None:
        (path / "stage.json").unlink()
        raise SystemExit

    (tmp_path / "sft").mkdir()
    for name in ("stage.json", "data.jsonl"):
        (tmp_path / "sft" / name).touch()
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(atomic.shutil, "rmtree", killed)
        discard_folder(tmp_path / "sft")
    assert not (tmp_path / "sft").exists()
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())
    for name in ("sft", ".sft.alignkit-discarded/left"):
        (tmp_path / name).mkdir(parents=True)
    discard_folder(tmp_path / "sft")
    assert not list(tmp_path.iterdir())

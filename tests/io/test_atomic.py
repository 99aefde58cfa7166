"""Files and folders are complete or absent."""

import json
from pathlib import Path

import pytest

from alignkit.io import atomic
from alignkit.io.atomic import remove_leftovers, replace_folder, whole_file, write_json, write_text


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


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = [".lock", "sft/.hidden", "sft/data.tmp", "sft/.config.tmp", ".earlier/sft/12/stage.json", "b/adapter/file"]
    leftovers = ["sft/.stage.json.123.tmp", "sft/checkpoints/.000003.new/state.json", "b/.adapter.old/file"]
    for name in [*kept, *leftovers]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_a_folder_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    for name in (".adapter.old/file", ".adapter.new/file"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name, encoding="utf-8")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert (tmp_path / "adapter" / "file").read_text(encoding="utf-8") == ".adapter.old/file"


def test_a_system_that_cannot_open_folders_needs_no_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows."""
    monkeypatch.setattr(atomic.os, "name", "nt")
    monkeypatch.setattr(atomic.os, "open", None)
    atomic.sync_folder(tmp_path)

"""Files and folders are complete or absent."""

import json
from pathlib import Path

import pytest

from alignkit.io.atomic import replace_folder, whole_file, write_json, write_text


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

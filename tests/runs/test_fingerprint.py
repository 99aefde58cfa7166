"""What the fingerprint of a stage depends on."""

from __future__ import annotations

from pathlib import Path

from alignkit.runs.fingerprint import _source_digest


def test_every_file_of_a_plugin_that_is_a_package_counts(tmp_path: Path) -> None:
    package = tmp_path / "alignkit_two"
    package.mkdir()
    (package / "__init__.py").write_text("from alignkit_two import rest\n", encoding="utf-8")
    (package / "rest.py").write_text("x = 1\n", encoding="utf-8")
    before = _source_digest(package / "__init__.py")
    (package / "rest.py").write_text("x = 2\n", encoding="utf-8")
    assert _source_digest(package / "__init__.py") != before


def test_a_neighbor_of_a_plugin_that_is_a_file_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("x = 1\n", encoding="utf-8")
    before = _source_digest(tmp_path / "one.py")
    (tmp_path / "other.py").write_text("x = 2\n", encoding="utf-8")
    assert _source_digest(tmp_path / "one.py") == before
    assert _source_digest(None) is None

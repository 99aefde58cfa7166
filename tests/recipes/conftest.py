"""A run to verify, made once; tests that damage it take a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from verified import train


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory, _cache: None) -> Path:
    """The run, with a key for the server, which only asking needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASKED_KEY", "a key")
        return train(tmp_path_factory.mktemp("verified"))


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy of the run and of its data."""
    folder = tmp_path / "copy"
    shutil.copytree(original.parent, folder, symlinks=True)
    resolved = folder / "run" / "recipe.resolved.yaml"
    text = resolved.read_text(encoding="utf-8").replace(str(original.parent), str(folder))
    assert yaml.safe_load(text)["stages"]["sft"]["data"] == str(folder / "demos.jsonl")
    resolved.write_text(text, encoding="utf-8")
    return folder / "run"

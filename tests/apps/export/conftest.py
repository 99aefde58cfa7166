"""Runs to export from, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from exported import train


@pytest.fixture(scope="session")
def lora_run(tmp_path_factory: pytest.TempPathFactory, _cache: None) -> Path:
    """A run with adapters."""
    return train(tmp_path_factory.mktemp("lora"), {"lora": {"r": 4, "lora_alpha": 8}})


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory, _cache: None) -> Path:
    """A run that trains all weights."""
    return train(tmp_path_factory.mktemp("whole"), {"lora": "none"})

"""`alignkit.run` in a script, a notebook or a thread."""

from __future__ import annotations

import builtins
import threading
from pathlib import Path
from typing import Any

import pytest

import alignkit
from tests.rows import Said, write_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, "sft: {algorithm: sft, data: demos.jsonl, epochs: 3}")


def test_a_run_in_a_thread_returns_what_it_made(recipe: Path, tmp_path: Path) -> None:
    found: list[Any] = []
    overrides = {"stages.sft.epochs": 2, "stages.sft.learning_rate": 0.001}
    worker = threading.Thread(
        target=lambda: found.append(alignkit.run(recipe, overrides, tmp_path / "out"))
    )
    worker.start()
    worker.join()
    (result,) = found
    assert list(result) == ["sft"] and result["sft"].folder == tmp_path / "out" / "sft"
    assert len(result["sft"].metrics) == result["sft"].summary["steps"] == 2
    assert (result["sft"].folder / "adapter" / "adapter_model.safetensors").is_file()


def test_a_notebook_can_catch_what_a_run_prints(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    class ZMQInteractiveShell:
        """What rich takes for Jupyter, where it shows lines as pages and prints nothing."""

    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as Jupyter does, which cannot move its cursor
    alignkit.run(recipe, out=tmp_path / "out")
    printed = said()
    assert "sft: stage 1 of 1, sft" in printed.splitlines() and "\x1b" not in printed


def test_mistakes_are_errors_of_alignkit(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(alignkit.RecipeError, match="unknown key 'epochz'"):
        alignkit.run(recipe, {"stages.sft.epochz": 1}, tmp_path / "out")
    with pytest.raises(alignkit.RecipeError, match="no such recipe"):
        alignkit.run("no-such-recipe")

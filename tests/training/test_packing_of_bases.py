"""A checkpoint remembers that memory ran out on another base model: another packing would change the last bits."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_bases import PPO, helpful, make_model, sft, write

from alignkit.cli import main
from alignkit.data.group import read_groups
from alignkit.plugins import load_plugins
from tests.killed import forked

# Memory runs out twelve times while the first iteration is scored, and never again.
SHORT = """
import os, signal
from alignkit import hookimpl

@hookimpl
def rollouts_scored(run, stage, iteration, groups):
    memory = run.models.of("small").model.memory
    if iteration == 1:
        for _ in range(12):
            memory.halve()
    print("iteration", iteration, "halvings", memory.halvings)
    if iteration == 2 and os.environ.get("KILL"):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def without_short() -> Iterator[None]:
    """The plugin is gone when the next test in this process makes a run of its own."""
    yield
    load_plugins()


@pytest.mark.usefixtures("one_thread", "without_short")
def test_a_reward_models_base_is_packed_as_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small: dict[str, Any] = {"base": str(make_model(tmp_path / "small")), "lora": {"r": 2, "lora_alpha": 4}}
    align = PPO | {"iterations": 3, "rollout": {"samples_per_prompt": 4, "max_new_tokens": 16}}
    path = write(tmp_path, {"sft": sft(), "helpful": helpful(), "align": align}, small)
    (tmp_path / "short.py").write_text(SHORT, encoding="utf-8")
    command = ["run", str(path), "--plugin", str(tmp_path / "short.py"), "--out"]
    assert forked(*command, tmp_path / "killed", KILL="yes") == -signal.SIGKILL
    capsys.readouterr()
    halvings = {}
    for name in ("killed", "whole"):
        assert main([*command, str(tmp_path / name)]) == 0
        said = capsys.readouterr().out.splitlines()
        halvings[name] = {line for line in said if line.startswith("iteration 3")}
    assert halvings["killed"] == halvings["whole"] == {"iteration 3 halvings 12"}
    for number in range(1, 4):
        file = f"align/rollouts/{number:04d}.jsonl"
        assert read_groups(tmp_path / "killed" / file)[0].responses[0].scores["helpful"] is not None
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    weights = "align/adapter/adapter_model.safetensors"
    assert (tmp_path / "killed" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()

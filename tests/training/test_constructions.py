"""How often a run makes an algorithm: once a stage. What its checks leave in the state does not reach the stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.cli import main

PLUGIN = """
import os
from alignkit import *

def called(text):
    with open(os.environ["CALLS"], "a") as file:
        print(text, file=file)

class Counted(Algorithm):
    def __init__(self, options):
        super().__init__(options)
        self.prompts = []
        called("made")
    def check(self, folder):
        called("check")
        self.state["seen"] = -1
    def select(self, groups, context):
        called(f"select {self.state.get('seen', 0)}")
        assert not self.prompts, "what a check has left"
        self.prompts += [group.prompt for group in groups]
        self.state["seen"] = self.state.get("seen", 0) + len(groups)
        return groups
    def loss(self, batch, out):
        return Loss(nll=per_token(-out.logprobs))

class Online(Counted):
    source = Source.ROLLOUTS

class Scores(Counted):
    trains = Trains.REWARD
    def loss(self, batch, out):
        return Loss(level=per_response(out.scores ** 2))

@hookimpl
def register(add):
    add("algorithm", "offline", Counted)
    add("algorithm", "online", Online)
    add("algorithm", "scores", Scores)
"""
ROLLED_OUT = {
    "prompts": "rows.jsonl",
    "reward": {"length": {"unit": "characters"}},
    "rollout": {"samples_per_prompt": 1, "max_new_tokens": 4},
    "iterations": 1,
    "prompts_per_iteration": 1,
}
STAGES: dict[str, dict[str, Any]] = {
    "offline": {"data": "rows.jsonl"},
    "scores": {"data": "rows.jsonl"},
    "online": ROLLED_OUT,
}
DATASET = ["made", "check", "select 0", "select 0"]  # before the first stage, and in the stage


@pytest.mark.parametrize(
    ("algorithm", "calls"),
    [("offline", DATASET), ("scores", DATASET), ("online", ["made", "check", "select 0"])],
)
def test_a_stage_has_one_algorithm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str, calls: list[str]
) -> None:
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    (tmp_path / "p.py").write_text(PLUGIN, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "how are you", "completion": "well"}\n', encoding="utf-8")
    recipe = {"model": {"base": "tiny"}, "stages": {"only": {"algorithm": algorithm, **STAGES[algorithm]}}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    run = ["run", str(tmp_path / "recipe.json"), "--plugin", str(tmp_path / "p.py"), "--out", str(tmp_path / "out")]
    assert main(run) == 0
    assert (tmp_path / "calls").read_text(encoding="utf-8").splitlines() == calls

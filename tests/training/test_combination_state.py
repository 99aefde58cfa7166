"""A combination that remembers ends with the same rewards after a stop and a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.cli import main

PLUGIN = """
import os
from alignkit import *

def called(method):
    with open(os.environ["CALLS"], "a") as file:
        print(method, file=file)

class Growing(RewardCombination):
    class Options(Options):
        part: RewardRef
    def parts(self):
        return {"part": self.options.part}
    def combine(self, groups, components):
        called("combine")
        factor = self.state["factor"] = self.state.get("factor", 0.0) + 1.0
        return CombinedReward(components["part"] * factor, components["part"] * factor, {"factor": factor})
    def total(self, groups, components):
        called("total")
        return components["part"] * (self.state.get("factor", 0.0) + 1.0)

class Imitation(Algorithm):
    source, needs = Source.ROLLOUTS, Needs(reward=False)
    def loss(self, batch, out):
        return Loss(nll=per_token(-out.logprobs))

@hookimpl
def register(add):
    add("reward", "growing", Growing)
    add("algorithm", "imitation", Imitation)

@hookimpl
def metrics_logged(run, stage, step, metrics):
    if os.environ.get("STOP_AFTER") == str(step):
        run.request_stop("a test")
"""
ALIGN = {
    "prompts": "rows.jsonl",
    "reward": {"growing": {"part": {"length": {"unit": "characters"}}}},
    "rollout": {"samples_per_prompt": 2, "max_new_tokens": 4},
    "iterations": 4,
    "prompts_per_iteration": 2,
}


WHITENED = {
    "llama2": {part: {"length": {"unit": "words"}} for part in ("helpful", "safety")}
    | {"threshold": 0}
}


@pytest.fixture(autouse=True)
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    (tmp_path / "p.py").write_text(PLUGIN, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "how are you"}\n{"prompt": "and you"}\n', encoding="utf-8"
    )
    write_recipe(tmp_path, ALIGN["reward"])


def write_recipe(folder: Path, reward: Any, algorithm: str = "rloo") -> None:
    align = {**ALIGN, "algorithm": algorithm, "reward": reward}
    recipe = {"model": {"base": "tiny"}, "stages": {"align": align}}
    (folder / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")


def run(folder: Path, out: str) -> int:
    return main(
        [
            "run",
            str(folder / "recipe.json"),
            "--plugin",
            str(folder / "p.py"),
            "--out",
            str(folder / out),
        ]
    )


def rewards(folder: Path, out: str) -> list[Any]:
    lines = (folder / out / "align" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [[row["reward"], row["reward/factor"]] for row in map(json.loads, lines)]


@pytest.mark.silent_bug(
    "resume: state",
    "The trainer's state is saved but not restored.",
    "A stopped run continues with the rewards of an uninterrupted one.",
    "allenai/open-instruct#1523",
)
def test_the_state_of_a_combination_is_in_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path, "whole") == 0
    assert [factor for _, factor in rewards(tmp_path, "whole")] == [1.0, 2.0, 3.0, 4.0]
    monkeypatch.setenv("STOP_AFTER", "2")
    assert run(tmp_path, "stopped") == 75
    monkeypatch.delenv("STOP_AFTER")
    assert run(tmp_path, "stopped") == 0
    assert rewards(tmp_path, "stopped") == rewards(tmp_path, "whole")


@pytest.mark.parametrize("whitened", [False, True])
def test_a_combination_is_called_once_an_iteration(tmp_path: Path, whitened: bool) -> None:
    if whitened:
        write_recipe(tmp_path, {"growing": {"part": WHITENED}})
    assert run(tmp_path, "whole") == 0
    called = (tmp_path / "calls").read_text(encoding="utf-8").split()
    assert called == [*["total"] * whitened, "combine"] * 4


def test_a_combination_begins_with_the_state_that_it_is_made_with(tmp_path: Path) -> None:
    made = "    def __init__(self, options):\n        super().__init__(options)\n"
    made += "        self.state = {'factor': 10.0}\n    def parts"
    (tmp_path / "p.py").write_text(PLUGIN.replace("    def parts", made), encoding="utf-8")
    assert run(tmp_path, "whole") == 0
    assert [factor for _, factor in rewards(tmp_path, "whole")] == [11.0, 12.0, 13.0, 14.0]


def test_a_combination_remembers_nothing_of_what_is_only_reported(tmp_path: Path) -> None:
    write_recipe(tmp_path, ALIGN["reward"], "imitation")
    assert run(tmp_path, "whole") == 0
    assert [factor for _, factor in rewards(tmp_path, "whole")] == [1.0] * 4
    stage = (tmp_path / "whole" / "align" / "stage.json").read_text(encoding="utf-8")
    assert "combinations" not in json.loads(stage)["summary"]

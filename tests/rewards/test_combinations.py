"""Combinations of rewards: conditions, limits, running statistics, GDPO and a constraint, against
plain numpy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignkit import Group, Response, RewardCombination
from alignkit.cli import main
from alignkit.plugins import plugins

NAN = math.nan


def made(cls: type[RewardCombination], **options: Any) -> RewardCombination:
    return cls(cls.Options(**options))


def groups(*sizes: int) -> list[Group]:
    return [
        Group((), tuple(Response() for _ in range(size)), id=str(n)) for n, size in enumerate(sizes)
    ]


def combined(thing: RewardCombination, given: Sequence[Group], **scores: Sequence[float]) -> Any:
    return thing.combine(
        given, {name: torch.tensor(x, dtype=torch.float64) for name, x in scores.items()}
    )


def numbers(values: Any) -> Any:
    return pytest.approx(list(values), nan_ok=True, rel=1e-9, abs=1e-12)


@pytest.mark.usefixtures("combinations")
@pytest.mark.silent_bug(
    "rewards: does not apply",
    "GDPO normalizes each reward over scores that include NaN.",
    "Each part is normalized over the scores that it has.",
    "modelscope/ms-swift#8123",
)
def test_gdpo_leaves_out_scores_that_do_not_apply() -> None:
    """They have no part in their group's statistics, and the response keeps its other scores."""
    thing = made(plugins().get("reward", "gdpo").implementation, rewards={"a": "x", "b": "y"})
    found = combined(thing, groups(3, 2), a=[1, NAN, 2, NAN, NAN], b=[4, 9, 3.5, NAN, 1])
    assert (
        found.reward.isnan().tolist()
        == found.raw.isnan().tolist()
        == [False, False, False, True, False]
    )
    assert found.raw[:3].tolist() == numbers([5, 9, 5.5])
    a, b = np.array([1.0, 2.0]), np.array([4.0, 9.0, 3.5])
    (a1, a2), within = ((x - x.mean()) / (x.std(ddof=1) + 1e-4) for x in (a, b))
    total = np.array([*(within + np.array([a1, 0, a2])), 0.0])
    wanted = (total - total.mean()) / np.sqrt(total.var(ddof=1) + 1e-8)
    assert found.reward[[0, 1, 2, 4]].tolist() == numbers(wanted)


# --- in a run that is stopped and continued

STOPPER = """
import os
from alignkit import hookimpl

@hookimpl
def metrics_logged(run, stage, step, metrics):
    if os.environ.get("STOP_AFTER") == str(step):
        os.kill(os.getpid(), 9) if os.environ.get("KILL") else run.request_stop("a test")
"""
PACKAGE = str(
    Path(__file__).parents[2] / "docs/examples/alignkit-combinations/alignkit_combinations.py"
)
LENGTH: dict[str, Any] = {"length": {"unit": "characters"}}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "lagrangian": {"reward": LENGTH, "cost": {"length": {"unit": "tokens"}}, "limit": 2.0},
    "running_normalization": {"reward": LENGTH},
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_what_it_remembers_survives_a_stop(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "p.py").write_text(STOPPER, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "how are you"}\n{"prompt": "and you"}\n', encoding="utf-8"
    )
    stage = {
        "algorithm": "rloo",
        "prompts": "rows.jsonl",
        "reward": {name: COMBINATIONS[name]},
        "rollout": {"samples_per_prompt": 2, "max_new_tokens": 4},
        "iterations": 4,
        "prompts_per_iteration": 2,
    }
    report = {
        "step": "evaluate",
        "policies": ["base"],
        "rewards": [stage["reward"]],
        "prompts": "rows.jsonl",
    }
    recipe = {
        "model": {"base": "tiny"},
        "stages": {"align": stage, "report": {**report, "sampling": {"max_new_tokens": 4}}},
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")

    def run(out: str) -> int:
        return main(
            [
                "run",
                str(tmp_path / "recipe.json"),
                "--plugin",
                str(tmp_path / "p.py"),
                "--plugin",
                PACKAGE,
                "--out",
                f"{tmp_path}/{out}",
            ]
        )

    assert run("whole") == 0
    monkeypatch.setenv("STOP_AFTER", "2")
    assert run("stopped") == 75
    monkeypatch.delenv("STOP_AFTER")
    assert run("stopped") == 0
    weights = [
        (tmp_path / out / "align/adapter/adapter_model.safetensors").read_bytes()
        for out in ("whole", "stopped")
    ]
    assert weights[0] == weights[1]
    rows = [
        json.loads(line)
        for line in (tmp_path / "stopped/align/metrics.jsonl").read_text().splitlines()
    ]
    if name == "lagrangian":
        # Each iteration's lambda follows from the costs before it.
        multiplier = 1.0
        for row in rows:
            assert row["reward/multiplier"] == pytest.approx(multiplier, rel=1e-4)
            multiplier = max(0.0, multiplier + 0.1 * (row["reward/cost_mean"] - 2.0))
        told = json.loads((tmp_path / "stopped/align/stage.json").read_text())["summary"][
            "combinations"
        ]
        assert told == {"lagrangian": {"multiplier": pytest.approx(multiplier, rel=1e-4)}}
    else:
        assert len({row["reward/mean"] for row in rows}) > 1

"""Without alignkit's plugins the kernel trains SFT and GRPO, by its own plain computations.

A stranger's file registers what the recipe names. No other module of the plugins can be imported.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from alignkit_plugins.bases.tiny import source
from tests.rows import read_json, read_rows, run, with_plugin, write_recipe

KEPT = ("algorithms", "formats", "text")  # of alignkit_plugins, as if they were the stranger's
ADDED = """
from alignkit import Reward, hookimpl

class Short(Reward):
    '''The fewer letters, the better.'''
    def score(self, groups):
        return [-float(len(r.text)) for group in groups for r in group.responses]

@hookimpl
def register(add):
    add("reward", "own_short", Short)
    add("algorithm", "own_sft", "alignkit_plugins.algorithms.sft:SFT")
    add("algorithm", "own_grpo", "alignkit_plugins.algorithms.grpo:GRPO")
"""
READS = """
from alignkit import hookimpl

@hookimpl
def register(add):
    add("format", "groups", "alignkit_plugins.formats.messages:Groups")
"""
STAGES = """
sft: {algorithm: own_sft, data: demos.jsonl}
align:
  algorithm: own_grpo
  from: sft
  prompts: prompts.jsonl
  reward: own_short
  rollout: {samples_per_prompt: 3, max_new_tokens: 20, min_new_tokens: 16}
  prompts_per_iteration: 3
  iterations: 2
"""
ALONE = f"""
import importlib.metadata, sys
from pathlib import Path

class Uninstalled:
    def find_spec(self, name, path=None, target=None):
        parts = name.split(".")
        if parts[0] == "alignkit_plugins" and parts[1:] and parts[1] not in {KEPT}:
            raise ModuleNotFoundError(f"{{name}} is not installed")

sys.meta_path.insert(0, Uninstalled())
installed = importlib.metadata.entry_points
def entry_points(**of):
    return [] if of.get("group", "").startswith("alignkit") else installed(**of)
importlib.metadata.entry_points = entry_points
from alignkit.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def test_the_reference_trains_what_the_cpus_backend_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    added = with_plugin(tmp_path / "added.py", ADDED)
    model = {"base": str(source(tmp_path)), "dtype": "float32"}
    recipe = write_recipe(tmp_path, STAGES, model)
    alone, ours = tmp_path / "alone", tmp_path / "ours"
    command = [sys.executable, "-c", ALONE, "run", str(recipe), "--out", str(alone), *added]
    command += with_plugin(tmp_path / "reads.py", READS)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run(recipe, *added, out=ours)
    for stage, key in (("sft", "loss"), ("align", "reward")):
        found, wanted = (read_rows(out / stage / "metrics.jsonl") for out in (alone, ours))
        numbers = [[row[key] for row in rows if key in row] for rows in (found, wanted)]
        assert numbers[0] and numbers[0] == pytest.approx(numbers[1], rel=1e-3)
        records = [read_json(out / stage / "stage.json") for out in (alone, ours)]
        assert [record["backend"].split()[0] for record in records] == ["reference", "cpu"]

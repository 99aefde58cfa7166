"""Finished runs that tests read and copy: each is made once per machine and state of the code.

`house_run` has a stage of each kind on the tiny model; `whole_run` trains all weights. They are
read only: a test that changes a run takes `house_copy`.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.rows import TINY, run, write_recipe

ROOT = Path(__file__).parent.parent
LORA = {"r": 4, "lora_alpha": 8}
STAGES: dict[str, dict[str, Any]] = yaml.safe_load("""
sft:
  algorithm: sft
  data: demos.jsonl
  max_steps: 3
  keep_versions: true
  <<: &learn {learning_rate: 0.02, batch_size: 1}
liked: {algorithm: reward_model, from: sft, data: pairs.jsonl, max_steps: 2, <<: *learn}
dpo:
  algorithm: dpo
  from: sft
  data: {path: pairs.jsonl, validation: 0.34}
  max_steps: 2
  <<: *learn
ppo: &online
  algorithm: ppo
  from: sft
  prompts: prompts.jsonl
  reward: liked
  rollout: {max_new_tokens: 6, samples_per_prompt: 2, temperature: 0.5}
  iterations: 1
  prompts_per_iteration: 2
  <<: *learn
online: {<<: *online, algorithm: rloo}
report:
  step: evaluate
  policies: [base, sft, dpo, ppo]
  rewards: [liked]
  metrics: {letters: {reward: {length: {unit: characters}}}}
  prompts: prompts.jsonl
  sampling: {max_new_tokens: 6}
""")
# Variables that the last bits of products follow from
ROUNDING = (
    "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "ALIGNKIT_TEST_ROUNDING",
)
LONGEST = 7200  # seconds that the tests take
LICENSES = """\
| file | source | license |
|---|---|---|
| `demos.jsonl` | a friend \\| of ours | MIT |
"""


@pytest.fixture(scope="session")
def house_run(_cache: None) -> Path:
    """A run of all stages with adapters of rank 4, its report, and a table of licenses."""
    return made("house", STAGES, {"lora": LORA})


@pytest.fixture(scope="session")
def whole_run(_cache: None) -> Path:
    """SFT, a reward model and an evaluation that train all weights."""
    report = {**STAGES["report"], "policies": ["base", "sft"]}
    stages = {"sft": STAGES["sft"], "liked": STAGES["liked"], "report": report}
    return made("whole", stages, {"lora": "none"})


@pytest.fixture
def house_copy(house_run: Path, tmp_path: Path) -> Path:
    """A copy of `house_run`, its recipe and its data, which a test may damage."""
    return copy_of(house_run, tmp_path / "copy")


def copy_of(finished: Path, folder: Path) -> Path:
    """Copy a run with the files next to it to `folder`, which its recipe then names."""
    shutil.copytree(finished.parent, folder, symlinks=True)
    resolved = folder / "run" / "recipe.resolved.yaml"
    text = resolved.read_text(encoding="utf-8")
    resolved.write_text(text.replace(str(finished.parent), str(folder)), encoding="utf-8")
    changed = yaml.safe_load(resolved.read_text(encoding="utf-8"))
    assert changed["stages"]["sft"]["data"] == str(folder / "demos.jsonl")
    return folder / "run"


def made(name: str, stages: Mapping[str, Any], model: Mapping[str, Any]) -> Path:
    """The run's folder; processes that want it at the same time wait for the first one."""
    shelf = Path(tempfile.gettempdir()) / f"alignkit-tests-{os.getuid()}"
    shelf.mkdir(mode=0o700, exist_ok=True)
    folder = shelf / f"{name}-{_state()}"
    with (shelf / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "finished").exists():  # a stopped test may have left half a run
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder, stages, {**TINY, **model})
        (folder / "finished").touch()
        for old in sorted(shelf.glob(f"{name}-*/finished"), key=os.path.getmtime)[:-8]:
            if time.time() - old.stat().st_mtime > LONGEST:  # tests of other code may still read it
                shutil.rmtree(old.parent)
    return folder / "run"


def _make(folder: Path, stages: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    folder.mkdir()
    (folder / "LICENSES.md").write_text(LICENSES, encoding="utf-8")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNKIT_REPORT", "1")
        run(write_recipe(folder, stages, model))
    assert (folder / "run" / "report.html").exists()  # not of a test run that was interrupted
    torch.set_num_threads(threads)


def _state() -> str:
    """A digest of everything that decides what the run holds."""
    state = hashlib.sha256(torch.backends.cpu.get_cpu_capability().encode())
    for name in ROUNDING:
        state.update(f"{name}={os.environ.get(name)} ".encode())
    for package in ("torch", "transformers", "peft", "pydantic"):
        state.update(importlib.metadata.version(package).encode())
    code = [*(ROOT / "alignkit").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    for file in [*sorted(code), Path(__file__), ROOT / "tests" / "rows.py"]:
        state.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return state.hexdigest()[:16]

"""Whole runs on a simulated CUDA device: no devices are mixed, and results equal the CPU's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils import backend_registration

from tests.rows import read_rows, run

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot simulate a device",
)
ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "recipes" / "smoke.yaml"
FEWER = """
stages.sft.data.limit=8
stages.helpful.data.limit=8
stages.safety.data.limit=8
stages.best.prompts.limit=8
stages.best.prompts_per_iteration=4
stages.best.rollout.samples_per_prompt=2
stages.best.rollout.max_new_tokens=8
stages.align.prompts.limit=8
stages.align.prompts_per_iteration=4
stages.align.rollout.max_new_tokens=8
stages.report.prompts.limit=8
stages.report.sampling.max_new_tokens=8
"""
# What may wait for the device: who stores weights, tells numbers, or looks at 8 tokens at a time.
READS = """
alignkit/functional/advantages.py
alignkit/models/adapters.py
alignkit/models/checked_model.py
alignkit/models/generate.py
alignkit/models/packing.py
alignkit/training/collectives.py
alignkit/training/learner.py
alignkit/training/trainer.py
"""


def simulated(out: Path, dtype: str, triton: bool) -> Any:
    """Run the smoke recipe on the device, in a process of its own, because the device stays until
    it ends. Returns what was counted.
    """
    script = ROOT / "tests" / "simulated_cuda" / "run.py"
    words = [*FEWER.split(), "model.device=auto", f"model.dtype={dtype}", "--out", str(out)]
    environment = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "SIMULATED_TRITON": str(int(triton)),
    }
    done = subprocess.run(
        [sys.executable, str(script), "run", str(SMOKE), *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # The check at load would turn mixed devices into a slower way to compute.
    assert "packs of up to" in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_on_the_device_equals_one_on_the_cpu(dtype: str, tmp_path: Path) -> None:
    """In fp32 with one attention call per layer. In half precision without, where one token that is
    rounded differently changes a rollout, so nothing is compared.
    """
    exact, cuda = dtype == "float32", tmp_path / "cuda"
    counted = simulated(cuda, dtype, triton=exact)
    waits = counted["waits"]
    assert waits.keys() <= set(READS.split())
    assert waits["alignkit/models/generate.py"] <= 16  # tokens and log-probabilities
    assert waits["alignkit/training/learner.py"] <= 60  # four in a step, whatever it computes
    assert counted["converted_masks"] == 0  # each layer would store its own
    # All scores are stored only where the check at load runs the model's own attention.
    attention = counted["attention"]
    assert (attention.get("flex", 0) > 100) == exact and attention.get("math", 0) <= 10
    if exact:
        cpu = run(SMOKE, *FEWER.split(), "model.device=cpu", out=tmp_path / "cpu")
        for stage in ("sft", "helpful", "safety", "best", "align"):
            ours, theirs = (read_rows(out / stage / "metrics.jsonl") for out in (cuda, cpu))
            for key in ("loss", "grad_norm"):
                found, wanted = (
                    [row[key] for row in rows if key in row] for rows in (ours, theirs)
                )
                assert wanted and found == pytest.approx(wanted, rel=1e-3, abs=1e-5)
        assert rollouts(cuda) == rollouts(cpu)


def rollouts(run: Path) -> list[list[int]]:
    files = sorted((run / "align" / "rollouts").glob("*.jsonl"))
    groups = [group for file in files for group in read_rows(file)]
    assert len(groups) >= 8
    return [response["tokens"] for group in groups for response in group["responses"]]

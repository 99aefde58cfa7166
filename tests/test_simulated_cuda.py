"""Whole runs on a simulated CUDA device: no devices are mixed, and results equal the CPU's."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.utils import backend_registration

from alignkit.cli import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
        reason="this torch cannot simulate a device",
    ),
]
ROOT = Path(__file__).parent.parent
SIMULATED = ROOT / "tests" / "simulated_cuda"
# Of the time a step took, or of how tokens were packed into it.
MACHINE = ("seconds", "time", "tokens_per_second", "token_budget")


def recipe(folder: Path, dtype: str) -> Path:
    """The smoke recipe with DPO and fewer rows."""
    found = yaml.safe_load((ROOT / "recipes" / "smoke.yaml").read_text(encoding="utf-8"))
    found["model"]["dtype"] = dtype
    stages = found["stages"]
    stages["dpo"] = {
        "algorithm": "dpo",
        "from": "sft",
        "data": dict(stages["helpful"]["data"]),
        "max_length": 768,
    }
    for name, stage in stages.items():
        for source in (stage.get("data"), stage.get("prompts")):
            if source is not None:
                source |= {"path": str(ROOT / "recipes" / source["path"]), "limit": 8}
        if name in ("best", "align"):
            stage |= {"prompts_per_iteration": 4}
            stage["rollout"] |= {"samples_per_prompt": 2, "max_new_tokens": 8}
    stages["report"] |= {"policies": ["sft", "align"], "sampling": {"max_new_tokens": 8}}
    stages["report"]["prompts"]["limit"] = 4
    if dtype == "bfloat16":  # the parts that choose their operators by dtype
        for name in ("safety", "best", "report"):
            del stages[name]
        stages["align"] |= {"from": "sft", "reward": "helpful"}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(found, sort_keys=False), encoding="utf-8")
    return path


def simulated(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one of tests/simulated_cuda in a process of its own, because the device stays until it
    ends.
    """
    command = [sys.executable, str(SIMULATED / script), *arguments]
    variables = (
        os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)} | variables
    )
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=variables, check=False
    )


@dataclass(frozen=True)
class Run:
    """A finished run; counted: what the device counted."""

    folder: Path
    counted: dict[str, Any] = field(default_factory=dict)

    def steps(self, stage: str) -> Iterator[dict[str, float]]:
        for line in (
            (self.folder / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ):
            row = json.loads(line)
            yield {
                name: value
                for name, value in row.items()
                if name != "stage" and not name.startswith(MACHINE)
            }

    def samples(self, stage: str) -> list[list[int]]:
        files = sorted((self.folder / stage / "rollouts").glob("*.jsonl"))
        rows = [
            json.loads(line)
            for file in files
            for line in file.read_text(encoding="utf-8").splitlines()
        ]
        return [response["tokens"] for row in rows for response in row["responses"]]


@pytest.fixture(
    scope="module", params=["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Run, Run]:
    """The same recipe on the CPU and on the simulated device."""
    folder = tmp_path_factory.mktemp(request.param)
    path = recipe(folder, request.param)
    assert main(["run", str(path), "model.device=cpu", "--out", str(folder / "cpu")]) == 0
    triton = str(int(request.param == "float32"))  # with one attention call per layer, and without
    arguments = ("run", str(path), "model.device=auto", "--out", str(folder / "cuda"))
    done = simulated("run.py", *arguments, SIMULATED_TRITON=triton)
    # The check at load would turn mixed devices into a slower way to compute.
    assert done.returncode == 0 and "packed rows" in done.stdout + done.stderr, (
        done.stdout + done.stderr
    )
    return (
        request.param,
        Run(folder / "cpu"),
        Run(folder / "cuda", json.loads(done.stdout.splitlines()[-1])),
    )


def test_a_run_on_the_device_equals_one_on_the_cpu(runs: tuple[str, Run, Run]) -> None:
    dtype, cpu, cuda = runs
    assert cuda.counted["launches"] > 5_000
    assert cuda.counted["converted_masks"] == 0  # each layer would store its own
    # No plans of cuDNN, and all scores are stored only where the check at load runs the model's own
    # attention.
    assert cuda.counted["attention"].keys() <= {"flash", "efficient", "math", "flex"}
    assert (cuda.counted["attention"].get("flex", 0) > 100) == (dtype == "float32")
    assert cuda.counted["attention"].get("math", 0) <= 10
    for stage in ("sft", "helpful", "dpo", "align", *(["best"] if dtype == "float32" else [])):
        ours, theirs = list(cuda.steps(stage)), list(cpu.steps(stage))
        assert len(ours) == len(theirs) > 0
        for one, other in zip(ours, theirs, strict=True):
            # Policy and reference are equal: rounding decides who is right
            if stage == "dpo" and one["step"] == 1:
                del one["accuracy"], other["accuracy"]
            if dtype == "float32":
                assert one == pytest.approx(other, rel=1e-3, abs=1e-5), stage
                continue
            for name in {"loss", "grad_norm"} & other.keys():
                # Half precision rounds differently on each kind of processor, and one other token
                # changes a rollout.
                same = (
                    pytest.approx(other[name], rel=0.2, abs=0.02) if stage != "align" else one[name]
                )
                assert math.isfinite(one[name]) and one[name] == same, stage


def test_samples_on_the_device_equal_those_on_the_cpu(runs: tuple[str, Run, Run]) -> None:
    dtype, cpu, cuda = runs
    pairs = list(zip(cuda.samples("align"), cpu.samples("align"), strict=True))
    assert len(pairs) >= 8
    if dtype == "float32":
        assert [one for one, _ in pairs] == [other for _, other in pairs]
        return
    # Two orders of summation round differently, and a draw near a boundary may fall on its other
    # side. What follows it is another text, so only draws after equal tokens count.
    equal = [
        sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(*pair, strict=False)))
        for pair in pairs
    ]
    drawn = sum(count + (one != other) for count, (one, other) in zip(equal, pairs, strict=True))
    assert sum(equal) >= 0.6 * drawn, (sum(equal), drawn)


@pytest.fixture(scope="module")
def counts() -> list[dict[str, Any]]:
    done = simulated("counts.py")
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("model", ["Llama", "Gemma2"])
def test_operators_of_a_layer_do_not_grow_with_the_groups(
    model: str, counts: list[dict[str, Any]]
) -> None:
    """Gemma 2 has windows and soft caps."""
    by_triton = {row["triton"]: row for row in counts if row.get("model") == model}
    assert by_triton[True]["32_groups"] == by_triton[True]["2_groups"] > 100
    assert by_triton[False]["32_groups"] > 2 * by_triton[True]["32_groups"]


def test_the_host_waits_once_for_eight_tokens(counts: list[dict[str, Any]]) -> None:
    """Merged weights take fewer operators than adapters, and a step needs nothing else from the
    host.
    """
    (row,) = (row for row in counts if row["what"].startswith("sampling"))
    assert 0 < row["waits"] <= 1 / 8 and row["copies"] < 1
    assert 50 < row["operators"] < 150  # 226 with adapters and a look at each token


def test_the_simulation_refuses_what_cuda_refuses() -> None:
    done = simulated("refusals.py")
    assert done.returncode == 0, done.stdout + done.stderr

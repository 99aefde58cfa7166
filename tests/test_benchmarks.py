"""The benchmarks run: both sides work on the tiny model and their losses agree. Their results are
not tested.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from alignkit.contract.settings import ModelSpec
from alignkit.models.loading import device_of, dtype_of
from alignkit.models.shared_model import SharedModel
from benchmarks.catalogue import BENCHMARKS, Benchmark
from benchmarks.floor import Shape, Work
from benchmarks.measure import ENVIRONMENTS, relative_difference, row
from tests.rows import read_json

pytestmark = pytest.mark.slow  # nobody who changes the product needs them
ROOT = Path(__file__).parent.parent
# Little arithmetic, or two kinds of it.
WITHOUT_FLOOR = {"ppo_memory", "roles", "roles_nf4", "growth_k", "rows", "encoding"}


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_each_runs_on_the_tiny_model(name: str, tmp_path: Path) -> None:
    benchmark = BENCHMARKS[name]
    if benchmark.environment == "vllm":
        pytest.skip("vLLM does not serve a model as small as tiny")
    if not ENVIRONMENTS[benchmark.environment].is_file():
        pytest.skip("`make bench` makes the peer's environment")
    native = dtype_of(ModelSpec(base="tiny"), device_of("auto")) == torch.bfloat16
    if benchmark.precision == "bfloat16" and not native:
        pytest.skip("this machine has no instructions that multiply bf16")
    words = ["--short", "--rounds", "1", "--only", name, "--json", str(tmp_path / "rows.json")]
    command = [sys.executable, "-m", "benchmarks", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (found,) = read_json(tmp_path / "rows.json")
    assert re.search(rf"^{name} .* {re.escape(found['unit'])} ", done.stdout, flags=re.MULTILINE)
    assert found["losses_agree"], (found["ours_losses"], found["peer_losses"])
    assert (found["loss_difference"] is not None) == benchmark.same_loss
    assert not benchmark.same_loss or found["loss_difference"] < 1e-2
    assert found["rounds"] == len(found["ratios"]) == 1
    assert found["short"] and found["model"] == "tiny" and found["machine"]["cpu"]
    measured = ["ours", "peer", "ratio", "ours_memory", "peer_memory"]
    if name in WITHOUT_FLOOR:
        assert found["floor_ratio"] is None
    else:
        measured.append("floor_ratio")
    assert all(0 < found[key] < math.inf for key in measured)
    assert found["ratio"] == pytest.approx(found["ours"] / found["peer"])


# --- losses


# Sizes below 0.01 count as 0.01; in bf16 it is the difference of the loss, absolute below 1.
LOSSES = yaml.safe_load("""
- [{loss: 2.0}, {loss: 2.002}, float32, 0.000999000999]
- [{loss: 0.0001}, {loss: 0.0002}, float32, 0.01]
- [{loss: 1.0, kl: 3.0}, {loss: 1.0, kl: 4.0}, float32, 0.25]
- [{loss: 0.5, kl: 3.0}, {loss: 0.51, kl: 4.0}, bfloat16, 0.01]
- [{loss: 1.0}, {loss: .nan}, float32, .inf]
- [{loss: 1.0, kl: 0.0}, {loss: 1.0}, float32, .inf]
- [{}, {}, float32, .inf]
""")


@pytest.mark.parametrize(("ours", "peer", "precision", "expected"), LOSSES)
def test_relative_differences_of_losses(
    ours: dict, peer: dict, precision: str, expected: float
) -> None:
    assert relative_difference(ours, peer, precision) == pytest.approx(expected)


def answer(seconds: float, memory: int, **losses: float) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "units": 12,
        "memory": memory,
        "resting": 10,
        "losses": losses,
        "floor": [[6.0, 1.0]],
    }


@pytest.mark.parametrize("extra", [False, True])
def test_a_row_has_medians(extra: bool) -> None:
    benchmark = Benchmark("name", "what", "unit", "a:b", "c:d", "them", extra_memory=extra)
    checks = [answer(9, 0, loss=1.0), answer(9, 0, loss=1.01)]
    rounds = [(answer(t, 30), answer(u, 50)) for t, u in ((1, 4), (2, 3), (100, 6))]
    found = row(benchmark, checks, rounds, {"flop": {"float32": 3.0}, "bandwidth": 1.0})
    # 12 units in 2 and in 4 seconds, and the median of the ratios
    assert (found["ours"], found["peer"], found["ratio"]) == (6.0, 3.0, 1.5)
    assert found["ratios"] == [4.0, 1.5, 0.06]
    assert found["memory_ratio"] == (20 / 40 if extra else 30 / 50)
    assert found["floor_ratio"] == 2 / 2  # 6 FLOP at 3 a second
    assert found["rounds"] == 3
    assert not found["losses_agree"] and found["loss_difference"] == pytest.approx(0.01 / 1.01)


# --- the floor


PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_, torch.ops.aten.bmm)


def _added(
    result: torch.Size, a: torch.Size, b: torch.Size, out_shape: Any = None, **_: Any
) -> int:
    return 2 * a[0] * a[1] * b[1]


@pytest.mark.parametrize("lora", [False, True])
def test_the_floor_counts_the_products_of_torch(lora: bool, tmp_path: Path) -> None:
    """Forward and backward on the tiny model, without attention: torch also counts its masked
    pairs.
    """
    from alignkit.kernels.attention import TreeLayout
    from alignkit.kernels.layout import GroupSpan
    from alignkit.models.shared_model import UNMODIFIED
    from benchmarks.models import folder_of

    source = folder_of("tiny")
    policy = SharedModel(ModelSpec(base=source, dtype="float32", device="cpu"), source)
    if lora:
        policy.add_role("policy")
        policy.make_trainable("policy")
    prompt, answers = 5, (4, 3)
    length = prompt + sum(answers)
    # By default torch does not count products that are added in place.
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _added}) as counter:
        hidden = policy.hidden(
            "policy" if lora else UNMODIFIED,
            TreeLayout([GroupSpan(0, prompt, answers)]),
            torch.arange(length),
        )
        if lora:
            hidden.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    done = sum(count for name, count in counts.items() if any(name is op for op in PRODUCTS))
    work = Work(Shape.of(source), "float32", lora=lora)
    (work.learn if lora else work.read)([(prompt, answers)], head=False)
    # Pairs of a query and a key: of the prompt, and of each answer
    seen = 15 + (4 * 5 + 10) + (3 * 5 + 6)
    attention = (3 if lora else 1) * 4 * 2 * 64 * seen  # two layers of 64 dimensions
    assert work.pieces[0][0] - attention == done

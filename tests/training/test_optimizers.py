"""Optimizers by name and their checkpoints; AdamW in 8 bits and in paged memory, its size, and how
near it is.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alignkit import RunFailed
from alignkit.models.shared_model import SharedModel
from alignkit.optimizers import make_optimizer
from alignkit.plugins import plugins
from alignkit.recipe.references import options_of
from alignkit.registry import Component, Registration
from alignkit.settings import LoraSpec, ModelSpec, Settings
from alignkit.training.learner import Learner
from alignkit.training.trainer import load_checkpoint, save_checkpoint
from tests.test_train import Whole, encoded

pytestmark = pytest.mark.usefixtures("one_thread")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes here"
)


class Slow(torch.optim.Optimizer):
    """A plugin's: half a step towards the mean gradient, which it keeps with a count of its own and
    in bfloat16.
    """

    def __init__(self, params: Any, lr: float = 1e-3, part: float = 0.5):
        super().__init__(params, {"lr": lr, "part": part, "steps": 0, "mean": None})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["steps"] += 1
            for parameter in group["params"]:
                state = self.state[parameter]
                kept = state.setdefault(
                    "kept", {"mean": torch.zeros_like(parameter, dtype=torch.float32), "last": []}
                )
                kept["mean"].lerp_(parameter.grad, 1 / group["steps"])
                kept["last"] = [float(parameter.grad.mean()), *kept["last"]][:2]
                parameter.add_(
                    kept["mean"] * (1 + kept["last"][-1]), alpha=-group["lr"] * group["part"]
                )


def named(name: str, **options: Any) -> Any:
    """An optimizer as a recipe's stage has it."""
    registration = Registration(name, Slow) if name == "slow" else plugins().get("optimizer", name)
    return Component("optimizer", name, registration, options_of(registration)(**options))


def learner(
    tmp_path: Path, lora: LoraSpec | None, optimizer: Any, dtype: Any = "float32"
) -> Learner:
    import alignkit_plugins.models.tiny

    spec = ModelSpec(base="tiny", dtype=dtype, device="cpu", lora=lora)
    model = SharedModel(spec, str(alignkit_plugins.models.tiny.source(tmp_path)))
    model.add_role("new")
    settings = Settings(optimizer=optimizer, learning_rate=1e-3)
    return Learner(model, Whole(Whole.Options()), settings, "new")


def continued(
    tmp_path: Path, lora: LoraSpec | None, optimizer: Any, dtype: Any = "float32"
) -> tuple[Learner, dict[str, Any]]:
    """A learner that went on from the checkpoint of another, with the same bits; and what it kept
    of the optimizer.
    """
    one = learner(tmp_path, lora, optimizer, dtype)
    examples = encoded(one.model, 6)
    for _ in range(2):
        one.step(examples, 1.0)
    save_checkpoint(tmp_path / "checkpoints", 2, {"learner": one.state()})
    other = learner(tmp_path, lora, optimizer, dtype)
    saved = load_checkpoint(tmp_path / "checkpoints", pytest.fail)["learner"]
    other.restore(saved)
    begun = {name: parameter.detach().clone() for name, parameter in one.parameters.items()}
    for each in (one, other):
        for _ in range(3):
            each.step(examples, 0.5)
    for name, parameter in one.parameters.items():
        assert torch.equal(parameter, other.parameters[name]), name
    assert not all(
        torch.equal(parameter, begun[name]) for name, parameter in one.parameters.items()
    )
    return other, saved["optimizer"]["state"]


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("lora", "optimizer"),
    [
        (None, "adamw_8bit"),
        (LoraSpec(r=4), "adamw_8bit"),
        (None, "paged_adamw_8bit"),
        (None, "paged_adamw_32bit"),
    ],
    ids=["all weights", "an adapter", "paged", "paged, fp32"],
)
def test_a_checkpoint_continues_with_the_same_bits(
    lora: LoraSpec | None, optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large tensors have moments in 8 bits, small ones, as all of this adapter's, in fp32."""
    from bitsandbytes.optim.optimizer import Optimizer8bit

    buffers: set[int] = set()  # which bitsandbytes would page on a GPU
    get_state_buffer = Optimizer8bit.get_state_buffer

    def counted(self: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        buffer: torch.Tensor = get_state_buffer(self, *arguments, **options)
        buffers.add(buffer.data_ptr())
        return buffer

    monkeypatch.setattr(Optimizer8bit, "get_state_buffer", counted)
    other, kept = continued(tmp_path, lora, optimizer)
    moments = {state[key].dtype for state in kept.values() for key in MOMENTS}
    in_8_bits = lora is None and optimizer.endswith("8bit")
    assert moments == ({torch.uint8, torch.float32} if in_8_bits else {torch.float32})
    states = other.optimizer.state.values()
    paged = {state[key].data_ptr() in buffers for state in states for key in MOMENTS}
    assert paged == {optimizer.startswith("paged")}


MOMENTS = ("state1", "state2")
FACTORED = {"scale_parameter": False, "relative_step": False}


@pytest.mark.parametrize(
    ("name", "options", "dtype"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": True}, "float32"),
        ("adamw", {"amsgrad": True}, "float32"),
        ("adafactor", {}, "float32"),
        ("slow", {"part": 0.25}, "float32"),
        pytest.param("lion_8bit", {}, "float32", marks=needs_bitsandbytes),
        # What is kept in fp32 is not rounded to the weights.
        ("nadam", {}, "bfloat16"),
        ("transformers_adafactor", FACTORED, "bfloat16"),
    ],
)
def test_any_optimizer_continues_with_the_same_bits(
    name: str, options: dict[str, Any], dtype: Any, tmp_path: Path
) -> None:
    whole = name == "lion_8bit" or dtype == "bfloat16"
    continued(tmp_path, None if whole else LoraSpec(r=4), named(name, **options), dtype)


def forked(params: Any, lr: float) -> torch.optim.Optimizer:
    return Slow([torch.zeros(2, requires_grad=True)], lr)


@pytest.mark.parametrize(
    ("implementation", "why"),
    [
        (forked, "with all parameters in its groups"),
        (lambda params, lr: None, "it must be a torch.optim.Optimizer"),
    ],
)
def test_what_is_no_optimizer_is_named(implementation: Any, why: str) -> None:
    registration = Registration("theirs", implementation)
    theirs = Component("optimizer", "theirs", registration, options_of(registration)())
    settings = Settings(optimizer=theirs)
    with pytest.raises(RunFailed, match=f"^optimizer 'theirs' cannot be used: .*{why}"):
        make_optimizer(settings, {}, [nn.Parameter(torch.zeros(16, 16))], 1e-3)


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_moments_take_a_quarter_and_steps_are_near(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    start, target = (torch.randn(128, 256, generator=generator) for _ in range(2))
    ends, sizes = [], []
    for name in ("adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"):
        weight = nn.Parameter(start.clone())
        optimizer = make_optimizer(Settings(optimizer=name), {}, [weight], 1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            (weight - target).square().sum().backward()
            optimizer.step()
        kept = optimizer.state[weight]
        sizes.append(
            sum(x.nbytes for x in kept.values() if isinstance(x, torch.Tensor) and x.numel() > 256)
        )
        ends.append(weight.detach())
    assert sizes[1] < 0.3 * sizes[0] and sizes[1:] == [sizes[1], sizes[1], sizes[0]]
    moved = (ends[0] - start).abs().mean()
    assert all((end - ends[0]).abs().mean() < 0.05 * moved for end in ends[1:])
    assert torch.equal(ends[1], ends[2])  # on a CPU nothing moves


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(RunFailed, match="'optimizer: adamw_8bit' needs bitsandbytes"):
        make_optimizer(Settings(optimizer="adamw_8bit"), {}, [nn.Parameter(torch.ones(2))], 1e-3)


@pytest.mark.silent_bug(
    "losses: weight decay",
    "Weight decay pulls the scales of norms to 0.",
    "Only matrices decay.",
    "oumi-ai/oumi#341",
    "Lightning-AI/lit-llama#254",
)
def test_weight_decay_shrinks_matrices_and_no_norm() -> None:
    """A norm's factor begins at 1: decay would switch its layer off."""
    network = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    rate = 0.1
    optimizer = make_optimizer(
        Settings(optimizer=named("adamw", weight_decay=0.5)), {}, network.parameters(), rate
    )
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(
            parameter, before[name] * (1 - rate * 0.5 if parameter.ndim == 2 else 1)
        )

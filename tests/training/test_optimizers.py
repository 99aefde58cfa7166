"""Optimizers by name and their checkpoints; moments in 8 bits and in paged memory."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alignkit import RunFailed
from alignkit.contract.settings import LoraSpec, Settings
from alignkit.host.plugins import plugins
from alignkit.host.registry import Component, Registration
from alignkit.recipe.references import options_of
from alignkit.training.learner import Learner
from alignkit.training.optimizers import make_optimizer, restore_state, saved_state
from alignkit.training.trainer import load_checkpoint, save_checkpoint
from tests.models.tiny import shared
from tests.test_train import Whole, encoded

pytestmark = pytest.mark.usefixtures("one_thread")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes here"
)


class Slow(torch.optim.SGD):
    """A plugin's: steps by the mean gradient, in a list, with a count of its own in the group."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1
            for parameter in group["params"]:
                (mean,) = self.state[parameter].setdefault("kept", [0 * parameter.data])
                mean.lerp_(parameter.grad, 1 / group["steps"])
                parameter.data.sub_(mean, alpha=group["lr"])


def named(name: str, **options: Any) -> Any:
    """An optimizer as a recipe's stage has it."""
    registration = Registration(name, Slow) if name == "slow" else plugins().get("optimizer", name)
    return Component("optimizer", name, registration, options_of(registration)(**options))


def continued(
    tmp_path: Path, optimizer: Any, lora: LoraSpec | None = None, dtype: Any = "float32"
) -> dict[str, Any]:
    """Go on from the checkpoint of another learner, with the same bits; returns the state of each
    parameter.
    """
    settings = Settings(optimizer=optimizer, learning_rate=1e-3)

    def learner() -> Learner:
        model = shared(dtype=dtype, lora=lora)
        model.add_role("new")
        return Learner(model, Whole(Whole.Options()), settings, "new")

    one, other = learner(), learner()
    examples = encoded(one.model, 6)
    for _ in range(2):
        one.step(examples, 1.0)
    one.skipped = 2
    save_checkpoint(tmp_path / "checkpoints", 2, {"learner": one.state()})
    other.restore(load_checkpoint(tmp_path / "checkpoints", pytest.fail)["learner"])
    assert (other.steps, other.skipped) == (2, 2)
    begun = [parameter.detach().clone() for parameter in one.parameters.values()]
    for each in (one, other):
        for _ in range(3):
            each.step(examples, 0.5)
    both = list(zip(one.parameters.values(), other.parameters.values(), strict=True))
    assert all(torch.equal(mine, theirs) for mine, theirs in both)
    assert not all(map(torch.equal, begun, one.parameters.values()))
    return {name: other.optimizer.state[p] for name, p in other.parameters.items()}


@needs_bitsandbytes
def test_paged_moments_in_8_bits_are_still_paged_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of large tensors are in 8 bits, of small ones in fp32."""
    from bitsandbytes.optim.optimizer import Optimizer8bit

    pages: set[int] = set()  # which bitsandbytes would move on a GPU
    get_state_buffer = Optimizer8bit.get_state_buffer

    def counted(self: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        buffer: torch.Tensor = get_state_buffer(self, *arguments, **options)
        pages.add(buffer.data_ptr())
        return buffer

    monkeypatch.setattr(Optimizer8bit, "get_state_buffer", counted)
    states = continued(tmp_path, "paged_adamw_8bit").values()
    moments = [state[key] for state in states for key in ("state1", "state2")]
    assert {moment.dtype for moment in moments} == {torch.uint8, torch.float32}
    assert {moment.data_ptr() for moment in moments} <= pages


LORA = LoraSpec(r=4)


@pytest.mark.parametrize(
    ("name", "options", "lora", "dtype"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": True}, LORA, "float32"),
        ("slow", {}, LORA, "float32"),
        # All of an adapter's tensors are small
        pytest.param("adamw_8bit", {}, LORA, "float32", marks=needs_bitsandbytes),
        # What is kept in fp32 is not rounded to the weights.
        (
            "transformers_adafactor",
            {"scale_parameter": False, "relative_step": False},
            None,
            "bfloat16",
        ),
    ],
)
def test_any_optimizer_continues_with_the_same_bits(
    name: str, options: dict[str, Any], lora: LoraSpec | None, dtype: Any, tmp_path: Path
) -> None:
    continued(tmp_path, named(name, **options), lora, dtype)


def of_others(params: Any, lr: float) -> torch.optim.Optimizer:
    return Slow([torch.zeros(2, requires_grad=True)], lr)


@pytest.mark.parametrize(
    ("implementation", "why"),
    [
        (of_others, "with all parameters in its groups"),
        (lambda params, lr, *others: None, "it must be a torch.optim.Optimizer"),
    ],
)
def test_what_is_no_optimizer_is_named(implementation: Any, why: str) -> None:
    registration = Registration("theirs", implementation)
    theirs = Component("optimizer", "theirs", registration, options_of(registration)())
    settings = Settings(optimizer=theirs)
    with pytest.raises(RunFailed, match=f"^optimizer 'theirs' cannot be used: .*{why}"):
        make_optimizer(settings, {}, [nn.Parameter(torch.zeros(16, 16))], 1e-3)


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
    settings = Settings(optimizer=named("adamw", weight_decay=0.5))
    optimizer = make_optimizer(settings, {}, network.parameters(), 0.1)
    before = copy.deepcopy(network)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, new in zip(before.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(new, old * (1 - 0.1 * 0.5 if new.ndim == 2 else 1))


def test_state_is_saved_whole_and_restored_in_parts() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adagrad([weight])
    saved = saved_state(optimizer, {"w": weight}, lambda part: torch.stack([part, part + 1]))
    assert saved["state"]["w"]["sum"].tolist() == [[0], [1]]
    restore_state(optimizer, {"w": weight}, saved, lambda whole, parameter: whole[len(parameter)])
    assert optimizer.state[weight]["sum"].tolist() == [1]

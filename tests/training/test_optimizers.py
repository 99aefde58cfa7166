"""AdamW in 8 bits and in paged memory: its size, its checkpoints, and how near it is to AdamW."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alignkit import RunFailed
from alignkit.models.shared_model import SharedModel
from alignkit.settings import LoraSpec, ModelSpec, Settings
from alignkit.training.checked import CheckedAlgorithm
from alignkit.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from alignkit.training.learner import Learner
from alignkit.training.optimizers import make_optimizer, restored_state
from tests.test_train import Whole, encoded

pytestmark = pytest.mark.usefixtures("one_thread")
needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes here")


def learner(tmp_path: Path, lora: LoraSpec | None, optimizer: Any) -> Learner:
    import alignkit_plugins.models.tiny

    spec = ModelSpec(base="tiny", dtype="float32", device="cpu", lora=lora)
    model = SharedModel(spec, str(alignkit_plugins.models.tiny.source(tmp_path)))
    model.add_role("new")
    settings = Settings(optimizer=optimizer, learning_rate=1e-3)
    return Learner(model, CheckedAlgorithm(Whole(Whole.Options())), settings, "new")


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("lora", "optimizer"),
    [(None, "adamw_8bit"), (LoraSpec(r=4), "adamw_8bit"), (None, "paged_adamw_8bit"), (None, "paged_adamw_32bit")],
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
    one = learner(tmp_path, lora, optimizer)
    examples = encoded(one.model, 6)
    for _ in range(2):
        one.step(examples, 1.0)
    tensors, state = one.state()
    save_checkpoint(tmp_path / "checkpoints", 2, Checkpoint(tensors, state))
    moments = {tensor.dtype for name, tensor in tensors.items() if name.startswith("optimizer/state")}
    in_8_bits = lora is None and optimizer.endswith("8bit")
    assert moments == ({torch.uint8, torch.float32} if in_8_bits else {torch.float32})
    other = learner(tmp_path, lora, optimizer)
    saved = load_checkpoint(tmp_path / "checkpoints", print)
    assert saved is not None
    other.restore(saved.tensors, saved.state)
    restored = [kept[key].data_ptr() for kept in other.optimizer.state.values() for key in ("state1", "state2")]
    assert all((pointer in buffers) == optimizer.startswith("paged") for pointer in restored)
    for each in (one, other):
        for _ in range(3):
            each.step(examples, 0.5)
    for name, parameter in one.parameters.items():
        assert torch.equal(parameter, other.parameters[name]), name


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_moments_take_a_quarter_and_steps_are_near(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    start, target = (torch.randn(128, 256, generator=generator) for _ in range(2))
    ends, sizes = [], []
    for name in ("adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"):
        weight = nn.Parameter(start.clone())
        optimizer = make_optimizer(Settings(optimizer=name), [weight], 1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            (weight - target).square().sum().backward()
            optimizer.step()
        kept = optimizer.state[weight]
        sizes.append(sum(x.nbytes for x in kept.values() if isinstance(x, torch.Tensor) and x.numel() > 256))
        ends.append(weight.detach())
    assert sizes[1] < 0.3 * sizes[0] and sizes[1:] == [sizes[1], sizes[1], sizes[0]]
    moved = (ends[0] - start).abs().mean()
    assert all((end - ends[0]).abs().mean() < 0.05 * moved for end in ends[1:])
    assert torch.equal(ends[1], ends[2])  # on a CPU nothing moves


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunFailed, match="'optimizer: adamw_8bit' needs bitsandbytes"):
        make_optimizer(Settings(optimizer="adamw_8bit"), [nn.Parameter(torch.ones(2))], 1e-3)


@pytest.mark.parametrize("lacking", ["absmax1", "state2"])
def test_a_checkpoint_without_a_part_is_refused(lacking: str) -> None:
    whole = ("step", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2")
    saved = {key: torch.ones(2) for key in whole if key != lacking}
    with pytest.raises(RunFailed, match=rf"no optimizer state for w \({lacking}\)"):
        restored_state(torch.optim.SGD([torch.ones(2)]), "w", nn.Parameter(torch.ones(2)), saved, True)


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
    optimizer = make_optimizer(Settings(weight_decay=0.5), network.parameters(), rate)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, before[name] * (1 - rate * 0.5 if parameter.ndim == 2 else 1))

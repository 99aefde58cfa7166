"""The same starting point for both sides: the base model, and adapters that differ from it.

A fresh adapter changes nothing, so a comparison of first losses would say little (DPO's is log 2 whatever the code
does). These are moved at random: by some hundredths of what a layer gives, less in deep models, whose changes add up.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.floor import Shape
from benchmarks.worker import Gate, Job

if TYPE_CHECKING:
    from alignkit.models.shared_model import SharedModel
    from alignkit.training.learner import Learner

MOVE = 0.02  # deviation of LoRA's upper factors, times the root of the number of layers
ROLE = "ours"
POLICY, REWARD = "policy", "reward"
MAX_LENGTH = 1024  # tokens


def load(job: Job) -> SharedModel:
    """The base model with LoRA r=16 on all linear layers."""
    from alignkit.models.shared_model import SharedModel
    from alignkit.settings import ModelSpec

    quantization = job.options.get("quantization", "none")
    spec = ModelSpec(base=job.source, dtype=job.dtype, quantization=quantization)  # type: ignore[arg-type]
    return SharedModel(spec, job.source)


def learner(policy: SharedModel, algorithm: str, start: Path, **options: Any) -> Learner:
    """As a training stage makes it, from a saved adapter; steps are taken with a learning-rate factor of 0.

    algorithm, options: as a recipe has them.
    """
    from alignkit.algorithm import REWARD
    from alignkit.plugins import plugins
    from alignkit.settings import Settings
    from alignkit.training.learner import Learner

    kind = plugins().registry.get("algorithm", algorithm).implementation
    policy.add_role(ROLE, start=start, head="scalar" if kind.trains is REWARD else "language")
    return Learner(policy, kind(kind.Options(**options)), Settings(), ROLE)


def bytes_of(policy: SharedModel) -> int:
    """What a policy's tensors take, each storage once: base, adapters, heads, and what quantised layers keep beside."""
    import torch

    found: dict[int, int] = {}

    def add(thing: Any) -> None:
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        for name in ("absmax", "code", "offset", "state2", "quant_state"):  # of bitsandbytes
            if (inner := getattr(thing, name, None)) is not None:
                add(inner)

    for tensor in (*policy.model.parameters(), *policy.model.buffers()):
        add(tensor)
    for role in policy.roles.values():
        add(role.head)
    return sum(found.values())


def prepare(job: Job, gate: Gate) -> None:
    """A worker's function: make the base model's folder and the adapters; gives where the base is."""
    import torch

    from alignkit.models.shared_model import SharedModel
    from alignkit.settings import ModelSpec

    gate.begin()
    source = folder_of(job.options["model"])
    policy = SharedModel(ModelSpec(base=source, dtype="float32", device="cpu"), source)
    generator = torch.Generator().manual_seed(0)
    size = MOVE / Shape.of(source).layers ** 0.5
    for name in (POLICY, REWARD):
        policy.add_role(name, head="scalar" if name == REWARD else "language")
        for key, parameter in policy.parameters_of(name).items():
            if "lora_B" in key:
                with torch.no_grad():
                    parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
        policy.save(name, job.adapter(name))
    gate.end(1, {}, evidence=source)


def folder_of(model: str) -> str:
    """Where a base model is: a folder, or what a plugin's name or a hub id becomes."""
    from alignkit.errors import RunFailed
    from alignkit.models.hub import locate
    from alignkit.plugins import plugins
    from alignkit.runs.run import cache_folder

    registry: Any = plugins().registry
    if Path(model).is_dir():
        return str(Path(model).resolve())
    if model not in registry.names("models"):
        from huggingface_hub import snapshot_download

        try:
            found = locate(model)
            return found if Path(found).is_dir() else str(snapshot_download(found))
        except RunFailed as error:  # a user's mistake: no traceback
            raise SystemExit(str(error)) from error
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    return str(registry.get("models", model).implementation(cache))

"""The starting point of both sides: the base model, and adapters that change its outputs.

With a new adapter, which changes nothing, comparing first losses would be pointless: DPO's is log 2
for any code. So the adapters get random weights that change a layer's output by a few percent, less
in deep models, where changes add up.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.floor import Shape
from benchmarks.worker import Gate, Job

if TYPE_CHECKING:
    from alignkit.models.shared_model import SharedModel
    from alignkit.training.learner import Learner

LORA_STD = 0.02  # standard deviation of lora_B, times the square root of the number of layers
ROLE = "ours"
POLICY, REWARD = "policy", "reward"
MAX_LENGTH = 1024  # tokens


def load(job: Job) -> SharedModel:
    """The base model with LoRA r=16 on all linear layers."""
    from alignkit.contract.settings import ModelSpec
    from alignkit.models.shared_model import SharedModel

    quantization = job.options.get("quantization", "none")
    spec = ModelSpec(base=job.source, dtype=job.dtype, quantization=quantization)  # type: ignore[arg-type]
    return SharedModel(spec, job.source)


def learner(policy: SharedModel, algorithm: str, start: Path, **options: Any) -> Learner:
    """A learner as a training stage creates it, from a saved adapter. algorithm, options: as in a
    recipe.

    The benchmarks take steps with a learning-rate factor of 0.
    """
    from alignkit.contract.algorithm import Trains
    from alignkit.contract.settings import Settings
    from alignkit.host.plugins import plugins
    from alignkit.training.learner import Learner

    kind = plugins().get("algorithm", algorithm).implementation
    policy.add_role(
        ROLE, start=start, head="scalar" if kind.trains is Trains.REWARD else "language"
    )
    return Learner(policy, kind(kind.Options(**options)), Settings(), ROLE)


def bytes_of(policy: SharedModel) -> int:
    """Bytes of a model's tensors, each storage once: base, adapters, heads, and the tables of
    quantized layers.
    """
    import torch

    sizes: dict[int, int] = {}

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        for name in ("absmax", "code", "offset", "state2", "quant_state"):  # of bitsandbytes
            if (inner := getattr(value, name, None)) is not None:
                add(inner)

    for tensor in (*policy.model.parameters(), *policy.model.buffers()):
        add(tensor)
    for role in policy.roles.values():
        add(role.head)
    return sum(sizes.values())


def prepare(job: Job, gate: Gate) -> None:
    """Worker function: create the base model's folder and the adapters; the evidence is the
    folder.
    """
    import torch

    from alignkit.contract.settings import ModelSpec
    from alignkit.models.shared_model import SharedModel

    gate.begin()
    source = folder_of(job.options["model"])
    policy = SharedModel(
        ModelSpec(base=source, dtype=job.options.get("dtype", "float32"), device="cpu"), source
    )
    generator = torch.Generator().manual_seed(0)
    size = LORA_STD / Shape.of(source).layers ** 0.5
    for name in (POLICY, REWARD):
        policy.add_role(name, head="scalar" if name == REWARD else "language")
        for key, parameter in policy.parameters_of(name).items():
            if "lora_B" in key:
                with torch.no_grad():
                    parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
        policy.save(name, job.adapter(name))
    gate.end(1, {}, evidence=source)


def folder_of(model: str) -> str:
    """The folder of a base model, which may be a plugin's name, a folder or a hub id."""
    from alignkit.errors import RunFailed
    from alignkit.host.plugins import plugins
    from alignkit.io.text import cache_folder
    from alignkit.models.loading import locate

    registry: Any = plugins()
    if Path(model).is_dir():
        return str(Path(model).resolve())
    if model not in registry.names("model"):
        from huggingface_hub import snapshot_download

        try:
            source = locate(model)
            return source if Path(source).is_dir() else str(snapshot_download(source))
        except RunFailed as error:  # a mistake of the user needs no traceback
            raise SystemExit(str(error)) from error
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    return str(registry.get("model", model).implementation(cache))

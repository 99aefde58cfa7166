"""Memory of a stage: weights, adapters, optimizer, activations and cache, in bytes of one device.

Nothing here is a formula for activations: with torch's fake tensors the stage's own forward and backward pass run for a
model of any size. They make the same tensors, keep them as long, and compute nothing; the kept tensors are counted.
Layers of one kind take the same, so two small depths say what a deep model takes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignkit.batch import filled
from alignkit.data.group import Group
from alignkit.kernels import mode
from alignkit.kernels.memory import GROWTH
from alignkit.kernels.sampling_weights import MAX_ROWS, MEMORY_SHARE, MIN_TOKENS
from alignkit.models.decoder import LOGIT_COPIES, most_rows, row_bytes, state_bytes, token_bytes
from alignkit.models.examples import Examples
from alignkit.models.forward import Wants, forward
from alignkit.models.loading import quantized_width
from alignkit.models.packing import micro_batches
from alignkit.models.shared_model import BASE
from alignkit.optimizers import make_optimizer
from alignkit.plugin_errors import made
from alignkit.recipe.schema import Stage
from alignkit.settings import Settings
from alignkit.tokens.encoding import Encoded
from alignkit.training.checked import CheckedAlgorithm
from alignkit.training.learner import Learner
from alignkit.training.roles import add_roles
from alignkit_apps.check.cards import Machine
from alignkit_apps.check.shape_model import PlannedRun, ShapeModel
from alignkit_apps.check.tokens import Workload, dealt, rows_of_the_busiest
from alignkit_distributed.sharded import layers_of

USABLE = 0.95  # of a card's memory: the rest is the driver's, and lost between tensors of unequal size
# What glibc keeps of freed tensors, because the kernels ask it to (`kernels.memory`), as a part of the activations:
# with one micro-batch per step, and with several of other lengths. A quantized matrix, which is made in full for every
# product, leaves more pieces. The training loop trims the process after GROWTH.
KEPT, KEPT_OF_SEVERAL = 0.4, 0.75
KEPT_IF_QUANTIZED, KEPT_OF_SEVERAL_IF_QUANTIZED = 0.6, 1.0
# Numbers of a tensor whose moments bitsandbytes keeps in 8 bits, and of a block with its own scale, in fp32.
LEAST_IN_8_BITS, OF_ONE_SCALE = 4096, 256


_ROUGH = {
    "rough": "its layers cannot be traced without numbers: activations are a rough estimate",
    "guessed": "what its optimizer keeps cannot be counted without numbers: two moments are assumed",
}


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. Activations and cache are there one after the other.

    weights: of all base models, in passes. adapters: of all roles, with their heads; with `lora: none`, their own
    weights. optimizer: moments and gradients. activations: of one micro-batch, or of a pass without gradients. cache:
    keys, values and logits of rows that are sampled together. kept: freed tensors that the allocator of a CPU holds.
    tokens: of the micro-batch. rows: that are sampled together. parts: into which the base models are cut between the
    processes; stored: what all parts take; layer: what the largest layer takes. rough: what is not counted, and why;
    empty if everything is.
    """

    weights: float = 0.0
    adapters: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    cache: float = 0.0
    kept: float = 0.0
    tokens: int = 0
    rows: int = 0
    parts: int = 1
    stored: float = 0.0
    layer: float = 0.0
    rough: str = ""

    @property
    def gathered(self) -> float:
        """Bytes of weights while rows are sampled: FSDP2 keeps a process's part next to the whole, and a buffer."""
        return self.stored + (self.stored / self.parts + self.layer if self.parts > 1 else 0.0)

    @property
    def fullest(self) -> dict[str, float]:
        """What is there at the moment that takes the most memory."""
        loading = {"weights": self.stored, "adapters": self.adapters}
        learned = {"adapters": self.adapters, "optimizer": self.optimizer, "freed tensors": self.kept}
        passing = {"weights": self.weights, **learned, "activations": self.activations}
        sampling = {"weights": self.gathered, **learned, "cache": self.cache} if self.cache else {}
        return max((passing, loading, sampling), key=lambda found: sum(found.values()))

    @property
    def peak(self) -> float:
        return sum(self.fullest.values())

    def fits(self, machine: Machine) -> bool:
        """Whether each process of a machine has room for it."""
        return self.peak <= USABLE * machine.room


def stage_memory(run: PlannedRun, stage: Stage, work: Workload) -> Memory:
    """The memory of a stage in each process that works on it."""
    base = run.bases.needed(stage)[0]
    found, machine, parts = _found(run, stage, work, base), run.machine_of(base), 1
    activations = max(found["learning"], found["measuring"])
    memory = Memory(
        weights=_in_passes(found, parts),
        adapters=found["adapters"],
        optimizer=found["optimizer"],
        activations=activations,
        kept=_kept(machine, activations, bool(found["several"]), run.recipe.base(base).quantization != "none"),
        tokens=int(found["tokens"]),
        parts=parts,
        stored=found["weights"],
        layer=found["layer"],
        rough="; ".join(text for key, text in _ROUGH.items() if found[key]),
    )
    rows, cache = _cache(run, stage, work, memory)
    return replace(memory, rows=rows, cache=cache)


def _in_passes(found: dict[str, float], parts: int) -> float:
    """Bytes of weights in a pass: all, or a part, embeddings and head, and what FSDP2 brings together next.

    It copies from a buffer, so embeddings and head are there twice when a pass begins, and up to three layers later.
    """
    whole, ends = found["weights"], found["ends"]
    return whole if parts == 1 else whole / parts + ends + max(ends, min(3 * found["layer"], whole - ends))


def _found(run: PlannedRun, stage: Stage, work: Workload, base: str) -> dict[str, float]:
    """What a stage takes with all layers of its models, from two small depths if there are many."""
    depth, period = run.depth(base), period_of(run.configuration(base))
    if depth <= 2 * period or len(run.bases.needed(stage)) > 1:  # others may have other depths
        return _at(run.at_depth(None), stage, work)
    small, large = (_at(run.at_depth(layers), stage, work) for layers in (period, 2 * period))
    found = {key: small[key] + (large[key] - small[key]) / period * (depth - period) for key in small}
    return found | {key: large[key] for key in ("tokens", "several", "rough", "guessed", "layer")}


def _kept(machine: Machine, activations: float, several: bool, quantized: bool) -> float:
    parts = (KEPT_IF_QUANTIZED, KEPT_OF_SEVERAL_IF_QUANTIZED) if quantized else (KEPT, KEPT_OF_SEVERAL)
    part = parts[several]
    return 0.0 if machine.gpu or mode() == "torch" else min(part * activations, GROWTH)


def period_of(config: Any) -> int:
    """Layers after which the kinds of a model's layers repeat."""
    kinds = list(getattr(config.get_text_config(), "layer_types", None) or ["one"])
    for period in range(1, len(kinds)):
        if all(kind == kinds[index % period] for index, kind in enumerate(kinds)):
            return period
    return 1 if len(set(kinds)) == 1 else len(kinds)


def _at(run: PlannedRun, stage: Stage, work: Workload) -> dict[str, float]:
    """The memory of a stage with models of the run's depth."""
    models = {base: run.models.of(base) for base in run.bases.needed(stage)}
    for reference in stage.roles:
        base = run.bases.base_of(reference)
        if base is not None:
            models[base].role(reference)
    found = dict.fromkeys(("optimizer", "learning", "measuring", "tokens", "several", "rough", "guessed"), 0.0)
    if stage.kind == "algorithm" and work.batches:
        found |= _training(run, stage, work)
    elif work.rows:
        model = models[run.bases.needed(stage)[0]].model
        assert isinstance(model, ShapeModel)
        row = [Encoded(Group(()), (1,) * max(1, work.longest), ())] * max(1, work.rows_sampled)
        found |= _traced(model, lambda: _measured(model, BASE, row, Wants(logprobs=False)), "measuring")
    found |= dict.fromkeys(("weights", "adapters", "ends", "layer"), 0.0)
    for service in models.values():
        assert isinstance(service.model, ShapeModel)
        layers = layer_bytes(service.model)
        found["weights"] += (whole := weight_bytes(service.model))
        found["adapters"] += bytes_of(_role_tensors(service.model))  # with heads and copies of the model
        found["ends"] += whole - sum(layers)
        found["layer"] = max([found["layer"], *layers])
    return found


def _training(run: PlannedRun, stage: Stage, work: Workload) -> dict[str, float]:
    """Optimizer and activations of a training stage, whose roles stay on its model."""
    algorithm, author = made(stage.component, stage.name)
    checked, context = CheckedAlgorithm(algorithm, author), run.stage_context(stage, run.folder / stage.name)
    model = context.model
    assert isinstance(model, ShapeModel)
    roles = add_roles(context, checked)
    temperature = context.settings.rollout.temperature or 1.0
    # A plan steps no optimizer, and needs no package that only the machine must have.
    settings = context.settings.model_copy(update={"optimizer": "adamw"})
    learner = Learner(model, checked, settings, roles.trained, roles.values, temperature)
    shares = [share for batch in work.batches for share in dealt(batch, run.working(stage)) if share]
    cuts = [[share[index] for index in part] for share in shares for part in micro_batches(share, learner.token_budget)]
    # The longest row and the one with the longest groups: attention may store scores, which grow with their squares.
    longest = max(cuts, key=_length)
    largest = {
        id(cut): cut for cut in (longest, max(cuts, key=lambda cut: sum(group.length**2 for group in cut)))
    }.values()
    several = any(_length(share) > learner.token_budget for share in shares)

    def learn(groups: list[Encoded]) -> None:
        outputs = filled(learner._forward(Examples(groups))).values()
        torch.stack([output.sum() for output in outputs if output.requires_grad]).sum().backward()
        learner.optimizer.zero_grad(set_to_none=True)

    found = max((_traced(model, partial(learn, cut), "learning") for cut in largest), key=lambda one: one["learning"])
    trained = float(bytes_of(learner.parameters.values()))
    kept = _kept_by_optimizer(model, context.settings, learner.parameters.values())
    moments = kept if kept is not None else 2.0 * trained
    found |= {"guessed": float(kept is None)}
    found["optimizer"] = moments + (trained if several else 0.0)  # and gradients that add up
    found |= {"learning": max(found["learning"], trained)}
    found |= {"tokens": float(_length(longest)), "several": float(several)}
    if work.measured:
        groups = dealt([group for batch in work.batches for group in batch], run.working(stage))[0]
        wants = Wants(logprobs=True, values=roles.values, temperature=temperature)
        found |= _traced(model, lambda: _measured(model, roles.trained, groups, wants), "measuring")
    return found


def _kept_by_optimizer(model: ShapeModel, settings: Settings, parameters: Collection[nn.Parameter]) -> float | None:
    """Bytes of what an optimizer remembers: of moments, or of what it makes in a step on shapes; None if it cannot."""
    if isinstance(settings.optimizer, str):
        return sum(moment_bytes(parameter, settings.optimizer) for parameter in parameters)
    if "bitsandbytes" in getattr(settings.optimizer.registration.implementation, "packages", ()):
        return None  # its kernels read memory, which shapes have not
    try:
        with model.mode or nullcontext():
            optimizer = make_optimizer(settings, parameters, 1.0)
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
    except Exception:  # an author's code, which may need numbers
        return None
    finally:
        for parameter in parameters:
            parameter.grad = None
    return float(bytes_of(leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, Tensor)))


def moment_bytes(parameter: torch.Tensor, optimizer: str) -> float:
    """Bytes of the two moments that an optimizer keeps of a parameter."""
    if not optimizer.endswith("8bit") or parameter.numel() < LEAST_IN_8_BITS:
        return 2.0 * parameter.nbytes
    return 2.0 * (parameter.numel() + 4 * -(-parameter.numel() // OF_ONE_SCALE))


def _measured(model: ShapeModel, role: str, groups: Sequence[Encoded], wants: Wants) -> None:
    """A pass without gradients over as many groups as one packed row takes."""
    with torch.no_grad():
        most = max(micro_batches(groups, model.inference_budget), key=lambda part: sum(groups[i].length for i in part))
        forward(model, role, Examples([groups[index] for index in most]), wants)


def _length(groups: Sequence[Encoded]) -> int:
    return sum(group.length for group in groups)


def _traced(model: ShapeModel, work: Callable[[], None], what: str) -> dict[str, float]:
    """The activations of some work on shapes; a rough estimate if the model decides by its numbers what it does."""
    found = peak(model, work)
    if found is None:
        return {what: float(model.memory.bytes_per_token * model.token_budget), "rough": 1.0}
    return {what: found + dequantized(model)}


def peak(model: ShapeModel, work: Callable[[], None]) -> float | None:
    """The most bytes that some work on shapes makes; None if it needs numbers."""
    counted = LiveBytes([*model.model.parameters(), *model.model.buffers(), *_role_tensors(model)])
    try:
        with counted:
            work()
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None
    return float(counted.peak)


def dequantized(model: ShapeModel) -> float:
    """Bytes of the largest quantized matrix, which is there in full while it is multiplied."""
    return float(max((weight.nbytes for weight in _quantized(model)), default=0))


# Weights


def _role_tensors(model: ShapeModel) -> list[torch.Tensor]:
    return [tensor for name in model.roles for tensor in model.parameters_of(name).values()]


def _quantized(model: ShapeModel) -> list[torch.Tensor]:
    """The matrices that bitsandbytes rounds, which the model has here in full: all linear layers but the head."""
    if quantized_width(model.spec) is None:
        return []
    own, head = {id(tensor) for tensor in _role_tensors(model)}, model.model.get_output_embeddings()
    layers = [part for part in model.model.modules() if isinstance(part, nn.Linear) and part is not head]
    return [layer.weight for layer in layers if id(layer.weight) not in own]


def weight_bytes(model: ShapeModel) -> float:
    """Bytes of the base model as it is stored: quantized if the recipe says so."""
    own = {id(tensor) for tensor in _role_tensors(model)}
    whole = sum(parameter.nbytes for parameter in model.model.parameters() if id(parameter) not in own)  # each once
    width = quantized_width(model.spec) or 0.0
    return whole - sum(weight.nbytes - weight.numel() * width for weight in _quantized(model))


def layer_bytes(model: ShapeModel) -> list[float]:
    """Bytes of each layer of the base model, which is not quantized."""
    own = {id(tensor) for tensor in _role_tensors(model)}
    layers = layers_of(model.model)
    return [float(bytes_of(p for p in layer.parameters() if id(p) not in own)) for layer in layers]


# Sampling


def _cache(run: PlannedRun, stage: Stage, work: Workload, memory: Memory) -> tuple[int, float]:
    """Rows that are sampled together, and what they take: keys and values, logits, and weights packed for a CPU.

    Nothing if an engine samples.
    """
    if stage.engine is not None or not work.rows_sampled or not work.new_tokens:
        return 0, 0.0
    base = run.bases.needed(stage)[0]
    model, machine = run.models.of(base).model, run.machine_of(base)
    assert isinstance(model, ShapeModel)
    config, width = run.configuration(base).get_text_config(), model.dtype.itemsize
    wanted = rows_of_the_busiest(work, run.working(stage))
    row = row_bytes(config, width, work.longest, work.new_tokens)
    free = machine.memory - (memory.gathered + memory.adapters + memory.optimizer if machine.gpu else 0.0)
    rows = min(wanted, most_rows(row, max(0.0, free), 0, config.vocab_size if machine.gpu else 0))
    columns = work.longest + work.new_tokens * (2 if wanted > rows else 1)
    read = min(rows * work.longest, model.inference_budget)  # prompts whose keys and values enter the cache
    cache = token_bytes(config, width) * (rows * columns * (1 + 1 / model.depth) + read) + rows * state_bytes(config)
    logits = rows * config.vocab_size * 4 * LOGIT_COPIES
    return rows, cache + logits + _packed(model, rows, work.new_tokens, memory.stored)


def _packed(model: ShapeModel, rows: int, new_tokens: int, weights: float) -> float:
    """Bytes of the weights in the order in which a CPU reads them fastest; see `kernels.sampling_weights`."""
    on_cpu = not model.machine.gpu and model.dtype == torch.float32 and mode() == "fast"
    fits = weights <= MEMORY_SHARE * model.machine.memory and rows <= MAX_ROWS and new_tokens >= MIN_TOKENS
    return weights if on_cpu and fits else 0.0


# Counting


class LiveBytes(TorchDispatchMode):
    """Inside, counts the storages that operators make, from the first use until they are freed.

    live, peak: bytes, above those of the tensors that are known from the start.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        """known: tensors that are counted elsewhere, such as weights."""
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()
        self._kept = list(known)
        for tensor in self._kept:
            self._known.add(id(tensor.untyped_storage()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def bytes_of(tensors: Iterable[Any]) -> int:
    """Bytes of tensors, each storage once."""
    sizes = {id(tensor.untyped_storage()): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(sizes.values())

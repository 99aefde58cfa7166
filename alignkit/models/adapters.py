"""LoRA adapters on one base model: peft holds the weights, and a shared switch selects the adapter
that layers add.

peft's own switch would walk over all layers and change `requires_grad`. Here every LoRA layer reads
`ACTIVE`, so selecting an adapter costs nothing and has no side effects.
"""

from __future__ import annotations

import copy
import json
import logging
import re
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from alignkit.errors import RunFailed
from alignkit.io.atomic import write_json
from alignkit.io.digest import cached_snapshot, digest, file_digest, is_commit
from alignkit.kernels.backends import Backend, LowRank, lora_layers
from alignkit.models.loading import PAD_TOKEN_ID, read_weights, weight_files
from alignkit.models.saved import (
    ADAPTER,
    ALL,
    CONFIG,
    ORIGIN,
    SCALE,
    base_name,
    origin_of,
    read_json,
    scale_of,
)

if TYPE_CHECKING:
    from alignkit.contract.settings import LoraSpec

# Options of peft that compute something else with weights of the same names.
VARIANTS = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "kasa_config",
    "layers_to_transform",
    "monteclora_config",
    "rank_pattern",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)
MERGE = "merge it into its base model (peft's merge_and_unload), and name that"
# Initializations of peft that subtract the new adapter from the base model's weights.
SUBTRACTED = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class ModelOrigin:
    """What an adapter names as its base model. name: as the recipe has it. source: a transformers
    folder or hub id, as peft names it.
    """

    name: str
    source: str
    revision: str | None = None

    @cached_property
    def _folder(self) -> Path | None:
        """Where its files are; None if they are not on this machine."""
        if Path(self.source).is_dir():
            return Path(self.source)
        return cached_snapshot(self.source, self.revision)

    @cached_property
    def weights(self) -> str | None:
        """SHA-256 over the files with weights; None if they are not on this machine."""
        files = weight_files(self._folder) if self._folder is not None else []
        return digest([*map(file_digest, files)]) if files else None

    def save_origin(self, folder: Path) -> None:
        """Say in an adapter's folder which base model it is for."""
        facts = {"base": {"name": self.name, "revision": self.revision, "weights": self.weights}}
        write_json(folder / ORIGIN, facts)

    def check(self, folder: Path, lora: LoraSpec | None = None) -> None:
        """Raise RunFailed if the weights in a folder cannot be read, or used on this base model.

        An adapter of another base model, scale or kind might load and compute another thing. lora:
        of the adapters on this base model; None: an adapter may have any scale.
        """
        if not is_adapter(folder):
            theirs, ours = _vocabulary(folder), _vocabulary(self._folder)
            if theirs and ours and theirs != ours:
                raise RunFailed(
                    f"{folder} knows {theirs} tokens, but model.base '{self.name}' has {ours}"
                )
            return
        saved, origin = read_json(folder / ADAPTER), origin_of(folder)
        if origin.get("weights") and self.weights:
            fits = origin["weights"] == self.weights
        else:
            commits = {*filter(is_commit, (saved.get("revision"), self.revision))}
            fits = saved.get("base_model_name_or_path") == self.source and len(commits) < 2
        if not fits:
            text = (
                f"the base model '{base_name(folder)}', not for '{self.name}', or for other weights"
            )
            raise RunFailed(f"{folder} is an adapter for {text}")
        expected = dict[str, Any].fromkeys(VARIANTS)
        if str(saved.get("init_lora_weights")).startswith(SUBTRACTED):
            expected["init_lora_weights"] = None
        if lora is not None:
            expected |= lora.model_dump(include=set(SCALE))
        for key, value in expected.items():
            if (saved.get(key) or None) != (value or None):
                text = (
                    f"this adapter has {key} {saved.get(key)}, but the recipe's model.lora has "
                    f"{value}"
                )
                help = "" if key in SCALE else f"\nhelp: {MERGE}"
                raise RunFailed(f"{folder}: {text}{help}")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, for any base model."""
    return (folder / ADAPTER).is_file()


def _vocabulary(folder: Path | None) -> Any:
    """The number of tokens that the model in a folder knows; None if that is not known."""
    return None if folder is None else read_json(folder / CONFIG, optional=True).get("vocab_size")


# Adapters in memory

WEIGHTS = "adapter_model.safetensors"
SCORE = "base_model.model.score.weight"  # a scalar head, as peft names it


# The adapter that LoRA layers add, or None for the base model.
ACTIVE: ContextVar[str | None] = ContextVar("alignkit_adapter", default=None)


@dataclass(eq=False)
class Adapters:
    """The adapters of one model. origin: of the model, for saved adapters. backend: computes its
    layers.
    """

    model: Any
    spec: LoraSpec
    origin: ModelOrigin
    backend: Backend
    _peft: Any = None
    _targets: Any = None

    def add(self, role: str, seed: int, start: Path | str | None) -> str:
        """Add an adapter for a role and return its name.

        start: the folder of a saved adapter, whose scale it keeps, the name of an adapter to copy,
        or None for one drawn from `seed`. Raises RunFailed if the saved adapter or `model.lora`
        does not fit the model.
        """
        # The prefix avoids role names such as `train`, which are attributes of the modules that
        # hold the adapters.
        adapter = "role_" + role.replace(".", "%")  # torch allows no dot here
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        spec = self.spec
        if isinstance(start, Path):
            self.origin.check(start)
            spec = spec.model_copy(update=scale_of(read_json(start / ADAPTER)))
        self._inject(adapter, seed, spec)
        # peft turns gradients on for the new adapter and off for all others, even if another role
        # is in training.
        self.model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        try:
            self._fill(adapter, start)
        except BaseException:
            self.drop(adapter)  # a second attempt must not find half an adapter
            raise
        return adapter

    def _fill(self, adapter: str, start: Path | str | None) -> None:
        """Fill a new adapter with the weights of `start`; see `add`."""
        if isinstance(start, Path):
            self._load(adapter, start)
        elif start is not None:
            configs = self.model.peft_config
            if scale_of(vars(configs[start])) != scale_of(vars(configs[adapter])):
                raise RunFailed(
                    f"an adapter of another scale than model.lora cannot be trained: {start}"
                )
            for layer in lora_layers(self.model):
                for store in (layer.lora_A, layer.lora_B):
                    store[adapter].load_state_dict(store[start].state_dict())

    def drop(self, adapter: str) -> None:
        """Remove an adapter and its weights."""
        for layer in lora_layers(self.model):
            for store in (layer.lora_A, layer.lora_B, layer.lora_dropout, layer.scaling, layer.r):
                if adapter in store:
                    del store[adapter]
        del self.model.peft_config[adapter]

    def parameters(self, adapter: str) -> dict[str, nn.Parameter]:
        """The weights of an adapter by name."""
        suffix = f".{adapter}.weight"
        return {name: p for name, p in self.model.named_parameters() if name.endswith(suffix)}

    def save(
        self, adapter: str, folder: Path, head: Tensor | None, pad_token_id: int | None = None
    ) -> None:
        """Write a plain peft adapter. head: [1, hidden], which makes it a reward model that skips
        `pad_token_id` tokens.
        """
        from peft import get_peft_model_state_dict

        config = copy.deepcopy(self.model.peft_config[adapter])
        config.inference_mode = True
        config.base_model_name_or_path, config.revision = self.origin.source, self.origin.revision
        if not isinstance(config.target_modules, str):  # a string is a pattern
            config.target_modules = sorted(config.target_modules)
        # Peft reads it, and the adapter added last may have been dropped
        self._peft.active_adapter = adapter
        state = get_peft_model_state_dict(
            self._peft, adapter_name=adapter, save_embedding_layers=False
        )
        state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        if head is not None:
            config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
            state[SCORE] = head.detach().cpu().contiguous()
        facts = {"format": "pt"}
        if pad_token_id is not None:
            facts[PAD_TOKEN_ID] = str(pad_token_id)
        save_file(dict(sorted(state.items())), folder / WEIGHTS, metadata=facts)
        _sort_facts(folder / WEIGHTS)
        config.save_pretrained(folder)
        self.origin.save_origin(folder)

    def _inject(self, adapter: str, seed: int, spec: LoraSpec) -> None:
        """Add new adapter weights to the layers that `model.lora` names."""
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(task_type="CAUSAL_LM", **spec.model_dump())
        if self._targets is None:  # while the model has no adapter
            self._targets = lora_targets(self.model, self.spec.target_modules)
        config.target_modules = self._targets
        # The draws follow from `seed`, and leave the process's own generator where it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                if self._peft is None:
                    self._peft = get_peft_model(self.model, config, adapter_name=adapter)
                    self.model.peft_config = self._peft.peft_config
                else:
                    # alignkit ignores peft's active adapter, but it must name one that exists: two
                    # objects read it.
                    self._peft.active_adapter = self._peft.base_model.active_adapter = adapter
                    self._peft.add_adapter(adapter, config)
            except ValueError as error:
                raise RunFailed(f"model.lora: {error}") from error
        tied = (self.model.get_output_embeddings(), self.model.get_input_embeddings())
        for layer in lora_layers(self.model):
            layer.forward, layer.backend = MethodType(_forward, layer), self.backend
            kind = type(layer.get_base_layer()).__name__
            # A router may return a tuple, to which an adapter's term cannot be added. peft merges
            # experts with their adapters in every pass, which would store as much as all experts
            # weigh.
            if layer in tied or hasattr(layer, "parameter_name") or "Router" in kind:
                raise RunFailed(
                    f"model.lora.target_modules: {kind} cannot have an adapter; leave out the "
                    "language head, token embeddings, routers and stacked experts"
                )

    def _load(self, adapter: str, folder: Path) -> None:
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        state = read_weights(folder / WEIGHTS)
        state.pop(SCORE, None)  # a role loads its head itself
        ours = get_peft_model_state_dict(
            self._peft, adapter_name=adapter, save_embedding_layers=False
        )
        # peft would write weights of the base model, which all roles share, and leave out missing
        # ones.
        if different := sorted(state.keys() ^ ours.keys()):
            verb = "has the unknown" if different[0] in state else "lacks the"
            own = json.dumps(read_json(folder / ADAPTER).get("target_modules"))
            raise RunFailed(
                f"{folder}: this adapter does not fit the recipe's model.base or model.lora: it "
                f"{verb} weight {different[0]}\n"
                f"help: set model.lora.target_modules to its own, {own}, or {MERGE}"
            )
        set_peft_model_state_dict(self._peft, state, adapter_name=adapter)


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The base layer plus the active adapter, in the layer's dtype; adapters are stored in fp32."""
    linear, adapter = self.base_layer, ACTIVE.get()
    backend: Backend = self.backend
    factors = None
    if adapter is not None:
        down, up = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        factors = LowRank(down, up, self.scaling[adapter])
    if type(linear) is nn.Linear:  # quantized layers are subclasses with their own matrix product
        return backend.linear(x, linear.weight, linear.bias, factors)
    result: Tensor = linear(x, *args, **kwargs)
    return result if factors is None else result + factors.term(x, backend.linear)


def _sort_facts(file: Path) -> None:
    """Sort the metadata of a safetensors file, which are in random order: equal weights must be
    equal bytes.
    """
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"))
        stream.seek(8)
        # Padded to the old size, because tensors are found by their distance from the header's end.
        stream.write(text.encode().ljust(size))


# Parts of the names of layers that `all-linear` leaves frozen in a mixture of experts: routers,
# which choose experts by a hard limit, and those that peft takes for an expert's, which are
# stacked; dense and shared MLPs have the same names.
OF_EXPERTS = re.compile(r"(^|\.)(router|gate|gate_proj|up_proj|down_proj|w1|w2|w3)(\.|$)")


def lora_targets(model: Any, targets: str | list[str]) -> Any:
    """What `target_modules` means in a model without adapters, for peft. Logs what `all-linear`
    leaves out.
    """
    from transformers.pytorch_utils import Conv1D

    if targets != ALL:
        return targets
    linear: list[str] = []
    frozen: list[str] = []
    for name, module in model.named_modules():
        # Weights of stacked experts are [experts, outputs, inputs].
        if not isinstance(module, nn.Conv1d) and 3 in {
            p.ndim for p in module.parameters(recurse=False)
        }:
            frozen.append(name)
    is_mixture = bool(frozen)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or module is model.get_output_embeddings():
            continue
        # A state space layer passes this layer's weight to a kernel, past any adapter.
        parent = type(model.get_submodule(name.rpartition(".")[0])).__name__
        is_read = name.endswith("out_proj") and ("Mamba" in parent or "Mixer" in parent)
        (frozen if is_read or (is_mixture and OF_EXPERTS.search(name)) else linear).append(name)
    if not frozen:
        return ALL  # leaves the choice, and the words in saved adapters, to peft
    logging.getLogger("alignkit").warning(
        f"model.lora.target_modules: {ALL} leaves {len(frozen)} layers frozen, in a mixture of "
        f"experts also those of dense and shared MLPs: {min(frozen)} and others"
    )
    return set(linear)

"""LoRA adapters on one base model: peft holds the weights, and a shared switch selects the adapter that layers add.

peft's own switch would walk over all layers and change `requires_grad`. Here every LoRA layer reads `ActiveAdapter`,
so selecting an adapter costs nothing and has no side effects.
"""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignkit.errors import RunFailed
from alignkit.kernels import matmul
from alignkit.kernels.lora import adapted, low_rank
from alignkit.models.adapter_base import Base, check_computes
from alignkit.models.files_check import check_finite, check_safetensors
from alignkit.models.lora_targets import LoraTargets, is_router, lora_targets
from alignkit.models.padding import UNREAD

if TYPE_CHECKING:
    from alignkit.settings import LoraSpec

WEIGHTS = "adapter_model.safetensors"
SCORE = "base_model.model.score.weight"  # a scalar head, as peft names it


@dataclass
class ActiveAdapter:
    """The adapter that the LoRA layers of a model add, or None for the base model."""

    name: str | None = None


class Adapters:
    """The adapters of one model. base: the model's name, for saved adapters."""

    def __init__(self, model: Any, spec: LoraSpec, active: ActiveAdapter, base: Base):
        self.model, self.spec, self.active, self.base = model, spec, active, base
        self._peft: Any = None
        self._targets: LoraTargets | None = None

    def add(self, role: str, seed: int, start: Path | str | None) -> str:
        """Add an adapter for a role and return its name.

        start: the folder of a saved adapter, the name of an adapter to copy, or None for a new one drawn from `seed`.
        Raises RunFailed if the saved adapter or `model.lora` does not fit the model.
        """
        # The prefix avoids role names such as `train`, which are attributes of the modules that hold the adapters.
        adapter = "role_" + role.replace(".", "%")  # torch allows no dot here
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._inject(adapter, seed)
        try:
            if isinstance(start, Path):
                self._load(adapter, start)
            elif start is not None:
                for layer in self._layers():
                    for store in (layer.lora_A, layer.lora_B):
                        store[adapter].load_state_dict(store[start].state_dict())
        except BaseException:
            self.drop(adapter)
            raise
        finally:
            # peft turns gradients on for the new adapter and off for all others, even if another role is in training.
            for parameter in self.model.parameters():
                parameter.requires_grad_(False)
            for parameter in trained:
                parameter.requires_grad_(True)
        return adapter

    def drop(self, adapter: str) -> None:
        """Remove an adapter and its weights."""
        for layer in self._layers():
            for store in (layer.lora_A, layer.lora_B, layer.lora_dropout, layer.scaling, layer.r):
                store.pop(adapter, None) if isinstance(store, dict) else store.pop(adapter)
        del self.model.peft_config[adapter]

    def parameters(self, adapter: str) -> dict[str, nn.Parameter]:
        """The weights of an adapter by name."""
        suffix = f".{adapter}.weight"
        return {name: p for name, p in self.model.named_parameters() if name.endswith(suffix)}

    @property
    def on_stacks(self) -> bool:
        """Whether weights that are no linear layer's have adapters, such as stacked experts."""
        return self._targets is not None and bool(self._targets.parameters)

    def everything(self) -> list[nn.Parameter]:
        """The weights of all adapters."""
        return [p for layer in self._layers() for store in (layer.lora_A, layer.lora_B) for p in store.parameters()]

    def save(self, adapter: str, folder: Path, head: Tensor | None, unread: int | None = None) -> None:
        """Write a plain peft adapter. head: [1, hidden], which makes it a reward model that skips `unread` tokens."""
        from peft import get_peft_model_state_dict

        config = copy.deepcopy(self.model.peft_config[adapter])
        config.inference_mode = True
        config.base_model_name_or_path, config.revision = self.base.source, self.base.revision
        if not isinstance(config.target_modules, str):  # a string is a pattern
            config.target_modules = sorted(config.target_modules)
        if config.target_parameters:
            config.target_parameters = sorted(config.target_parameters)
        self._peft.active_adapter = adapter  # peft reads it, and the adapter added last may have been dropped
        state = get_peft_model_state_dict(self._peft, adapter_name=adapter, save_embedding_layers=False)
        state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        if head is not None:
            config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
            state[SCORE] = head.detach().cpu().contiguous()
        facts = {"format": "pt"} | ({} if unread is None else {UNREAD: str(unread)})
        save_file(dict(sorted(state.items())), folder / WEIGHTS, metadata=facts)
        _sort_facts(folder / WEIGHTS)
        config.save_pretrained(folder)
        self.base.save_origin(folder)

    def _inject(self, adapter: str, seed: int) -> None:
        """Add new adapter weights to the layers that `model.lora` names."""
        from peft import LoraConfig

        config = LoraConfig(task_type="CAUSAL_LM", **self.spec.model_dump())
        targets = self._resolved(config)
        config.target_modules = targets.modules if isinstance(targets.modules, str) else set(targets.modules)
        config.target_parameters = targets.parameters or None
        # The draws follow from `seed`, and leave the process's own generator where it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                self._inject_by_peft(adapter, config)
            except ValueError as error:
                raise RunFailed(f"model.lora: {error}") from error
        for layer in self._layers():
            _patch_forward(layer, self.active)
        self._refuse_embeddings()
        self._refuse_routers()

    def _resolved(self, config: Any) -> LoraTargets:
        """The layers that get an adapter: found once, while the model has none. Logs what the default leaves out."""
        if self._targets is None:
            self._targets = lora_targets(self.model, config)
            if self._targets.frozen:
                logging.getLogger("alignkit").warning(self._targets.frozen)
        return self._targets

    def _inject_by_peft(self, adapter: str, config: Any) -> None:
        from peft import get_peft_model

        if self._peft is None:
            self._peft = get_peft_model(self.model, config, adapter_name=adapter)
            self.model.peft_config = self._peft.peft_config
            return
        # alignkit ignores peft's active adapter, but it must name one that exists: peft reads it, in two objects.
        self._peft.active_adapter = self._peft.base_model.active_adapter = adapter
        self._peft.add_adapter(adapter, config)

    def _refuse_embeddings(self) -> None:
        from peft.tuners.lora import LoraLayer

        if isinstance(self.model.get_output_embeddings(), LoraLayer):
            raise RunFailed("model.lora.target_modules: the language head cannot have an adapter; leave it out")
        if isinstance(self.model.get_input_embeddings(), LoraLayer):
            raise RunFailed("model.lora.target_modules: token embeddings cannot have an adapter; leave them out")

    def _refuse_routers(self) -> None:
        """Reject an adapter on a router that returns a tuple, to which an adapter's term cannot be added."""
        from peft.tuners.lora import LoraLayer

        for name, layer in self.model.named_modules():
            base = layer.base_layer if isinstance(layer, LoraLayer) else None
            if isinstance(base, nn.Linear) and is_router("", base):
                raise RunFailed(
                    f"model.lora.target_modules: {name} is a router ({type(base).__name__}) and cannot have an "
                    "adapter; leave it out"
                )

    def _load(self, adapter: str, folder: Path) -> None:
        from peft import set_peft_model_state_dict

        self._check_config(adapter, folder)
        check_safetensors(folder / WEIGHTS)
        state = load_file(folder / WEIGHTS)
        check_finite(folder / WEIGHTS, state)
        state.pop(SCORE, None)  # a role loads its head itself
        if whole := next((key for key in state if ".lora_" not in key), ""):  # peft would write it into the base
            raise RunFailed(
                f"{folder}: this adapter also holds {whole}, a weight of the base model, which all roles share\n"
                "help: merge the adapter into the base (peft's merge_and_unload), and name the result in model.base"
            )
        result = set_peft_model_state_dict(self._peft, state, adapter_name=adapter)
        missing = [key for key in result.missing_keys if f".{adapter}." in key]
        if missing or result.unexpected_keys:
            weight = (missing or result.unexpected_keys)[0]
            raise RunFailed(
                f"{folder}: this adapter does not fit the recipe's model.base or model.lora: "
                + (f"it lacks the weight {weight}" if missing else f"it has the unknown weight {weight}")
            )

    def _check_config(self, adapter: str, folder: Path) -> None:
        """Reject an adapter of another scale, kind or base."""
        ours = self.model.peft_config[adapter]
        expected = {"r": ours.r, "lora_alpha": ours.lora_alpha, "use_rslora": ours.use_rslora}
        expected |= {"rank_pattern": ours.rank_pattern, "alpha_pattern": ours.alpha_pattern}
        check_computes(folder, expected)
        self.base.has_adapter(folder)

    def _layers(self) -> list[Any]:
        from peft.tuners.lora import LoraLayer

        return [module for module in self.model.modules() if isinstance(module, LoraLayer)]


def _patch_forward(layer: Any, active: ActiveAdapter) -> None:
    """Let a LoRA layer add the active adapter instead of peft's."""
    if not hasattr(layer, "alignkit_active"):
        layer.alignkit_active = active
        # peft wraps a weight that is no linear layer's: an expert stack's, or a router's.
        wraps_weight = hasattr(layer, "parameter_name") and not isinstance(layer.base_layer, nn.Linear)
        layer.forward = MethodType(_forward_with_merged_weight if wraps_weight else _forward, layer)


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The base layer plus the active adapter, in the layer's dtype; adapters are stored in fp32."""
    base, adapter = self.base_layer, self.alignkit_active.name
    plain = type(base) is nn.Linear  # quantized layers are subclasses with their own matrix product
    if adapter is None:
        return matmul.linear(x, base.weight, base.bias) if plain else base(x, *args, **kwargs)
    down, up, scale = self.lora_A[adapter].weight, self.lora_B[adapter].weight, self.scaling[adapter]
    if plain:
        return adapted(x, base.weight, base.bias, down, up, scale)
    result: Tensor = base(x, *args, **kwargs)
    return result + low_rank(x, down, up, scale)


def _forward_with_merged_weight(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The base layer with the active adapter merged into the wrapped weight for this pass, as peft does it."""
    with self._activate_lora([] if self.alignkit_active.name is None else [self.alignkit_active.name]):
        return self.base_layer(*args, **kwargs)


def _sort_facts(file: Path) -> None:
    """Sort the metadata of a safetensors file, which are in random order: equal weights must be equal bytes."""
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        facts = header.pop("__metadata__", {})
        text = json.dumps({"__metadata__": dict(sorted(facts.items())), **header}, separators=(",", ":"))
        if len(text.encode()) > size:
            raise RunFailed(f"{file} cannot be written with sorted metadata")  # impossible: the same text, reordered
        stream.seek(8)
        # Padded to the old size, because tensors are found by their distance from the header's end.
        stream.write(text.encode().ljust(size))

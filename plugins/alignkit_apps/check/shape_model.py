"""A base model without its weights, as a run would load it on some machine, and a run with such models.

Its tensors are torch's fake ones, which have a shape and a dtype but no numbers. Adapters, roles and forward passes are
those of `SharedModel`, so the code itself is counted.

Layers of one kind take the same, so two small depths say what a deep model takes (`alignkit_apps.check.memory`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.function import once_differentiable

from alignkit.algorithm import Trains
from alignkit.errors import RunFailed
from alignkit.io.progress import Reporter
from alignkit.kernels import attention
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import AttentionArgs
from alignkit.models.adapter_base import Base
from alignkit.models.adapters import ActiveAdapter, Adapters
from alignkit.models.budget import LEAST_ON_GPU, LEAST_TOKENS, MemoryBudget, activation_budget
from alignkit.models.loading import DTYPES, device_of, has_score, load_text, silence_libraries
from alignkit.models.recompute import make_recomputable
from alignkit.models.service import ModelService
from alignkit.models.shared_model import BASE, HeadKind, Role, SharedModel
from alignkit.recipe.schema import Recipe, Stage
from alignkit.runs.bases import LEAST_LENGTH, resolved_spec
from alignkit.runs.run import Run
from alignkit.settings import ModelSpec
from alignkit_apps.check.cards import Machine, this_machine

CPU = torch.device("cpu")


def configuration(spec: ModelSpec, source: str, revision: str | None) -> Any:
    """The configuration of a base model, for which no weights are downloaded."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=spec.trust_remote_code)


def depth_of(config: Any) -> int:
    return int(config.get_text_config().num_hidden_layers)


def at_depth(config: Any, layers: int) -> Any:
    """A copy of a configuration with fewer layers."""
    shallow = copy.deepcopy(config)
    text = shallow.get_text_config()
    if (kinds := getattr(text, "layer_types", None)) is not None:
        text.layer_types = list(kinds)[:layers]
    text.num_hidden_layers = layers
    return shallow


def planned_dtype(spec: ModelSpec, machine: Machine) -> torch.dtype:
    """The dtype of the weights on a machine, as `loading.dtype_of` chooses it for a device that is here."""
    if spec.dtype != "auto":
        return DTYPES[spec.dtype]
    return torch.bfloat16 if spec.lora is not None and machine.bf16 else torch.float32


def planned_products(spec: ModelSpec, machine: Machine) -> torch.dtype | None:
    """The dtype of products, as `loading.mixed_precision`. Raises RunFailed where a run would."""
    if spec.mixed_precision == "none":
        return None
    if not machine.bf16:
        text = f"'mixed_precision: bf16': {machine.name} has no instructions that multiply bf16"
        raise RunFailed(f"{text}\nhelp: leave it out, because everything would be slower")
    return torch.bfloat16


class ShapeModel(SharedModel):
    """A `SharedModel` of shapes.

    machine: on which it is planned. layers: how many of its layers it has here. depth: how many it has.
    """

    def __init__(
        self,
        spec: ModelSpec,
        source: str,
        revision: str | None,
        config: Any,
        machine: Machine,
        *,
        layers: int | None = None,
        text: Any = None,
        real: bool = False,
    ):
        """text: of `loading.load_text`, if it is known. real: give it random numbers, to measure how long they take.

        Does not call the initializer of `SharedModel`, which reads weights.
        """
        self.base = Base(spec.base, source, revision)
        self.spec, self.source, self.seed = spec, source, 0
        self.machine, self.depth = machine, depth_of(config)
        # Without real numbers a GPU is planned on a fake CPU: torch has no fake GPU where it has no real one.
        self.device = torch.device("cuda") if real and machine.gpu else CPU
        self.dtype = planned_dtype(spec, machine)
        self.autocast = planned_products(spec, machine)
        self.tokenizer, self.chat, self.end_ids = text or load_text(spec, source, revision)
        self.chat_facts: list[str] = []
        self.active_adapter = ActiveAdapter()
        self.roles: dict[str, Role] = {}
        self.recomputed = self.updates = 0
        self.engine: Any = None
        self.should_stop = lambda: None
        self.packs, self.unpacked_because, self.unused_weights = True, "", []
        self.mode = None if real else FakeTensorMode(allow_non_fake_inputs=True)
        self.model = self._without_weights(at_depth(config, layers or self.depth))
        self.hidden_size = int(self._config.hidden_size)
        self.recomputes = make_recomputable(self.model)
        self.roles[BASE] = Role(BASE, self.model, None)
        self.memory = MemoryBudget(
            self.device,
            self._activation_bytes_per_token(),
            activation_budget(torch.device("cuda" if machine.gpu else "cpu"), machine.memory),
            memory=machine.memory,
            least=LEAST_ON_GPU if machine.gpu else LEAST_TOKENS,
        )
        self.adapters = Adapters(self.model, spec.lora, self.active_adapter, self.base) if spec.lora else None

    def _without_weights(self, config: Any) -> Any:
        from transformers import AutoModelForCausalLM

        silence_libraries()
        code = self.spec.trust_remote_code
        options: Any = {"dtype": self.dtype, "attn_implementation": attention.NAME, "trust_remote_code": code}
        try:
            with self.mode or nullcontext(), self.device:
                model = AutoModelForCausalLM.from_config(config, **options)
        except (ValueError, KeyError, AttributeError, NotImplementedError, RuntimeError) as error:
            text = f"'{self.spec.base}' cannot be planned without its weights: {type(error).__name__}: {error}"
            raise RunFailed(text.split("\n")[0]) from error
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        return model.eval()

    def add_role(self, name: str, *, start: str | Path | None = None, head: HeadKind = "language") -> Role:
        """As `SharedModel.add_role`, of shapes. start: a role; the weights of a folder have the same shapes."""
        role = super().add_role(name, start=start if isinstance(start, str) else None, head=head)
        if self.mode is not None:
            _forget_numbers(role.model, self.mode)
        return role

    def _activation_bytes_per_token(self) -> int:
        return super()._activation_bytes_per_token() // depth_of(self.model.config) * self.depth

    def hidden_packed(self, name: str, layout: TreeLayout, tokens: Tensor) -> Tensor:
        if self.machine.gpu and self.mode is not None:
            layout = CardLayout(layout.spans)
        if self.mode is not None:
            tokens = self.mode.from_tensor(tokens)
        return super().hidden_packed(name, layout, tokens)


def _forget_numbers(model: Any, mode: FakeTensorMode) -> None:
    """Replace parameters with numbers, such as those of a new adapter, by ones that only have shapes."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not isinstance(parameter.data, FakeTensor):
                with mode:
                    shape = torch.empty(parameter.shape, dtype=parameter.dtype)
                module.register_parameter(name, nn.Parameter(shape, requires_grad=parameter.requires_grad))


class CardLayout(TreeLayout):
    """A packed row whose attention has the shapes of fused kernels: no scores are stored, unless they are capped."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        if self.store_kv:
            self.kv[layer] = (k[0].detach(), v[0].detach())
        if args.softcap is not None:  # no fused kernel caps scores: they are stored
            return super().attend(layer, q, k, v, args)
        return _Fused.apply(q, k, v)


class _Fused(torch.autograd.Function):
    """Keeps queries, keys, values, the result and a number per query (Dao et al. 2023, algorithm 1)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        sums = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


# A run with such models


class Silent(Reporter):
    """Shows nothing of what a run would have said."""

    def say(self, text: str) -> None:
        pass


class ShapeService(ModelService):
    """Models without weights. Stages that have not run yet have no folder: their roles are made from the recipe."""

    def __init__(self, model: ShapeModel, recipe: Recipe, max_length: int, name: str):
        super().__init__(model, lambda reference: recipe.folder / reference, max_length, name=name)
        self._recipe = recipe

    def role(self, reference: str) -> str:
        name = self._role_name(reference)
        if name not in self.model.roles:
            self.model.add_role(name, head=self._head(reference))
        return name

    def _head(self, reference: str) -> HeadKind:
        stage = self._recipe.stages.get(reference.partition("@")[0])
        if stage is not None:
            trains = getattr(stage.component.registration.implementation, "trains", None)
            return "scalar" if trains is Trains.REWARD else "language"
        return "scalar" if has_score(self._recipe.folder / reference) else "language"


class PlannedRun(Run):
    """A run that is planned.

    machine: on which it is planned; None: this one, with the devices that the recipe names. layers: of its models;
    None: all of them. folder: of the run, whose data are read if stages have made them; nothing is written to it.
    """

    def __init__(self, recipe: Recipe, folder: Path, machine: Machine | None = None, layers: int | None = None):
        super().__init__(recipe, folder, Silent())
        self.reporter.live = False
        self.machine, self.layers = machine, layers
        self.configuration: Callable[[str], Any] = cache(self._configuration)
        self._text: Callable[[str], Any] = cache(self._read_text)

    def at_depth(self, layers: int | None) -> PlannedRun:
        """The same run with models of fewer layers."""
        other = PlannedRun(self.recipe, self.folder, self.machine, layers)
        other.configuration, other._text = self.configuration, self._text
        return other

    def machine_of(self, base: str) -> Machine:
        """The machine that a base model is planned for."""
        return self.machine or replace(this_machine(device_of(self.recipe.base(base).device)), count=self.processes)

    @property
    def processes(self) -> int:
        """Processes of the run."""
        return self.machine.count if self.machine is not None else 1

    def working(self, stage: Stage) -> int:
        """Processes that work on a stage: process 0 runs steps alone."""
        return self.processes if stage.kind == "algorithm" else 1

    def depth(self, base: str) -> int:
        """Layers of a base model."""
        return depth_of(self.configuration(base))

    def shapes(self, base: str, *, layers: int | None = None, real: bool = False) -> ShapeModel:
        """A base model. real: with random numbers, to measure how long they take."""
        found, spec = self.bases[base], resolved_spec(self.recipe, base, None)
        return ShapeModel(
            spec,
            found.source,
            found.commit or spec.revision,
            self.configuration(base),
            self.machine_of(base),
            layers=layers or self.layers,
            text=self._text(base),
            real=real,
        )

    def service(self, model: ShapeModel, base: str) -> ModelService:
        """What uses a base model in stages."""
        stages = self.recipe.stages.values()
        longest = max([LEAST_LENGTH, *(stage.settings.max_length for stage in stages if stage.settings is not None)])
        return ShapeService(model, self.recipe, longest, base)

    def _open(self, base: str) -> ModelService:
        return self.service(self.shapes(base), base)

    def _configuration(self, base: str) -> Any:
        found = self.bases[base]
        return configuration(found.spec, found.source, found.commit or found.spec.revision)

    def _read_text(self, base: str) -> Any:
        found, spec = self.bases[base], resolved_spec(self.recipe, base, None)
        return load_text(spec, found.source, found.commit or spec.revision, with_weights=False)

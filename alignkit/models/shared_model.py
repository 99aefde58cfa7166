"""One base model, many roles: policy, reference, value and reward models are adapters (and heads) on it.

A role is a name. Its adapter is peft's LoRA; which one a layer adds is read from one shared switch, so changing the
role costs nothing and moves no `requires_grad` flag. With `lora: none` each role has its own copy of the model.
"""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignkit.errors import RunFailed
from alignkit.io.atomic import replace_folder
from alignkit.kernels import attention, lm_head, matmul
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.lm_head import Entropy
from alignkit.kernels.lora import adapted, low_rank
from alignkit.kernels.memory import retain_freed_memory, total
from alignkit.models import load_check
from alignkit.models.budget import activation_budget
from alignkit.models.hub import locate
from alignkit.models.loading import (
    backbone,
    device_of,
    dtype_of,
    has_score,
    largest,
    load_base,
    load_tokenizer,
    tell_unused,
)
from alignkit.models.recompute import prepare, recomputing

if TYPE_CHECKING:
    from alignkit.settings import ModelSpec

HeadKind = Literal["language", "scalar"]
BASE = "base"
LEAST_TOKENS, LEAST_ON_GPU = 256, 512  # that the budget of a packed row begins with


@dataclass
class Switch:
    """The adapter that every LoRA layer of a model adds now; None: the base alone."""

    adapter: str | None = None


@dataclass
class Role:
    """A network that scores tokens: a model, the adapter it runs with (None: none), and a scalar head if it has one.

    head: [1, hidden] fp32. trunk: the role whose hidden states the head reads, where it has no network of its own.
    """

    name: str
    model: Any
    adapter: str | None
    head: nn.Parameter | None = None
    trunk: str | None = None


class SharedModel:
    """The base model with its tokenizer and roles."""

    def __init__(self, spec: ModelSpec, source: str, *, revision: str | None = None, seed: int = 0):
        """source: a transformers folder or hub id. seed: of fresh adapters and heads."""
        self.base_name, self.revision = source, revision  # the hub's name, which saved adapters carry
        self.spec, self.source, self.seed = spec, locate(source, revision), seed
        self.device = device_of(spec.device)
        self.dtype = dtype_of(spec, self.device)
        if self.device.type == "cpu":
            retain_freed_memory()
        self.tokenizer = load_tokenizer(spec, self.source, revision)
        self.switch = Switch()
        self.lora = spec.lora
        self.roles: dict[str, Role] = {}
        self.activation_bytes: float | None = None  # that a packed row may take
        self.halvings = 0  # of the token budget, since memory ran out
        self.recomputes = False
        self.recomputed = 0  # rows whose layers were computed twice, see `alignkit.models.recompute`
        self.should_stop: Callable[[], None] = lambda: None  # called during long passes; raises to end them
        self.packs = True
        try:
            self._adopt(*load_base(spec, self.source, revision, self.dtype, self.device, attention.NAME))
            self.unpacked_because = load_check.why_not_packable(self, BASE)
        except KeyError as error:  # a table of attention classes of the model's own
            if error.args != (attention.NAME,):
                raise
            self.unpacked_because = "it does not use transformers' attention interface"
        self.packs = not self.unpacked_because
        if self.packs:
            self.recomputes = prepare(self.model)
            self.model.set_attn_implementation(attention.NAME)
        else:
            # Loaded afresh: asked for our attention, some models build no causal mask and cannot be told otherwise.
            self._adopt(*load_base(spec, self.source, revision, self.dtype, self.device, None))
        if self.unused:
            tell_unused(self.base_name, self.model, self.unused)
        load_check.check_head(self, BASE)
        # The value head and reward heads read the last hidden state; the language head is applied where needed.
        self.hidden_size = int(self.model.config.get_text_config().hidden_size)

    def _adopt(self, model: Any, unused: list[str]) -> None:
        """Take a model as the base. unused: the weights of its files that it has no place for."""
        self.model, self.unused = model, unused
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model.eval()  # for ever: dropout would make old and new log-probabilities differ
        self.roles[BASE] = Role(BASE, model, None)

    # Roles

    def add_role(
        self, name: str, *, start: str | Path | None = None, head: HeadKind = "language", fresh_head: bool = False
    ) -> Role:
        """A new role `name`, started from another role or a saved adapter folder; None: from the base.

        head: `scalar` adds one, copied from the start where that has one (unless `fresh_head`), else drawn with
        deviation 1/sqrt(hidden + 1) as Stiennon et al. 2020 do. Raises RunFailed when the folder does not fit.
        """
        if self.lora is None:
            role = self._add_copy(name, start)
        else:
            role = self._add_adapter(name, start)
        if head == "scalar":
            role.head = self._start_head(start, fresh_head)
        self.roles[name] = role
        return role

    def add_head(self, name: str, trunk: str) -> Role:
        """A new role `name` that is a scalar head of zeros on another role's hidden states."""
        head = nn.Parameter(torch.zeros(1, self.hidden_size, dtype=torch.float32, device=self.device))
        self.roles[name] = Role(name, self.roles[trunk].model, self.roles[trunk].adapter, head, trunk)
        return self.roles[name]

    def drop_role(self, name: str) -> None:
        """Forget a role and free its memory."""
        role = self.roles.pop(name)
        if role.adapter is not None and role.trunk is None:
            for module in _lora_layers(self.model):
                for store in (module.lora_A, module.lora_B, module.lora_dropout, module.scaling, module.r):
                    store.pop(role.adapter, None) if isinstance(store, dict) else store.pop(role.adapter)
            del self.model.peft_config[role.adapter]
        if role.adapter is None:
            del role
            gc.collect()  # layers that can be computed twice refer to themselves

    def parameters_of(self, name: str) -> dict[str, nn.Parameter]:
        """Trainable parameters of a role by a name that is stable across processes."""
        role = self.roles[name]
        if role.trunk is not None:
            found: dict[str, nn.Parameter] = {}
        elif role.adapter is None:
            found = {key: p for key, p in role.model.named_parameters() if role.model is not self.model}
        else:
            suffix = f".{role.adapter}.weight"
            found = {key: p for key, p in self.model.named_parameters() if key.endswith(suffix)}
        if role.head is not None:
            found["score.weight"] = role.head
        return dict(sorted(found.items()))

    def make_trainable(self, name: str) -> dict[str, nn.Parameter]:
        """Turn gradients on for one role's parameters and give them."""
        parameters = self.parameters_of(name)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        return parameters

    # Forward passes over packed rows

    def hidden(self, name: str, packed: TreeLayout, tokens: Tensor) -> Tensor:
        """Last hidden states [tokens, hidden] of a packed row of tokens [tokens]."""
        if not self.packs:
            return self._hidden_separately(name, packed, tokens)
        if self._needs_recomputing(len(tokens)):
            self.recomputed += 1
            with recomputing(lambda: self._seeing(name, packed)):
                return self._hidden(name, packed, tokens)
        return self._hidden(name, packed, tokens)

    def _needs_recomputing(self, tokens: int) -> bool:
        """Whether a group that cannot be cut is so long that its activations would take a quarter of all memory, or
        less where memory has run out before.
        """
        if not self.recomputes or not torch.is_grad_enabled():
            return False
        return tokens * self._bytes_per_token > total(self.device) / 4 / 2**self.halvings

    def _hidden(self, name: str, packed: TreeLayout, tokens: Tensor) -> Tensor:
        with self._seeing(name, packed) as model:
            out = backbone(model)(
                input_ids=tokens[None].to(self.device),
                position_ids=packed.position_ids.to(self.device),
                use_cache=False,
            )
        return out.last_hidden_state[0]

    @contextmanager
    def _seeing(self, name: str, packed: TreeLayout) -> Iterator[Any]:
        """The model as a role whose tokens see each other as in this row."""
        with attention.using(packed), self.using_role(name) as model:
            yield model

    def _hidden_separately(self, name: str, packed: TreeLayout, tokens: Tensor) -> Tensor:
        """The same for models whose attention cannot be told who sees whom: one sequence at a time."""
        parts: list[Tensor] = []
        with self.using_role(name) as model:
            for segment in packed.segments:
                prompt = tokens[segment.start : segment.start + segment.prompt]
                offset = segment.start + segment.prompt
                for index, length in enumerate(segment.responses or (0,)):
                    row = torch.cat([prompt, tokens[offset : offset + length]])[None].to(self.device)
                    states = backbone(model)(input_ids=row, use_cache=False).last_hidden_state[0]
                    parts.append(states if index == 0 else states[segment.prompt :])
                    offset += length
        return torch.cat(parts)

    def logprobs(
        self, name: str, hidden: Tensor, tokens: Tensor, *, temperature: float = 1.0, entropy: Entropy = False
    ) -> tuple[Tensor, Tensor | None]:
        """log P(token) and, if asked, entropy, in nats, [n] fp32, from the hidden states [n, hidden] before them."""
        model = self.roles[name].model
        config = model.config.get_text_config()
        head = model.get_output_embeddings()
        return lm_head.logprobs_from_hidden(
            hidden,
            head.weight,
            tokens.to(self.device),
            bias=getattr(head, "bias", None),
            temperature=temperature,
            softcap=getattr(config, "final_logit_softcapping", None),
            scale=_logit_scale(config),
            entropy=entropy,
        )

    def next_logits(self, name: str, hidden: Tensor) -> Tensor:
        """Scores of every next token, [n, vocabulary] fp32."""
        model = self.roles[name].model
        config = model.config.get_text_config()
        head = model.get_output_embeddings()
        logits = matmul.linear(hidden, head.weight, getattr(head, "bias", None)).float()
        if (scale := _logit_scale(config)) != 1.0:  # a product of all rows and the vocabulary, for nothing
            logits = logits * scale
        cap = getattr(config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    def scalars(self, name: str, hidden: Tensor) -> Tensor:
        """The scalar head's output, [n] fp32. A head on another role's trunk gives that trunk no gradient."""
        role = self.roles[name]
        if role.head is None:
            raise RunFailed(f"'{name}' has no scalar head: it is not a reward model")
        if role.trunk is None:
            return F.linear(hidden.float(), role.head)[:, 0]
        # Divided so that a step of Adam, which moves every weight alike, moves the value by far less than its range.
        return F.linear(hidden.detach().float() * self.hidden_size**-0.5, role.head)[:, 0]

    @contextmanager
    def using_role(self, name: str) -> Iterator[Any]:
        """The model as a role; the switch goes back afterwards."""
        role = self.roles[name]
        before, self.switch.adapter = self.switch.adapter, role.adapter
        try:
            yield role.model
        finally:
            self.switch.adapter = before

    @property
    def dtype_name(self) -> str:
        """As recipes have it: `float32`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def context(self) -> int:
        """Longest sequence the model was made for, in tokens."""
        config = self.model.config.get_text_config()
        rope = getattr(config, "rope_parameters", None) or {}
        if rope.get("rope_type") == "longrope":
            # Past this its positions are others for all that stands in the same row: results would depend on that.
            return int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
        return int(getattr(config, "max_position_embeddings", None) or 2**31)

    @property
    def token_budget(self) -> int:
        """Tokens in a packed row with gradients, so that a step's memory does not depend on the batch size: from the
        model's shape and the machine's memory. Checkpoints keep it: how rows are packed shows in the last bits of what
        is learned.
        """
        if self.activation_bytes is None:
            self.activation_bytes = activation_budget(self.device)
        least = LEAST_TOKENS if self.device.type == "cpu" else LEAST_ON_GPU
        whole = int(min(16384, max(least, self.activation_bytes // self._bytes_per_token)))
        return max(least // 8, whole >> self.halvings)

    @property
    def _bytes_per_token(self) -> int:
        """Of what a forward pass keeps for backward, estimated from the model's shape."""
        config = self.model.config.get_text_config()
        inner = largest(config, "intermediate_size") or 4 * self.hidden_size
        width = 24 * self.hidden_size + 8 * inner
        return int(config.num_hidden_layers * width * (4 if self.dtype == torch.float32 else 2))

    def halve_token_budget(self) -> bool:
        """Half as many tokens in a packed row from now on; False when there are no fewer."""
        before = self.token_budget
        self.halvings += 1
        return self.token_budget < before

    # Disk

    def save(self, name: str, folder: Path) -> None:
        """The role as a plain peft adapter, or a model folder with `lora: none`, tokenizer included; atomic."""
        role = self.roles[name]
        with replace_folder(folder) as new:
            if self.lora is None:
                self._save_model(role, new)
            else:
                self._save_adapter(role, new)
            self.tokenizer.save_pretrained(new)

    def _save_adapter(self, role: Role, folder: Path) -> None:
        from peft import get_peft_model_state_dict

        config = copy.deepcopy(self.model.peft_config[role.adapter])
        config.inference_mode = True
        config.base_model_name_or_path, config.revision = self.base_name, self.revision
        if not isinstance(config.target_modules, str):  # a pattern stays one
            config.target_modules = sorted(config.target_modules)
        self._peft.active_adapter = role.adapter  # peft looks it up, and the one that was added last may be gone
        state = get_peft_model_state_dict(self._peft, adapter_name=role.adapter, save_embedding_layers=False)
        state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        if role.head is not None:
            config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
            state["base_model.model.score.weight"] = role.head.detach().cpu().contiguous()
        save_file(dict(sorted(state.items())), folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(folder)

    def _save_model(self, role: Role, folder: Path) -> None:
        if role.head is None:
            role.model.save_pretrained(folder)
            return
        from transformers import AutoModelForSequenceClassification

        config = copy.deepcopy(role.model.config)
        config.num_labels = 1
        # Transformers reads the score before the first padding: an end of turn must not count as that.
        pad = self.tokenizer.pad_token_id
        config.pad_token_id = None if pad == self.tokenizer.eos_token_id else pad
        scorer = AutoModelForSequenceClassification.from_config(config, dtype=self.dtype)
        backbone(scorer).load_state_dict(backbone(role.model).state_dict())
        scorer.score.weight.data.copy_(role.head)
        scorer.save_pretrained(folder)

    # Inside

    def _add_adapter(self, name: str, start: str | Path | None) -> Role:
        from peft import LoraConfig

        assert self.lora is not None
        # A prefix, because names such as `train` are attributes of the modules that hold the adapters.
        adapter = "role_" + name.replace(".", "%")  # torch allows no dot there
        options = self.lora.model_dump()
        config = LoraConfig(task_type="CAUSAL_LM", **options)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            try:
                self._inject(adapter, config)
            except ValueError as error:
                raise RunFailed(f"model.lora: {error}") from error
        self._refuse_heads()
        self.roles[name] = Role(name, self.model, adapter)
        try:
            if isinstance(start, Path):
                self._load_adapter(adapter, start)
            elif start is not None and self.roles[start].adapter is not None:
                self._copy_adapter(self.roles[start].adapter, adapter)
        except BaseException:
            self.drop_role(name)
            raise
        finally:
            # peft turns gradients on for what it adds and off for the rest; one may be added while another is trained.
            for parameter in self.model.parameters():
                parameter.requires_grad_(False)
            for parameter in trained:
                parameter.requires_grad_(True)
        return self.roles[name]

    def _inject(self, adapter: str, config: Any) -> None:
        from peft import get_peft_model

        if not hasattr(self, "_peft"):
            self._peft = get_peft_model(self.model, config, adapter_name=adapter)
            self.model.peft_config = self._peft.peft_config
        else:
            # peft's own notion of the active adapter is not used, but it must name one that exists.
            self._peft.base_model.active_adapter = adapter
            self._peft.add_adapter(adapter, config)
        self._take_over()

    def _take_over(self) -> None:
        for module in _lora_layers(self.model):
            if not hasattr(module, "alignkit_switch"):
                module.alignkit_switch = self.switch
                module.forward = MethodType(_lora_forward, module)

    def _refuse_heads(self) -> None:
        from peft.tuners.lora import LoraLayer

        if isinstance(self.model.get_output_embeddings(), LoraLayer):
            raise RunFailed("model.lora.target_modules: the language head cannot have an adapter; leave it out")
        if isinstance(self.model.get_input_embeddings(), LoraLayer):
            raise RunFailed("model.lora.target_modules: tokens' embeddings cannot have an adapter; leave them out")

    def _check_fit(self, adapter: str, folder: Path) -> None:
        """An adapter trained at another scale or on another base would load and mean something else."""
        saved = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        own = self.model.peft_config[adapter]
        wanted = {"r": own.r, "lora_alpha": own.lora_alpha, "use_rslora": own.use_rslora, "use_dora": False}
        wanted |= {"rank_pattern": {}, "alpha_pattern": {}}
        for key, value in wanted.items():
            found = saved.get(key, value) or type(value)()
            if found != value:
                raise RunFailed(f"{folder}: its adapter has {key} {found}, the recipe's model.lora {value}")
        base = saved.get("base_model_name_or_path")
        if base != self.base_name:
            raise RunFailed(f"{folder} is an adapter for the base model '{base}', not for '{self.base_name}'")

    def _load_adapter(self, adapter: str, folder: Path) -> None:
        from peft import set_peft_model_state_dict

        self._check_fit(adapter, folder)
        state = load_file(folder / "adapter_model.safetensors")
        state.pop("base_model.model.score.weight", None)
        result = set_peft_model_state_dict(self._peft, state, adapter_name=adapter)
        missing = [key for key in result.missing_keys if f".{adapter}." in key]
        if missing or result.unexpected_keys:
            wrong = (missing or result.unexpected_keys)[0]
            raise RunFailed(f"{folder}: this adapter does not fit the recipe's model and lora settings (see {wrong})")

    def _copy_adapter(self, source: str | None, target: str) -> None:
        for module in _lora_layers(self.model):
            for store in (module.lora_A, module.lora_B):
                store[target].load_state_dict(store[source].state_dict())

    def _add_copy(self, name: str, start: str | Path | None) -> Role:
        if isinstance(start, Path):
            own = attention.NAME if self.packs else None
            # A reward model has a score head, which is read apart, in place of the language head, which is not used.
            spare = ("score.weight", "lm_head.weight") if has_score(start) else ()
            model, _ = load_base(self.spec, str(start), None, self.dtype, self.device, own, spare)
            if self.recomputes:
                prepare(model)
            return Role(name, model.eval(), None)
        model = copy.deepcopy(self.roles[start or BASE].model)
        return Role(name, model, None)

    def _start_head(self, start: str | Path | None, fresh: bool) -> nn.Parameter:
        if not fresh and isinstance(start, str) and (head := self.roles[start].head) is not None:
            return nn.Parameter(head.detach().clone(), requires_grad=False)
        if not fresh and isinstance(start, Path) and has_score(start):
            for file in sorted(start.glob("*.safetensors")):
                for key, value in load_file(file).items():
                    if key.endswith("score.weight"):
                        return nn.Parameter(value.float().to(self.device), requires_grad=False)
            raise RunFailed(f"{start} is a reward model without a score head")
        generator = torch.Generator().manual_seed(self.seed + 1)
        weight = torch.randn(1, self.hidden_size, generator=generator) / (self.hidden_size + 1) ** 0.5
        return nn.Parameter(weight.to(self.device), requires_grad=False)


def _lora_layers(model: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _lora_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The layer plus the switched adapter's low-rank part, in the layer's own dtype (weights are kept in fp32)."""
    base, adapter = self.base_layer, self.alignkit_switch.adapter
    plain = type(base) is nn.Linear  # quantised layers are subclasses with products of their own
    if adapter is None:
        return matmul.linear(x, base.weight, base.bias) if plain else base(x, *args, **kwargs)
    down, up, scale = self.lora_A[adapter].weight, self.lora_B[adapter].weight, self.scaling[adapter]
    if plain:
        return adapted(x, base.weight, base.bias, down, up, scale)
    result: Tensor = base(x, *args, **kwargs)
    return result + low_rank(x, down, up, scale)


def _logit_scale(config: Any) -> float:
    """What a model multiplies its logits by, under the names that models have for it."""
    return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)

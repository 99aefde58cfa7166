"""One base model with many roles: policy, reference, value and reward models are adapters and heads
on it.

A role is a name. It runs the base with its own LoRA adapter, so switching roles costs nothing. With
`lora: none` every role is a copy of the model instead.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignkit.errors import RunFailed
from alignkit.io.atomic import replace_folder
from alignkit.kernels import attention
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.backends import chosen
from alignkit.kernels.layout import Layout, setting
from alignkit.kernels.lm_head import HeadSpec, NextToken, TokenWants
from alignkit.models import checked_model
from alignkit.models.adapters import ACTIVE, Adapters, ModelOrigin
from alignkit.models.loading import (
    backbone,
    context_length_of,
    device_of,
    dtype_of,
    load_network,
    load_text,
    locate,
    padding_of,
    saved_head,
    saved_pad_token_id,
    scorer,
    with_padding,
)
from alignkit.models.memory import (
    RECOMPUTING,
    MemoryBudget,
    Passes,
    activation_bytes_per_token,
    make_recomputable,
)
from alignkit.models.saved import has_score
from alignkit.tokens.chat_templates import is_plain
from alignkit.tokens.check import check_chat
from alignkit.tokens.encoder import Encoder

if TYPE_CHECKING:
    from alignkit.contract.settings import ModelSpec

HeadKind = Literal["language", "scalar"]
UNMODIFIED = "base"  # the role without an adapter, or with the weights that were loaded


@dataclass
class Role:
    """A network that scores tokens.

    adapter: None runs the model without one. head: [1, hidden] fp32, if the role has a scalar head.
    backbone_role: the role whose hidden states the head reads, if this role is only a head. pad_token_id:
    the token that a reward model skips at the end of a response, as transformers skips padding.
    """

    model: Any
    adapter: str | None = None
    head: nn.Parameter | None = None
    backbone_role: str | None = None
    pad_token_id: int | None = None


@dataclass(frozen=True)
class Wants(TokenWants):
    """The numbers to compute for every response.

    logprobs: log-probability of each counted token, in nats, and what else of its distribution.
    values: the role whose scalar head predicts one before each counted token. scores: the scalar
    head of the role itself, at the last token that it reads.
    """

    logprobs: bool = True
    values: str | None = None
    scores: bool = False


LOGPROBS = Wants()


class SharedModel:
    """The base model with its tokenizer and roles."""

    autocast: torch.dtype | None = None  # dtype of products, if weights are stored in another one
    # Through the layers; other ones if other processes hold a part of the weights
    passes = Passes()

    def __init__(self, spec: ModelSpec, source: str, *, revision: str | None = None, seed: int = 0):
        """source: a transformers folder or hub id. seed: of new adapters and heads."""
        self.origin = ModelOrigin(spec.base, source, revision)
        self.spec, self.source, self.seed = spec, locate(source, revision), seed
        self.device = device_of(spec.device)
        self.dtype = dtype_of(spec, self.device)
        self.backend = chosen(self.device, self.dtype)
        self.backend.start()
        self.tokenizer, self.chat, self.end_ids = load_text(spec, self.source, revision)
        # Before the weights, which take minutes
        self.chat_facts = check_chat(self.encoder(), spec.base)
        if spec.chat_template is None and is_plain(self.tokenizer):
            self.chat_facts.append("it has no chat template, so the template 'plain' is used")
        self.roles: dict[str, Role] = {}
        self.recomputes = False  # whether the backward pass can compute layers a second time
        # Called during long passes; raises to end them
        self.should_stop: Callable[[], None] = lambda: None
        self._load_network()
        self.hidden_size = int(self._config.hidden_size)
        frozen = spec.lora is not None and self.dtype != torch.float32
        per_token = activation_bytes_per_token(self._config, self.dtype, frozen=frozen)
        self.memory = MemoryBudget(self.device, per_token)
        self.adapters: Adapters | None = None
        if spec.lora is not None:
            self.adapters = Adapters(self.model, spec.lora, self.origin, self.backend)
        if spec.mixed_precision != "none":  # after the checks, which compare in fp32
            self.autocast = torch.bfloat16

    def encoder(self) -> Encoder:
        """A new encoder with the model's tokenizer and chat template."""
        return Encoder(self.tokenizer, self.chat, self.end_ids)

    def _load_network(self) -> None:
        """Load the base for packs or, if it computes something else in them, with its own attention."""
        self.packs = True
        self.model = checked_model.small_copy(self.spec, self.source, self.origin.revision).to(
            self.device
        )
        self.roles[UNMODIFIED] = Role(self.model)
        self.unpacked_because = checked_model.why_not_packable(self, UNMODIFIED)
        self.packs = not self.unpacked_because
        self.attention_name = attention.NAME if self.packs else None
        self.model = load_network(
            self.spec,
            self.source,
            self.origin.revision,
            self.dtype,
            self.device,
            self.attention_name,
        )
        self.parameters = self.model.num_parameters()
        self.model.requires_grad_(False)
        self.model.eval()  # always: with dropout old and new log-probabilities would differ
        self.roles[UNMODIFIED] = Role(self.model)
        if self.packs:
            self.recomputes = make_recomputable(self.model)

    # Roles

    def add_role(
        self, name: str, *, start: str | Path | None = None, head: HeadKind = "language"
    ) -> Role:
        """Add a role that starts from another role, a saved adapter folder, or the base (None).

        head: "scalar" copies the start's head, if it has one. Otherwise the head is drawn with
        standard deviation 1 / sqrt(hidden + 1) (Stiennon et al. 2020), and a reward model skips the
        base's padding. Raises RunFailed if the folder does not fit.
        """
        if self.adapters is None:
            role = Role(self._copy_model(start))
        else:
            source = self.roles[start].adapter if isinstance(start, str) else start
            role = Role(self.model, self.adapters.add(name, self.seed, source))
        if head == "scalar":
            other = self.roles[start] if isinstance(start, str) else None
            if other is not None and other.head is not None:
                weight, role.pad_token_id = other.head.detach().clone(), other.pad_token_id
            elif isinstance(start, Path) and has_score(start):
                weight, role.pad_token_id = saved_head(start), saved_pad_token_id(start)
            else:
                # The head is drawn on the CPU, so that every device starts alike, and not from
                # `seed`, because adapters are drawn from it.
                generator = torch.Generator().manual_seed(self.seed + 1)
                weight = (
                    torch.randn(1, self.hidden_size, generator=generator)
                    / (self.hidden_size + 1) ** 0.5
                )
                role.pad_token_id = padding_of(self.model.config)
            role.head = nn.Parameter(weight.to(self.device), requires_grad=False)
        self.roles[name] = role
        return role

    def add_head(self, name: str, backbone_role: str) -> None:
        """Add a role that is only a scalar head, of zeros, on another role's hidden states."""
        head = nn.Parameter(
            torch.zeros(1, self.hidden_size, dtype=torch.float32, device=self.device)
        )
        shared = self.roles[backbone_role]
        self.roles[name] = Role(shared.model, shared.adapter, head, backbone_role)

    def drop_role(self, name: str) -> None:
        """Remove a role and free its memory."""
        role = self.roles.pop(name)
        if role.adapter is None:
            del role
            gc.collect()  # recomputable layers hold references to themselves
        elif role.backbone_role is None and self.adapters is not None:
            # A mere head shares its adapter.
            self.adapters.drop(role.adapter)

    def backbone_role(self, name: str) -> str:
        """The role that computes a role's hidden states: itself, unless the role is only a head."""
        return self.roles[name].backbone_role or name

    def parameters_of(self, name: str) -> dict[str, nn.Parameter]:
        """A role's own parameters, by names that are stable across processes."""
        role = self.roles[name]
        parameters: dict[str, nn.Parameter] = {}
        if role.backbone_role is None:
            if role.adapter is not None and self.adapters is not None:
                parameters = self.adapters.parameters(role.adapter)
            elif role.model is not self.model:
                # With `lora: none` a role owns its copy; the base never learns.
                parameters = dict(role.model.named_parameters())
        if role.head is not None:
            parameters["score.weight"] = role.head
        # A fixed order: norms over all parameters round the same way after a resume.
        return dict(sorted(parameters.items()))

    def make_trainable(self, name: str) -> dict[str, nn.Parameter]:
        """Turn on gradients of a role's own parameters and return them."""
        for parameter in self.parameters_of(name).values():
            parameter.requires_grad_(True)
        self.passes.learns(self.backbone_role(name))
        return self.parameters_of(name)

    @contextmanager
    def using_role(self, name: str, layout: Layout | None = None) -> Iterator[Any]:
        """Yield the model with the role's adapter active. layout: what attention follows, in a
        model that packs.
        """
        role = self.roles[name]
        following = attention.using(layout) if layout else nullcontext()
        with self.multiplying(), setting(ACTIVE, role.adapter), following:
            yield role.model

    def multiplying(self) -> AbstractContextManager[Any]:
        """Compute products inside in the dtype that `model.mixed_precision` names.

        Converted weights are kept until the outermost of these contexts ends.
        """
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast)

    def _copy_model(self, start: str | Path | None) -> Any:
        if not isinstance(start, Path):
            return copy.deepcopy(self.roles[start or UNMODIFIED].model)
        # A reward model's folder has a score head, loaded separately, and lacks the language head,
        # which it never uses.
        spare = ("score.weight",) if has_score(start) else ()
        model = load_network(
            self.spec, str(start), None, self.dtype, self.device, self.attention_name, spare
        )
        if self.recomputes:
            make_recomputable(model)
        return model.eval()

    # Forward passes

    def hidden(self, name: str, layout: TreeLayout, tokens: Tensor) -> Tensor:
        """Compute a role's last hidden states [tokens, hidden] of a pack of tokens [tokens]."""
        if not self.packs:
            return self._hidden_separately(name, layout, tokens)

        def run() -> Tensor:
            restore = (lambda: self.using_role(name, layout)) if recomputes else None
            with setting(RECOMPUTING, restore), self.using_role(name, layout) as model:
                positions = layout.position_ids.to(self.device, non_blocking=True)
                return self.passes.states(model, tokens[None].to(self.device), positions)[0]

        always = self.spec.activation_checkpointing
        recomputes = (
            self.recomputes
            and torch.is_grad_enabled()
            and (always or self.memory.must_recompute(len(tokens)))
        )
        return self.passes.forward(name, run)

    def _hidden_separately(self, name: str, layout: TreeLayout, tokens: Tensor) -> Tensor:
        """Compute the same with the model's own attention: each response by itself, behind its
        prompt.
        """
        parts: list[Tensor] = []
        with self.using_role(name) as model:
            for span in layout.spans:
                prompt = tokens[span.start : span.start + span.prompt]
                start = span.start + span.prompt
                # A prompt by itself is one sequence
                for index, length in enumerate(span.responses or (0,)):
                    ids = torch.cat([prompt, tokens[start : start + length]])[None].to(self.device)
                    states = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
                    # The prompt's states appear once, as in a pack.
                    parts.append(states if index == 0 else states[span.prompt :])
                    start += length
        return torch.cat(parts)

    def logprobs(
        self, name: str, hidden: Tensor, tokens: Tensor, wants: TokenWants = LOGPROBS
    ) -> NextToken:
        """See `Backend.next_token`: fp32, of tokens [n] and the states before them, [n, hidden]."""
        with self.multiplying():
            return self.backend.next_token(
                hidden, tokens.to(self.device), self._head(name, wants.temperature), wants
            )

    def next_logits(self, name: str, hidden: Tensor) -> Tensor:
        """Compute the logits of every next token [n, vocabulary], fp32, from hidden states [n,
        hidden].
        """
        head = self._head(name)
        with self.multiplying():
            logits = self.backend.linear(hidden, head.weight, head.bias).float()
        if head.scale != 1.0:  # multiplying by 1 would still read and write the whole table
            logits = logits * head.scale
        return torch.tanh(logits / head.softcap) * head.softcap if head.softcap else logits

    def _head(self, name: str, temperature: float = 1.0) -> HeadSpec:
        layer, config = self.roles[name].model.get_output_embeddings(), self._config
        # RecurrentGemma calls it otherwise.
        cap = getattr(config, "final_logit_softcapping", None) or getattr(
            config, "logits_soft_cap", None
        )
        # The factor of the logits. Some models specify it as a divisor.
        scale = (getattr(config, "logit_scale", None) or 1.0) / (
            getattr(config, "logits_scaling", None) or 1.0
        )
        return HeadSpec(layer.weight, getattr(layer, "bias", None), temperature, cap, scale)

    def scalars(self, name: str, hidden: Tensor) -> Tensor:
        """Apply a role's scalar head to hidden states [n, hidden]: [n] fp32.

        A head on another role's backbone gives that backbone no gradient.
        """
        role = self.roles[name]
        if role.head is None:
            raise RunFailed(
                f"'{name.replace('|', '/')}' is not a reward model: it has no scalar head"
            )
        hidden = hidden.float()
        if role.backbone_role is not None:
            # Adam changes every weight by about the same amount. The factor keeps a step far below
            # the range of values.
            hidden = hidden.detach() * self.hidden_size**-0.5
        return F.linear(hidden, role.head)[:, 0]

    # Facts about the base

    @property
    def _config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def dtype_name(self) -> str:
        """The dtype as recipes spell it, such as `float32`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def context_length(self) -> int:
        """Longest sequence the base was made for, in tokens."""
        return context_length_of(self._config)

    @property
    def token_budget(self) -> int:
        """Most tokens of a pack with gradients; see `MemoryBudget`."""
        return self.memory.tokens

    @property
    def inference_budget(self) -> int:
        """Most tokens of a pack without gradients, for which no activations are stored."""
        return 4 * self.token_budget

    # Disk

    def save(self, name: str, folder: Path, network: Any = None) -> None:
        """Write a role atomically, with the tokenizer: a peft adapter, or a model folder of
        `network` or its own.
        """
        role, tokenizer = self.roles[name], self.tokenizer
        network = network or role.model
        if role.head is not None:
            tokenizer = with_padding(tokenizer, self.model.config)
        with replace_folder(folder) as new:
            if role.adapter is not None and self.adapters is not None:
                self.adapters.save(role.adapter, new, role.head, role.pad_token_id)
            elif role.head is None:
                network.save_pretrained(new)
            else:
                # Transformers scores the last token but padding, and pads batches with the
                # tokenizer's own padding.
                padding = tokenizer.pad_token_id if role.pad_token_id is None else role.pad_token_id
                scorer(network, role.head, padding).save_pretrained(new)
            tokenizer.save_pretrained(new)

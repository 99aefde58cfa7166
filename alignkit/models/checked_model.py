"""Checks on two dozen tokens whether an architecture computes what alignkit expects.

Transformers has hundreds of them. Without these checks, an unusual one would train on wrong
numbers, without an error. They look at a small copy of the model with random weights in fp32: two
correct ways to compute the same differ by rounding only there, whatever precision, quantization or
experts the model itself has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignkit.errors import RunFailed
from alignkit.kernels import attention
from alignkit.kernels.attention import TreeLayout, UnsupportedAttention
from alignkit.kernels.layout import GroupSpan
from alignkit.models.loading import backbone, load_config
from alignkit.models.memory import last_states
from alignkit.models.saved import reading

if TYPE_CHECKING:
    from alignkit.contract.settings import ModelSpec

# Two groups: a prompt of 5 tokens with responses of 6 and 3, and a prompt of 4 with a response of
# 6.
SPANS = [GroupSpan(0, 5, (6, 3)), GroupSpan(14, 4, (6,))]
LENGTH = 24
TOLERANCE = 1e-4  # relative, for states: correct models differ by 1e-6
VOCABULARY = 256
NARROW = 16  # width of what is between attention
# Parts of the names of its widths
BETWEEN = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "d_ff")
# Other sizes; windows and the like are so small that two dozen tokens show what they do.
SIZES = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "sliding_window": 4,
    "attention_chunk_size": 4,
    "floor_scale": 2,
    "num_kv_shared_layers": 1,
    "pad_token_id": 0,
}
# What transformers raises for a model that does not work as others do.
_ODD = (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, LookupError)


def small_copy(spec: ModelSpec, source: str, revision: str | None) -> Any:
    """A network of the same class and attention with few layers, few tokens, and random weights in
    fp32.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(source, revision, spec.trust_remote_code)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with reading(f"{spec.base}: its architecture", "please report this"):
            _shrink(config.get_text_config())
            network = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=spec.trust_remote_code
            )
        for weight in network.parameters():
            if weight.ndim > 1:  # so large that every token matters, however small the model is
                torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    return network.requires_grad_(False).eval()


def _shrink(config: Any) -> None:
    """Leave of a model's sizes those of its attention, and of its layers the first that are of
    every kind.
    """
    layers, few, sizes = config.num_hidden_layers, 2, dict(vars(config))
    of_layers = {
        name
        for name, value in sizes.items()
        if isinstance(value, list | tuple) and len(value) == layers
    }
    for value in map(sizes.__getitem__, of_layers):
        if len(set(value)) < layers:
            few = max(few, 1 + max(map(value.index, value)))
    if sizes.get("num_kv_shared_layers"):  # the last ones use the keys and values of others
        few += 1
    # Some configurations call their layers otherwise, and translate
    config.num_hidden_layers = few = min(layers, few)
    for name in of_layers:
        setattr(config, name, sizes[name][:few])
    for name, value in vars(config).copy().items():
        narrow = any(part in name for part in BETWEEN)
        if narrow and isinstance(value, list | tuple):
            setattr(config, name, [NARROW] * len(value))
        elif isinstance(value, int) and value and (narrow or name in SIZES):
            setattr(config, name, SIZES.get(name, NARROW))


@torch.no_grad()
def why_not_packable(model: Any, role: str) -> str:
    """Return why a small copy, a `SharedModel`'s network with a role, cannot use packs;
    empty if it can.

    Raises RunFailed if the logits are not those of `next_logits`, which replaces the network's
    head.
    """
    network, ids = model.model, torch.arange(1, LENGTH + 1) * (VOCABULARY // (LENGTH + 1))
    # SPANS' three responses, each behind its prompt, which the model's own attention reads one by
    # one.
    sequences = [ids[:11], torch.cat([ids[:5], ids[11:14]]), ids[14:]]
    native = [
        backbone(network)(input_ids=each[None].to(model.device)).last_hidden_state[0]
        for each in sequences
    ]
    logits = network(input_ids=sequences[0][None].to(model.device)).logits[0]
    if _distance(model.next_logits(role, native[0]), logits):
        raise RunFailed(
            f"{type(network).__name__} computes its logits in a way that alignkit does not "
            "support; please report this"
        )
    try:
        network.set_attn_implementation(attention.NAME)
        packed = model.hidden(role, TreeLayout(SPANS), ids)
        # The first two share a prompt.
        if distance := _distance(packed, torch.cat([native[0], native[1][5:], native[2]])):
            return f"packed attention differs from the model's own by {distance:.2g}"
        decoded = _decoded(model, role, [sequences[0], sequences[2]])
        if distance := _distance(decoded, torch.stack([native[0][-1], native[2][-1]])):
            return f"decoding token by token differs from the model's own reading by {distance:.2g}"
    except UnsupportedAttention as error:
        return str(error)
    except _ODD as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _decoded(model: Any, role: str, sequences: Sequence[Tensor]) -> Tensor:
    """The states of each one's last token, computed the way sampling does, [sequences, hidden]."""
    first, second = (len(each) - 1 for each in sequences)
    prefill = TreeLayout([GroupSpan(0, first, ()), GroupSpan(first, second, ())], store_kv=True)
    model.hidden(role, prefill, torch.cat([each[:-1] for each in sequences]))
    decoding = model.backend.decoding()
    decoding.update_slots([], 1, prefill, [0, 1])
    ids = torch.stack([each[-1:] for each in sequences]).to(model.device)
    positions = torch.tensor([[first], [second]], device=model.device)
    with model.using_role(role, decoding) as used:
        return last_states(used, ids, positions)[:, 0]


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest relative distance of a token's states, 0.0 if it is only rounding."""
    distance = ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(1e-9)).max()
    return 0.0 if distance <= TOLERANCE else float(distance)  # a nan is a difference

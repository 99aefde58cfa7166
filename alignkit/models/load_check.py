"""Whether a model computes as alignkit takes it to: tried once when it is loaded, on two dozen tokens.

Transformers has hundreds of models. One that is not as the others would otherwise train on wrong numbers in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignkit.errors import RunFailed
from alignkit.kernels import attention, tiled_attention
from alignkit.kernels.attention import Decoding, GroupSpan, TreeLayout
from alignkit.models.loading import backbone, largest

if TYPE_CHECKING:
    from alignkit.models.shared_model import SharedModel


@torch.no_grad()
def why_not_packable(policy: SharedModel, base: str) -> str:
    """Why packed rows cannot be used with the base, the role `base`; empty where they can.

    A packed row is held against separate rows by the same attention code, tightly, and these against the model's
    own attention, in bf16 loosely: two correct kernels differ there.
    """
    model, config = policy.model, policy.model.config.get_text_config()
    # From all over: the first are often special ones, whose huge activations make more of rounding.
    ids = torch.linspace(config.vocab_size // 4, config.vocab_size - 1, 24).long()
    parts = [
        TreeLayout([GroupSpan(0, 5, (6,))]),
        TreeLayout([GroupSpan(0, 5, (3,))]),
        TreeLayout([GroupSpan(0, 4, (6,))]),
    ]
    rows = [ids[:11], torch.cat([ids[:5], ids[11:14]]), ids[14:]]
    fault = ""
    try:
        tree = TreeLayout([GroupSpan(0, 5, (6, 3)), GroupSpan(14, 4, (6,))], keep=True)
        together = policy.hidden(base, tree, ids)
        if len(tree.kept) < config.num_hidden_layers:
            return f"only {len(tree.kept)} of its layers use transformers' attention interface"
        if getattr(config, "attn_temperature_tuning", None):  # by thousands of tokens: not seen in two dozen
            return "it scales queries by their place in the row"
        if (window := _window(config)) and window < policy.context and tree.windows == {None}:
            return f"its window of {window} tokens is in a mask of its own, which packed rows do without"
        tiled = policy.hidden(base, TreeLayout(tree.segments, costs=tiled_attention.NOTHING), ids)
        decoded = _decoded(policy, base, [rows[0], rows[2]])
        alone = [policy.hidden(base, part, row) for part, row in zip(parts, rows, strict=True)]
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, LookupError) as raised:
        fault = f"{type(raised).__name__}: {raised}"
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    if fault:
        return fault
    theirs = [backbone(model)(input_ids=row[None].to(policy.device)).last_hidden_state[0] for row in rows]
    full = policy.dtype == torch.float32
    ours = torch.cat([alone[0], alone[1][5:], alone[2]])
    own = torch.cat([theirs[0], theirs[1][5:], theirs[2]])
    for other, found, tolerance in (
        ("separate rows", ours, 1e-3 if full else 0.05),
        ("itself in tiles", tiled, 1e-3 if full else 0.3),
        ("its own", own, 1e-3 if full else 0.5),
    ):
        if not (error := _difference(together, found)) <= tolerance:
            return f"packed attention differs from {other} by {error:.2g}"
    if not (error := _difference(decoded, torch.stack([alone[0][-1], alone[2][-1]]))) <= (1e-3 if full else 0.5):
        return f"decoding token by token differs from reading by {error:.2g}"
    return ""


@torch.no_grad()
def check_head(policy: SharedModel, base: str) -> None:
    """The language head is applied outside the model: raises RunFailed where the model does more there."""
    model = policy.model
    row = (torch.arange(1, 9, device=policy.device) % model.config.get_text_config().vocab_size)[None]
    with attention.using(TreeLayout([GroupSpan(0, 8, ())])):
        theirs = model(input_ids=row).logits[0].float()
        ours = policy.next_logits(base, backbone(model)(input_ids=row).last_hidden_state[0])
    if (ours - theirs).norm() > (1e-3 if policy.dtype == torch.float32 else 0.05) * theirs.norm():
        kind = type(model).__name__
        raise RunFailed(f"{kind} computes its logits in a way that alignkit does not know; please report it")


def _decoded(policy: SharedModel, base: str, rows: Sequence[Tensor]) -> Tensor:
    """Hidden states of each row's last token as sampling computes them, [rows, hidden]."""
    starts = [sum(len(row) - 1 for row in rows[:number]) for number in range(len(rows))]
    prefill = TreeLayout([GroupSpan(s, len(row) - 1, ()) for s, row in zip(starts, rows, strict=True)], keep=True)
    policy.hidden(base, prefill, torch.cat([row[:-1] for row in rows]))
    decoding = Decoding()
    decoding.change_rows([], 1, prefill, range(len(rows)))
    positions = torch.tensor([[len(row) - 1] for row in rows], device=policy.device)
    last = torch.stack([row[-1:] for row in rows]).to(policy.device)
    with attention.using(decoding), policy.using_role(base) as model:
        states: Tensor = backbone(model)(input_ids=last, position_ids=positions, use_cache=False).last_hidden_state
    return states[:, 0]


def _difference(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).float().norm() / wanted.float().norm())


def _window(config: Any) -> int | None:
    """The window or chunk of tokens that some of a model's layers see at most."""
    kinds = getattr(config, "layer_types", None)
    if kinds and not {"sliding_attention", "chunked_attention"} & set(kinds):
        return None
    return largest(config, "sliding_window") or largest(config, "attention_chunk_size")

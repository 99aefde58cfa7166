"""KTO: learn from thumbs up and down, without pairs (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8).

The reference point z0 estimates KL(pi || pi_ref) from responses to *other* prompts. So each response is also put
behind another prompt, where it counts for z0 alone: the mean over the whole batch, without a gradient.
Differs from the paper: the other prompt is any of the data, not a neighbour in the batch; pairs may serve as thumbs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from alignkit import (
    Algorithm,
    Batch,
    DataError,
    Field,
    Group,
    Loss,
    Needs,
    Outputs,
    Register,
    Response,
    SelectContext,
    StageDefaults,
    Term,
    hookimpl,
    per_group,
    per_response,
)
from alignkit import functional as F
from alignkit.data.group import with_labels

if TYPE_CHECKING:
    from torch import Tensor


class KTO(Algorithm):
    """Raise desirable responses above z0 and lower undesirable ones below it."""

    needs = Needs(reference_logprobs=True)
    defaults = StageDefaults(learning_rate=5e-5, epochs=1, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.1)

    class Options(Algorithm.Options):
        beta: float = Field(0.1, gt=0, description="pull towards the reference, per nat")
        desirable_weight: float = Field(1.0, gt=0, description="weight of a thumbs up, the paper's lambda_D")
        undesirable_weight: float = Field(1.0, gt=0, description="weight of a thumbs down, the paper's lambda_U")

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """Labelled responses, and beside them as many of other prompts, whose label is None.

        Raises DataError where there is no label, one class of labels, or one prompt only.
        """
        thumbs = [with_labels(group) for group in groups]
        rated, labels = [group for group in thumbs if group.responses], _labels_of(thumbs)
        mixed = _with_strangers(rated, context.rng)
        strangers = sum(response.label is None for group in mixed for response in group.responses)
        if not context.validation:
            _check(labels, len(groups))
            if not strangers:
                raise DataError("kto needs two different prompts at least: z0 is that of responses to other prompts")
            context.log(desirable=labels[True], undesirable=labels[False])
            unlabeled = [g for g, t in zip(groups, thumbs, strict=True) if len(t.responses) < len(g.responses)]
            context.left_out("without_label", sum(len(g.responses) for g in groups) - labels.total(), unlabeled)
            context.log(without_other_prompt=labels.total() - strangers)
        return mixed

    def check_data(self, groups: Sequence[Group]) -> None:
        """What did not fit may have been all of one class."""
        _check(_labels_of(groups), len(groups))

    def before_step(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        """z0 in nats; a batch without a response to another prompt keeps the one before."""
        log_ratios = _log_ratios(batch, out)[_labels(batch).isnan()]
        return {"z0": float(F.kto_reference_point(log_ratios))} if len(log_ratios) else {}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        o, log_ratios = self.options, _log_ratios(batch, out)
        desirable = _labels(batch) == 1
        losses = F.kto_loss(
            log_ratios, self._z0(log_ratios), desirable, o.beta, o.desirable_weight, o.undesirable_weight
        )
        return Loss(kto=per_response(losses))

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """A mean over the labelled responses."""
        return {"kto": (batch.mask.any(dim=1) & ~_labels(batch).isnan()).float()}

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        rewards, labels = self.options.beta * _log_ratios(batch, out), _labels(batch)
        return {
            "implicit_reward/desirable": per_response(rewards.masked_fill(labels != 1, float("nan"))),
            "implicit_reward/undesirable": per_response(rewards.masked_fill(labels != 0, float("nan"))),
            "z0": per_group(self._z0(rewards).expand(len(batch.groups))),
        }

    def _z0(self, like: Tensor) -> Tensor:
        return like.new_tensor(self.state.get("z0", 0.0))


def _log_ratios(batch: Batch, out: Outputs) -> Tensor:
    """log pi/pi_ref of responses: [R] nats."""
    return F.sum_tokens(out.logprobs - batch.reference_logprobs, batch.mask)


def _labels(batch: Batch) -> Tensor:
    """1 desirable, 0 undesirable, nan where it stands behind another prompt: [R]."""
    labels = [response.label for group in batch.groups for response in group.responses]
    numbers = [float("nan") if label is None else float(label) for label in labels]
    return batch.pairs.p.new_tensor(numbers)


def _labels_of(groups: Sequence[Group]) -> Counter[bool | None]:
    """How many responses have which label; those behind another prompt have none."""
    return Counter(r.label for group in groups for r in group.responses if r.label is not None)


def _check(labels: Mapping[bool | None, int], rows: int) -> None:
    if labels[True] and labels[False]:
        return
    found = f"all {labels[True]} are desirable" if labels[True] else f"all {labels[False]} are undesirable"
    raise DataError(
        f"kto needs desirable and undesirable responses: of the labels in {rows} rows "
        f"{found if labels else 'there is none'}; give `label: true` and `label: false` with prompt and completion, "
        "or pairs"
    )


def _with_strangers(groups: Sequence[Group], rng: Any) -> list[Group]:
    """Each group with as many responses of other prompts; over all groups every response is a stranger once.

    Where one prompt has more than half of the responses, some of its own find no other prompt and no stranger.
    """
    places: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for index, group in enumerate(groups):
        places.setdefault(tuple((turn["role"], turn["content"]) for turn in group.prompt), []).append(index)
    alike = list(places.values())
    # Responses of one prompt stand side by side, so those of another are as far away as the longest such row.
    order = [index for at in rng.permutation(len(alike)) for index in alike[at]]
    flat = [(index, response) for index in order for response in groups[index].responses]
    step = max((sum(len(groups[index].responses) for index in same) for same in alike), default=0)
    strangers: list[list[Response]] = [[] for _ in groups]
    for at, (index, _) in enumerate(flat):
        other, response = flat[at - step]
        if groups[other].prompt != groups[index].prompt:
            strangers[index].append(replace(response, label=None))
    return [replace(group, responses=(*group.responses, *new)) for group, new in zip(groups, strangers, strict=True)]


@hookimpl
def register_algorithms(register: Register) -> None:
    register("kto", KTO, summary="learn from thumbs up and down, without pairs or a reward model")

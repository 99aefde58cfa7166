"""KTO: learn from thumbs up and down, without pairs (Ethayarajh et al. 2024, arXiv:2402.01306, eq.
8).

The reference point z0 estimates KL(pi || pi_ref) from mismatched responses, which were written to
other prompts. So every response also enters a second group, under another prompt and without a
label, where it counts for z0 only. z0 is averaged over the whole batch and has no gradient. A label
belongs to the last answer of a conversation; earlier turns are context. Differs from the paper: the
other prompt may be any of the data set, not only a neighbor in the batch, and pairs can serve as
labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    Response,
    SelectContext,
    Term,
    per_group,
    per_response,
)
from alignkit import functional as F
from alignkit.data.group import group_id, responses_of
from alignkit_plugins.algorithms.dpo import Pairwise
from alignkit_plugins.text.rows import with_labels

if TYPE_CHECKING:
    from torch import Tensor


class KTO(Algorithm):
    """Raise the rewards of desirable responses above z0, and lower those of undesirable ones below
    it.
    """

    needs = Needs(reference_logprobs=True)
    defaults = Pairwise.defaults

    class Options(Algorithm.Options):
        beta: float = Field(
            0.1,
            "scale of the implicit reward: higher keeps the policy closer to the reference",
            gt=0,
        )
        desirable_weight: float = Field(
            1.0, "weight of desirable responses: the paper's lambda_D", gt=0
        )
        undesirable_weight: float = Field(
            1.0, "weight of undesirable responses: the paper's lambda_U", gt=0
        )

    def trained_turns(self) -> str:
        return "last"

    def __init__(self, options: Any):
        super().__init__(options)
        self._log: Callable[..., None] = lambda **facts: None

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """Labeled responses, plus as many mismatched ones, whose label is None.

        Raises DataError if there are no labels, labels of one kind only, or fewer than two prompts.
        """
        labeled, incomplete, total = [], [], 0
        for group in groups:
            kept = with_labels(group)
            # A prompt without a response counts as one without a label.
            total += max(1, len(group.responses))
            if kept.responses:
                labeled.append(kept)
            if len(kept.responses) < max(1, len(group.responses)):
                incomplete.append(group)
        mixed = _with_mismatched(labeled, context.rng)
        if context.validation:
            return mixed
        count = len(responses_of(labeled))
        mismatched = len(responses_of(mixed)) - count
        self._log = context.log
        self._check_labels(labeled, len(groups))
        if not mismatched:
            raise DataError(
                "kto needs at least two different prompts, to estimate z0 from mismatched responses"
            )
        context.left_out("without_label", total - count, incomplete)
        context.log(without_other_prompt=count - mismatched)
        return mixed

    def check_data(self, groups: Sequence[Group]) -> None:
        """Check again: the rows that did not fit may have held all labels of one kind."""
        self._check_labels(groups, len(groups))

    def _check_labels(self, groups: Sequence[Group], rows: int) -> None:
        """Log the numbers of labels. Raises DataError if there are none of a kind."""
        labels = [response.label for response in responses_of(groups)]
        desirable, undesirable = labels.count(True), labels.count(False)
        if desirable and undesirable:
            self._log(desirable=desirable, undesirable=undesirable)
            return
        fault = f"none of {rows} rows has a label"
        if desirable:
            fault = f"all {desirable} labels of {rows} rows are desirable, from which sft learns"
        if undesirable:
            fault = f"all {undesirable} labels of {rows} rows are undesirable"
        raise DataError(
            f"kto needs desirable and undesirable responses, but {fault}; "
            "add rows with `label: true` and rows with `label: false`, or use pairs"
        )

    def before_step(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        """z0 in nats. A batch without mismatched responses keeps the previous one."""
        # The mismatched responses of the whole global batch: a mean over each micro-batch would
        # depend on the cuts.
        mismatched = _labels(batch).isnan()
        log_ratios = _log_ratios(batch, out)[mismatched]
        if not len(log_ratios):
            return {}
        weights = batch.weights("group")[batch.group_index][mismatched]
        # Scaled to a mean of 1, so that the mean below is the weighted one.
        return {"z0": float(F.kto_reference_point(log_ratios * (weights / weights.mean())))}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        o, log_ratios = self.options, _log_ratios(batch, out)
        # False for NaN: mismatched responses get some loss, which `term_weights` gives a weight of
        # 0.
        desirable = _labels(batch) == 1
        weights = o.desirable_weight, o.undesirable_weight
        losses = F.kto_loss(log_ratios, self._z0(log_ratios), desirable, o.beta, *weights)
        return Loss(kto=per_response(losses))

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """The loss is averaged over the labeled responses."""
        return {"kto": batch.weights("response") * ~_labels(batch).isnan()}

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Rewards of desirable and undesirable responses, under TRL's names."""
        rewards, labels = self.options.beta * _log_ratios(batch, out), _labels(batch)
        return {
            # `!=` is true for NaN, so mismatched responses are left out of both.
            "rewards/chosen": per_response(rewards.masked_fill(labels != 1, float("nan"))),
            "rewards/rejected": per_response(rewards.masked_fill(labels != 0, float("nan"))),
            "z0": per_group(self._z0(rewards).expand(len(batch.groups))),
        }

    def _z0(self, like: Tensor) -> Tensor:
        # A number without a graph: no gradient reaches the policy through z0.
        return like.new_tensor(self.state.get("z0", 0.0))


def _log_ratios(batch: Batch, out: Outputs) -> Tensor:
    """log pi/pi_ref of the responses in nats: [R]."""
    return F.sum_tokens(out.logprobs - batch.reference_logprobs, batch.mask)


def _labels(batch: Batch) -> Tensor:
    """1 for desirable, 0 for undesirable and NaN for mismatched responses: [R]."""
    numbers = {True: 1.0, False: 0.0, None: float("nan")}
    labels = [numbers[response.label] for response in responses_of(batch.groups)]
    return batch.pairs.p.new_tensor(labels)


def _with_mismatched(groups: Sequence[Group], rng: Any) -> list[Group]:
    """Add responses of other prompts to each group, as many as its own. Each response is added to
    one group.

    If one prompt has more than half of the responses, some of them find no other prompt and are
    left out.
    """
    indices_of: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        prompt = group_id(group.prompt, (), group.tools)
        indices_of.setdefault(prompt, []).append(index)
    prompts = list(indices_of)
    # Responses to one prompt are neighbors in this order. A shift by the longest such run reaches
    # another prompt.
    order: list[tuple[str, int, Response]] = []
    shift = 0
    for number in rng.permutation(len(prompts)):
        prompt, before = prompts[number], len(order)
        for index in indices_of[prompt]:
            order += [(prompt, index, response) for response in groups[index].responses]
        shift = max(shift, len(order) - before)
    mixed = list(groups)
    for place, (prompt, index, _) in enumerate(order):
        # A negative place counts from the end, which closes the circle.
        other, _, response = order[place - shift]
        if other != prompt:
            responses = (*mixed[index].responses, replace(response, label=None))
            mixed[index] = replace(mixed[index], responses=responses)
    return mixed

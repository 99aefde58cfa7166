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

from collections import Counter, defaultdict
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
    StageDefaults,
    Term,
    per_group,
    per_response,
)
from alignkit import functional as F
from alignkit.data.group import group_id
from alignkit_plugins.formats.rows import with_labels

if TYPE_CHECKING:
    from torch import Tensor


class KTO(Algorithm):
    """Raise the rewards of desirable responses above z0, and lower those of undesirable ones below
    it.
    """

    needs = Needs(reference_logprobs=True)
    defaults = StageDefaults(
        learning_rate=5e-5, epochs=1, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.1
    )

    class Options(Algorithm.Options):
        beta: float = Field(
            0.1,
            gt=0,
            description=(
                "scale of the implicit reward: higher keeps the policy closer to the reference"
            ),
        )
        desirable_weight: float = Field(
            1.0, gt=0, description="weight of desirable responses: the paper's lambda_D"
        )
        undesirable_weight: float = Field(
            1.0, gt=0, description="weight of undesirable responses: the paper's lambda_U"
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
        labeled = [with_labels(group) for group in groups]
        mixed = _with_mismatched([group for group in labeled if group.responses], context.rng)
        if not context.validation:
            labels = _count_labels(labeled)
            _check_labels(labels, len(groups))
            self._report(groups, labeled, mixed, labels, context)
            self._log = context.log
        return mixed

    def _report(
        self,
        groups: Sequence[Group],
        labeled: Sequence[Group],
        mixed: Sequence[Group],
        labels: Counter[bool | None],
        context: SelectContext,
    ) -> None:
        """Log the numbers of labels; raise DataError if no response could be mismatched."""
        mismatched = sum(response.label is None for group in mixed for response in group.responses)
        if not mismatched:
            raise DataError(
                "kto needs at least two different prompts, to estimate z0 from mismatched responses"
            )
        context.log(desirable=labels[True], undesirable=labels[False])
        incomplete = [
            g
            for g, kept in zip(groups, labeled, strict=True)
            if len(kept.responses) < max(1, len(g.responses))
        ]
        # A prompt without a response is a row without a label, too.
        context.left_out(
            "without_label",
            sum(max(1, len(g.responses)) for g in groups) - labels.total(),
            incomplete,
        )
        context.log(without_other_prompt=labels.total() - mismatched)

    def check_data(self, groups: Sequence[Group]) -> None:
        """Check again: the rows that did not fit may have held all labels of one kind. Log the
        labels that remain.
        """
        labels = _count_labels(groups)
        _check_labels(labels, len(groups))
        self._log(desirable=labels[True], undesirable=labels[False])

    def before_step(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        """z0 in nats. A batch without mismatched responses keeps the previous one."""
        # The mismatched responses of the whole global batch: a mean over each micro-batch would
        # depend on the cuts.
        log_ratios = _log_ratios(batch, out)[_labels(batch).isnan()]
        return {"z0": float(F.kto_reference_point(log_ratios))} if len(log_ratios) else {}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        o, log_ratios = self.options, _log_ratios(batch, out)
        # False for NaN: mismatched responses get some loss, which `term_weights` gives a weight of
        # 0.
        desirable = _labels(batch) == 1
        losses = F.kto_loss(
            log_ratios,
            self._z0(log_ratios),
            desirable,
            o.beta,
            o.desirable_weight,
            o.undesirable_weight,
        )
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
    labels = [response.label for group in batch.groups for response in group.responses]
    numbers = [float("nan") if label is None else float(label) for label in labels]
    return batch.pairs.p.new_tensor(numbers)


def _count_labels(groups: Sequence[Group]) -> Counter[bool | None]:
    """The number of responses with each label; mismatched responses have none."""
    return Counter(r.label for group in groups for r in group.responses if r.label is not None)


def _check_labels(labels: Mapping[bool | None, int], rows: int) -> None:
    if labels[True] and labels[False]:
        return
    if not labels:
        fault = f"none of {rows} rows has a label"
    elif labels[True]:
        fault = f"all {labels[True]} labels of {rows} rows are desirable"
    else:
        fault = f"all {labels[False]} labels of {rows} rows are undesirable"
    raise DataError(
        f"kto needs desirable and undesirable responses, but {fault}; "
        "add rows with `label: true` and rows with `label: false`, or use pairs"
    )


def _with_mismatched(groups: Sequence[Group], rng: Any) -> list[Group]:
    """Add responses of other prompts to each group, as many as its own. Each response is added to
    one group.

    If one prompt has more than half of the responses, some of them find no other prompt and are
    left out.
    """
    same_prompt = list(_by_prompt(groups).values())
    order = [index for drawn in rng.permutation(len(same_prompt)) for index in same_prompt[drawn]]
    responses = [(index, response) for index in order for response in groups[index].responses]
    # Responses to one prompt are neighbors in this order. A shift by the largest such run reaches
    # another prompt.
    shift = max(
        (sum(len(groups[index].responses) for index in indices) for indices in same_prompt),
        default=0,
    )
    added: defaultdict[int, list[Response]] = defaultdict(list)
    for place, (index, _) in enumerate(responses):
        # A negative place counts from the end, which closes the circle.
        other, response = responses[place - shift]
        if (groups[other].prompt, groups[other].tools) != (
            groups[index].prompt,
            groups[index].tools,
        ):
            added[index].append(replace(response, label=None))
    return [
        replace(group, responses=(*group.responses, *added[index]))
        for index, group in enumerate(groups)
    ]


def _by_prompt(groups: Sequence[Group]) -> dict[str, list[int]]:
    """Indices of the groups of each prompt."""
    indices = defaultdict(list)
    for index, group in enumerate(groups):
        indices[group_id(group.prompt, (), group.tools)].append(index)
    return indices

"""Binary Classifier Optimization: learn from thumbs up and down (BCO, Jung et al. 2024,
arXiv:2404.04656).

The implicit reward r = beta log(pi/pi_ref), shifted by delta, is the logit of a classifier that
tells desirable responses from undesirable ones. Its cross-entropy bounds the loss of DPO, and the
shift makes the bound tighter. Differs from the paper: the undesirable responses are not weighted by
a density ratio ("underlying distribution matching"), which needs an embedding model. Pairs serve as
labels: the better response is desirable. TRL's trainer, which was removed, averages over all
responses together and its delta is the mean of all rewards. Where half of the labels are desirable,
its loss is half of this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alignkit import (
    Add,
    Algorithm,
    Batch,
    DataError,
    Field,
    Group,
    Loss,
    Needs,
    Outputs,
    SelectContext,
    StageDefaults,
    Term,
    hookimpl,
    per_group,
    per_response,
)
from alignkit import functional as F
from alignkit_plugins.text.rows import with_labels

if TYPE_CHECKING:
    from torch import Tensor


class BCO(Algorithm):
    """Raise the rewards of desirable responses above delta, and lower those of undesirable ones
    below it.
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

    def trained_turns(self) -> str:
        return "last"

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """The labeled responses; pairs and ranks become labels."""
        labeled = [with_labels(group) for group in groups]
        missing = [
            max(1, len(g.responses)) - len(kept.responses)
            for g, kept in zip(groups, labeled, strict=True)
        ]
        bare = [group for group, count in zip(groups, missing, strict=True) if count]
        context.left_out("without_label", sum(missing), bare)
        return [group for group in labeled if group.responses]

    def check_data(self, groups: Sequence[Group]) -> None:
        labels = {response.label for group in groups for response in group.responses}
        if labels != {True, False}:
            found = (
                f"all labels are {'desirable' if True in labels else 'undesirable'}"
                if labels
                else "no row has one"
            )
            raise DataError(
                f"bco needs desirable and undesirable responses, but {found}; add rows with the "
                "others"
            )

    def before_step(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        """The mean reward of each kind of response, over all batches so far, and the sum of their
        weights.
        """
        found: dict[str, Any] = {}
        rewards = self._rewards(batch, out)
        for name, weights in self.term_weights(batch).items():
            if count := float(weights.sum()):
                seen, mean = self.state.get(f"{name}_seen", 0) + count, self.state.get(name, 0.0)
                batch_mean = float((rewards * weights).sum()) / count
                found |= {name: mean + (batch_mean - mean) * count / seen, f"{name}_seen": seen}
        return found

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        logits = self._rewards(batch, out) - self._delta()
        return Loss(
            desirable=per_response(F.preference_loss(logits)),
            undesirable=per_response(F.preference_loss(-logits)),
        )

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """Each term is the mean over its own kind of response."""
        labels = batch.mask.new_tensor(
            [r.label is True for group in batch.groups for r in group.responses]
        )
        weights = batch.weights("response")
        return {"desirable": weights * labels, "undesirable": weights * ~labels}

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Rewards of desirable and undesirable responses, under TRL's names."""
        rewards, weights = self._rewards(batch, out), self.term_weights(batch)
        return {
            "rewards/chosen": per_response(
                rewards.masked_fill(weights["desirable"] == 0, float("nan"))
            ),
            "rewards/rejected": per_response(
                rewards.masked_fill(weights["undesirable"] == 0, float("nan"))
            ),
            "delta": per_group(rewards.new_full((len(batch.groups),), self._delta())),
        }

    def _rewards(self, batch: Batch, out: Outputs) -> Tensor:
        """beta log(pi/pi_ref) of the responses: [R]."""
        return self.options.beta * F.sum_tokens(out.logprobs - batch.reference_logprobs, batch.mask)

    def _delta(self) -> float:
        """The reward shift: halfway between the mean rewards of desirable and undesirable
        responses.
        """
        return float(self.state.get("desirable", 0.0) + self.state.get("undesirable", 0.0)) / 2


@hookimpl
def register(add: Add) -> None:
    add("algorithm", "bco", BCO, "learn from thumbs up and down, by binary classification")

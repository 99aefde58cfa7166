"""DPO: direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290). Differs from the paper: nothing."""

from __future__ import annotations

from collections.abc import Mapping

from alignkit import Algorithm, Batch, Field, Loss, Needs, Outputs, StageDefaults, Term, hookimpl, per_pair
from alignkit import functional as F


class DPO(Algorithm):
    """Learn from preference pairs without a reward model."""

    needs = Needs(reference_logprobs=True, min_samples=2, pairs=True)
    defaults = StageDefaults(learning_rate=5e-5, epochs=1, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.1)

    class Options(Algorithm.Options):
        beta: float = Field(0.1, gt=0, description="pull towards the reference, per nat")
        label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of labels taken to be wrong (cDPO)")

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        assert out.logprobs is not None and batch.reference_logprobs is not None
        log_ratio = F.sum_tokens(out.logprobs - batch.reference_logprobs, batch.mask)  # [R] nats
        better, worse = batch.pairs.take(log_ratio)
        h = self.options.beta * (better - worse)
        smoothing = self.options.label_smoothing
        # Eq. (7); with P(better) = p < 1 the expectation over the label.
        p = batch.pairs.p
        loss = p * F.preference_loss(h, smoothing) + (1 - p) * F.preference_loss(-h, smoothing)
        return Loss(dpo=per_pair(loss))

    def report(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        assert out.logprobs is not None and batch.reference_logprobs is not None
        log_ratio = F.sum_tokens(out.logprobs - batch.reference_logprobs, batch.mask)
        better, worse = batch.pairs.take(self.options.beta * log_ratio)
        return {
            "accuracy": per_pair((better > worse).float()),
            "implicit_reward/better": per_pair(better),
            "implicit_reward/worse": per_pair(worse),
        }


@hookimpl
def register_algorithms(register):  # type: ignore[no-untyped-def]
    register("dpo", DPO, summary="learn from preference pairs without a reward model")

"""Exploratory preference optimization: online DPO with optimism (XPO, Xie et al. 2024,
arXiv:2405.21046, Algorithm 1).

Every sample of the policy is compared with a response of the reference, and the loss of DPO learns
from the pair. The optimism term alpha log pi(reference's response) makes what the reference says
less likely, so the policy explores. Differs from the paper: a stage samples from its own policy
only, so a step, `reference_responses`, samples from the reference beforehand, and iterations draw
from these. Each iteration learns from its own pairs, as TRL's removed trainer does; the paper's
sums run over all iterations. A prompt whose pairs are all ties is left out of both terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import alignkit as ak
from alignkit import functional as F
from alignkit.data.group import group_from_json, group_to_json
from alignkit_plugins.compare.comparison import prompts_to_compare, sample_policies

if TYPE_CHECKING:
    from torch import Tensor

REFERENCE = "reference_response"  # in a prompt's `meta`, and the source of the response


class ReferenceResponses(ak.Step):
    """Prompts with scored responses of the reference in `meta`, for the `prompts` of an `xpo`
    stage.
    """

    class Options(ak.SamplingOptions):
        prompts: ak.DataRef = ak.Field(
            description="prompts; rows with the same words and columns count once"
        )
        reward: ak.RewardRef = ak.Field(
            description="reward that scores the responses: the one of the `xpo` stage"
        )
        policy: ak.PolicyRef = ak.Field("base", description="the reference")
        samples_per_prompt: int = ak.Field(
            4, ge=1, le=1024, description="responses to each prompt, to draw from later"
        )

        def policies_to_sample(self) -> list[str]:
            return [self.policy]

    def run(self, context: ak.StepContext) -> ak.Artifact:
        # Before sampling: a missing key or file shows here
        scorer = context.scorer(self.options.reward)
        prompts, _ = prompts_to_compare(context.load(self.options.prompts))
        sampling = {**self.options.sampled(), "samples_per_prompt": self.options.samples_per_prompt}
        groups = scorer.score(sample_policies(context, [self.options.policy], prompts, **sampling))
        stored = [
            _stored(group)
            for group in groups
            if any(r.scores["reward"] is not None for r in group.responses)
        ]
        text = f"{len(stored)} of {len(prompts)} prompts have a scored response of the reference"
        return ak.Artifact(
            groups=stored, summary={"prompts": len(prompts), "scored": len(stored)}, text=text
        )


def _stored(group: ak.Group) -> ak.Group:
    scored = replace(
        group, responses=tuple(r for r in group.responses if r.scores["reward"] is not None)
    )
    return replace(group, responses=(), meta={**group.meta, REFERENCE: group_to_json(scored)})


class XPO(ak.Algorithm):
    """Prefer what scores higher than the reference's response, and stay away from what the
    reference says.
    """

    source = ak.Source.ROLLOUTS
    needs = ak.Needs(reference_logprobs=True, pairs=True)
    defaults = ak.StageDefaults(
        learning_rate=2e-4, epochs=1, batch_size=16, lr_scheduler_type="linear"
    )

    class Options(ak.Algorithm.Options):
        beta: float = ak.Field(
            0.1,
            gt=0,
            description=(
                "scale of the implicit reward: higher keeps the policy closer to the reference"
            ),
        )
        alpha: float = ak.Field(1e-5, ge=0, description="weight of the optimism term, per nat")

    def check_prompts(self, groups: Sequence[ak.Group]) -> None:
        if any(REFERENCE not in group.meta for group in groups):
            raise ak.DataError(
                "xpo: a prompt has no reference response: `prompts` must be a "
                "`reference_responses` stage"
            )

    def select(self, groups: Sequence[ak.Group], context: ak.SelectContext) -> list[ak.Group]:
        """Each group with responses of the reference, and a pair per sample that does not tie with
        its own.
        """
        self.check_prompts(groups)
        paired = [
            group
            for group in (_with_reference(group, context.rng) for group in groups)
            if group.pairs
        ]
        context.log(
            pairs=sum(len(group.pairs or ()) for group in paired),
            groups_tied=len(groups) - len(paired),
        )
        return paired

    def loss(self, batch: ak.Batch, out: ak.Outputs) -> ak.Loss:
        better, worse = batch.pairs.take(self._rewards(batch, out))
        log_likelihood = F.sum_tokens(out.logprobs, batch.mask)
        return ak.Loss(
            dpo=ak.per_pair(F.preference_loss(better - worse)),
            optimism=ak.per_response(log_likelihood, coefficient=self.options.alpha),
        )

    def term_weights(self, batch: ak.Batch) -> Mapping[str, Tensor]:
        """The optimism term is the mean over the reference's responses."""
        by_reference = [
            response.source == REFERENCE for group in batch.groups for response in group.responses
        ]
        return {"optimism": (batch.mask.any(dim=1) & batch.mask.new_tensor(by_reference)).float()}

    def report_metrics(self, batch: ak.Batch, out: ak.Outputs) -> Mapping[str, ak.Term]:
        return batch.pairs.metrics(self._rewards(batch, out))

    def _rewards(self, batch: ak.Batch, out: ak.Outputs) -> Tensor:
        """The implicit rewards beta log(pi/pi_ref): [R]."""
        return self.options.beta * F.sum_tokens(out.logprobs - batch.reference_logprobs, batch.mask)


def _with_reference(group: ak.Group, rng: Any) -> ak.Group:
    """A group of K samples with up to K responses of the reference; one pair per sample."""
    count, stored = len(group.responses), group_from_json(group.meta[REFERENCE]).responses
    drawn = [
        replace(stored[index], source=REFERENCE) for index in rng.permutation(len(stored))[:count]
    ]
    responses = (*group.responses, *drawn)
    compared = [(own, count + own % len(drawn)) for own in range(count)]
    winners = F.preferred(
        [(responses[own].reward, responses[other].reward) for own, other in compared]
    )
    pairs = [
        ak.Pair(pair[winner], pair[1 - winner])
        for pair, winner in zip(compared, winners, strict=True)
        if winner is not None and responses[pair[0]].tokens != responses[pair[1]].tokens
    ]
    return replace(group, responses=responses, pairs=tuple(pairs))


@ak.hookimpl
def register(add: ak.Add) -> None:
    add("algorithm", "xpo", XPO, "online DPO against the reference's responses, with optimism")
    add(
        "step",
        "reference_responses",
        ReferenceResponses,
        "sample the reference's responses, for xpo",
    )

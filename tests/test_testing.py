"""The conformance kit: every first-party algorithm passes, and each kind of broken one is
reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import pytest
import torch

from alignkit import (
    Algorithm,
    Batch,
    Group,
    Loss,
    Needs,
    Outputs,
    Response,
    Source,
    per_pair,
    per_response,
)
from alignkit import functional as F
from alignkit.batch import Pairs, Term, per_token
from alignkit.testing import ConformanceError, check_algorithm, example_groups
from alignkit_plugins.algorithms.dpo import DPO
from alignkit_plugins.algorithms.ppo import PPO
from alignkit_plugins.algorithms.rejection_sampling import RejectionSampling
from alignkit_plugins.algorithms.reward_model import RewardModel
from alignkit_plugins.algorithms.sft import LM, SFT

DEMONSTRATIONS = [
    replace(
        group, responses=(replace(response, label=None),), pairs=None, id=f"{group.id}-{number}"
    )
    for group in example_groups()
    for number, response in enumerate(group.responses)
]
TEXTS = [
    Group((), (Response(text=text),), id=text[:5])
    for text in ("A river ran by.", "No.", "Bread is baked here.")
]


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (SFT, {}),
        (SFT, {"turns": "last"}),
        (LM, {}),
        (RewardModel, {}),
        (RewardModel, {"margin": "data"}),
        (RewardModel, {"margin": "llama2-large", "center_coefficient": 0.0}),
        (PPO, {}),
        (
            PPO,
            {
                "aggregation": "sequence_mean",
                "kl_target": 3.0,
                "entropy_coefficient": 0.1,
                "dual_clip": 3.0,
            },
        ),
        (
            PPO,
            {"whiten_advantages": False, "gamma": 0.9, "score_clip": 1.0, "value_clip_range": None},
        ),
        (RejectionSampling, {}),
        (DPO, {}),
        (DPO, {"beta": 0.5, "label_smoothing": 0.2}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else ",".join(value) or "default",
)
def test_first_party_algorithms_conform(cls: type[Algorithm], options: dict[str, Any]) -> None:
    check_algorithm(cls, options, groups={LM: TEXTS, SFT: DEMONSTRATIONS}.get(cls))


def test_right_is_about_the_likelier_order() -> None:
    """p below a half says that the pair's worse response is the likelier better one; at a half
    there is no order.
    """
    better, worse = torch.tensor([0, 0, 0, 0, 2]), torch.tensor([1, 1, 1, 1, 2])
    p = torch.tensor([1.0, 0.7, 0.5, 0.2, 1.0])
    found = Pairs(better, worse, p, torch.zeros(5), better * 0).right(torch.tensor([2.0, 1.0, 1.0]))
    assert found[[0, 1, 3, 4]].tolist() == [1, 1, 0, 0] and found[2].isnan()
    found = Pairs(better, worse, p, torch.zeros(5), better * 0).right(torch.tensor([1.0, 2.0, 1.0]))
    assert found[[0, 1, 3, 4]].tolist() == [0, 0, 1, 0] and found[2].isnan()


class OnPairs(Algorithm):
    needs = Needs(min_samples=2, pairs=True)


class IgnoresMask(OnPairs):
    def loss(self, batch: Batch, out: Outputs) -> Loss:
        better, worse = batch.pairs.take(out.logprobs.sum(dim=1))
        return Loss(dpo=per_pair(-torch.nn.functional.logsigmoid(0.01 * (better - worse))))


class MeanOfMicroBatch(Algorithm):
    def loss(self, batch: Batch, out: Outputs) -> Loss:
        mean = F.masked_mean(-out.logprobs, batch.mask)
        return Loss(nll=per_response(mean.expand(len(batch.tokens))))


class WhitensInTheLoss(OnPairs):
    def loss(self, batch: Batch, out: Outputs) -> Loss:
        better, worse = batch.pairs.take(F.sum_tokens(out.logprobs, batch.mask))
        gap = better - worse
        return Loss(gap=per_pair(-gap / (1 + gap.detach().abs().max())))


class RootOfZero(Algorithm):
    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(root=per_token((out.logprobs - out.logprobs.detach()).abs().sqrt()))


class Dropout(Algorithm):
    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(nll=per_token(-out.logprobs * torch.rand_like(out.logprobs)))


class Remembers(Algorithm):
    seen = 0

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        self.seen += 1
        return Loss(nll=per_token(-out.logprobs * self.seen))


class Detached(Algorithm):
    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(nll=per_token(-out.logprobs.detach()))


class ByPlace(Algorithm):
    def loss(self, batch: Batch, out: Outputs) -> Loss:
        even = torch.arange(len(batch.tokens)) % 2 == 0
        return Loss(nll=per_response(F.sum_tokens(-out.logprobs, batch.mask) * even))


class WrongShape(Algorithm):
    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(nll=per_token(F.sum_tokens(-out.logprobs, batch.mask)))


class TensorInState(Algorithm):
    def before_step(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        return {"mean": out.logprobs.mean()}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(nll=per_token(-out.logprobs))


class BonusWithoutGradient(Algorithm):
    needs = Needs(entropy="reported")

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(nll=per_token(-out.logprobs), entropy=per_token(-out.entropy, 0.1))


class ReportsIgnoringMask(Algorithm):
    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(nll=per_token(-out.logprobs))

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        return {"length": per_response((out.logprobs != 0).float().sum(dim=1))}


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (
            IgnoresMask,
            r"^IgnoresMask: garbage outside the mask changes the gradient by .* must use batch.mask",
        ),
        (
            MeanOfMicroBatch,
            "cutting the batch into micro-batches changes the gradient by .* unreduced entries",
        ),
        (
            WhitensInTheLoss,
            "cutting the batch into micro-batches changes the gradient by .* belong in "
            "`before_step`",
        ),
        (RootOfZero, "the gradient is not finite: look for sqrt"),
        (Dropout, "a second pass over the same batch changes the gradient by .* random numbers"),
        (
            Remembers,
            "a second pass over the same batch changes the gradient .* remembers belongs in "
            "`state`",
        ),
        (Detached, r"[.]loss`: return terms with gradients, computed from `out`"),
        (
            BonusWithoutGradient,
            r"[.]loss`: return terms with gradients, .* needs `Needs\(entropy=True\)`",
        ),
        (ByPlace, "the order of groups changes the gradient by .* batch.group_index"),
        (
            WrongShape,
            r"^WrongShape: in `WrongShape.loss`: return unreduced terms, .* of \[12, \d+\], as 'nll', not \[12\]",
        ),
        (TensorInState, "`state` after `before_step` is not JSON: Object of type Tensor"),
        (ReportsIgnoringMask, r"garbage outside the mask changes 'length' by"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_broken_algorithms_are_reported(cls: type[Algorithm], message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        check_algorithm(cls)


def test_an_entropy_is_asked_for_in_words_that_exist() -> None:
    with pytest.raises(ValueError, match="'report'"):
        Needs(entropy="report")  # type: ignore[arg-type]


# signals


class Online(Algorithm):
    source = Source.ROLLOUTS
    needs = Needs(min_samples=2)

    def signal(self, rollouts: Batch) -> Mapping[str, Any]:
        return {"advantage": F.rloo_advantages(rollouts.rewards, rollouts.group_index)}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(policy=per_token(-out.logprobs * batch["advantage"][:, None]))


class RemembersAnAverage(Online):
    average: torch.Tensor | None = None

    def signal(self, rollouts: Batch) -> Mapping[str, Any]:
        mean = rollouts.rewards.mean()
        self.average = mean if self.average is None else 0.9 * self.average + 0.1 * mean
        return {"advantage": rollouts.rewards - self.average}


class ComputesOnce(Online):
    @cached_property
    def scale(self) -> float:
        return 2.0

    def signal(self, rollouts: Batch) -> Mapping[str, Any]:
        return {"advantage": self.scale * F.rloo_advantages(rollouts.rewards, rollouts.group_index)}


def test_memory_outside_the_state_is_reported() -> None:
    text = (
        "what `signal` remembers outside of `state` changes signal 'advantage' .* a resumed run "
        "would lose it"
    )
    with pytest.raises(ConformanceError, match=text):
        check_algorithm(RemembersAnAverage)


def test_what_is_computed_once_is_no_memory() -> None:
    check_algorithm(ComputesOnce)


class WrongSignal(Online):
    def signal(self, rollouts: Batch) -> Mapping[str, Any]:
        return {"advantage": rollouts.rewards[:, None]}


class LogOfRewards(Online):
    def signal(self, rollouts: Batch) -> Mapping[str, Any]:
        return {"advantage": rollouts.rewards.log()}


class SignalIgnoresMask(Online):
    needs = Needs(old_logprobs=True, min_samples=2)

    def signal(self, rollouts: Batch) -> Mapping[str, Any]:
        return {"advantage": rollouts.old_logprobs.sum(dim=1)}


class SignalByPlace(Online):
    def signal(self, rollouts: Batch) -> Mapping[str, Any]:
        return {"advantage": rollouts.rewards.cumsum(0)}


class SignalState(Online):
    def signal(self, rollouts: Batch) -> Mapping[str, Any]:
        self.state["seen"] = {1: "x"}
        return super().signal(rollouts)


class SelectsNothing(Online):
    def select(self, groups: Any, context: Any) -> list[Group]:
        return []


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (
            WrongSignal,
            r"return tensors .responses, tokens. = .12, \d+. or .*, as 'advantage', not .12, 1.",
        ),
        (LogOfRewards, "signal 'advantage' is not finite everywhere"),
        (SignalIgnoresMask, "garbage outside the mask changes signal 'advantage' by"),
        (SignalByPlace, "the order of groups changes signal 'advantage' by"),
        (SignalState, "`state` after `signal` changes when saved as JSON and loaded"),
        (SelectsNothing, "leave none of the example groups"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_broken_signals_are_reported(cls: type[Algorithm], message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        check_algorithm(cls)


class Weightable(Online):
    """Its advantages, one for each response, can have weights."""

    needs = Needs(min_samples=2, advantages="sequence")

    def signal(self, rollouts: Batch) -> Mapping[str, Any]:
        return {"advantages": F.rloo_advantages(rollouts.rewards, rollouts.group_index)}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(policy=per_token(-out.logprobs * batch["advantages"][:, None]))


class OtherName(Weightable):
    def signal(self, rollouts: Batch) -> Mapping[str, Any]:
        return {"advantage": rollouts.rewards}


class OfTokens(Weightable):
    def signal(self, rollouts: Batch) -> Mapping[str, Any]:
        return {
            "advantages": super().signal(rollouts)["advantages"][:, None].expand_as(rollouts.mask)
        }


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (OtherName, "`needs` promises advantages"),
        (OfTokens, "`needs` promises advantages"),
    ],
)
def test_advantages_that_cannot_have_weights_are_reported(
    cls: type[Algorithm], message: str
) -> None:
    check_algorithm(Weightable)
    with pytest.raises(ConformanceError, match=message):
        check_algorithm(cls)


def test_an_algorithm_with_a_group_baseline_conforms() -> None:
    check_algorithm(Online)


def test_example_groups_hold_every_kind_of_preference() -> None:
    groups = example_groups(5)
    assert [len(group.responses) for group in groups] == [5] * 4
    assert {pair.margin for group in groups for pair in group.pairs or ()} == {"slightly", 1.5, 2.0}
    assert all(
        r.rank is not None and r.scores["reward"] is not None for g in groups for r in g.responses
    )

"""The conformance kit: every first-party algorithm passes, and each kind of broken one is
reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import pytest
import torch
import yaml

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
from alignkit.contract.batch import Pairs, Term, per_token
from alignkit.host.plugins import plugins
from alignkit.testing import check_algorithm, example_groups
from tests.rows import cells
from tests.testing.kits import broken, reported

DEMONSTRATIONS = [
    replace(group, responses=(replace(response, label=None),), pairs=None)
    for group in example_groups()
    for response in group.responses
]
TEXTS = [
    Group((), (Response(text=text),), id=text[:5])
    for text in ("A river ran by.", "No.", "Bread is baked here.")
]


ALGORITHMS = """
sft | {}
sft | {turns: last}
lm | {}
reward_model | {}
reward_model | {margin: data}
reward_model | {margin: llama2-large, center_coefficient: 0.0}
ppo | {}
ppo | {aggregation: sequence_mean, kl_target: 3.0, entropy_coefficient: 0.1}
ppo | {dual_clip: 3.0, gamma: 0.9, score_clip: 1.0, value_clip_range: null}
ppo | {whiten_advantages: false}
rejection_sampling | {}
dpo | {}
dpo | {beta: 0.5, label_smoothing: 0.2}
"""


@pytest.mark.parametrize(("name", "options"), cells(ALGORITHMS))
def test_first_party_algorithms_conform(name: str, options: str) -> None:
    algorithm = plugins().get("algorithm", name).implementation
    groups = {"lm": TEXTS, "sft": DEMONSTRATIONS}.get(name)
    check_algorithm(algorithm, yaml.safe_load(options), groups=groups)


def test_right_is_about_the_likelier_order() -> None:
    """p below a half says that the pair's worse response is the likelier better one; at a half
    there is no order.
    """
    better, worse = torch.tensor([0, 0, 0, 0, 2]), torch.tensor([1, 1, 1, 1, 2])
    p = torch.tensor([1.0, 0.7, 0.5, 0.2, 1.0])
    pairs = Pairs(better, worse, p, torch.zeros(5), better * 0)
    for scores, right in (([2.0, 1.0, 1.0], [1, 1, 0, 0]), ([1.0, 2.0, 1.0], [0, 0, 1, 0])):
        found = pairs.right(torch.tensor(scores))
        assert found[[0, 1, 3, 4]].tolist() == right and found[2].isnan()


def loss_of(loss: Callable[[Batch, Outputs], Term], **more: Any) -> type[Algorithm]:
    return broken(Algorithm, loss=lambda self, batch, out: Loss(nll=loss(batch, out)), **more)


def nll(self: Algorithm, batch: Batch, out: Outputs) -> Loss:
    return Loss(nll=per_token(-out.logprobs))


def ignores_mask(batch: Batch, out: Outputs) -> Term:
    better, worse = batch.pairs.take(out.logprobs.sum(dim=1))
    return per_pair(-torch.nn.functional.logsigmoid(0.01 * (better - worse)))


def ignores_mask_of_ratios(batch: Batch, out: Outputs) -> Term:
    ratios = (out.logprobs - batch.reference_logprobs).sum(dim=1)  # equal garbage would cancel
    better, worse = batch.pairs.take(ratios)
    return per_pair(F.preference_loss(0.01 * (better - worse)))


def mean_of_micro_batch(batch: Batch, out: Outputs) -> Term:
    return per_response(F.masked_mean(-out.logprobs, batch.mask).expand(len(batch.tokens)))


def whitens(batch: Batch, out: Outputs) -> Term:
    better, worse = batch.pairs.take(F.sum_tokens(out.logprobs, batch.mask))
    gap = better - worse
    return per_pair(-gap / (1 + gap.detach().abs().max()))


def root_of_zero(batch: Batch, out: Outputs) -> Term:
    return per_token((out.logprobs - out.logprobs.detach()).abs().sqrt())


def by_place(batch: Batch, out: Outputs) -> Term:
    even = torch.arange(len(batch.tokens)) % 2 == 0
    return per_response(F.sum_tokens(-out.logprobs, batch.mask) * even)


def remembers(self: Any, batch: Batch, out: Outputs) -> Loss:
    self.seen = getattr(self, "seen", 0) + 1
    return Loss(nll=per_token(-out.logprobs * self.seen))


def bonus(self: Algorithm, batch: Batch, out: Outputs) -> Loss:
    return Loss(nll=per_token(-out.logprobs), entropy=per_token(-out.entropy, 0.1))


PAIRS = Needs(min_samples=2, pairs=True)
RATIOS = Needs(min_samples=2, pairs=True, reference_logprobs=True)
MISTAKES = {
    "garbage outside the mask changes the gradient by .* must use batch.mask": (
        loss_of(ignores_mask, needs=PAIRS)
    ),
    "garbage outside the mask changes the gradient by .*: sums and means over tokens": (
        loss_of(ignores_mask_of_ratios, needs=RATIOS)
    ),
    "cutting the batch into micro-batches changes the gradient by .* unreduced entries": (
        loss_of(mean_of_micro_batch)
    ),
    "cutting the batch into micro-batches changes the gradient by .* belong in `before_step`": (
        loss_of(whitens, needs=PAIRS)
    ),
    "the gradient is not finite: look for sqrt": loss_of(root_of_zero),
    "the gradient is zero everywhere": loss_of(lambda batch, out: per_token(out.logprobs * 0)),
    "a second pass over the same batch changes the gradient by .* random numbers": (
        loss_of(lambda batch, out: per_token(-out.logprobs * torch.rand_like(out.logprobs)))
    ),
    "a second pass over the same batch changes the gradient .* remembers belongs in `state`": (
        broken(Algorithm, loss=remembers)
    ),
    "`: return terms with gradients, computed from `out`": (
        loss_of(lambda batch, out: per_token(-out.logprobs.detach()))
    ),
    r"`: return terms with gradients, .* needs `Needs\(entropy=True\)`": (
        broken(Algorithm, loss=bonus, needs=Needs(entropy="reported"))
    ),
    "the order of groups changes the gradient by .* batch.group_index": loss_of(by_place),
    r"`: return unreduced terms, .* of \[12, \d+\], as 'nll', not \[12\]": (
        loss_of(lambda batch, out: per_token(F.sum_tokens(-out.logprobs, batch.mask)))
    ),
    "`state` after `before_step` is not JSON: Object of type Tensor": broken(
        Algorithm, loss=nll, before_step=lambda self, batch, out: {"mean": out.logprobs.mean()}
    ),
    "garbage outside the mask changes 'length' by": broken(
        Algorithm,
        loss=nll,
        report_metrics=lambda self, batch, out: {
            "length": per_response((out.logprobs != 0).float().sum(dim=1))
        },
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_broken_algorithms_are_reported(message: str) -> None:
    reported(check_algorithm, MISTAKES[message], message)


FIRST_PARTY = {one.name: one.implementation for one in plugins().registrations("algorithm")}
# They learn every response that they are given, or imitate another model.
WITHOUT_PREFERENCE = {"distillation", "hir", "hir_offline", "lm", "sft", "trl"}


@pytest.mark.parametrize("name", sorted(FIRST_PARTY.keys() - WITHOUT_PREFERENCE))
def test_a_loss_of_the_other_sign_is_reported(name: str) -> None:
    algorithm = FIRST_PARTY[name]

    def against(self: Algorithm, batch: Batch, out: Outputs) -> Loss:
        terms = algorithm.loss(self, batch, out)
        return Loss(
            **{key: replace(term, coefficient=-term.coefficient) for key, term in terms.items()}
        )

    check_algorithm(algorithm)
    reported(check_algorithm, broken(algorithm, loss=against), "against rewards, pairs or labels")


def test_an_entropy_is_asked_for_in_words_that_exist() -> None:
    with pytest.raises(ValueError, match="'report'"):
        Needs(entropy="report")  # type: ignore[arg-type]


# signals


class Online(Algorithm):
    """Its advantages, one for each response, can have weights."""

    source = Source.ROLLOUTS
    needs = Needs(min_samples=2, advantages="sequence")
    scale = 1.0

    def signal(self, rollouts: Batch) -> Mapping[str, Any]:
        advantages = F.rloo_advantages(rollouts.rewards, rollouts.group_index)
        return {"advantages": self.scale * advantages}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(policy=per_token(-out.logprobs * batch["advantages"][:, None]))


class ComputesOnce(Online):
    @cached_property
    def scale(self) -> float:  # type: ignore[override]
        return 2.0


@pytest.mark.parametrize("cls", [Online, ComputesOnce])
def test_a_group_baseline_and_what_is_computed_once_conform(cls: type[Algorithm]) -> None:
    check_algorithm(cls)


def average(self: Any, rollouts: Batch) -> Mapping[str, Any]:
    mean = rollouts.rewards.mean()
    self.average = 0.9 * getattr(self, "average", mean) + 0.1 * mean
    return {"advantages": rollouts.rewards - self.average}


def signal_of(signal: Callable[[Batch], torch.Tensor], **more: Any) -> type[Algorithm]:
    return broken(Online, signal=lambda self, batch: {"advantages": signal(batch)}, **more)


def unsaved(self: Algorithm, rollouts: Batch) -> Mapping[str, Any]:
    self.state["seen"] = {1: "x"}
    return {"advantages": rollouts.rewards}


OLD = Needs(old_logprobs=True, min_samples=2)
BROKEN_SIGNALS = {
    "what `signal` remembers outside of `state` changes signal 'advantages'": (
        broken(Online, signal=average)
    ),
    r"return tensors .responses, tokens. = .12, \d+. or .*, as 'advantages', not .12, 1.": (
        signal_of(lambda batch: batch.rewards[:, None])
    ),
    "signal 'advantages' is not finite everywhere": signal_of(lambda batch: batch.rewards.log()),
    "garbage outside the mask changes signal 'advantages' by": (
        signal_of(lambda batch: batch.old_logprobs.sum(dim=1), needs=OLD)
    ),
    "the order of groups changes signal 'advantages' by": (
        signal_of(lambda batch: batch.rewards.cumsum(0))
    ),
    "`state` after `signal` changes when saved as JSON and loaded": broken(Online, signal=unsaved),
    "leave none of the example groups": broken(Online, select=lambda self, groups, context: []),
}


@pytest.mark.parametrize("message", BROKEN_SIGNALS)
def test_broken_signals_are_reported(message: str) -> None:
    reported(check_algorithm, BROKEN_SIGNALS[message], message)


def of_tokens(batch: Batch) -> torch.Tensor:
    return batch.rewards[:, None].expand_as(batch.mask)


def test_advantages_that_cannot_have_weights_are_reported() -> None:
    """Of another name, or of tokens where those of responses are promised."""
    other_name = broken(Online, signal=lambda self, batch: {"advantage": batch.rewards})
    for cls in (other_name, signal_of(of_tokens)):
        reported(check_algorithm, cls, "`needs` promises advantages")


def test_example_groups_hold_every_kind_of_preference() -> None:
    groups = example_groups(5)
    assert [len(group.responses) for group in groups] == [5] * 4
    assert [response.rank for response in groups[0].responses] == [2, 1, 4, 5, 3]
    turns = groups[0].responses[0].messages or ()
    assert [turn.get("train") for turn in turns] == [False, None, None]
    assert {pair.margin for group in groups for pair in group.pairs or ()} == {"slightly", 1.5, 2.0}

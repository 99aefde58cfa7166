"""The optimizer step: every algorithm's loss passes through here.

A step takes a global batch of groups, cuts it into packed micro-batches by token budget, and
averages each loss term over the whole global batch, so results do not depend on the cuts.

An algorithm's default learning rate is for LoRA on a hidden size of 576 (SmolLM2-135M), where the
defaults were measured. The best rate of AdamW falls with the width of a model, as 1 / width for the
same training (Yang et al. 2022, arXiv:2203.03466), and LoRA takes about ten times the rate of
training all weights, whatever its rank (Schulman et al. 2025, "LoRA Without Regret"). A written
rate is used as it is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from numpy.random import Generator
from torch import Tensor, nn

from alignkit.contract.algorithm import Algorithm, StageDefaults, Trains
from alignkit.contract.batch import Batch, Outputs, Per, Term
from alignkit.contract.settings import LEARNING_RATE, Settings
from alignkit.errors import RunFailed
from alignkit.host import returns
from alignkit.host.calls import attributed_to, call, label_of, remembered
from alignkit.kernels.memory import TrimOnGrowth
from alignkit.models.memory import within_memory
from alignkit.models.packing import Examples, forward, indivisible, join_outputs, micro_batches
from alignkit.models.shared_model import LOGPROBS, SharedModel, Wants
from alignkit.training.active_stage import ActiveStage
from alignkit.training.collectives import ONE_PROCESS, Collectives
from alignkit.training.optimizers import factor_of, make_optimizer, restore_state, saved_state

if TYPE_CHECKING:
    from alignkit.training.data_sampler import AuxiliaryLoss

NON_FINITE_IN_A_ROW = 5  # steps after which the stage fails


@dataclass(frozen=True)
class MicroBatch:
    """Groups that one forward pass takes. groups: their indices in the global batch."""

    algorithm: Algorithm
    examples: Examples
    batch: Batch
    groups: list[int]

    @cached_property
    def weights(self) -> dict[str | Per, Tensor]:
        """Weights of entries, by the name of their term, or by the unit of terms that have no
        weights of their own.
        """
        units = {per: self.batch.weights(per) for per in Per}
        own = call(self.algorithm, "term_weights", self.batch, returns=partial(returns.weights, {}))
        return units | own


# This process's part of a global batch, in micro-batches for the present memory
Cuts = Callable[[], list[MicroBatch]]


@dataclass
class Learner:
    """The optimizer of a stage's trained roles: the policy or reward model, and the value role if
    there is one.

    temperature: of the policy's distributions. collectives: every process passes the same global
    batches, learns from its share of them, and takes the same steps. skipped: steps in a row whose
    loss or gradient was not finite. tokens: of all batches so far, prompts included. parameters: by
    role and name. clipped: those of each role, by the name of the metric of their gradient's norm.
    """

    model: SharedModel
    algorithm: Algorithm
    settings: Settings
    role: str
    value_role: str | None = None
    temperature: float = 1.0
    auxiliary: AuxiliaryLoss | None = None
    collectives: Collectives = ONE_PROCESS
    steps: int = 0
    skipped: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        self.trim = TrimOnGrowth()
        self.parameters: dict[str, nn.Parameter] = {}
        self.clipped: dict[str, list[nn.Parameter]] = {}
        for metric, role in {"grad_norm": self.role, "value_grad_norm": self.value_role}.items():
            if role is not None:
                trainable = self.model.make_trainable(role)
                self.clipped[metric] = list(trainable.values())
                # With the role, because copies of a model (`lora: none`) name their parameters
                # alike.
                self.parameters |= {
                    f"{role}:{name}": parameter for name, parameter in trainable.items()
                }
        self.optimizer = make_optimizer(
            self.settings,
            self.algorithm.defaults.optimizer,
            self.parameters.values(),
            self.peak_rate,
        )

    @property
    def peak_rate(self) -> float:
        """The learning rate before the schedule."""
        return self.settings.learning_rate or LEARNING_RATE

    @property
    def token_budget(self) -> int:
        """Tokens of a micro-batch. A value role with its own network halves it: both networks store
        activations.
        """
        own_network = (
            self.value_role is not None and self.model.backbone_role(self.value_role) != self.role
        )
        return self.model.token_budget // (1 + own_network)

    def step(self, examples: Examples, lr_factor: float) -> dict[str, float]:
        """Learn from one global batch; returns its metrics. Raises RunFailed after too many
        non-finite steps.
        """
        metrics = self._gradients(examples)
        # Each role's separately, so that large value gradients do not shrink the policy's.
        for name, parameters in self.clipped.items():
            metrics[name] = self.collectives.clip(parameters, self.settings.max_grad_norm)
        # A skipped step counts, too: batches and the schedule follow from the number of steps.
        self.steps += 1
        self.tokens += sum(encoded.length for encoded in examples.groups)
        metrics["learning_rate"] = rate = self.peak_rate * lr_factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # These are sums over all processes, so either every process skips the step or none does.
        unfit = [name for name, value in metrics.items() if not math.isfinite(value)]
        if "loss" in unfit or self.clipped.keys() & unfit:
            self.skipped += 1
            metrics["skipped"] = 1.0
            if self.skipped == NON_FINITE_IN_A_ROW:
                facts = (
                    f"{', '.join(unfit)} of {label_of(self.algorithm)} not finite in "
                    f"{self.skipped} steps in a row"
                )
                raise RunFailed(f"{facts}; lower learning_rate")
        else:
            self.optimizer.step()
            self.skipped = 0
        self.trim.check()
        return metrics

    def _gradients(self, examples: Examples) -> dict[str, float]:
        """Set the gradients of one global batch; returns its loss terms and metrics."""
        numbers, _ = self._pass(examples, lambda: self.token_budget)
        self.collectives.add_gradients(self.parameters.values())
        if self.model.memory.halvings:
            numbers["token_budget"] = float(self.token_budget)
        return numbers

    def evaluate(self, examples: Examples) -> tuple[dict[str, float], PerGroup]:
        """Loss terms and metrics over all examples, and each group's part in them, without
        gradients.

        The algorithm's state does not change.
        """
        # A copy, because `before_step` updates the dict in place
        state = dict(self.algorithm.state)
        try:
            with torch.no_grad():
                return self._pass(examples, lambda: self.model.inference_budget)
        finally:
            self.algorithm.state = state

    def _pass(
        self, examples: Examples, budget: Callable[[], int]
    ) -> tuple[dict[str, float], PerGroup]:
        """Pass through one global batch, with gradients if they are enabled; returns its loss terms
        and metrics.

        Without gradients, also each group's part in them.
        """
        cuts = self._cuts(examples, budget)
        self._before_step(examples, cuts)
        # Before any backward pass: each micro-batch divides by what the whole global batch counts.
        denominators = self._denominators(cuts())

        def work() -> tuple[Sums, Averages]:
            # An attempt that ran out of memory may have set some
            self.optimizer.zero_grad(set_to_none=True)
            terms, metrics = Sums(), Averages(by_group=not torch.is_grad_enabled())
            for part in cuts():
                self._micro_batch(part, denominators, terms, metrics)
            if self.auxiliary is not None and torch.is_grad_enabled():
                terms.add("mix/nll", self._mix(self.auxiliary))
            return terms, metrics

        # Other processes wait in the collectives, so nothing that may be repeated uses it.
        terms, metrics = within_memory(self.model.memory, work)
        losses = terms.over(self.collectives)
        # No metric may take the place of what steps are skipped and the best epoch is chosen by.
        reported = losses | metrics.means(self.collectives) | {"loss": losses["loss"]}
        return reported, metrics.per_group

    def _cuts(self, examples: Examples, budget: Callable[[], int]) -> Cuts:
        """The groups of this process, cut again only if the budget has changed. Bundles stay
        whole.
        """
        groups = examples.groups
        units = indivisible([encoded.group.bundle for encoded in groups])
        tokens_of = [encoded.length for encoded in groups]
        lengths = [sum(map(tokens_of.__getitem__, unit)) for unit in units]
        share = self.collectives.partition(lengths)[self.collectives.process]
        own = sorted(chain.from_iterable(units[unit] for unit in share))

        @cache
        def cut(tokens: int) -> list[MicroBatch]:
            parts = []
            for places in micro_batches([groups[index] for index in own], tokens):
                indices = [own[place] for place in places]
                part = examples.take(indices)
                batch = part.batch(self.model.device)
                parts.append(MicroBatch(self.algorithm, part, batch, indices))
            return parts

        return lambda: cut(budget())  # the budget shrinks if memory runs out

    def _micro_batch(
        self,
        part: MicroBatch,
        denominators: Mapping[str | Per, float],
        sums: Sums,
        metrics: Averages,
    ) -> None:
        """Add a micro-batch's share of the loss and of its terms to the sums, and to the gradients
        if enabled.

        Nothing here reads a number of a device, which would have to finish its work first.
        """
        batch, weights, out = part.batch, part.weights, self._forward(part.examples)
        terms = call(self.algorithm, "loss", batch, out, returns=partial(returns.loss, batch))
        with attributed_to(self.algorithm, "term_weights"):
            returns.weights(terms, weights)
        loss = torch.zeros((), device=self.model.device)
        for name, term in terms.items():
            # The global denominator, not this micro-batch's: the shares then add up to one mean,
            # however they are cut.
            unit = name if name in weights else term.per
            share = weighted_sum(term.values, weights[unit]) / denominators[unit]
            loss = loss + term.coefficient * share
            sums.add(name, share)
            metrics.keep(f"loss/{name}", term, weights[unit], part)
        sums.add("loss", loss)
        # Here, and not after the last one, so that one micro-batch's activations are stored at a
        # time.
        if torch.is_grad_enabled():
            self.model.passes.backward(loss)
        with torch.no_grad():
            reported = call(
                self.algorithm, "report_metrics", batch, out, returns=partial(returns.terms, batch)
            )
            metrics.add(reported, part)

    def _before_step(self, examples: Examples, cuts: Cuts) -> None:
        """Let the algorithm see the outputs for the whole global batch, those of other processes
        included.
        """
        if type(self.algorithm).before_step is Algorithm.before_step or not examples.groups:
            return

        @torch.no_grad()
        def measured() -> list[tuple[list[int], Outputs]]:
            return [
                (examples.places_of(part.groups), self._forward(part.examples)) for part in cuts()
            ]

        # Gathered outside of `within_memory`, because the work inside may be repeated in one
        # process only.
        gathered = self.collectives.gather(within_memory(self.model.memory, measured))
        # places: in the global batch, by which `join_outputs` restores its order.
        places, outs = zip(*chain.from_iterable(gathered), strict=True)
        with torch.no_grad():
            batch, out = examples.batch(self.model.device), join_outputs(outs, places)
            self.algorithm.state |= call(self.algorithm, "before_step", batch, out, returns=dict)

    def _denominators(self, parts: Sequence[MicroBatch]) -> dict[str | Per, float]:
        """The denominator of each term: the sum of the weights of its entries in the global
        batch.
        """
        totals = Sums()
        for part in parts:
            for key, entries in part.weights.items():
                totals.add(key, entries.sum())
        # A batch without a counted token, pair, or group has loss 0 and no gradient.
        return {key: total or 1.0 for key, total in totals.over(self.collectives).items()}

    def _mix(self, auxiliary: AuxiliaryLoss) -> Tensor:
        """Add the gradients of the second stream's token-mean cross-entropy times its weight;
        returns the mean, [] in float64.

        Both are this process's share of them.
        """
        # `steps` is incremented later, so the first batch is number 0, and a repeated attempt gets
        # the same one.
        examples = Examples(auxiliary.batch(self.steps))
        # The sum is over all groups, not only this process's, because the collectives add gradients
        # up and do not average them.
        total = float(examples.batch().weights(Per.TOKEN).sum()) or 1.0
        nll = wide(torch.zeros((), device=self.model.device))
        for part in self._cuts(examples, lambda: self.model.token_budget)():
            if any(any(response.mask) for response in part.examples.responses):
                logprobs = forward(self.model, self.role, part.examples, LOGPROBS).logprobs
                loss = weighted_sum(-logprobs, part.batch.weights(Per.TOKEN)) / total
                self.model.passes.backward(auxiliary.weight * loss)
                nll += loss.detach()
        return nll

    def _forward(self, examples: Examples) -> Outputs:
        """The outputs that the loss needs, [responses, tokens] or [responses], with gradients."""
        needs = self.algorithm.needs
        wants = Wants(
            entropy=needs.entropy,
            likeliest=needs.likeliest,
            values=self.value_role,
            temperature=self.temperature,
        )
        if self.algorithm.trains is Trains.REWARD:
            wants = Wants(logprobs=False, scores=True)
        return forward(self.model, self.role, examples, wants)

    # State

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors, and JSON."""
        whole = self.collectives.whole
        return {
            "weights": {
                name: whole(parameter).detach() for name, parameter in self.parameters.items()
            },
            "optimizer": saved_state(self.optimizer, self.parameters, whole),
            "steps": self.steps,
            "skipped": self.skipped,
            "tokens": self.tokens,
            "algorithm": remembered(self.algorithm, "before_step"),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        for name, parameter in self.parameters.items():
            # In place, because the optimizer and the model hold this very tensor.
            parameter.data.copy_(self.collectives.part(state["weights"][name], parameter))
        restore_state(self.optimizer, self.parameters, state["optimizer"], self.collectives.part)
        self.steps, self.skipped = state["steps"], state["skipped"]
        self.tokens = state["tokens"]
        self.algorithm.state = state["algorithm"]


# name -> group -> its sum of values times weights, and of weights
PerGroup = dict[str, dict[int, list[float]]]

# Averages: of unreduced terms over a global batch, and of metrics over steps


def wide(number: Tensor) -> Tensor:
    """A number in float64, where its device has that: Apple's GPUs do not."""
    number = number.detach()
    return number if number.device.type in ("mps", "hpu") else number.double()


class Sums(dict[Any, Tensor]):
    """Sums of numbers by name on their device, which need not be waited for until all are added."""

    def add(self, name: str | Per, number: Tensor) -> None:
        """number: []."""
        self[name] = self.get(name, 0.0) + wide(number)

    def over(self, collectives: Collectives) -> dict[Any, float]:
        """The sums over all processes, for which one wait is enough."""
        sums = torch.stack([*self.values()]).tolist() if self else []
        return collectives.sum(dict(zip(self, sums, strict=True)))


class Averages:
    """Weighted means of metrics over several micro-batches. Entries that are NaN, "unknown", do not
    count.

    per_group: what each group adds to a sum of values times weights, and to the sum of weights.
    """

    def __init__(self, by_group: bool = False):
        """by_group: whether to note what each group adds."""
        self.by_group, self.sums, self.totals = by_group, Sums(), Sums()
        self.per_group: PerGroup = {}

    def add(self, terms: Mapping[str, Term], part: MicroBatch) -> None:
        """Add metrics of a micro-batch."""
        for name, term in terms.items():
            weights = part.weights[term.per].masked_fill(term.values.isnan(), 0.0)
            self.sums.add(name, weighted_sum(term.values, weights))
            self.totals.add(name, weights.sum())
            self.keep(name, term, weights, part)

    def keep(self, name: str, term: Term, weights: Tensor, part: MicroBatch) -> None:
        """Note what each group adds to the sums of a term, times its coefficient."""
        if not self.by_group:
            return
        batch = part.batch
        places = {Per.PAIR: batch.pairs.group_index, Per.GROUP: torch.arange(len(batch.groups))}
        entries = torch.stack(
            [term.coefficient * torch.where(weights > 0, term.values, 0.0) * weights, weights],
            dim=-1,
        )
        if term.per is Per.TOKEN:
            entries = entries.sum(dim=1)
        sums = entries.new_zeros(len(batch.groups), 2)
        sums.index_add_(0, places.get(term.per, batch.group_index).to(sums.device), entries)
        self.per_group.setdefault(name, {}).update(zip(part.groups, sums.tolist(), strict=True))

    def means(self, collectives: Collectives = ONE_PROCESS) -> dict[str, float]:
        """The mean of every term with an entry that counts, over the micro-batches of all
        processes.
        """
        sums, totals = self.sums.over(collectives), self.totals.over(collectives)
        return {name: sums[name] / totals[name] for name in sums if totals[name]}


def means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of metrics over optimizer steps, each over those that have it."""
    values: dict[str, list[float]] = defaultdict(list)
    for step in steps:
        for name, value in step.items():
            values[name].append(value)
    return {name: sum(column) / len(column) for name, column in values.items()}


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """The sum of values times weights: []. Values of weight 0 may be anything, NaN included."""
    return (torch.where(weights > 0, values, 0.0) * weights).sum()


HIDDEN_SIZE = 576
ALL_WEIGHTS = 0.1  # all weights take this part of LoRA's rate


def schedule(settings: Settings, rate: float, step: int, total: int, part: float = 1.0) -> float:
    """Factor on the learning rate at step 0, 1, ... of `total`; it rises to 1 over the first
    `warmup_ratio` of them.

    rate: the highest one. part: how much of a long step is done, such as an iteration's share of
    minibatches; the factor rises within it.
    """
    warmup = math.ceil(settings.warmup_ratio * total)
    if step < warmup:
        return (step + part) / warmup
    return factor_of(settings.lr_scheduler_type, step=step, total=total, warmup=warmup, rate=rate)


def minibatch(
    examples: Examples, units: Sequence[Sequence[int]], order: Sequence[int], size: int, index: int
) -> Examples:
    """Batch `index` of ceil(units / size) nearly equal ones, of at most `size` units of groups, in
    an order of units.

    Full batches and a remainder would make one group as large a step as `size` of them, because a
    loss is a mean.
    """
    total, parts = len(order), math.ceil(len(order) / size)
    chosen = order[index * total // parts : (index + 1) * total // parts]
    return examples.take([*chain.from_iterable(units[unit] for unit in chosen)])


def minibatches(examples: Examples, size: int, random: Generator) -> list[Examples]:
    """Shuffled minibatches. Bundles stay whole and count as one group."""
    units = indivisible([encoded.group.bundle for encoded in examples.groups])
    order = random.permutation(len(units)).tolist()
    return [
        minibatch(examples, units, order, size, index)
        for index in range(math.ceil(len(units) / size))
    ]


def scaled(rate: float, hidden_size: int, lora: bool) -> float:
    """An algorithm's default for a model. Narrower models keep the rate: it was not measured on
    any.
    """
    return float(
        f"{rate * min(1.0, HIDDEN_SIZE / hidden_size) * (1.0 if lora else ALL_WEIGHTS):.2g}"
    )


def learning_rate(stage: ActiveStage, defaults: StageDefaults) -> float:
    """The stage's learning rate: as written, or the algorithm's default for this model."""
    if stage.settings.learning_rate is not None:
        return stage.settings.learning_rate
    rate = defaults.learning_rate or LEARNING_RATE
    return scaled(rate, stage.model.hidden_size, stage.model.spec.lora is not None)

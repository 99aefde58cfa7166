"""The optimizer step: every algorithm's loss passes through here.

A step takes a global batch of groups, cuts it into packed micro-batches by token budget, and averages each loss term
over the whole global batch, so results do not depend on the cuts.

An algorithm's default learning rate is for LoRA on a hidden size of 576 (SmolLM2-135M), where the defaults were
measured. The best rate of AdamW falls with the width of a model, as 1 / width for the same training (Yang et al. 2022,
arXiv:2203.03466), and LoRA takes about ten times the rate of training all weights, whatever its rank (Schulman et al.
2025, "LoRA Without Regret"). A written rate is used as it is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from numpy.random import Generator
from torch import Tensor, nn

from alignkit import shapes
from alignkit.algorithm import Algorithm, StageDefaults, Trains
from alignkit.batch import Batch, Outputs, Per, Term
from alignkit.calls import call, label_of, remembered
from alignkit.errors import RunFailed
from alignkit.kernels.memory import TrimOnGrowth
from alignkit.models.memory import within_memory
from alignkit.models.packing import Examples, Wants, forward, indivisible, join_outputs, micro_batches
from alignkit.models.shared_model import SharedModel
from alignkit.optimizers import factor_of, make_optimizer, restore_state, saved_state
from alignkit.settings import LEARNING_RATE, Settings
from alignkit.training.collectives import ONE_PROCESS, Collectives
from alignkit.training.context import StageContext

if TYPE_CHECKING:
    from alignkit.settings import Settings
    from alignkit.training.sampler import AuxiliaryLoss

NON_FINITE_IN_A_ROW = 5  # steps after which the stage fails


@dataclass(frozen=True)
class MicroBatch:
    """Groups that one forward pass takes. rows: the indices of their responses in the global batch."""

    examples: Examples
    batch: Batch
    rows: list[int]


Cuts = Callable[[], list[MicroBatch]]  # this process's part of a global batch, in micro-batches for the present memory


@dataclass
class Learner:
    """The optimizer of a stage's trained roles: the policy or reward model, and the value role if there is one.

    temperature: of the policy's distributions. collectives: every process passes the same global batches, learns from
    its share of them, and takes the same steps. skipped: steps in a row whose loss or gradient was not finite.
    unfit: of the last such step, what was not finite.
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
    unfit: str = ""
    trim: TrimOnGrowth = field(init=False, default_factory=TrimOnGrowth)
    optimizer: torch.optim.Optimizer = field(init=False)
    parameters: dict[str, nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = {}
        for role in self._roles.values():
            # With the role, because copies of a model (`lora: none`) name their parameters alike.
            trainable = self.model.make_trainable(role).items()
            self.parameters |= {f"{role}:{name}": parameter for name, parameter in trainable}
        self.optimizer = make_optimizer(self.settings, self.parameters.values(), self.peak_rate)

    @property
    def peak_rate(self) -> float:
        """The learning rate before the schedule."""
        return LEARNING_RATE if self.settings.learning_rate is None else self.settings.learning_rate

    @property
    def _roles(self) -> dict[str, str]:
        """The trained roles, by the name of the metric of their gradient's norm."""
        roles = {"grad_norm": self.role}
        if self.value_role is not None:
            roles["value_grad_norm"] = self.value_role
        return roles

    @property
    def token_budget(self) -> int:
        """Tokens of a micro-batch. A value role with its own network halves it: both networks store activations."""
        own_network = self.value_role is not None and self.model.backbone_role(self.value_role) != self.role
        return self.model.token_budget // (1 + own_network)

    # One optimizer step

    def step(self, examples: Examples, lr_factor: float) -> dict[str, float]:
        """Learn from one global batch; returns its metrics. Raises RunFailed after too many non-finite steps."""
        learning_rate = self.peak_rate * lr_factor
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        metrics = self._gradients(examples) | self._clip()
        # A skipped step counts, too: batches and the schedule follow from the number of steps.
        self.steps += 1
        metrics["learning_rate"] = learning_rate
        # These are sums over all processes, so either every process skips the step or none does.
        if all(math.isfinite(metrics[name]) for name in metrics if name.endswith("grad_norm") or name == "loss"):
            self.optimizer.step()
            self.skipped = 0
        else:
            metrics["skipped"] = 1.0
            self._skip()
        self.trim.check()
        return metrics

    def _gradients(self, examples: Examples) -> dict[str, float]:
        """Set the gradients of one global batch; returns its loss terms and metrics."""
        before = self.model.recomputed
        cuts = self._cuts(examples, lambda: self.token_budget)
        self._before_step(examples, cuts)
        # Before any backward pass: each micro-batch divides by what the whole global batch counts.
        totals = self._denominators([part.batch for part in cuts()])

        def learn() -> tuple[dict[str, float], Averages]:
            self.optimizer.zero_grad(set_to_none=True)  # an attempt that ran out of memory may have set some
            sums, metrics = self._pass(cuts(), totals)
            if self.auxiliary is not None:
                sums["mix/nll"] = self._mix(self.auxiliary)
            return sums, metrics

        # Other processes wait in the collectives, so nothing that may be repeated uses it.
        sums, metrics = within_memory(self.model.memory, learn)
        self.collectives.add_gradients(self.parameters.values())
        recomputed = self.collectives.sum({"recomputed": float(self.model.recomputed - before)})
        means = self.collectives.sum(sums)
        broken = [name for name in means if not math.isfinite(means[name]) and name not in ("loss", "mix/nll")]
        self.unfit = "its loss or gradient"
        if broken:
            self.unfit = f"loss term '{broken[0]}' of {label_of(self.algorithm)}, in `{type(self.algorithm).__name__}`,"
        numbers = means | metrics.means(self.collectives)
        if self.model.memory.halvings:
            numbers["token_budget"] = float(self.token_budget)
        if recomputed["recomputed"]:
            numbers |= recomputed
        return numbers

    def _cuts(self, examples: Examples, budget: Callable[[], int]) -> Cuts:
        """The groups of this process, cut again only if the budget has changed. Bundles stay whole."""
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
                parts.append(MicroBatch(part, part.batch(self.model.device), examples.rows_of(indices)))
            return parts

        return lambda: cut(budget())  # the budget shrinks if memory runs out

    def _clip(self) -> dict[str, float]:
        """Clip each role's gradient separately, so that large value gradients do not shrink the policy's."""
        norms = {}
        for name, role in self._roles.items():
            parameters = [p for key, p in self.parameters.items() if key.startswith(f"{role}:")]
            norms[name] = self.collectives.clip(parameters, self.settings.max_grad_norm)
        return norms

    def _skip(self) -> None:
        self.skipped += 1
        if self.skipped == NON_FINITE_IN_A_ROW:
            raise RunFailed(f"{self.unfit} was not finite in {self.skipped} steps in a row; lower learning_rate")

    # Gradients

    def _pass(
        self, parts: Sequence[MicroBatch], totals: Mapping[str | Per, float]
    ) -> tuple[dict[str, float], Averages]:
        """The shares of the loss and its terms, whose gradients are added up where there are any; and metrics."""
        sums: dict[str, float] = {}
        metrics = Averages()
        for part in parts:
            out = self._forward(part.examples)
            loss, shares = self._loss(part.batch, out, totals)
            # Here, and not after the loop, so that one micro-batch's activations are stored at a time.
            if torch.is_grad_enabled():
                self.model.passes.backward(loss)
            for name, share in {**shares, "loss": loss}.items():
                sums[name] = sums.get(name, 0.0) + float(share.detach())
            with torch.no_grad():
                wanted = partial(shapes.terms, part.batch)
                metrics.add(call(self.algorithm, "report_metrics", part.batch, out, returns=wanted), part.batch)
        return sums, metrics

    def _loss(self, batch: Batch, out: Outputs, totals: Mapping[str | Per, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's share of the loss, and of each of its terms."""
        terms = call(self.algorithm, "loss", batch, out, returns=partial(shapes.loss, batch))
        weights = term_weights(self.algorithm, batch, terms)
        loss = torch.zeros((), device=self.model.device)
        shares: dict[str, Tensor] = {}
        for name, term in terms.items():
            # The global denominator, not this micro-batch's: the shares then add up to one mean, however they are cut.
            unit = name if name in weights else term.per
            shares[name] = weighted_sum(term, batch, weights.get(name)) / totals[unit]
            loss = loss + term.coefficient * shares[name]
        return loss, shares

    def _before_step(self, examples: Examples, cuts: Cuts) -> None:
        """Let the algorithm see the outputs for the whole global batch, those of other processes included."""
        if type(self.algorithm).before_step is Algorithm.before_step or not examples.groups:
            return

        @torch.no_grad()
        def measured() -> list[tuple[list[int], Outputs]]:
            return [(part.rows, self._forward(part.examples)) for part in cuts()]

        # Gathered outside of `within_memory`, because the work inside may be repeated in one process only.
        gathered = self.collectives.gather(within_memory(self.model.memory, measured))
        # rows: places in the global batch, by which `join_outputs` restores its order.
        rows, outs = zip(*chain.from_iterable(gathered), strict=True)
        with torch.no_grad():
            batch, out = examples.batch(self.model.device), join_outputs(outs, rows)
            self.algorithm.state |= call(self.algorithm, "before_step", batch, out, returns=dict)

    def _denominators(self, batches: Sequence[Batch]) -> dict[str | Per, float]:
        """The denominator of each term: the sum of the weights of its entries in the global batch."""
        totals: dict[str | Per, float] = {}
        for batch in batches:
            for per in Per:
                totals[per] = totals.get(per, 0.0) + float(batch.weights(per).sum())
            for name, weights in term_weights(self.algorithm, batch).items():
                totals[name] = totals.get(name, 0.0) + float(weights.sum())
        # A batch without a counted token, pair, or group has loss 0 and no gradient.
        return {key: total or 1.0 for key, total in self.collectives.sum(totals).items()}

    def _mix(self, auxiliary: AuxiliaryLoss) -> float:
        """Add the gradients of the second stream's token-mean cross-entropy times its weight; returns the mean.

        Both are this process's share of them.
        """
        # `steps` is incremented later, so the first batch is number 0, and a repeated attempt gets the same one.
        examples = Examples(auxiliary.batch(self.steps))
        # Of all groups, not only this process's: the collectives adds gradients up and does not average them.
        total = float(examples.batch().weights(Per.TOKEN).sum()) or 1.0
        nll = 0.0
        for part in self._cuts(examples, lambda: self.model.token_budget)():
            if part.batch.mask.any():
                logprobs = forward(self.model, self.role, part.examples, Wants()).logprobs
                loss = -(logprobs * part.batch.weights(Per.TOKEN))[part.batch.mask].sum() / total
                self.model.passes.backward(auxiliary.weight * loss)
                nll += float(loss.detach())
        return nll

    def _forward(self, examples: Examples) -> Outputs:
        """The outputs that the loss needs, [responses, tokens] or [responses], with gradients."""
        if self.algorithm.trains is Trains.REWARD:
            return forward(self.model, self.role, examples, Wants(logprobs=False, scores=True))
        wants = Wants(entropy=self.algorithm.needs.entropy, values=self.value_role, temperature=self.temperature)
        return forward(self.model, self.role, examples, wants)

    def evaluate(self, examples: Examples) -> dict[str, float]:
        """Loss terms and metrics over all examples, without gradients. The algorithm's state does not change."""
        state = dict(self.algorithm.state)  # a copy, because `before_step` updates the dict in place
        cuts = self._cuts(examples, lambda: self.model.inference_budget)
        try:
            with torch.no_grad():
                self._before_step(examples, cuts)
                totals = self._denominators([part.batch for part in cuts()])
                sums, metrics = within_memory(self.model.memory, lambda: self._pass(cuts(), totals))
        finally:
            self.algorithm.state = state
        terms = self.collectives.sum(sums)
        loss = terms.pop("loss")  # last, as no metric may take the place of what the best epoch is chosen by
        return terms | metrics.means(self.collectives) | {"loss": loss}

    # State

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON state that a resumed run needs."""
        weights = {f"weight/{name}": self.collectives.whole(parameter) for name, parameter in self.parameters.items()}
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        moments, plain = saved_state(self.optimizer, names, self.collectives.whole)
        return weights | moments, {
            "steps": self.steps,
            "skipped": self.skipped,
            "algorithm": remembered(self.algorithm, "before_step"),
            "optimizer": plain,
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """The inverse of `state`. Raises RunFailed if a part is missing."""
        for name, parameter in self.parameters.items():
            if f"weight/{name}" not in tensors:
                raise RunFailed(f"the checkpoint has no weights for {name}; delete the stage's folder to start over")
            # In place, because the optimizer and the model hold this very tensor.
            parameter.data.copy_(self.collectives.part(tensors[f"weight/{name}"], parameter))
        restore_state(self.optimizer, self.parameters, tensors, state["optimizer"], self.collectives.part)
        self.steps, self.skipped = state["steps"], state["skipped"]
        self.restore_algorithm(state)

    def restore_algorithm(self, state: Mapping[str, Any]) -> None:
        """Let the algorithm remember what a checkpoint kept, and nothing else."""
        # Copied: a stage restores it twice, and `before_step` changes it in place.
        self.algorithm.state = copy.deepcopy(dict(state["algorithm"]))


# Averages: of unreduced terms over a global batch, and of metrics over steps


class Averages:
    """Weighted means of metrics over several micro-batches. Entries that are NaN, "unknown", do not count."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.totals: dict[str, float] = {}

    def add(self, terms: Mapping[str, Term], batch: Batch) -> None:
        for name, term in terms.items():
            weight = batch.weights(term.per)
            counted = (weight > 0) & ~term.values.isnan()
            total = torch.where(counted, term.values, 0.0) * weight
            self.sums[name] = self.sums.get(name, 0.0) + float(total.sum())
            self.totals[name] = self.totals.get(name, 0.0) + float(weight[counted].sum())

    def means(self, collectives: Collectives = ONE_PROCESS) -> dict[str, float]:
        """The mean of every term with an entry that counts, over the micro-batches of all processes."""
        sums, totals = collectives.sum(self.sums), collectives.sum(self.totals)
        return {name: sums[name] / totals[name] for name in sums if totals[name]}


def means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of metrics over optimizer steps, each over those that have it."""
    values: dict[str, list[float]] = {}
    for step in steps:
        for name, value in step.items():
            values.setdefault(name, []).append(value)
    return {name: sum(column) / len(column) for name, column in values.items()}


def term_weights(algorithm: Algorithm, batch: Batch, terms: Mapping[str, Term] | None = None) -> Mapping[str, Tensor]:
    """Weights by the name of their term, in its shape."""
    weights: Mapping[str, Tensor] = call(algorithm, "term_weights", batch, returns=partial(shapes.weights, terms or {}))
    return weights


def weighted_sum(term: Term, batch: Batch, weights: Tensor | None = None) -> Tensor:
    """The sum of a term's entries, weighted: []. Entries of weight 0 may be anything, NaN included."""
    weights = batch.weights(term.per) if weights is None else weights
    return (torch.where(weights > 0, term.values, 0.0) * weights).sum()


HIDDEN_SIZE = 576
ALL_WEIGHTS = 0.1  # all weights take this part of LoRA's rate


def schedule(settings: Settings, rate: float, step: int, total: int, part: float = 1.0) -> float:
    """Factor on the learning rate at step 0, 1, ... of `total`; it rises to 1 over the first `warmup_ratio` of them.

    rate: the highest one. part: how much of a long step is done, such as an iteration's share of minibatches; the
    factor rises within it.
    """
    warmup = math.ceil(settings.warmup_ratio * total)
    if step < warmup:
        return (step + part) / warmup
    return factor_of(settings.lr_scheduler_type, step=step, total=total, warmup=warmup, rate=rate)


def share_of(total: int, size: int, index: int) -> slice:
    """Place `index` of ceil(total / size) nearly equal parts of `total` entries.

    Full parts and a remainder would make one entry as large a step as `size` of them, because a loss is a mean.
    """
    parts = math.ceil(total / size)
    return slice(index * total // parts, (index + 1) * total // parts)


def minibatches(examples: Examples, size: int | None, random: Generator) -> Iterator[Examples]:
    """Shuffled minibatches of nearly equal size, of at most `size` groups; None: one batch of all.

    Bundles stay whole and count as one group.
    """
    units = indivisible([encoded.group.bundle for encoded in examples.groups])
    order = random.permutation(len(units)).tolist()
    size = size or max(1, len(units))
    for number in range(math.ceil(len(order) / size)):
        chosen = order[share_of(len(order), size, number)]
        yield examples.take([*chain.from_iterable(units[unit] for unit in chosen)])


def scaled(rate: float, hidden_size: int, lora: bool) -> float:
    """An algorithm's default for a model. Narrower models keep the rate: it was not measured on any."""
    return float(f"{rate * min(1.0, HIDDEN_SIZE / hidden_size) * (1.0 if lora else ALL_WEIGHTS):.2g}")


def learning_rate(context: StageContext, defaults: StageDefaults) -> float:
    """The stage's learning rate: as written, or the algorithm's default for this model.

    Raises RunFailed for a schedule that cannot be used, which ten steps show before the first real one.
    """
    for step in range(10):
        factor_of(context.settings.lr_scheduler_type, step=step, total=10, warmup=0, rate=1.0)
    if context.settings.learning_rate is not None:
        return context.settings.learning_rate
    lora, hidden_size = context.model.spec.lora is not None, context.model.hidden_size
    rate = scaled(defaults.learning_rate or LEARNING_RATE, hidden_size, lora)
    trained = "LoRA" if lora else "all weights"
    context.activity(f"learning_rate {rate:g}, the default for {trained} and hidden size {hidden_size}")
    return rate

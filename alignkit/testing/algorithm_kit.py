"""The rules of algorithms: runs one on the model `tiny` as a stage does, and on batches that must not change it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import compress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignkit import shapes
from alignkit.algorithm import ADVANTAGES, Algorithm, SelectContext, Skip, Source, Trains
from alignkit.batch import Batch, Outputs, filled
from alignkit.calls import call
from alignkit.data.group import Group
from alignkit.errors import AlignkitError
from alignkit.loss import Per
from alignkit.models.packing import Examples, measure
from alignkit.models.shared_model import BASE
from alignkit.reward import REWARD_KEY
from alignkit.settings import Settings
from alignkit.testing.examples import encode_all, example_groups
from alignkit.testing.rules import ConformanceError, check_registered, state_problems
from alignkit.testing.tiny import ONE_BATCH, add_noise, tiny_model
from alignkit.tokens.encoder import Encoded, Encoder
from alignkit.training.encoding import ReferencePrompts
from alignkit.training.learner import Learner, term_weights
from alignkit.training.mismatch import times
from alignkit.training.stage import keep_mask, select

TOLERANCE = 1e-5  # relative; float32 sums in another order differ by about 1e-6
GARBAGE = 20.0  # entries outside the mask are drawn from -20 to 20: exp() of their differences is still finite
LONGEST = 256  # tokens of a prompt with a response
ROLE, BEFORE, VALUE, VALUE_BEFORE = "checked", "before", "value", "value-before"

SAME = "a loss must not draw random numbers, and what it remembers belongs in `state`"
RESUMED = "a resumed run would lose it; what `signal` remembers belongs in self.state"
MICRO = (
    "return unreduced entries (per_token, per_pair, ...) that depend only on their own response, pair or group; "
    "statistics over the whole batch belong in `before_step` or `signal`"
)
ORDER = "use batch.group_index and batch.pairs, not positions in the batch"
MASK = "sums and means over tokens must use batch.mask (functional.sum_tokens, functional.masked_mean)"
LINEAR = "with `Needs(advantages=...)` the loss must be linear in them; leave it out if it is not"
APART = "if responses of a group are meant to affect each other in the loss, pass `separable=False`"

Numbers = dict[str, Tensor]  # logged numbers and gradients, or signals, each as one vector


def check_algorithm(
    cls: type[Algorithm],
    options: Mapping[str, Any] | None = None,
    *,
    groups: Sequence[Group] | None = None,
    separable: bool | None = None,
) -> None:
    """Raise ConformanceError listing every rule that an algorithm breaks (see the table in `alignkit.testing`).

    Args:
        options: As in a recipe.
        groups: To learn from, instead of `example_groups`; for an algorithm that learns from rollouts every response
            needs `tokens` and a `reward` among its scores.
        separable: Whether responses (or pairs) that share a prompt can be put into groups of their own without changing
            the loss; default: inferred from the terms of the loss and `needs`.
    """
    check_registered("algorithm", cls)
    kit = _Kit(cls, dict(options or {}), groups, separable)
    try:
        problems = kit.problems()
    finally:
        kit.close()
    if problems:
        raise ConformanceError("\n".join(f"{cls.__name__}: {problem}" for problem in problems))


class _Kit:
    """An algorithm on the tiny model. The role `before` wrote the rollouts; `checked` has learned a little since."""

    def __init__(
        self, cls: type[Algorithm], options: dict[str, Any], groups: Sequence[Group] | None, separable: bool | None
    ):
        self.cls, self.options, self.separable = cls, options, separable
        self.model = tiny_model()
        self.encoder = Encoder(self.model.tokenizer)
        self.rollouts = cls.source is Source.ROLLOUTS
        self.needs = self.new().needs
        self.roles = [BEFORE, ROLE, *((VALUE_BEFORE, VALUE) if self.needs.values else ())]
        for number, role in enumerate(self.roles):
            scalar = role in (VALUE, VALUE_BEFORE) or (role == ROLE and cls.trains is Trains.REWARD)
            start = None if number % 2 == 0 else self.roles[number - 1]
            self.model.add_role(role, start=start, head="scalar" if scalar else "language")
            add_noise(self.model, role, 0.05 if start is None else 0.01, number)
        examples = example_groups(max(3, self.needs.min_samples), self.encoder if self.rollouts else None)
        self.groups = list(examples if groups is None else groups)

    def new(self, state: Mapping[str, Any] | None = None) -> Algorithm:
        """The algorithm, as a run that resumes with this state makes it."""
        algorithm = self.cls(self.cls.Options(**self.options))
        if state is not None:
            algorithm.state = copy.deepcopy(dict(state))
        return algorithm

    def close(self) -> None:
        self.model.budget = ONE_BATCH
        for role in self.roles:
            self.model.drop_role(role)

    def problems(self) -> list[str]:
        """Every broken rule. Stops early if a failed check makes the later ones pointless."""
        algorithm = self.new()
        problems = state_problems(algorithm, "at first")
        try:
            rollouts = self.rolled_out(algorithm)
            if self.rollouts:
                problems += self.signal_problems(algorithm, rollouts)
                problems += state_problems(algorithm, "after `signal`")
            if problems:
                return problems
            examples = self.selected(algorithm, rollouts)
            if not examples.groups:
                return ["`select` and `needs` leave none of the example groups to learn from: pass others as `groups`"]
            return self.loss_problems(algorithm, examples)
        except AlignkitError as error:  # a mistake that training would report, such as a term's shape
            return [*problems, str(error)]

    # The inputs of an algorithm, as in training

    def rolled_out(self, algorithm: Algorithm) -> Examples:
        """All rollouts as `signal` sees them; none for a data set."""
        if not self.rollouts:
            return Examples([])
        kept_groups = self._kept(algorithm)
        examples = self._measured(self._encoded(algorithm, kept_groups))
        if self.needs.reward:
            rewards = [response.scores[REWARD_KEY] for group in kept_groups for response in group.responses]
            column = torch.tensor([float(reward or 0.0) for reward in rewards], dtype=torch.float64)
            examples.columns |= {"rewards": column, "raw_rewards": column}
        if self.needs.values:
            examples.token_columns["old_values"] = measure(self.model, VALUE_BEFORE, examples.groups, "values")
        return examples

    def selected(self, algorithm: Algorithm, rollouts: Examples) -> Examples:
        """The examples of the first phase, chosen as in a stage."""
        kept_groups = self._kept(algorithm) if self.rollouts else self.groups
        context = SelectContext(1, 0, lambda: [], lambda **metrics: None, np.random.default_rng(0))
        groups = select(algorithm, kept_groups, context)[0].groups
        index_of = {id(encoded.group): index for index, encoded in enumerate(rollouts.groups)}
        if self.rollouts and all(id(group) in index_of for group in groups):
            examples = rollouts.take([index_of[id(group)] for group in groups])
        else:
            examples = self._measured(self._encoded(algorithm, groups))
        return examples.take([index for index, e in enumerate(examples.groups) if self._is_learnable(e)])

    def _kept(self, algorithm: Algorithm) -> list[Group]:
        return [*compress(self.groups, keep_mask(algorithm, self.groups))]

    def _is_learnable(self, encoded: Encoded) -> bool:
        fewest = 1 if self.rollouts else self.needs.min_samples
        has_pairs = bool(encoded.pairs) or not self.needs.pairs
        return len(encoded.rows) >= fewest and has_pairs and any(any(row.mask) for row in encoded.rows)

    def _encoded(self, algorithm: Algorithm, groups: Sequence[Group]) -> list[Encoded]:
        scoring = self.cls.trains is Trains.REWARD
        return encode_all(self.encoder, groups, LONGEST, turns=call(algorithm, "trained_turns"), scoring=scoring)

    def _measured(self, encoded: list[Encoded]) -> Examples:
        """With the log-probabilities that the algorithm needs, and no others."""
        examples = Examples(encoded)
        read = ReferencePrompts(self.new(), self.encoder, self.model).encoded(encoded)
        for name, role, groups in (("old_logprobs", BEFORE, encoded), ("reference_logprobs", BASE, read)):
            if getattr(self.needs, name):
                examples.token_columns[name] = measure(self.model, role, groups, "logprobs")
        return examples

    # Rules

    def signal_problems(self, algorithm: Algorithm, rollouts: Examples) -> list[str]:
        """Add the signal to the rollouts, and check it on variants of them."""
        start = copy.deepcopy(algorithm.state)
        signals = _signal(algorithm, rollouts)
        if isinstance(signals, Skip):
            return [f"`signal` skips the example groups ({signals.reason}): pass others as `groups`"]
        rollouts.add_signals(signals)
        expected = counted_signals(rollouts)
        for name, values in expected.items():
            if not bool(values.isfinite().all()):
                return [f"{name} is not finite everywhere"]
        spoiled, turned = GarbageExamples.of(rollouts), shuffled(rollouts)
        twice = {name: 2 * column if name.endswith("rewards") else column for name, column in rollouts.columns.items()}
        later = Examples(rollouts.groups, dict(rollouts.token_columns), twice)
        resumed = _signals(self.new(algorithm.state), later)
        return [
            *changes("a second call of `signal` from the same state", expected, _signals(self.new(start), rollouts)),
            *changes("garbage outside the mask", expected, _signals(self.new(start), spoiled), MASK),
            *changes(
                "the order of groups and responses", counted_signals(turned), _signals(self.new(start), turned), ORDER
            ),
            *changes("what `signal` remembers outside of `state`", resumed, _signals(algorithm, later), RESUMED),
        ]

    def loss_problems(self, algorithm: Algorithm, examples: Examples) -> list[str]:
        """Check the gradient of a global batch, and of variants that must have the same gradient."""
        state = copy.deepcopy(algorithm.state)
        probe = Probe(self.model, algorithm, Settings(), ROLE, VALUE if self.needs.values else None)

        def gradient(variant: Examples, budget: int = ONE_BATCH, garbage: bool = False) -> Numbers:
            algorithm.state = copy.deepcopy(state)
            self.model.budget, probe.garbage = budget, garbage
            return probe.gradient(variant)

        expected = gradient(examples)
        problems = state_problems(algorithm, "after `before_step`") + finite_problems(expected)
        problems = problems or changes("a second pass over the same batch", expected, gradient(examples), SAME)
        if problems:
            return problems
        spoiled = gradient(GarbageExamples.of(examples), garbage=True)
        problems += changes("cutting the batch into micro-batches", expected, gradient(examples, budget=1), MICRO)
        problems += changes("the order of groups and responses", expected, gradient(shuffled(examples)), ORDER)
        problems += changes("garbage outside the mask", expected, spoiled, MASK)
        if self.needs.advantages is not None:
            problems += self._weight_problems(examples, expected, gradient)
        apart = self._apart(probe, examples)
        if apart is not None and not problems:
            problems += changes("a separate group for every response", expected, gradient(apart), APART)
        return problems

    def _weight_problems(
        self, examples: Examples, expected: Numbers, gradient: Callable[[Examples], Numbers]
    ) -> list[str]:
        """Check that weights of the advantages, as those of `rollout.importance`, are weights of the gradient."""
        mask = examples.batch().mask
        shape = mask.shape if self.needs.advantages == "token" else mask.shape[:1]
        weights = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0))
        # Their mean is 1, so the mean of both gradients is the one without weights.
        first, second = (gradient(with_weights(examples, each)) for each in (weights, 2 - weights))
        gradients = {name: values for name, values in expected.items() if name in GRADIENTS}
        mean = {name: (first[name] + second[name]) / 2 for name in gradients}
        return changes("weighting the advantages", gradients, mean, LINEAR)

    def _apart(self, probe: Probe, examples: Examples) -> Examples | None:
        """The same with a group for every response or pair; None if that may change what is learned."""
        terms = probe.terms(examples)
        kinds = {per for per, _ in terms}
        if self.needs.pairs:
            separable = kinds == {Per.PAIR} and not any(weighted for _, weighted in terms)
        else:
            separable = kinds <= {Per.TOKEN, Per.RESPONSE} and self.needs.min_samples <= 1
        if not (separable if self.separable is None else self.separable):
            return None
        return one_group_per_pair(examples) if self.needs.pairs else one_group_per_response(examples)


def _signal(algorithm: Algorithm, examples: Examples) -> Any:
    batch = examples.batch()
    return call(algorithm, "signal", batch, returns=shapes.signals(algorithm, batch))


def _signals(algorithm: Algorithm, examples: Examples) -> Numbers:
    """The signals of examples that have others, or none; empty if the algorithm skips them."""
    signals = _signal(algorithm, examples)
    if isinstance(signals, Skip):
        return {}
    fresh = Examples(examples.groups, dict(examples.token_columns), dict(examples.columns))
    fresh.add_signals(signals)
    return counted_signals(fresh)


def counted_signals(examples: Examples) -> Numbers:
    """Every signal as one vector: of the tokens that count, or of the responses."""
    signals = {}
    for name in examples.signal_names:
        if name in examples.columns:
            signals[f"signal '{name}'"] = examples.columns[name].float()
        else:
            columns = zip(examples.rows, examples.token_columns[name], strict=True)
            counted = [values[torch.tensor(row.mask, dtype=torch.bool)] for row, values in columns]
            signals[f"signal '{name}'"] = torch.cat(counted)
    return signals


def finite_problems(found: Numbers) -> list[str]:
    """Losses and gradients must be finite, and not all zero."""
    problems = []
    for name, values in found.items():
        if not bool(values.isfinite().all()):
            why = "not finite: look for sqrt, log or a division at 0, also outside the mask"
            problems.append(f"{name} is {why if name in GRADIENTS else values.item()}")
    if not problems and not bool(found["the gradient"].any()):
        problems.append("the gradient is zero everywhere: nothing is learned (is `out` detached?)")
    return problems


def changes(cause: str, expected: Numbers, actual: Numbers, help: str = SAME) -> list[str]:
    """One line that lists everything that differs."""
    wrong = []
    for name in expected | actual:
        old, new = expected.get(name), actual.get(name)
        floor = 1e-12 if name in GRADIENTS or name.startswith("signal") else 1.0
        difference = math.nan
        if old is not None and new is not None and old.shape == new.shape:
            difference = float((new - old).norm()) / max(float(old.norm()), floor)
        if not difference <= TOLERANCE:
            wrong.append(f"{name} by {difference:.2g}")
    return [f"{cause} changes {', '.join(wrong)} (relative; up to {TOLERANCE:g} is allowed): {help}"] if wrong else []


GRADIENTS = ("the gradient", "the value gradient")


class Probe(Learner):
    """A learner that takes no step. With `garbage`, the outputs of its roles are garbage outside the mask."""

    garbage = False

    def gradient(self, examples: Examples) -> Numbers:
        """The metrics of a global batch, and the gradient of each role as one vector."""
        metrics = self._gradients(examples)
        found = {}
        for role, name in zip((self.role, self.value_role), GRADIENTS, strict=True):
            parameters = [p for key, p in self.parameters.items() if role is not None and key.startswith(f"{role}:")]
            if parameters:
                grads = [p.grad if p.grad is not None else 0 * p.detach() for p in parameters]
                found[name] = torch.cat([grad.flatten() for grad in grads])
        return found | {f"'{name}'": torch.tensor([value], dtype=torch.float64) for name, value in metrics.items()}

    def terms(self, examples: Examples) -> list[tuple[Per, bool]]:
        """The unit that each term of the loss is averaged over, and whether the term has weights."""
        with torch.no_grad():
            batch = examples.batch(self.model.device)
            terms = self.algorithm.loss(batch, self._forward(examples))
            weights = term_weights(self.algorithm, batch)
        return [(term.per, name in weights) for name, term in terms.items()]

    def _forward(self, examples: Examples) -> Outputs:
        out = super()._forward(examples)
        mask = examples.batch(self.model.device).mask
        for name, values in filled(out).items() if self.garbage else ():
            if name != "scores":
                setattr(out, name, _with_garbage(values, mask))
        return out


# Variants of a batch


class GarbageExamples(Examples):
    """Examples whose batches hold garbage outside the mask."""

    @classmethod
    def of(cls, examples: Examples) -> GarbageExamples:
        return cls(**{field.name: getattr(examples, field.name) for field in fields(Examples)})

    def take(self, indices: Sequence[int]) -> Examples:
        return GarbageExamples.of(super().take(indices))

    def batch(self, device: torch.device | str = "cpu") -> Batch:
        batch = super().batch(device)
        for name, values in filled(batch).items():
            if name in ("old_logprobs", "reference_logprobs", "old_values"):
                setattr(batch, name, _with_garbage(values, batch.mask))
        batch.signals = {n: _with_garbage(x, batch.mask) if x.dim() == 2 else x for n, x in batch.signals.items()}
        return batch


def _with_garbage(values: Tensor, mask: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    noise = GARBAGE * (2 * torch.rand(values.shape, generator=generator) - 1)
    return torch.where(mask, values, noise.to(values))


def shuffled(examples: Examples) -> Examples:
    """Groups in another order, and their responses reversed."""
    order = range(len(examples.groups))
    shuffled = [*order[1::2], *order[::2]][::-1]
    return _regrouped(examples, [(i, range(len(examples.groups[i].rows))[::-1]) for i in shuffled])


def with_weights(examples: Examples, weights: Tensor) -> Examples:
    """The same with weighted advantages. weights: [R, T] or [R]."""
    weighted = examples.take(range(len(examples.groups)))
    weighted.add_signals({ADVANTAGES: times(examples.batch().signals[ADVANTAGES], weights)})
    return weighted


def one_group_per_response(examples: Examples) -> Examples:
    """Every response in a group of its own."""
    return _regrouped(
        examples, [(i, [row]) for i, group in enumerate(examples.groups) for row, _ in enumerate(group.rows)]
    )


def one_group_per_pair(examples: Examples) -> Examples:
    """Every pair in a group of its own."""
    pairs = [(i, pair) for i, group in enumerate(examples.groups) for pair in group.pairs]
    return _regrouped(examples, list(dict.fromkeys((i, tuple(sorted((p.better, p.worse)))) for i, p in pairs)))


def _regrouped(examples: Examples, plan: Sequence[tuple[int, Sequence[int]]]) -> Examples:
    """New groups of old groups' responses, [(group, its rows)], with all pairs between these rows."""
    groups, rows = [], []
    for index, chosen in plan:
        encoded = examples.groups[index]
        position = {row: number for number, row in enumerate(chosen)}
        inside = [pair for pair in encoded.pairs if pair.better in position and pair.worse in position]
        pairs = tuple(replace(pair, better=position[pair.better], worse=position[pair.worse]) for pair in inside)
        responses = tuple(encoded.group.responses[row] for row in chosen)
        group = replace(encoded.group, responses=responses, pairs=pairs or None)
        groups.append(Encoded(group, encoded.prompt, tuple(encoded.rows[row] for row in chosen), pairs))
        rows += [examples.offsets[index] + row for row in chosen]
    return Examples(
        groups,
        {name: [column[row] for row in rows] for name, column in examples.token_columns.items()},
        {name: column[rows] for name, column in examples.columns.items()},
        examples.signal_names,
    )

"""The conformance kit: runs an algorithm on the tiny model and checks every rule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from alignkit.algorithm import Algorithm, SelectContext, Skip, Source, Trains
from alignkit.data.group import Group
from alignkit.errors import AlignkitError
from alignkit.loss import Per
from alignkit.models.packing import Examples, measure
from alignkit.models.shared_model import BASE
from alignkit.reward import REWARD_KEY
from alignkit.settings import Settings
from alignkit.testing.checks import (
    TOLERANCE,
    ConformanceError,
    changes,
    counted_signals,
    finite_problems,
    finite_signal_problems,
    option_problems,
    relative_distance,
    state_problems,
)
from alignkit.testing.examples import example_groups
from alignkit.testing.probe import (
    ONE_BATCH,
    GarbageExamples,
    Gradients,
    Probe,
    add_noise,
    one_group_per_pair,
    one_group_per_response,
    shuffled,
    tiny_model,
    with_weights,
)
from alignkit.testing.purity import watched
from alignkit.tokens.encoder import Encoded, Encoder, encode_all
from alignkit.training.checked import CheckedAlgorithm
from alignkit.training.encoding import ReferencePrompts

LONGEST = 256  # tokens of a prompt with a response
ROLE, BEFORE, VALUE, VALUE_BEFORE = "checked", "before", "value", "value-before"

SAME = "a loss must not draw random numbers, and what it remembers belongs in `state`"
MICRO = (
    "return unreduced entries (per_token, per_pair, ...) that depend only on their own response, pair or group; "
    "statistics over the whole batch belong in `before_step` or `signal`"
)
ORDER = "use batch.group_index and batch.pairs, not positions in the batch"
MASK = "sums and means over tokens must use batch.mask (functional.sum_tokens, functional.masked_mean)"
LINEAR = "with `Needs(advantages=...)` the loss must be linear in them; leave it out if it is not"
APART = "if responses of a group are meant to affect each other in the loss, pass `separable=False`"


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
    problems = option_problems(cls)
    if not problems:
        kit = Kit(cls, dict(options or {}), groups, separable)
        try:
            with watched():
                problems = kit.problems()
        finally:
            kit.close()
    if problems:
        raise ConformanceError("\n".join(f"{cls.__name__}: {problem}" for problem in problems))


class Kit:
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

    def new(self) -> Algorithm:
        return self.cls(self.cls.Options(**self.options))

    def close(self) -> None:
        self.model.budget = ONE_BATCH
        for role in self.roles:
            self.model.drop_role(role)

    def problems(self) -> list[str]:
        """Every broken rule. Stops early if a failed check makes the later ones pointless."""
        algorithm = CheckedAlgorithm(self.new())
        problems = state_problems(algorithm.algorithm, "at first")
        try:
            rollouts = self.rolled_out(algorithm)
            if self.rollouts:
                problems += self.signal_problems(algorithm, rollouts)
                problems += state_problems(algorithm.algorithm, "after `signal`")
            if problems:
                return problems
            examples = self.selected(algorithm, rollouts)
            if not examples.groups:
                return ["`select` and `needs` leave none of the example groups to learn from: pass others as `groups`"]
            return self.loss_problems(algorithm.algorithm, examples)
        except AlignkitError as error:  # a mistake that training would report, such as a term's shape
            return [*problems, str(error)]

    # The inputs of an algorithm, as in training

    def rolled_out(self, algorithm: CheckedAlgorithm) -> Examples:
        """All rollouts as `signal` sees them; none for a data set."""
        if not self.rollouts:
            return Examples([])
        kept_groups = [group for group in self.groups if algorithm.keep_group(group)]
        examples = self._measured(self._encoded(algorithm, kept_groups))
        if self.needs.reward:
            rewards = [response.scores[REWARD_KEY] for group in kept_groups for response in group.responses]
            column = torch.tensor([float(reward or 0.0) for reward in rewards], dtype=torch.float64)
            examples.columns |= {"rewards": column, "raw_rewards": column}
        if self.needs.values:
            examples.token_columns["old_values"] = measure(self.model, VALUE_BEFORE, examples.groups, "values")
        return examples

    def selected(self, algorithm: CheckedAlgorithm, rollouts: Examples) -> Examples:
        """The examples of the first phase, chosen as in a stage."""
        kept_groups = [group for group in self.groups if algorithm.keep_group(group)] if self.rollouts else self.groups
        context = SelectContext(1, 0, lambda: [], lambda **metrics: None, np.random.default_rng(0))
        groups = algorithm.select(kept_groups, context)[0].groups
        index_of = {id(encoded.group): index for index, encoded in enumerate(rollouts.groups)}
        if self.rollouts and all(id(group) in index_of for group in groups):
            examples = rollouts.take([index_of[id(group)] for group in groups])
        else:
            examples = self._measured(self._encoded(algorithm, groups))
        return examples.take([index for index, e in enumerate(examples.groups) if self._is_learnable(e)])

    def _is_learnable(self, encoded: Encoded) -> bool:
        fewest = 1 if self.rollouts else self.needs.min_samples
        has_pairs = bool(encoded.pairs) or not self.needs.pairs
        return len(encoded.rows) >= fewest and has_pairs and any(any(row.mask) for row in encoded.rows)

    def _encoded(self, algorithm: CheckedAlgorithm, groups: Sequence[Group]) -> list[Encoded]:
        scoring = self.cls.trains is Trains.REWARD
        return encode_all(self.encoder, groups, LONGEST, turns=algorithm.trained_turns(), scoring=scoring)

    def _measured(self, encoded: list[Encoded]) -> Examples:
        """With the log-probabilities that the algorithm needs, and no others."""
        examples = Examples(encoded)
        algorithm = CheckedAlgorithm(self.new())
        read = ReferencePrompts(algorithm, self.encoder, self.model).encoded(encoded)
        for name, role, groups in (("old_logprobs", BEFORE, encoded), ("reference_logprobs", BASE, read)):
            if getattr(self.needs, name):
                examples.token_columns[name] = measure(self.model, role, groups, "logprobs")
        return examples

    # Rules

    def signal_problems(self, algorithm: CheckedAlgorithm, rollouts: Examples) -> list[str]:
        """Add the signal to the rollouts, and check it on variants of them."""
        state = copy.deepcopy(algorithm.algorithm.state)
        signals = algorithm.signal(rollouts.batch())
        if isinstance(signals, Skip):
            return [f"`signal` skips the example groups ({signals.reason}): pass others as `groups`"]
        rollouts.add_signals(signals)
        if problems := finite_signal_problems(rollouts):
            return problems
        return [
            *self._signal_changes("a second call of `signal` from the same state", rollouts, rollouts, state),
            *self._signal_changes("garbage outside the mask", GarbageExamples.of(rollouts), rollouts, state),
            *self._signal_changes("the order of groups and responses", shuffled(rollouts), shuffled(rollouts), state),
        ]

    def _signal_changes(self, cause: str, variant: Examples, expected: Examples, state: dict[str, Any]) -> list[str]:
        """Compare the signal of a variant with the expected one."""
        algorithm = CheckedAlgorithm(self.new())
        algorithm.algorithm.state = copy.deepcopy(state)
        signals = algorithm.signal(variant.batch())
        if isinstance(signals, Skip):
            return [f"{cause} makes `signal` skip: {signals.reason}"]
        examples = Examples(variant.groups, dict(variant.token_columns), dict(variant.columns))
        examples.add_signals(signals)
        new, problems = counted_signals(examples), []
        for name, values in counted_signals(expected).items():
            difference = relative_distance(new[name], values)
            if not difference <= TOLERANCE:
                problems.append(f"{cause} changes signal '{name}' by {difference:.2g} (relative)")
        return problems

    def loss_problems(self, algorithm: Algorithm, examples: Examples) -> list[str]:
        """Check the gradient of a global batch, and of variants that must have the same gradient."""
        state = copy.deepcopy(algorithm.state)
        value_role = VALUE if self.needs.values else None
        probe = Probe(self.model, CheckedAlgorithm(algorithm), Settings(), ROLE, value_role)

        def gradient(variant: Examples, budget: int = ONE_BATCH, garbage: bool = False) -> Gradients:
            algorithm.state = copy.deepcopy(state)
            self.model.budget, probe.garbage = budget, garbage
            return probe.gradient(variant)

        expected = gradient(examples)
        problems = state_problems(algorithm, "after `before_step`") + finite_problems(expected)
        problems = problems or changes(expected, gradient(examples), "a second pass over the same batch", SAME)
        if problems:
            return problems
        problems += changes(expected, gradient(examples, budget=1), "cutting the batch into micro-batches", MICRO)
        problems += changes(expected, gradient(shuffled(examples)), "the order of groups and responses", ORDER)
        spoiled = gradient(GarbageExamples.of(examples), garbage=True)
        problems += changes(expected, spoiled, "garbage outside the mask", MASK)
        if self.needs.advantages is not None:
            problems += self._weight_problems(examples, expected, gradient)
        apart = self._apart(probe, examples)
        if apart is not None and not problems:
            problems += changes(expected, gradient(apart), "a separate group for every response", APART)
        return problems

    def _weight_problems(
        self, examples: Examples, expected: Gradients, gradient: Callable[[Examples], Gradients]
    ) -> list[str]:
        """Check that weights of the advantages, as those of `rollout.importance`, are weights of the gradient."""
        mask = examples.batch().mask
        shape = mask.shape if self.needs.advantages == "token" else mask.shape[:1]
        weights = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0))
        # Their mean is 1, so the mean of both gradients is the one without weights.
        halves = [gradient(with_weights(examples, each)).gradients for each in (weights, 2 - weights)]
        mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in expected.gradients}
        return changes(Gradients({}, expected.gradients), Gradients({}, mean), "weighting the advantages", LINEAR)

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

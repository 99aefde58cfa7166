"""The rules of algorithms: runs one on the model `tiny` as a stage does, and on batches that must
not change it.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignkit import functional as F
from alignkit.contract.algorithm import ADVANTAGES, Algorithm, SelectContext, Skip, Source, Trains
from alignkit.contract.batch import Batch, Loss, Outputs, per_response
from alignkit.contract.reward import REWARD_KEY
from alignkit.contract.settings import Settings
from alignkit.data.group import Group, responses_of
from alignkit.host import returns
from alignkit.host.calls import call, create
from alignkit.host.registry import Component
from alignkit.models.packing import Examples, flat, measure
from alignkit.models.shared_model import UNMODIFIED, Wants
from alignkit.testing.examples import encode_all, example_groups
from alignkit.testing.surroundings import Surroundings, conform
from alignkit.testing.tiny import ONE_BATCH, add_noise, tiny_model
from alignkit.tokens.encoder import Encoded, Encoder
from alignkit.training.active_stage import select
from alignkit.training.encoding import ReferencePrompts
from alignkit.training.learner import Learner
from alignkit.training.rollouts import with_columns
from alignkit.training.trainer import keeps_group

TOLERANCE = 1e-4  # relative; float32 sums of another shape differ by up to 1e-5
# Entries outside the mask are drawn from -20 to 20: exp() of their differences is still finite
GARBAGE = 20.0
LONGEST = 256  # tokens of a prompt with a response
ROLE, BEFORE, VALUE, VALUE_BEFORE = "checked", "before", "value", "value-before"
GRADIENTS = ("the gradient", "the value gradient")
# Cosine with the gradients of `Prefer`: at least -0.17 for each algorithm of alignkit
AGAINST = -0.3

SAME = "a loss must not draw random numbers, and what it remembers belongs in `state`"
RESUMED = "a resumed run would lose it; what `signal` remembers belongs in self.state"
MICRO = (
    "return unreduced entries (per_token, per_pair, ...) that depend only on their own response, "
    "pair or group; statistics over the whole batch belong in `before_step` or `signal`"
)
ORDER = "use batch.group_index and batch.pairs, not positions in the batch"
MASK = (
    "sums and means over tokens must use batch.mask (functional.sum_tokens, functional.masked_mean)"
)

SIGN = (
    "better responses become less likely or have lower scores: look for a wrong sign, or for "
    "better and worse in the wrong places"
)

Numbers = dict[str, Tensor]  # logged numbers and gradients, or advantages, each as one vector


def check_algorithm(
    cls: type[Algorithm],
    options: Mapping[str, Any] | None = None,
    *,
    groups: Sequence[Group] | None = None,
) -> None:
    """Raise ConformanceError listing every rule that an algorithm breaks (see the table in
    `alignkit.testing`).

    Args:
        options: As in a recipe.
        groups: To learn from, instead of `example_groups`; for an algorithm that learns from
            rollouts every response needs `tokens` and a `reward` among its scores.
    """
    conform("algorithm", cls, options, _check_algorithm, groups=groups)


def _check_algorithm(around: Surroundings, component: Component) -> None:
    check = AlgorithmCheck(around, component)
    try:
        check.run()
    finally:
        check.close()


class AlgorithmCheck:
    """An algorithm on the tiny model. The role `before` wrote the rollouts; `checked` has learned a
    little since.
    """

    def __init__(self, around: Surroundings, component: Component):
        self.component, self.problems = component, around.problems
        self.model = tiny_model()
        self.encoder = Encoder(self.model.tokenizer)
        algorithm = self.new()
        self.needs, self.scores = algorithm.needs, algorithm.trains is Trains.REWARD
        self.rollouts = algorithm.source is Source.ROLLOUTS
        self.value_role = VALUE if self.needs.values else None
        self._add(BEFORE, ROLE, self.scores)
        if self.value_role is not None:
            self._add(VALUE_BEFORE, VALUE, True)
        encoder = self.encoder if self.rollouts else None
        self.groups = around.groups or example_groups(max(3, self.needs.min_samples), encoder)

    def _add(self, before: str, after: str, scalar: bool) -> None:
        """Add a role, and what it has become after some steps."""
        head: Any = "scalar" if scalar else "language"
        self.model.add_role(before, head="scalar" if before == VALUE_BEFORE else "language")
        add_noise(self.model, before, 0.05, len(before))
        self.model.add_role(after, start=before, head=head)
        add_noise(self.model, after, 0.01, len(after))

    def new(self, state: Mapping[str, Any] | None = None) -> Algorithm:
        """The algorithm, as a run that resumes with this state makes it."""
        algorithm: Algorithm = create(self.component)
        if state is not None:
            algorithm.state = copy.deepcopy(dict(state))
        return algorithm

    def close(self) -> None:
        self.model.budget = ONE_BATCH
        for role in {ROLE, BEFORE, VALUE, VALUE_BEFORE} & set(self.model.roles):
            self.model.drop_role(role)

    def run(self) -> None:
        """Check every rule; not the later ones if an earlier one is broken that makes them
        pointless.
        """
        algorithm = self.new()
        self.problems.must_be_json("`state` at first", algorithm.state)
        groups, rollouts = self.groups, Examples([])
        if self.rollouts:
            groups = [group for group in groups if keeps_group(algorithm, group)]
            rollouts = self._rolled_out(algorithm, groups)
            self._check_signal(algorithm, rollouts)
            self.problems.must_be_json("`state` after `signal`", algorithm.state)
        if self.problems:
            return
        examples = self._selected(algorithm, groups, rollouts)
        if examples.groups:
            self._check_loss(algorithm, examples, rollouts if self.rollouts else examples)
        else:
            self.problems.append(
                "`select` and `needs` leave none of the example groups: pass others as `groups`"
            )

    # The inputs of an algorithm, as in training

    def _rolled_out(self, algorithm: Algorithm, groups: Sequence[Group]) -> Examples:
        """All rollouts as `signal` sees them."""
        examples = self._measured(algorithm, groups)
        if self.needs.values:
            wants = Wants(values=VALUE_BEFORE, logprobs=False)
            found = measure(self.model, VALUE_BEFORE, examples.groups, wants)
            examples.token_columns["old_values"] = flat(found["values"])
        if self.needs.reward:
            rewards = [response.scores[REWARD_KEY] or 0.0 for response in responses_of(groups)]
            examples.columns["rewards"] = torch.tensor(rewards, dtype=torch.float64)
        return examples

    def _selected(
        self, algorithm: Algorithm, groups: Sequence[Group], rollouts: Examples
    ) -> Examples:
        """The examples of the first phase, chosen as in a stage."""
        context = SelectContext(1, 0, lambda: [], lambda **metrics: None, np.random.default_rng(0))
        chosen = select(algorithm, groups, context)[0].groups
        index_of = {id(encoded.group): index for index, encoded in enumerate(rollouts.groups)}
        if self.rollouts and index_of.keys() >= {*map(id, chosen)}:
            examples = rollouts.take([index_of[id(group)] for group in chosen])
        else:
            examples = self._measured(algorithm, chosen)
        return examples.take(
            [index for index, each in enumerate(examples.groups) if self._is_learnable(each)]
        )

    def _is_learnable(self, encoded: Encoded) -> bool:
        is_complete = self.rollouts or len(encoded.responses) >= self.needs.min_samples
        has_pairs = bool(encoded.pairs) or not self.needs.pairs
        return is_complete and has_pairs and any(True in one.mask for one in encoded.responses)

    def _measured(self, algorithm: Algorithm, groups: Sequence[Group]) -> Examples:
        """Encoded, with the log-probabilities that the algorithm needs, and no others."""
        turns = call(algorithm, "trained_turns")
        encoded = encode_all(self.encoder, groups, LONGEST, turns=turns, scoring=self.scores)
        examples = Examples(encoded)
        if self.needs.old_logprobs:
            old = measure(self.model, BEFORE, encoded)["logprobs"]
            examples.token_columns["old_logprobs"] = flat(old)
        if self.needs.reference_logprobs:
            prompts = ReferencePrompts(self.new(), self.encoder, self.model, self.encoder)
            reference = measure(self.model, UNMODIFIED, prompts.encoded(encoded))["logprobs"]
            examples.token_columns["reference_logprobs"] = flat(reference)
        return examples

    # Rules

    def _check_signal(self, algorithm: Algorithm, rollouts: Examples) -> None:
        """Add the advantages to the rollouts, and check them on variants of these."""
        start = copy.deepcopy(algorithm.state)
        found = _advantages(algorithm, rollouts)
        if isinstance(found, Skip):
            text = f"`signal` skips the example groups ({found.reason}): pass others as `groups`"
            self.problems.append(text)
            return
        promised = self.needs.advantages
        if promised and (
            ADVANTAGES not in found or found[ADVANTAGES].dim() > 1 + (promised == "token")
        ):
            self.problems.append(
                f"`needs` promises advantages='{promised}': return them as '{ADVANTAGES}'"
            )
        rollouts.add_advantages(found)
        expected = counted_advantages(rollouts)
        for name, values in expected.items():
            if not values.isfinite().all():
                self.problems.append(f"{name} is not finite everywhere")
                return
        spoiled, backwards = GarbageExamples.of(rollouts), turned(rollouts)
        later = Examples(
            list(rollouts.groups), dict(rollouts.token_columns), dict(rollouts.columns)
        )
        if self.needs.reward:
            later.columns["rewards"] = doubled = 2 * rollouts.columns["rewards"]
            groups = [encoded.group for encoded in rollouts.groups]
            scored = with_columns(groups, {REWARD_KEY: doubled})
            later.groups = [
                replace(encoded, group=group)
                for encoded, group in zip(rollouts.groups, scored, strict=True)
            ]
        resumed = _counted(self.new(algorithm.state), later)
        cause = "a second call of `signal` from the same state"
        self._compare(cause, expected, _counted(self.new(start), rollouts), SAME)
        self._compare(
            "garbage outside the mask", expected, _counted(self.new(start), spoiled), MASK
        )
        self._compare(
            "the order of groups",
            counted_advantages(backwards),
            _counted(self.new(start), backwards),
            ORDER,
        )
        cause = "what `signal` remembers outside of `state`"
        self._compare(cause, resumed, _counted(algorithm, later), RESUMED)

    def _check_loss(self, algorithm: Algorithm, examples: Examples, data: Examples) -> None:
        """Check the gradient of a global batch: that of variants must be the same, and it must not
        turn against all that there is to learn from.
        """
        state = copy.deepcopy(algorithm.state)
        probe = Probe(self.model, algorithm, Settings(), ROLE, self.value_role)

        def gradient(variant: Examples, budget: int = ONE_BATCH, garbage: bool = False) -> Numbers:
            algorithm.state = copy.deepcopy(state)
            self.model.budget, probe.garbage = budget, garbage
            return probe.gradient(variant)

        expected = gradient(examples)
        self.problems.must_be_json("`state` after `before_step`", algorithm.state)
        for name, values in expected.items():
            if not values.isfinite().all():
                text = (
                    f"{name} is not finite: look for sqrt, log or a division at 0, also outside "
                    "the mask"
                )
                self.problems.append(text)
        if not expected[GRADIENTS[0]].any():
            self.problems.append(
                "the gradient is zero everywhere: nothing is learned (is `out` detached?)"
            )
        if self.problems:
            return
        self._compare("a second pass over the same batch", expected, gradient(examples), SAME)
        if self.problems:
            return
        self._check_direction(expected[GRADIENTS[0]], data)
        spoiled = gradient(GarbageExamples.of(examples), garbage=True)
        self._compare(
            "cutting the batch into micro-batches", expected, gradient(examples, budget=1), MICRO
        )
        self._compare("the order of groups", expected, gradient(turned(examples)), ORDER)
        self._compare("garbage outside the mask", expected, spoiled, MASK)

    def _check_direction(self, gradient: Tensor, data: Examples) -> None:
        """Compare the gradient with those that make preferred responses likelier, by the sum and by
        the mean over tokens.
        """
        cosines = []
        for reduce in (F.sum_tokens, F.mean_tokens):
            prefer = (PreferByScore if self.scores else Prefer)(Prefer.Options())
            prefer.reduce, prefer.paired = reduce, self.needs.pairs
            other = Probe(self.model, prefer, Settings(), ROLE, None).gradient(data)[GRADIENTS[0]]
            cosines.append(float(torch.cosine_similarity(gradient, other, dim=0)))
        if (mean := sum(cosines) / len(cosines)) < AGAINST:
            self.problems.append(
                f"the gradient is against rewards, pairs or labels (cosine {mean:.2f}): {SIGN}"
            )

    def _compare(self, cause: str, expected: Numbers, actual: Numbers, help: str) -> None:
        """Add one line that lists everything that differs."""
        wrong = []
        for name in expected | actual:
            difference = _difference(name, expected.get(name), actual.get(name))
            if not difference <= TOLERANCE:
                wrong.append(f"{name} by {difference:.2g}")
        if wrong:
            names = ", ".join(wrong)
            self.problems.append(
                f"{cause} changes {names} (relative; up to {TOLERANCE:g} is allowed): {help}"
            )


def _difference(name: str, old: Tensor | None, new: Tensor | None) -> float:
    """Relative to the old vector; of a logged number below 1, absolute."""
    if old is None or new is None or old.shape != new.shape:
        return math.nan
    least = 1.0 if name.startswith("'") else 1e-12
    return float((new - old).norm()) / max(float(old.norm()), least)


def _advantages(algorithm: Algorithm, examples: Examples) -> Any:
    batch = examples.batch()
    return call(algorithm, "signal", batch, returns=partial(returns.advantages, batch))


def _counted(algorithm: Algorithm, examples: Examples) -> Numbers:
    """New advantages of examples, those that count; empty if the algorithm skips them."""
    found = _advantages(algorithm, examples)
    if isinstance(found, Skip):
        return {}
    fresh = Examples(examples.groups, dict(examples.token_columns), dict(examples.columns))
    fresh.add_advantages(found)
    return counted_advantages(fresh)


def counted_advantages(examples: Examples) -> Numbers:
    """Each kind of advantages as one vector: of the tokens that count, or of the responses."""
    advantages, batch = {}, examples.batch()
    for name, values in batch.signals.items():
        advantages[f"signal '{name}'"] = values[batch.mask] if values.dim() == 2 else values
    return advantages


class Prefer(Algorithm):
    """Makes responses likelier that data prefer to others, and the others less likely: by rewards
    within a group, by pairs, or by labels. Where these are equal, it has no gradient.
    """

    reduce: Callable[[Tensor, Tensor], Tensor]
    paired: bool

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(prefer=per_response(-self.preference(batch) * self.strength(batch, out)))

    def strength(self, batch: Batch, out: Outputs) -> Tensor:
        """What the preferred responses shall have more of: [R]."""
        return self.reduce(out.logprobs, batch.mask)

    def preference(self, batch: Batch) -> Tensor:
        """How much the data prefer each response: [R]."""
        if "rewards" in vars(batch):
            return F.centered_advantages(batch.rewards, batch.group_index)
        if self.paired:
            pairs, count = batch.pairs, len(batch.tokens)
            worse = replace(pairs, p=1 - pairs.p)
            return pairs.times_better(count) - worse.times_better(count)
        labels = [response.label for response in responses_of(batch.groups)]
        values = {None: 0.0, True: 1.0, False: -1.0}
        return torch.tensor([values[label] for label in labels])


class PreferByScore(Prefer):
    """The same for reward models."""

    trains = Trains.REWARD

    def strength(self, batch: Batch, out: Outputs) -> Tensor:
        return out.scores


class Probe(Learner):
    """A learner that takes no step. With `garbage`, the outputs of its roles are garbage outside
    the mask.
    """

    garbage = False

    def gradient(self, examples: Examples) -> Numbers:
        """The metrics of a global batch, and the gradient of each role as one vector."""
        numbers, metrics = {}, self._gradients(examples)
        for role, name in zip((self.role, self.value_role), GRADIENTS, strict=True):
            gradients = []
            for key, parameter in self.parameters.items():
                if key.startswith(f"{role}:"):
                    gradient = parameter.grad
                    gradients.append(
                        torch.zeros(parameter.numel()) if gradient is None else gradient.flatten()
                    )
            if gradients:
                numbers[name] = torch.cat(gradients)
        for name, value in metrics.items():
            numbers[f"'{name}'"] = torch.tensor([value], dtype=torch.float64)
        return numbers

    def _forward(self, examples: Examples) -> Outputs:
        out = super()._forward(examples)
        if self.garbage:
            mask = examples.batch(self.model.device).mask
            for name, values in vars(out).items():
                if name != "scores":
                    setattr(out, name, _with_garbage(name, values, mask))
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
        for name, values in vars(batch).items():
            if name in ("old_logprobs", "reference_logprobs", "old_values"):
                setattr(batch, name, _with_garbage(name, values, batch.mask))
        for name, values in batch.signals.items():
            if values.dim() == 2:
                batch.signals[name] = _with_garbage(name, values, batch.mask)
        return batch


def _with_garbage(name: str, values: Tensor, mask: Tensor) -> Tensor:
    """Each name has other garbage, which would cancel in a difference."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    noise = GARBAGE * (2 * torch.rand(values.shape, generator=generator) - 1)
    return torch.where(mask, values, noise.to(values))


def turned(examples: Examples) -> Examples:
    """The groups in the opposite order."""
    return examples.take(range(len(examples.groups))[::-1])

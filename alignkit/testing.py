"""What every algorithm must keep to, checked in one line of a plugin's own tests.

    from alignkit.testing import check_algorithm

    def test_my_algorithm_conforms() -> None:
        check_algorithm(MyAlgorithm, {"beta": 0.2})

The checks run the engine's own code (encoding, packing, `signal`, `select`, the gradient of a global batch) on the
model `tiny` in float32 on the CPU, in about a second. What is checked, in this order:

| check | what must hold |
|---|---|
| options | every field has a description, or a range or choices that explain it |
| signal | tensors [R, T] or [R] over all rollouts, finite where they count |
| state | is JSON before and after, and comes back equal |
| finite | losses and gradients are finite, and something is learned |
| determinism | the same batch gives the same numbers; what is remembered is in `state` |
| micro-batches | one micro-batch or many: memory must not change what is learned |
| order | of groups and of responses within them |
| masks | garbage where the mask is false, in the batch and in the outputs, changes nothing |
| shared prompts | one group, or one for each response (or pair): the prompt that they share counts for nothing |
"""

from __future__ import annotations

import copy
import functools
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import numpy as np
import torch
from torch import Tensor

from alignkit.algorithm import REWARD, ROLLOUTS, Algorithm, Phase, SelectContext, Skip
from alignkit.batch import Batch, Outputs, filled
from alignkit.data.group import Group, Message, Pair, Response
from alignkit.errors import AlignkitError
from alignkit.loss import Per
from alignkit.models.encoding import Encoded, Encoder, encode_all
from alignkit.models.examples import Examples
from alignkit.models.forward import measure
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.options import Options
from alignkit.settings import LoraSpec, ModelSpec, Settings
from alignkit.training.learner import Learner

TOLERANCE = 1e-5  # relative; float32 sums in another order differ by about 1e-6
ONE_BATCH = 1 << 20  # a token budget that no batch here exceeds
LONGEST = 256  # tokens of a prompt with a response
GARBAGE = 20.0  # entries behind the mask are drawn from -20 to 20: exp() of their differences is still finite


class Unfit(AssertionError):
    """The algorithm breaks a rule; the message says which one and what to look for."""


def check_algorithm(
    cls: type[Algorithm],
    options: Mapping[str, Any] | None = None,
    *,
    groups: Sequence[Group] | None = None,
    separable: bool | None = None,
) -> None:
    """Raises `Unfit` naming every rule that an algorithm breaks (see the table in the module's docstring).

    options: as a recipe would give them. groups: to learn from, instead of `example_groups`; of an algorithm that
    learns from rollouts every response needs `tokens` and a `reward` among its scores. separable: whether responses
    (or pairs) that share a prompt may be put into groups of their own without changing the loss; default: judged by
    the terms of the loss and `needs`.
    """
    _check_options(cls)
    kit = _Kit(cls, dict(options or {}), groups, separable)
    try:
        problems = kit.problems()
    finally:
        kit.close()
    if problems:
        raise Unfit("\n".join(f"{cls.__name__}: {problem}" for problem in problems))


# --- what there is to learn from

_QUESTIONS = ("What is the capital of France?", "Name a colour.", "Is 7 a prime number?", "Say something long, please.")
_ANSWERS = (
    ("Paris.", "The capital of France is Paris.", "I do not know.", "London, perhaps?"),
    ("Blue", "Red is a colour, and so is green.", "No.", "A colour is what the eye makes of light."),
    ("Yes, it is.", "It is not.", "Seven can be divided by one and by itself only, so it is.", "7"),
    ("Once upon a time there was a river.", "No", "Well, well, well, well.", "The book was long and old."),
)
_REWARDS = ((0.3, 1.2, -0.8, -1.9), (0.1, 0.9, -0.4, 1.4), (1.1, -1.3, 1.6, 0.2), (0.7, -0.2, 0.05, 0.6))


def example_groups(samples: int = 3, encoder: Encoder | None = None) -> list[Group]:
    """Four prompts with `samples` responses each: of unequal length, with ranks, rewards, labels and margins.

    One response a group has several turns of which one does not count. With an encoder they are rollouts: given as
    tokens, some cut off, some with tokens that the policy did not write.
    """
    groups = []
    for number, (question, answers, rewards) in enumerate(zip(_QUESTIONS, _ANSWERS, _REWARDS, strict=True)):
        place = [(answers[i % 4] + " Indeed." * (i // 4), rewards[i % 4] - 0.01 * (i // 4)) for i in range(samples)]
        order = sorted((reward for _, reward in place), reverse=True)
        responses = []
        for index, (text, reward) in enumerate(place):
            known: dict[str, Any] = {"rank": 1.0 + order.index(reward), "label": reward > 0.5}
            known["scores"] = {"reward": reward}
            make = _rolled_out(encoder, index) if encoder is not None else _written(index)
            responses.append(make(text, known))
        prompt = (Message(role="user", content=question),)
        groups.append(Group(prompt, tuple(responses), id=f"example-{number}"))
    if samples > 1:  # two groups say outright what is better, the others by their ranks
        groups[1] = replace(groups[1], pairs=(Pair(1, 0, p=0.8, margin="slightly"),))
        groups[2] = replace(groups[2], pairs=(Pair(0, 1, margin=1.5), *([Pair(2, 1, margin=2.0)] * (samples > 2))))
    return groups


def _written(index: int) -> Callable[[str, dict[str, Any]], Response]:
    def make(text: str, known: dict[str, Any]) -> Response:
        if index:
            return Response(text=text, **known)
        turns = (
            Message(role="assistant", content="Let me think.", train=False),
            Message(role="user", content="Go on."),
            Message(role="assistant", content=text),
        )
        return Response(messages=turns, **known)

    return make


def _rolled_out(encoder: Encoder, index: int) -> Callable[[str, dict[str, Any]], Response]:
    def make(text: str, known: dict[str, Any]) -> Response:
        cut = index % 3 == 2
        tokens = encoder.text(text) + (() if cut else encoder.end_of_turn)
        written = tuple(index != 1 or not 1 <= t <= 2 for t in range(len(tokens)))
        return Response(text=text, tokens=tokens, written=written, truncated=cut, **known)

    return make


# --- the model


class _Tiny(SharedModel):
    """The model `tiny`; how much goes into a micro-batch can be set."""

    budget = ONE_BATCH

    @property
    def token_budget(self) -> int:
        return self.budget


@functools.cache
def _tiny() -> _Tiny:
    import alignkit_tiny

    with tempfile.TemporaryDirectory(prefix="alignkit-testing-") as folder:
        spec = ModelSpec(base="tiny", dtype="float32", device="cpu", lora=LoraSpec(r=4, lora_alpha=8))
        return _Tiny(spec, str(alignkit_tiny.source(Path(folder))))


def _shake(policy: SharedModel, role: str, size: float, seed: int) -> None:
    """Adds noise to a role: a fresh adapter changes nothing and has half of its gradient at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters_of(role).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)


# --- one evaluation

ROLE, BEFORE, VALUE, VALUE_BEFORE = "checked", "before", "value", "value-before"


@dataclass(frozen=True)
class _Found:
    """What a global batch gives: every number that is logged, and the gradient of each role, flat."""

    metrics: dict[str, float]
    gradients: dict[str, Tensor]


class _Watched(Learner):
    """The engine's learner, which takes no step, and can put garbage behind the mask of what the roles gave."""

    garbage = False

    def gradient(self, examples: Examples) -> _Found:
        self.optimizer.zero_grad(set_to_none=True)
        metrics = self._accumulate(examples)
        gradients = {}
        for role, what in ((self.role, "gradient"), (self.value_role, "value gradient")):
            own = [p for key, p in self.parameters.items() if role is not None and key.startswith(f"{role}:")]
            if own:
                gradients[what] = torch.cat([(p.grad if p.grad is not None else 0 * p.detach()).flatten() for p in own])
        return _Found(metrics, gradients)

    def terms(self, examples: Examples) -> list[tuple[Per, bool]]:
        """What each term of the loss is averaged over, and whether with weights."""
        batch = examples.batch(self.policy.device)
        with torch.no_grad():
            loss = self.algorithm.loss(batch, self._forward(examples))
        weights = self.algorithm.term_weights(batch)
        return [(term.per, name in weights) for name, term in loss.items()]

    def _forward(self, examples: Examples) -> Outputs:
        out = super()._forward(examples)
        mask = examples.batch(self.policy.device).mask
        for name, values in filled(out).items() if self.garbage else ():
            if name != "scores":
                setattr(out, name, _spoilt(values, mask))
        return out


class _Spoilt(Examples):
    """Examples whose batches hold garbage where the mask is false."""

    def take(self, indices: Sequence[int]) -> Examples:
        return _Spoilt(**_fields_of(super().take(indices)))

    def batch(self, device: torch.device | str = "cpu") -> Batch:
        batch = super().batch(device)
        for name, values in filled(batch).items():
            if name in ("old_logprobs", "reference_logprobs", "old_values"):
                setattr(batch, name, _spoilt(values, batch.mask))
        batch.signals = {n: _spoilt(x, batch.mask) if x.dim() == 2 else x for n, x in batch.signals.items()}
        return batch


def _fields_of(examples: Examples) -> dict[str, Any]:
    return {field.name: getattr(examples, field.name) for field in fields(Examples)}


def _spoilt(values: Tensor, mask: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    noise = GARBAGE * (2 * torch.rand(values.shape, generator=generator) - 1)
    return torch.where(mask, values, noise.to(values))


def _rebuilt(examples: Examples, plan: Sequence[tuple[int, Sequence[int]]]) -> Examples:
    """Groups made of other groups' rows, [(group, its rows)], with all pairs between them."""
    groups, rows = [], []
    for index, chosen in plan:
        encoded = examples.groups[index]
        place = {row: number for number, row in enumerate(chosen)}
        both = [pair for pair in encoded.pairs if pair.better in place and pair.worse in place]
        pairs = tuple(replace(pair, better=place[pair.better], worse=place[pair.worse]) for pair in both)
        responses = tuple(encoded.group.responses[row] for row in chosen)
        group = replace(encoded.group, responses=responses, pairs=pairs or None)
        groups.append(Encoded(group, encoded.prompt, tuple(encoded.rows[row] for row in chosen), pairs))
        rows += [examples.offsets[index] + row for row in chosen]
    return Examples(
        groups,
        {name: [column[row] for row in rows] for name, column in examples.token_columns.items()},
        {name: [column[row] for row in rows] for name, column in examples.columns.items()},
        examples.signal_names,
    )


def _shuffled(examples: Examples) -> Examples:
    """Groups in another order, and their rows."""
    order = range(len(examples.groups))
    return _rebuilt(
        examples, [(i, range(len(examples.groups[i].rows))[::-1]) for i in [*order[1::2], *order[::2]][::-1]]
    )


def _by_response(examples: Examples) -> Examples:
    return _rebuilt(examples, [(i, [row]) for i, group in enumerate(examples.groups) for row in range(len(group.rows))])


def _by_pair(examples: Examples) -> Examples:
    pairs = [(i, pair) for i, group in enumerate(examples.groups) for pair in group.pairs]
    return _rebuilt(examples, list(dict.fromkeys((i, tuple(sorted((pair.better, pair.worse)))) for i, pair in pairs)))


# --- the checks


class _Kit:
    """An algorithm on the tiny model. Roles: `before` measured the rollouts, `checked` has learned a little since."""

    def __init__(
        self, cls: type[Algorithm], options: dict[str, Any], groups: Sequence[Group] | None, separable: bool | None
    ):
        self.cls, self.options, self.separable = cls, options, separable
        self.policy = _tiny()
        self.encoder = Encoder(self.policy.tokenizer)
        self.rollouts = cls.source is ROLLOUTS
        self.needs = self.new().needs
        self.roles = [BEFORE, ROLE, *((VALUE_BEFORE, VALUE) if self.needs.values else ())]
        for number, role in enumerate(self.roles):
            scalar = role in (VALUE, VALUE_BEFORE) or (role == ROLE and cls.trains is REWARD)
            start = None if number % 2 == 0 else self.roles[number - 1]
            self.policy.add_role(role, start=start, head="scalar" if scalar else "language")
            _shake(self.policy, role, 0.05 if start is None else 0.01, number)
        example = example_groups(max(3, self.needs.min_samples), self.encoder if self.rollouts else None)
        self.groups = list(example if groups is None else groups)

    def new(self) -> Algorithm:
        return self.cls(self.cls.Options(**self.options))

    def close(self) -> None:
        self.policy.budget = ONE_BATCH
        for role in self.roles:
            self.policy.drop_role(role)

    def problems(self) -> list[str]:
        algorithm = self.new()
        found = _state_problems(algorithm, "at first")
        try:
            rolled = self.rolled_out(algorithm)
            if self.rollouts:
                found += self._signal_problems(algorithm, rolled)
                found += _state_problems(algorithm, "after `signal`")
            if found:
                return found
            examples = self.examples(algorithm, rolled)
            if not examples.groups:
                return ["`select` and `needs` leave none of the example groups to learn from: give others as `groups`"]
            return self._loss_problems(algorithm, examples)
        except AlignkitError as error:  # the engine's own complaint: a term's shape, say
            return [*found, str(error)]

    # What the engine gives to an algorithm

    def rolled_out(self, algorithm: Algorithm) -> Examples:
        """All rollouts as `signal` sees them; of a data set there are none."""
        if not self.rollouts:
            return Examples([])
        kept = [group for group in self.groups if algorithm.keep_group(group)]
        encoded = self._encoded(algorithm, kept)
        examples = self._measured(encoded)
        rewards = [response.scores["reward"] for group in kept for response in group.responses]
        examples.columns |= {"rewards": [float(reward or 0.0) for reward in rewards]}
        examples.columns["raw_rewards"] = list(examples.columns["rewards"])
        if self.needs.values:
            examples.token_columns["old_values"] = measure(self.policy, VALUE_BEFORE, encoded, "values")
        return examples

    def examples(self, algorithm: Algorithm, rolled: Examples) -> Examples:
        """What is learned from, as the stage would choose it."""
        given = [group for group in self.groups if algorithm.keep_group(group)] if self.rollouts else self.groups
        context = SelectContext(1, 0, lambda: [], lambda **metrics: None, np.random.default_rng(0))
        chosen = algorithm.select(given, context)
        phases = [item for item in chosen if isinstance(item, Phase)]
        groups = [group for phase in phases[:1] for group in phase.groups]
        groups = groups or [item for item in chosen if isinstance(item, Group)]
        place = {id(encoded.group): index for index, encoded in enumerate(rolled.groups)}
        if self.rollouts and all(id(group) in place for group in groups):
            found = rolled.take([place[id(group)] for group in groups])
        else:
            found = self._measured(self._encoded(algorithm, groups))
        fewest = 1 if self.rollouts else self.needs.min_samples
        return found.take(
            [
                index
                for index, encoded in enumerate(found.groups)
                if len(encoded.rows) >= fewest
                and (encoded.pairs or not self.needs.pairs)
                and any(any(row.mask) for row in encoded.rows)
            ]
        )

    def _encoded(self, algorithm: Algorithm, groups: Sequence[Group]) -> list[Encoded]:
        scoring = self.cls.trains is REWARD
        return encode_all(self.encoder, groups, LONGEST, turns=algorithm.trained_turns(), scoring=scoring)

    def _measured(self, encoded: list[Encoded]) -> Examples:
        examples = Examples(encoded)
        wanted = {"old_logprobs": BEFORE, "reference_logprobs": BASE}
        for name, role in wanted.items():
            if getattr(self.needs, name):
                examples.token_columns[name] = measure(self.policy, role, encoded, "logprobs")
        return examples

    # What must hold

    def _signal_problems(self, algorithm: Algorithm, rolled: Examples) -> list[str]:
        state = copy.deepcopy(algorithm.state)
        batch = rolled.batch()
        count, longest = batch.tokens.shape
        found = algorithm.signal(batch)
        if isinstance(found, Skip):
            return [f"`signal` skips the example groups ({found.reason}): give others as `groups`"]
        signals = dict(found)
        problems = []
        for name, tensor in signals.items():
            if not isinstance(tensor, Tensor) or tuple(tensor.shape) not in ((count, longest), (count,)):
                got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
                problems.append(f"signal '{name}' is {got}, not [R, T] = {(count, longest)} or [R] = {(count,)}")
            elif not bool((tensor if tensor.dim() == 1 else tensor[batch.mask]).isfinite().all()):
                problems.append(f"signal '{name}' is not finite everywhere")
        for name, value in algorithm.metrics.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                problems.append(f"metrics['{name}'] is {type(value).__name__}, not a number")
        if problems:
            return problems
        rolled.add_signals(signals)
        plain = _columns(rolled)
        for what, other, expected in (
            ("a second call of `signal` from the same state", rolled, plain),
            ("garbage where the mask is false", _Spoilt(**_fields_of(rolled)), plain),
            ("the order of groups and responses", _shuffled(rolled), _columns(_shuffled(rolled))),
        ):
            again = self.new()
            again.state = copy.deepcopy(state)
            examples = Examples(other.groups, dict(other.token_columns), dict(other.columns))
            found = again.signal(other.batch())
            if isinstance(found, Skip):
                problems.append(f"{what} makes `signal` skip: {found.reason}")
                continue
            examples.add_signals(found)
            for name in signals:
                difference = _distance(_columns(examples)[name], expected[name])
                if not difference <= TOLERANCE:
                    problems.append(f"{what} changes signal '{name}' by {difference:.2g} (relative)")
        return problems

    def _loss_problems(self, algorithm: Algorithm, examples: Examples) -> list[str]:
        state = copy.deepcopy(algorithm.state)
        value_role = VALUE if self.needs.values else None
        learner = _Watched(self.policy, algorithm, Settings(), ROLE, value_role)

        def found(given: Examples, budget: int = ONE_BATCH, garbage: bool = False) -> _Found:
            algorithm.state = copy.deepcopy(state)
            self.policy.budget, learner.garbage = budget, garbage
            return learner.gradient(given)

        plain = found(examples)
        problems = _state_problems(algorithm, "after `before_step`") + _infinite(plain)
        if problems:
            return problems
        if problems := _changes(plain, found(examples), "a second look at the same batch", _SAME):
            return problems
        problems += _changes(plain, found(examples, budget=1), "cutting the batch into micro-batches", _MICRO)
        problems += _changes(plain, found(_shuffled(examples)), "the order of groups and responses", _ORDER)
        spoilt = found(_Spoilt(**_fields_of(examples)), garbage=True)
        problems += _changes(plain, spoilt, "garbage where the mask is false", _MASK)
        apart = self._apart(learner, examples)
        if apart is not None and not problems:
            problems += _changes(
                plain, found(apart), "giving responses that share a prompt groups of their own", _APART
            )
        return problems

    def _apart(self, learner: _Watched, examples: Examples) -> Examples | None:
        """The same with a group for every response or pair; None where that may change what is learned."""
        terms = learner.terms(examples)
        kinds = {per for per, _ in terms}
        if self.needs.pairs:
            separable = kinds == {Per.PAIR} and not any(weighted for _, weighted in terms)
        else:
            separable = kinds <= {Per.TOKEN, Per.RESPONSE} and self.needs.min_samples <= 1
        if not (separable if self.separable is None else self.separable):
            return None
        return _by_pair(examples) if self.needs.pairs else _by_response(examples)


_SAME = "a loss must not draw random numbers, and what it remembers belongs in `state`"
_MICRO = (
    "give unreduced entries (per_token, per_pair, ...) that depend on their own response, pair or group alone; "
    "statistics over the whole batch belong in `before_step` or `signal`"
)
_ORDER = "go by batch.group_index and batch.pairs, not by places in the batch"
_MASK = "sums and means over tokens must use batch.mask (functional.sum_tokens, functional.masked_mean)"
_APART = "if responses of a group are meant to bear on each other in the loss, say `separable=False`"


def _check_options(cls: type[Algorithm]) -> None:
    """Options are told to users by their description or else by their range or choices."""
    if not issubclass(cls.Options, Options):
        raise Unfit(f"{cls.__name__}: Options must be a subclass of alignkit.Options")
    bare = [
        name
        for name, info in cls.Options.model_fields.items()
        if not (info.description or info.metadata or _explains_itself(info.annotation))
    ]
    if bare:
        raise Unfit(f"{cls.__name__}: options without a description, a range or choices: {', '.join(bare)}")


def _explains_itself(annotation: Any) -> bool:
    if get_origin(annotation) is Literal or annotation is bool:
        return True
    arms = [arm for arm in get_args(annotation) if arm is not type(None)]
    return isinstance(annotation, UnionType) and all(map(_explains_itself, arms))


def _state_problems(algorithm: Algorithm, when: str) -> list[str]:
    problems = []
    for name, value in algorithm.state.items():
        try:
            same = json.loads(json.dumps({name: value}, allow_nan=False)) == {name: value}
        except (TypeError, ValueError) as error:
            problems.append(f"state['{name}'] {when} is not JSON: {error}")
        else:
            if not same:
                problems.append(f"state['{name}'] {when} does not come back from JSON as it was: {value!r}")
    return problems


def _infinite(found: _Found) -> list[str]:
    problems = [f"'{name}' is {value}" for name, value in found.metrics.items() if not math.isfinite(value)]
    for name, gradient in found.gradients.items():
        if not bool(gradient.isfinite().all()):
            problems.append(f"the {name} is not finite: look for sqrt, log or a division at 0, also behind the mask")
    if not problems and not bool(found.gradients["gradient"].any()):
        problems.append("the gradient is zero everywhere: nothing is learned (is `out` detached?)")
    return problems


def _changes(plain: _Found, other: _Found, what: str, help: str) -> list[str]:
    """A line for a gradient or metric that differs, the worst one."""
    worst = {name: _distance(other.gradients[name], gradient) for name, gradient in plain.gradients.items()}
    for name, value in plain.metrics.items():
        new = torch.tensor([other.metrics.get(name, math.nan)], dtype=torch.float64)
        worst[f"'{name}'"] = _distance(new, torch.tensor([value], dtype=torch.float64), floor=1.0)
    worst |= {f"'{name}'": math.nan for name in other.metrics.keys() - plain.metrics.keys()}
    wrong = {name: difference for name, difference in worst.items() if not difference <= TOLERANCE}
    if not wrong:
        return []
    told = ", ".join(f"{name} by {difference:.2g}" for name, difference in wrong.items())
    return [f"{what} changes {told} (relative; {TOLERANCE:g} is allowed): {help}"]


def _columns(examples: Examples) -> dict[str, Tensor]:
    """Every signal as one row of numbers: of the tokens that count, or of the responses."""
    rows = [row for group in examples.groups for row in group.rows]
    found = {}
    for name in examples.signal_names:
        if name in examples.columns:
            found[name] = torch.tensor(examples.columns[name])
        else:
            columns = zip(rows, examples.token_columns[name], strict=True)
            found[name] = torch.cat([values[torch.tensor(row.mask, dtype=torch.bool)] for row, values in columns])
    return found


def _distance(new: Tensor, old: Tensor, floor: float = 1e-12) -> float:
    """Length of the difference beside that of `old`."""
    return float((new - old).norm()) / max(float(old.norm()), floor)

"""What a plugin's methods must return: each shape says what is wrong with a value, and nothing if it is right.

They are for `calls.call`: `call(plugin, "score", groups, returns=scores(12))`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from numbers import Real
from sys import float_info
from typing import Any, SupportsIndex

from alignkit.algorithm import ADVANTAGES, Algorithm, Needs, Phase, Skip
from alignkit.batch import Batch, Per, Term
from alignkit.data.group import ROLES, Group
from alignkit.kinds import Observation
from alignkit.reward import CombinedReward, Rating, Verdict

Shape = Callable[[Any], str]

LONGEST = 1_000_000  # characters of a message
_NO_TEXT = re.compile("[\ud800-\udfff]")  # halves of characters


def listing(
    item: str,
    unit: str,
    fits: Callable[[Any], bool],
    count: int | None = None,
    *,
    least: int = 0,
    name: Callable[[int], str] = str,
) -> Shape:
    """A list, or an array of numpy or torch, of `count` entries, or of any number from `least`.

    Args:
        item: An entry in words, such as `true or false`.
        unit: Of what each is, such as `group`.
        fits: Whether an entry is right.
        name: Of the unit with an index.
    """
    wanted = f"return a list with {item} for each {unit}"
    if count is not None:
        wanted = f"return a list with {item} for each of {count} {unit}s"

    def wrong(values: Any) -> str:
        values = plain(values)
        if not isinstance(values, Sequence) or isinstance(values, str | bytes):
            return f"{wanted}, not {kind(values)}"
        if len(values) < least or count not in (None, len(values)):
            return f"{wanted}, not {len(values)}"
        for index, value in enumerate(values):
            if not fits(value):
                return f"return {item}, not {value!r:.100}, for {unit} {name(index)}"
        return ""

    return wrong


def by_name(item: str, expected: Callable[[str, Any], str]) -> Shape:
    """Values by name. item: of them, in words. expected: what a value must be instead; empty if it is right."""

    def wrong(values: Any) -> str:
        if not isinstance(values, Mapping):
            return f"return a dict of {item}, not {kind(values)}"
        for name, value in values.items():
            if text := expected(name, value):
                return f"'{name}' must be {text}, not {kind(value)}"
        return ""

    return wrong


def optional(shape: Shape) -> Shape:
    """None, or what another shape says."""
    return lambda value: "" if value is None else shape(value)


# Groups and messages


def selection(chosen: Any) -> str:
    """Groups, or phases."""
    phases = listing("a Phase", "part of the iteration", lambda each: isinstance(each, Phase))
    groups = listing("a Group, or only with Phases,", "entry", lambda each: isinstance(each, Group))
    return phases(chosen) and groups(chosen)


def messages(roles: Collection[str] = ROLES, count: int | None = None) -> Shape:
    """Messages that can be rendered: `count`, or one or more."""

    def fits(message: Any) -> bool:
        if not isinstance(message, Mapping) or message.get("role") not in roles:
            return False
        content = message.get("content")
        return isinstance(content, str) and len(content) <= LONGEST and not _NO_TEXT.search(content)

    item = f"a message of {' or '.join(roles)} such as {{'role': 'user', 'content': 'Hi'}}"
    return listing(f"{item}, with at most {LONGEST:,} characters", "turn", fits, count, least=int(count is None))


def reference_prompt(group: Group) -> Shape:
    """The messages of a prompt; none for a raw text, which has no prompt."""
    if group.prompt:
        return messages()
    return messages(count=0)


# Numbers


def is_number(value: Any) -> bool:
    """Whether it is finite and not too large for a float."""
    is_real = isinstance(value, Real)
    return is_real and abs(plain(value)) <= float_info.max  # a float32 would round it to infinity


def is_score(value: Any) -> bool:
    """Whether it is a number, or None because there is none."""
    return value is None or is_number(value)


def numbers(value: Any) -> str:
    """A number, or several by name."""
    for part in value.values() if isinstance(value, Mapping) else [value]:
        if not is_score(part):
            return f"return a finite number, or None if there is none, not {part!r:.60}"
    return ""


def scores(count: int, name: Callable[[int], str]) -> Shape:
    """What a reward returns: one component with a score per response."""
    column = listing("a finite number, or None if it cannot be scored", "response", is_score, count, name=name)

    def wrong(components: Any) -> str:
        if not isinstance(components, Mapping) or len(components) != 1:
            return f'return one component, such as {{"": [0.5, 1.0]}}, not {kind(components)}'
        return column(*components.values())

    return wrong


def combined(count: int) -> Shape:
    """What a combination returns, a reward for each of `count` responses."""

    def wrong(reward: Any) -> str:
        if not isinstance(reward, CombinedReward):
            return f"return a CombinedReward, not {kind(reward)}"
        if wrong := vector(count, "'reward'")(reward.reward) or vector(count, "'raw'")(reward.raw):
            return wrong
        if not (reward.raw.isnan() | (reward.reward.isfinite() & reward.raw.isfinite())).all():
            return "the reward of a response is not finite; where there is none, 'raw' is NaN"
        return ""

    return wrong


def vector(count: int, what: str = "it") -> Shape:
    """A tensor [responses]."""
    wanted = f"{what} must be [responses] = [{count}], not "
    return lambda values: "" if shape_of(values) == (count,) else wanted + kind(values)


def mask(count: int) -> Shape:
    """Whether each of `count` groups is kept."""
    return listing("true or false", "group", lambda kept: kept is True or kept is False, count)


def indices(of: Sequence[Any]) -> Shape:
    """Indices of prompts."""
    allowed = range(len(of))

    def fits(index: Any) -> bool:
        return isinstance(index, SupportsIndex) and index in allowed

    return listing(f"an index of the {len(of)} prompts", "prompt", fits, least=1)


# Tensors


def signals(algorithm: Algorithm, batch: Batch) -> Shape:
    """Tensors of tokens or responses by name, or a reason to skip the iteration."""
    of_tokens, of_responses = shape(Per.TOKEN, batch), shape(Per.RESPONSE, batch)
    names = {field.name for field in fields(Batch)}

    def expected(name: str, value: Any) -> str:
        if name in names:
            return "renamed, as it is a field of the batch"
        if shape_of(value) not in (of_tokens, of_responses) or not value.is_floating_point():
            return f"[responses, tokens] = {list(of_tokens)} or [responses] = {list(of_responses)}, in floating point"
        return ""

    def wrong(values: Any) -> str:
        if not all(isinstance(value, int | float) for value in algorithm.metrics.values()):
            return f"`metrics` must be numbers, as of float(...), not {algorithm.metrics!r:.100}"
        if isinstance(values, Skip):
            return ""
        if text := by_name('tensors, or Skip("reason")', expected)(values):
            return text
        advantages = algorithm.needs.advantages
        if advantages is not None and ADVANTAGES not in values:
            return f"return '{ADVANTAGES}', or leave `advantages` out of `needs`"
        if advantages == "sequence" and values[ADVANTAGES].dim() == 2:
            return f"'{ADVANTAGES}' are of tokens: declare `Needs(advantages=\"token\")`"
        return ""

    return wrong


def terms(batch: Batch) -> Shape:
    """Unreduced terms by name."""

    def expected(name: str, term: Any) -> str:
        if not isinstance(term, Term):
            return "a term such as per_token(...)"
        if shape_of(term.values) != shape(term.per, batch):
            return f"unreduced, as it is per_{term.per.value}: {list(shape(term.per, batch))}"
        return ""

    return by_name("terms, such as Loss(name=per_token(...))", expected)


def loss(batch: Batch, needs: Needs) -> Shape:
    """The terms of a loss. Where gradients are computed it must have one, or the run would only appear to work."""
    import torch

    def wrong(values: Any) -> str:
        text = terms(batch)(values)
        if text or not torch.is_grad_enabled():
            return text
        without = [name for name, term in values.items() if not term.values.requires_grad]
        learned = [name for name in without if values[name].coefficient]
        if needs.entropy == "reported" and learned:
            return f"loss term '{learned[0]}' has no gradient; to learn from the entropy, declare `Needs(entropy=True)`"
        if len(without) == len(values):
            return "the loss has no gradient: compute it from `out`, without detach() or no_grad()"
        return ""

    return wrong


def weights(values: Mapping[str, Term]) -> Shape:
    """Tensors by name, in the shape of the terms of these names."""

    def expected(name: str, tensor: Any) -> str:
        if shape_of(tensor) is None:
            return "a tensor"
        if name in values and shape_of(tensor) != shape_of(values[name].values):
            return f"{kind(values[name].values)}, like the loss term"
        return ""

    return by_name("tensors", expected)


def statistics(values: Any) -> str:
    """Numbers by name."""
    return by_name("numbers", lambda name, value: "")(values)


# Monitors and judges


def observation(iteration: int) -> Shape:
    """What a monitor says of an iteration; 0: at the end."""

    def wrong(seen: Any) -> str:
        if not isinstance(seen, Observation):
            return f"return an alignkit.Observation, not {kind(seen)}"
        if isinstance(seen.warnings, str):
            return "`warnings` must be a list of texts"
        if text := plain_json([seen.metrics, seen.summary]):
            return f"`metrics` and `summary` must be JSON: {text}"
        if seen.best not in range(iteration + 1):
            return f"`best` is {seen.best!r:.60}: return an iteration up to this one, {iteration}"
        return ""

    return wrong


def verdicts(count: int) -> Shape:
    """A verdict on each of `count` comparisons."""

    def fits(verdict: Any) -> bool:
        if not isinstance(verdict, Verdict):
            return False
        said = [p for p in (verdict.p_first, *(verdict.p_orders or ())) if p is not None]
        return all(is_number(p) and 0 <= p <= 1 for p in said)

    return listing("a Verdict with probabilities from 0 to 1", "comparison", fits, count)


def ratings(count: int, scale: tuple[float, float] | None) -> Shape:
    """A rating of each of `count` responses, on the judge's scale."""
    low, high = scale or (-math.inf, math.inf)

    def fits(rating: Any) -> bool:
        if not isinstance(rating, Rating) or not is_score(rating.score):
            return False
        return rating.score is None or low <= rating.score <= high

    return listing(f"a Rating with a finite score from {low:g} to {high:g}, or None", "response", fits, count)


# Values in words


def plain(values: Any) -> Any:
    """An array of numpy or torch as a list."""
    if hasattr(values, "tolist"):
        return values.tolist()
    return values


def plain_json(value: Any) -> str:
    """Why a value is not JSON; empty if it is."""
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


def shape_of(values: Any) -> tuple[int, ...] | None:
    """The shape of a tensor; None of anything else."""
    import torch

    if isinstance(values, torch.Tensor):
        return tuple(values.shape)
    return None


def shape(per: Per, batch: Batch) -> tuple[int, ...]:
    """The shape of a term of a batch."""
    responses, tokens = batch.mask.shape
    shapes = {
        Per.TOKEN: (responses, tokens),
        Per.RESPONSE: (responses,),
        Per.PAIR: (len(batch.pairs),),
        Per.GROUP: (len(batch.groups),),
    }
    return shapes[per]


def kind(value: Any) -> str:
    """The shape of a tensor or a term, or the type of anything else."""
    if isinstance(value, Term):
        value = value.values
    dimensions = shape_of(value)
    if dimensions is None:
        return type(value).__name__
    return str(list(dimensions))

"""What a plugin's methods must return: each shape says what is wrong with a value, and nothing if it is right.

They are for `calls.call`: `call(plugin, "score", groups, returns=scores(12))`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from numbers import Real
from typing import Any, SupportsIndex

from alignkit.algorithm import ADVANTAGES, Algorithm, Needs, Phase, Skip
from alignkit.batch import Batch, Per, Term
from alignkit.data.group import ROLES, Group
from alignkit.kinds import Observation
from alignkit.reward import CombinedReward, Rating, Verdict

Shape = Callable[[Any], str]

LONGEST = 1_000_000  # characters of messages
AXES = {
    Per.TOKEN: "[responses, tokens]",
    Per.RESPONSE: "[responses]",
    Per.PAIR: "[pairs]",
    Per.GROUP: "[groups]",
}


def listing(
    item: str,
    unit: str,
    fits: Callable[[Any], bool],
    count: int | None = None,
    *,
    empty: bool = True,
    name: Callable[[int], str] = str,
) -> Shape:
    """A list, or an array of numpy or torch, of `count` entries.

    Args:
        item: An entry in words, such as `true or false`.
        unit: Of what each is, such as `group`.
        fits: Whether an entry is right.
        empty: Whether there may be none.
        name: Of the unit with an index.
    """
    wanted = f"a list with {item} for each " + (unit if count is None else f"of {count} {unit}s")

    def wrong(values: Any) -> str:
        values = plain(values)
        if not isinstance(values, Sequence) or isinstance(values, str | bytes):
            return f"return {wanted}, not {kind(values)}"
        if not values and not empty:
            return f"return {wanted}, not an empty list"
        if count is not None and len(values) != count:
            return f"return {wanted}, not {len(values)}"
        for index, value in enumerate(values):
            if not fits(value):
                return f"return {item}, not {value!r:.100}, for {unit} {name(index)}"
        return ""

    return wrong


def optional(shape: Shape) -> Shape:
    """None, or what another shape says."""
    return lambda value: "" if value is None else shape(value)


# Groups and messages


def selection(chosen: Any) -> str:
    """Groups, or phases."""
    if wrong := listing("a Group or a Phase", "entry", lambda each: isinstance(each, Group | Phase))(chosen):
        return wrong
    kinds = {isinstance(each, Phase) for each in chosen}
    if len(kinds) > 1:
        return "got both groups and phases: put every group into a Phase"
    return ""


def messages(roles: Collection[str] = ROLES, *, empty: bool = True) -> Shape:
    """Messages that can be rendered."""

    def fits(message: Any) -> bool:
        is_dict = isinstance(message, Mapping) and isinstance(message.get("content"), str)
        return is_dict and message.get("role") in roles

    def wrong(value: Any) -> str:
        item = f"a message of {' or '.join(roles)} such as {{'role': 'user', 'content': 'Hi'}}"
        if text := listing(item, "turn", fits, empty=empty)(value):
            return text
        content = "".join(message["content"] for message in value)
        if len(content) > LONGEST:
            return f"it returned {len(content):,} characters; at most {LONGEST:,} are read"
        try:
            content.encode()
        except UnicodeEncodeError as error:
            return f"its text is not Unicode: {error.reason}"
        return ""

    return wrong


def reference_prompt(group: Group) -> Shape:
    """The messages of a prompt; none for a raw text, which has no prompt."""
    if not group.prompt:
        return lambda prompt: "a raw text has no prompt: return ()" if prompt else ""
    return messages(empty=False)


# Numbers


def is_number(value: Any) -> bool:
    """Whether it is finite and not too large for a float."""
    try:
        return isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # of an int
        return False


def number(value: Any) -> str:
    """A finite number, or None if there is none."""
    if value is None or is_number(value):
        return ""
    return f"return a finite number, or None if there is none, not {value!r:.60}"


def numbers(value: Any) -> str:
    """A number, or several by name."""
    for part in value.values() if isinstance(value, Mapping) else [value]:
        if wrong := number(part):
            return wrong
    return ""


def scores(count: int, name: Callable[[int], str]) -> Shape:
    """What a reward returns: one component with a score per response."""
    item = "a finite number, or None if it cannot be scored"
    column = listing(item, "response", lambda score: score is None or is_number(score), count, name=name)

    def wrong(components: Any) -> str:
        if not isinstance(components, Mapping) or len(components) != 1:
            parts = f" with {sorted(map(str, components))}" if isinstance(components, Mapping) else ""
            return f'return one component, such as {{"": [0.5, 1.0]}}, not {kind(components)}{parts}'
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
    item = f"an index of the {len(of)} prompts"
    allowed = range(len(of))
    return listing(item, "prompt", lambda i: isinstance(i, SupportsIndex) and i in allowed, empty=False)


# Tensors


def signals(algorithm: Algorithm, batch: Batch) -> Shape:
    """Tensors of tokens or responses by name, or a reason to skip the iteration."""
    of_tokens, of_responses = shape(Per.TOKEN, batch), shape(Per.RESPONSE, batch)
    wanted = f"{AXES[Per.TOKEN]} = {list(of_tokens)} or {AXES[Per.RESPONSE]} = {list(of_responses)}"

    def wrong(values: Any) -> str:
        for name, value in algorithm.metrics.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                return f"metrics['{name}'] must be a number, not {kind(value)}; use float(...)"
        if isinstance(values, Skip):
            return ""
        if not isinstance(values, Mapping):
            return f'return a dict of tensors or Skip("reason"), not {kind(values)}'
        for name, value in values.items():
            if name in {field.name for field in fields(Batch)}:
                return f"'{name}' is a field of the batch; rename the signal"
            if shape_of(value) not in (of_tokens, of_responses):
                return f"signal '{name}' must be {wanted}, not {kind(value)}"
            if not value.is_floating_point():
                return f"signal '{name}' must be floating point, not {value.dtype}; use .float()"
        advantages = algorithm.needs.advantages
        if advantages is not None and ADVANTAGES not in values:
            return f"return '{ADVANTAGES}', or leave `advantages` out of `needs`"
        if advantages == "sequence" and values[ADVANTAGES].dim() == 2:
            return f"'{ADVANTAGES}' are of tokens: declare `Needs(advantages=\"token\")`"
        return ""

    return wrong


def terms(batch: Batch, what: str) -> Shape:
    """Unreduced terms by name."""

    def wrong(values: Any) -> str:
        if not isinstance(values, Mapping):
            return f"return a dict of terms, such as Loss(name=per_token(...)), not {kind(values)}"
        for name, term in values.items():
            if not isinstance(term, Term):
                return f"{what} '{name}' must be a term such as per_token(...), not {kind(term)}"
            actual, expected = shape_of(term.values), shape(term.per, batch)
            if actual != expected:
                units = [f"per_{per.value}(...)" for per in Per if shape(per, batch) == actual]
                advice = f"write {' or '.join(units)}" if units else "return unreduced values; alignkit averages them"
                wanted = f"{AXES[term.per]} = {list(expected)}, not {kind(term.values)}"
                return f"{what} '{name}' is per_{term.per.value} and must be {wanted}; {advice}"
        return ""

    return wrong


def loss(batch: Batch, needs: Needs) -> Shape:
    """The terms of a loss. Where gradients are computed it must have one, or the run would only appear to work."""
    import torch

    def wrong(values: Any) -> str:
        text = terms(batch, "loss term")(values)
        if text or not torch.is_grad_enabled():
            return text
        without = [name for name, term in values.items() if not term.values.requires_grad]
        learned = [name for name in without if values[name].coefficient]
        if needs.entropy == "reported" and learned:
            return f"loss term '{learned[0]}' has no gradient; to learn from the entropy, declare `Needs(entropy=True)`"
        if len(without) == len(values):
            names = ", ".join(f"'{name}'" for name in values) or "none"
            return f"the loss has no gradient (terms: {names}): compute it from `out`, without detach() or no_grad()"
        return ""

    return wrong


def weights(values: Mapping[str, Term]) -> Shape:
    """Tensors by name, in the shape of the terms of these names."""

    def wrong(tensors: Any) -> str:
        if not isinstance(tensors, Mapping) or None in map(shape_of, tensors.values()):
            return f"return a dict of tensors, not {kind(tensors)}"
        for name in tensors.keys() & values.keys():
            wanted, actual = kind(values[name].values), kind(tensors[name])
            if actual != wanted:
                return f"the weights of '{name}' must be {wanted}, like the term, not {actual}"
        return ""

    return wrong


def statistics(values: Any) -> str:
    """Numbers by name."""
    if isinstance(values, Mapping):
        return ""
    return f"return a dict of numbers, not {kind(values)}"


# Monitors and judges


def observation(iteration: int | None = None) -> Shape:
    """What a monitor says of an iteration; None: at the end."""

    def wrong(seen: Any) -> str:
        if not isinstance(seen, Observation):
            return f"return an alignkit.Observation, not {kind(seen)}"
        if isinstance(seen.warnings, str):
            return "`warnings` is a text: return a list of texts"
        if text := plain_json([seen.metrics, seen.summary]):
            return f"`metrics` and `summary` must be JSON: {text}"
        if iteration is not None and seen.best not in range(iteration + 1):
            return f"`best` is {seen.best!r:.60}: return an iteration up to this one, {iteration}"
        return ""

    return wrong


def verdicts(count: int) -> Shape:
    """A verdict on each of `count` comparisons."""
    each = listing("a Verdict", "comparison", lambda verdict: isinstance(verdict, Verdict), count)

    def wrong(values: Any) -> str:
        if text := each(values):
            return text
        for verdict in values:
            for p in (verdict.p_first, *(verdict.p_orders or ())):
                if p is not None and not (is_number(p) and 0 <= p <= 1):
                    return f"{p!r:.100} is not a probability"
        return ""

    return wrong


def ratings(count: int, scale: tuple[float, float] | None) -> Shape:
    """A rating of each of `count` responses, on the judge's scale."""
    low, high = scale or (-math.inf, math.inf)
    each = listing("a Rating", "response", lambda rating: isinstance(rating, Rating), count)

    def wrong(values: Any) -> str:
        if text := each(values):
            return text
        for rating in values:
            if text := number(rating.score):
                return f"a score is {rating.score!r:.60}: {text}"
            if rating.score is not None and not low <= rating.score <= high:
                return f"a score is {rating.score:g}, outside of the judge's scale, {low:g} to {high:g}"
        return ""

    return wrong


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
    """A tensor's shape, or the type of anything else."""
    dimensions = shape_of(value)
    if dimensions is None:
        return type(value).__name__
    if dimensions:
        return str(list(dimensions))
    return "a scalar tensor"

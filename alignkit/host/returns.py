"""What a plugin's methods must return: each function raises for a value of another shape.

They are for `calls.call`, which says whose mistake it is: `call(plugin, "keep", groups,
returns=partial(mask, 12))`. They refuse what would end in a wrong number or an unreadable error;
the kits of `alignkit.testing` check the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, TypeAdapter

from alignkit.contract.algorithm import Phase, Skip
from alignkit.contract.batch import Batch, Per, Term
from alignkit.contract.kinds import MonitorReport
from alignkit.contract.report import Report
from alignkit.contract.reward import FINITE, CombinedReward, Rating, Verdict, is_score
from alignkit.contract.step import Artifact
from alignkit.data.group import LARGEST, Group, Message
from alignkit.errors import PluginError

_MESSAGE = TypeAdapter(Message)
_Number = Annotated[FiniteFloat, Field(ge=-LARGEST, le=LARGEST)]
_NUMBERS = TypeAdapter[Any](dict[str, _Number | None] | _Number | None)


def need(is_right: bool, wanted: str, value: Any) -> None:
    """Raise PluginError with what was wanted, and what there is instead, unless it is right."""
    if not is_right:
        raise PluginError(f"return {wanted}, not {shown(value)}")


def listing(values: Any, item: str, fits: Callable[[Any], bool], count: int | None = None) -> None:
    """Check a list, or an array of numpy or torch, of `count` entries, or of any number.

    Args:
        item: An entry in words, such as `true or false`.
        fits: Whether an entry is right.
    """
    values = plain(values)
    is_list = isinstance(values, Sequence) and count in (None, len(values))
    need(is_list, f"a list of {count or 'any number'}, each {item}", values)
    for value in values:
        need(fits(value), item, value)


def by_name(values: Any, items: str, fits: Callable[[str, Any], bool]) -> None:
    """Check a dict. items: in words, such as `tensors`. fits: whether a value is right under its
    name.
    """
    need(isinstance(values, Mapping), f"a dict of {items}", values)
    for name, value in values.items():
        need(fits(name, value), f"{items}, as '{name}'", value)


# Groups and messages


def selection(chosen: Any) -> None:
    """Groups, or phases."""
    kinds = {*map(type, chosen)}
    need(kinds in ({Group}, {Phase}, set()), "a list of groups, or of phases", chosen)


def messages(values: Any) -> None:
    """Messages that can be rendered, or None."""
    for message in values or ():
        # Half a character has no UTF-8.
        _MESSAGE.validate_python(message, strict=True)["content"].encode()


def prompt(group: Group, values: Any) -> None:
    """The messages of a prompt; none for a raw text, which has no prompt."""
    messages(values)
    need(bool(values) == bool(group.prompt), "the messages of a prompt", values)


# Numbers


def numbers(value: Any) -> None:
    """A number, or several by name."""
    _NUMBERS.validate_python(value)


def scores(count: int, values: Any) -> None:
    """What a reward returns: a score for each of `count` responses."""
    need(not isinstance(values, Mapping), "the list itself, such as [0.5, 1.0]", values)
    listing(values, f"{FINITE}, or None if it cannot be scored", is_score, count)


def combined(count: int, result: Any) -> None:
    """What a combination returns, a reward for each of `count` responses."""
    need(isinstance(result, CombinedReward), "a CombinedReward", result)
    reward = result.reward
    need(reward.shape == (count,), f"`reward` as [responses] = [{count}]", reward)
    fits = reward[~reward.isnan()].abs() <= LARGEST
    need(bool(fits.all()), f"finite rewards of at most {LARGEST:g}, or NaN for none", result)


def mask(count: int, kept: Any) -> None:
    """Whether each of `count` groups is kept."""
    listing(kept, "true or false", lambda each: each is True or each is False, count)


# Tensors


def advantages(batch: Batch, values: Any) -> None:
    """Tensors of tokens or responses by name, or a reason to skip the iteration."""
    of_tokens = batch.mask.shape
    names = {field.name for field in fields(Batch)}

    def fits(name: str, value: Any) -> bool:
        return (
            name not in names
            and value.shape in (of_tokens, of_tokens[:1])
            and value.is_floating_point()
        )

    if not isinstance(values, Skip):
        of = (
            f"[responses, tokens] = {list(of_tokens)} or [responses] in floating point, not named "
            "as a field of Batch"
        )
        by_name(values, f'tensors {of}, or Skip("reason")', fits)


def terms(batch: Batch, values: Any) -> None:
    """Unreduced terms by name."""
    of_tokens = batch.mask.shape
    shapes = {
        Per.TOKEN: of_tokens,
        Per.RESPONSE: of_tokens[:1],
        Per.PAIR: batch.pairs.p.shape,
        Per.GROUP: (len(batch.groups),),
    }

    def fits(name: str, term: Any) -> bool:
        return isinstance(term, Term) and term.values.shape == shapes[term.per]

    by_name(
        values, f"unreduced terms, such as Loss(name=per_token(...)) of {list(of_tokens)}", fits
    )


def loss(batch: Batch, values: Any) -> None:
    """The terms of a loss. Where gradients are computed they must have them, or the run would only
    appear to work.
    """
    import torch

    terms(batch, values)
    learned = [term.values for term in values.values() if term.coefficient]
    has_gradients = bool(learned) and all(each.requires_grad for each in learned)
    wanted = (
        "terms with gradients, computed from `out` without detach(); the entropy needs "
        "`Needs(entropy=True)`"
    )
    need(has_gradients or not torch.is_grad_enabled(), wanted, list(values))


def weights(of: Mapping[str, Term], values: Any) -> None:
    """Tensors by name, in the shape of the terms of these names."""

    def fits(name: str, tensor: Any) -> bool:
        like = of[name].values if name in of else tensor
        return bool(tensor.shape == like.shape)

    by_name(values, "tensors in the shapes of their loss terms", fits)


# Monitors, judges and steps


def monitor_report(iteration: int, report: Any) -> None:
    """What a monitor says of an iteration; 0: at the end."""
    need(isinstance(report, MonitorReport), "an alignkit.MonitorReport", report)
    json.dumps([report.metrics, report.summary])
    need(
        report.best in range(iteration + 1),
        f"as `best` an iteration up to this one, {iteration}",
        report.best,
    )


def verdicts(count: int, values: Any) -> None:
    """A verdict on each of `count` comparisons."""
    listing(values, "a Verdict", lambda each: isinstance(each, Verdict), count)


def ratings(count: int, scale: tuple[float, float] | None, values: Any) -> None:
    """A rating of each of `count` responses, on the judge's scale."""
    low, high = scale or (-LARGEST, LARGEST)

    def fits(rating: Any) -> bool:
        return isinstance(rating, Rating) and (rating.score is None or low <= rating.score <= high)

    listing(values, f"a Rating from {low:g} to {high:g}, or None", fits, count)


def artifact(made: Any) -> None:
    """What a step makes. Its report can be laid out, as the run does at its end."""
    need(isinstance(made, Artifact), "an Artifact", made)
    json.dumps(dict(made.summary or {}), allow_nan=False)
    if made.report is not None:  # the run lays it out at its end
        Report.restored(made.report.plain()).text()
        made.report.markdown()


# Values in words


def plain(values: Any) -> Any:
    """An array of numpy or torch as a list."""
    if hasattr(values, "tolist"):
        return values.tolist()
    return values


def shown(value: Any) -> str:
    """A value in words: a tensor or a term by its shape."""
    if isinstance(value, Term):
        value = value.values
    if hasattr(value, "shape"):
        value = list(value.shape)
    return f"{value!r:.100}"

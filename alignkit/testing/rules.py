"""What all kits share: the error, what may be registered, and comparisons of what a plugin returns."""

from __future__ import annotations

import copy
import difflib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import torch
from pydantic import ConfigDict, ValidationError

from alignkit.algorithm import Algorithm, ExternalTrainer, Needs, Source, StageDefaults, Trains
from alignkit.options import Options, Ref
from alignkit.registry import why_not
from alignkit.reward import RewardCombination


class ConformanceError(AssertionError):
    """The plugin breaks a rule; the message says which one and what to look for."""


def check_registered(kind: str, plugin: Any) -> str:
    """The name of a plugin, for messages. Raises ConformanceError if it cannot be registered or used as this kind."""
    name: str = getattr(plugin, "__name__", repr(plugin))
    wrong = why_not(kind, plugin)
    if not wrong and isinstance(plugin, type):
        options = getattr(plugin, "Options", Options)
        wrong = _wrong_default(options) or _wrong_method(plugin) or _wrong_algorithm(plugin) or _unexplained(options)
    if wrong:
        raise ConformanceError(f"{name}: {kind} '{name}' {wrong}")
    return name


def _wrong_default(options: type[Options]) -> str:
    """An option whose default is no value of it, which a recipe that leaves it out would get."""

    class Strict(options):  # type: ignore[valid-type, misc]
        model_config = ConfigDict(validate_default=True)

    try:
        Strict.model_validate({}, strict=True)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            if item["loc"] and item["type"] != "missing":
                return f"has the default {item['input']!r} of option '{item['loc'][0]}': {item['msg']}"
    return ""


def _wrong_method(plugin: type) -> str:
    """A method that is nearly called like one that the class leaves as it is: nobody would ever call it."""
    base = next(cls for cls in plugin.__mro__ if cls.__module__.startswith("alignkit."))
    methods = dict(inspect.getmembers(plugin, inspect.isfunction))
    called = {name for method in methods.values() for name in method.__code__.co_names}
    left = [name for name, method in methods.items() if name[0] != "_" and getattr(base, name, None) is method]
    for name in vars(plugin).keys() & methods.keys() - called:
        near = [] if name[0] == "_" or hasattr(base, name) else difflib.get_close_matches(name, left, 1, 0.8)
        if near:
            return f"has a method '{name}' that nobody calls; did you mean '{near[0]}'? Your own begin with '_'"
    return ""


def _wrong_algorithm(plugin: type) -> str:
    if not issubclass(plugin, Algorithm):
        return ""
    expected = {"source": Source, "trains": Trains, "defaults": StageDefaults, "needs": Needs}
    for attribute, wanted in expected.items():
        value = getattr(plugin, attribute)
        if not isinstance(value, (wanted, property)):  # a property depends on the options
            return f"has {attribute} = {value!r}, which must be alignkit's {wanted.__name__}"
    trains = issubclass(plugin, ExternalTrainer)
    return "has no loss: define loss(self, batch, out)" if plugin.loss is Algorithm.loss and not trains else ""


def _unexplained(options: type[Options]) -> str:
    """Every option must explain itself by a description, a range, or choices."""
    bare = [
        name
        for name, info in options.model_fields.items()
        if not (info.description or _explains_itself(info.annotation))
        and all(isinstance(mark, Ref) for mark in info.metadata)
    ]
    return f"has options without a description, a range or choices: {', '.join(bare)}" if bare else ""


def _explains_itself(annotation: Any) -> bool:
    if get_origin(annotation) is Literal or annotation is bool:
        return True
    arms = [arm for arm in get_args(annotation) if arm is not type(None)]
    return isinstance(annotation, UnionType) and all(map(_explains_itself, arms))


def state_problems(plugin: Algorithm | RewardCombination, when: str) -> list[str]:
    """Checkpoints keep the state as JSON."""
    problems = []
    for name, value in plugin.state.items():
        try:
            same = json.loads(json.dumps({name: value}, allow_nan=False)) == {name: value}
        except (TypeError, ValueError) as error:
            problems.append(f"state['{name}'] {when} is not JSON: {error}")
        else:
            if not same:
                problems.append(f"state['{name}'] {when} changes when saved as JSON and loaded: {value!r}")
    return problems


@contextmanager
def unchanged(wrong: str, *arguments: Any) -> Iterator[list[str]]:
    """Whether a call in the block leaves its arguments as they are: after it, the list has a problem if it does not.

    wrong: what the problem says, before what to do.
    """
    before = copy.deepcopy(arguments)
    problems: list[str] = []
    yield problems
    if not _equal(before, arguments):
        problems.append(f"{wrong}: make new ones, as with dataclasses.replace")


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def changes(
    text: str, expected: Sequence[Any], variants: Mapping[str, tuple[Sequence[Any], str]], tolerance: float = 0.0
) -> Iterator[str]:
    """For each variant, one line about the first result that differs.

    text: of a line, with `{}` for what the variant is. variants: what it is -> its results, in order, and what to do.
    """
    for cause, (actual, help) in variants.items():
        for index, (old, new) in enumerate(zip(expected, actual, strict=True)):
            numbers = isinstance(old, int | float) and isinstance(new, int | float)
            near = numbers and abs(new - old) <= tolerance * max(1.0, abs(old), abs(new))
            if old != new and not near:
                yield f"{text.format(cause)} {index} from {old!r:.200} to {new!r:.200}: {help}"
                break

"""The rules of the conformance kit. Each returns the problems that it finds, as messages to the author."""

from __future__ import annotations

import difflib
import inspect
import json
import math
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import torch
from pydantic import ConfigDict, ValidationError
from torch import Tensor

from alignkit.algorithm import Algorithm, Needs, Source, StageDefaults, Trains
from alignkit.external import ExternalTrainer
from alignkit.models.packing import Examples
from alignkit.options import Options, Ref
from alignkit.registry import why_not
from alignkit.reward import RewardCombination
from alignkit.testing.probe import Gradients

TOLERANCE = 1e-5  # relative; float32 sums in another order differ by about 1e-6


class ConformanceError(AssertionError):
    """The plugin breaks a rule; the message says which one and what to look for."""


def check_registered(kind: str, plugin: Any) -> str:
    """The name of a plugin, for messages. Raises ConformanceError if it cannot be registered or used as this kind."""
    name: str = getattr(plugin, "__name__", repr(plugin))
    wrong = why_not(kind, plugin)
    if not wrong and isinstance(plugin, type):
        wrong = _wrong_default(getattr(plugin, "Options", Options)) or _wrong_method(plugin) or _wrong_algorithm(plugin)
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


def option_problems(cls: Any) -> list[str]:
    """Every option must explain itself by a description, a range, or choices. cls: a plugin's class."""
    if not issubclass(cls.Options, Options):
        return ["Options must be a subclass of alignkit.Options"]
    bare = [
        name
        for name, info in cls.Options.model_fields.items()
        if not (info.description or _explains_itself(info.annotation))
        and all(isinstance(mark, Ref) for mark in info.metadata)
    ]
    return [f"options without a description, a range or choices: {', '.join(bare)}"] if bare else []


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


def finite_signal_problems(examples: Examples) -> list[str]:
    """Signals must be finite for what counts."""
    return [
        f"signal '{name}' is not finite everywhere"
        for name, values in counted_signals(examples).items()
        if not bool(values.isfinite().all())
    ]


def finite_problems(actual: Gradients) -> list[str]:
    """Losses and gradients must be finite, and not all zero."""
    problems = [f"'{name}' is {value}" for name, value in actual.metrics.items() if not math.isfinite(value)]
    for name, gradient in actual.gradients.items():
        if not bool(gradient.isfinite().all()):
            problems.append(f"{name} is not finite: look for sqrt, log or a division at 0, also outside the mask")
    if not problems and not bool(actual.gradients["the gradient"].any()):
        problems.append("the gradient is zero everywhere: nothing is learned (is `out` detached?)")
    return problems


def changes(expected: Gradients, actual: Gradients, cause: str, help: str) -> list[str]:
    """One line that lists every gradient and metric that differs."""
    differences = {
        name: relative_distance(actual.gradients[name], gradient) for name, gradient in expected.gradients.items()
    }
    for name, value in expected.metrics.items():
        new = torch.tensor([actual.metrics.get(name, math.nan)], dtype=torch.float64)
        old = torch.tensor([value], dtype=torch.float64)
        differences[f"'{name}'"] = relative_distance(new, old, floor=1.0)
    differences |= {f"'{name}'": math.nan for name in actual.metrics.keys() - expected.metrics.keys()}
    wrong = [f"{name} by {difference:.2g}" for name, difference in differences.items() if not difference <= TOLERANCE]
    return [f"{cause} changes {', '.join(wrong)} (relative; up to {TOLERANCE:g} is allowed): {help}"] if wrong else []


def counted_signals(examples: Examples) -> dict[str, Tensor]:
    """Every signal as one vector: of the tokens that count, or of the responses."""
    signals = {}
    for name in examples.signal_names:
        if name in examples.columns:
            signals[name] = examples.columns[name].float()
        else:
            columns = zip(examples.rows, examples.token_columns[name], strict=True)
            signals[name] = torch.cat([values[torch.tensor(row.mask, dtype=torch.bool)] for row, values in columns])
    return signals


def relative_distance(new: Tensor, old: Tensor, floor: float = 1e-12) -> float:
    """Length of the difference relative to the length of `old`."""
    return float((new - old).norm()) / max(float(old.norm()), floor)

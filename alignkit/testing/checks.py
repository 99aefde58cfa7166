"""The rules of the conformance kit. Each returns the problems that it finds, as messages to the author."""

from __future__ import annotations

import json
import math
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from alignkit.algorithm import Algorithm
from alignkit.models.packing import Examples
from alignkit.options import Options, Ref
from alignkit.plugins import HOOKS, check_defaults, check_implementation
from alignkit.reward import RewardCombination
from alignkit.testing.probe import Gradients

TOLERANCE = 1e-5  # relative; float32 sums in another order differ by about 1e-6


class ConformanceError(AssertionError):
    """The plugin breaks a rule; the message says which one and what to look for."""


def check_registered(hook: str, plugin: Any) -> str:
    """The name of a plugin, for messages. Raises ConformanceError if its hook would refuse it."""
    name: str = getattr(plugin, "__name__", repr(plugin))
    try:
        check_implementation(hook, name, plugin)
        if hasattr(plugin, "Options"):
            check_defaults(HOOKS[hook][0], plugin.Options)
    except TypeError as error:
        raise ConformanceError(f"{name}: {error}") from error
    return name


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

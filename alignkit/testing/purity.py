"""What a call of a plugin must leave as it was, and what it must not remember: a resumed run would lose it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence, MutableSet, Sequence, Set
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from alignkit.algorithm import Algorithm
from alignkit.calls import around_calls
from alignkit.data.group import Group
from alignkit.errors import PluginError
from alignkit.external import ExternalTrainer
from alignkit.filters import Filter
from alignkit.reward import Reward

KEPT = ("options", "state", "metrics", "called_in")  # saved, or made again


def memory_of(plugin: Any) -> dict[str, Any]:
    """The values of a plugin's attributes outside `state`, to compare with those after a call.

    Of its class, only lists, mappings and sets count: nothing else there changes by accident. What is computed once
    (`cached_property`) and functions, such as a logger, are not memory.
    """
    kind = type(plugin)
    shared = {
        name: _value(value)
        for parent in reversed(kind.__mro__)
        for name, value in vars(parent).items()
        if isinstance(value, MutableMapping | MutableSequence | MutableSet) and not name.startswith("__")
    }
    own = {
        name: _value(value)
        for name, value in vars(plugin).items()
        if name not in KEPT and not callable(value) and not isinstance(getattr(kind, name, None), cached_property)
    }
    return {**shared, **own}


def numbers_of(plugin: Any) -> dict[str, Any]:
    """The attributes that are numbers or tensors: a count or an average, but no store of what was computed before."""
    kept = {name: value for name, value in vars(plugin).items() if name not in KEPT}
    return {name: _value(value) for name, value in kept.items() if isinstance(value, int | float) or _is_array(value)}


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and (hasattr(value, "numpy") or hasattr(value, "tobytes"))


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """The name of an attribute that changed; None if none did."""
    return next((name for name in sorted({*before, *after}) if before.get(name) != after.get(name)), None)


def _value(value: Any) -> Any:
    """Something that is equal for equal contents, also for tensors, arrays and NaN."""
    if hasattr(value, "numpy"):
        value = value.detach().cpu().numpy()
    if hasattr(value, "tobytes") and hasattr(value, "shape"):
        return value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return [(repr(key), _value(below)) for key, below in value.items()]
    if isinstance(value, Set):
        return sorted(map(repr, value))
    if isinstance(value, str | bytes | int | float | None):
        return repr(value)
    if hasattr(value, "__len__") and hasattr(value, "__iter__"):
        return [_value(below) for below in value]
    return id(value)


@contextmanager
def watch(owner: object, method: str, args: Sequence[Any]) -> Iterator[None]:
    """Around each call of a plugin in a kit: what it must leave as it was. Raises PluginError.

    The working folder and torch's default dtype, on which the rest of a run depends; the prompts and columns of groups.
    What an algorithm, a filter or a combination remembers outside `state`, and what a reward counts: a resumed run
    would lose it.
    """
    folder, dtype, memory = os.getcwd(), torch.get_default_dtype(), _memory(method, owner)
    groups = [one for arg in args if isinstance(arg, list | tuple) for one in arg if isinstance(one, Group)]
    contents = copy.deepcopy([(group.prompt, group.meta) for group in groups])
    try:
        yield
    finally:
        left, used = os.getcwd(), torch.get_default_dtype()
        os.chdir(folder)
        torch.set_default_dtype(dtype)
    if left != folder:
        raise PluginError(f"it changed the working folder to {left}; `with contextlib.chdir(...)` changes it back")
    if used != dtype:
        raise PluginError("it changed torch's default dtype; `dtype=` names a tensor's")
    if [(group.prompt, group.meta) for group in groups] != contents:
        raise PluginError("it changed the prompt or columns of a group, which later iterations read: change a copy")
    if memory is None:
        return
    after = _memory(method, owner) or {}
    if method == "score":
        after = {name: value for name, value in after.items() if name in memory}  # others: computed once
        memory = {name: memory[name] for name in after}
    if name := changed(memory, after):
        raise PluginError(f"it changed self.{name}, which a resumed run would lose: {_advice(method, owner)}")


def _advice(method: str, owner: object) -> str:
    if method == "score":
        return "a score may depend on the row and the response only; a combination can remember, in self.state"
    once = "for what is only computed once there is functools.cached_property"
    if isinstance(owner, Filter):
        return f"`keep` must be a pure function of its arguments; {once}"
    return f"what must be remembered belongs in self.state, which checkpoints keep; {once}"


def _memory(method: str, owner: object) -> dict[str, Any] | None:
    """What an object remembers, if its kind may not."""
    if isinstance(owner, Reward) and method == "score":
        return numbers_of(owner)
    external = isinstance(owner, ExternalTrainer)  # which trains in a single call
    remembers = (isinstance(owner, Algorithm | Filter) and not external) or method == "combine"
    return memory_of(owner) if remembers and not isinstance(owner, type) else None


@contextmanager
def watched() -> Iterator[None]:
    """Watch all calls of plugins in the block."""
    token = around_calls.set(watch)
    try:
        yield
    finally:
        around_calls.reset(token)

"""An environment class as TRL's trainers take it (`environment_factory`), unchanged.

Source: TRL 1.16, `GRPOTrainer`. `reset(**row)` begins an episode, public methods are the tools, and
`get_reward` or the attribute `reward` is the reward. As in TRL, the policy reads whatever exception
a tool raises, and results as `str` writes them; both may be `async`. Differs from TRL: every
episode has a new instance, `reset` receives only the columns that it names unless it takes
`**kwargs`, and a `seed` among them, which makes a run repeatable; there are no images.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import runpy
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, wraps
from pathlib import Path
from typing import Any

import alignkit
from alignkit import Add, DataError, Environment, Field, Group, RunFailed, hookimpl

NO_TOOLS = ("reset", "get_reward")


class TRL(Environment):
    """Plays the user's class."""

    class Options(alignkit.Options):
        path: Path | None = Field(
            None, description="path of a .py file, relative to the recipe's folder"
        )
        factory: str = Field(
            description=(
                "the class in the file, or `package.module:Class` of an installed module instead "
                "of a file"
            )
        )
        kwargs: dict[str, Any] = Field({}, description="keyword arguments of the class")

    options: Options

    @cached_property
    def _played(self) -> Any:
        """The user's instance."""
        path = self.options.path
        file = None if path is None else self.folder / path.expanduser()
        try:
            return _class_of(file, self.options.factory)(**self.options.kwargs)
        except Exception as error:
            raise self._error("creating it", error) from error

    def _error(self, doing: str, error: Exception) -> RunFailed:
        return RunFailed(
            f"environment 'trl', {self.options.factory}: {doing} raised {type(error).__name__}: "
            f"{error}"
        )

    def check(self, folder: Path) -> None:
        self.folder = folder
        if (
            self.options.path is not None
            and not (folder / self.options.path.expanduser()).is_file()
        ):
            raise RunFailed(f"environment 'trl': no such file: {folder / self.options.path}")
        if not callable(getattr(self._played, "reset", None)):
            raise RunFailed(
                f"environment 'trl': {self.options.factory} has no method `reset`, with which TRL "
                "begins"
            )

    def check_prompts(self, groups: Sequence[Group]) -> None:
        arguments = inspect.signature(self._played.reset).parameters.values()
        plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        needed = [
            each.name
            for each in arguments
            if each.kind in plain and each.default is inspect.Parameter.empty
        ]
        for group in groups:
            if missing := [name for name in needed if name not in {"prompt", "seed", *group.meta}]:
                columns = ", ".join(group.meta) or "none"
                raise DataError(
                    f"{group.origin}: `reset` of {self.options.factory} needs the argument "
                    f"'{missing[0]}', but the prompt has no column of this name (other columns: "
                    f"{columns})"
                )

    def tools(self) -> Mapping[str, Callable[..., Any]]:
        names = [name for name, _ in inspect.getmembers(type(self._played), inspect.isfunction)]
        called = [name for name in names if not name.startswith("_") and name not in NO_TOOLS]
        return {name: _tool(getattr(self._played, name)) for name in called}

    def reset(self, row: Mapping[str, Any]) -> str | None:
        given = {"seed": int(self.random.integers(2**31)), **row}
        arguments = inspect.signature(self._played.reset).parameters
        if all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in arguments.values()):
            given = {name: value for name, value in given.items() if name in arguments}
        try:
            observation = _waited(self._played.reset(**given))
        except Exception as error:
            raise self._error("`reset`", error) from error
        return None if observation is None else str(observation)

    def get_reward(self) -> float | None:
        try:
            asked = getattr(self._played, "get_reward", None)
            reward = self._played.reward if asked is None else _waited(asked())
            return None if reward is None else float(reward)
        except Exception as error:
            raise self._error("its reward", error) from error


@cache
def _class_of(file: Path | None, factory: str) -> Callable[..., Any]:
    """Loaded once, not for each episode."""
    module, _, name = factory.rpartition(":")
    found = (
        runpy.run_path(str(file))[name]
        if file is not None
        else getattr(importlib.import_module(module), name)
    )
    assert callable(found)
    return found


def _tool(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*arguments: Any, **named: Any) -> str:
        try:
            return str(_waited(method(*arguments, **named)))
        except Exception as error:
            # Which the policy reads
            raise ValueError(str(error) or type(error).__name__) from error

    return call


def _waited(result: Any) -> Any:
    async def wait() -> Any:
        return await result

    return asyncio.run(wait()) if inspect.isawaitable(result) else result


@hookimpl
def register(add: Add) -> None:
    add("environment", "trl", TRL, "a class for TRL's environment_factory")

"""An environment class as TRL's trainers take it (`environment_factory`), unchanged.

Source: TRL 1.16, `GRPOTrainer`. `reset(**row)` begins an episode, public methods are the tools, and `get_reward` or the
attribute `reward` is the reward. As in TRL, the policy reads whatever exception a tool raises, and results as `str`
writes them; both may be `async`. Differs from TRL: every episode has a new instance, `reset` receives only the columns
that it names unless it takes `**kwargs`, and a `seed` among them, which makes a run repeatable; there are no images.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, wraps
from pathlib import Path
from typing import Any

from pydantic import model_validator

import alignkit
from alignkit import DataError, Environment, Field, Group, Register, RunFailed, hookimpl
from alignkit_plugins.named_code import NamedCode, accepted, raised, required

NO_TOOLS = ("reset", "get_reward")
_SETS_REWARD = re.compile(r"\.reward\b|\bsetattr\b|\bvars\(|__dict__|__getattr")  # what may make the attribute


class TRL(Environment):
    """Plays the user's class."""

    class Options(alignkit.Options):
        path: Path | None = Field(None, description="path of a .py file, relative to the recipe's folder")
        factory: str = Field(
            description="the class in the file, or `package.module:Class` of an installed module instead of a file"
        )
        kwargs: dict[str, Any] = Field({}, description="keyword arguments of the class")

        @model_validator(mode="after")
        def _one_place(self) -> Any:
            if (self.path is None) == (":" not in self.factory):
                raise ValueError("set `path`, or write `factory: package.module:Class`")
            return self

    options: Options
    runs_code = True

    @property
    def _code(self) -> NamedCode:
        path, (module, _, name) = self.options.path, self.options.factory.rpartition(":")
        return NamedCode("environment 'trl'", name, path and self.folder / path.expanduser(), module, "class")

    @cached_property
    def _played(self) -> Any:
        """The user's instance."""
        try:
            code = self._code
            changed = code.file.stat().st_mtime_ns if code.file is not None and code.file.is_file() else 0
            return _class_of(code, changed)(**self.options.kwargs)
        except Exception as error:
            raise self._error("creating it", error) from error

    def _error(self, doing: str, error: Exception) -> RunFailed:
        if isinstance(error, RunFailed):
            return error
        return RunFailed(f"environment 'trl', {self.options.factory}: {doing} raised {raised(error, self._file)}")

    @property
    def _file(self) -> Path:
        return Path(inspect.getfile(type(self._played))) if "_played" in vars(self) else self._code.file or Path()

    def check_source(self, folder: Path) -> None:
        self.folder = folder
        self._code.check()

    def check(self, folder: Path) -> None:
        self.folder = folder
        if not callable(getattr(self._played, "reset", None)):
            raise RunFailed(f"environment 'trl': {self.options.factory} has no method `reset`, with which TRL begins")

    def check_reward(self) -> None:
        kind = type(self._played)
        files = {Path(inspect.getfile(each)) for each in kind.__mro__ if each.__module__ != "builtins"}
        sets = any(_SETS_REWARD.search(file.read_text(encoding="utf-8", errors="replace")) for file in files)
        if not sets and not {"get_reward", "reward"} & set(dir(self._played)):
            where = f"environment 'trl': class {kind.__name__} in {self._file}"
            raise RunFailed(
                f"{where} has no method `get_reward` and sets no attribute `reward`, so its episodes have no reward\n"
                "help: add one, or use another 'reward' in the stage"
            )

    def check_prompts(self, groups: Sequence[Group]) -> None:
        needed = required(self._played.reset)
        for group in groups:
            if missing := [name for name in needed if name not in {"prompt", "seed", *group.meta}]:
                columns = ", ".join(group.meta) or "none"
                raise DataError(
                    f"{group.origin}: `reset` of {self.options.factory} needs the argument '{missing[0]}', but the "
                    f"prompt has no column of this name (other columns: {columns})"
                )

    def tools(self) -> Mapping[str, Callable[..., Any]]:
        names = [name for name, _ in inspect.getmembers(type(self._played), inspect.isfunction)]
        called = [name for name in names if not name.startswith("_") and name not in NO_TOOLS]
        return {name: _tool(getattr(self._played, name)) for name in called}

    def reset(self, row: Mapping[str, Any]) -> str | None:
        given = {"seed": int(self.random.integers(2**31)), **row}
        try:
            observation = _waited(self._played.reset(**accepted(self._played.reset, given)))
        except Exception as error:
            raise self._error("`reset`", error) from error
        return None if observation is None else _text(observation)

    def get_reward(self) -> float | None:
        try:
            asked = getattr(self._played, "get_reward", None)
            reward = getattr(self._played, "reward", None) if asked is None else _waited(asked())
            return None if reward is None else float(reward)
        except Exception as error:
            raise self._error("its reward", error) from error


@cache
def _class_of(code: NamedCode, changed: int) -> Callable[..., Any]:
    """Loaded once, not for each episode. changed: when the file was."""
    return code.load()


def _tool(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*arguments: Any, **named: Any) -> str:
        try:
            return _text(_waited(method(*arguments, **named)))
        except RunFailed:
            raise
        except Exception as error:
            raise ValueError(str(error) or type(error).__name__) from error  # which the policy reads

    return call


def _waited(result: Any) -> Any:
    return asyncio.run(_wait(result)) if inspect.isawaitable(result) else result


async def _wait(result: Any) -> Any:
    return await result


def _text(content: Any) -> str:
    """What a tool or `reset` returned, as TRL writes it. Raises RunFailed for pictures."""
    if not isinstance(content, list) or not all(isinstance(part, dict) and "type" in part for part in content):
        return str(content)
    if others := [part["type"] for part in content if part["type"] != "text"]:
        raise RunFailed(f"environment 'trl': it returned content of the type '{others[0]}', but only text is read here")
    return "".join(str(part["text"]) for part in content)


@hookimpl
def register_environments(register: Register) -> None:
    register("trl", TRL, summary="a class for TRL's environment_factory")

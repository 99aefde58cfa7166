"""The reward `python`, and functions and classes that a recipe names, in a file or in a module."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import importlib.metadata
import inspect
import math
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import alignkit
from alignkit import Context, DataError, Field, Group, Response, Reward, RunFailed
from alignkit.contract.reward import FINITE, is_score
from alignkit.errors import did_you_mean
from alignkit_plugins.text.rows import plain_turns, turns_of_response
from alignkit_plugins.text.spoken import all_turns, transcript

Row = tuple[Group, Response]
GIVEN = ("prompts", "completions", "completion_ids")  # to every function
MADE_UP = Response("Hello!", tokens=(0,))  # what a check tries a function with


@dataclass(frozen=True)
class NamedCode:
    """A function, or a class, by its name.

    user: names in errors what needs it, such as `reward 'python'`. file: a .py file; None: `module`
    is an installed one, such as `trl.rewards`. kind: what it is called in errors.
    """

    user: str
    name: str
    file: Path | None = None
    module: str = ""
    kind: str = "function"

    def load(self) -> Callable[..., Any]:
        """The function or class. Raises RunFailed if there is none, or if its module raises
        something.
        """
        where = self.file or self.module
        try:
            module = _executed(self.file) if self.file else importlib.import_module(self.module)
        except (Exception, SystemExit) as error:  # whatever somebody's module raises
            text = f"{self.user}: importing {where} raised {raised(error, where)}"
            if isinstance(error, ModuleNotFoundError) and self.module.startswith(str(error.name)):
                file = f"{self.module.replace('.', '/')}.py"
                text += (
                    f"\nhelp: if it is a file, write 'path: {file}' and '{self.kind}: {self.name}'"
                )
            raise RunFailed(text) from error
        call = getattr(module, self.name, None)
        if callable(call):
            return call
        help = did_you_mean(self.name, [name for name in vars(module) if name != self.name])
        text = f"{self.user}: {where} has no {self.kind} '{self.name}'"
        raise RunFailed(f"{text}; {help}".removesuffix("; "))


def _executed(file: Path) -> types.ModuleType:
    # A unique name: two files called reward.py must not replace each other, nor a module of that
    # name.
    path = str(file.resolve())
    name = "alignkit_code_" + hashlib.sha256(path.encode()).hexdigest()[:12]
    module = types.ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module  # dataclasses and pickle look the module up while it runs
    # importlib could use bytecode that is older than the source that `fingerprint` hashed.
    exec(compile(file.read_bytes(), str(file), "exec"), module.__dict__)
    return module


def _distributions(package: str) -> tuple[str, ...]:
    """The names under which a package is installed."""
    folders = [Path(folder or ".") for folder in sys.path]
    places = tuple((str(each), each.stat().st_mtime_ns) for each in folders if each.exists())
    return tuple(sorted(set(_installed(places).get(package, ()))))


@lru_cache(1)
def _installed(places: tuple[tuple[str, int], ...]) -> Mapping[str, list[str]]:
    """Package -> the names under which it is installed. All metadata are read, which takes 0.3 s;
    again once a folder of `sys.path` changed.
    """
    return importlib.metadata.packages_distributions()


def raised(error: BaseException, file: Path | str) -> str:
    """The error and the line of the user's file that raised it."""
    location = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == str(file):
            location = f" (line {frame.lineno}: {frame.line})"
    return f"{type(error).__name__}: {error}{location}"


class Python(Reward):
    """The user's function with TRL's signature, `f(prompts, completions, **columns)`.

    It returns a number for each completion. As in TRL, None means that it does not apply to a
    response, and the function may be `async`. Differs from TRL: without `**kwargs` it receives only
    the columns that it names, and an exception stops the run.
    """

    class Options(alignkit.Options):
        path: Path | None = Field(None, "path of a .py file, relative to the recipe's folder")
        function: str = Field(
            description=(
                "name of the function in the file, or `package.module:name` of an installed one "
                "instead"
            )
        )
        conversational: bool = Field(
            False,
            (
                "pass prompts and completions as lists of messages, like TRL for chats, not as "
                "strings"
            ),
        )

        def check_values(self) -> None:
            if (self.path is None) == (":" not in self.function):
                raise ValueError("set `path`, or write `function: package.module:name`")

        @property
        def packages(self) -> tuple[str, ...]:
            """The package whose version decides the scores."""
            module = self.function.rpartition(":")[0]
            return _distributions(module.partition(".")[0]) if module else ()

        @property
        def grader(self) -> str:
            """Another function is another reward."""
            return f"python {self.path} {self.function}"

    options: Options
    may_not_apply = True

    def check(self, folder: Path) -> None:
        path, (module, _, name) = self.options.path, self.options.function.rpartition(":")
        self._file = path and folder / path.expanduser()
        self._call = NamedCode("reward 'python'", name, self._file, module).load()
        self._parameters = inspect.signature(self._call).parameters.values()

    def check_prompts(self, groups: Sequence[Group]) -> Sequence[str]:
        columns = _columns(groups)
        for each in self._parameters:
            passed = each.name in columns or each.name in GIVEN
            if each.default is each.empty and "VAR" not in each.kind.name and not passed:
                raise DataError(
                    f"{self._name} needs the argument '{each.name}', but no prompt has a column of "
                    f"this name (other columns: {', '.join(columns) or 'none'})"
                    f"\n{did_you_mean(each.name, {*columns, *GIVEN})}".rstrip()
                )
        return [] if inspect.iscoroutinefunction(self._call) else self._tried(groups[:1])

    def _tried(self, groups: Sequence[Group]) -> Sequence[str]:
        """A warning if the function fails for a made-up answer. Raises DataError if it would not
        fail for the other form: a text, or messages.
        """
        rows = [(group, MADE_UP) for group in groups]
        conversational = self.options.conversational
        try:
            self._scores(rows, conversational)
        except RunFailed as error:
            text = str(error).partition("\n")[0]
            if isinstance(error.__cause__, TypeError | AttributeError):
                with contextlib.suppress(RunFailed):
                    self._scores(rows, not conversational)
                    other = str(not conversational).lower()
                    raise DataError(f"{text}\nhelp: set 'conversational: {other}'") from error
            return [f"{text}; tried with the answer '{MADE_UP.text}'"]
        return []

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.check(context.folder)

    def score(self, groups: Sequence[Group]) -> Sequence[float | None]:
        rows = list[Row]()
        for group in groups:
            for response in group.responses:
                rows.append((group, response))
        return self._scores(rows, self.options.conversational)

    def _scores(self, rows: Sequence[Row], conversational: bool) -> Sequence[float | None]:
        if not rows:
            return []
        every, arguments = _arguments(rows, conversational), dict[str, Any]()
        for each in self._parameters:
            if each.kind is each.VAR_KEYWORD:
                arguments = every
                break
            if each.name in every:
                arguments[each.name] = every[each.name]
        return self._checked(self._result(arguments), rows)

    @property
    def _name(self) -> str:
        where = f" of {self.options.path}" if self.options.path else ""
        return f"reward function '{self.options.function}'{where}"

    def _result(self, arguments: Mapping[str, Any]) -> Any:
        try:
            result = self._call(**arguments)
            return asyncio.run(_wait(result)) if inspect.isawaitable(result) else result
        except (Exception, SystemExit) as error:  # whatever a user's function raises
            text = f"{self._name} raised {raised(error, self._file or '')}"
            if isinstance(error, TypeError | AttributeError) and not self.options.conversational:
                text += "\nhelp: prompts and completions are texts; for lists of messages, "
                text += "set 'conversational: true'"
            raise RunFailed(text) from error

    def _checked(self, result: Any, rows: Sequence[Row]) -> list[float | None]:
        if not isinstance(result, Iterable) or isinstance(result, str | bytes | Mapping):
            wanted = f"expected a list of {len(rows)} numbers"
            raise RunFailed(f"{self._name} returned {result!r:.200}, {wanted}")
        scores = list(result)
        if len(scores) != len(rows):
            text = f"returned {len(scores)} scores for {len(rows)} completions"
            raise RunFailed(f"{self._name} {text}")
        numbers: list[float | None] = []
        for place, (score, (group, response)) in enumerate(zip(scores, rows, strict=True)):
            number = None if score is None else _number(score)
            if not is_score(number):
                prompt = f" (prompt {group.id})" if group.id else ""
                raise RunFailed(
                    f"{self._name} returned {score!r:.200} for completion {place} of {len(rows)}"
                    f"{prompt}, expected {FINITE}, or None if it does not apply\n"
                    f"  completion: {all_turns(response, thoughts=True)!r:.200}"
                )
            numbers.append(number)
        return numbers


def _number(score: Any) -> float:
    """A number as float, also a scalar of numpy or torch; NaN for anything else."""
    try:
        return math.nan if isinstance(score, str | bytes) else float(score)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan


async def _wait(result: Any) -> Any:
    return await result


def _arguments(rows: Sequence[Row], conversational: bool) -> dict[str, list[Any]]:
    """TRL's arguments, one entry per response; columns repeat over the responses of a prompt."""
    arguments: dict[str, list[Any]] = {}
    columns = _columns([group for group, _ in rows])
    prompts, completions, ids = list[Any](), list[Any](), list[list[int]]()
    for group, response in rows:
        values = _values(group)
        for name in columns:
            arguments.setdefault(name, []).append(values.get(name))
        if response.tokens is not None:
            ids.append(list(response.tokens))
        if conversational:
            prompts.append(plain_turns(group.prompt))
            completions.append(plain_turns(turns_of_response(response)))
        else:
            prompts.append(transcript(group.prompt))
            completions.append(all_turns(response, thoughts=True))
    if len(ids) == len(rows):
        arguments["completion_ids"] = ids
    return arguments | {"prompts": prompts, "completions": completions}


def _columns(groups: Iterable[Group]) -> dict[str, None]:
    """The names of all columns, in order."""
    columns: dict[str, None] = {}
    for group in groups:
        columns |= dict.fromkeys(_values(group))
    return columns


def _values(group: Group) -> dict[str, Any]:
    """The columns of a row, with its tools if it has any."""
    return {**group.meta, **({"tools": list(group.tools)} if group.tools else {})}

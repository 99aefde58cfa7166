"""Functions and classes that a recipe names, in a file of the user's or an installed module."""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import inspect
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.errors import RunFailed, did_you_mean


@dataclass(frozen=True)
class NamedCode:
    """A function, or a class, by its name. user: names in errors what needs it, such as `reward
    'python'`.

    file: a .py file; None: `module` is an installed one, such as `trl.rewards`.
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
        return self._of_module() if self.file is None else self._of_file(self.file)

    def _missing(self, place: str, names: list[str], then: str) -> RunFailed:
        plural = "classes" if self.kind == "class" else f"{self.kind}s"
        known = sorted(name for name in names if not name.startswith("_"))
        help = did_you_mean(self.name, known) or f"its {plural}: {', '.join(known) or 'none'}"
        return RunFailed(f"{self.user}: {place} has no {self.kind} '{self.name}'{then}{help}")

    def _of_module(self) -> Callable[..., Any]:
        try:
            module = importlib.import_module(self.module)
        except (Exception, SystemExit) as error:  # whatever somebody's module raises
            text = f"importing module {self.module} raised {type(error).__name__}: {error}"
            raise RunFailed(f"{self.user}: {text}") from error
        return self._in(module, self.module)

    def _of_file(self, file: Path) -> Callable[..., Any]:
        if not file.is_file():
            raise RunFailed(f"{self.user}: file {file} does not exist")
        # A unique name: two files called reward.py must not replace each other, nor a module of
        # that name.
        name = "alignkit_code_" + hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]
        module = types.ModuleType(name)
        module.__file__ = str(file)
        sys.modules[name] = module  # dataclasses and pickle look the module up while it runs
        try:
            # importlib could use bytecode that is older than the source that `fingerprint` hashed.
            exec(compile(file.read_bytes(), str(file), "exec"), module.__dict__)
        except (Exception, SystemExit) as error:  # whatever a user's file raises
            del sys.modules[name]
            raise RunFailed(
                f"{self.user}: importing {file} raised {raised(error, file)}"
            ) from error
        return self._in(module, str(file))

    def _in(self, module: types.ModuleType, place: str) -> Callable[..., Any]:
        call = getattr(module, self.name, None)
        if not callable(call):
            wanted = inspect.isclass if self.kind == "class" else inspect.isfunction
            raise self._missing(
                place, [name for name, value in vars(module).items() if wanted(value)], "; "
            )
        return call


def raised(error: BaseException, file: Path) -> str:
    """The error and the line of the user's file that raised it."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file
    ]
    location = f" (line {frames[-1].lineno}: {frames[-1].line})" if frames else ""
    return f"{type(error).__name__}: {error}{location}"


def accepted(call: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a function names, or all of them if it takes `**kwargs`."""
    parameters = _parameters(call)
    if parameters is None or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters
    ):
        return dict(arguments)
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in arguments.items() if name in names}


def required(call: Callable[..., Any]) -> list[str]:
    """The names of the arguments that a function must be given."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        parameter.name
        for parameter in _parameters(call) or ()
        if parameter.kind in kinds and parameter.default is parameter.empty
    ]


def _parameters(call: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """None for a builtin without a signature."""
    try:
        return [*inspect.signature(call).parameters.values()]
    except (TypeError, ValueError):
        return None

"""`alignkit plugins check`: every component of a plugin by the kit of its kind, each in a process
of its own.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from alignkit.commands import GROUP as COMMANDS
from alignkit.commands import Result, refuse
from alignkit.errors import PluginError, did_you_mean
from alignkit.io.text import printable
from alignkit.plugins import GROUP

LIMIT = 300.0  # seconds for each component
GRACE = 10.0  # seconds for a process to say where it hangs
TAIL = 6  # lines of a process that ended without an answer


@dataclass(frozen=True)
class Target:
    """What is checked. owners: the distributions that its registrations name; a file is one of its
    own.

    modules: with the plugins, and commands: with commands. files: those that are not installed.
    """

    title: str
    owners: list[str]
    modules: list[str]
    commands: list[str]
    files: list[str]


def target_of(text: str) -> Target:
    """What a user means by a file, a folder with a pyproject.toml, or the name of an installed
    package.
    """
    path = Path(text)
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        return _installed(text)
    if path.suffix != ".py":
        refuse(
            f"{text} is not a Python file",
            "name a module, a folder with a pyproject.toml, or a package",
        )
    return Target(text, [path.name], [path.stem], [], [str(path.resolve())])


def _of_folder(folder: Path) -> Target:
    """The package that a folder holds, which must be installed: its entry points say what it
    has.
    """
    try:
        name = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "name"
        ]
    except (OSError, ValueError, KeyError):
        refuse(
            f"{folder}/pyproject.toml names no project",
            "name a module FILE.py, or an installed package",
        )
    return _installed(name, f"install it first: pip install -e {folder}")


def _installed(name: str, help: str = "") -> Target:
    points = [
        point
        for group in (GROUP, COMMANDS)
        for point in importlib.metadata.entry_points(group=group)
    ]
    by_package: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for point in points:
        if point.dist is not None:
            by_package.setdefault(canonicalize_name(point.dist.name), []).append(point)
    chosen = by_package.get(canonicalize_name(name))
    if chosen is None or chosen[0].dist is None:
        help = (
            help or did_you_mean(name, by_package) or f"installed: {', '.join(sorted(by_package))}"
        )
        refuse(f"no file, folder or package with plugins is called {name}", help)
    commands = [point.module for point in chosen if point.group == COMMANDS]
    title = f"{chosen[0].dist.name} {chosen[0].dist.version}"
    return Target(title, [chosen[0].dist.name], [point.module for point in chosen], commands, [])


def check(target: Target, options: Mapping[str, Any]) -> Result:
    """Print a report. Its error is PluginError if a component breaks a rule. Raises RecipeError if
    there is none.

    options: of components, by their names.
    """
    listed = _ask(target)
    broken, components = listed["problems"], listed.get("components", [])
    for problem in broken:
        print(printable(f"BROKEN  {problem}"))
    if not components and not broken:
        refuse(
            f"{target.title} registers nothing",
            "mark a function with @hookimpl: docs/plugins/reference.md",
        )
    words, facts = ["FAILED"] * len(broken), list[dict[str, Any]]()
    for kind, name in components:
        start = time.monotonic()
        answer = _ask(target, kind=kind, name=name, options=dict(options))
        words.append("FAILED" if answer["problems"] else "skipped" if "skipped" in answer else "ok")
        facts.append(
            {
                "kind": kind,
                "name": Path(name).name,
                "outcome": words[-1],
                "problems": answer["problems"],
            }
        )
        print(
            printable(f"{words[-1]:7} {kind} {Path(name).name}  ({time.monotonic() - start:.0f} s)")
        )
        for line in answer["problems"] or [answer.get("skipped") or f"checked: {answer['rules']}"]:
            print(printable(f"        {line}"))
    result = Result("conformance", {"target": target.title, "broken": broken, "components": facts})
    if failed := words.count("FAILED"):
        text = f"{target.title}: {failed} of {len(words)} components cannot be used or break rules"
        return replace(
            result, error=PluginError(f"{text}\n  help: fix what is listed, and repeat the command")
        )
    print(
        printable(
            f"{target.title}: {words.count('ok')} of {len(words)} components follow the rules"
        )
    )
    return result


def _ask(target: Target, **request: Any) -> dict[str, Any]:
    """What a process of its own answers, or why it does not."""
    with tempfile.TemporaryDirectory(prefix="alignkit-check-") as folder:
        answer, log = Path(folder) / "answer.json", Path(folder) / "log.txt"
        words = json.dumps({**asdict(target), **request, "answer": str(answer), "seconds": LIMIT})
        code: int | str = "unknown"
        with log.open("wb") as output, suppress(subprocess.TimeoutExpired):
            command = [sys.executable, "-m", "alignkit_plugins.authors.kits", words]
            quiet: dict[str, Any] = {
                "stdin": subprocess.DEVNULL,
                "stdout": output,
                "stderr": output,
            }
            code = subprocess.run(command, timeout=LIMIT + GRACE, check=False, **quiet).returncode
        if answer.is_file():
            said: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
            return said
        return {"problems": _why(log.read_text(encoding="utf-8", errors="replace"), code, target)}


def _why(log: str, code: int | str, target: Target) -> list[str]:
    """Why a process ended without an answer."""
    if "Timeout (" in log:
        frames = re.findall(r'File "([^"]+)", line (\d+) in (\S+)', log)  # the innermost first
        names = {module.partition(".")[0] for module in target.modules}
        own = [frame for frame in frames if names & {*Path(frame[0]).with_suffix("").parts}]
        file, line, function = (own or frames or [("no Python code", "?", "?")])[0]
        return [
            (
                f"it did not finish in {LIMIT:.0f} seconds: it was at {Path(file).name}:{line}, "
                f"in {function}"
            )
        ]
    last = [line for line in log.splitlines() if line.strip()][-TAIL:]
    return [
        f"its process ended with exit code {code} and no result; its last lines:",
        *(f"  {line}" for line in last),
    ]

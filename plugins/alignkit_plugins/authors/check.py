"""`alignkit plugins check`: every component of a plugin by the kit of its kind, each in a process of its own.

`python -m alignkit_plugins.authors.check REQUEST` is such a process; it writes JSON into a file that the request names.
What the plugin prints, changes or ends affects nobody else.
"""

from __future__ import annotations

import faulthandler
import importlib.metadata
import json
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

from alignkit.commands import Result
from alignkit.errors import AlignkitError, PluginError, did_you_mean, reason_of, refuse
from alignkit.io.text import printable
from alignkit.options import Ref
from alignkit.plugins import GROUP, load_plugins, plugins
from alignkit.registry import KINDS, Registration
from alignkit.reward import RewardCombination

LIMIT = 300.0  # seconds for each component
GRACE = 10.0  # seconds for a process to say where it hangs
TAIL = 6  # lines of a process that ended without an answer
# Values of required options that refer to something: kits take any name for a stage, and any text for data.
VALUES = {name: name for name in ("stage", "policy", "from", "base", "reward")}
VALUES |= {"data": "rows.jsonl", "judge": "local_judge", "environment": "calculator"}

Answer = dict[str, Any]  # problems; components; skipped: why a component was not checked


@dataclass(frozen=True)
class Target:
    """What is checked. owner: the distribution that its registrations name; a file is its own.

    file: a module that is not installed; empty without one.
    """

    title: str
    owner: str
    file: str = ""


def target_of(text: str) -> Target:
    """Return what a user means by a file, a folder with a pyproject.toml, or a package's name."""
    path, name, help = Path(text), text, ""
    if path.is_file():
        if path.suffix != ".py":
            help = "name a module, a folder with a pyproject.toml, or a package"
            refuse(f"{text} is not a Python file", help)
        return Target(text, path.name, str(path.resolve()))
    if path.is_dir():
        help = f"install it first: pip install -e {path}"
        try:
            project = tomllib.loads((path / "pyproject.toml").read_text(encoding="utf-8"))
            name = project["project"]["name"]
        except (OSError, ValueError, KeyError):
            what = "name a module FILE.py, or an installed package"
            refuse(f"{path}/pyproject.toml names no project", what)
    try:
        package = importlib.metadata.distribution(name)
    except (ValueError, importlib.metadata.PackageNotFoundError):
        points = importlib.metadata.entry_points(group=GROUP)
        names = sorted({point.dist.name for point in points if point.dist is not None})
        help = help or did_you_mean(name, names) or f"installed: {', '.join(names)}"
        refuse(f"no file, folder or package with plugins is called {name}", help)
    return Target(f"{package.name} {package.version}", package.name)


def check(target: Target, options: Mapping[str, Any]) -> Result:
    """Print a report. Its error is PluginError if a component breaks a rule. Raises RecipeError if there is none.

    options: of components, by their names.
    """
    listed = _ask(target)
    broken, components = listed["problems"], listed.get("components", [])
    if not components and not broken:
        help = "mark a function with @hookimpl: docs/plugins/reference.md"
        refuse(f"{target.title} registers nothing", help)
    for problem in broken:
        print(printable(f"BROKEN  {problem}"))
    facts, outcomes = [], ["FAILED"] * len(broken)
    for kind, name in components:
        start = time.monotonic()
        answer = _ask(target, kind=kind, name=name, options=dict(options))
        problems, skipped = answer["problems"], answer.get("skipped", [])
        outcomes.append("FAILED" if problems else "skipped" if skipped else "ok")
        facts.append({"kind": kind, "name": name, "outcome": outcomes[-1], "problems": problems})
        print(printable(f"{outcomes[-1]:7} {kind} {name}  ({time.monotonic() - start:.0f} s)"))
        for line in [*problems, *skipped]:
            print(printable(f"        {line}"))
    result = Result("conformance", {"target": target.title, "broken": broken, "components": facts})
    count, failed = len(outcomes), outcomes.count("FAILED")
    if failed:
        text = f"{target.title}: {failed} of {count} components cannot be used or break rules"
        help = "fix what is listed, and repeat the command"
        return replace(result, error=PluginError(f"{text}\n  help: {help}"))
    good = outcomes.count("ok")
    print(printable(f"{target.title}: {good} of {count} components follow the rules"))
    return result


def _ask(target: Target, **request: Any) -> Answer:
    """What a process of its own answers, or why it does not."""
    with tempfile.TemporaryDirectory(prefix="alignkit-check-") as folder:
        answer, log = Path(folder) / "answer.json", Path(folder) / "log.txt"
        words = json.dumps({**asdict(target), **request, "answer": str(answer), "seconds": LIMIT})
        command = [sys.executable, "-m", "alignkit_plugins.authors.check", words]
        code: int | str = "unknown"
        with log.open("wb") as output, suppress(subprocess.TimeoutExpired):
            streams: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), output)
            streams["stdin"] = subprocess.DEVNULL
            code = subprocess.run(command, timeout=LIMIT + GRACE, check=False, **streams).returncode
        if answer.is_file():
            said: Answer = json.loads(answer.read_text(encoding="utf-8"))
            return said
        text = log.read_text(encoding="utf-8", errors="replace")
    _, hangs, stack = text.partition("Timeout (")
    if hangs:
        frames = [line.strip() for line in stack.splitlines()[2:5]]  # the innermost first
        return {"problems": [f"it did not finish in {LIMIT:.0f} seconds: {'; '.join(frames)}"]}
    lines = text.splitlines()[-TAIL:]
    why = f"its process ended with exit code {code} and no result; its last lines:"
    return {"problems": [why, *lines]}


# In a process of its own


def main() -> None:
    """Answer a request."""
    request = json.loads(sys.argv[1])
    faulthandler.dump_traceback_later(
        request["seconds"], exit=True
    )  # also while C code does not return
    answer = checked(request) if "kind" in request else listed(request)
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def listed(request: Mapping[str, Any]) -> Answer:
    """Return the components, each as kind and name, and why plugins are broken."""
    loaded = load_plugins(_files(request))
    problems = [str(one) for one in loaded.broken if one.distribution == request["owner"]]
    return {"components": list(_registered(request)), "problems": problems}


def _files(request: Mapping[str, Any]) -> list[Path]:
    return [Path(request["file"])] if request["file"] else []


def _registered(request: Mapping[str, Any]) -> dict[tuple[str, str], Registration]:
    """The target's registrations by kind and name; combinations are a kind of their own."""
    components = {}
    for kind in KINDS:
        for one in plugins().registrations(kind):
            if one.distribution == request["owner"]:
                cls = one.implementation
                combines = isinstance(cls, type) and issubclass(cls, RewardCombination)
                components["combination" if combines else kind, one.name] = one
    return components


def checked(request: Mapping[str, Any]) -> Answer:
    """Return the rules that a component breaks by the kit of its kind."""
    try:
        load_plugins(_files(request))
        kind, name = request["kind"], request["name"]
        return _by_kit(kind, _registered(request)[kind, name], request["options"])
    except (AlignkitError, AssertionError) as error:  # a ConformanceError lists all broken rules
        return {"problems": str(error).splitlines()}
    except Exception as error:
        return {"problems": [f"the kit failed: {reason_of(error)}"]}


def _by_kit(kind: str, registration: Registration, options: Mapping[str, Any]) -> Answer:
    from alignkit import testing

    name, implementation = registration.name, registration.implementation
    if kind == "model":
        testing.check_model_source(implementation)
        return {"problems": []}
    kit = getattr(testing, f"check_{kind}", None)
    if kind == "reader":
        help = "its kit reads a file: call alignkit.testing.check_reader in a test"
        return {"problems": [], "skipped": [help]}
    if kit is None:
        return {"problems": [], "skipped": [f"there is no kit for plugins of the kind {kind}"]}
    values, missing = dict(options.get(name, {})), []
    for key, field in implementation.Options.model_fields.items():
        if key in values or not field.is_required():
            continue
        kinds = [one.kind for one in field.metadata if isinstance(one, Ref)]
        if kinds and kinds[0] in VALUES:
            values[key] = VALUES[kinds[0]]
        else:
            missing.append(f"{key}: VALUE")
    if missing:
        text = f"it needs options: --options '{{{name}: {{{', '.join(missing)}}}}}'"
        return {"problems": [], "skipped": [text]}
    kit(implementation, values)
    return {"problems": []}


if __name__ == "__main__":
    main()

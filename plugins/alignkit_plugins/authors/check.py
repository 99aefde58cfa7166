"""`alignkit plugins check`: every component of a plugin by the kit of its kind."""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignkit import testing
from alignkit.commands import Result
from alignkit.errors import AlignkitError, PluginError, did_you_mean, reason_of, refuse
from alignkit.io.text import printable
from alignkit.options import Ref
from alignkit.plugins import GROUP, load_plugins
from alignkit.registry import KINDS, Registration
from alignkit.reward import RewardCombination

# Values of required options that refer to something: kits take any name of a stage.
VALUES = {name: name for name in ("stage", "policy", "from", "base", "reward")}
VALUES |= {"data": "rows.jsonl", "judge": "local_judge", "environment": "calculator"}


@dataclass(frozen=True)
class Target:
    """What is checked. owner: the distribution that its registrations name; a file is its own.

    files: a module that is not installed.
    """

    title: str
    owner: str
    files: tuple[Path, ...] = ()


def target_of(text: str) -> Target:
    """Return what a user means by a file, a folder with a pyproject.toml, or a package's name."""
    path, name, help = Path(text), text, ""
    if path.is_file():
        if path.suffix != ".py":
            help = "name a module, a folder with a pyproject.toml, or a package"
            refuse(f"{text} is not a Python file", help)
        return Target(text, path.name, (path.resolve(),))
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


class Skipped(Exception):
    """Why no kit checks a component."""


def check(target: Target, options: Mapping[str, Any]) -> Result:
    """Print a report. Its error is PluginError if a component breaks a rule.

    options: of components, by their names. Raises RecipeError if there is no component.
    """
    registry = load_plugins(target.files)
    broken = [str(one) for one in registry.broken if one.distribution == target.owner]
    components: list[Registration] = []
    for kind in KINDS:
        components += [
            one for one in registry.registrations(kind) if one.distribution == target.owner
        ]
    if not components and not broken:
        help = "mark a function with @hookimpl: docs/plugins/reference.md"
        refuse(f"{target.title} registers nothing", help)
    for problem in broken:
        print(printable(f"BROKEN  {problem}"))
    facts, outcomes = [], ["FAILED"] * len(broken)
    for one in components:
        lines, outcome = list[str](), "ok"
        try:
            check_component(one, options.get(one.name, {}))
        except Skipped as reason:
            lines, outcome = [str(reason)], "skipped"
        except (
            AlignkitError,
            AssertionError,
        ) as error:  # a ConformanceError lists all broken rules
            lines, outcome = str(error).splitlines(), "FAILED"
        except Exception as error:
            lines, outcome = [f"the kit failed: {reason_of(error)}"], "FAILED"
        outcomes.append(outcome)
        fact = {"kind": one.kind, "name": one.name, "outcome": outcome}
        facts.append({**fact, "problems": lines if outcome == "FAILED" else []})
        print(printable(f"{outcome:7} {one.kind} {one.name}"))
        for line in lines:
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


def check_component(registration: Registration, options: Mapping[str, Any]) -> None:
    """Check a component by the kit of its kind, with options that refer to something made up.

    Raises what the kit raises, and Skipped if there is no kit, or an option is missing.
    """
    kind, name, cls = registration.kind, registration.name, registration.implementation
    if kind == "model":
        testing.check_model_source(cls)
        return
    if kind == "reader":
        raise Skipped("its kit reads a file: call alignkit.testing.check_reader in a test")
    if isinstance(cls, type) and issubclass(cls, RewardCombination):
        kind = "combination"
    kit = getattr(testing, f"check_{kind}", None)
    if kit is None:
        raise Skipped(f"there is no kit for plugins of the kind {kind}")
    values, missing = dict(options), []
    for key, field in cls.Options.model_fields.items():
        if key in values or not field.is_required():
            continue
        kinds = [one.kind for one in field.metadata if isinstance(one, Ref)]
        if kinds and kinds[0] in VALUES:
            values[key] = VALUES[kinds[0]]
        else:
            missing.append(f"{key}: VALUE")
    if missing:
        raise Skipped(f"it needs options: --options '{{{name}: {{{', '.join(missing)}}}}}'")
    kit(cls, values)

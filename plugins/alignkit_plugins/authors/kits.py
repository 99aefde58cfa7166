"""Lists or checks the components of a plugin, for `alignkit plugins check`, which starts a process
for each.

`python -m alignkit_plugins.authors.kits REQUEST` writes JSON into a file that the request names.
What the plugin prints, changes or ends affects nobody else.
"""

from __future__ import annotations

import faulthandler
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from alignkit.errors import AlignkitError, reason_of
from alignkit.options import Ref
from alignkit.plugins import load_plugins
from alignkit.registry import KINDS, Registration
from alignkit.reward import RewardCombination

# Values of options that refer to something, by what: kits take any name for a stage, and any text
# for data.
_VALUES = {name: name for name in ("stage", "policy", "from", "base", "reward")}
_VALUES |= {"data": "rows.jsonl", "judge": "local_judge", "environment": "calculator"}

Request = Mapping[str, Any]
# Problems; of one component, also rules (what was checked) or skipped (why nothing was)
Answer = dict[str, Any]


def main() -> None:
    request = json.loads(sys.argv[1])
    # Also while C code does not return
    faulthandler.dump_traceback_later(request["seconds"], exit=True)
    answer = checked(request) if "kind" in request else listed(request)
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def listed(request: Request) -> Answer:
    """The components, each as kind and name, and why plugins are broken."""
    commands = [
        file
        for file in request["files"]
        if "def register_commands" in Path(file).read_text(encoding="utf-8")
    ]
    loaded = load_plugins([Path(file) for file in request["files"] if file not in commands])
    components = [key for key, one in _own(request).items()]
    components += [("command", module) for module in (*commands, *request["commands"])]
    return {
        "components": components,
        "problems": [str(one) for one in loaded.broken if one.distribution in request["owners"]],
    }


def _own(request: Request) -> dict[tuple[str, str], Registration]:
    """The target's registrations by kind and name; combinations are a kind of their own."""
    from alignkit.plugins import plugins

    own = {}
    for kind in KINDS:
        for one in plugins().registrations(kind):
            combines = isinstance(one.implementation, type) and issubclass(
                one.implementation, RewardCombination
            )
            if one.distribution in request["owners"]:
                own["combination" if combines else kind, one.name] = one
    return own


def checked(request: Request) -> Answer:
    """What the kit of one component checks, and the rules that it breaks."""
    kind, name = request["kind"], request["name"]
    try:
        if kind == "command":
            return {
                "problems": [],
                "skipped": "there is no kit for commands: call yours with --help",
            }
        load_plugins(map(Path, request["files"]))
        return _by_kit(kind, _own(request)[kind, name], request)
    except (
        AlignkitError,
        AssertionError,
    ) as error:  # a ConformanceError lists all rules that are broken
        return {"problems": str(error).splitlines()}
    except Exception as error:
        return {"problems": [f"the kit failed: {reason_of(error)}"]}


def _by_kit(kind: str, registration: Registration, request: Request) -> Answer:
    from alignkit import testing

    name, implementation = f"check_{kind}", registration.implementation
    if kind == "model":
        testing.check_model_source(implementation)
    elif kind == "reader":
        return {
            "problems": [],
            "skipped": "its kit reads a file: call alignkit.testing.check_reader in a test",
        }
    elif kit := getattr(testing, name, None):
        required = {
            key: field
            for key, field in implementation.Options.model_fields.items()
            if field.is_required()
        }
        values = {
            key: _value((*field.metadata, field.annotation)) for key, field in required.items()
        }
        given = request["options"].get(registration.name, {})
        invented, values = [key for key in required if key not in given], values | given
        if missing := [key for key in required if values[key] is None]:
            return {"problems": [], "skipped": _asked(registration.name, missing)}
        try:
            kit(implementation, values)
        except (AssertionError, ValidationError) as error:
            if not invented or (
                isinstance(error, AssertionError) and "these options is refused" not in str(error)
            ):
                raise
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            return {
                "problems": [],
                "skipped": f"{_asked(registration.name, invented)} (those of this check: {why})",
            }
    else:
        return {"problems": [], "skipped": f"there is no kit for plugins of the kind {kind}"}
    return {
        "problems": [],
        "rules": _rules(testing.__doc__ or "", name.replace("model", "model_source")),
    }


def _asked(name: str, options: list[str]) -> str:
    return (
        f"it needs options: --options '{{{name}: "
        f"{{{', '.join(f'{key}: VALUE' for key in options)}}}}}'"
    )


def _value(annotations: tuple[Any, ...]) -> Any:
    """A value of an option that refers to something; None for others."""
    for each in annotations:
        inside = (*get_args(each), *getattr(each, "__metadata__", ()))
        value = _VALUES.get(each.kind) if isinstance(each, Ref) else _value(inside)
        if value is not None:
            several = {dict: {"first": value, "second": value}, list: [value, value]}
            return (
                several.get(get_origin(each) or each, value) if not isinstance(each, Ref) else value
            )
    return None


def _rules(table: str, kit: str) -> str:
    """What a kit checks, from the tables of `alignkit.testing`."""
    if kit == "check_algorithm":
        return ", ".join(re.findall(r"^\| (\w[\w -]+) \| (?!what)", table, re.MULTILINE))
    row = re.search(rf"^\| `{kit}` \| (.*) \|$", table, re.MULTILINE)
    return row[1] if row else ""


if __name__ == "__main__":
    main()

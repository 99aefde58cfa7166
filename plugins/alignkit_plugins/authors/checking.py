"""Plugins by the rules of their kinds: `alignkit plugins check`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from alignkit import testing
from alignkit.contract.reward import RewardCombination
from alignkit.errors import PluginError
from alignkit.host.plugins import Plugins
from alignkit.host.registry import KINDS
from alignkit_plugins.authors.listing import plugin_row

# The kit of readers wants a file of theirs, which no option names.
BY_OPTIONS = [kind for kind in KINDS if kind != "reader" and hasattr(testing, f"check_{kind}")]


def check_plugins(
    name: str, options: Mapping[str, Any], loaded: Plugins
) -> tuple[list[dict[str, str]], list[str]]:
    """The plugins called `name`, or in the package or module `name`, that hold the rules of their
    kinds; and a line for each: the rules, or that no kit checks it.

    options: by name of a plugin. Raises PluginError, which lists the rules that a plugin breaks.
    """
    checked, lines, unchecked = list[dict[str, str]](), list[str](), list[str]()
    for kind in KINDS:
        for one in loaded.registrations(kind):
            if name not in (one.name, one.distribution):
                continue
            if kind not in BY_OPTIONS:
                how = "by `check_reader` in a test" if kind == "reader" else "in a run"
                unchecked.append(f"{kind} {one.name}: not checked here; test it {how}")
                continue
            cls, kit = one.implementation, f"check_{kind}"
            if isinstance(cls, type) and issubclass(cls, RewardCombination):
                kit = "check_combination"
            try:
                getattr(testing, kit)(cls, options.get(one.name, {}))
            except AssertionError as error:
                raise PluginError(f"{kind} {one.name}: {error}") from error
            checked.append(plugin_row(one))
            owners = {
                other.origin for other in loaded.registrations(kind) if other.name == one.name
            }
            whose = f" of {one.origin}" if len(owners) > 1 else ""
            signs = "; not checked: signs and formulas" * (kind == "algorithm")
            lines.append(f"{kind} {one.name}{whose}: holds: {_rules(kit)}{signs}")
            for other in sorted(owners - {one.origin}):
                lines.append(
                    f"warning: {kind} {one.name}: {other} has one of this name, too, so recipes "
                    "must say whose; choose another name"
                )
    return checked, lines + unchecked


def _rules(kit: str) -> str:
    """What a kit checks, from the tables of `alignkit.testing`; that of algorithms has one of its
    own.
    """
    rows = re.findall(r"^\| ([`\w-]+) \| (.+) \|$", testing.__doc__ or "", re.MULTILINE)
    parts = [name for name, _ in rows if name[0] != "`" and name != "check"]
    return dict(rows).get(f"`{kit}`", ", ".join(parts))

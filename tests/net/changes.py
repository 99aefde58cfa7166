"""What is right: the pins, with the changes of `changes.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from tests.net.recipes import NET

KEYS = {"entry", "reason", "old", "new"}


def expected(
    table: str, pins: Mapping[str, Any], changes: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The pins of a table after its changes. Raises AssertionError if `old` is not what the pins
    have.
    """
    if changes is None:
        changes = yaml.safe_load((NET / "changes.yaml").read_text(encoding="utf-8"))
    result = dict(pins)
    for change in changes:
        assert change.keys() == KEYS and change["reason"], (
            f"changes.yaml: {change} needs the keys {sorted(KEYS)}"
        )
        name, _, entry = change["entry"].partition("/")
        if name != table:
            continue
        assert result.get(entry) == change["old"], (
            f"changes.yaml: the pins have another `old` for {change['entry']}"
        )
        if change["new"] is None:
            result.pop(entry, None)
        else:
            result[entry] = change["new"]
    return result


def differences(table: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """One line per entry that is missing, new or different."""
    names = sorted(wanted.keys() | found.keys())
    return [
        f"{table}/{name}:\n    old: {wanted.get(name)}\n    new: {found.get(name)}"
        for name in names
        if wanted.get(name) != found.get(name)
    ]

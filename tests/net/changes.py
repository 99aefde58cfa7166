"""What is right: the pins, with the changes of `changes.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

NET = Path(__file__).parent
ROOT = NET.parent.parent


def expected(table: str, pins: Mapping[str, Any]) -> dict[str, Any]:
    """The pins of a table after its changes, which must be of what the pins have."""
    result = dict(pins)
    for change in yaml.safe_load((NET / "changes.yaml").read_text(encoding="utf-8")):
        name, _, entry = change["entry"].partition("/")
        if name == table:
            assert result.pop(entry, None) == change["old"], change["entry"]
            if change["new"] is not None:
                result[entry] = change["new"]
    return result

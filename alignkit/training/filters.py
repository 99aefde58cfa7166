"""The filters of a stage: `rollout: {filters: [...]}`, applied to the scored groups of an iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignkit.calls import call
from alignkit.data.group import Group
from alignkit.filters import Filter


def keep(chooser: Filter, groups: Sequence[Group]) -> list[bool]:
    """Whether a filter keeps each group. Raises PluginError, with its plugin and method, for a mistake in it."""
    if not groups:
        return []
    kept = call(chooser, "keep", groups, returns=lambda kept: _wrong_mask(kept, len(groups)))
    return [bool(each) for each in kept]


def _wrong_mask(kept: Any, count: int) -> str:
    kept = kept.tolist() if hasattr(kept, "tolist") else kept  # of numpy or torch
    if not isinstance(kept, Sequence) or isinstance(kept, str):
        return f"return a list of true and false, not {type(kept).__name__}"
    if len(kept) != count:
        return f"return true or false for each of {count} groups, not {len(kept)}"
    wrong = [each for each in kept if each is not True and each is not False]
    return f"return true or false for a group, not {wrong[0]!r:.60}" if wrong else ""

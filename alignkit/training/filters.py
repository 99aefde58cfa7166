"""The filters of a stage: `rollout: {filters: [...]}`, applied to the scored groups of an iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignkit.data.group import Group
from alignkit.filters import Filter
from alignkit.plugin_errors import Author, calling, made
from alignkit.registry import Component


class CheckedFilter:
    """Calls a filter. Raises PluginError, with its plugin and method, for an author's mistake."""

    def __init__(self, component: Component, stage: str = ""):
        self.name = component.name
        self.filter: Filter
        self.author: Author
        self.filter, self.author = made(component, stage)

    def keep(self, groups: Sequence[Group]) -> list[bool]:
        """Whether each group is learned from."""
        if not groups:
            return []
        with calling(self.author, "keep", self.filter, groups):
            kept: Any = self.filter.keep(groups)
        if hasattr(kept, "tolist"):  # of numpy or torch
            kept = kept.tolist()
        if not isinstance(kept, Sequence) or isinstance(kept, str):
            raise self._wrong(f"return a list of true and false, not {type(kept).__name__}")
        if len(kept) != len(groups):
            raise self._wrong(f"return true or false for each of {len(groups)} groups, not {len(kept)}")
        for each in kept:
            if each is not True and each is not False:
                raise self._wrong(f"return true or false for a group, not {each!r:.60}")
        return list(kept)

    def _wrong(self, text: str) -> Exception:
        return self.author.error(f"{type(self.filter).__name__}.keep", text)

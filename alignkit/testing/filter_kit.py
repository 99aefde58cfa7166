"""The rules of filters: true or false per group, the same on every call and in any order of the groups."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.calls import create
from alignkit.data.group import Group
from alignkit.filters import Filter
from alignkit.registry import Component
from alignkit.testing.surroundings import Surroundings, conform
from alignkit.training.rewards import filter_mask

AGAIN = "a filter must not draw random numbers or remember anything"
ORDER = "a filter may use all groups together, but not their places"


def check_filter(
    cls: type[Filter],
    options: Mapping[str, Any] | None = None,
    *,
    groups: Sequence[Group] | None = None,
    folder: Path | None = None,
) -> None:
    """Raise ConformanceError listing every rule that a filter breaks (see the table in `alignkit.testing`).

    Args:
        options: As in a recipe.
        groups: Scored samples to filter, some of which stay and some of which go; default: the kit's own, which need
            not have both.
        folder: The recipe's; default: the current one.
    """
    conform("filter", cls, options, _problems, folder=folder, groups=groups)


def _problems(around: Surroundings, component: Component) -> Iterator[str]:
    groups, own = around.rollouts, around.groups is not None
    before = copy.deepcopy(groups)
    kept = filter_mask(create(component), groups)
    if groups != before:
        yield "`keep` changes the groups that it is given"
    if own and len(set(kept)) < 2:
        yield f"`keep` {'keeps' if kept[0] else 'leaves out'} all of the {len(groups)} groups: pass others as `groups`"
    if filter_mask(create(component), groups) != kept:
        yield f"`keep`: a second call chooses other groups: {AGAIN}"
    if filter_mask(create(component), groups[::-1]) != kept[::-1]:
        yield f"`keep`: the order of the groups changes what is kept: {ORDER}"
    if filter_mask(create(component), []):
        yield "`keep`: without groups, return an empty list"

"""A filter: only groups whose responses all differ are learned from."""

from collections.abc import Sequence

from alignkit import Add, Filter, Group, hookimpl


class AllDiffer(Filter):
    reads_rewards = False

    def keep(self, groups: Sequence[Group]) -> list[bool]:
        return [
            len({one.text for one in group.responses}) == len(group.responses) for group in groups
        ]


@hookimpl
def register(add: Add) -> None:
    add("filter", "all_differ", AllDiffer, "drops groups with the same twice")

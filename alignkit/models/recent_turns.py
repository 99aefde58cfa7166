"""Keeps the end of a dialogue that is too long: its oldest turns are dropped, whole."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace

from alignkit.data.group import Group
from alignkit.models.chunks import WHOLE
from alignkit.models.encoding import Encoder, RowRefused


def with_recent_turns(group: Group, fits: Callable[[Group], bool]) -> Group:
    """The group with as many of its prompt's turns as fit, the newest ones; with the last question if nothing fits.

    System messages in front stay, and the rest begins with a user. fits: whether a group with some of the turns does;
    with fewer turns, it still does.
    """
    if fits(group):
        return group
    shorter = _shortened(group)
    place = bisect_left(shorter, True, key=fits)
    return shorter[min(place, len(shorter) - 1)] if shorter else group


def with_room(group: Group, encoder: Encoder, max_length: int, *, scoring: bool) -> Group:
    """The group with as many turns as leave room for its longest response in `max_length` tokens."""

    def fits(shorter: Group) -> bool:
        try:
            whole = encoder.encode(shorter, WHOLE, scoring=scoring)
        except RowRefused:  # whoever encodes the group will report it
            return True
        longest = max((len(row.tokens) for row in whole.rows), default=0) if whole else 0
        return whole is not None and len(whole.prompt) + longest <= max_length

    return with_recent_turns(group, fits)


def with_last_question(group: Group) -> Group:
    """The group with nothing in its prompt but system messages, and the turns from the last user's on."""
    return with_recent_turns(group, lambda shorter: False)


def _shortened(group: Group) -> list[Group]:
    """The group with fewer and fewer turns."""
    prompt = group.prompt
    system = next((i for i, turn in enumerate(prompt) if turn["role"] != "system"), len(prompt))
    starts = [i for i in range(system + 1, len(prompt)) if prompt[i]["role"] == "user"]
    return [replace(group, prompt=(*prompt[:system], *prompt[start:])) for start in starts]

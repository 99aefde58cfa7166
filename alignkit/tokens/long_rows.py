"""Rows that are too long: raw text in several rows, which learn all of it, and dialogues without their oldest turns."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace

from alignkit.data.group import Group
from alignkit.tokens.encoding import Encoded, Encoder, ResponseTokens, RowRefused

WHOLE = 2**62  # a limit on the length that cuts nothing


def is_document(group: Group) -> bool:
    """Whether a group is one raw text, which can be learned in pieces."""
    return not group.prompt and len(group.responses) == 1 and group.responses[0].tokens is None


def chunks(document: Encoded, max_length: int) -> list[Encoded]:
    """A document in rows of at most `max_length` tokens; none if not even two tokens fit.

    Each row begins with the beginning-of-sequence token, if there is one. Every row but the first repeats the last
    token before it as context, which does not count. So every token counts once, and is predicted from the one before.
    """
    (text,) = document.rows
    room = max_length - len(document.prompt)
    if len(text.tokens) <= room:
        return [document]
    if room < 2:
        return []
    rows = []
    for start in range(0, len(text.tokens) - 1, room - 1):
        end = start + room
        mask = text.mask[start:end] if start == 0 else (False, *text.mask[start + 1 : end])
        row = ResponseTokens(text.tokens[start:end], mask, text.truncated or end < len(text.tokens))
        rows.append(Encoded(document.group, document.prompt, (row,)))
    return rows


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

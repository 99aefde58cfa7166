"""Raw text that is too long for a row: several rows, which learn all of it."""

from __future__ import annotations

from alignkit.data.group import Group
from alignkit.tokens.encoding import Encoded, ResponseTokens

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

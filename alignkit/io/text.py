"""Texts from recipes, data and models, which must not act on the terminal that shows them."""

from __future__ import annotations

import re
import unicodedata

BIDI = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # turn the direction of what follows
INTERVAL = re.compile(r"\[[-+\w.]+, [-+\w.]+\]\S*")  # such as [0.21, 0.63]
JOINT = "\ue000"  # stands for the space in an interval while lines are broken
REPLACEMENT = "\ufffd"


def printable(text: str) -> str:
    """The text with control characters replaced, except line breaks and tabs."""
    if text.isprintable():
        return text
    return "".join(REPLACEMENT if _acts(character) else character for character in text)


def _acts(character: str) -> bool:
    return (unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t") or character in BIDI


def joined(text: str) -> str:
    """The printable text with JOINT in its intervals, so that no line ends in one."""
    return INTERVAL.sub(lambda match: match[0].replace(" ", JOINT), printable(text))


def wrapped(line: str, width: int, indent: int = 0) -> list[str]:
    """A line in lines of at most `width` characters, with intervals in one piece. indent: of all but the first."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.text import Text

    if cell_len(line) <= width:
        return [printable(line)]
    parts = Text(joined(line)).wrap(Console(), max(1, width - indent), overflow="fold")
    first, *others = (part.plain.replace(JOINT, " ").rstrip() for part in parts)
    return [first, *(" " * indent + part for part in others)]


def excerpt(text: str, width: int) -> str:
    """The beginning of a text on one line of at most `width` columns; `(empty)` if it is blank."""
    from rich.cells import cell_len, set_cell_size

    words = printable(" ".join(text[: 4 * width].split()))
    if cell_len(words) <= width and len(text) <= 4 * width:
        return words or "(empty)"
    return f"{set_cell_size(words, max(0, width - 3)).rstrip()}..."


def duration(seconds: float, digits: int = 1) -> str:
    """`1m05s`, or `7.3s` below a minute."""
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{int(rest):02d}s" if minutes else f"{rest:.{digits}f}s"

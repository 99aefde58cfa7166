"""Texts from recipes, data and models, which must not act on the terminal that shows them."""

from __future__ import annotations

import re
import unicodedata

BIDI = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # turn the direction of what follows
_INTERVAL = r"\[[-+\w.]+, [-+\w.]+\]\S*"
_WORD = re.compile(rf"{_INTERVAL}|\S+")
REPLACEMENT = "\ufffd"


def printable(text: str) -> str:
    """The text with control characters replaced, except line breaks and tabs."""
    if text.isprintable():
        return text
    return "".join(REPLACEMENT if _acts(character) else character for character in text)


def encodable(text: str, encoding: str) -> str:
    """The text with other signs for those that a terminal's encoding, such as Latin-1, does not have."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.replace("─", "-").encode(encoding, "replace").decode(encoding)
    return text


def wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    """A line in lines of at most `width` characters. indent: of all but the first."""
    from rich.cells import cell_len, chop_cells

    lines = [""]
    for word in _WORD.findall(printable(text)):
        if not lines[-1].strip():
            lines[-1] += word
        elif cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(" " * indent + word)
        if cell_len(lines[-1]) > width and not re.fullmatch(_INTERVAL, word):
            lines[-1:] = chop_cells(lines[-1], max(1, width))
    return lines


def _acts(character: str) -> bool:
    return (unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t") or character in BIDI

"""What a model says after its thoughts, for models whose server leaves these in the text."""

from __future__ import annotations

import re

TAGS = ("think", "thinking", "thought", "reasoning")
_OPENED = re.compile(rf"\s*<({'|'.join(TAGS)})>", re.IGNORECASE)
_CLOSED = re.compile(rf"</({'|'.join(TAGS)})>", re.IGNORECASE)


def after_thoughts(text: str) -> str | None:
    """What follows the thoughts, all of the text without any; None if they have no end."""
    said = text[max((tag.end() for tag in _CLOSED.finditer(text)), default=0) :]
    return None if _OPENED.match(said) else said

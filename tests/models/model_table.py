"""The table of docs/models.md: what each family's own template and tokenizer can do, found by
trying it.
"""

from __future__ import annotations

from typing import Any

import families
from families import FAMILIES, Family
from matrix import MAX_LENGTH

from alignkit.errors import DataError, RunFailed
from alignkit.tokens.check import check_chat

HEADER = ("families", "single turn", "several turns", "system", "reasoning", "tools")
CONVERSATIONS = ("single", "two turns", "system", "reasoning", "tools")
SHORT = {  # what an error contains -> what the table says
    "must alternate": "refused: roles must alternate",
    "does not write the answer's reasoning": "refused: drops it",
    "does not write the answer after": "refused: not after its prompt",
    "ystem role not supported": "refused: no system messages",
    "has no attribute": "refused: expects lists of parts",
    "last token changes": "refused: prompt and answer share a token",
}


def lines() -> list[tuple[str, ...]]:
    """One line per family."""
    return [
        (name, *(_cell(family, each) for each in CONVERSATIONS))
        for name, family in FAMILIES.items()
    ]


def _cell(family: Family, name: str) -> str:
    """The arguments with which the conversation can be learned, or why it cannot."""
    if name == "tools" and not family.tools:
        return "-"
    refusal = _try(family, name)
    if not refusal or refusal in ("last turn only", "calls are context"):
        return refusal or "yes"
    without = _try(family, name, enable_thinking=False)
    if name != "reasoning" and without in ("", "last turn only"):
        return "`enable_thinking: false`"
    return next((short for text, short in SHORT.items() if text in refusal), "refused")


def _try(family: Family, name: str, **kwargs: Any) -> str:
    """Why a conversation is refused, or which of its turns are only context; empty if it is
    learned.
    """
    encoder = families.encoder(family, family.kinds[0], **kwargs)
    try:
        check_chat(encoder, family.name)
        encoder.encode(families.group(family, name), MAX_LENGTH)
    except (RunFailed, DataError) as error:
        return str(error)
    context = "calls are context" if name == "tools" else "last turn only"
    return context if encoder.counts["unprompted_turns"] else ""

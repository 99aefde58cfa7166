"""The table of docs/models.md: what each family's own template and tokenizer can do, found by
trying it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matrix
from families import FAMILIES, Family
from matrix import Judge

from alignkit.errors import DataError, RunFailed
from alignkit.tokens.check import check_chat
from alignkit.tokens.encoder import Encoder

HEADER = ("families", "single turn", "several turns", "system", "reasoning", "tools")
CONVERSATIONS = ("single", "two turns", "system", "reasoning", "tools")
NO_THINKING: dict[str, Any] = {"enable_thinking": False}
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
    return [(name, *cells(family)) for name, family in FAMILIES.items()]


def cells(family: Family) -> list[str]:
    return [_cell(family, name) for name in CONVERSATIONS]


def _cell(family: Family, name: str) -> str:
    """The arguments with which the conversation can be learned, or why it cannot."""
    if name == "tools" and not family.tools:
        return "-"
    refusal = _try(family, name, {})
    if not refusal or refusal in ("last turn only", "calls are context"):
        return refusal or "yes"
    if name != "reasoning" and _try(family, name, NO_THINKING) in ("", "last turn only"):
        return "`enable_thinking: false`"
    return next((short for text, short in SHORT.items() if text in refusal), "refused")


def _try(family: Family, name: str, kwargs: Mapping[str, Any]) -> str:
    """Why a conversation is refused, or which of its turns are only context; empty if it is
    learned.
    """
    kind = family.kinds[0]
    judge = Judge(family, kind, name)
    encoder = Encoder(family.tokenizer(kind), kwargs, family.end_ids(kind))
    try:
        check_chat(encoder, family.name)
        encoder.encode(matrix.group(judge), matrix.MAX_LENGTH)
    except (RunFailed, DataError) as error:
        return str(error)
    context = encoder.counts["unprompted_turns"]
    if not kwargs and (why := matrix.wrong(judge, encoder)):
        raise AssertionError(f"{family.name}, {name}: {why}")
    return ("calls are context" if name == "tools" else "last turn only") if context else ""

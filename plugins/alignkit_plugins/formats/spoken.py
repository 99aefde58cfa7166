"""What the assistant says in a response, which may be a conversation with an environment."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from alignkit.data.group import Response

# Around thoughts that a server leaves in the text.
TAGS = ("think", "thinking", "thought", "reasoning")
_OPENED = re.compile(rf"\s*<({'|'.join(TAGS)})>", re.IGNORECASE)
_CLOSED = re.compile(rf"</({'|'.join(TAGS)})>", re.IGNORECASE)


def all_turns(response: Response, *, thoughts: bool = False) -> str:
    """The text, or the assistant's turns one after the other, without the thoughts before them:
    what judges read.

    thoughts: as the policy wrote it.
    """
    turns: Sequence[Any] = [response.text]
    if response.messages is not None:
        turns = [
            turn.get("content") for turn in response.messages if turn.get("role") == "assistant"
        ]
    said = (text if thoughts else answer_in(text) for text in turns if text)
    return "\n\n".join(text for text in said if text)  # a turn that only calls a tool says nothing


def last_turn(response: Response) -> str:
    """The text, or the assistant's last turn: the answer, as an environment may have the last
    word.
    """
    if response.messages is None:
        return response.text
    said = [turn.get("content") for turn in response.messages if turn["role"] == "assistant"]
    return str(said[-1] or "") if said else ""


def answer_of(response: Response) -> str:
    """The last turn without the thoughts before it, which is what can be right or wrong; empty if
    they have no end.
    """
    return answer_in(last_turn(response))


def answer_in(text: str) -> str:
    """What follows the thoughts, without white space around it; all of a text without any, as it
    is.
    """
    said = after_thoughts(text)
    return text if said == text else (said or "").strip()


def after_thoughts(text: str) -> str | None:
    """What follows the thoughts, all of the text without any; None if they have no end."""
    said = text[max((tag.end() for tag in _CLOSED.finditer(text)), default=0) :]
    return None if _OPENED.match(said) else said

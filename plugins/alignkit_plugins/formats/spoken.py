"""What the assistant says in a response, which may be a conversation with an environment."""

from __future__ import annotations

import re

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
    texts = _texts(response)
    if not thoughts:
        texts = [answer_in(text) for text in texts]
    return "\n\n".join(filter(None, texts))  # a turn that only calls a tool says nothing


def _texts(response: Response) -> list[str]:
    """What the assistant says, turn by turn."""
    if response.messages is None:
        return [response.text]
    turns = [turn for turn in response.messages if turn.get("role") == "assistant"]
    return [turn.get("content") or "" for turn in turns]


def last_turn(response: Response) -> str:
    """The text, or the assistant's last turn: the answer, as an environment may have the last
    word.
    """
    return next(reversed(_texts(response)), "")


def answer_of(response: Response) -> str:
    """The last turn without the thoughts before it, which is what can be right or wrong; empty if
    they have no end.
    """
    return answer_in(last_turn(response))


def answer_in(text: str) -> str:
    """What follows the thoughts, without white space around it; all of a text without any, as it
    is.
    """
    answer = after_thoughts(text)
    return text if answer == text else (answer or "").strip()


def after_thoughts(text: str) -> str | None:
    """What follows the thoughts, all of the text without any; None if they have no end."""
    rest = _CLOSED.split(text)[-1]
    return None if _OPENED.match(rest) else rest

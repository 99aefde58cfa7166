"""What the assistant says in a response, which may be a conversation with an environment."""

from __future__ import annotations

from alignkit.data.group import Response


def all_turns(response: Response) -> str:
    """The text, or the assistant's turns one after the other: what judges and people read."""
    if response.messages is None:
        return response.text
    turns = (turn.get("content") for turn in response.messages if turn.get("role") == "assistant")
    return "\n\n".join(text for text in turns if text)  # a turn that only calls a tool says nothing


def last_turn(response: Response) -> str:
    """The text, or the assistant's last turn: the answer, as an environment may have the last word."""
    if response.messages is None:
        return response.text
    said = [turn.get("content") for turn in response.messages if turn["role"] == "assistant"]
    return str(said[-1] or "") if said else ""

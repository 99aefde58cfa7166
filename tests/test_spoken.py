"""What the assistant says in a response."""

from __future__ import annotations

from alignkit import Response
from alignkit.data.spoken import all_turns, last_turn

CALL = {"role": "assistant", "content": None, "tool_calls": []}


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_text_is_all_that_is_said() -> None:
    assert all_turns(Response("Paris")) == last_turn(Response("Paris")) == "Paris"


def test_only_the_turns_of_the_assistant_are_said() -> None:
    asks = turn("user", "Really?")
    talk = Response(messages=(turn("assistant", "Rome."), asks, turn("assistant", "Paris."), asks))  # type: ignore[arg-type]
    assert all_turns(talk) == "Rome.\n\nParis."
    assert last_turn(talk) == "Paris."


def test_nothing_is_said_in_a_call_or_by_others() -> None:
    assert last_turn(Response(messages=(turn("assistant", "Let me look."), CALL))) == ""  # type: ignore[arg-type]
    assert last_turn(Response(messages=(turn("user", "Hi"),))) == all_turns(Response(messages=())) == ""  # type: ignore[arg-type]


def test_a_turn_that_only_calls_is_no_part_of_all_that_is_said() -> None:
    talk = Response(messages=(CALL, turn("tool", "18 degrees"), turn("assistant", "It is 18 degrees.")))  # type: ignore[arg-type]
    assert all_turns(talk) == "It is 18 degrees."

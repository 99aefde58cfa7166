"""The end of a long dialogue: whole turns are dropped, the oldest first, and no more than needed."""

from alignkit.data.group import Group, Message, Response
from alignkit.tokens.long_rows import with_last_question, with_recent_turns

SYSTEM: Message = {"role": "system", "content": "s"}
TALK: tuple[Message, ...] = (
    {"role": "user", "content": "u1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "u2"},
    {"role": "assistant", "content": "a2"},
    {"role": "user", "content": "u3"},
)


def short(most: int, *prompt: Message) -> list[str]:
    """The words that stay if at most so many turns fit."""
    group = Group(prompt, (Response(text="r"),))
    found = with_recent_turns(group, lambda group: len(group.prompt) <= most)
    assert found.responses == group.responses
    return [turn["content"] for turn in found.prompt]


def test_no_more_is_dropped_than_needed() -> None:
    assert short(5, *TALK) == ["u1", "a1", "u2", "a2", "u3"]
    assert short(4, *TALK) == ["u2", "a2", "u3"]
    assert short(3, *TALK) == ["u2", "a2", "u3"]
    assert short(2, *TALK) == ["u3"]


def test_system_messages_stay_and_a_user_begins() -> None:
    assert short(5, SYSTEM, *TALK) == ["s", "u2", "a2", "u3"]
    assert short(2, SYSTEM, *TALK) == ["s", "u3"]
    assert short(2, TALK[1], *TALK) == ["u3"]


def test_the_last_question_stays_even_if_it_does_not_fit() -> None:
    assert short(0, SYSTEM, *TALK) == ["s", "u3"]
    assert short(0, TALK[0]) == ["u1"]
    assert [turn["content"] for turn in with_last_question(Group((SYSTEM, *TALK))).prompt] == ["s", "u3"]
    assert with_last_question(Group((SYSTEM,))).prompt == (SYSTEM,)


def test_a_group_that_fits_is_the_same_object() -> None:
    group = Group(TALK)
    assert with_recent_turns(group, lambda group: True) is group

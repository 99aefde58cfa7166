"""Beyond the known answers of tests/golden: the ends of prefixes, the ends of dialogues, and the
turns.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from alignkit_plugins.formats.text import Dialogue, find_dialogues


def talk(*speakers: str, turns: int = 6, between: str = "\n\n") -> str:
    return between.join(f"{speakers[i % len(speakers)]}words {i}" for i in range(turns))


def prefixes(text: str) -> Sequence[tuple[str, str]]:
    return [dialogue.prefixes for dialogue in find_dialogues(text)]


def test_turns_are_the_paragraphs_without_their_prefix() -> None:
    text = "A tale\n\n\nAnn: one\ntwo\n\n" + talk("Benny: ", "Ann: ", turns=5) + "\nThe end"
    said = ("one\ntwo", *(f"words {i}" for i in range(4)), "words 4\nThe end")
    assert find_dialogues(text) == [
        Dialogue(start=1, line=4, prefixes=("Ann: ", "Benny: "), turns=said)
    ]
    assert find_dialogues(text.replace("\n", "\r\n")) == find_dialogues(text)


def test_speakers_may_share_a_title() -> None:
    assert prefixes(talk("Dr. Ann: ", "Dr. Ben: ")) == [("Dr. Ann: ", "Dr. Ben: ")]
    assert prefixes(talk("Dr. Ann: ", "Dr. Ann: ")) == []


def test_text_that_looks_like_a_prefix_does_not_hide_the_speaker() -> None:
    chatty = "\n\n".join(f"{'QA'[i % 2]}. Well, number {i}. Yes: so - it is" for i in range(6))
    assert prefixes(chatty) == [("Q. ", "A. ")]
    assert prefixes(talk("Q. Hm. ", "A. Hm. ")) == [("Q. Hm. ", "A. Hm. ")]


@pytest.mark.parametrize("separator", [": ", " - ", ". ", ": - "])
def test_separators(separator: str) -> None:
    assert prefixes(talk(f"Ann{separator}", f"Ben{separator}")) == [
        (f"Ann{separator}", f"Ben{separator}")
    ]


@pytest.mark.parametrize("separator", [":", "- ", "? ", " -- ", ":\n"])
def test_other_separators_do_not_count(separator: str) -> None:
    assert prefixes(talk(f"Ann{separator}", f"Ben{separator}")) == []


def test_a_separator_needs_a_name_before_it() -> None:
    assert prefixes(talk(": ", ". ")) == []


def test_a_prefix_has_at_most_40_characters() -> None:
    name = "x" * 37
    assert prefixes(talk(f"{name}a: ", "Ben: ")) == [(f"{name}a: ", "Ben: ")]
    assert prefixes(talk(f"{name}ab: ", "Ben: ")) == []


def test_a_prefix_is_in_the_first_line() -> None:
    assert prefixes("\n\n".join(f"{'AB'[i % 2]}\nsays: words {i}" for i in range(6))) == []


@pytest.mark.parametrize("between", ["\n\n", "\r\n\r\n", "\n \t\n", "\n\n\n\n", "\n\n    "])
def test_blank_lines_separate_paragraphs(between: str) -> None:
    (found,) = find_dialogues(between + talk("Ann: ", "Ben: ", between=between))
    assert found.prefixes == ("Ann: ", "Ben: ") and found.start == 0
    assert found.turns == tuple(f"words {i}" for i in range(6))
    assert found.line == 1 + between.count("\n")


def test_a_turn_may_be_empty() -> None:
    assert find_dialogues("Ann: \n\nBen: hm\n\n" * 3)[0].turns == ("", "hm") * 3


def test_consecutive_dialogues() -> None:
    parts = [
        talk("Ann: ", "Ben: ", turns=7),
        talk("Carl: ", "Dan: ", turns=8),
        "nobody",
        talk("Q. ", "A. "),
    ]
    found = find_dialogues("\n\n".join(parts))
    assert [(d.start, d.line, len(d.turns)) for d in found] == [(0, 1, 7), (7, 15, 8), (16, 33, 6)]


def test_a_dialogue_starts_when_only_two_speak() -> None:
    text = "Carl: hi\n\nBen: hi\n\n" + talk("Ann: ", "Ben: ")
    assert [(d.start, d.prefixes, len(d.turns)) for d in find_dialogues(text)] == [
        (1, ("Ben: ", "Ann: "), 7)
    ]


def test_a_dialogue_ends_before_its_speakers_become_one() -> None:
    """The third doctor shares only the title with the first; a fourth would leave both speakers
    with the title.
    """
    text = talk("Dr. Ann: ", "Dr. Ben: ") + "\n\nDr. Carl: hi\n\nDr. Dan: hi"
    assert [(len(d.turns), d.prefixes) for d in find_dialogues(text)] == [
        (7, ("Dr. ", "Dr. Ben: "))
    ]


def test_the_fewest_paragraphs() -> None:
    assert [
        len(d.turns) for d in find_dialogues(talk("A: ", "B: ", turns=3), min_paragraphs=3)
    ] == [3]
    assert find_dialogues(talk("A: ", "B: ", turns=3), min_paragraphs=4) == []
    with pytest.raises(ValueError, match="min_paragraphs must be at least 2, not 1"):
        find_dialogues("", min_paragraphs=1)


def test_long_texts_take_time_in_proportion() -> None:
    """Scanning a run of one speaker again from each of its paragraphs would take 10**9 steps."""
    assert find_dialogues("Ann: words\n\n" * 50_000) == []

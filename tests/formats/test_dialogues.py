"""Beyond the known answers of tests/golden: the ends of prefixes, the ends of dialogues, and the
turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import yaml

from alignkit_plugins.formats.text import Dialogue, find_dialogues


def talk(*speakers: str, turns: int = 6, between: str = "\n\n") -> str:
    return between.join(f"{speakers[i % len(speakers)]}words {i}" for i in range(turns))


def prefixes(text: str) -> Sequence[tuple[str, str]]:
    return [dialogue.prefixes for dialogue in find_dialogues(text)]


def test_turns_are_the_paragraphs_without_their_prefix() -> None:
    text = "A tale\n\n\nAnn: one\u2028\ntwo\n\n" + talk("Benny: ", "Ann: ", turns=5) + "\nThe end"
    said = ("one\u2028\ntwo", *(f"words {i}" for i in range(4)), "words 4\nThe end")
    assert find_dialogues(text) == [
        Dialogue(start=1, line=4, prefixes=("Ann: ", "Benny: "), turns=said)
    ]
    assert find_dialogues(text.replace("\n", "\r\n")) == find_dialogues(text)


# Prefixes of both speakers, and whether they count. X: 37 characters.
PREFIXES = yaml.safe_load(r"""
- ["Ann: ", "Ben: ", true]
- ["Ann - ", "Ben - ", true]
- ["Ann. ", "Ben. ", true]
- ["Ann: - ", "Ben: - ", true]
- ["Ann:", "Ben:", false]
- ["Ann- ", "Ben- ", false]
- ["Ann? ", "Ben? ", false]
- ["Ann -- ", "Ben -- ", false]
- ["Ann:\n", "Ben:\n", false]
- ["Dr. Ann: ", "Dr. Ben: ", true]
- ["Dr. Ann: ", "Dr. Ann: ", false]
- ["Q. Hm. ", "A. Hm. ", true]           # what looks like a prefix does not hide the speaker
- [": ", ". ", false]                    # a separator needs a name before it
- ["Xa: ", "Ben: ", true]                # of 40 characters
- ["Xab: ", "Ben: ", false]
- ["A\nsays: ", "B\nsays: ", false]      # in the first line
""")


@pytest.mark.parametrize(("one", "other", "count"), PREFIXES)
def test_which_prefixes_count(one: str, other: str, count: bool) -> None:
    speakers = (one.replace("X", "x" * 37), other)
    assert prefixes(talk(*speakers)) == ([speakers] if count else [])


def test_text_that_looks_like_a_prefix_does_not_hide_the_speaker() -> None:
    chatty = "\n\n".join(f"{'QA'[i % 2]}. Well, number {i}. Yes: so - it is" for i in range(6))
    assert prefixes(chatty) == [("Q. ", "A. ")]


@pytest.mark.parametrize("between", ["\r\n\r\n", "\n \t\n", "\n\n\n\n", "\n\n    "])
def test_blank_lines_separate_paragraphs(between: str) -> None:
    (found,) = find_dialogues(between + talk("Ann: ", "Ben: ", between=between))
    assert found.prefixes == ("Ann: ", "Ben: ") and found.start == 0
    assert found.turns == tuple(f"words {i}" for i in range(6))
    assert found.line == 1 + between.count("\n")


def test_a_turn_may_be_empty() -> None:
    assert find_dialogues("Ann: \n\nBen: hm\n\n" * 3)[0].turns == ("", "hm") * 3


# The first paragraph, the line and the number of turns of each dialogue of a text.
PLACES = yaml.safe_load("""
- found: [[0, 1, 7], [7, 15, 8], [16, 33, 6]]
  text: "Ann: 1|Ben: 2|Ann: 3|Ben: 4|Ann: 5|Ben: 6|Ann: 7|Carl: 1|Dan: 2|Carl: 3|Dan: 4|\
    Carl: 5|Dan: 6|Carl: 7|Dan: 8|nobody|Q. 1|A. 2|Q. 3|A. 4|Q. 5|A. 6"
# It starts when only two speak.
- {found: [[1, 3, 7]], text: "Carl: hi|Ben: hi|Ann: 1|Ben: 2|Ann: 3|Ben: 4|Ann: 5|Ben: 6"}
# It ends before its speakers become one, who have the title in common.
- found: [[0, 1, 7]]
  text: "Dr. Ann: 1|Dr. Ben: 2|Dr. Ann: 3|Dr. Ben: 4|Dr. Ann: 5|Dr. Ben: 6|Dr. Carl: hi|Dr. Dan: hi"
- {found: [[0, 1, 3]], text: "A: 1|B: 2|A: 3", least: 3}
- {found: [], text: "A: 1|B: 2|A: 3", least: 4}
""")


@pytest.mark.parametrize("row", PLACES)
def test_where_dialogues_start_and_end(row: dict[str, Any]) -> None:
    text, least = row["text"].replace("|", "\n\n"), row.get("least", 6)
    found = find_dialogues(text, min_paragraphs=least)
    assert [[each.start, each.line, len(each.turns)] for each in found] == row["found"]


def test_a_dialogue_has_at_least_two_paragraphs() -> None:
    with pytest.raises(ValueError, match="min_paragraphs must be at least 2, not 1"):
        find_dialogues("", min_paragraphs=1)

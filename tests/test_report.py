"""Reports laid out for a width: what must never be broken, what must always be there, and what
Markdown must not do.
"""

from __future__ import annotations

import json
import re

import pytest

from alignkit.report import Report, SideBySide, Table

NAMES = ["base", "sft", "rejection_sampling", "ppo_after_rejection_sampling"]
VALUES = [f"{i - 3}.{i}4 [{i - 4}.12, {i}.07]" for i in range(len(NAMES))]
WIDE = Table(
    "means",
    ["", *NAMES],
    [["helpful", *VALUES], ["length, tokens", *reversed(VALUES)]],
    note="a note",
)
TWO_KEYS = Table(
    "against", ["policy", "reward", "win rate"], [["sft", "helpful", "50% [28, 72]"]], keys=2
)


@pytest.mark.parametrize("width", [40, 80, 100, 120, 200])
def test_no_interval_is_broken_and_every_value_is_there(width: int) -> None:
    lines = Report([WIDE]).text(width).splitlines()
    assert max(map(len, lines)) <= max(80, width)
    for interval in re.findall(r"\[.*?\]", " ".join(VALUES)):
        assert sum(line.count(interval) for line in lines) == 2
    for mean in (value.split()[0] for value in VALUES):
        assert sum(mean in line.split() for line in lines) == 2
    assert lines[-1] == "a note"


def test_what_is_too_wide_gets_cells_of_several_lines_between_words_and_intervals() -> None:
    table = Table("", ["", "at equal length", "b"], [["x", "1 [0, 2]", "3 [2, 4]"]])
    assert Report([table]).text(30).splitlines() == [
        "   at equal length         b",
        "─" * 28,
        "x         1 [0, 2]  3 [2, 4]",
    ]
    assert Report([table]).text(27).splitlines()[0].split() == ["at", "equal"]
    assert Report([table]).text(12).splitlines()[-2:] == ["x       1       3", "   [0, 2]  [2, 4]"]


def test_rows_keep_their_keys_and_long_keys_are_wrapped() -> None:
    assert Report([TWO_KEYS]).text(80).splitlines()[-1] == "sft     helpful  50% [28, 72]"
    long = Table("", ["", "x"], [["a reward with a very long name indeed", "1.0 [0.5, 1.5]"]])
    lines = Report([long]).text(30).splitlines()
    assert max(map(len, lines)) <= 30 and lines[2].startswith("a re")


def test_lines_are_wrapped_between_words_and_around_intervals() -> None:
    text = "align against sft: +0.47 [0.10, 0.83], wins"
    assert Report([text]).text(36).splitlines() == [
        "align against sft: +0.47",
        "  [0.10, 0.83], wins",
    ]
    assert Report(["short\nlines"]).text(80) == "short\nlines"
    assert max(map(len, Report(["x" * 50, "[" + "y" * 50]).text(20).splitlines())) == 20


def test_texts_are_under_their_headings_and_keep_the_blanks_in_front_of_their_lines() -> None:
    block = SideBySide(
        "prompt: why", ["sft (1)", "align (2)"], ["because " * 5, "if x:\n    return the_result"]
    )
    assert Report([block]).text(30).splitlines() == [
        *("prompt: why", "sft (1):", "  because because because", "  because because"),
        *("align (2):", "  if x:", "      return the_result"),
    ]


def test_wide_characters_take_two_columns() -> None:
    table = Table("", ["", "n"], [["日本語", "1"], ["abc", "22"]])
    assert Report([table]).text().splitlines()[-2:] == ["日本語   1", "abc     22"]


def test_nothing_in_a_report_acts_on_the_terminal() -> None:
    bad = "\x1b[31mred\u202e"
    report = Report([bad, Table(bad, [bad], [[bad]], note=bad), SideBySide(bad, [bad], [bad])])
    for text in (report.text(), report.markdown()):
        assert "\x1b" not in text and "\u202e" not in text and "red" in text


MARKDOWN = """\
one

- two
- three

**against**

| policy | reward | win rate |
| --- | --- | ---: |
| sft | helpful | 50% [28, 72] |
"""


def test_markdown() -> None:
    assert Report(["one", "two\nthree", TWO_KEYS]).markdown() == MARKDOWN
    assert r"| a\|b |" in Report([Table("", ["x"], [["a|b"]])]).markdown()


def test_markdown_fences_texts_so_that_they_cannot_end_the_fence() -> None:
    shown = Report([SideBySide("prompt: @you", ["sft"], ["````\n# big"])]).markdown()
    assert shown == "`````text\nprompt: @you\nsft:\n  ````\n  # big\n`````\n"


def test_a_report_survives_json() -> None:
    report = Report(["text", WIDE, SideBySide("t", ["a"], ["b"])])
    again = Report.restored(json.loads(json.dumps(report.plain())))
    assert again == report

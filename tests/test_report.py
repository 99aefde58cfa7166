"""Reports laid out for a width: what must never be broken, what must always be there, and what
Markdown must not do.
"""

from __future__ import annotations

import json
import re

import pytest

from alignkit.contract.report import Report, SideBySide, Table

NAMES = ["base", "sft", "rejection_sampling", "ppo_after_rejection_sampling"]
VALUES = [f"{i - 3}.{i}4 [{i - 4}.12, {i}.07]" for i in range(len(NAMES))]
WIDE = Table(
    "means",
    ["", *NAMES],
    [["helpful", *VALUES], ["length, tokens", *reversed(VALUES)]],
    note="a note",
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


CELLS = Table("", ["", "at equal length", "b"], [["x", "1 [0, 2]", "3 [2, 4]"]])
LONG = "a reward with a very long name", "1.0 [0.5, 1.5]"
REPORT = Report(
    [
        f"align against sft: +0.47 [0.10, 0.83], wins\nshort\n[{'y' * 50}",
        CELLS,
        Table(
            "against", ["policy", "reward", "won"], [["sft", "help|ful", "50% [28, 72]"]], keys=2
        ),
        Table("", ["日本語", "n"], [[*LONG], ["日本", "22"]], note="a note"),
        SideBySide(
            "prompt: @you",
            ["sft (1)", "align (2)"],
            ["because " * 5, "````\n# if x:\n    return the_result"],
        ),
    ]
)
# Lines break between words and around intervals; wide characters take two columns, and blanks in
# front of a line stay
NARROW = """\
align against sft: +0.47
  [0.10, 0.83], wins
short
[yyyyyyyyyyyyyyyyyyyyyyyyyyyyy
  yyyyyyyyyyyyyyyyyyyyy

   at equal length         b
────────────────────────────
x         1 [0, 2]  3 [2, 4]

against
policy  reward             won
──────────────────────────────
sft     help|ful  50% [28, 72]

日本語                       n
──────────────────────────────
a reward with   1.0 [0.5, 1.5]
a very long
name
日本                        22
a note

prompt: @you
sft (1):
  because because because
  because because
align (2):
  ````
  # if x:
      return the_result
"""
NARROWER = """
       at
    equal
   length       b
─────────────────
x       1       3
   [0, 2]  [2, 4]
"""
# Nothing ends a table's cell or the fence of texts
MARKDOWN = """\
- align against sft: +0.47 [0.10, 0.83], wins
- short
- [yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy

|  | at equal length | b |
| --- | ---: | ---: |
| x | 1 [0, 2] | 3 [2, 4] |

**against**

| policy | reward | won |
| --- | --- | ---: |
| sft | help\\|ful | 50% [28, 72] |

| 日本語 | n |
| --- | ---: |
| a reward with a very long name | 1.0 [0.5, 1.5] |
| 日本 | 22 |

a note

`````text
prompt: @you
sft (1):
  because because because because because
align (2):
  ````
  # if x:
      return the_result
`````
"""


def test_a_report_at_a_width_and_as_markdown() -> None:
    assert REPORT.text(30) + "\n" == NARROW
    assert "\n" + Report([CELLS]).text(12) + "\n" == NARROWER
    assert REPORT.markdown() == MARKDOWN


def test_nothing_in_a_report_acts_on_the_terminal() -> None:
    bad = "\x1b[31mred\u202e"
    report = Report([bad, Table(bad, [bad], [[bad]], note=bad), SideBySide(bad, [bad], [bad])])
    for text in (report.text(), report.markdown()):
        assert "\x1b" not in text and "\u202e" not in text and "red" in text


def test_a_report_survives_json() -> None:
    assert Report.restored(json.loads(json.dumps(REPORT.plain()))) == REPORT

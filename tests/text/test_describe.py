"""What is printed about data: the format, the counts, and one row as it was understood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from alignkit.recipe.sources import DataSource, DataSpec, Loaded, load
from alignkit_plugins.report.data_card import describe
from alignkit_plugins.text.shown import counts, shortened
from tests.formats.reading import FORMATS, turns


def loaded(path: Path, *rows: Any, format: Any = None, **keys: Any) -> Loaded:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = DataSource(path=path, **keys).in_format(format)
    return load(DataSpec((source,)), formats=FORMATS, commit=Mock(), stage_data=lambda name: path)


def lines(tmp_path: Path, *rows: Any, **keys: Any) -> list[str]:
    """What is printed, without the path."""
    path = tmp_path / "d.jsonl"
    return [line.replace(str(path), "d.jsonl") for line in describe(loaded(path, *rows, **keys))]


CARDS = """\
{"input": "Which?", "output_1": "one", "output_2": "two", "label": 2}
{"input": "Which?", "output_1": "one", "output_2": "two", "label": 7}
read d.jsonl: labeled_pairs (recognized), 1 conversation, 1 pair, 1 bad row
  user    Which?
  better  two
  worse   one

{"prompt": "Which?", "response 1": "one", "response 2": "two", "label": 2}
{"prompt": "Which?", "response 1": "one", "response 2": "two", "label": 0}
read d.jsonl: labeled_pairs (recognized), 2 conversations, 1 pair, 1 tie
  user    Which?
  better  one
  worse   two

{"prompt": "Which?", "response 1": "one", "response 2": "two", "label": 2}
read d.jsonl: labeled_pairs (recognized), 1 conversation
  user        Which?
  response 1  one
  response 2  two

{"prompt": "q", "chosen": "a", "rejected": "b"}
{"prompt": "Q", "chosen": "B", "rejected": "a"}
{"prompt": "q", "chosen": "a", "rejected": "A"}
read d.jsonl: preference (recognized), 3 conversations, 3 pairs
read d.jsonl: warning: 1 with the same prompt and the opposite preference: row 1 and 2
  user    q
  better  a
  worse   b

{"prompt": "q", "completion": "a", "weight": 3}
{"prompt": "r", "completion": "b", "weight": ""}
read d.jsonl: prompt_completion (recognized), 2 conversations
read d.jsonl: weights of rows in the loss: column weight, 1 to 3; without them: columns: {other_weight: weight}
  user       q
  assistant  a

{"prompt": "q", "chosen": " ", "rejected": "b"}
{"prompt": "r", "chosen": "\U0001f44d", "rejected": "b"}
read d.jsonl: preference (recognized), 2 conversations, 2 pairs
read d.jsonl: warning: 1 with an empty response, which is compared as any other: row 1
  user    q
  better  (empty)
  worse   b

{"prompt": "q", "answer": "Berne | Bern"}
{"prompt": "p", "answer": "#N/A"}
{"prompt": "r", "answer": "# of 4"}
{"prompt": "s", "answer": "2,5 kg"}
{"prompt": "t", "answer": "1,234,567.5"}
{"prompt": "u", "answer": "0,250 l"}
{"prompt": "v", "answer": "25.000 \u20ac"}
{"prompt": "w", "answer": "1,250 m"}
{"prompt": "x", "answer": "['red', 'blue']"}
{"prompt": "y", "answer": "red / blue"}
{"prompt": "z", "answer": "3/4"}
{"prompt": "k", "answer": "red, blue"}
{"prompt": "l", "answer": "red, which is warm"}
{"prompt": "m", "answer": "(2, 5)"}
read d.jsonl: prompt_only (recognized), 14 prompts
read d.jsonl: warning: 3 with several known answers in one text, right as a whole only: write a list: row 1, 9, 10
read d.jsonl: warning: 1 with an error of a spreadsheet as known answer: row 2
read d.jsonl: warning: 2 with a decimal comma in a known answer, which no 2.5 is equal to: write a point: row 4, 6
read d.jsonl: warning: 1 with points that may group thousands in a known answer, where 25.000 is 25: write 25000: row 7
read d.jsonl: warning: 2 with a known answer that decimal commas leave unclear: 1,250 is 1250 here: row 7, 8
read d.jsonl: warning: 1 with a comma in a known answer, right as a whole only: write several as a list: row 12
  user  q
read d.jsonl: not in the conversation, kept for rewards: answer

{"prompt": "q", "chosen": "a", "rejected": "b", "margin": "slightly", "p": 0.75}
read d.jsonl: preference (recognized), 1 conversation, 1 pair
  user    q
  better  a  (margin slightly, p 0.75)
  worse   b

{"prompt": "q", "responses": ["a", "b"], "scores": [0.5, 2]}
read d.jsonl: rankings (recognized), 1 conversation, 1 pair
  user    q
  better  b  (margin 1.5, reward 2.0)
  worse   a  (reward 0.5)

{"prompt": "q", "responses": ["worst", "mid", "best"], "ranks": [3, 2, 1]}
read d.jsonl: rankings (recognized), 1 conversation, 3 pairs
  user        q
  response 1  worst  (rank 3)
  response 2  mid  (rank 2)
  response 3  best  (rank 1)

{"prompt": "q"}
read d.jsonl: prompt_only (recognized), 1 prompt
  user  q

{"prompt": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}, \
{"role": "assistant", "content": "c"}, {"role": "user", "content": "d"}]}
read d.jsonl: prompt_only (recognized), 1 prompt
  ... 1 more turns
  user       b
  assistant  c
  user       d

{"text": "Once"}
read d.jsonl: text (recognized), 1 text
  text  Once

{"prompt": "q", "completion": "a", "score": 2}
read d.jsonl: prompt_completion (recognized), 1 conversation
  user       q
  assistant  a  (reward 2.0)

{"prompt": "q", "completion": {"role": "assistant", "content": "3", "thinking": "1 + 2", "tool_calls": [{"name": "f"}]}}
read d.jsonl: prompt_completion (recognized), 1 conversation
  user       q
  assistant  [thinks: 1 + 2] 3 [calls f({})]
"""


@pytest.mark.parametrize("card", CARDS.split("\n\n"))
def test_what_is_printed_of_a_file(card: str, tmp_path: Path) -> None:
    """A tie shows nothing; the first row with a winner is the sample."""
    texts = card.splitlines()
    rows = [json.loads(line) for line in texts if line.startswith("{")]
    assert lines(tmp_path, *rows, on_bad_row="skip") == texts[len(rows) :]


def test_a_long_conversation_takes_at_most_8_lines(tmp_path: Path) -> None:
    said = "s: be kind / u: q / " + " / ".join(f"{who}: {n}" for n in range(9) for who in "au")
    conversation = turns(f"{said} / a: end")
    conversation[2]["train"] = False
    assert lines(tmp_path, {"messages": conversation, "tools": [{"name": "add"}]}) == [
        "read d.jsonl: messages (recognized), 1 conversation",
        "  system                   be kind",
        "  user                     q",
        "  assistant (not learned)  0",
        "  user                     0",
        "  assistant                1",
        "  ... 16 more",
    ]
    assert lines(tmp_path, {"messages": conversation, "label": False})[1:] == [
        "  ... 17 more turns",
        "  user       7",
        "  assistant  8",
        "  user       8",
        "  assistant  end  (label bad)",
    ]


def test_held_out_rows_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}"} for n in range(10)]
    header = lines(tmp_path, *rows, validation=0.3)[0]
    held_out = len(loaded(tmp_path / "d.jsonl", *rows, validation=0.3).validation)
    kept = f"{10 - held_out} prompts; held out: {held_out} prompts"
    assert 0 < held_out < 10 and header.endswith(kept)
    share = lines(tmp_path, *rows, part=(0.0, 0.3))[0]  # the others are not held out
    assert share.endswith(" prompts") and "held out" not in share


@pytest.mark.silent_bug(
    "data: held out",
    "A preview or a metric of the held-out part shows training rows.",
    "The held-out part shows its own rows and numbers.",
)
def test_a_held_out_part_shows_its_own_rows(tmp_path: Path) -> None:
    rows = [{"input": f"q{n}", "output_1": "one", "output_2": "two", "label": 2} for n in range(40)]
    for part in ((0, 0.25), (0.25, 1)):
        read = loaded(tmp_path / "d.jsonl", *rows, part=part)
        [header, user, *others] = lines(tmp_path, *rows, part=part)
        texts = [group.prompt[0]["content"] for group in read.groups]
        assert user == f"  user    {texts[0]}" and others == ["  better  two", "  worse   one"]
        assert header.endswith(f"{len(texts)} conversations, {len(texts)} pairs")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n\n b\t c", "a b c"),
        (" \n", "(empty)"),
        ("\x1b[31mred\x07", "?[31mred?"),
        ("word " * 50, "word " * 17 + "wor..."),
        ("x" * 10**7, "x" * 88 + "..."),
    ],
)
def test_texts_are_one_short_line_that_no_terminal_obeys(text: str, shown: str) -> None:
    assert shortened(text) == shown


def test_data_are_counted_in_words(tmp_path: Path) -> None:
    two = {"input": "Hi", "output_1": "one", "output_2": "two"}
    ranked = [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}, {"text": "c", "rank": 3}]
    groups = [
        *loaded(tmp_path / "a.jsonl", {**two, "label": 1}).groups,
        *loaded(tmp_path / "b.jsonl", {"prompt": "Hi", "responses": ranked}).groups,
        *loaded(
            tmp_path / "c.jsonl", {"prompt": "Hi", "responses": ["x", "y"], "scores": [1, 1]}
        ).groups,
    ]
    assert counts(groups, bad=2) == "3 conversations, 4 pairs, 1 tie, 2 bad rows"
    assert counts([]) == "no rows"
    groups = [*loaded(tmp_path / "d.jsonl", {"prompt": "Hi"}).groups] * 1200
    text = loaded(tmp_path / "e.jsonl", {"text": "Once."}).groups
    assert counts([*groups, *text]) == "1,200 prompts, 1 text"

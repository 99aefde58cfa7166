"""Files as other tools lay them out: read if they have one meaning, else refused with the YAML that
reads them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from alignkit import DataError
from alignkit.recipe.sources import DataSource, DataSpec, Loaded, load
from alignkit_plugins.report.data_card import describe
from tests.formats.reading import FORMATS, check, shown
from tests.rows import json_rows


def read(path: Path, text: str, **keys: Any) -> Loaded:
    path.write_text(text, encoding="utf-8")
    return load(
        DataSpec((DataSource(path=path, **keys),)),
        formats=FORMATS,
        stage_data=lambda name: path,
        commit=Mock(),
    )


def test_an_answer_may_be_data_that_looks_like_a_message() -> None:
    check(r"""
prompt_completion {"prompt": "q", "completion": "{\"role\": \"user\", \"content\": \"Hi\"}"}
  u: q -> {\"role\": \"user\", \"content\": \"Hi\"}

prompt_completion {"prompt": "q", "completion": "[{'value': f(1)}]"}
  u: q -> [{'value': f(1)}]

prompt_completion {"prompt": "q", "completion": "{\"from\": \"a\", \"value\": \"b\"}"}
  u: q -> {\"from\": \"a\", \"value\": \"b\"}

messages {"messages": [{"role": "system", "content": "s", "tools": "[]"}, {"role": "user", "content": "q"}]}
  s: s / u: q ->
""")


# A row, and what it is read as in the ways that the error names
WAYS = json_rows(r"""
[{"question": "Q?", "answer": "A"}, ["u: Q? -> A", "u: Q? -> {\"answer\": \"A\"}"]]
[{"query": "Q?", "response": "A"}, ["u: Q? -> A"]]
[{"problem": "Q?", "solution": "A"}, ["u: Q? -> A", "u: Q? -> {\"answer\": \"A\"}"]]
[{"input": "Q?", "output": "A"}, ["u: Q? -> A"]]
[{"Question": "Q?", "Answer": "A", "solution": "S"}, ["u: Q? -> S {\"Answer\": \"A\"}"]]
[{"question": "Q?", "image": "a"}, ["u: Q? -> {\"other_image\": \"a\"}"]]
[{"prompt": "Q?", "output": "A"}, ["u: Q? -> A"]]
[{"question": "Q?", "chosen": "A", "rejected": "B"}, ["u: Q? -> A | B [0>1]"]]
[{"prompt": "Q?", "chosen_response": "A", "rejected_response": "B"}, ["u: Q? -> A | B [0>1]"]]
""")


@pytest.mark.parametrize(("row", "ways"), WAYS)
def test_the_yaml_that_an_error_names_reads_the_row(
    row: Any, ways: list[str], tmp_path: Path
) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path / "d.jsonl", json.dumps(row))
    lines = re.findall(r"^  data: (\{.*\})  # (\w+)", str(error.value), re.MULTILINE)
    found = []
    for line, name in lines:
        loaded = read(
            tmp_path / "d.jsonl", json.dumps(row), columns=yaml.safe_load(line)["columns"]
        )
        assert loaded.sources[0].format == name
        found.append(shown(loaded.groups[0]))
    assert found[: len(ways)] == ways  # the likeliest first


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q?", "choices": {"text": ["red"], "label": ["A"]}, "key": "A"},
        {"question": "Q?", "options": ["red", "blue"], "answer": 1},
    ],
)
def test_choices_are_not_read_as_a_question_alone(row: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no format matches"):
        read(tmp_path / "d.jsonl", json.dumps(row))
    if "choices" in row:
        with pytest.raises(DataError, match="column 'choices' means something in other tools"):
            read(tmp_path / "d.jsonl", json.dumps(row), columns={"prompt": "question"})


@pytest.mark.parametrize("name", ["d.csv", "d.tsv"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_a_table_is_read_by_what_separates_its_header(name: str, mark: str, tmp_path: Path) -> None:
    text = f'prompt{mark}completion\nHi{mark}"Hello; and, yes"\n'
    assert shown(read(tmp_path / name, text).groups[0]) == "u: Hi -> Hello; and, yes"
    two = read(tmp_path / "two.csv", 'prompt,"a;b"\nHi,"x;y"\n')  # both occur: the usual one counts
    assert two.groups[0].meta == {"a;b": "x;y"}


@pytest.mark.silent_bug(
    "data: columns",
    "A column that the reader does not know, such as `choices`, a number or labels, is dropped "
    "without a word.",
    "The run names it once.",
)
@pytest.mark.parametrize(
    ("row", "named"),
    [
        (
            '{"prompt": "Hi", "completion": "A", "why": "For this.", "id": "x1", "notes": [{"a": "b c"}], "votes": 7}',
            ["why, notes"],
        ),
        # TRL's stepwise supervision
        (
            '{"prompt": "Hi", "completions": ["A", "B"], "labels": [true, false]}',
            ["completions, labels"],
        ),
        ('{"prompt": "Hi", "completion": "A b", "id": "x1"}', []),
    ],
)
def test_a_column_that_is_not_read_is_named_once(
    row: str, named: list[str], tmp_path: Path
) -> None:
    lines = describe(read(tmp_path / "d.jsonl", "\n".join([row] * 3)))
    assert re.findall("kept for rewards: (.*)", "\n".join(lines)) == named

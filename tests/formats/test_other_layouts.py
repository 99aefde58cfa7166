"""Rows as other tools lay them out: read if they have one meaning, else refused with the YAML that
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

from alignkit import DataError, Format, Group
from alignkit.data.sources import DataSource, DataSpec, Loaded, load
from alignkit.plugins import load_plugins
from alignkit_plugins.report.data_card import describe

FORMATS: dict[str, type[Format]] = {
    registration.name: registration.implementation
    for registration in load_plugins().registrations("format")
}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
CHOICES = {"text": ["red", "blue"], "label": ["A", "B"]}


def read(path: Path, text: str, format: Any = None, **keys: Any) -> Loaded:
    path.write_text(text)
    return load(
        DataSpec((DataSource(path=path, **keys).in_format(format),)),
        formats=FORMATS,
        seed=0,
        stage_data=lambda name: path,
        commit=Mock(),
    )


def said(group: Group) -> list[str]:
    return [group.prompt[-1]["content"], *(response.text for response in group.responses)]


@pytest.mark.parametrize(
    "text",
    [
        '{"role": "user", "content": "Hi"}',
        "[{'value': f(1)}]",
        '[{"value": 1}]',
        '{"from": "a", "value": "b"}',
    ],
)
def test_an_answer_may_be_data_that_looks_like_a_message(text: str, tmp_path: Path) -> None:
    [group] = read(
        tmp_path / "d.jsonl", json.dumps({"prompt": "Write data", "completion": text})
    ).groups
    assert group.responses[0].text == text


def test_no_tools_as_json_are_none(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief.", "tools": "[]"}
    [group] = read(tmp_path / "d.jsonl", json.dumps({"messages": [system, *TURNS]})).groups
    assert len(group.prompt) == 2


@pytest.mark.parametrize(
    ("row", "ways"),
    [
        ({"question": "Q?", "answer": "A"}, [["Q?", "A"], ["Q?"]]),
        ({"query": "Q?", "response": "A"}, [["Q?", "A"]]),
        ({"problem": "Q?", "solution": "A"}, [["Q?", "A"], ["Q?"]]),
        ({"input": "Q?", "output": "A"}, [["Q?", "A"]]),
        ({"prompt": "Q?", "output": "A"}, [["Q?", "A"]]),
        ({"question": "Q?", "chosen": "A", "rejected": "B"}, [["Q?", "A", "B"]]),
        ({"prompt": "Q?", "chosen_response": "A", "rejected_response": "B"}, [["Q?", "A", "B"]]),
        ({"question": "Q?", "choices": CHOICES, "key": "A"}, [["Q?"]]),
        ({"question": "Q?", "options": ["red", "blue"], "answer": 1}, [["Q?"]]),
    ],
)
def test_the_yaml_that_an_error_names_reads_the_row(
    row: Any, ways: list[list[str]], tmp_path: Path
) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path / "d.jsonl", json.dumps(row))
    lines = re.findall(r"^  data: (\{.*\})  # (\w+)", str(error.value), re.MULTILINE)
    loaded = [
        read(tmp_path / "d.jsonl", json.dumps(row), columns=yaml.safe_load(line)["columns"])
        for line, _ in lines
    ]
    assert [said(each.groups[0]) for each in loaded][: len(ways)] == ways  # the likeliest first
    assert [each.sources[0].format for each in loaded] == [name for _, name in lines]
    if "choices" in row:
        with pytest.raises(DataError, match="column 'choices' means something in other tools"):
            read(
                tmp_path / "d.jsonl",
                json.dumps(row),
                columns={"prompt": "question", "answer": "key"},
            )


@pytest.mark.parametrize("name", ["d.csv", "d.tsv"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_a_table_is_read_by_what_separates_its_header(name: str, mark: str, tmp_path: Path) -> None:
    text = f'prompt{mark}completion\nHi{mark}"Hello; and, yes"\n'
    assert said(read(tmp_path / name, text).groups[0]) == ["Hi", "Hello; and, yes"]
    two = read(tmp_path / "two.csv", 'prompt,"a;b"\nHi,"x;y"\n')  # both occur: the usual one counts
    assert two.groups[0].meta == {"a;b": "x;y"}


@pytest.mark.silent_bug(
    "data: columns",
    "A column that the reader does not know, such as `choices`, a number or labels, is dropped "
    "without a word.",
    "The run names it once.",
)
def test_a_column_that_is_not_read_is_named_once(tmp_path: Path) -> None:
    row = {
        "prompt": "Hi",
        "completion": "A",
        "why": "For this.",
        "id": "x1",
        "notes": [{"a": "b c"}],
        "votes": 7,
    }
    lines = describe(read(tmp_path / "d.jsonl", "\n".join([json.dumps(row)] * 3)))
    assert [line.partition(".jsonl: ")[2] for line in lines if "why" in line] == [
        "not in the conversation, kept for rewards: why, notes"
    ]
    # TRL's stepwise supervision
    steps = {"prompt": "Hi", "completions": ["A", "B"], "labels": [True, False]}
    assert describe(read(tmp_path / "d.jsonl", json.dumps(steps)))[-1].endswith(
        "kept for rewards: completions, labels"
    )
    plain = describe(
        read(tmp_path / "d.jsonl", json.dumps({"prompt": "Hi", "completion": "A b", "id": "x1"}))
    )
    assert not any("kept for rewards" in line for line in plain)

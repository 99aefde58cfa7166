"""Groups on disk, every kind of file and its faults, format detection, splitting, mixing, and the
shipped data.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import gzip
import hashlib
import json
import math
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.data import group as groups_module
from alignkit.data.files import SkippedRow, bad_rows_error
from alignkit.data.group import Group, Message, Origin, Pair, Response
from alignkit.data.sources import DataSource, DataSpec, Loaded
from alignkit.data.sources import load as load_spec
from alignkit.data.sources import sides as keys_of_sides
from alignkit.errors import BadRow, DataError
from alignkit.formats import Format
from alignkit.plugins import plugins
from alignkit.registry import Component, Registration
from alignkit_plugins.compare.comparison import distinct_prompts
from alignkit_plugins.formats.layouts import TEMPLATES
from tests.formats.reading import shown, turns
from tests.rows import user, write_rows

OTHERS = {
    *({*TEMPLATES} - {"gsm8k", "svamp"}),
    *("template", "unlabeled", "labeled_pairs", "oasst", "reward_bench_2"),
}
SHIPPED = Path(__file__).parent.parent / "recipes" / "data"
GOLD = SHIPPED.parents[1] / "benchmarks" / "outcomes" / "data"
FORMATS: dict[str, type[Format]] = {
    one.name: one.implementation
    for one in plugins().registrations("format")
    if one.name not in OTHERS
}


def component(cls: type[Format], **options: Any) -> Component:
    return Component(
        "format", cls.__name__, Registration(cls.__name__, cls), cls.Options(**options)
    )


def named(name: str, **options: Any) -> Component:
    return component(FORMATS[name], **options)


def source(path: Path, format: Any = None, **keys: Any) -> DataSource:
    return DataSource(path=path, **keys).in_format(format)


def load(
    *sources: DataSource, seed: int = 0, formats: Any = FORMATS, stage_data: Any = None
) -> Loaded:
    return load_spec(
        DataSpec(sources),
        formats=formats,
        seed=seed,
        stage_data=stage_data,
        commit=lambda name, revision: revision,
    )


ASSISTANT = {"role": "assistant", "content": "a"}


def prompt(text: str) -> tuple[Message, ...]:
    return (user(text),)


def write(path: Path, *rows: Any) -> Path:
    return write_rows(path, rows)


def prompts(path: Path, count: int, start: int = 0) -> Path:
    return write_rows(path, ({"prompt": f"question {i}"} for i in range(start, start + count)))


def words(groups: list[Group]) -> list[str]:
    return [group.prompt[0]["content"] for group in groups]


# Groups as JSON


texts = st.text(max_size=12)
numbers = st.floats(allow_nan=False) | st.integers(-5, 5)
finite = st.floats(-5, 5) | st.integers(-5, 5)  # a format refuses other ranks, p and margins
calls = st.builds(
    lambda name: {"type": "function", "function": {"name": name, "arguments": {"x": 1}}}, texts
)
messages = st.builds(
    lambda role, content, others: Message(role=role, content=content, **others),
    st.sampled_from(groups_module.ROLES),
    texts,
    st.fixed_dictionaries(
        {},
        optional={
            "train": st.booleans(),
            "reasoning_content": texts,
            "tool_calls": st.lists(calls, min_size=1, max_size=2),
            "name": texts,
            "tool_call_id": texts,
        },
    ),
)
responses = st.builds(
    Response,
    text=texts,
    messages=st.none() | st.lists(messages, max_size=3).map(tuple),
    rank=st.none() | finite,
    scores=st.dictionaries(texts, st.none() | numbers, max_size=2),
    label=st.none() | st.booleans(),
    tokens=st.none() | st.lists(st.integers(0, 99), max_size=3).map(tuple),
    logprobs=st.none() | st.lists(numbers, max_size=3).map(tuple),
    written=st.none() | st.lists(st.booleans(), max_size=3).map(tuple),
    truncated=st.booleans(),
    source=st.none() | texts,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts, lambda v: st.lists(v, max_size=2)
)


@st.composite
def groups(draw: Any) -> Group:
    answers = draw(st.lists(responses, max_size=3).map(tuple))
    indices = [(i, j) for i in range(len(answers)) for j in range(len(answers)) if i != j]
    margins = st.none() | finite | st.sampled_from(groups_module.LEVELS)
    pair = st.builds(
        lambda at, p, m: Pair(at[0], at[1], p, m),
        st.sampled_from(indices or [(0, 1)]),
        finite,
        margins,
    )
    return Group(
        prompt=draw(st.lists(messages, max_size=2).map(tuple)),
        responses=answers,
        pairs=draw(st.none() | st.lists(pair, max_size=2 if indices else 0).map(tuple)),
        bundle=draw(st.none() | texts),
        id=draw(texts),
        meta=draw(st.dictionaries(texts, json_values, max_size=2)),
        tools=draw(st.lists(st.dictionaries(texts, texts, max_size=1), max_size=2).map(tuple)),
    )


@given(groups())
@settings(max_examples=300)
def test_a_group_survives_json_in_one_line_of_standard_json(group: Group) -> None:
    line = groups_module.group_to_json(group)
    assert "\n" not in line
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert groups_module.group_from_json(line) == group


def test_half_a_surrogate_pair_and_nan_survive_json() -> None:
    group = Group(
        prompt("\ud800"),
        (Response(text="x", scores={"r": math.inf}, logprobs=(-math.inf, math.nan)),),
    )
    line = groups_module.group_to_json(group)
    back = groups_module.group_from_json(line.encode())
    assert back.prompt == group.prompt and back.responses[0].scores == {"r": math.inf}
    assert back.responses[0].logprobs is not None and math.isnan(back.responses[0].logprobs[1])


def test_defaults_are_not_written() -> None:
    line = groups_module.group_to_json(Group(prompt("q"), (Response(text="a"),), id="x"))
    expected = {
        "alignkit": 1,
        "prompt": [{"role": "user", "content": "q"}],
        "responses": [{"text": "a"}],
        "id": "x",
    }
    assert json.loads(line) == expected


@pytest.mark.parametrize(
    "line",
    """\
{"prompt": []}                                                              no key 'alignkit'
{"alignkit": 2, "prompt": []}                                               version 2
{"alignkit": 1, "prompt": [], "color": 1}                                   color
{"alignkit": 1, "prompt": [], "origin": {"file": "a.jsonl"}}                origin
{"alignkit": 1, "prompt": [], "responses": [{"words": ""}]}                 responses.0.words
{"alignkit": 1}                                                             prompt
{"alignkit": 1, "prompt": 5}                                                prompt
{"alignkit": 1, "prompt": [{"role": "user", "content": 3}]}                 prompt.0.content
{"alignkit": 1, "prompt": [], "responses": [3]}                             responses.0
{"alignkit": 1, "prompt": [], "pairs": [{"better": 0, "worse": 1}]}         there are 0
{"alignkit": 1, "prompt": [], "weight": [1]}                                weight
{"alignkit": 1, "prompt": [], "weight": "x"}                                weight
{"alignkit": 1, "prompt": [], "weight": "inf"}                              weight
{"alignkit": 1, "prompt": [], "weight": -1}                                 weight
{"alignkit": 1, "prompt": [], "weight": null}                               weight
{"alignkit": 1, "prompt": [{"role": "user", "content": "a", "train": "x"}]} train
{"alignkit": 1, "prompt": [{"role": "user", "content": "a", "train": -1}]}  train
{"alignkit": 1, "prompt": [], "responses": [{"messages": [{"role": "user", "content": "a", "train": -1}]}]}  '-1.0'
""".splitlines(),
)
def test_a_row_that_is_not_a_group_is_bad(line: str) -> None:
    row, _, reason = line.rpartition("}  ") if "}  " in line else line.rpartition("} ")
    with pytest.raises(BadRow, match=re.escape(reason.strip())):
        groups_module.group_from_json(f"{row}}}")


def test_a_row_that_a_step_wrote_has_the_weight_of_its_group(tmp_path: Path) -> None:
    """The column of the row that it was made from stays one, but says nothing about answers that a
    step wrote.
    """
    path = write(tmp_path / "d.jsonl", {"prompt": "q", "completion": "a", "weight": 3})
    (asked,) = groups_module.prompts_of(load(source(path)).groups)
    answered = dataclasses.replace(asked, responses=(Response(text="b"),))
    groups_module.write_groups(
        tmp_path / "made.jsonl", [answered, dataclasses.replace(answered, weight=0.5)]
    )

    def weights(**keys: Any) -> list[float]:
        loaded = load(
            DataSource(stage="make", **keys), stage_data=lambda stage: tmp_path / "made.jsonl"
        )
        return [group.weight for group in loaded.groups]

    assert weights() == [1.0, 0.5] and weights(meta={"weight": 2}) == [2.0, 2.0]


def test_meta_that_json_cannot_hold_names_the_group() -> None:
    with pytest.raises(ValueError, match="group 'g7': meta holds a value"):
        groups_module.group_to_json(Group((), id="g7", meta={"x": math.nan}))


@pytest.mark.parametrize("name", ["g.jsonl", "deep/er/g.jsonl"])
def test_written_groups_are_read_back_and_equal_groups_have_equal_bytes(
    tmp_path: Path, name: str
) -> None:
    wanted = [
        Group(prompt(f"q{i}\u2028\x85"), (Response(text="", tokens=(1, 2)),), id=str(i))
        for i in range(5)
    ]
    groups_module.write_groups(tmp_path / name, wanted)
    once = (tmp_path / name).read_bytes()
    groups_module.write_groups(tmp_path / name, iter(wanted))
    assert groups_module.read_groups(tmp_path / name) == wanted
    assert (tmp_path / name).read_bytes() == once
    assert [p.name for p in (tmp_path / name).parent.iterdir() if p.name.startswith(".")] == []


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    def broken() -> Any:
        yield Group((), id="new")
        raise RuntimeError("no more")

    groups_module.write_groups(tmp_path / "g.jsonl", [Group((), id="old")])
    with pytest.raises(RuntimeError):
        groups_module.write_groups(tmp_path / "g.jsonl", broken())
    assert [g.id for g in groups_module.read_groups(tmp_path / "g.jsonl")] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["g.jsonl"]


def test_read_groups_names_every_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    path.write_text('{"alignkit": 1, "prompt": []}\n{"prompt": []}\n\n{"alignkit": 1,')
    with pytest.raises(DataError) as error:
        groups_module.read_groups(path)
    assert f"{path}:2: not a group" in str(error.value) and f"{path}:4: not valid JSON" in str(
        error.value
    )


# Pairs, ids, prompts


def test_every_row_with_a_prompt_is_a_prompt_with_its_own_columns() -> None:
    """That of a conversation is all before its last answer; of two answers, neither was given."""
    talk = tuple(turns("a: a / u: r / a: b / t: t / a: c"))
    given_groups = [
        Group(prompt("q"), (Response(messages=talk),), id="old"),
        Group(prompt("q"), (Response(messages=talk[:1]),), bundle="x"),
        Group(prompt("q"), (Response(messages=talk), Response(text="x")), pairs=(Pair(0, 1),)),
        Group(prompt("b"), (Response(text="1"),), meta={"safety": True}, weight=2.0),
        Group(prompt("b"), meta={"safety": False}),
        Group((), (Response(text="raw"),)),
    ]
    found = groups_module.prompts_of(given_groups)
    assert (
        "\n".join(map(shown, found))
        == """\
u: q / a: a / u: r ->
u: q ->
u: q ->
u: b -> {"safety": true}
u: b -> {"safety": false}"""
    )
    assert [group.bundle for group in found] == [None] * 5
    assert found[0].id == groups_module.group_id(found[0].prompt)
    assert len({group.id for group in found}) == 4


@pytest.mark.parametrize(
    ("ranks", "given_pairs", "wanted"),
    [
        ((2, 1, 2, None, 3), None, "1>0 1>2 1>4 0>4 2>4"),
        ((2, 1, 2, None, 3), (Pair(4, 0),), "4>0"),
        ((2, 1), (), ""),
        ((None, None), None, ""),
    ],
)
def test_pairs_follow_from_ranks_and_ties_form_none(
    ranks: Any, given_pairs: Any, wanted: str
) -> None:
    responses = tuple(Response(text="a", rank=rank) for rank in ranks)
    found = groups_module.resolved_pairs(Group((), responses, given_pairs))
    assert {f"{pair.better}>{pair.worse}" for pair in found} == set(wanted.split())


# Each says something else, but for the lines after an `=`, which say the same as the one before.
SAYING = """\
{"prompt": [Q]}
{"prompt": [], "responses": [{"text": "a"}]}
{"prompt": [Q], "responses": [{"text": "a"}]}
= {"prompt": [Q], "responses": [{"text": "a", "rank": 1, "scores": {"x": 1.0}}], "meta": {"y": 1}}
{"prompt": [Q], "responses": [{"text": "b"}]}
{"prompt": [Q], "tools": [{"name": "add"}]}
{"prompt": [Q], "responses": [{"messages": [{"role": "assistant", "content": "a"}]}]}
= {"prompt": [Q], "responses": [{"messages": [{"role": "assistant", "content": "a", "train": false}]}]}
{"prompt": [Q], "responses": [{"messages": [{"role": "assistant", "content": "a", "reasoning_content": "b"}]}]}
{"prompt": [Q], "responses": [{"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]}]}
{"prompt": [Q], "responses": [{"messages": [{"role": "tool", "content": "a", "name": "add"}]}]}
{"prompt": [Q], "responses": [{"messages": [{"role": "tool", "content": "a", "tool_call_id": "1"}]}]}
{"prompt": [Q, {"role": "assistant", "content": "a", "reasoning_content": "b"}]}
{"prompt": [Q, {"role": "assistant", "content": "a", "tool_calls": [{}]}]}
{"prompt": [Q, {"role": "tool", "content": "a", "name": "add"}]}
{"prompt": [Q, {"role": "tool", "content": "a", "tool_call_id": "1"}]}
"""


def test_an_id_depends_on_what_is_said_and_never_changes() -> None:
    ids: list[str] = []
    for line in SAYING.replace("Q", '{"role": "user", "content": "q"}').splitlines():
        group = groups_module.group_from_json('{"alignkit": 1, ' + line.removeprefix("= ")[1:])
        found = groups_module.group_id(group.prompt, group.responses, group.tools)
        assert not line.startswith("=") or found == ids.pop()
        ids.append(found)
    assert len({*ids}) == len(ids) == 14
    stable = hashlib.sha256(b'[[["user", "q"]], ["a"]]').hexdigest()[:16]
    assert ids[2] == stable  # runs on disk rely on it


def test_an_origin_survives_changes_but_is_no_part_of_a_group() -> None:
    origin = groups_module.Origin("a.jsonl", 3)
    group = Group(prompt("q"), (Response(text="a"),), tools=({"name": "add"},), origin=origin)
    assert str(origin) == "a.jsonl:3"
    assert group == dataclasses.replace(group, origin=None)
    assert "a.jsonl" not in groups_module.group_to_json(group)
    (found,) = groups_module.prompts_of([group])
    assert (found.origin, found.tools) == (origin, group.tools)


def test_only_rows_that_repeat_words_and_columns_are_duplicates() -> None:
    columns: list[tuple[str, dict[str, Any]]] = [
        ("b", {"answer": 1, "kind": "x"}),
        ("a", {}),
        ("b", {"kind": "x", "answer": 1}),
        ("b", {"answer": 2, "kind": "x"}),
        ("a", {}),
    ]
    rows = [Group(prompt(text), meta=meta) for text, meta in columns]
    assert distinct_prompts(rows) == groups_module.prompts_of([rows[0], rows[1], rows[3]])
    assert len(groups_module.prompts_of(rows)) == 5


# Files


ROWS = [
    {"prompt": "première\u2028 question", "safety": True},
    {"prompt": 'second\r\n"one", it is', "safety": False},
]


# Lines end as in a file of Windows
CSV = """prompt,safety\r
"première\u2028 question",true\r
"second\r
""one"", it is",false\r
"""
FILES = {
    "d.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    "crlf.jsonl": "\r\n".join(json.dumps(row) for row in ROWS),
    "blank.jsonl": "\n" + "\n  \n".join(json.dumps(row) for row in ROWS) + "\n\n",
    "d.json": json.dumps(ROWS, indent=2),
    "d.csv": CSV,
    "d.tsv": CSV.replace(",", "\t").replace("\t it", ", it"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_has_the_same_rows(
    tmp_path: Path, name: str, mark: str, packed: bool
) -> None:
    raw = (mark + FILES[name]).encode()
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(raw) if packed else raw)
    loaded = load(source(path))
    assert words(loaded.groups) == [row["prompt"] for row in ROWS]
    assert [str(g.meta["safety"]).lower() for g in loaded.groups] == ["true", "false"]
    assert loaded.validation == [] and loaded.skipped == []
    assert all(g.id == groups_module.group_id(g.prompt) for g in loaded.groups)


def parquet(path: Path, columns: dict[str, list[Any]]) -> list[Group]:
    """The groups of a table."""
    pyarrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    writer.write_table(pyarrow.table(columns), path)
    return load(source(path)).groups


def test_values_of_a_table_become_json(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "prompt": [b"caf\xc3\xa9", b"b"],
        "chosen": ["x", "y"],
        "rejected": ["y", "x"],
        "margin": [1.5, math.nan],
        "when": [datetime.datetime(2024, 5, 6, 7, 8)] * 2,
        "blob": [b"\xff\x00"] * 2,
        "price": [decimal.Decimal("1.5")] * 2,
        "tags": [["a", None]] * 2,
    }
    found = parquet(tmp_path / "d.parquet", columns)
    meta = (
        '{"when": "2024-05-06T07:08:00", "blob": {"unread": "bytes"}, "price": 1.5, '
        '"tags": ["a", null]}'
    )
    assert [shown(group) for group in found] == [
        f"u: café -> x | y [0>1 by 1.5] {meta}",
        f"u: b -> y | x [0>1] {meta}",
    ]
    assert groups_module.group_from_json(groups_module.group_to_json(found[0])) == found[0]


@pytest.mark.silent_bug(
    "data: columns",
    "A picture is cut away or ignored, and the model learns the answer without it.",
    "A row with a picture is refused.",
    "huggingface/trl#5285",
)
def test_a_picture_in_a_table_is_not_lost(tmp_path: Path) -> None:
    """As `datasets` writes it: its bytes are no text, and were taken for an empty column."""
    picture = {"bytes": b"\x89PNG", "path": None}
    with pytest.raises(DataError, match="column 'image' means something"):
        parquet(tmp_path / "d.parquet", {"prompt": ["q"], "image": [picture]})


def test_very_long_rows_are_read(tmp_path: Path) -> None:
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i}"} for i in range(10_000)]
    path = write(
        tmp_path / "d.jsonl",
        {"messages": turns},
        {"messages": [turns[0], {**turns[1], "content": "x" * 10**7}]},
    )
    long, big = load(source(path)).groups
    assert len(long.responses[0].messages or ()) == 9_999 or len(long.prompt) == 9_999
    assert len(big.responses[0].text) == 10**7


CALLS = """\
{"messages": [{"role": "user", "content": "Go"}, {"role": "assistant", "content": "", "tool_calls": [
 {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}]},
 {"role": "tool", "content": "ok", "name": "get_weather"}, {"role": "assistant", "content": "Done"}],
 "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object",
 "properties": {"city": {"type": "string", "enum": ["Oslo"]}}}}}], "info": {"tests": [1]}}
{"messages": [{"role": "user", "content": "Go"}, {"role": "assistant", "content": "", "tool_calls": [
 {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}]},
 {"role": "tool", "content": "ok", "name": "add"}, {"role": "assistant", "content": "Done"}],
 "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object",
 "properties": {"a": {"type": "number"}, "b": {"type": "number", "description": "?"}}}}}],
 "info": {"lang": {"n": 1}}}
{"messages": [{"role": "user", "content": "Go"}, {"role": "assistant", "content": "", "tool_calls": [
 {"type": "function", "function": {"name": "now", "arguments": {}}}]},
 {"role": "tool", "content": "ok", "name": "now"}, {"role": "assistant", "content": "Done"}],
 "tools": [{"type": "function", "function": {"name": "now", "parameters": {"type": "object",
 "properties": {}}}}], "info": {"lang": {"m": 2}}}
""".replace("\n ", " ")


@pytest.mark.silent_bug(
    "data: columnar nulls",
    "Arrow gives all structs of a column the same fields, so a tool's prompt lists other tools' "
    "parameters as null.",
    "A file written by pyarrow or `datasets` gives the same tokens as hand-written jsonl.",
    "modelscope/ms-swift#10110",
)
@pytest.mark.parametrize("written", ["pyarrow", "datasets", "datasets.parquet", "folder"])
def test_nulls_that_a_table_fills_in_change_nothing(tmp_path: Path, written: str) -> None:
    """A table gives every struct the keys of all others in its column; a person's file has none of
    them.
    """
    pyarrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [json.loads(line) for line in CALLS.splitlines()]
    file = tmp_path / ("d.jsonl" if written == "datasets" else "folder/d.parquet")
    file.parent.mkdir(exist_ok=True)
    if written in ("datasets", "datasets.parquet"):
        made = pytest.importorskip("datasets").Dataset.from_list(rows)
        (made.to_json if file.suffix == ".jsonl" else made.to_parquet)(str(file))
    else:
        writer.write_table(pyarrow.Table.from_pylist(rows), file)
    read = DataSource(hub=str(file.parent)) if written == "folder" else source(file)
    by_hand = load(source(write_rows(tmp_path / "hand.jsonl", rows))).groups
    assert [dataclasses.replace(group, origin=None) for group in load(read).groups] == [
        dataclasses.replace(group, origin=None) for group in by_hand
    ]


@pytest.mark.silent_bug(
    "data: columnar nulls",
    "All nulls are removed, also those that an author meant.",
    "A null inside arguments written as JSON text stays.",
)
def test_a_null_that_a_person_wrote_stays(tmp_path: Path) -> None:
    """In JSON as text, in a list, and as a whole column."""
    city = {"type": ["string", "null"], "enum": ["Oslo", None]}
    row = json.loads(CALLS.splitlines()[0]) | {"note": None, "info": {"x": [None, 1]}}
    row["tools"][0]["function"]["parameters"]["properties"]["city"] = city
    row["messages"][1]["tool_calls"][0]["function"]["arguments"] = '{"city": null}'
    [group] = load(source(write(tmp_path / "d.jsonl", row))).groups
    [call] = (group.responses[0].messages or ())[0]["tool_calls"]
    assert call["function"]["arguments"] == {"city": None}
    assert group.tools[0]["function"]["parameters"]["properties"] == {"city": city}
    assert group.meta == {"note": None, "info": {"x": [None, 1]}}


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.csv.gz"])
def test_a_truncated_gzip_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    lines = [
        "prompt",
        *(hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(3000)),
    ]
    if "jsonl" in name:
        lines = [json.dumps({"prompt": line}) for line in lines]
    packed = gzip.compress("\n".join(lines).encode())
    for content in (packed[: len(packed) // 2], b"this is no gzip file"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=r"gz:\d+: the gzip file is damaged or truncated"):
            load(source(tmp_path / name, on_bad_row="skip"))


def read_as(path: Path, **keys: Any) -> str:
    """What the rows of a file are read as, in order: `row: group`, or `row! why` of a bad one."""
    loaded = load(source(path, on_bad_row="skip", **keys))
    found = [(group.origin.row, f": {shown(group)}") for group in loaded.groups if group.origin]
    found += [(skipped.row, f"! {skipped.reason}") for skipped in loaded.skipped]
    return "\n".join(f"{row}{text}" for row, text in sorted(found))


TALK = "Q. why?\n\nA. so.\n\nQ. really?\n\nA. yes.\n\nQ. and?\n\nA. no."
SAID = 'u: why? -> a: so. / u: really? / a: yes. / u: and? / a: no. {"speakers": ["Q. ", "A. "]}'
LONG = 3_000_000 * "x"
FILES_READ: list[tuple[str, str | bytes, dict[str, Any], list[str]]] = [
    ("d.json", '{"prompt": "q"}', {}, ["1: u: q ->"]),
    ("d.json", '{\n"prompt": "q",\n"n": [1]\n}', {}, ['1: u: q -> {"n": [1]}']),
    (
        "d.json",
        '\ufeff{"prompt": "a"}\n\n{"prompt": "b"}\n{"prompt": ""}\n',
        {},
        ["1: u: a ->", "3: u: b ->", "4! "],
    ),
    ("d.json", '{"prompt": "a"\n{"prompt": "b"}\n', {}, ["1! column 15", "2: u: b ->"]),
    ("d.json", '[{"prompt": "a"}, 7]', {}, ["1: u: a ->", "2! must be an object with columns"]),
    ("d.jsonl", '{broken\n{"prompt": "q"}\n', {}, ["1! not valid JSON", "2: u: q ->"]),
    ("d.jsonl", '{"prompt": "a", "prompt": "b"}', {}, ["1: u: b ->"]),
    ("d.jsonl", f'{{"prompt": "{LONG}"}}', {}, [f"1: u: {LONG} ->"]),
    (
        "d.jsonl",
        '{"prompt": "a"}\n{"prompt": ""}\n{"prompt": "b"}\nnot even json\n',
        {"limit": 2},
        ["1: u: a ->", "2! empty", "3: u: b ->"],
    ),
    (
        "d.jsonl",
        '{"prompt": "q", "chosen": "a", "rejected": "b"}\n{"prompt": "q", "chosen": "a"}',
        {"columns": {"chosen": "rejected", "rejected": "chosen"}},
        ["1: u: q -> b | a [0>1]", "2! no column 'rejected' to rename"],
    ),
    (
        "d.jsonl",
        '{"prompt": "q", "kind": "row", "n": 1}',
        {"meta": {"kind": "source"}},
        ['1: u: q -> {"kind": "source", "n": 1}'],
    ),
    ("d.txt", b"\xef\xbb\xbfa line\r\nb\r\n\r\nc\n", {}, [r"1: -> a line\nb\n\nc"]),
    (
        "d.txt",
        b"a line\ncaf\xe9\n\nc\n",
        {"format": named("prompt_only")},
        ["1: u: a line ->", "2! save the file as UTF-8", "4: u: c ->"],
    ),
    (
        "d.txt",
        f"{TALK}\n\nThe end\n\n{TALK.replace('why?', '')}\n\nprose\n\n{TALK}\n\nQ. and?".encode()
        + b"\n\ncaf\xe9",
        {"format": named("dialogues")},
        [f"1: {SAID}", "15! the last turn of the prompt is empty", f"29: {SAID}"],
    ),
    (
        "d.csv",
        b'prompt,note\n"two\nlines",x\none,two,three\none\ncaf\xe9,x\n"a"b,x\n,x\n,\n\nlast,\n',
        {},
        [
            r'2: u: two\nlines -> {"note": "x"}',
            "3! has 3 cells, but the header has 2",
            "4! has 1 cell, but the header has 2",
            "5! save the file as UTF-8",
            "6! not a valid table row",
            "7! empty",
            '10: u: last -> {"note": ""}',
        ],
    ),
    *(
        ("d.jsonl", b'{"prompt": "a"}\n' + line + b'\n{"prompt": "c"}', {}, ["1: u: a ->", f"2! {why}", "3: u: c ->"])
        for line, why in (
            (b'{"prompt": "caf\xe9"}', "not valid UTF-8 at character 16"),
            (b'{"prompt": "a\0b"}', "Invalid control character"),
            (b'{"prompt": "a\\u0000b"}', "NUL character"),
            (b'{"prompt": "\\ud83d alone"}', "not valid Unicode"),
            (b'{"prompt": "q", "x": NaN}', "NaN is too large"),
            (b'{"prompt": "q", "x": -Infinity}', "-Infinity is too large"),
            (b'{"prompt": "q", "x": 1e999}', "1e999 is too large"),
            (b'{"prompt": "q", "x": ' + b"9" * 5000 + b"}", "not valid JSON"),
            (b"{'prompt': 'q'}", "double quotes: line 1 column 2"),
            (b'{"prompt": "q"} {"prompt": "r"}', "line 1 column 17"),
            (b"[" * 100_000, "recursion depth"),
            (b"null", "must be an object"),
            (b'{"prompt": null}', "'prompt' is missing"),
            (b'{"prompt": " \\n"}', "empty"),
            (b'{"prompt": []}', "no prompt"),
            (b'{"prompt": 5}', "not a number"),
            (b'{"prompt": [{"role": "user", "content": 5}]}', "prompt[0] must have text"),
            (b'{"prompt": [{"role": "assistant", "content": "x"}]}', "assistant turn"),
            (b'{"prompt": ["x"]}', "prompt[0] must be a message"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "keys", "wanted"), FILES_READ)
def test_rows_of_a_file_are_read_or_named_with_their_place(
    tmp_path: Path, name: str, content: str | bytes, keys: dict[str, Any], wanted: list[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_as(path, **keys).splitlines()
    assert len(found) == len(wanted)
    for line, said in zip(found, wanted, strict=True):
        place, bad, why = said.partition("! ")
        assert (line.startswith(place + "! ") and why in line) if bad else line == said
    if "! " in "".join(wanted) and "limit" not in keys:
        with pytest.raises(DataError) as error:
            load(source(path, **keys))
        for line in found:
            if "! " in line[:5]:
                assert f"{path}:{line.replace('!', ':', 1)}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.jsonl", None, "cannot read the file: No such file"),
        ("d.docx", b"x", "unknown file type '.docx'"),
        ("d.jsonl", '{"prompt": "a"}'.encode("utf-16"), "not valid UTF-8 at character 1"),
        ("d.jsonl", b"", "no usable row"),
        ("d.json", b"[]", "no usable row"),
        ("d.json", b'[\n"caf\xe9"]', "d.json: not valid UTF-8"),
        (
            "d.json",
            b'{\n"prompt": "a",\n"more":\n',
            "d.json: not valid JSON: Expecting value: line 3",
        ),
        ("d.json", b'[{"prompt": "a"},\n {"prompt": NaN}]', "NaN is too large"),
        ("d.json", b'[{"prompt": "a"}] x', "Extra data"),
        ("d.json", b'[{"prompt": "a"}, ' + b"[" * 100_000, "recursion depth"),
        ("d.json", b'[{"prompt": "a"},\n{"prompt" "b"}]', "line 2 column 11"),
        ("d.csv", b"pr\xe9,b\n1,2\n", "d.csv:1: not valid UTF-8"),
        ("d.csv", b"a,a\n1,2\n", "needs a different name"),
        ("d.csv", b"", "no usable row"),
        ("d.parquet", b"PAR1 no", "d.parquet: cannot read the parquet file"),
    ],
)
def test_files_that_cannot_be_read_at_all(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(reason)):
        load(source(tmp_path / name))


def test_bad_rows_are_listed(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", *({"prompt": ""} for _ in range(3)))
    two = write(tmp_path / "two.jsonl", {"prompt": "good"}, *({"prompt": ""} for _ in range(15)))
    with pytest.raises(DataError) as error:
        load(source(one), source(two))
    reason = "the last turn of the prompt is empty"
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert lines[:2] == ["18 bad rows:", f"{one}:1: {reason}"] and f"{two}:2: {reason}" in lines
    assert len(lines) == 20 and "'on_bad_row: skip'" in lines[-1]
    assert error.value.exit_code == 4
    skipped = load(source(two, on_bad_row="skip")).skipped
    assert len(skipped) == 15 and skipped[0] == SkippedRow(str(two), 2, reason)
    with pytest.raises(DataError, match="bad rows skipped: 3"):
        load(source(one, on_bad_row="skip"))


def test_the_first_twenty_bad_rows_are_listed() -> None:
    bad = [SkippedRow("f", number, "reason") for number in range(50)]
    lines = str(bad_rows_error(bad)).splitlines()
    assert lines[0] == "50 bad rows:" and len(lines) == 22
    assert lines[1] == "  f:0: reason" and lines[-1] == "  ... and 30 more"


def test_a_format_that_fails_names_the_row(tmp_path: Path) -> None:
    class Fragile(Format):
        def read(self, row: Any) -> Group:
            return Group(prompt(row["a"]["b"]))

    path = write(tmp_path / "d.jsonl", {"a": {"b": "fine"}}, {"a": 5})
    with pytest.raises(
        DataError, match=r"d\.jsonl:2: the format Fragile failed: TypeError.* \(test_data\.py:\d+\)"
    ):
        load(source(path, format=component(Fragile)))


PAIR = (Response("a"), Response("b"))


@pytest.mark.parametrize(
    ("responses", "pairs", "message"),
    [
        ((Response("a", label="false"),), None, "label must be .* not 'false'"),
        ((Response("a", rank="1"), Response("b", rank=2)), None, "rank must be .* not '1'"),
        (PAIR, (Pair(0, 1, p="a"),), "p must be .* not 'a'"),
        (PAIR, (Pair(0, 1, margin=[1]),), "margin, .*, must be a number, not .1"),
        (PAIR, (Pair(0, 1, margin=math.inf),), "margin, .*, must be a number, not inf"),
    ],
)
def test_what_a_format_of_an_author_passes_on_has_the_right_type(
    responses: Any, pairs: Any, message: str, tmp_path: Path
) -> None:
    class Careless(Format):
        def read(self, row: Any) -> Group:
            return Group(prompt("q"), responses, pairs)

    with pytest.raises(DataError, match=f"1: {message}"):
        load(source(write_rows(tmp_path / "d.jsonl", [{}]), format=component(Careless)))


# Detection and columns


@pytest.mark.parametrize(
    ("row", "ends"),
    [({"question": "q", "reply": "a"}, "answer: reply}}  # prompt_only"), ({"xyz": "q"}, "")],
)
def test_an_undetected_format_names_the_columns_and_lines_or_formats_that_may_read_it(
    row: Any, ends: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as error:
        load(source(write(tmp_path / "d.jsonl", row)))
    text = str(error.value)
    assert f"columns {', '.join(row)}" in text and text.endswith(ends or ", ".join(FORMATS))


def test_a_format_that_must_be_named_is_suggested_first(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"question": "How many?", "answer": "2 + 3 = 5\n#### 5"})
    with pytest.raises(DataError) as error:
        load(source(path))
    assert str(error.value).splitlines()[1].strip() == "data: {gsm8k: FILE}"
    assert load(source(path, format=named("gsm8k"))).groups[0].meta == {"answer": "5"}


def test_an_ambiguous_format_lists_only_those_that_match(tmp_path: Path) -> None:
    class Greedy(Format):
        wants = "anything"

        @classmethod
        def matches(cls, row: Any) -> bool:
            return True

    class BrokenPlugin(Format):
        @classmethod
        def matches(cls, row: Any) -> bool:
            raise KeyError("x")

    path = write(tmp_path / "d.jsonl", {"prompt": "q"})
    with pytest.raises(DataError) as error:
        load(source(path), formats={**FORMATS, "greedy": Greedy, "broken": BrokenPlugin})
    text = str(error.value)
    assert (
        "greedy" in text and "prompt_only" in text and "alpaca" not in text and "broken" not in text
    )
    assert words(load(source(path, format=named("prompt_only"))).groups) == ["q"]


def test_the_data_of_a_stage_are_its_groups(tmp_path: Path) -> None:
    sampled = [
        Group(
            prompt("q"),
            (Response(text="", tokens=(2,)), Response(text="")),
            pairs=(Pair(0, 1),),
            id="kept",
        )
    ]
    groups_module.write_groups(tmp_path / "data.jsonl", sampled)
    loaded = load(
        DataSource(stage="make"),
        stage_data=lambda stage: tmp_path / "data.jsonl" if stage == "make" else None,
    )
    assert loaded.groups == sampled


def test_a_hub_data_set_is_asked_for_its_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Datasets:
        @staticmethod
        def load_dataset(name: str, **where: Any) -> list[dict[str, str]]:
            asked.append((name, where))
            return [{"prompt": "q"}, {"prompt": ""}]

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    loaded = load(DataSource(hub="org/name", on_bad_row="skip"))
    load(DataSource(hub="org/name", split="test[:10]", limit=1))
    assert asked == [("org/name", {"split": "train"}), ("org/name", {"split": "test[:10]"})]
    assert [str(row) for row in loaded.skipped] == [
        "org/name[train]:2: the last turn of the prompt is empty"
    ]


# Limit, validation, weights


@pytest.mark.silent_bug(
    "data: held out",
    "Each process splits the data in its own way.",
    "The split is a hash of the prompt.",
    "TensorAuto/OpenTau#498",
)
def test_validation_is_stable_under_new_rows_and_order_and_moves_with_the_seed(
    tmp_path: Path,
) -> None:
    few, many = prompts(tmp_path / "few.jsonl", 200), prompts(tmp_path / "many.jsonl", 400)
    held = set(words(load(source(few, validation=0.1)).validation))
    assert held == set(words(load(source(many, validation=0.1)).validation)) & {
        f"question {i}" for i in range(200)
    }
    backwards = write(
        tmp_path / "back.jsonl", *({"prompt": f"question {i}"} for i in reversed(range(200)))
    )
    assert held == set(words(load(source(backwards, validation=0.1)).validation))
    assert held != set(words(load(source(few, validation=0.1), seed=1).validation))
    assert held < set(words(load(source(few, validation=0.3)).validation))


@pytest.mark.silent_bug(
    "data: held out",
    "Repeated rows fall on both sides of the split.",
    "A prompt is on one side only, in all sources.",
    "MakazhanAlpamys/Soup#680",
)
def test_a_prompt_held_out_of_one_source_is_held_out_of_all(tmp_path: Path) -> None:
    path = prompts(tmp_path / "d.jsonl", 50)
    other = prompts(tmp_path / "e.jsonl", 50, start=100)
    loaded = load(source(path, validation=0.2), source(path), source(other, validation=0.2))
    held = words(loaded.validation)
    assert not set(held) & set(words(loaded.groups)) and len(loaded.groups) + len(held) == 150
    assert {word for word in held if int(word.split()[1]) < 100} and len(set(held)) < len(held)


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_both_sides_have_a_prompt_if_there_are_two(tmp_path: Path, share: float) -> None:
    loaded = load(source(prompts(tmp_path / "d.jsonl", 4), validation=share))
    assert loaded.groups and loaded.validation
    with pytest.raises(DataError, match="holds out nothing: all 1 rows have the same prompt"):
        load(source(prompts(tmp_path / "one.jsonl", 1), validation=share))


def sides(path: Path, rows: list[Any], **keys: Any) -> tuple[list[Any], list[Any]]:
    """What the rows on either side have in `x`."""
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    loaded = load(source(path, validation=0.3, **keys))
    return [group.meta["x"] for group in loaded.groups], [
        group.meta["x"] for group in loaded.validation
    ]


@pytest.mark.silent_bug(
    "data: held out",
    "Questions about one passage, or the turns of one conversation, are on both sides of a split.",
    "`group` names the column that rows share; what shares it is on one side, and so are turns "
    "that continue others.",
    "EvolvingLMMs-Lab/lmms-eval#989",
    "ai-evals-course/recipe-chatbot#36",
)
def test_rows_that_share_a_column_stay_on_one_side(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{p} {q}?", "completion": "a", "passage": f"p{p}", "x": p}
        for p in range(12)
        for q in range(5)
    ]
    free = sides(tmp_path / "free.jsonl", rows)
    assert set(free[0]) & set(free[1])
    kept = sides(tmp_path / "kept.jsonl", rows, group="passage")
    assert kept[0] and kept[1] and not set(kept[0]) & set(kept[1])
    assert len(kept[0]) + len(kept[1]) == 60
    # More passages do not move the others.
    more = sides(
        tmp_path / "more.jsonl",
        [{**rows[0], "passage": "q", "prompt": "n", "x": 9}, *rows],
        group="passage",
    )
    assert set(kept[0]) <= set(more[0]) and set(kept[1]) <= set(more[1])
    # Number 3 of one column is not number 3 of another.
    numbers = [
        Group(prompt("q"), meta={"passage": 3}, origin=Origin("a", 1)),
        Group(prompt("r"), meta={"author": 3}, origin=Origin("b", 1, source=1)),
    ]
    one, other = keys_of_sides(numbers, ["passage", "author"])
    assert one != other
    with pytest.raises(
        DataError, match=r"kept\.jsonl:1: the row has no .chapter., by which .group. holds"
    ):
        sides(tmp_path / "kept.jsonl", rows, group="chapter")
    with pytest.raises(DataError, match="holds out nothing: all 5 rows have the same 'passage'"):
        sides(tmp_path / "kept.jsonl", rows[:5], group="passage")


def test_joined_rows_stay_on_their_side_whatever_comes_first(tmp_path: Path) -> None:
    texts = [f"{word} {n}" for n in range(20) for word in ("what", "What", "WHAT")]
    rows = [{"prompt": text, "completion": "a", "x": text.lower()} for text in texts]
    assert sides_of(tmp_path, rows) == sides_of(tmp_path, rows[::-1])
    new = {"prompt": "unlike", "completion": "a", "x": "unlike"}
    assert sides_of(tmp_path, [new, *rows])[0] >= sides_of(tmp_path, rows)[0]


def sides_of(folder: Path, rows: list[Any]) -> tuple[set[Any], set[Any]]:
    training, held_out = sides(folder / "rows.jsonl", rows)
    return set(training), set(held_out)


def test_turns_of_a_conversation_stay_on_one_side(tmp_path: Path) -> None:
    """A row for each answer, whose prompt is the conversation before it."""
    rows = []
    for number in range(12):
        turns = [
            openai
            for n in range(3)
            for openai in ({"role": "user", "content": f"{number} {n}"}, ASSISTANT)
        ]
        rows += [{"prompt": turns[: 2 * n + 1], "completion": "b", "x": number} for n in range(3)]
    training, held_out = sides(tmp_path / "turns.jsonl", rows)
    assert held_out and not set(training) & set(held_out)


def test_raw_text_is_split_by_its_text(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", *({"text": f"text {i}"} for i in range(100)))
    loaded = load(source(path, validation=0.3))
    assert 15 <= len(loaded.validation) <= 45


@pytest.mark.parametrize(
    ("one", "two", "shares"), [(None, None, None), (3.0, None, (0.75, 0.25)), (1, 4, (0.2, 0.8))]
)
def test_weights_leave_every_row_in_place_and_become_shares(
    one: float | None, two: float | None, shares: Any, tmp_path: Path
) -> None:
    first, second = prompts(tmp_path / "a.jsonl", 30), prompts(tmp_path / "b.jsonl", 10, start=100)
    loaded = load(source(first, weight=one), source(second, weight=two))
    assert words(loaded.groups) == [f"question {i}" for i in [*range(30), *range(100, 110)]]
    assert [group.origin.source for group in loaded.groups if group.origin] == [0] * 30 + [1] * 10
    assert loaded.weights == shares and load(source(first, weight=3.0)).weights is None


def test_every_group_knows_where_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": ""}\n{"prompt": "b"}\n')
    found = [
        group.origin
        for group in load(source(path, on_bad_row="skip"), source(path, limit=1)).groups
    ]
    assert found == [
        Origin(str(path), 1, True, 0),
        Origin(str(path), 4, True, 0),
        Origin(str(path), 1, False, 1),
    ]
    assert str(found[1]) == f"{path}:4"
    groups_module.write_groups(tmp_path / "made.jsonl", [Group(prompt("q"))])
    made = load(DataSource(stage="make"), stage_data=lambda stage: tmp_path / "made.jsonl").groups[
        0
    ]
    assert str(made.origin) == "stage make:1"


def test_a_source_says_how_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    loaded = load(
        source(path, on_bad_row="skip"),
        source(path, format=named("prompt_only"), limit=1),
    )
    assert [(f.format, f.recognized, f.rows, f.skipped) for f in loaded.sources] == [
        ("prompt_only", True, 1, 1),
        ("PromptOnly", False, 1, 0),  # by the name in the recipe
    ]


# The data that the recipes use


TRAIN = [
    "helpful.jsonl.gz",
    "safety.jsonl.gz",
    "prompts.jsonl",
    "demos.jsonl",
    "rankings.jsonl",
    "graded.jsonl",
]
TRAIN += ["red_team.jsonl", "questions.jsonl", "questions_demos.jsonl", "questions_pressure.jsonl"]
HELD = [
    "helpful_heldout.jsonl.gz",
    "safety_heldout.jsonl.gz",
    "heldout.jsonl",
    "rankings_heldout.jsonl",
    "questions_heldout.jsonl",
    "xstest.jsonl",
]
# What the table of licenses says of each file
COUNTS = {
    name: int(count)
    for name, count in re.findall(
        r"^\| `(\S+)` \| (\d+) \|", (SHIPPED / "LICENSES.md").read_text(), re.MULTILINE
    )
    if not name.startswith("refusal_")
}


def shipped(name: str) -> list[Group]:
    return load(source(SHIPPED / name)).groups


def opening(group: Group) -> str:
    """The first human turn: letters and digits, lower case."""
    return re.sub(r"[^a-z0-9]", "", group.prompt[0]["content"].lower())


def openings(*names: str) -> set[str]:
    return {opening(group) for name in names for group in shipped(name)}


@pytest.mark.parametrize("name", COUNTS)
def test_shipped_data_has_no_bad_row_and_no_duplicate(name: str) -> None:
    found = shipped(name)
    assert len(found) == COUNTS[name] == len({group.id for group in found})


def test_shipped_held_out_prompts_are_in_no_training_file() -> None:
    assert not openings(*TRAIN) & openings(*HELD)
    assert not openings("demos.jsonl") & openings("demos_validation.jsonl")
    assert not openings("prompts.jsonl") & openings("helpful.jsonl.gz", "safety.jsonl.gz")


def test_what_the_quick_start_asks_is_in_no_file_that_it_learns_from() -> None:
    own = [name for name in COUNTS if name.startswith("quickstart/")]
    asked = {
        name: openings(name) for name in ("quickstart/heldout.jsonl", "quickstart/tuning.jsonl")
    }
    assert not openings(*(name for name in own if name not in asked)) & set().union(*asked.values())
    assert not set.intersection(*asked.values())
    assert not openings("quickstart/demos.jsonl") & openings("quickstart/harmful_prompts.jsonl")
    held = {f"quickstart/{kind}_heldout.jsonl" for kind in ("helpful", "safety")}
    assert not openings(*held) & openings(*(name for name in own if name not in held))
    gold = [load(source(GOLD / f"gold_{kind}.jsonl.gz")).groups for kind in ("helpful", "safety")]
    known = {opening(group) for groups in gold for group in groups}
    kinds = Counter(group.meta["kind"] for group in shipped("quickstart/heldout.jsonl"))
    assert kinds == {
        "harmful": 100,
        "ordinary": 96,
        "harmful form": 40,
        "sounds unsafe": 80,
        "facts": 129,
    }
    ordinary = [g for g in shipped("quickstart/heldout.jsonl") if g.meta["kind"] == "ordinary"]
    assert not known & set(map(opening, ordinary))


def test_beginnings_in_the_demonstrations_teach_no_end() -> None:
    answers = [group.responses[0] for group in shipped("quickstart/demos.jsonl")]
    assert sum(answer.truncated for answer in answers) == 290


def test_shipped_files_have_the_contents_that_recipes_expect() -> None:
    assert sum(group.meta["safety"] for group in shipped("prompts.jsonl")) == 200
    assert sum(group.meta["safety"] for group in shipped("heldout.jsonl")) == 89
    assert all(group.meta["safety"] for group in shipped("red_team.jsonl"))
    for group in shipped("rankings.jsonl"):
        assert 4 <= len(group.responses) <= 9 and groups_module.resolved_pairs(group)
    margins = {pair.margin for group in shipped("graded.jsonl") for pair in group.pairs or ()}
    assert margins == {"significantly", "slightly"}
    texts = [group.responses[0].text for group in load(source(SHIPPED / "text.txt")).groups]
    assert len(texts) > 20 and "gutenberg" not in "".join(texts).lower()


def test_shipped_sums_are_right_and_no_held_out_sum_is_learned() -> None:
    asked = {
        name: [g.prompt[0]["content"] for g in shipped(name)]
        for name in ("sums.jsonl", "sums_heldout.jsonl")
    }
    assert not set(asked["sums.jsonl"]) & set(asked["sums_heldout.jsonl"])
    for name in asked:
        for group in shipped(name):
            one, other = re.findall(r"\d+", group.prompt[0]["content"])
            assert group.meta["answer"] == int(one) + int(other)


def test_all_shipped_data_have_a_license_and_are_small() -> None:
    files = [path for path in SHIPPED.rglob("*.*") if path.suffix not in (".md", ".py")]
    assert {path.relative_to(SHIPPED).as_posix() for path in files} == {
        *COUNTS,
        "text.txt",
        "refusal_examples.jsonl",
        "refusal_labels.jsonl",
    }
    assert sum(path.stat().st_size for path in files) < 4_000_000
    assert "| public domain |" in (SHIPPED / "LICENSES.md").read_text()


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "txt", "json", "parquet"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"d.{suffix}")
    with pytest.raises(DataError, match=r"this is a pipe or a device"):
        load(source(tmp_path / f"d.{suffix}"))


def talks(path: Path, count: int) -> Path:
    """Conversations: the first question alone, and again with an answer and a second question."""
    with path.open("w") as file:
        for number in range(count):
            first = {"role": "user", "content": f"Question {number}?"}
            more = [
                first,
                {"role": "assistant", "content": "Yes."},
                {"role": "user", "content": f"And {number}?"},
            ]
            for turns in ([first], more):
                file.write(json.dumps({"prompt": turns}) + "\n")
    return path


def test_shares_of_a_source_are_apart_and_are_all_of_it(tmp_path: Path) -> None:
    path = talks(tmp_path / "d.jsonl", 60)
    shares = [load(source(path, part=part)) for part in ((0.0, 0.2), (0.2, 0.6), (0.6, 1.0))]
    found = [{group.id for group in loaded.groups} for loaded in shares]
    assert sum(map(len, found)) == len(set.union(*found)) == 120
    assert [round(len(ids) / 120, 1) for ids in found] == [0.2, 0.4, 0.4]
    assert [loaded.sources[0].rows for loaded in shares] == list(map(len, found))
    assert all(loaded.validation == [] for loaded in shares)


def test_a_conversation_is_in_one_share_in_all_files(tmp_path: Path) -> None:
    whole = talks(tmp_path / "d.jsonl", 60)
    single = tmp_path / "others.jsonl"
    single.write_text(
        "".join(json.dumps({"prompt": f"question  {number}"}) + "\n" for number in range(60))
    )
    asked = {group.prompt[0]["content"] for group in load(source(whole, part=(0.0, 0.3))).groups}
    alone = {group.prompt[0]["content"] for group in load(source(single, part=(0.0, 0.3))).groups}
    assert {f"Question {text.split()[-1]}?" for text in alone} == asked


def test_the_seed_draws_the_shares(tmp_path: Path) -> None:
    path = talks(tmp_path / "d.jsonl", 60)
    one, other = (load(source(path, part=(0.0, 0.5)), seed=seed) for seed in (0, 1))
    assert words(one.groups) != words(other.groups)

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
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.contract.formats import Format
from alignkit.data import files
from alignkit.data import group as groups_module
from alignkit.data.group import Group, Message, Origin, Pair, Response
from alignkit.errors import BadRow, DataError
from alignkit.evaluation.split import keys_of, opening
from alignkit.host.registry import Component, Registration
from alignkit.recipe.sources import DataSource, DataSpec, Loaded
from alignkit.recipe.sources import load as load_spec
from alignkit_plugins.compare.comparison import distinct_prompts, units_of
from tests.formats.reading import FORMATS, shown, turns
from tests.rows import json_rows, user, write_rows
from tests.typings import ASKED, TYPINGS

SHIPPED = Path(__file__).parent.parent / "recipes" / "data"
GOLD = SHIPPED.parents[1] / "benchmarks" / "outcomes" / "data"


def named(cls: type[Format], name: str = "own") -> Component:
    return Component("format", name, Registration(name, cls), cls.Options())


def source(path: Path, format: str | Component | None = None, **keys: Any) -> DataSource:
    chosen = named(FORMATS[format], format) if isinstance(format, str) else format
    return DataSource(path=path, **keys).in_format(chosen)


def load(*sources: DataSource, formats: Any = FORMATS, made: Path | None = None) -> Loaded:
    """made: the data of every stage."""
    return load_spec(
        DataSpec(sources),
        formats=formats,
        stage_data=lambda stage: made,
        commit=lambda name, revision: revision,
    )


def prompt(text: str) -> tuple[Message, ...]:
    return (user(text),)


def prompts(path: Path, numbers: Iterable[int]) -> Path:
    return write_rows(path, ({"prompt": f"question {number}"} for number in numbers))


def words(groups: list[Group]) -> list[str]:
    return [group.prompt[0]["content"] for group in groups]


# Groups as JSON

WHOLE = """\
{"alignkit": 1, "prompt": [{"role": "user", "content": "q\\n\u2028\x85", "name": "Ann"}], "responses": \
[{"text": "a", "messages": [{"role": "assistant", "content": "", "train": false, "reasoning_content": "r", \
"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}, \
{"role": "tool", "content": "t", "tool_call_id": "1"}, {"role": "assistant", "content": "a", "train": 0.5}], \
"rank": 2.0, "scores": {"reward": "inf", "x": null}, "label": true, "tokens": [1, 2], "logprobs": [-0.5, "-inf"], \
"action_mask": [true, false], "truncated": true, "source": "s", "tokenizer": "d", "async_level": 3}, {"rank": 1.0}], \
"pairs": [{"better": 1, "worse": 0, "p": 0.75, "margin": "slightly"}], "bundle": "b", "id": "i", \
"meta": {"k": [null, 1]}, "tools": [{"name": "f"}], "weight": 0.5}"""


def test_a_group_survives_json_in_one_line_and_defaults_are_not_written() -> None:
    group = groups_module.group_from_json(WHOLE)
    assert groups_module.group_to_json(group) == WHOLE
    for part in (group, group.responses[0], *(group.pairs or ())):
        fields = {field.name: field.default for field in dataclasses.fields(part)}
        kept = [name for name, default in fields.items() if getattr(part, name) == default]
        assert kept == ["origin"] * (part is group)
    assert group.responses[0].scores["reward"] == math.inf
    half = Group(prompt("\ud800"), (Response(logprobs=(math.nan,)),))
    back = groups_module.group_from_json(groups_module.group_to_json(half).encode())
    assert back.prompt == half.prompt and math.isnan((back.responses[0].logprobs or ())[0])
    with pytest.raises(ValueError, match="group 'g7': meta holds a value"):
        groups_module.group_to_json(Group((), id="g7", meta={"x": math.nan}))


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
{"alignkit": 1, "prompt": [], "responses": [{}, {}], "pairs": [{"better": 1, "worse": 1}]}  with itself
{"alignkit": 1, "prompt": [], "responses": [{}, {}], "pairs": [{"better": 1, "worse": -1}]}  response -1
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


def test_messages_name_a_row_by_what_a_user_says() -> None:
    talk = (Message(role="system", content="Be brief."), user("a\n b"), user("c"))
    groups = [Group(talk), Group(talk[:1]), Group((), (Response("raw"),)), Group(prompt("x" * 61))]
    assert groups_module.previews(groups) == "'a b', 'Be brief.', 'raw' and 1 more"
    assert groups_module.previews([groups[-1], Group(())]) == f"'{'x' * 60}...', ''"


def test_a_row_that_a_step_wrote_has_the_weight_of_its_group(tmp_path: Path) -> None:
    """The column of the row that it was made from stays one, but says nothing about answers that a
    step wrote.
    """
    path = write_rows(tmp_path / "d.jsonl", [{"prompt": "q", "completion": "a", "weight": 3}])
    (asked,) = groups_module.prompts_of(load(source(path)).groups)
    (bare,) = load(source(write_rows(tmp_path / "p.jsonl", [{"prompt": "q", "weight": 3}]))).groups
    assert asked.weight == bare.weight == 1.0
    answered = dataclasses.replace(asked, responses=(Response(text="b"),))
    made = write_rows(
        tmp_path / "made.jsonl", [answered, dataclasses.replace(answered, weight=0.5)]
    )
    for meta, weights in (({}, [1.0, 0.5]), ({"weight": 2}, [2.0, 2.0])):
        loaded = load(DataSource(stage="make", meta=meta), made=made)
        assert [group.weight for group in loaded.groups] == weights


def test_written_groups_are_read_back_and_a_failed_write_leaves_the_old_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "deep" / "er" / "g.jsonl"
    sampled = (Response(tokens=(2,), scores={"failed": None}), Response())
    wanted = [Group(prompt("q\u2028\x85"), sampled, (Pair(0, 1),), id=str(i)) for i in range(5)]
    groups_module.write_groups(path, wanted)
    once = path.read_bytes()
    groups_module.write_groups(path, iter(wanted))
    with pytest.raises(ZeroDivisionError):
        groups_module.write_groups(path, (Group((), id=str(1 // n)) for n in (1, 0)))
    assert path.read_bytes() == once and [*path.parent.iterdir()] == [path]
    assert groups_module.read_groups(path) == wanted
    loaded = load(DataSource(stage="make"), made=path)
    assert loaded.groups == wanted and str(loaded.groups[1].origin) == "stage make:2"
    path.write_text('{"alignkit": 1, "prompt": []}\n{"prompt": []}\n\n{"alignkit": 1,')
    with pytest.raises(DataError, match=r"g.jsonl:2: not a group.*\n.*g.jsonl:4: not valid JSON"):
        groups_module.read_groups(path)


# Pairs, ids, prompts


def test_every_row_with_a_prompt_is_a_prompt_with_its_own_columns() -> None:
    """That of a conversation is all before its last answer; of two answers, neither was given."""
    talk = tuple(turns("a: a / u: r / a: b / t: t / a: c"))
    given = [
        Group(prompt("q"), (Response(messages=talk),), id="old"),
        Group(prompt("q"), (Response(messages=talk[:1]),), bundle="x"),
        Group(prompt("q"), (Response(messages=talk), Response(text="x")), pairs=(Pair(0, 1),)),
        Group(prompt("b"), (Response(text="1"),), meta={"safety": True}, weight=2.0),
        Group(prompt("b"), meta={"safety": False, "n": 1}),
        Group(prompt("b"), meta={"n": 1, "safety": False}),
        Group((), (Response(text="raw"),)),
    ]
    found = groups_module.prompts_of(given)
    assert (
        "\n".join(map(shown, found))
        == """\
u: q / a: a / u: r ->
u: q ->
u: q ->
u: b -> {"safety": true}
u: b -> {"safety": false, "n": 1}
u: b -> {"n": 1, "safety": false}"""
    )
    assert [group.bundle for group in found] == [None] * 6
    assert found[0].id == groups_module.group_id(found[0].prompt)
    assert distinct_prompts(given) == [found[0], found[1], found[3], found[4]]


@pytest.mark.parametrize(
    ("ranks", "given_pairs", "wanted"),
    [
        ((2, 1, 2, None, 3), None, "1>0 1>2 1>4 0>4 2>4"),
        ((2, 1, 2, None, 3), (Pair(4, 0),), "4>0"),
        ((2, 1), (), ""),
    ],
)
def test_pairs_follow_from_ranks_and_ties_form_none(
    ranks: Any, given_pairs: Any, wanted: str
) -> None:
    responses = tuple(Response(text="a", rank=rank) for rank in ranks)
    found = groups_module.resolved_pairs(Group((), responses, given_pairs))
    assert {f"{pair.better}>{pair.worse}" for pair in found} == set(wanted.split())


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
{"prompt": [{"role": "tool", "content": "a", "name": "b", "tool_call_id": "1"}]}
= {"prompt": [{"role": "tool", "content": "a", "tool_call_id": "1", "name": "b"}]}
{"prompt": [Q, {"role": "tool", "content": "a", "tool_call_id": "1"}]}
"""


def test_an_id_depends_on_what_is_said_and_never_changes() -> None:
    ids: list[str] = []
    for line in SAYING.replace("Q", '{"role": "user", "content": "q"}').splitlines():
        group = groups_module.group_from_json('{"alignkit": 1, ' + line.removeprefix("= ")[1:])
        found = groups_module.group_id(group.prompt, group.responses, group.tools)
        assert not line.startswith("=") or found == ids.pop()
        ids.append(found)
    assert len({*ids}) == len(ids) == 15
    stable = hashlib.sha256(b'[[["user", "q"]], ["a"]]').hexdigest()[:16]
    assert ids[2] == stable  # runs on disk rely on it


def test_an_origin_survives_changes_but_is_no_part_of_a_group() -> None:
    group = Group(prompt("q"), tools=({"name": "add"},), origin=Origin("a.jsonl", 3))
    assert group == dataclasses.replace(group, origin=None)
    assert "a.jsonl" not in groups_module.group_to_json(group)
    (found,) = groups_module.prompts_of([group])
    assert (found.origin, found.tools) == (group.origin, group.tools)


# Files

FILES = r"""
d.jsonl
{"prompt": "premi\xc3\xa8re\\u2028 question", "safety": "yes"}\n
{"prompt": "second\\r\\n\\"one\\", it is", "safety": "no"}\n
  1: u: première... question -> {"safety": "yes"}
  2: u: second\r\n\"one\", it is -> {"safety": "no"}

d.ndjson
\n{"prompt": "a"}\r\n  \r\n{"prompt": "b"}
  2: u: a ->
  4: u: b ->

d.csv
prompt,safety\r\n"premi\xc3\xa8re\xe2\x80\xa8 question",yes\r\n"second\r\n""one"", it is",no\r\n
  2: u: première... question -> {"safety": "yes"}
  3: u: second\r\n\"one\", it is -> {"safety": "no"}

d.tsv
prompt\tsafe, so\r\n"second\r\n""one"", it is"\tno\r\n
  2: u: second\r\n\"one\", it is -> {"safe, so": "no"}

d.json
[{"prompt": "a"}, {\n"prompt": "b", "n": [1]},\n 7]
  1: u: a ->
  2: u: b -> {"n": [1]}
  3! a row must be an object with columns, not a number

d.json
{\n"prompt": "q"\n}
  1: u: q ->

d.json
\n{"prompt": "a"}\n\n{"prompt": "b"}\n{"prompt": "c"\n
  2: u: a ->
  4: u: b ->
  5! not valid JSON: ...column 15...

d.jsonl {limit: 2}
{"prompt": "b"}\n{"prompt": ""}\n{"prompt": "c"}\nnot even json\n
  1: u: b ->
  2! the last turn of the prompt is empty
  3: u: c ->

d.jsonl {columns: {chosen: rejected, rejected: chosen}, meta: {kind: source}}
{"prompt": "q", "chosen": "a", "rejected": "b", "kind": "row", "n": 1}\n{"prompt": "q", "chosen": "a"}
  1: u: q -> b | a [0>1] {"kind": "source", "n": 1}
  2! no column 'rejected' to rename...

d.jsonl {columns: {prompt: question}}
{"prompt": "old", "question": "q"}
  1: u: q ->

d.txt
a line\r\nb\r\n\r\nc\n
  1: -> a line\nb\n\nc

d.txt {format: prompt_only}
a line\ncaf\xe9\n\nc\n
  1: u: a line ->
  2! ...save the file as UTF-8...
  4: u: c ->

d.txt {format: dialogues}
TALK\n\nThe end\n\nTALE\n\nprose\n\nTALK\n\nQ. and?\n\ncaf\xe9
  1: u: why? -> a: so. / u: really? / a: yes. / u: and? / a: no. {"speakers": ["Q. ", "A. "]}
  15! the last turn of the prompt is empty
  29: u: why? -> a: so. / u: really? / a: yes. / u: and? / a: no. {"speakers": ["Q. ", "A. "]}

d.csv
prompt, note\n"two\nlines",x\none,two,three\none\ncaf\xe9,x\n"a"b,x\n,x\n,\n\nlast,\nLONG,\n
  2: u: two\nlines -> {"note": "x"}
  3! the row has 3 cells, but the header has 2
  4! the row has 1 cell, but the header has 2
  5! ...save the file as UTF-8...
  6! not a valid table row: ...
  7! the last turn of the prompt is empty
  10: u: last -> {"note": ""}
  11: u: LONG -> {"note": ""}

d.jsonl
{"prompt": "a"}\n{"prompt": "caf\xe9"}\n{"prompt": "a\0b"}\n{"prompt": "a\\u0000b"}\n{"prompt": "\\ud83d alone"}\n
{"prompt": "q", "x": NaN}\n{"prompt": "q", "x": -Infinity}\n{"prompt": "q", "x": 1e999}\n{"prompt": "q", "x": NINES}\n
{'prompt': 'q'}\n
{"prompt": "q"} {"prompt": "r"}\nDEEP\nnull\n{"prompt": null}\n{"prompt": " \\n"}\n{"prompt": []}\n{"prompt": 5}\n
{"prompt": [{"role": "user", "content": 5}]}\n{"prompt": [{"role": "assistant", "content": "x"}]}\n
{"prompt": ["x"]}\n{"prompt": "c"}
  1: u: a ->
  2! not valid UTF-8 at character 16 of the line...
  3! ...Invalid control character...
  4! a text contains a NUL character
  5! a text is not valid Unicode...
  6! ...NaN is too large...
  7! ...-Infinity is too large...
  8! ...1e999 is too large...
  9! not valid JSON...
  10! ...double quotes: line 1 column 2...
  11! ...line 1 column 17...
  12! ...recursion depth...
  13! ...must be an object...
  14! ...'prompt' is missing...
  15! ...empty...
  16! ...no prompt...
  17! ...not a number...
  18! ...prompt[0] must have text...
  19! ...assistant turn...
  20! ...prompt[0] must be a message...
  21: u: c ->

d.jsonl
{"prompt": "a"}\n{"prompt": "a", "prompt": "b"}\n{"prompt": "q", "x": [{"y": 1, "y": 1}]}\n
{"prompt": "q", "tools": "[{\\"name\\": \\"f\\", \\"name\\": \\"g\\"}]"}\n
{"prompt": "[{\\"role\\": \\"user\\", \\"content\\": \\"a\\", \\"content\\": \\"b\\"}]"}\n
{"prompt": "{\\"x\\": 1, \\"x\\": 2}"}\n
  1: u: a ->
  2! has the key 'prompt' twice
  3! has the key 'y' twice
  4! column 'tools': not valid JSON of a tool or a call...has the key 'name' twice
  5! column 'prompt': a message has the key 'content' twice
  6: u: {\"x\": 1, \"x\": 2} ->

d.json
[{"prompt": "a"}, {\n"prompt": "b", "n": {"k": [1, 2], "k": 0}} ,\n {"prompt": "c"}]
  1: u: a ->
  2! has the key 'k' twice
  3: u: c ->

d.json
{"prompt": "a"}\n{"prompt": "b", "prompt": "b"}\n
  1: u: a ->
  2! has the key 'prompt' twice

d.json
{\n"prompt": "b",\n"prompt": "b"}
  ! d.json: has the key 'prompt' twice

d.json
[{"prompt": "a", "prompt": "a"}, {"prompt": ]
  ! d.json: not valid JSON: Expecting value...

d.tsv
prompt\tx\na\t"I am here.\nb\tHe left."\nc\td\ne\t"say ""hi""\nand go"\nf\t"a\tb"\n"g\th\ni"\tj
  2! a quotation mark at the beginning of a cell joins it...
  3: u: c -> {"x": "d"}
  4: u: e -> {"x": "say \"hi\"\nand go"}
  5: u: f -> {"x": "a\tb"}
  6! a quotation mark at the beginning of a cell joins it...

none.jsonl
  ! none.jsonl: cannot read the file: No such file...

d.docx
x
  ! d.docx: unknown file type '.docx'...

d.jsonl
\xfd\xff\0{
  ! d.jsonl: no usable row; bad rows skipped: 1, the first: d.jsonl:1: not valid UTF-8 at character 1...

d.jsonl
\n
  ! d.jsonl: no usable row; it has no row that the recipe reads

d.json
[]
  ! d.json: no usable row...

d.json
[\n"caf\xe9"]
  ! d.json: not valid UTF-8...

d.json
{\n"prompt": "a",\n"more":\n
  ! d.json: not valid JSON: Expecting value: line 3...

d.json
[{"prompt": "a"},\n {"prompt": NaN}]
  ! ...NaN is too large...

d.json
[{"prompt": "a"}] x
  ! ...Extra data...

d.json
[{"prompt": "a"}, DEEP
  ! ...recursion depth...

d.csv
pr\xe9,b\n1,2\n
  ! d.csv:1: not valid UTF-8...

d.csv
a,a\n1,2\n
  ! ...needs a different name...

d.parquet
PAR1 no
  ! d.parquet: cannot read the parquet file...

d.jsonl
{"question": "q", "reply": "a"}
  ! d.jsonl: no format matches the first row (columns question, reply)...answer: reply}}  # prompt_only

d.jsonl
{"xyz": "q"}
  ! ...first row (columns xyz) / help: say which...as in `{path: FILE, columns: {prompt: "xyz",...36 formats

d.jsonl
{"Prompt": "q", "Rejected": "q"}
  ! ... / help: say which...in a `template` / preference wants chosen and rejected (texts...all 36 formats

d.jsonl
{"chat": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
  ! ... / help: say what its columns mean, as in / data: {path: FILE, columns: {messages: chat}}  # messages

d.jsonl
{"dialog": [{"speaker": "customer", "text": "q"}, {"speaker": "Ben", "text": "a"}, {"speaker": "system", "text": "s"}]}
  ! ... / help: say which columns...

d.jsonl
{"dialog": [{"speaker": "Eve", "text": "q"}, {"speaker": "bot", "text": "a"}]}
  ! ... / data: {template: {...messages: '{{ dialog | turns("speaker", "text", user=["Eve"], assistant=["bot"]) }}'}}

d.jsonl
{"dialog": [{"who": "Eve", "text": "q"}, {"who": "Ben", "text": "a"}]}
  ! ...help: say which columns...

d.jsonl
{"dialog": [{"sender": "Eve", "text": "q"}, {"sender": "Ben", "text": "a"}]}
  ! ...help: if this is who says what...'{{ dialog | turns("sender", "text", user=["Eve"], assistant=["Ben"]) }}'}}`...

d.jsonl
{"turns": ["q", "a"]}
  ! ...help: if this is who says what, write...'{{ turns[::2] | dialogue(turns[1::2]) }}'}}`...

d.jsonl
{"question": "How many?", "answer": "2 + 3 = 5\\n#### 5"}
  ! d.jsonl: no format matches the first row (columns question, answer)... / data: {gsm8k: FILE}...

d.jsonl {format: gsm8k}
{"question": "How many?", "answer": "2 + 3 = 5\\n#### 5"}
  1: u: How many? -> 2 + 3 = 5\n#### 5 {"answer": "5"}

sep.csv
sep=;\r\nprompt;safe, so\r\na, b|c;no\r\n
  2: u: a, b|c -> {"safe, so": "no"}

labels.csv
Question,Answer A,Answer B,rated by Ann,rated by Tom Lee\n
q,x,y,,A\nr,x,y,answer B,b\ns,x,y,A is better,B\nt,x,y,tie,A\nu,x,y,,\nv,x,y,so,A\n
  2: u: q -> x | y [0>1] {"rated by Ann": "", "rated by Tom Lee": "A"}
  3: u: r -> x | y [1>0] {"rated by Ann": "answer B", "rated by Tom Lee": "b"}
  4: u: s -> x | y [] {"rated by Ann": "A is better", "rated by Tom Lee": "B"}
  5: u: t -> x | y [] {"rated by Ann": "tie", "rated by Tom Lee": "A"}
  6: u: u -> x | y [] {"rated by Ann": "", "rated by Tom Lee": ""}
  7! column 'rated by Ann' holds 'so', which does not say which answer is better: expected A, B, 'Answer A', ...

named.csv {columns: {prompt: Frage, A: gpt-4, B: llama 3, label_1: Ann, label_2: Tom}}
Frage,gpt-4,llama 3,Ann,Tom,Eve\nq,x,y,GPT-4,,B\nr,x,y,A,llama 3 is better,B\ns,x,y,2,2,A\n
  2: u: q -> x | y [0>1] {"Eve": "B", "label_1": "GPT-4", "label_2": ""}
  3: u: r -> x | y [] {"Eve": "B", "label_1": "A", "label_2": "llama 3 is better"}
  4: u: s -> x | y [1>0] {"Eve": "A", "label_1": "2", "label_2": "2"}

votes.jsonl
{"prompt": "q", "response_a": "x", "response_b": "y", "preference": "A", "annotator": "ann"}\n
{"prompt": "q", "response_a": "z", "response_b": "y", "preference": "B", "annotator": "ann"}\n
{"prompt": "q", "response_a": "y", "response_b": "x", "preference": "response_a", "annotator": "tom"}\n
{"prompt": "q", "response_a": "x", "response_b": "y", "preference": "b", "annotator": "eve"}\n
{"prompt": "q", "response_a": "x", "response_b": "y", "preference": "?!", "annotator": "eve"}\n
{"prompt": "q", "response_a": "y", "response_b": "z", "preference": "tie", "annotator": "tom"}\n
{"prompt": "q", "response_a": "z", "response_b": "y", "preference": "A", "annotator": "eve"}\n
  1: u: q -> x | y [1>0] {"preference": "A", "annotator": "ann"}
  2: u: q -> z | y [] {"preference": "B", "annotator": "ann"}
  5! column 'preference' holds '?!', which does not say...

unknown.csv
Question,Answer A,Answer B,rated by Ann,rated by Tom\nq,x,y,hm,A\nr,x,y,A,A\n
  2! column 'rated by Ann' holds 'hm', which does not say which answer is better: expected A, B, 'Answer A', ...
  3: u: r -> x | y [0>1] {"rated by Ann": "A", "rated by Tom": "A"}

late.jsonl
{"prompt": "q", "answer_1": "x", "answer_2": "y", "vote 1": null}\n
{"prompt": "r", "answer_1": "x", "answer_2": "y", "vote 1": 2, "vote 2": 2}\n
  1: u: q -> x | y [] {"vote 1": null}
  2: u: r -> x | y [1>0] {"vote 1": 2, "vote 2": 2}

signs.csv
prompt,answer_a,answer_b,label\nq,x,y,1\nr,x,y,-1\ns,x,y,A\n
  2! column 'label' holds '1', which does not say...
  3! column 'label' holds '-1', which does not say...
  4: u: s -> x | y [0>1] {"label": "A"}

index.csv
prompt,answer 1,answer 2,label\nq,x,y,1\nr,x,y,0.0\ns,x,y,Answer 2\n
  2! column 'label' holds '1', which does not say...(here 0.0, 1, so that 1 may be either...`labels`...
  3! column 'label' holds '0.0', which does not say...
  4: u: s -> x | y [1>0] {"label": "Answer 2"}

index.csv
prompt,answer_0,answer_1,label\nq,x,y,1\nr,x,y,2\ns,x,y,A\n
  2! column 'label' holds '1', which does not say...(here 1, 2, so that...`labels`...
  3! column 'label' holds '2', which does not say...
  4: u: s -> x | y [0>1] {"label": "A"}

three.csv
prompt,answer 1,answer 2,label\nq,x,y,1\nr,x,y,0\ns,x,y,2\n
  2: u: q -> x | y [0>1] {"label": "1"}
  3: u: r -> x | y [] {"label": "0"}
  4: u: s -> x | y [1>0] {"label": "2"}

numbers.csv
prompt,A,B,least preferred,rated by Ann,rating of length,vote of Tom,rated by\nq,x,y,A,1,2,b,me\nr,x,y,A,B,2,b,me\n
  2: u: q -> x | y [] {"least preferred": "A", "rated by Ann": "1", "rating of length": "2", "vote of Tom": "b", ...
  3: u: r -> x | y [1>0] ...
"""
TALK = r"Q. why?\n\nA. so.\n\nQ. really?\n\nA. yes.\n\nQ. and?\n\nA. no."
LARGE = {
    "TALK": TALK,
    "TALE": TALK.replace("why?", ""),
    "LONG": "x" * 200_000,
    "NINES": "9" * 5000,
    "DEEP": "[" * 100_000,
}


def read_as(path: Path, **keys: Any) -> list[str]:
    """What the rows of a file are read as: `row: group`, `row! why` of a bad one, or `! why`."""
    try:
        loaded = load(source(path, on_bad_row="skip", **keys))
    except DataError as error:
        return ["! " + " / ".join(line.strip() for line in str(error).splitlines())]
    found = [(group.origin.row, f": {shown(group)}") for group in loaded.groups if group.origin]
    found += [(skipped.row, f"! {skipped.reason}") for skipped in loaded.skipped]
    return [f"{row}{text}" for row, text in sorted(found)]


# Rows of `prompt, one answer, other answer, label, annotator`, and what is said of their labels
VOTES = """
q,To,y,A,;q,To,y,A,;r,z,To,A,;r,z,To,A,;s,To,y,A,;s,y,To,A, | 6 for 3 pairs, of which 1 are left out...; 67%...
q,x,y,A,;q,x,y,tie,  | 2 for 1 pairs, of which 1 are left out (1 tied or without a label); 0% of labels agree...
q,x,y,A,;q,y,x,A,    | 2 for 1 pairs, of which 1 are left out (1 without a majority); 0%...
q,x,y,A,;q,x,y,B,;q,x,y,A, | 3 for 1 pairs; 33%...majority decides; 2 further labels of a pair...
q,x,y,A,ann;q,y,x,B,ann;q,x,y,B,tom | 2 for 1 pairs, of which 1 are left out (1 without...; 1 labels repeated by one...
q,x,y,A,ann;q,x,y,B,Ann ;q,x,y,B,tom | 2 for 1 pairs, of which 1 are left...; 1 labels repeated by one person...
q,x,y,A,ann; ,x,y,A,ann | 1 for 1 pairs
"""


@pytest.mark.parametrize("line", VOTES.strip().splitlines())
def test_what_labels_of_people_say_together(tmp_path: Path, line: str) -> None:
    rows, said = line.split("|")
    text = rows.strip().replace(";", "\n")
    for column in ("annotator", "Worker ID", "rated by", "user"):  # who asked is no annotator
        path = tmp_path / f"{column}.csv"
        path.write_text(f"prompt,answer_a,answer_b,label,{column}\n{text}\n", encoding="utf-8")
        (note,) = load(source(path, on_bad_row="skip")).sources[0].notes
        wanted = re.escape(f"labels in label: {said.strip()}").replace(r"\.\.\.", ".*")
        named = "tom" not in text or column != "user"
        assert re.fullmatch(wanted, note) if named else "by one person" not in note, note


# Rows of a prompt, two answers, and two people's labels under their names; and what is said of them
COLUMNS_OF_PEOPLE = """
rated by Ann,vote of Tom | q,x,y,0,1;r,x,y,1,1;s,x,y,0,0 | {0: A, 1: B} | in rated by Ann, vote of Tom: 6 for 3 pairs...
rated by Ann,vote of Tom | q,x,y,5,4;r,x,y,1,5;s,x,y,2,2 | {1: A, 2: A, 4: B, 5: B} | in rated by Ann, vote of Tom: 6...
rated by Ann,Tom         | q,x,y,A,B;r,x,y,A,A | {} | in rated by Ann: 2 for 2 pairs / not used: Tom
rated by Ann,Tom         | q,x,y,A,so;r,x,y,A,A;s,x,y,B,no | {} | in rated by Ann: 3 for 3 pairs
rated by Ann,vote of Tom | q,x,y,I like the first more,A | {i like the first more: A} | ..., vote of Tom: 2 for...
rated by Ann,vote of Tom | q,x,y,A,B;q,x,y,A, | {} | ...: 2 for 1 pairs, of which 1...; 0%...; 1 labels repeated...
rated by Ann,vote of Tom | q,x,y,A,B;q,x,y,A,A | {} | ...(1 tied or...; 2 labels repeated by one person...
rated by Ann,note        | q,x,y,A,a;q,y,x,A,b | {} | in rated by Ann: 1 for 1 pairs, of which...; 1 labels repeated...
"""


@pytest.mark.parametrize("line", COLUMNS_OF_PEOPLE.strip().splitlines())
def test_a_column_of_labels_is_a_person(tmp_path: Path, line: str) -> None:
    header, rows, labels, said = (part.strip() for part in line.split("|"))
    path = tmp_path / "wide.csv"
    path.write_text("\n".join([f"prompt,A,B,{header}", *rows.split(";")]), encoding="utf-8")
    meant = {str(label): side for label, side in yaml.safe_load(labels).items()}
    format = named(FORMATS["labeled_pairs"])
    options = FORMATS["labeled_pairs"].Options.model_validate({"labels": meant})
    given = dataclasses.replace(format, options=options) if meant else None
    notes = load(source(path, given)).sources[0].notes
    wanted = re.escape(f"labels {said}").replace(r"\.\.\.", ".*")
    assert re.fullmatch(wanted, " / ".join(notes)), notes


@pytest.mark.parametrize(
    ("code", "text", "what"),
    [
        ("utf-16", "\ufeffa,b\n", ": UTF-16; save the file as UTF-8"),
        ("utf-16-be", "\ufeffa,b\n", ": UTF-16; save the file as UTF-8"),
        ("cp1252", "prompt,b\nWho?,é\nWhat?,ü\nWhy?,x\n", ":3: not UTF-8, as 2 of its lines"),
    ],
)
def test_another_encoding_is_named(tmp_path: Path, code: str, text: str, what: str) -> None:
    for name in ("d.csv", "d.jsonl", "d.txt"):
        (tmp_path / name).write_bytes(text.encode(code))
        assert f"! {tmp_path / name}{what}" in read_as(tmp_path / name)[0]


@pytest.mark.parametrize("block", FILES.strip("\n").split("\n\n"))
def test_rows_of_a_file_are_read_or_named_with_their_place(tmp_path: Path, block: str) -> None:
    """`name {keys}`, what the file holds, and below what is read of it, also of a packed one that
    starts with a byte order mark.
    """
    for name, text in LARGE.items():
        block = block.replace(name, text)
    head, *lines = block.splitlines()
    name, _, keys = head.partition(" ")
    wanted = "\n".join(line.strip() for line in lines if line.startswith("  "))
    text = "".join(line for line in lines if not line.startswith("  "))
    content = text.encode().decode("unicode_escape").encode("latin-1")
    for path, mark in ((tmp_path / name, ""), (tmp_path / f"{name}.GZ", "\ufeff")):
        if text:
            path.write_bytes(gzip.compress(mark.encode() + content) if mark else content)
        found = "\n".join(read_as(path, **yaml.safe_load(keys or "{}"))).replace(str(path), name)
        assert re.fullmatch(re.escape(wanted).replace(r"\.\.\.", ".*"), found), found


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
        "blob": [b"a\x00"] * 2,
        "price": [decimal.Decimal("1.5")] * 2,
        "tags": [{"a": [b"b", None]}] * 2,
    }
    meta = (
        '{"when": "2024-05-06T07:08:00", "blob": {"unread": "bytes"}, "price": 1.5, '
        '"tags": {"a": ["b", null]}}'
    )
    assert [shown(group) for group in parquet(tmp_path / "d.parquet", columns)] == [
        f"u: café -> x | y [0>1 by 1.5] {meta}",
        f"u: b -> y | x [0>1] {meta}",
    ]


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
def test_nulls_that_a_table_fills_in_change_nothing(tmp_path: Path) -> None:
    """A table gives every struct the keys of all others in its column; a person's file has none of
    them.
    """
    rows = json_rows(CALLS)
    by_hand = load(source(write_rows(tmp_path / "hand.jsonl", rows))).groups
    made = pytest.importorskip("datasets").Dataset.from_list(rows)
    written, folder = tmp_path / "d.jsonl", tmp_path / "folder"
    folder.mkdir()
    made.to_json(str(written))
    made.to_parquet(str(folder / "d.parquet"))
    for read in (source(written), source(folder / "d.parquet"), DataSource(hub=str(folder))):
        assert load(read).groups == by_hand


@pytest.mark.silent_bug(
    "data: columnar nulls",
    "All nulls are removed, also those that an author meant.",
    "A null inside arguments written as JSON text stays.",
)
def test_a_null_that_a_person_wrote_stays(tmp_path: Path) -> None:
    """In JSON as text, in a list, as a whole column, in a call and in its tool's schema; a table keeps
    those that the schema requires.
    """
    row = """\
{"messages": [{"role": "user", "content": "Go"}, {"role": "assistant", "content": null, "tool_calls": [
 {"type": "function", "function": {"name": "f", "arguments": "{\\"city\\": null}"}},
 {"name": "f", "parameters": {"due": null, "to": {"x": null}}}]}],
 "tools": [{"name": "f", "parameters": {"properties": {"due": {"enum": ["Oslo", null], "default": null},
 "to": {"type": "object"}}, "required": ["due"]}}],
 "note": null, "info": {"x": [null, 1], "y": null}}""".replace("\n ", " ")
    (tmp_path / "d.jsonl").write_text(row, encoding="utf-8")
    [group] = load(source(tmp_path / "d.jsonl")).groups
    assert group.id == groups_module.group_id(group.prompt, group.responses, group.tools)
    call = '{"type": "function", "function": {"name": "f", "arguments": '
    text = (
        f'u: Go -> a: "" {{"tool_calls": [{call}{{"city": null}}}}}}, '
        f'{call}{{"due": null, "to": {{"x": null}}}}}}}}]}} tools [{{"type": "function", "function": '
        '{"name": "f", "parameters": {"properties": {"due": {"enum": ["Oslo", null], "default": null},'
        ' "to": {"type": "object"}}, "required": ["due"]}}}] {"note": null, "info": {"x": [null, 1]}}'
    )
    assert shown(group) == text
    filled = json.loads(row)
    for json_of_table in (True, False):
        if json_of_table:
            filled["tools"][0]["parameters"]["properties"]["a"] = None
        dense = files.without_fills(filled, table=not json_of_table)
        assert dense["messages"][1]["tool_calls"][1]["parameters"] == {"due": None, "to": {}}
        assert dense["tools"][0]["parameters"]["properties"] == {
            "due": {"enum": ["Oslo", None]},
            "to": {"type": "object"},
        }


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.csv.gz"])
def test_a_truncated_gzip_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    packed = gzip.compress("\n".join(['"prompt"', *map(str, range(9000))]).encode())
    halved, broken = packed[: len(packed) // 2], packed[:10] + b"\xff" * 9
    for content, line in ((halved, r"\d\d+"), (broken, "1"), (b"this is no gzip file", "1")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"gz:{line}: the gzip file is damaged or truncated"):
            load(source(tmp_path / name, on_bad_row="skip"))


@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=r"this is a pipe or a device"):
        load(source(tmp_path / name))


def test_bad_rows_of_all_files_are_listed_up_to_20(tmp_path: Path) -> None:
    empty = [{"prompt": ""}]
    one = write_rows(tmp_path / "one.jsonl", empty * 3)
    two = write_rows(tmp_path / "two.jsonl", [{"prompt": "good"}, *empty * 18])
    with pytest.raises(DataError) as error:
        load(source(one), source(two))
    places = [*(f"{one}:{row}" for row in (1, 2, 3)), *(f"{two}:{row}" for row in range(2, 19))]
    *lines, help = str(error.value).splitlines()
    assert lines == [
        "21 bad rows:",
        *(f"  {place}: the last turn of the prompt is empty" for place in places),
        "  ... and 1 more",
    ]
    assert "'on_bad_row: skip'" in help and error.value.exit_code == 4


def test_a_format_that_fails_names_the_row(tmp_path: Path) -> None:
    class Fragile(Format):
        def read(self, row: Any) -> Group:
            return Group(prompt(row["a"]["b"]))

    path = write_rows(tmp_path / "d.jsonl", [{"a": {"b": "fine"}}, {"a": 5}])
    with pytest.raises(
        DataError, match=r"d\.jsonl:2: the format Fragile failed: TypeError.* \(test_data\.py:\d+\)"
    ):
        load(source(path, named(Fragile)))


PAIR = (Response("a"), Response("b"))


@pytest.mark.parametrize(
    ("responses", "pair", "message"),
    [
        ((Response("a", label="false"),), None, "label must be .* not 'false'"),  # type: ignore[arg-type]
        ((Response("a", rank="1"), Response("b", rank=2)), None, "rank must be .* not '1'"),  # type: ignore[arg-type]
        (PAIR, Pair(0, 1, p="a"), "p must be .* not 'a'"),  # type: ignore[arg-type]
        (PAIR, Pair(0, 1, margin=math.inf), "margin, .*, must be a number, not inf"),
    ],
)
def test_what_a_format_of_an_author_passes_on_has_the_right_type(
    responses: Any, pair: Pair | None, message: str, tmp_path: Path
) -> None:
    class Careless(Format):
        def read(self, row: Any) -> Group:
            return Group(prompt("q"), responses, pair and (pair,))

    with pytest.raises(DataError, match=f"1: {message}"):
        load(source(write_rows(tmp_path / "d.jsonl", [{}]), named(Careless)))


def test_an_ambiguous_format_lists_only_those_that_match(tmp_path: Path) -> None:
    class Greedy(Format):
        @classmethod
        def matches(cls, row: Any) -> bool:
            return bool(row["prompt"])

    class Broken(Format):
        @classmethod
        def matches(cls, row: Any) -> bool:
            raise KeyError("x")

    path = write_rows(tmp_path / "d.jsonl", [{"prompt": "q"}])
    formats = {**FORMATS, "greedy": Greedy, "broken": Broken}
    with pytest.raises(DataError, match=r"first row \(columns prompt\).*: prompt_only, greedy$"):
        load(source(path), formats=formats)
    assert words(load(source(path, "prompt_only"), formats=formats).groups) == ["q"]


def test_a_hub_data_set_is_asked_for_its_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a changed folder is prepared anew."""
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
    for text in ("a", "b"):
        (tmp_path / "d.jsonl").write_text(text)
        load(DataSource(hub=str(tmp_path), limit=1))
    assert len({where["cache_dir"] for _, where in asked[2:]}) == 2
    assert str(loaded.skipped[0]).startswith("org/name[train]:2: the last turn")


# Limit, validation, weights


def held(path: Path, numbers: Iterable[int], share: float = 0.1) -> set[str]:
    """Which of these prompts are held out."""
    loaded = load(source(prompts(path, numbers), validation=share))
    return set(words(loaded.validation))


@pytest.mark.silent_bug(
    "data: held out",
    "Each process splits the data in its own way.",
    "The split is a hash of the prompt.",
    "TensorAuto/OpenTau#498",
)
def test_validation_is_stable_under_new_rows_and_order(
    tmp_path: Path,
) -> None:
    path = tmp_path / "d.jsonl"
    few = held(path, range(200))
    assert few == held(path, reversed(range(200)))
    # Rows of finished runs stay on their side.
    assert sorted(text[9:] for text in few if len(text) == 10) == ["5", "6"]
    assert few | held(path, range(200, 400)) == held(path, range(400))
    assert few < held(path, range(200), share=0.3)


@pytest.mark.silent_bug(
    "data: held out",
    "Repeated rows fall on both sides of the split.",
    "A prompt is on one side only, in all sources.",
    "MakazhanAlpamys/Soup#680",
)
def test_a_prompt_held_out_of_one_source_is_held_out_of_all(tmp_path: Path) -> None:
    path = prompts(tmp_path / "d.jsonl", range(50))
    other = prompts(tmp_path / "e.jsonl", range(100, 150))
    loaded = load(source(path, validation=0.2), source(path), source(other, validation=0.2))
    training, validation = words(loaded.groups), words(loaded.validation)
    assert sum(facts.held_out for facts in loaded.sources) == len(validation)
    assert not {*validation} & {*training} and len(training + validation) == 150
    assert Counter(Counter(validation).values()).keys() == {1, 2}  # of `other`, and of both others


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_both_sides_have_a_prompt_if_there_are_two(tmp_path: Path, share: float) -> None:
    path = tmp_path / "d.jsonl"
    assert len(held(path, range(4), share=share)) in (1, 3)
    with pytest.raises(DataError, match="holds out nothing: all 1 rows have one prompt"):
        held(path, range(1), share=share)


def sides(path: Path, rows: Iterable[Any], **keys: Any) -> list[list[Any]]:
    """What the rows on either side have in `x`."""
    loaded = load(source(write_rows(path, rows), validation=0.3, **keys))
    return [[group.meta["x"] for group in side] for side in (loaded.groups, loaded.validation)]


def sides_of(groups: Sequence[Group]) -> set[str]:
    """What decides the sides of a file of these groups, each in a row."""
    keys = keys_of([(place, [group]) for place, group in enumerate(groups)])
    return {keys[opening(group)] for group in groups}


@pytest.mark.silent_bug(
    "data: held out",
    "Questions about one passage, or the turns of one conversation, are on both sides of a split.",
    "`group` names the column that rows share; what shares it is on one side, and so are turns "
    "that continue others.",
    "EvolvingLMMs-Lab/lmms-eval#989",
    "ai-evals-course/recipe-chatbot#36",
)
def test_rows_that_share_a_column_stay_on_one_side(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    rows = [{"prompt": f"{n}?", "passage": f"p{n % 12}", "x": n % 12} for n in range(60)]
    one, other = sides(path, rows)
    assert {*one} & {*other}
    one, other = sides(path, rows, group="passage")
    assert other and not {*one} & {*other} and len(one + other) == 60
    parts = [load(source(path, part=at, group="passage")).groups for at in ((0, 0.5), (0.5, 1))]
    assert not set.intersection(*({group.meta["x"] for group in part} for part in parts))
    # More passages do not move the others.
    more = sides(path, [{"prompt": "n", "passage": "q", "x": 9}, *rows], group="passage")
    assert {*one} <= {*more[0]} and {*other} <= {*more[1]}
    # Number 3 of one column is not number 3 of another.
    places = [Origin("a", 1, group="passage"), Origin("b", 1, source=1, group="author")]
    numbers = [Group(prompt(at.file), meta={"passage": 3, "author": 3}, origin=at) for at in places]
    assert len(sides_of(numbers)) == 2
    # One number is the same in each file, and prompts may differ by a date of the system.
    dated: Any = ({"role": "system", "content": "May 1"}, *prompt("0"))
    values = (3, 3.0, "3", " 3.0", "03")
    three = [
        Group(prompt(f"{v!r}"), meta={"passage": v}, origin=Origin("a", n, group="passage"))
        for n, v in enumerate(values)
    ]
    alike = [Group(each) for each in (dated, prompt("0"), prompt("1"), dated[:1])]
    for groups, count in ((three, 2), (alike, 3)):
        assert len(sides_of(groups)) == len({*units_of(groups)}) == count
    # A column that the format reads may be shared, too.
    taught = [{"prompt": row["prompt"], "system": row["passage"], "x": row["x"]} for row in rows]
    one, other = sides(path, taught, group="system")
    assert other and not {*one} & {*other}
    lacking = r"d\.jsonl:1: the row has no .chapter., by which .group. holds"
    for row in (rows[0], {**rows[0], "chapter": None}):
        with pytest.raises(DataError, match=lacking):
            sides(path, [row], group="chapter")
    with pytest.raises(DataError, match="holds out nothing: all 5 rows have the same 'passage'"):
        sides(path, rows[::12], group="passage")


TOLD = "Please turn the router off, wait for {} seconds and turn it on again."


def test_one_split_for_a_file_whatever_reads_it(tmp_path: Path) -> None:
    asked = [f"Item {n}: what {'does' if n % 2 else 'did'} it cost?" for n in range(80)]
    told = [TOLD.format(n % 20) + "!" * (n // 20) for n in range(80)]
    rows = [
        {"Q": question, "A": answer, "x": n % 20}
        for n, (question, answer) in enumerate(zip(asked, told, strict=True))
    ]
    path = write_rows(tmp_path / "d.jsonl", rows)
    words = "Solve. {{ Q }} End with: Answer: NUMBER, and nothing else."
    registration = Registration("template", FORMATS["template"])
    options = FORMATS["template"].Options(prompt=words, answer="{{ A }}")
    template = Component("format", "template", registration, options)
    columns = {"prompt": "Q", "completion": "A"}
    ways: list[tuple[Any, dict[str, Any]]] = [
        (template, {}),
        (None, {"columns": columns}),
        (None, {"columns": {"prompt": "Q"}}),
    ]
    found = set()
    for format, keys in ways:
        read = [{"part": (0, 0.3)}, {"part": (0.3, 1)}, {"part": (0, 0.3), "limit": 40}]
        loaded = [load(source(path, format, **keys, **more)).groups for more in read]
        loaded += [load(source(path, format, **keys, validation=0.3)).validation]
        held, rest, first, validation = (
            sorted(group.origin.row for group in side if group.origin) for side in loaded
        )
        assert validation == held and first == [row for row in held if row <= 40]
        assert not {row % 20 for row in held} & {row % 20 for row in rest} and rest
        found.add(tuple(held))
    assert len(found) == 1 and found.pop()


def test_what_most_rows_share_joins_none(tmp_path: Path) -> None:
    """A form in which all rows are written would put them all on one side."""
    form = (
        "A customer asks about her order of {}. Answer in one polite sentence, without a greeting."
    )
    goods = [chr(97 + n // 26) + chr(97 + n % 26) for n in range(60)]
    path = write_rows(tmp_path / "d.jsonl", ({"prompt": form.format(each)} for each in goods))
    loaded = load(source(path, validation=0.3))
    assert 8 <= len(loaded.validation) <= 28


def test_prompts_that_differ_in_case_stay_on_one_side_whatever_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    rows = [
        {"prompt": f"{word} {n}", "x": n} for n in range(20) for word in ("what", "What ", "WHAT\n")
    ]
    one, other = sides(path, rows)
    assert other and not {*one} & {*other}
    assert [one[::-1], other[::-1]] == sides(path, reversed(rows))
    assert {*one} <= {*sides(path, [{"prompt": "unlike", "x": -1}, *rows])[0]}


def test_a_question_in_another_typing_stays_on_its_side_and_in_its_share(tmp_path: Path) -> None:
    path, typings = tmp_path / "d.jsonl", [ASKED, *TYPINGS]
    rows = [{"prompt": f"{n}: {text}", "x": n} for n in range(12) for text in typings]
    found = [load(source(write_rows(path, rows), part=at)) for at in ((0, 0.5), (0.5, 1))]
    parts = [[group.meta["x"] for group in loaded.groups] for loaded in found]
    for one, other in (sides(path, rows), parts):
        assert one and other and not {*one} & {*other} and len(one + other) == len(rows)


def test_turns_of_a_conversation_stay_on_one_side(tmp_path: Path) -> None:
    """A row for each answer, whose prompt is the conversation before it."""
    rows = []
    for n in range(12):
        talk = turns(f"u: {n} 0 / a: a / u: {n} 1 / a: a / u: {n} 2")
        rows += [{"prompt": talk[: 2 * end + 1], "x": n} for end in range(3)]
    training, held_out = sides(tmp_path / "turns.jsonl", rows)
    assert held_out and not {*training} & {*held_out}


@pytest.mark.parametrize("most", [20_000, 3])
def test_groups_of_one_row_stay_on_one_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Also in rows that are too many to be compared."""
    monkeypatch.setattr("alignkit.evaluation.split.MOST", most)
    inputs = [[{"input": f"{n} {word}", "output": "a"} for word in "xyz"] for n in range(20)]
    rows = [{"instruction": "Say", "instances": both, "x": n} for n, both in enumerate(inputs)]
    training, held_out = sides(tmp_path / "d.jsonl", rows)
    assert held_out and not {*training} & {*held_out} and len(training + held_out) == 60
    one, other = (load(source(tmp_path / "d.jsonl", part=part)) for part in ((0, 0.5), (0.5, 1)))
    both = ({group.meta["x"] for group in loaded.groups} for loaded in (one, other))
    assert not set.intersection(*both)


def test_raw_text_is_split_by_its_text(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "d.jsonl", ({"text": f"text {i}"} for i in range(100)))
    assert 15 <= len(load(source(path, validation=0.3)).validation) <= 45


def test_weights_leave_every_row_in_place_and_become_shares(tmp_path: Path) -> None:
    first, second = prompts(tmp_path / "a.jsonl", range(3)), prompts(tmp_path / "b.jsonl", [8])
    for one, two, shares in ((None, None, None), (3.0, None, (0.75, 0.25)), (1, 4, (0.2, 0.8))):
        loaded = load(source(first, weight=one), source(second, weight=two))
        assert words(loaded.groups) == [f"question {n}" for n in (0, 1, 2, 8)]
        assert loaded.weights == shares
    assert load(source(first, weight=3.0)).weights is None


def test_every_group_knows_where_it_was_read_and_a_source_how(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": ""}\n{"prompt": "b"}\n')
    loaded = load(source(path, on_bad_row="skip"), source(path, "prompt_only", limit=1))
    assert [group.origin for group in loaded.groups] == [
        Origin(str(path), 1, True, 0),
        Origin(str(path), 4, True, 0),
        Origin(str(path), 1, False, 1),
    ]
    assert [(f.format, f.recognized, f.rows, f.skipped) for f in loaded.sources] == [
        ("prompt_only", True, 2, 1),
        ("prompt_only", False, 1, 0),
    ]


def test_shares_of_a_source_are_apart_and_a_conversation_is_in_one_share_of_all_files(
    tmp_path: Path,
) -> None:
    """A first question alone, and again with an answer and a second question."""
    talks = [turns(f"u: Question {n}? / a: Yes. / u: And {n}?") for n in range(60)]
    rows = ({"prompt": part} for talk in talks for part in (talk[:1], talk))
    whole = write_rows(tmp_path / "d.jsonl", rows)
    shares = [load(source(whole, part=part)) for part in ((0.0, 0.2), (0.2, 0.6), (0.6, 1.0))]
    found = [{group.id for group in loaded.groups} for loaded in shares]
    assert sum(map(len, found)) == len(set.union(*found)) == 120
    assert [round(len(ids) / 120, 1) for ids in found] == [0.2, 0.4, 0.4]
    assert [loaded.sources[0].rows for loaded in shares] == list(map(len, found))
    single = source(prompts(tmp_path / "others.jsonl", range(60)), part=(0.0, 0.2))
    alone = words(load(single).groups)
    assert {f"Q{text[1:]}?" for text in alone} == {*words(shares[0].groups)}


# The data that the recipes use

TRAIN = """helpful.jsonl.gz safety.jsonl.gz prompts.jsonl demos.jsonl rankings.jsonl graded.jsonl
red_team.jsonl questions.jsonl questions_demos.jsonl questions_pressure.jsonl"""
HELD = """helpful_heldout.jsonl.gz safety_heldout.jsonl.gz heldout.jsonl rankings_heldout.jsonl
questions_heldout.jsonl xstest.jsonl"""
# What the table of licenses says of each file
LICENSES = (SHIPPED / "LICENSES.md").read_text(encoding="utf-8")
COUNTS = {
    name: int(count)
    for name, count in re.findall(r"^\| `((?!refusal_)\S+)` \| (\d+) \|", LICENSES, re.MULTILINE)
}


@cache
def shipped(name: str) -> list[Group]:
    return load(source(SHIPPED / name)).groups


def letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def openings(names: str) -> set[str]:
    """The first human turns in files: letters and digits, lower case."""
    found = [words(shipped(name)) for name in names.split()]
    return {letters(text) for texts in found for text in texts}


@pytest.mark.parametrize("name", COUNTS)
def test_shipped_data_has_no_bad_row_and_no_duplicate(name: str) -> None:
    found = shipped(name)
    assert len(found) == COUNTS[name] == len({group.id for group in found})


def test_shipped_held_out_prompts_are_in_no_training_file() -> None:
    assert not openings(TRAIN) & openings(HELD)
    assert not openings("demos.jsonl") & openings("demos_validation.jsonl")
    assert not openings("prompts.jsonl") & openings("helpful.jsonl.gz safety.jsonl.gz")


KINDS = {"harmful": 100, "ordinary": 96, "harmful form": 40, "sounds unsafe": 80, "facts": 129}


def test_what_the_quick_start_asks_is_in_no_file_that_it_learns_from() -> None:
    own = {name for name in COUNTS if name.startswith("quickstart/")}
    asked = "quickstart/heldout.jsonl quickstart/tuning.jsonl"
    pairs = "quickstart/helpful_heldout.jsonl quickstart/safety_heldout.jsonl"
    for names in (asked, pairs):
        assert not openings(names) & openings(" ".join(own - {*names.split()}))
    for names in (asked, "quickstart/demos.jsonl quickstart/harmful_prompts.jsonl"):
        assert not set.intersection(*map(openings, names.split()))
    rows = shipped("quickstart/heldout.jsonl")
    assert Counter(group.meta["kind"] for group in rows) == KINDS
    gold = openings(f"{GOLD}/gold_helpful.jsonl.gz {GOLD}/gold_safety.jsonl.gz")
    ordinary = [group for group in rows if group.meta["kind"] == "ordinary"]
    assert not gold & {*map(letters, words(ordinary))}


def test_shipped_files_have_the_contents_that_recipes_expect() -> None:
    """Beginnings in the demonstrations teach no end."""
    demos = shipped("quickstart/demos.jsonl")
    assert sum(group.responses[0].truncated for group in demos) == 290
    safety = {"prompts.jsonl": 200, "heldout.jsonl": 89, "red_team.jsonl": 160}
    assert {name: sum(g.meta["safety"] for g in shipped(name)) for name in safety} == safety
    for group in shipped("rankings.jsonl"):
        assert 4 <= len(group.responses) <= 9 and groups_module.resolved_pairs(group)
    margins = {pair.margin for group in shipped("graded.jsonl") for pair in group.pairs or ()}
    assert margins == {"significantly", "slightly"}
    texts = [group.responses[0].text for group in shipped("text.txt")]
    assert len(texts) > 20 and "gutenberg" not in "".join(texts).lower()


def test_shipped_sums_are_right_and_no_held_out_sum_is_learned() -> None:
    learned, asked = shipped("sums.jsonl"), shipped("sums_heldout.jsonl")
    assert not {*words(learned)} & {*words(asked)}
    for group in learned + asked:
        one, other = re.findall(r"\d+", group.prompt[0]["content"])
        assert group.meta["answer"] == int(one) + int(other)


def test_all_shipped_data_have_a_license_and_are_small() -> None:
    files = [path for path in SHIPPED.rglob("*.*") if path.suffix not in (".md", ".py")]
    assert all(f"| `{path.relative_to(SHIPPED).as_posix()}` |" in LICENSES for path in files)
    assert {SHIPPED / name for name in COUNTS} <= {*files}
    assert sum(path.stat().st_size for path in files) < 4_000_000

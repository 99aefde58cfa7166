"""Rules, redaction and layouts of rows."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from planted_rows import data

from alignkit import Group, Message, Response
from alignkit.data.group import group_id
from alignkit.errors import Repeated
from alignkit.recipe.yaml import plain_data
from alignkit.runs.fingerprint import RunData
from alignkit_plugins.command_line.words import data_of
from alignkit_plugins.data_tools.clean import STOCK, Rules, redacted, redacted_group, rows_to_clean
from alignkit_plugins.data_tools.files import removed_file
from alignkit_plugins.data_tools.files import write_rows as pack
from alignkit_plugins.formats.layouts import LAYOUTS
from tests.rows import Said, assistant, cells, read_rows, run, user, write_recipe, write_rows

PROMPT = (Message(role="user", content="Write to ann@example.org, please."),)


STOCK_PHRASES = """\
As an AI language model, I cannot
I'm just an AI.
as of my last knowledge update
I was developed by OpenAI
I'm ChatGPT, a large language model trained by OpenAI.
As an AI developed by Google
"""
KEPT = """\
As an aide to the minister, she
A language model predicts words.
She works as an AI researcher in Oslo.
TensorFlow was developed by Google.
I am a fan of React, created by Meta.
BERT is a language model developed by Google.
"""


def test_stock_phrases() -> None:
    assert all(map(STOCK.search, STOCK_PHRASES.splitlines()))
    assert not any(map(STOCK.search, KEPT.splitlines()))


def test_a_redacted_response_loses_the_tokens_that_it_was_sampled_as() -> None:
    plain = Response(text="Fine.", tokens=(1, 2), tokenizer="0" * 64)
    sampled: Any = {"tokens": (1, 2), "logprobs": (0.0, 0.0), "action_mask": (True, True)}
    personal = Response(text="Call +1 415 555 0100.", tokenizer="0" * 64, **sampled)
    meta = {"id": "a1" * 20, "by": "ann@example.org"}
    clean = redacted_group(Group(PROMPT, (plain, personal), meta=meta, id="x"))
    assert clean.id == group_id(clean.prompt, clean.responses)
    assert clean.prompt[0]["content"] == "Write to [e-mail], please."
    assert clean.responses == (plain, Response(text="Call [phone]."))
    assert clean.meta == {"id": "a1" * 20, "by": "[e-mail]"}
    untouched = Group(PROMPT[:0], (plain,), id="x")
    assert redacted_group(untouched) == untouched
    assert redacted([{"a": "x ann@example.org"}, 3, None]) == [{"a": "x [e-mail]"}, 3, None]
    call = '{"completion": "PHONE", "responses": ["PHONE"], "id": "01711234567", "messages": [{"content": "KEY"}]}'
    said = call.replace("PHONE", "01711234567").replace("KEY", "9aF3kLm2QpX7vTz1Bn5RcY8WdJ4hG6sE")
    wanted = call.replace("PHONE", "[phone]").replace("KEY", "***")
    assert redacted(json.loads(said)) == json.loads(wanted)


def test_what_a_rule_sees_is_the_answer() -> None:
    def fault(answer: str, **options: Any) -> str:
        talk: Any = (assistant(answer), user("And?"), assistant("Ja."))
        (row,) = rows_to_clean([Group(PROMPT, (Response(messages=talk),))])
        found = Rules(**options).fault(row)
        return found.rule if found else ""

    german = "Das ist eine sehr schöne Antwort auf die Frage, die du gestellt hast."
    assert fault(german, languages=["en"]) == "languages"
    assert fault(german, languages=["en", "de"]) == fault("Ja. " + "1" * 20, languages=["en"]) == ""
    assert str(rows_to_clean([Group(())] * 2)[1]) == "row:2"


CONVERTED = """\
alpaca      messages    {"messages": [HI, HELLO]}
alpaca      sft         {"prompt": [HI], "completion": [HELLO]}
alpaca      prompts     {"prompt": [HI]}
preference  preference  {"prompt": [HI], "chosen": [HELLO], "rejected": [AWAY], "margin": 0.666667}
preference  kto         {"prompt": [HI], "completion": [HELLO], "label": true}
preference  kto         {"prompt": [HI], "completion": [AWAY], "label": false}
likelier    preference  {"prompt": [HI], "chosen": [AWAY], "rejected": [HELLO], "margin": 0.0, "p": 0.8}
likelier    kto         {"prompt": [HI], "completion": [HELLO], "label": false}
likelier    kto         {"prompt": [HI], "completion": [AWAY], "label": true}
rankings    ranked      {"prompt": [HI], "completions": [[HELLO], [AWAY]], "ranks": [1, 2]}
calls       prompts     {"prompt": [HI], "tools": [{"function": {"name": "f"}}]}
"""
ROWS = {
    "alpaca": {"instruction": "Hi", "output": "Hello!"},
    "preference": {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away.", "margin": "better"},
    "likelier": {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away.", "p": 0.2},
    "rankings": {"prompt": "Hi", "responses": ["Hello!", "Go away."], "ranks": [1, 2]},
    "calls": {"prompt": "Hi", "tools": [{"function": {"name": "f"}}]},
}


def test_rows_in_the_layouts_of_other_tools(tmp_path: Path) -> None:
    said = {"HI": user("Hi"), "HELLO": assistant("Hello!"), "AWAY": assistant("Go away.")}
    wanted: dict[tuple[str, str], list[Any]] = {}
    for line in CONVERTED.splitlines():
        name, layout, row = line.split(maxsplit=2)
        for word, turn in said.items():
            row = row.replace(word, json.dumps(turn))
        wanted.setdefault((name, layout), []).append(json.loads(row))
    for (name, layout), rows in wanted.items():
        file = write_rows(tmp_path / "a.jsonl", [ROWS[name]])
        out = tmp_path / "b.jsonl"
        data("convert", file, "--to", layout, "--out", out)
        assert read_rows(out) == rows
    assert not [*LAYOUTS["sft"].rows(Group(PROMPT, (Response("a", label=False),)))]


LOST = """
preference | {"p": 0.2, "margin": 1}                       |
kto        | {"p": 0.2, "margin": 1, "weight": 2, "id": 7} | id margin p weight
kto        | {"responses": [1, 2, 2, 3]}                   | rank responses
sft        | {"completion": "a", "score": 1, "label": true} | scores
prompts    | {"completion": "a", "score": 1, "id": 7}      | id
"""


@pytest.mark.parametrize(("layout", "columns", "lost"), cells(LOST))
def test_what_a_layout_has_no_place_for_is_said(
    layout: str, columns: str, lost: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b", **json.loads(columns)}
    if ranks := row.get("responses"):
        row = {"prompt": "Hi", "responses": ["a", "b", "c", "d"], "ranks": ranks}
    elif "completion" in row:
        del row["chosen"], row["rejected"]
    file = write_rows(tmp_path / "a.jsonl", [row] * 2)
    data("convert", file, "--to", layout, "--out", tmp_path / "b.jsonl")
    said = re.findall(r"rows without their '(.*)': 2\n", capsys.readouterr().out)
    assert said == lost.split()


REFUSED = """
convert a.jsonl --to sft --out b.jsonl        | 4 | they are no demonstrations
convert a.jsonl --to sfd --out b.jsonl        | 2 | did you mean 'sft'?
clean a.jsonl --out a.jsonl                   | 2 | is what the rows come from
clean c.removed.jsonl --out c.jsonl           | 2 | is what the rows come from
clean a.jsonl --out b.csv                     | 2 | JSON lines are written
clean a.jsonl --out b.jsonl languages=[en,xx] | 1 | py3langid does not know xx
browse a.jsonl --out b.html languages=[xx]    | 1 | py3langid does not know xx
check a.jsonl languages=[xx]                  | 1 | py3langid does not know xx
check a.jsonl near=2                          | 2 | less than or equal to 1
check no/a.jsonl                              | 2 | no/a.jsonl
clean a.jsonl --out b.jsonl nera=0            | 2 | did you mean 'near'?
"""


@pytest.mark.parametrize(("words", "code", "why"), cells(REFUSED))
def test_what_cannot_be_written_is_an_error(
    words: str, code: str, why: str, here: Path, said: Said
) -> None:
    names = ["a.jsonl", "c.removed.jsonl"]
    before = [write_rows(Path(name), [{"prompt": "Hi"}]).read_bytes() for name in names]
    data(*words.split(), code=int(code))
    assert why in said()
    assert sorted(file.name for file in here.iterdir()) == names
    assert [Path(name).read_bytes() for name in names] == before


def test_packed_rows_are_the_same_bytes_at_any_time(tmp_path: Path) -> None:
    pack(tmp_path / "a.jsonl.gz", [{"n": "\ud800"}])
    packed = (tmp_path / "a.jsonl.gz").read_bytes()
    assert packed[4:8] == bytes(4)  # the header's time
    assert gzip.decompress(packed) == b'{"n": "\\ud800"}\n'
    assert removed_file(Path("x/a.jsonl.gz")) == Path("x/a.removed.jsonl")


def test_a_file_that_is_cut_off_stops_the_command_as_it_stops_a_run(
    tmp_path: Path, said: Said
) -> None:
    path, out = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl"
    lines = (f'{{"prompt": "Question {n}?", "completion": "a"}}' for n in range(3000))
    whole = gzip.compress("\n".join(lines).encode())
    path.write_bytes(whole[: len(whole) // 2])
    data("convert", "--to", "sft", "--out", out, path, code=4)
    assert f"{path}:" in said() and not out.exists()


@pytest.mark.parametrize("rules", [[], ["personal=false"]])
def test_what_was_left_out_is_redacted_too(
    rules: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stock = "As an AI language model I do not write to ann@example.org."
    rows: list[Any] = [
        {"prompt": "Hi", "completion": stock},
        {"prompt": "Hi", "completion": "Hello!"},
        {"prompt": "Hi", "completion": "Ho", "label": "bob@example.org"},
    ]
    file = write_rows(tmp_path / "a.jsonl", rows)
    data("clean", file, "--out", tmp_path / "b.jsonl", *rules)
    removed = read_rows(tmp_path / "b.removed.jsonl")
    assert [row["rule"] for row in removed] == ["stock_phrases", "unreadable"]
    assert ("@example.org" not in json.dumps(removed)) == (not rules)
    assert re.search(r"of these redacted +0\n", capsys.readouterr().out)
    # Neither repeats another row
    data("check", file, *rules)
    out = tmp_path / "c.jsonl"
    data("convert", file, "--to", "sft", "--out", out)
    said = capsys.readouterr().out.partition(f"{out}: ")[2].splitlines()
    assert said[:2] == ["2 rows from 3", "rows not written: 1 (they cannot be read)"]
    assert said[2].startswith(f"bad rows skipped: 1, the first: {file}:3: column 'label' must be")


def test_a_part_has_the_rows_that_a_recipe_reads(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {n} of {n * n}?", "completion": f"{n} of it."} for n in range(40)]
    file, out = write_rows(tmp_path / "a.jsonl", rows), tmp_path / "b.jsonl"
    seen = list[Any]()
    for share in ([0, 0.4], [0.4, 1]):
        entry = f"{{path: {file}, part: {share}}}"
        read = [
            prompt.prompt[0]["content"]
            for prompt in RunData(Path).read(data_of(plain_data(entry, ""), "")).groups
        ]
        seen += read
        data("clean", entry, "--out", out, "near=0")
        assert [row["prompt"] for row in read_rows(out)] == read
        data("convert", entry, "--to", "sft", "--out", out)
        assert [row["prompt"][0]["content"] for row in read_rows(out)] == read
    assert sorted(seen) == sorted(row["prompt"] for row in rows) and seen[0] != rows[0]["prompt"]
    held_out = f"against={{path: {file}, part: [0, 0.4]}}"
    data("check", entry, held_out, "near=0")
    data("check", file, held_out, "near=0", code=Repeated.exit_code)


def test_texts_become_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"Hello there."')
    data("clean", tmp_path / "a.jsonl", "--out", tmp_path / "b.jsonl")
    assert read_rows(tmp_path / "b.jsonl") == [{"text": "Hello there."}]


@pytest.mark.silent_bug(
    "data: cleaning",
    "What cleaning replaces is counted, but nobody sees what it was.",
    "The first details of each kind are shown with their rows, and in a run their outline.",
)
def test_what_was_replaced_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"Who is {n}?", "completion": f"Call 555-123-456{n}."} for n in range(7)]
    rows.append({"prompt": "Who?", "completion": "Write to ann@example.org."})
    file = write_rows(tmp_path / "a.jsonl", rows)
    for words in (["check"], ["clean", "--out", tmp_path / "b.jsonl"]):
        data(words[0], file, *words[1:], "near=0")
        said = " ".join(capsys.readouterr().out.split())
        assert f"[phone] replaces 555-123-4560 ({file}:1), 555-123-4561" in said
        assert "and 2 more; [e-mail] replaces ann@example.org" in said
    stages = {"clean": {"step": "clean", "data": "a.jsonl", "near": 0}}
    out = run(write_recipe(tmp_path, stages))
    made = "".join(each.read_text() for each in out.rglob("*") if each.is_file())
    assert "555-123" not in made and "ann@" not in made
    assert f"[phone] replaces 000-000-0000 ({file}:1)" in made and "xxx@xxxxxxx.xxx" in made


def test_rows_that_redaction_makes_equal_are_kept_once(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "completion": f"Call 555-123-456{n}."} for n in range(3)]
    file = write_rows(tmp_path / "a.jsonl", rows)
    data("clean", file, "--out", tmp_path / "b.jsonl")
    assert read_rows(tmp_path / "b.jsonl") == [{"prompt": "Hi", "completion": "Call [phone]."}]
    (why := tmp_path / "c.removed.jsonl").write_text("old")
    data("clean", tmp_path / "b.jsonl", "--out", tmp_path / "c.jsonl")
    assert why.read_text() == ""
    out = run(write_recipe(tmp_path, {"clean": {"step": "clean", "data": "a.jsonl"}}))
    (made,) = out.rglob("data.jsonl")
    assert len(read_rows(made)) == 1

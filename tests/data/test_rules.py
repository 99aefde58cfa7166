"""Rules, redaction and layouts of rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from alignkit import Group, Message, Response
from alignkit.cli import main
from alignkit_plugins.data.clean import STOCK, Rules, redacted, redacted_group, rows_of

PROMPT = (Message(role="user", content="Write to ann@example.org, please."),)


@pytest.mark.parametrize(
    ("text", "stock"),
    [
        ("As an AI language model, I cannot", True),
        ("I'm just an AI.", True),
        ("as of my last knowledge update", True),
        ("I was developed by OpenAI", True),
        ("As an aide to the minister, she", False),
        ("A language model predicts words.", False),
    ],
)
def test_stock_phrases(text: str, stock: bool) -> None:
    assert bool(STOCK.search(text)) == stock


def test_a_redacted_response_loses_the_tokens_that_it_was_sampled_as() -> None:
    plain = Response(text="Fine.", tokens=(1, 2), tokenizer="0" * 64)
    personal = Response(text="Call +1 415 555 0100.", tokens=(1, 2), tokenizer="0" * 64)
    clean = redacted_group(Group(PROMPT, (plain, personal), meta={"id": "a1" * 20}))
    assert clean.prompt[0]["content"] == "Write to [e-mail], please."
    assert clean.responses == (plain, Response(text="Call [phone]."))
    assert clean.meta == {"id": "a1" * 20}
    untouched = Group(PROMPT[:0], (plain,), id="x")
    assert redacted_group(untouched) is untouched or redacted_group(untouched) == untouched
    assert redacted([{"a": "x ann@example.org"}, 3, None]) == [{"a": "x [e-mail]"}, 3, None]
    call = {
        "completion": "01711234567",
        "id": "01711234567",
        "messages": [{"role": "user", "content": "a1" * 20}],
    }
    said = {
        "completion": "[phone]",
        "id": "01711234567",
        "messages": [{"role": "user", "content": "***"}],
    }
    assert redacted(call) == said


def test_what_a_rule_sees_is_the_answer() -> None:
    def fault(answer: str, **options: Any) -> str:
        found = Rules(**options).fault(rows_of([Group(PROMPT, (Response(text=answer),))])[0])
        return found.rule if found else ""

    german = "Das ist eine sehr schöne Antwort auf die Frage, die du gestellt hast."
    assert fault(german, languages=["en"]) == "languages"
    assert fault(german, languages=["en", "de"]) == fault("Ja.", languages=["en"]) == ""


PAIR = {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away.", "margin": "better"}


def converted(folder: Path, row: Any, layout: str) -> list[Any]:
    (folder / "a.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert (
        main(
            [
                "data",
                "convert",
                str(folder / "a.jsonl"),
                "--to",
                layout,
                "--out",
                str(folder / "b.jsonl"),
            ]
        )
        == 0
    )
    return [
        json.loads(line) for line in (folder / "b.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def test_rows_in_the_layouts_of_other_tools(tmp_path: Path) -> None:
    said = (("user", "Hi"), ("assistant", "Hello!"), ("assistant", "Go away."))
    hi, hello, away = ([{"role": role, "content": text}] for role, text in said)
    alpaca = {"instruction": "Hi", "output": "Hello!"}
    assert converted(tmp_path, alpaca, "messages") == [{"messages": hi + hello}]
    assert converted(tmp_path, alpaca, "sft") == [{"prompt": hi, "completion": hello}]
    assert converted(tmp_path, alpaca, "prompts") == [{"prompt": hi}]
    wanted = {"prompt": hi, "chosen": hello, "rejected": away, "margin": 0.666667}
    assert converted(tmp_path, PAIR, "preference") == [wanted]
    thumbs = [
        {"prompt": hi, "completion": hello, "label": True},
        {"prompt": hi, "completion": away, "label": False},
    ]
    assert converted(tmp_path, PAIR, "kto") == thumbs
    ranking = {
        "prompt": "Hi",
        "responses": [{"text": "Hello!", "rank": 1}, {"text": "Go away.", "rank": 2}],
    }
    assert converted(tmp_path, ranking, "ranked") == [
        {"prompt": hi, "completions": [hello, away], "ranks": [1, 2]}
    ]


def test_what_cannot_be_written_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "Hi"}\n', encoding="utf-8")
    for words, code, said in (
        (
            ["convert", "--to", "sft", "--out", "b.jsonl"],
            4,
            "no row can be written as sft: they are no demonstrations",
        ),
        (["convert", "--to", "sfd", "--out", "b.jsonl"], 2, "did you mean 'sft'?"),
        (["clean", "--out", "a.jsonl"], 2, "is what the rows come from"),
        (["clean", "--out", "b.csv"], 2, "JSON lines are written"),
        (["clean", "--out", "b.jsonl", "languages=[xx]"], 1, "py3langid does not know xx"),
        (["clean", "--out", "b.jsonl", "nera=0"], 2, "did you mean 'near'?"),
    ):
        words = [
            str(tmp_path / word) if word.endswith((".jsonl", ".csv")) else word for word in words
        ]
        assert main(["data", words[0], str(tmp_path / "a.jsonl"), *words[1:]]) == code
        assert said in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.json"])
def test_a_file_that_is_cut_off_stops_the_command_as_it_stops_a_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"Question {number}?", "completion": str(hash(str(number)))}
        for number in range(3000)
    ]
    text = json.dumps(rows) if name == "a.json" else "".join(json.dumps(row) + "\n" for row in rows)
    if "csv" in name:
        text = "prompt,completion\n" + "".join(",".join(row.values()) + "\n" for row in rows)
    whole = gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
    path = tmp_path / name
    path.write_bytes(whole[: len(whole) // 2])
    words = ["data", "convert", "--to", "sft", "--out", str(tmp_path / "b.jsonl")]
    assert main([*words, str(path)]) == 4
    error = capsys.readouterr().err
    assert f"{path}:" in error and not (tmp_path / "b.jsonl").exists()


def test_what_was_left_out_is_redacted_too(tmp_path: Path) -> None:
    row = {
        "prompt": "Hi",
        "completion": "As an AI language model I do not write to ann@example.org.",
    }
    rows = [row, {"prompt": "Hi", "completion": "Hello!"}, {"prompt": 7, "note": "bob@example.org"}]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    for rules, redacted_there in (([], True), (["personal=false"], False)):
        assert (
            main(
                [
                    "data",
                    "clean",
                    str(tmp_path / "a.jsonl"),
                    "--out",
                    str(tmp_path / "b.jsonl"),
                    *rules,
                ]
            )
            == 0
        )
        removed = (tmp_path / "b.removed.jsonl").read_text(encoding="utf-8")
        assert [json.loads(line)["rule"] for line in removed.splitlines()] == [
            "stock_phrases",
            "unreadable",
        ]
        assert ("@example.org" not in removed) == redacted_there


def test_rows_that_redaction_makes_equal_are_kept_once(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "completion": f"Call 555-123-456{n}."} for n in range(3)]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    assert (
        main(["data", "clean", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "b.jsonl")]) == 0
    )
    kept = [{"prompt": "Hi", "completion": "Call [phone]."}]
    assert [
        json.loads(line) for line in (tmp_path / "b.jsonl").read_text(encoding="utf-8").splitlines()
    ] == kept
    stages = {"clean": {"step": "clean", "data": "a.jsonl"}}
    (tmp_path / "s.yaml").write_text(
        json.dumps({"model": {"base": "tiny"}, "stages": stages}), encoding="utf-8"
    )
    assert main(["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "run")]) == 0
    (made,) = (tmp_path / "run").rglob("data.jsonl")
    assert len(made.read_text(encoding="utf-8").splitlines()) == 1

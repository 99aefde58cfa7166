"""`alignkit init`: the recipe fits the data, is valid, runs, and replaces no file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
import yaml

from alignkit.cli import main
from alignkit.recipe.load import load_recipe
from alignkit.recipe.yaml import SCHEMA, shipped_folder
from alignkit_plugins.recipes.init_write import STARTER

KINDS = ("demos", "pairs", "prompts")
DATA = STARTER.parent / "data"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with files to name, in other formats than the example's."""
    rows = {
        "demos": {
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
        },
        "pairs": {"prompt": "hi", "chosen": "ho", "rejected": "no"},
        "prompts": {"prompt": "hi"},
    }
    for name, row in rows.items():
        text = json.dumps(row)
        (tmp_path / f"{name} of 'me'.jsonl").write_text(
            f"{text}\n{text.replace('hi', 'hey')}\n", encoding="utf-8"
        )
    return tmp_path


def test_the_example_runs_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my first {project}: yes"
    assert main(["init", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"next: alignkit run {folder / 'recipe.yaml'}" and len(lines) == 5
    assert main(["run", str(folder / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 0
    done = [
        name
        for name in ("sft", "reward", "align")
        if (tmp_path / "run" / name / "adapter").is_dir()
    ]
    assert len(done) == 3 and (tmp_path / "run" / "report" / "evaluation.json").is_file()


def test_a_folder_may_be_called_like_a_kind(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "demos", str(DATA / "demos.jsonl")]) == 0
    assert Path("demos/recipe.yaml").is_file()


def test_a_file_in_the_folder_has_a_short_name(data: Path) -> None:
    (data / "rows.jsonl").write_bytes((DATA / "demos.jsonl").read_bytes())
    assert main(["init", str(data), f"demos={data}/rows.jsonl"]) == 0
    text = (data / "recipe.yaml").read_text(encoding="utf-8")
    assert "    data: {path: rows.jsonl, part: [0.2, 1]}\n" in text
    assert main(["init", str(data / "a" / "b"), f"demos={data}/rows.jsonl"]) == 0
    assert (
        "data: {path: ../../rows.jsonl, part: [0.2, 1]}"
        in (data / "a" / "b" / "recipe.yaml").read_text()
    )


def test_a_recipe_that_was_written_warns_about_nothing_in_it(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in KINDS[:2]:
        (data / f"{kind}.jsonl").write_bytes((DATA / f"{kind}.jsonl").read_bytes())
    files = [f"{kind}={data}/{kind}.jsonl" for kind in KINDS[:2]]
    assert main(["init", str(data / "new"), "--base", "tiny", *files]) == 0
    assert main(["check", str(data / "new" / "recipe.yaml")]) == 0
    out, err = capsys.readouterr()
    assert "warning" not in out + err


def test_one_prompt_is_held_out_of_nothing(data: Path) -> None:
    (data / "one.csv").write_text("prompt,completion\nIs it?,Yes.\n", encoding="utf-8")
    assert main(["init", str(data / "new"), f"demos={data}/one.csv"]) == 0
    assert list(load_recipe(data / "new" / "recipe.yaml").stages) == ["sft"]


def test_a_format_that_must_be_named_is_named(data: Path) -> None:
    row = {"question": "How many are 1?", "answer": "Many.\n#### 1,001"}
    (data / "g.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert main(["init", str(data), f"demos={data}/g.jsonl"]) == 0
    assert "    data: {gsm8k: g.jsonl}\n" in (data / "recipe.yaml").read_text(encoding="utf-8")
    assert load_recipe(data / "recipe.yaml").stages["sft"].component.name == "sft"


def test_columns_are_renamed_in_the_files_that_have_them(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "faq.csv").write_text("question,answer\nIs it?,Yes.\n", encoding="utf-8")
    (data / "prefs.jsonl").write_text(
        '{"question": "Is it?", "good": "Yes.", "bad": "No."}\n', encoding="utf-8"
    )
    files = [f"demos={data}/faq.csv", f"pairs={data}/prefs.jsonl", "--columns"]
    columns = "prompt=question,completion=answer,chosen=good,rejected=bad"
    assert main(["init", str(data / "new"), *files, columns]) == 0
    recipe = load_recipe(data / "new" / "recipe.yaml")
    trained: list[Any] = [
        stage.settings for stage in recipe.stages.values() if stage.settings is not None
    ]
    read = [settings.data.sources[0].columns for settings in trained]
    assert read == [
        {"prompt": "question", "completion": "answer"},
        {"prompt": "question", "chosen": "good", "rejected": "bad"},
    ]
    for wrong, why in {
        f"{columns},x=y": "no file has a column 'y'",
        f"{columns},prompt=good": "'prompt=good' is not NAME=COLUMN with a new name",
        "prompt": "'prompt' is not NAME=COLUMN",
    }.items():
        assert main(["init", str(data / "other"), *files, wrong]) == 2
        assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("columns", "code", "why", "help"),
    [
        (
            "prompt=nope,completion=Antwort",
            2,
            "prompt=nope: no file has a column 'nope'",
            "columns: id, Frage, Antwort",
        ),
        (
            "prompt=Frage,completion=Antwrot",
            2,
            "no file has a column 'Antwrot'",
            "did you mean 'Antwort'?",
        ),
        (
            "promt=Frage,completion=Antwort",
            4,
            "no format matches",
            "which columns are meant: --columns prompt=A,completi",
        ),
    ],
)
def test_a_wrong_name_of_a_column_is_not_replaced_by_a_guess(
    columns: str, code: int, why: str, help: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "faq.csv").write_text("id,Frage,Antwort\n1,Ist es?,Ja.\n", encoding="utf-8")
    assert main(["init", str(data / "new"), f"demos={data}/faq.csv", "--columns", columns]) == code
    err = capsys.readouterr().err
    assert why in err and help in err


@pytest.mark.parametrize(
    ("option", "header", "columns"),
    [
        ("demos", "question,answer", {"prompt": "question", "completion": "answer"}),
        ("demos", "input,output", {"prompt": "input", "completion": "output"}),
        (
            "pairs",
            "question,good,bad",
            {"prompt": "question", "chosen": "good", "rejected": "bad"},
        ),
        ("pairs", "prompt,better,worse", {"chosen": "better", "rejected": "worse"}),
        ("demos", "prompt,answer", {"completion": "answer"}),
        ("demos", "instruction,output", {}),  # a format of its own
    ],
)
def test_usual_names_of_columns_are_recognized(
    option: str, header: str, columns: dict[str, str], data: Path
) -> None:
    row = ",".join(f"{name} of it" for name in header.split(","))
    (data / "faq.csv").write_text(f"{header}\n{row}\n", encoding="utf-8")
    assert main(["init", str(data / "new"), f"{option}={data}/faq.csv"]) == 0
    stage = next(iter(load_recipe(data / "new" / "recipe.yaml").stages.values()))
    assert stage.settings is not None and stage.settings.data is not None
    assert stage.settings.data.sources[0].columns == columns


def test_which_response_is_better_is_not_guessed(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "odd.csv").write_text("ask,a,b\nask,a,b\n", encoding="utf-8")
    command = ["init", str(data / "new"), f"pairs={data}/odd.csv"]
    assert main(command) == 4
    help = (
        "(columns ask, a, b)",
        "help: say which columns are meant: --columns prompt=A,chosen=B,rejected=C\n",
    )
    assert all(text in err for err in [capsys.readouterr().err] for text in help)
    assert main([*command, "--columns", "prompt=ask,chosen=a,rejected=b"]) == 0


@pytest.mark.parametrize(
    ("name", "text", "stage"),
    [
        ("a.csv", "question,answer\nIs it?,Yes.\n", "sft"),
        ("a.csv", "prompt,good,bad\nIs it?,Yes.,No.\n", "align"),
        ("a.jsonl", '{"prompt": "Is it?", "reply": "Yes."}\n', "sft"),
    ],
)
def test_a_file_alone_is_recognized(
    name: str, text: str, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    assert main(["init", str(tmp_path / name)]) == 0
    assert list(load_recipe(tmp_path / "new" / "recipe.yaml").stages) == [stage]
    assert main(["init", str(tmp_path / name), "--base", "tiny"]) == 2  # the recipe stays


@pytest.mark.parametrize(
    ("name", "text", "code", "said"),
    [
        ("a.csv", "prompt\nIs it?\n", 2, "prompts need pairs"),
        ("a.csv", "x\n1\n", 4, "no format matches the first row (columns x)"),
        ("a.jsonl", "", 4, "it has no row that the recipe reads"),
    ],
)
def test_a_file_that_is_no_data_for_a_recipe(
    name: str, text: str, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["init", str(tmp_path / name)]) == code
    assert said.format(tmp_path / name) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_a_copy_takes_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path), "--from", "smoke", "--base", "tiny"]) == 2
    assert "a recipe is copied unchanged" in capsys.readouterr().err and not list(
        tmp_path.iterdir()
    )


@pytest.mark.parametrize("name", ["recipe.yaml", "data/pairs.jsonl"])
def test_no_file_is_replaced(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    assert main(["init", str(tmp_path)]) == 2
    assert f"already exists, with other contents: {tmp_path / name}" in capsys.readouterr().err
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine" and sorted(
        tmp_path.rglob("*")
    ) == before


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["prompts={prompts}"], 2, "prompts need pairs"),
        (["demos=nowhere.jsonl"], 2, "no such file: nowhere.jsonl"),
        (
            ["demos={prompts}"],
            4,
            "but the file holds prompts without responses (format prompt_only)",
        ),
        (
            ["demos={pairs}"],
            4,
            "(format preference)\nhelp: leave out the kind, and it is read as these, or",
        ),
        (
            ["demos={bad}"],
            4,
            "the file holds none (format prompt_completion)\n"
            "help: compare responses: alignkit label ",
        ),
        (["demos={text}"], 4, "but the file holds none (format text)"),
        (["pairs={demos}"], 4, "(format messages)\nhelp: leave out the kind"),
        (
            ["pairs={prompts}"],
            4,
            "expected pairs of a better and a worse response, but the file holds prompts",
        ),
        (
            ["pairs={open}"],
            4,
            "the file holds none (format unlabeled)\nhelp: compare responses: alignkit label ",
        ),
        (["demos={broken}"], 4, "no usable row; bad rows skipped: 1, the first: "),
        (["demos={strange}"], 4, "no format matches the first row (columns x)"),
    ],
)
def test_data_that_cannot_be_used(
    words: list[str], code: int, reason: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {
        "strange": '{"x": 1}',
        "text": '{"text": "It is."}',
        "open": '{"prompt": "hi", "response_a": "ho", "response_b": "no"}',
        "broken": '{"prompt": ',
        "bad": '{"prompt": "hi", "completion": "no", "label": false}',
    }
    for name, row in others.items():
        (data / f"{name}.jsonl").write_text(row + "\n", encoding="utf-8")
    files = {kind: data / f"{kind} of 'me'.jsonl" for kind in KINDS} | {
        name: data / f"{name}.jsonl" for name in others
    }
    assert main(["init", str(data / "new"), *(word.format(**files) for word in words)]) == code
    assert reason in capsys.readouterr().err and not (data / "new").exists()


def schema_of(recipe: Path) -> dict[str, Any]:
    """The schema that the first line of a recipe names."""
    line = recipe.read_text(encoding="utf-8").partition("\n")[0]
    uri = line.removeprefix("# yaml-language-server: $schema=")
    found: dict[str, Any] = json.loads(
        Path(url2pathname(urlsplit(uri).path)).read_text(encoding="utf-8")
    )
    return found


def test_the_example_is_what_init_writes_for_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for its size, and what it says of itself."""
    assert main(["init", str(tmp_path / "example")]) == 0
    monkeypatch.chdir(tmp_path / "example")
    assert main(["init", "own", "--base", "tiny", *(f"data/{kind}.jsonl" for kind in KINDS)]) == 0
    example, own = (load_recipe(Path(path)) for path in ("recipe.yaml", "own/recipe.yaml"))
    assert [*example.stages] == [*own.stages] and example.resolved["model"]["base"] == own.resolved[
        "model"
    ]["base"]
    for name, stage in example.stages.items():
        theirs = own.stages[name]
        assert stage.component == theirs.component or name == "report"
        if stage.settings is not None and theirs.settings is not None:
            assert (
                stage.settings.data == theirs.settings.data
                and stage.settings.prompts == theirs.settings.prompts
            )


def test_the_first_line_names_a_schema_that_accepts_the_recipe(tmp_path: Path) -> None:
    jsonschema_rs = pytest.importorskip("jsonschema_rs")
    assert main(["init", str(tmp_path / "new")]) == 0
    recipe = tmp_path / "new" / "recipe.yaml"
    assert schema_of(recipe) == json.loads((shipped_folder() / SCHEMA).read_text(encoding="utf-8"))
    assert jsonschema_rs.is_valid(
        schema_of(recipe), yaml.safe_load(recipe.read_text(encoding="utf-8"))
    )


def test_the_schema_knows_the_plugins_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "a cache"))
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from alignkit import *\n"
        "\n"
        "\n"
        "class Calm(Reward):\n"
        "    def score(self, groups):\n"
        "        return {}\n"
        "\n"
        "\n"
        "@hookimpl\n"
        "def register(add):\n"
        "    add('reward', 'calm', Calm)\n",
        encoding="utf-8",
    )
    assert main(["init", str(tmp_path / "new"), "--plugin", str(plugin)]) == 0
    assert "calm" in json.dumps(schema_of(tmp_path / "new" / "recipe.yaml"))
    assert main(["init", str(tmp_path / "other")]) == 0
    assert "calm" not in json.dumps(schema_of(tmp_path / "other" / "recipe.yaml"))


def test_bad_rows_and_turns_of_conversations_give_a_recipe_that_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row for each answer of a conversation, prompts that differ in case only, an empty answer,
    and a comparison.
    """
    rows: list[Any] = [
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": ""}]}
    ]
    for number in range(8):
        turns = [
            {"role": "user", "content": f"Number {number}?"},
            {"role": "assistant", "content": "So."},
        ]
        rows += [
            {"messages": turns[:2]},
            {"messages": [*turns, {"role": "user", "content": "And?"}, turns[1]]},
        ]
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": f"NUMBER  {number}?"},
                    {**turns[1], "content": "Well."},
                ]
            }
        )
    (tmp_path / "demos.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert main(["init", str(tmp_path / "new"), f"demos={tmp_path}/demos.jsonl"]) == 0
    assert (
        "dropped of demos.jsonl: bad rows, 1; the first is demos.jsonl:1: "
        in capsys.readouterr().out
    )
    assert main(["check", str(tmp_path / "new" / "recipe.yaml"), "model.base=tiny"]) == 0

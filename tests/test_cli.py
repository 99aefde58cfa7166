"""The command line: exit codes, where output goes, and what it does not import."""

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from alignkit import cli
from alignkit import plugins as plugins_module
from alignkit.errors import DataError, OutOfResource, RunFailed
from alignkit.io.results import write_record
from alignkit.registry import KINDS
from tests.rows import write_recipe, write_rows

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "trl",
    "peft",
    "accelerate",
    "numpy",
    "packaging.requirements",
)

PLUGIN = """
from alignkit import Algorithm, Step, hookimpl

class Plain(Algorithm):
    def loss(self, batch, out): ...

class Noop(Step): ...

@hookimpl
def register(add):
    add("algorithm", "fake_plain", Plain, "plain")
    add("step", "fake_noop", Noop)
"""
RECIPE = """\
model: {base: org/model}
stages:
  first: {algorithm: fake_plain, data: d.jsonl}
  second: {step: fake_noop}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A valid recipe's arguments."""
    monkeypatch.setattr(plugins_module, "_current", None)
    (tmp_path / "fake.py").write_text(PLUGIN)
    (tmp_path / "d.jsonl").write_text('{"prompt": "q", "completion": "a"}\n')
    (tmp_path / "small.yaml").write_text(RECIPE)
    return [str(tmp_path / "small.yaml"), "--plugin", str(tmp_path / "fake.py")]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Replaces the run; the list receives its arguments."""
    calls: list[tuple] = []
    fake = types.ModuleType("alignkit.runs.run")

    def run_recipe(recipe: Any, out: Path, *more: Any) -> None:
        calls.append((recipe, out, *more))
        for name in recipe.stages:
            (out / name).mkdir(parents=True)
            write_record(out / name, {"summary": {}})

    fake.run_recipe = run_recipe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "alignkit.runs.run", fake)
    return calls


def test_check_prints_the_stages(recipe: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", *recipe]) == 0
    folder = Path(recipe[0]).parent
    read = (
        f"read {folder}/d.jsonl: prompt_completion (recognized), 1 conversation\n"
        "  user       q\n"
        "  assistant  a\n"
    )
    looked = (
        "org/model: not looked at: rows as its chat template writes them, because check makes "
        "and downloads no model\n"
    )
    assert capsys.readouterr().out == f"{read}{looked}ok: small: stages first -> second\n"


def test_characters_that_a_terminal_lacks_do_not_end_a_command(tmp_path: Path) -> None:
    row = {"prompt": "caf\u00e9 \u5b57\u2019", "completion": "yes"}
    write_rows(tmp_path / "demos.jsonl", [row])
    recipe = write_recipe(tmp_path, {"sft": {"algorithm": "sft", "data": "demos.jsonl"}})
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "alignkit", "check", str(recipe)]
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert "user       caf\u00e9 ??".encode("latin-1") in done.stdout


def test_check_stops_at_bad_rows_like_a_run(
    recipe: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with (Path(recipe[0]).parent / "d.jsonl").open("a") as file:
        file.write('{"prompt": "q", "completion": ""}\n')
    assert cli.main(["check", *recipe]) == DataError.exit_code
    assert "d.jsonl:2: the response is empty" in capsys.readouterr().err


def test_check_reports_all_mistakes_on_stderr(
    recipe: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", *recipe, "stages.first.epochs=0", "stages.first.lr=1"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("error: ") == 2 and "Traceback" not in err
    assert "--> override 'stages.first.epochs=0'" in err


def test_run_passes_the_recipe_and_the_folder_on(
    recipe: list[str], runs: list[tuple], tmp_path: Path
) -> None:
    assert cli.main(["run", *recipe, "stages.first.epochs=2", "--out", str(tmp_path / "o")]) == 0
    ((checked, out, *_),) = runs
    assert (checked.stages["first"].settings.epochs, out) == (2, tmp_path / "o")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RunFailed("x"), 1),
        (DataError("x"), 4),
        (OutOfResource("x"), 5),
        (OSError(28, "No space left on device"), 5),
        (OSError(27, "File too large"), 5),
        (OSError(30, "Read-only file system", "out/x"), 5),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("x"), 1),
        (SystemExit(0), 1),
    ],
)
def test_exit_codes(
    recipe: list[str],
    runs: list[tuple],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules["alignkit.runs.run"], "run_recipe", fail)
    monkeypatch.delenv("ALIGNKIT_DEBUG", raising=False)
    assert cli.main(["run", *recipe]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err and err.splitlines()[-1].startswith(
        "interrupted" if code == 130 else "error: "
    ), err


def test_debug_shows_where(
    recipe: list[str],
    runs: list[tuple],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.modules["alignkit.runs.run"], "run_recipe", lambda *args: 1 / 0)
    monkeypatch.setenv("ALIGNKIT_DEBUG", "1")
    assert cli.main(["run", *recipe]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_broken_plugin_file_is_an_error(
    recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fake.py").write_text("import no_such_module_at_all")
    assert cli.main(["check", *recipe]) == 3
    assert "plugin 'fake.py'" in capsys.readouterr().err
    assert cli.main(["plugins", *recipe[1:]]) == 0
    assert "broken: plugin 'fake.py'" in capsys.readouterr().out


def test_plugins_lists(recipe: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", *recipe[1:]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 45 and lines[-1].startswith("`alignkit plugins NAME`")
    assert any(line.startswith("judge (") for line in lines)
    assert "fake_plain (fake.py)" in " ".join(" ".join(lines).split())


def test_plugins_shows_the_options_of_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "dpo"]) == 0
    out = capsys.readouterr().out
    assert "algorithm dpo (alignkit 0." in out and "required stage keys: data" in out
    (row,) = [line.split() for line in out.splitlines() if line.startswith("beta ")]
    assert row[1:5] == ["number,", "above", "0", "0.1"]


def test_plugins_shows_a_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "judge"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["name", "summary", "from"] and {"local_judge", "openai_judge"} <= {
        row[0] for row in rows
    }


def test_a_group_with_a_default_keeps_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "new", "--help"]) == 0
    assert "alignkit plugins new [OPTIONS]" in capsys.readouterr().out
    assert cli.main(["plugins", "--help"]) == 0
    assert "alignkit plugins [OPTIONS] [NAME] COMMAND" in capsys.readouterr().out


def test_schema_covers_extra_plugins(recipe: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "--schema", *recipe[1:]]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["title"] == "alignkit recipe" and '"fake_noop"' in out


MISTAKES = """\
chekc                                                   No such command 'chekc'. Did you mean 'check'?
check                                                   Missing argument 'RECIPE'
data                                                    Missing
labels                                                  Missing
check no-such-recipe                                    no such recipe: no-such-recipe
check runs/one                                          `alignkit run runs/one/
show a@x                                                write RUN/a@x
show small.yaml                                         small.yaml is no run: it is a file
export x.yaml                                           then name a result: alignkit run x.yaml
chat small.yaml                                         small.yaml is a recipe, not a model
chat base                                               write RUN/base
chat x --model gpt2                                     No such option: --model
run x --processes y                                     Invalid value for '--processes'
evaluate tiny --prompts d.jsonl                         add --reward REWARD
plugins dpoo                                            did you mean 'dpo'?
plugins ckeck                                           did you mean 'check'?
plugins dpo ppo                                         No such command 'ppo'
plugins dpo --shema                                     No such option: --shema
check RECIPE epochs=3                                   unknown key 'epochs' --> override
check RECIPE stages.first.algorithm=FAKE_plain          did you mean 'fake_plain'?
check RECIPE stages.first.learning_rate=1000            must be less than or equal to 1, got 1000
check RECIPE stages.second.reward=length stages.second.step=evaluate  did you mean 'rewards'?
check RECIPE first second                               not a stage and the number of a row: first second
check RECIPE first 1 2                                  not a stage and the number of a row: first 1 2
check RECIPE first --plan                               a plan is for all stages
run RECIPE model.base=                                  model.base
"""


@pytest.mark.parametrize("line", MISTAKES.splitlines())
def test_a_mistake_of_who_types_ends_with_2_and_says_what_to_type(
    line: str,
    recipe: list[str],
    runs: list[tuple],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(Path(recipe[0]).parent)
    Path("runs/one").mkdir(parents=True)
    Path("runs/one/recipe.resolved.yaml").write_text("name: one\nstages: {}\n")
    words, said = re.split("   *", line)
    before, _, after = words.partition("RECIPE")
    arguments = [*before.split(), *(recipe if "RECIPE" in words else []), *after.split()]
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and said in " ".join(err.split())
    assert out == "" and "Traceback" not in err and runs == []


def test_a_plugin_that_is_not_there_cannot_be_left_out(recipe: list[str]) -> None:
    assert cli.main(["check", *recipe, "--no-plugin", "nothing-like-it"]) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("alignkit 0.")


def test_help_fits_into_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    listed = overview.split("Commands:")[1]
    commands = re.findall(r"^  (\w+) ", listed, re.MULTILINE)
    assert len(commands) == 13 and "..." not in listed
    for command in commands:
        assert cli.main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert [line for line in shown.splitlines() if len(line) > 80] == []
        assert "\\b" not in shown  # typer's mark of lines to keep, which it then leaves out


@pytest.mark.parametrize("command", ["--help", "check", "plugins", "schema", "bad"])
def test_nothing_heavy_is_imported(recipe: list[str], command: str) -> None:
    arguments = {
        "--help": ["--help"],
        "check": ["check", *recipe],
        "plugins": ["plugins", *recipe[1:]],
    }
    arguments |= {"schema": ["plugins", "--schema", *recipe[1:]]}
    argv = arguments.get(command, ["run", *recipe, "stages.first.epochs=0"])
    code = f"import sys; from alignkit.cli import main; rc = main({argv!r})\n"
    code += (
        f"print(rc, [m for m in {HEAVY} if m in sys.modules], 'alignkit_plugins.table' in "
        "sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    expected = f"{2 if command == 'bad' else 0} [] {command != '--help'}"
    assert result.stdout.splitlines()[-1] == expected


@pytest.mark.parametrize("words", [["init", "--list"], ["plugins"], ["plugins", "ppo"]])
def test_a_pipe_gets_narrow_tables_with_whole_cells(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: list[str],
) -> None:
    long = "a_recipe_whose_name_is_long_" * 5
    (tmp_path / f"{long}.yaml").write_text("# What: nothing\n")
    monkeypatch.setattr("alignkit.recipe.yaml.shipped_folder", lambda: tmp_path)
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    facts = [line for line in lines if line.startswith("  ")] if words == ["plugins", "ppo"] else []
    assert max(len(line.rstrip()) for line in lines if line not in facts) <= 100
    if words == ["init", "--list"]:
        assert "".join(line[:90].split(" ")[0] for line in lines[2:]) == long


def test_check_imports_the_plugins_that_a_recipe_can_mean(recipe: list[str]) -> None:
    code = (
        f"import sys; from alignkit.cli import main; main(['check', *{recipe}, "
        "'model.base=tiny'])\n"
    )
    code += (
        "print([m in sys.modules for m in ('alignkit_plugins.models.tiny', "
        "'alignkit_plugins.ai_feedback.revise')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[True, False]"


def test_everything_that_is_registered_can_be_imported() -> None:
    registry = plugins_module.load_plugins()
    for kind in KINDS:
        assert list(registry.usable(kind)) == registry.names(kind)
    assert not registry.broken


@pytest.mark.parametrize("command", [["plugins"], ["plugins", "--json"], ["--help"], ["--version"]])
def test_a_pipe_that_is_closed_is_nobodys_mistake(command: list[str]) -> None:
    """A real process, whose reader has gone before it prints."""
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-m", "alignkit", *command], stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, b"")

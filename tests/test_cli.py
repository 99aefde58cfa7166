"""The command line: exit codes, where output goes, and what it does not import."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer

from alignkit import __version__, cli
from alignkit.errors import DataError, OutOfResource, RunFailed
from alignkit.host import plugins as plugins_module
from alignkit.host.registry import KINDS
from alignkit_plugins.bases import tiny
from alignkit_plugins.command_line.printing import DefaultGroup
from tests.rows import Said, write_recipe, write_rows

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


def test_check_prints_the_stages(recipe: list[str], printed: Said) -> None:
    assert cli.main(["check", *recipe]) == 0
    shown = """\
read d.jsonl: prompt_completion (recognized), 1 conversation
  user       q
  assistant  a
org/model is not on this machine, so its chat template was not tried
ok: small: stages first -> second
"""
    assert printed().replace(f"{Path(recipe[0]).parent}/", "") == shown


def test_check_says_what_it_did_not_read(
    recipe: list[str], printed: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tries the template of a model that a plugin has made before."""
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path))
    words = ["check", *recipe, "model.base=tiny", "stages.first.data={hub: me/rows}"]
    for expected in (
        "tiny is not on",
        "me/rows[train]: not read, because a run downloads it\ntiny: l",
    ):
        assert cli.main(words) == 0 and expected in printed()
        tiny.source(tmp_path)


def test_characters_that_a_terminal_lacks_do_not_end_a_command(tmp_path: Path) -> None:
    row = {"prompt": "caf\u00e9 \u5b57\u2019", "completion": "yes"}
    write_rows(tmp_path / "demos.jsonl", [row])
    recipe = write_recipe(tmp_path, "sft: {algorithm: sft, data: demos.jsonl}")
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "alignkit", "check", str(recipe)]
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert "user       caf\u00e9 ??".encode("latin-1") in done.stdout


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
    monkeypatch: pytest.MonkeyPatch,
    said: Said,
    error: BaseException,
    code: int,
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr("alignkit.runs.run.run_recipe", fail)
    monkeypatch.delenv("ALIGNKIT_DEBUG", raising=False)
    assert cli.main(["run", *recipe]) == code
    *_, last = said().splitlines()
    assert last.startswith("interrupted" if code == 130 else "error: ")
    with monkeypatch.context() as other:  # a process of several, which starts no others
        other.setenv("RANK", "1")
        other.setattr("alignkit.runs.start.start", lambda *given: code)
        other.setattr("alignkit.host.plugins.launcher", lambda: pytest.fail("starts processes"))
        assert cli.main(["run", *recipe, "--processes", "2"]) == code
    if isinstance(error, ZeroDivisionError):
        monkeypatch.setenv("ALIGNKIT_DEBUG", "1")
        assert cli.main(["run", *recipe]) == 1
        assert "Traceback" in said()


CLOSED = """\
--help
run --help
plugins
plugins ppo
plugins reward
plugins --schema
plugins ppo --json
check smoke
check smoke --plan
check {run}/recipe.resolved.yaml
show {run}
data check {run}/../demos.jsonl
"""


@pytest.mark.parametrize("words", CLOSED.splitlines())
def test_a_pipe_that_nobody_reads_ends_each_command_quietly(
    words: str, house_run: Path, tmp_path: Path
) -> None:
    """As with `| head -1`, however fast it is."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "alignkit", *words.format(run=house_run).split()]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=tmp_path, text=True)
    os.close(write)
    assert done.returncode == 0 and "error" not in done.stderr.lower(), done.stderr


SHOWN = """\
--version             | alignkit 0.
plugins FAKE          | judge ( | fake_plain (fake.py) | `alignkit plugins NAME`
plugins --plugin no.py | broken: plugin 'no.py'
plugins dpo           | algorithm dpo (alignkit 0. | required stage keys: data | beta number, > 0 0.1
plugins sft           | stage defaults: learning_rate 0.001, epochs 2, batch_size 16, warmup_ratio 0.05
plugins judge         | name summary from | local_judge | openai_judge
plugins new --help    | alignkit plugins new [OPTIONS]
plugins --help        | alignkit plugins [OPTIONS] [NAME] COMMAND
plugins --schema FAKE | "title": "alignkit recipe" | "fake_noop"
"""


@pytest.mark.parametrize("line", SHOWN.splitlines())
def test_a_command_shows(line: str, recipe: list[str], printed: Said) -> None:
    words, *wanted = line.split(" | ")
    arguments = [*words.replace("FAKE", "").split(), *(recipe[1:] if "FAKE" in words else [])]
    assert cli.main(arguments) == 0
    out = printed()
    assert not [said for said in wanted if said.strip() not in " ".join(out.split())]
    assert len(out.splitlines()) <= 45 or "--schema" in words


def test_a_command_line_leaves_nothing_to_the_next(printed: Said) -> None:
    """And what names a command in a group has nothing to do with the groups around it."""
    for words, usage in (("new", "new [OPTIONS] {NAME}"), ("", "[OPTIONS] [NAME] COMMAND")) * 2:
        assert cli.main(["plugins", *words.split(), "--help"]) == 0
        assert f"Usage: alignkit plugins {usage}" in " ".join(printed().split())

    def with_argument(item: Annotated[str, typer.Argument()] = "") -> None: ...

    outer, inner = (typer.Typer(cls=DefaultGroup, rich_markup_mode=None) for _ in range(2))
    for app in (inner, outer):
        app.callback(invoke_without_command=True)(with_argument)
    inner.command("leaf")(lambda: None)
    outer.add_typer(inner, name="inner")
    words = ["inner", "--help"]
    assert typer.main.get_command(outer).main(words, "a", standalone_mode=False) == 0
    assert printed().startswith("Usage: a inner [OPTIONS]")


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
check RECIPE --no-plugin nothing-like-it                nothing-like-it
check RECIPE stages.first.epochs=0 stages.first.lr=1    error: unknown key 'lr'
run RECIPE model.base=                                  model.base
"""


@pytest.mark.parametrize("line", MISTAKES.splitlines())
def test_a_mistake_of_who_types_ends_with_2_and_says_what_to_type(
    line: str,
    recipe: list[str],
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
    assert out == "" and "Traceback" not in err
    assert os.listdir("runs") == ["one"]


def test_help_fits_into_a_terminal(monkeypatch: pytest.MonkeyPatch, printed: Said) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["--help"]) == 0
    overview = printed()
    listed = overview.split("Commands:")[1]
    commands = re.findall(r"^  (\w+) ", listed, re.MULTILINE)
    assert len(commands) == 13 and "..." not in listed
    for command in commands:
        assert cli.main([command, "--help"]) == 0
        shown = printed()
        assert [line for line in shown.splitlines() if len(line) > 80] == []
        assert "\\b" not in shown  # typer's mark of lines to keep, which it then leaves out


def in_a_new_process(code: str) -> str:
    """The last line that it prints."""
    code = f"import sys; from alignkit.cli import main; {code}"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_nothing_heavy_is_imported(recipe: list[str]) -> None:
    commands = [["check", *recipe], ["plugins", *recipe[1:]], ["plugins", "--schema", *recipe[1:]]]
    commands.append(["run", *recipe, "stages.first.epochs=0"])
    code = f"print(*map(main, {commands}), [m for m in {HEAVY} if m in sys.modules])"
    assert in_a_new_process(code) == "0 0 0 2 []"


@pytest.mark.parametrize("words", [["init", "--list"], ["plugins"], ["plugins", "ppo"]])
def test_a_pipe_gets_narrow_tables_with_whole_cells(
    monkeypatch: pytest.MonkeyPatch,
    printed: Said,
    tmp_path: Path,
    words: list[str],
) -> None:
    long = "a_recipe_whose_name_is_long_" * 5
    (tmp_path / f"{long}.yaml").write_text("# What: nothing\n")
    monkeypatch.setattr("alignkit.recipe.yaml.shipped_folder", lambda: tmp_path)
    assert cli.main(words) == 0
    lines = printed().splitlines()
    table = [line for line in lines if not line.startswith("  ") or words != ["plugins", "ppo"]]
    assert max(len(line.rstrip()) for line in table) <= 100
    if words == ["init", "--list"]:
        assert "".join(line[:90].split(" ")[0] for line in lines[2:]) == long


def test_check_imports_the_plugins_that_a_recipe_can_mean(recipe: list[str]) -> None:
    modules = ("alignkit_plugins.bases.tiny", "alignkit_plugins.ai_feedback.revise")
    code = f"main({['check', *recipe, 'model.base=tiny']}); print([m in sys.modules for m in {modules}])"
    assert in_a_new_process(code) == "[True, False]"


def test_everything_that_is_registered_can_be_imported() -> None:
    registry = plugins_module.load_plugins()
    for kind in KINDS:
        assert list(registry.usable(kind)) == registry.names(kind)
    assert not registry.broken
    ours = [one for kind in KINDS for one in registry.registrations(kind) if one.is_address]
    classes = {
        one.name: one.target.rpartition(":")[2] for one in ours if one.version == __version__
    }
    others = {
        name for name, cls in classes.items() if cls.lower() != name.strip(".").replace("_", "")
    }
    unlike = {
        "smollm2-135m-instruct",
        "tiny",
        "gguf",
        "environment",
        "format",
        "rating",
        "sycophancy",
    }
    pages = {".html", ".htm", ".mhtml"}
    assert others <= {*unlike, *pages, ".feedback"} and len(classes) > 100, (
        "a class has another's name"
    )


@pytest.mark.parametrize("command", [["plugins"], ["--version"]])
def test_a_pipe_that_is_closed_is_nobodys_mistake(command: list[str]) -> None:
    """A real process, whose reader has gone before it prints."""
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-m", "alignkit", *command], stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, b"")

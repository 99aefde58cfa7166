"""Every command in the documentation is run, or parsed by its program with its recipe checked.

Those that train SmolLM2 are parsed, and their recipes are validated with the same overrides.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from stores import event, opened, pair

from alignkit import cli
from alignkit.host.plugins import load_plugins
from tests.ai_feedback.judge_server import Reply, asked_for, serving, texts_of
from tests.ai_feedback.judge_server import said as replied
from tests.documented_commands import ROOT, Command, commands, write_files
from tests.rows import Said, write_rows

COMMANDS = commands()
EXAMPLES = ROOT / "docs" / "examples"
# Whose test adds a command of its own, and runs what its page says.
NOTES = EXAMPLES / "alignkit-notes" / "README.md"
OURS = [
    command
    for command in COMMANDS
    if command.words[0] == "alignkit"
    and command.page != NOTES
    and "migrate" not in command.words[1:2]
]
# Commands that no test can run, as my-org is not on the hub, others wait for a person, and cells take
# long; they are still parsed.
EXCEPTIONS = """
alignkit evaluate my-org/my-model runs/quickstart/align --prompts '{hub: my-org/prompts, split: test}' --reward length
alignkit chat runs/quickstart/align
alignkit chat runs/quickstart/sft runs/quickstart/align --reward runs/quickstart/helpful
alignkit chat runs/quickstart/align --page --collect chats.feedback
alignkit serve runs/quickstart/base runs/quickstart/align
alignkit show runs/quickstart --csv '>' cells.csv
alignkit label pairs.jsonl --annotator ada --annotator bob --overlap 2
alignkit label pairs.jsonl --annotator ada --annotator bob --host https://labels.example.org
""".strip().splitlines()
# A command that a reader enters after `pip install`, and its plugin.
INSTALLED = "alignkit run quickstart stages.align.algorithm=reinforce"
REINFORCE = EXAMPLES / "alignkit-reinforce" / "alignkit_reinforce.py"
# The first prompt of a kind is the 406th.
QUICK = """
model.base=tiny
model.dtype=float32
stages.sft.max_steps=2
stages.helpful.max_steps=2
stages.safety.max_steps=2
stages.align.iterations=2
stages.align.prompts_per_iteration=4
stages.align.rollout.max_new_tokens=8
stages.report.limit=410
stages.report.sampling.max_new_tokens=8
"""
# What the pages call by these names
FILES = r"""
demos.jsonl {"prompt": "Is it?", "completion": "Yes."}
pairs.jsonl {"prompt": "Is it?", "chosen": "Yes.", "rejected": "Why?"}
graded.jsonl {"prompt": "Is it?", "chosen": "Yes.", "rejected": "Why?", "margin": "significantly"}
safety.jsonl {"prompt": "Is it?", "chosen": "Yes.", "rejected": "Why?"}
rankings.jsonl {"prompt": "Is it?", "responses": ["Yes.", "Why?"], "ranks": [1, 2]}
scored.jsonl {"prompt": "Is it?", "completion": "Yes.", "score": 1}
train.jsonl {"prompt": "How are you today?", "completion": "I am well, thank you, and happy to help."}
test.jsonl {"prompt": "Is it?", "completion": "Yes."}
my.csv instruction,output
my.csv Is it?,Yes.
prompts.jsonl {"prompt": "What is 1 + 2?", "answer": 3}
heldout.jsonl {"prompt": "What is 0 + 2?", "answer": 2}
heldout.jsonl {"prompt": "What is 1 + 2?", "answer": 3}
heldout.jsonl {"prompt": "What is 2 + 2?", "answer": 4}
heldout.jsonl {"prompt": "What is 3 + 2?", "answer": 5}
votes.csv annotator1,annotator2,annotator3
votes.csv 1,1,2
votes.csv 2,2,2
votes.csv 1,2,1
rated.csv Frage,eins,zwei,von Ann,von Tom
rated.csv Is it?,Yes.,Why?,A,A
"""


def label(command: Command) -> str:
    return f"{command.page.relative_to(ROOT)}: {command.text}"


def context_of(command: Any, words: tuple[str, ...]) -> Any:
    """The words as their program parses them. Raises its error for an unknown command, option or
    value.
    """
    name, words = words[0], words[1:]
    while words and words[0] in getattr(command, "commands", {}):
        command, name, words = command.commands[words[0]], words[0], words[1:]
    if hasattr(command, "commands") and not command.invoke_without_command:
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert not words or words[0] in options, f"no command or option {words[0]}"
        return None
    return command.make_context(name, list(words))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages call recipe.yaml, demos.jsonl, my_dpo.py, and so on."""
    folder = tmp_path_factory.mktemp("files")
    for line in FILES.strip().splitlines():
        name, _, row = line.partition(" ")
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(f"{row}\n")
    questions = [{"prompt": f"What is {n} + 2?", "answer": n + 2} for n in range(40)]
    write_rows(folder / "questions.jsonl", questions)
    mix = {"data": str(folder / "demos.jsonl"), "objective": "sft", "weight": 0.1}
    stages = {"align": {"mix": mix}, "report": {"baseline": None}}
    (folder / "recipe.yaml").write_text(json.dumps({"extends": "quickstart", "stages": stages}))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)
    (folder / "my_dpo.py").write_text(next(code for code in blocks if "@hookimpl" in code))
    for name in ("labels", "ann", "bob"):
        item = pair(f"{name} asks", license="CC0-1.0")
        with opened(folder, item, name=f"{name}.feedback") as store:
            store.submit(event(None, {"granted": True}, kind="consent", who=name))
            store.submit(event(item, who=name))
    return folder


def test_every_exception_is_a_command() -> None:
    assert {*EXCEPTIONS, INSTALLED} <= {command.text for command in COMMANDS}


@pytest.mark.parametrize("command", OURS, ids=label)
def test_alignkit_understands(command: Command) -> None:
    try:
        words = cli.common_options(command.filled())
        words = words[: words.index(">")] if ">" in words else words
        context_of(cli.program(), tuple(words))
    except typer.BadParameter:  # such as: `alignkit verify` says
        assert not command.block and all(word.isalpha() for word in command.words)


def own_folder(command: Command) -> Path | None:
    """The folder of the example that a command belongs to."""
    if command.page == ROOT / "docs" / "plugins" / "tutorial.md":
        return EXAMPLES / "alignkit-reinforce"
    return command.page.parent if EXAMPLES in command.page.parents else None


# The same command on another page is the same recipe.
RECIPES = {
    (command.filled(), own_folder(command)): command
    for command in OURS
    if command.words[1] == "run" and len(command.words) > 2
    if not command.is_pattern and command.text not in EXCEPTIONS
}


@pytest.mark.slow
@pytest.mark.parametrize("command", RECIPES.values(), ids=label)
def test_recipes_of_commands_are_valid(
    command: Command,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Said,
) -> None:
    monkeypatch.chdir(
        shutil.copytree(own_folder(command) or files, tmp_path / "files", symlinks=True)
    )
    monkeypatch.setenv("JUDGE_KEY", "secret")
    write_files(command.page, Path())
    for earlier in OURS:  # on the page, which writes the recipe
        if earlier.page == command.page and earlier.words[1] == "init" and runs_here(earlier):
            assert cli.main([*earlier.words[1:]]) == 0, said()
    words = list(command.filled()[2:])
    if (ROOT / words[0]).is_file():  # a recipe of the repository that is not shipped
        words[0] = str(ROOT / words[0])
    for option in ("--out", "--processes", "--only", "--until", "--each", "--jobs"):
        while option in words:
            del words[words.index(option) : words.index(option) + 2]
    plugins = sorted([*Path().glob("alignkit_*.py"), *Path().glob("smallest_*.py")])
    if command.text == INSTALLED:
        plugins = [REINFORCE]
    if "--plugin" not in words:
        words += [word for plugin in plugins for word in ("--plugin", str(plugin))]
    if Path("alignkit_verifiers.py").exists() and importlib.util.find_spec("verifiers") is None:
        pytest.skip("it imports verifiers, which is not installed")
    code = cli.main(["check", *words])
    load_plugins()
    assert code == 0, said()


def test_make_has_the_targets_and_pip_finds_what_is_named() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for command in COMMANDS:
        if command.words[0] == "make":
            assert re.search(rf"^{command.words[1]}:", makefile, re.MULTILINE), label(command)
        for word in command.words[2:] if command.words[0] == "pip" else ():
            name, _, extra = word.rstrip("]").partition("[")
            if extra:
                assert name in (".", "alignkit")
                assert {*extra.split(",")} <= project["optional-dependencies"].keys()
            elif (name.startswith(".") and len(name) > 1) or name.endswith(".txt"):
                assert ((own_folder(command) or ROOT) / name).exists(), label(command)


# What is run: a page's commands in order, in a folder with finished runs.


STORED = "benchmarks/outcomes", "docs/gallery/quickstart"  # runs that come with the project


def runs_here(command: Command) -> bool:
    """Whether a test runs the command: all in blocks, but training only of what needs no
    download.
    """
    if (
        command.words[0] != "alignkit"
        or command.is_pattern
        or command.text in {*EXCEPTIONS, INSTALLED}
    ):
        return False
    if own_folder(command) or command.page.suffix == ".yaml" or command.page.name == "commands.md":
        # Their own tests run the examples, and tests/test_recipes.py the recipes; --help is only
        # parsed
        return False
    return command.block and (
        command.words[1] != "run" or "smoke" in command.words or "model.base=tiny" in command.words
    )


PAGES = sorted({command.page for command in COMMANDS if runs_here(command)})


@pytest.fixture(scope="module")
def finished(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/quickstart, runs/seed1, runs/qlora and runs/my-8b, of the tiny model."""
    folder = Path(
        shutil.copytree(files, tmp_path_factory.mktemp("finished") / "files", symlinks=True)
    )
    for name, more in (("quickstart", []), ("seed1", ["seed=1"])):
        out = str(folder / "runs" / name)
        assert cli.main(["run", "quickstart", *QUICK.split(), *more, "--out", out]) == 0
    for name in ("qlora", "my-8b"):
        (folder / "runs" / name).symlink_to("quickstart")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_run(
    page: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Said,
) -> None:
    monkeypatch.chdir(shutil.copytree(finished, tmp_path / "files", symlinks=True))
    write_files(page, Path())
    for command in COMMANDS:
        if command.page == page and runs_here(command):
            words = [str(ROOT / word) if word in STORED else word for word in command.words]
            monkeypatch.setattr("sys.argv", words)  # for the processes that it starts
            code = cli.main(words[1:])
            assert code == 0, f"{command.text}: {said()}"


@pytest.mark.slow
def test_the_recipe_with_a_judge_from_a_provider_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    """Against a scripted server: the card, the labels, and what they cost."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUDGE_KEY", "secret")
    write_files(ROOT / "docs" / "ai_feedback.md", Path())
    rows = [{"prompt": f"More than {n}?", "chosen": f"{n + 1}", "rejected": "0"} for n in range(9)]
    write_rows(Path("pairs.jsonl"), rows)
    write_rows(Path("prompts.jsonl"), [{"prompt": row["prompt"]} for row in rows])
    with serving(greatest) as server:
        recipe = Path("judged.yaml")
        recipe.write_text(recipe.read_text().replace("https://api.example.org/v1", server.url))
        assert cli.main(["run", "judged.yaml", "model.base=tiny"]) == 0, said()
    assert {*server.authorization} == {"Bearer secret"}
    assert (
        "openai_judge agrees with people in 100%" in Path("runs/judged/card/report.txt").read_text()
    )
    labels = json.loads(Path("runs/judged/labels/stage.json").read_text())["summary"]
    cost = labels["judge_cards"]["openai_judge"]
    assert (labels["labeled"], cost["calls"], cost["tokens"]) == (9, 18, 18 * 140)


def greatest(request: dict[str, Any]) -> Reply:
    """The text that is later in the order of letters is better."""
    word, code = asked_for(request)
    _, first, second = texts_of(request)
    return replied(f"{word} {code}: {1 if first > second else 2}")


@pytest.mark.slow
def test_the_screen_that_the_page_explains_is_that_of_a_run(tmp_path: Path, printed: Said) -> None:
    """Its table, with other numbers: of a random model, which is not paid for sums."""
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    shown, table = re.findall(r"^```text\n(.*?)^```\n\n(.*?)\n\n", page, re.M | re.S)[0]
    reward = "stages.align.reward={length: {unit: characters}}"
    words = ["run", "sums", "model.base=tiny", "stages.align.iterations=1", reward]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 0
    assert measured_in(shown) == measured_in(printed())
    for begins in re.findall(r"^\| `(.*?)` \|", table, re.M):
        assert f"\n{begins}" in f"\n{shown}", begins


def measured_in(screen: str) -> list[str]:
    """The names of a screen's table."""
    lines = screen.partition("─\n")[2].partition("\n\n")[0].splitlines()
    return [re.split(r" {2,}", line)[0] for line in lines]

"""`alignkit plugins check`: what it checks, how a report reads, and that a plugin cannot take the
command with it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignkit import plugins as plugins_module
from alignkit.cli import main
from alignkit.errors import PluginError, RecipeError
from alignkit_plugins.authors import check as checking
from alignkit_plugins.authors.check import check, target_of
from alignkit_plugins.authors.new import example
from tests.test_plugins import MakeDistribution, distribution, fresh

__all__ = ["distribution", "fresh"]  # fixtures

REWARD = """
from alignkit import Field, Options, Reward, hookimpl
class Mine(Reward):
    class Options(Options):
        least: int = Field(description="smallest score")
    def score(self, groups):
        return {"": [float(group.meta["answer"]) for group in groups for _ in group.responses]}
@hookimpl
def register(add):
    add("reward", "mine", Mine)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    monkeypatch.setattr(plugins_module, "_current", None)


def asked(file: Path, kind: str, name: str, **more: Any) -> dict[str, Any]:
    """What the process of a component answers."""
    words = {"file": str(file), "owner": file.name, "options": {}}
    return checking.checked({**words, "kind": kind, "name": name, **more})


def written(name: str, text: str) -> Path:
    file = Path(name)
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    return file


@pytest.mark.parametrize(("kind", "name"), [("step", "head"), ("algorithm", "reinforce")])
def test_options_that_refer_to_something_need_no_value(kind: str, name: str) -> None:
    assert asked(written("mine.py", example(kind)), kind, name) == {"problems": []}


def test_other_options_are_asked_for() -> None:
    answer = asked(written("mine.py", REWARD), "reward", "mine")
    assert answer["skipped"] == ["it needs options: --options '{mine: {least: VALUE}}'"]


def test_a_reader_without_a_file() -> None:
    source = "from alignkit import Reader, hookimpl\n@hookimpl\ndef register(add):\n"
    file = written("mine.py", source + '    add("reader", ".mine", Reader)\n')
    assert "call alignkit.testing.check_reader" in asked(file, "reader", ".mine")["skipped"][0]


ANSWERS: dict[str, dict[str, Any]] = {
    "good": {"problems": []},
    "bad": {"problems": ["Mine: `score` is random", "Mine: `score` changes groups"]},
    "other": {"problems": [], "skipped": ["there is no kit"]},
}


def fake(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let processes answer at once."""

    def ask(target: Any, **request: Any) -> dict[str, Any]:
        first = {"components": [("reward", name) for name in names], "problems": []}
        return ANSWERS[request["name"]] if request else first

    monkeypatch.setattr(checking, "_ask", ask)


def test_a_report_of_good_and_bad(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, "good", "bad", "other")
    target = target_of(str(written("mine.py", REWARD)))
    result = check(target, {})
    assert isinstance(result.error, PluginError)
    assert "mine.py: 1 of 3 components cannot be used or break rules" in str(result.error)
    assert [fact["outcome"] for fact in result.facts["components"]] == ["ok", "FAILED", "skipped"]
    lines = [line.partition("  (")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "ok      reward good",
        "FAILED  reward bad",
        "        Mine: `score` is random",
        "        Mine: `score` changes groups",
        "skipped reward other",
        "        there is no kit",
    ]


def test_what_has_no_kit_does_not_count_as_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = target_of(str(written("mine.py", REWARD)))
    fake(monkeypatch, "good", "other")
    check(target, {})
    assert capsys.readouterr().out.endswith("mine.py: 1 of 2 components follow the rules\n")
    fake(monkeypatch)
    with pytest.raises(RecipeError, match="registers nothing"):
        check(target, {})


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "import ctypes\nctypes.string_at(0)",
            "BROKEN  its process ended with exit code -11 and no result",
        ),
        (
            "import time\ndef wait():\n    time.sleep(999)\nwait()",
            'mine.py", line 3 in wait',
        ),
        ("1 / 0", "ZeroDivisionError: division by zero (mine.py:1)"),
    ],
    ids=["crash", "hang", "error"],
)
def test_a_plugin_cannot_take_the_command_with_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], source: str, said: str
) -> None:
    written("mine.py", f"{source}\n{REWARD}")
    monkeypatch.setattr(checking, "LIMIT", 8.0)
    assert main(["plugins", "check", "mine.py"]) == PluginError.exit_code
    out, err = capfd.readouterr()
    assert said in out and "error: mine.py: 1 of 1 components cannot be used" in err


@pytest.mark.slow
def test_from_the_command_line(
    distribution: MakeDistribution, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """An installed package, in other processes."""
    folder = distribution("x-calm", example("reward"))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    assert main(["plugins", "check", "X_Calm"]) == 0
    out = capfd.readouterr().out
    assert "ok      reward calm" in out and "x-calm 1.2: 1 of 1 components follow the rules" in out


def test_a_folder_is_that_of_an_installed_package() -> None:
    assert main(["plugins", "new", "calm", "--kind", "reward"]) == 0
    with pytest.raises(RecipeError, match="pip install -e alignkit-calm"):
        target_of("alignkit-calm")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no-such-package"], "no file, folder or package with plugins is called no-such-package"),
        (["alignkt"], "did you mean 'alignkit'?"),
        (["."], "pyproject.toml names no project"),
        (["mine.txt"], "mine.txt is not a Python file"),
        (["mine.py", "--options", "[1"], "--options [1 is no mapping of options by name"),
    ],
)
def test_mistakes_in_the_arguments(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    written("mine.txt", "")
    written("mine.py", REWARD)
    assert main(["plugins", "check", *words]) == RecipeError.exit_code
    assert said in capsys.readouterr().err

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


def outcome(file: str, **options: Any) -> tuple[str, str]:
    """What became of the only component of a file, and the lines that the report has on it."""
    result = check(target_of(file), options)
    (fact,) = result.facts["components"]
    return fact["outcome"], "\n".join(fact["problems"])


def written(name: str, text: str) -> str:
    Path(name).write_text(textwrap.dedent(text), encoding="utf-8")
    return name


@pytest.mark.parametrize("kind", ["step", "algorithm"])
def test_options_that_refer_to_something_need_no_value(kind: str) -> None:
    assert outcome(written("mine.py", example(kind))) == ("ok", "")


def test_other_options_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    written("mine.py", REWARD)
    assert outcome("mine.py") == ("skipped", "")
    assert "it needs options: --options '{mine: {least: VALUE}}'" in capsys.readouterr().out
    found, problems = outcome("mine.py", mine={"least": 1})
    assert found == "FAILED" and "KeyError" in problems


def test_a_reader_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    source = "from alignkit import Reader, hookimpl\n@hookimpl\ndef register(add):\n"
    written("mine.py", source + '    add("reader", ".mine", Reader)\n')
    assert outcome("mine.py") == ("skipped", "")
    assert "call alignkit.testing.check_reader" in capsys.readouterr().out


def test_a_report_of_good_and_bad(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What has no kit does not count as checked."""

    def fake(registration: Any, options: Any) -> None:
        if registration.name == "bad":
            raise AssertionError("Mine: `score` is random\nMine: `score` changes groups")
        if registration.name == "other":
            raise checking.Skipped("there is no kit")

    monkeypatch.setattr(checking, "check_component", fake)
    names = "good", "bad", "other"
    more = "".join(f'    add("reward", "{name}", Mine)\n' for name in names)
    written("mine.py", REWARD.replace('    add("reward", "mine", Mine)\n', more))
    result = check(target_of("mine.py"), {})
    assert isinstance(result.error, PluginError)
    assert "mine.py: 1 of 3 components cannot be used or break rules" in str(result.error)
    assert [fact["outcome"] for fact in result.facts["components"]] == ["FAILED", "ok", "skipped"]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "FAILED  reward bad",
        "        Mine: `score` is random",
        "        Mine: `score` changes groups",
        "ok      reward good",
        "skipped reward other",
        "        there is no kit",
    ]


def test_a_module_that_cannot_be_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    written("mine.py", f"1 / 0\n{REWARD}")
    assert main(["plugins", "check", "mine.py"]) == PluginError.exit_code
    out, err = capsys.readouterr()
    assert "BROKEN" in out and "ZeroDivisionError: division by zero (mine.py:1)" in out
    assert "error: mine.py: 1 of 1 components cannot be used" in err


def test_an_installed_package(distribution: MakeDistribution, capsys: Any) -> None:
    distribution("x-calm", example("reward"))
    assert main(["plugins", "check", "X_Calm"]) == 0
    out = capsys.readouterr().out
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
        (["mine.py", "--options", "[1]"], "--options [1] is no mapping of options by name"),
    ],
)
def test_mistakes_in_the_arguments(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    written("mine.txt", "")
    written("mine.py", REWARD)
    assert main(["plugins", "check", *words]) == RecipeError.exit_code
    assert said in capsys.readouterr().err

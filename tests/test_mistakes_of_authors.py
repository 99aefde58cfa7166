"""What an author gets wrong is told with the plugin, the line and what to write, wherever a user
meets it.
"""

from pathlib import Path

import pytest
import typer

from alignkit.cli import main
from alignkit.commands import add_commands
from alignkit.errors import plugin_options
from alignkit.plugins import load_plugins
from tests.test_plugins import MakeDistribution, distribution, fresh

__all__ = ["distribution", "fresh"]  # fixtures

GOOD = """
from alignkit import Reward, hookimpl
class Mine(Reward):
    def score(self, groups): ...
@hookimpl
def register(add):
    add("reward", "mine", Mine)
"""
# What a package does at import, and what a user then reads.
AT_IMPORT = {
    "exit": ("import sys\nsys.exit(3)", "SystemExit: 3 (fake_x_pack.py:2)"),
    "module": ("import no_such_module", "No module named 'no_such_module' (fake_x_pack.py:1)"),
    "line": ("\n\n1 / 0", "ZeroDivisionError: division by zero (fake_x_pack.py:3)"),
    "name": (GOOD.replace('"mine"', '"my reward!"'), "reward 'my reward!': a name has letters"),
    "argument": (GOOD.replace("(add)", "(adding)"), "hook 'register'"),
}


@pytest.mark.parametrize("mistake", AT_IMPORT)
def test_an_import_that_fails_breaks_only_itself(
    distribution: MakeDistribution, mistake: str
) -> None:
    source, message = AT_IMPORT[mistake]
    distribution("x-pack", f"{source}\n{GOOD if 'register' not in source else ''}")
    (broken,) = load_plugins().broken
    assert str(broken).startswith(
        "plugin 'x-pack' (x-pack 1.2) failed to load: "
    ) and message in str(broken)


@pytest.mark.parametrize("mistake", ["exit", "name"])
def test_a_broken_plugin_is_named_where_its_reward_is_asked_for(
    distribution: MakeDistribution, capsys: pytest.CaptureFixture[str], tmp_path: Path, mistake: str
) -> None:
    source, message = AT_IMPORT[mistake]
    distribution("x-pack", f"{source}\n{GOOD if 'register' not in source else ''}")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-8")
    (tmp_path / "r.yaml").write_text(
        "model: {base: tiny}\nstages:\n  honest: {algorithm: grpo, data: p.jsonl, reward: mine}\n",
        encoding="utf-8",
    )
    assert main(["check", str(tmp_path / "r.yaml")]) in (2, 3)
    text = capsys.readouterr().err
    assert "x-pack" in text and message in text


def test_a_reward_of_two_packages_names_both(
    distribution: MakeDistribution, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    distribution("x-one", GOOD)
    distribution("x-two", GOOD)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-8")
    (tmp_path / "r.yaml").write_text(
        "model: {base: tiny}\nstages:\n  mind: {algorithm: grpo, data: p.jsonl, reward: mine}\n",
        encoding="utf-8",
    )
    main(["check", str(tmp_path / "r.yaml")])
    assert "write 'x-one:mine' or 'x-two:mine'" in capsys.readouterr().err


def test_commands_are_left_out_with_their_package(
    monkeypatch: pytest.MonkeyPatch, distribution: MakeDistribution
) -> None:
    entries = next(
        distribution("x-pack", "raise SystemExit(7)").glob("*.dist-info/entry_points.txt")
    )
    entries.write_text(
        entries.read_text().replace("[alignkit]", "[alignkit.commands]"), encoding="utf-8"
    )
    said: list[str] = []
    monkeypatch.setattr(
        "alignkit.commands.print", lambda text, file: said.append(text), raising=False
    )
    add_commands(typer.Typer())
    monkeypatch.setitem(plugin_options, "--no-plugin", ["x-pack"])
    add_commands(typer.Typer())
    assert len(said) == 1 and "no commands of x-pack" in said[0] and "SystemExit: 7" in said[0]


@pytest.mark.parametrize("command", [["init", "new"], ["data", "check", "rows.jsonl"]])
def test_no_plugin_is_heard_by_every_command(
    distribution: MakeDistribution,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    distribution("x-pack", "from pathlib import Path; Path('loaded').touch()\nraise SystemExit(7)")
    main([*command, "--no-plugin", "x-pack"])
    assert not Path("loaded").exists()
    main(command)
    assert Path("loaded").exists()

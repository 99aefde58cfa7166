"""What an author gets wrong is told with the plugin, the line and what to write, wherever a user
meets it.
"""

from pathlib import Path

import pytest

from alignkit.cli import main, program
from tests.rows import Said
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
RECIPE = """\
model: {base: tiny}
stages:
  honest: {algorithm: grpo, data: p.jsonl, reward: mine}
"""
EXIT = ("x-pack", f"import sys\ndef end(): sys.exit(3)\nend()\n{GOOD}")
NAME = ("x-pack", GOOD.replace('"mine"', '"my reward!"'))


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        ([EXIT], "SystemExit: 3 (fake_x_pack.py:2)"),
        ([NAME], "reward 'my reward!': a name has letters"),
        ([("x-one", GOOD), ("x-two", GOOD)], "write 'x-one:mine' or 'x-two:mine'"),
    ],
)
def test_a_broken_plugin_is_named_where_its_reward_is_asked_for(
    packages: list[tuple[str, str]],
    message: str,
    distribution: MakeDistribution,
    said: Said,
    tmp_path: Path,
) -> None:
    for name, source in packages:
        distribution(name, source)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-8")
    (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
    assert main(["check", str(tmp_path / "r.yaml")]) in (2, 3)
    text = said()
    assert packages[0][0] in text and message in text


def test_commands_are_left_out_with_their_package(
    said: Said, distribution: MakeDistribution
) -> None:
    entries = next(
        distribution("x-pack", "raise SystemExit(7)").glob("*.dist-info/entry_points.txt")
    )
    entries.write_text(
        entries.read_text().replace("[alignkit]", "[alignkit.commands]"), encoding="utf-8"
    )
    program.cache_clear()
    for words in (["--no-plugin", "x-pack"], [], ["--no-plugin", "x-pack"]):
        assert main([*words, "--version"]) == 0
        text = said()
        assert (text == "") == bool(words), text
        assert words or ("no commands of x-pack" in text and "SystemExit: 7" in text)


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

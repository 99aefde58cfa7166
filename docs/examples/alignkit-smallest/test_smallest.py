"""The kits of their kinds, and a run with most of them; the rest runs where packages are written."""

from importlib.metadata import entry_points
from pathlib import Path

from smallest_algorithm import Nudge
from smallest_engine import Plain
from smallest_environment import Guess
from smallest_filter import AllDiffer
from smallest_judge import Shorter
from smallest_monitor import Patience

from alignkit.cli import main
from alignkit.testing import (
    check_algorithm,
    check_engine,
    check_environment,
    check_filter,
    check_judge,
    check_monitor,
)

HERE = Path(__file__).parent
INSTALLED = any(point.name == "smallest_engine" for point in entry_points(group="alignkit"))
PLUGINS: list[str] = []
for file in () if INSTALLED else sorted(HERE.glob("smallest_[!l]*.py")):  # but the launcher
    PLUGINS += ["--plugin", str(file)]
GUESS = '<tool_call>{{"name": "guess", "arguments": {{"number": {}}}}}</tool_call>'


def test_they_conform() -> None:
    check_algorithm(Nudge)
    check_engine(Plain)
    check_environment(Guess, turns=[*map(GUESS.format, range(1, 6)), "I give up."])
    check_filter(AllDiffer)
    check_judge(Shorter)
    check_monitor(Patience)


def test_a_run_uses_all_of_them(tmp_path: Path) -> None:
    assert main(["run", str(HERE / "recipe.yaml"), "--out", str(tmp_path), *PLUGINS]) == 0
    lines = (tmp_path / "rewards.tsv").read_text("utf-8").splitlines()
    assert [line.split("\t")[:2] for line in lines] == [
        ["brief", "1"],
        ["brief", "2"],
        ["brief", "3"],
        ["play", "1"],
    ]

"""A class of TRL plays here; the conformance kit; the recipe checks."""

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alignkit_trl_environment import TRL

from alignkit import DataError, Group, RunFailed
from alignkit.cli import main
from alignkit.testing import check_environment

HERE = Path(__file__).parent
INSTALLED = any(
    point.name == "alignkit_trl_environment" for point in entry_points(group="alignkit")
)
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_trl_environment.py")]
GAME = """
class Game:
    def __init__(self, most=9):
        self.most, self.reward = most, 0.0

    async def reset(self, answer, seed):
        self.answer, self.seed = answer, seed
        return f"Guess from 1 to {self.most}."

    def guess(self, number: int):
        \"\"\"Guess the number.

        Args:
            number: the guess.
        \"\"\"
        if number > self.most:
            raise ValueError("too large")
        self.reward = float(number == self.answer)
        return number == self.answer
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "game.py").write_text(GAME, encoding="utf-8")
    return tmp_path


def environment(folder: Path, **options: Any) -> TRL:
    made = TRL(TRL.Options(**{"path": "game.py", "factory": "Game", **options}))
    made.check(folder)
    made.random = np.random.default_rng(1)
    return made


def test_tools_are_called_and_the_attribute_is_the_reward(folder: Path) -> None:
    made = environment(folder, kwargs={"most": 5})
    assert made.reset({"prompt": [], "answer": 4, "other": 1}) == "Guess from 1 to 5."
    assert made.tools().keys() == {"guess"}
    assert made.tools()["guess"](number=2) == "False" and made.get_reward() == 0.0
    assert made.tools()["guess"](number=4) == "True" and made.get_reward() == 1.0
    with pytest.raises(ValueError, match="too large"):  # which the policy reads
        made.tools()["guess"](number=6)


def test_mistakes_are_named(folder: Path) -> None:
    with pytest.raises(RunFailed, match="no such file"):
        environment(folder, path="gone.py")
    with pytest.raises(RunFailed, match="KeyError: 'Gone'"):
        environment(folder, factory="Gone")
    with pytest.raises(DataError, match="needs the argument 'answer'"):
        environment(folder).check_prompts([Group(({"role": "user", "content": "?"},))])


def test_it_conforms(folder: Path) -> None:
    call = '<tool_call>\n{"name": "guess", "arguments": {"number": 4}}\n</tool_call>'
    options = {"path": "game.py", "factory": "Game"}
    check_environment(
        TRL,
        options,
        rows=[{"prompt": "?", "answer": 4}],
        turns=[call, call, "Done."],
        folder=folder,
    )


def test_the_recipe_checks() -> None:
    assert main(["check", str(HERE / "recipe.yaml"), *PLUGIN]) == 0

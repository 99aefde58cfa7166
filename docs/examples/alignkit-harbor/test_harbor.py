"""A verifier scores answers without the user's keys and within its time; the conformance kits; the
recipe checks.
"""

from importlib.metadata import entry_points
from pathlib import Path

import pytest
from alignkit_harbor import Harbor, HarborTasks

from alignkit import Group, Response, RunFailed
from alignkit.cli import main
from alignkit.testing import check_format, check_reward

HERE = Path(__file__).parent
INSTALLED = any(point.name == "alignkit_harbor" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_harbor.py")]
TEST = (
    '#!/bin/bash\nif [[ "$(cat /app/answer.txt)" == cat && -z "$KEY" ]]; then R=1; else R=0; fi\n'
)
OPTIONS = {"tasks": "tasks", "confirm_run_unsafe_code": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path / "tasks" / "cat", TEST + "echo $R > /logs/verifier/reward.txt\n")
    return tmp_path


def make(task: Path, test: str) -> None:
    (task / "tests").mkdir(parents=True)
    (task / "task.toml").write_text('[metadata]\ndifficulty = "easy"\n', encoding="utf-8")
    (task / "instruction.md").write_text(
        "Write the word cat to /app/answer.txt.\n", encoding="utf-8"
    )
    (task / "tests" / "test.sh").write_text(test, encoding="utf-8")


def group(*texts: str, task: str = "cat") -> Group:
    return Group(
        ({"role": "user", "content": "?"},), tuple(map(Response, texts)), meta={"task": task}
    )


def reward(folder: Path, **options: object) -> Harbor:
    made = Harbor(Harbor.Options(**OPTIONS, **options))
    made.check(folder)
    return made


def test_the_verifier_scores_the_answer_without_its_thoughts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", "secret")
    answers = group("cat", "dog", "<think>dog</think>\n\ncat")
    assert reward(folder).score([answers]) == [1.0, 0.0, 1.0]


def test_a_verifier_without_a_reward_or_an_end_gives_none(folder: Path) -> None:
    make(folder / "tasks" / "slow", "sleep 300\necho 1 > /logs/verifier/reward.txt\n")
    make(folder / "tasks" / "nan", "echo nan > /logs/verifier/reward.txt\n")
    assert reward(folder, seconds=1).score(
        [group("cat", task="slow"), group("cat", task="nan")]
    ) == [None, None]


def test_scripts_run_only_if_the_recipe_says_so(folder: Path) -> None:
    with pytest.raises(RunFailed, match="confirm_run_unsafe_code"):
        Harbor(Harbor.Options(tasks="tasks")).check(folder)


def test_a_task_that_would_change_the_machine_is_a_bad_row(folder: Path) -> None:
    make(folder / "tasks" / "dog", "apt-get -y install cowsay\n")
    rows = dict(HarborTasks().rows_of_folder(folder / "tasks"))
    assert rows[1]["difficulty"] == "easy" and "`apt-get -y install`" in str(rows[2])


def test_it_conforms(folder: Path) -> None:
    check_format(HarborTasks)
    check_reward(Harbor, OPTIONS, groups=[group("cat", "dog"), group("cat")], folder=folder)


def test_the_recipe_checks() -> None:
    assert main(["check", str(HERE / "recipe.yaml"), *PLUGIN]) == 0

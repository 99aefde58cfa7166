"""Tasksets become prompts, rewards are those of verifiers with their weights, tools share the
task's state.
"""

import json
import re
import shutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verifiers.v1")

from alignkit_verifiers import Verifiers, VerifiersEnvironment, VerifiersTasks

from alignkit import Group, Response, RunFailed
from alignkit.cli import main
from alignkit.testing import check_environment, check_reward, check_step

HERE = Path(__file__).parent
INSTALLED = any(point.name == "alignkit_verifiers" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_verifiers.py")]
SUMS, TOOLS = ({"path": "sums_v1.py", "taskset": name} for name in ("Sums", "ToolSums"))
ROWS = [
    {"prompt": f"What is 1 + {b}?", "task": {"prompt": f"What is 1 + {b}?", "answer": 1 + b}}
    for b in (2, 3)
]
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'


def reward(**options: Any) -> Verifiers:
    made = Verifiers(Verifiers.Options(**{**SUMS, **options}))
    made.check(HERE)
    return made


def group(*responses: Response) -> Group:
    row = ROWS[0]
    return Group(
        ({"role": "user", "content": row["prompt"]},), responses, meta={"task": row["task"]}
    )


def test_rewards_are_summed_with_their_weights() -> None:
    answers = (Response("It is 3."), Response("4"), Response("3", truncated=True))
    assert reward().score([group(*answers)]) == [1.0, 0.0, 0.9]


def test_all_conform() -> None:
    check_reward(Verifiers, SUMS, groups=[group(Response("3"), Response("5"))], folder=HERE)
    check_step(VerifiersTasks, {**SUMS, "limit": 3}, folder=HERE)
    check_environment(VerifiersEnvironment, TOOLS, rows=ROWS, turns=[CALL, "It is 3."], folder=HERE)
    check_environment(VerifiersEnvironment, TOOLS, rows=ROWS, turns=[CALL] * 4, folder=HERE)


def test_tools_change_the_state_that_rewards_and_stops_read() -> None:
    environment = VerifiersEnvironment(VerifiersEnvironment.Options(**TOOLS))
    environment.folder = HERE

    def turn(text: str, calls: int) -> Any:
        call = {
            "id": "0",
            "type": "function",
            "function": {"name": "add", "arguments": {"a": 1, "b": 2}},
        }
        message = {
            "role": "assistant",
            "content": text,
            **({"tool_calls": [call] * calls} if calls else {}),
        }
        environment.turns = (*environment.turns, message)
        answers = environment.respond(message)
        environment.turns = (*environment.turns, *(answers or ()))
        return answers

    row = {**ROWS[0], "prompt": [{"role": "user", "content": ROWS[0]["prompt"]}]}
    environment.reset(row)
    assert turn("", 1) == [{"role": "tool", "name": "add", "content": "3", "tool_call_id": "0"}]
    assert turn("It is 3.", 0) is None
    assert environment.get_reward() == {"asked_once": 0.5, "correct": 1.0}
    environment.turns = ()
    environment.reset(row)
    assert turn("", 3) is not None
    assert turn("", 1) is None  # the task's stop
    assert environment.get_reward() == {"asked_once": 0.0, "correct": 0.0}


def test_a_reward_that_fails_is_none_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = (HERE / "sums_v1.py").read_text(encoding="utf-8")
    (tmp_path / "sums_v1.py").write_text(
        code.replace("return float(bool", "1 / 0; return float(bool")
    )
    made = Verifiers(Verifiers.Options(**SUMS))
    made.check(tmp_path)
    assert made.score([group(Response("3"))]) == [None]
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"path": None, "taskset": "no-such-v1"},
            "'no-such-v1' is not installed: there is no module no_such_v1",
        ),
        (
            {"path": None, "taskset": "json"},
            "json cannot be loaded: TypeError: taskset module 'json' exports no",
        ),
        ({"taskset": "Sumz"}, "has no class 'Sumz'\nhelp: did you mean 'Sums'"),
        ({"taskset": "SumTask"}, "SumTask is no subclass of verifiers.v1.Taskset"),
        ({"config": {"lest": 3}}, "Sums cannot be loaded: ValidationError"),
        ({"taskset": "ToolSums"}, "tasks of ToolSums have tools\nhelp: set 'environment"),
    ],
)
def test_mistakes_are_told_before_a_run(options: Any, message: str) -> None:
    with pytest.raises(RunFailed, match=re.escape(message)):
        reward(**options)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "SumTask(vf.Task[SumData]):\n",
            "SumTask(vf.Task[SumData]):\n    NEEDS_CONTAINER = True\n\n",
            "need a container",
        ),
        (
            "SumData(prompt=f",
            "SumData(image='python:3.11', prompt=f",
            "needs the container image python:3.11",
        ),
        ("SumData(prompt=f", "SumData(description=f", "has no prompt"),
        (
            "Config]):\n    def load",
            "Config]):\n    INFINITE = True\n\n    def load",
            "help: set 'limit'",
        ),
    ],
)
def test_tasks_that_need_more_than_text_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    code = (HERE / "sums_v1.py").read_text(encoding="utf-8")
    assert old in code
    (tmp_path / "sums_v1.py").write_text(code.replace(old, new, 1))
    recipe = Path(shutil.copy(HERE / "recipe.yaml", tmp_path))
    assert (
        main(["run", str(recipe), "model.base=tiny", "--out", str(tmp_path / "run"), *PLUGIN]) != 0
    )
    assert message in capsys.readouterr().err


def test_the_recipe_plays_and_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("sums_v1.py", "recipe.yaml"):
        shutil.copy(HERE / name, tmp_path)
    less = ["model.base=tiny", "stages.align.iterations=1", "stages.tasks.config={last: 3}"]
    main(["run", str(tmp_path / "recipe.yaml"), *less, "--out", str(tmp_path / "run"), *PLUGIN])
    # A random model answers nothing, at length
    assert "all 64 rewards were -0.1" in capsys.readouterr().err
    rows = (tmp_path / "run" / "tasks" / "data.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 9
    assert json.loads(rows[1])["meta"]["task"]["answer"] == 3

"""Tasks as Harbor stores them (task.toml, instruction.md, tests/test.sh), in a form of text only,
without containers.

Source: https://www.harborframework.com/docs/tasks. The instruction is the prompt, the answer is
written to a file of a temporary folder, and the task's verifier scores it. Scripts name absolute
paths of a container. In the copy that runs, `/app`, `/tests` and `/logs` are folders in the
temporary one. The script runs with the user's rights: the limits of time, memory and file size stop
accidents, not attacks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import alignkit
from alignkit import (
    Add,
    BadRow,
    Context,
    DataError,
    Field,
    Format,
    Group,
    Message,
    Reward,
    RunFailed,
    hookimpl,
)
from alignkit_plugins.text.rows import column_of
from alignkit_plugins.text.spoken import answer_of

COLUMN = "task"  # of the prompts: the name of the task's folder
ANSWER = "app/answer.txt"  # where verifiers look for the answer
# Seconds of the CPU, KiB of memory, and blocks of 512 bytes of a file.
LIMITED = 'ulimit -c 0; ulimit -t "$1"; ulimit -v 4194304; ulimit -f 131072; "$0"'
INSTALLS = re.compile(
    r"\b(?:apt|apt-get|apk|dnf|yum|sudo)\s+(?:-\S+\s+)*(?:install|add|update|upgrade)\b"
)
# Not after $(...) or ${...}
CONTAINER = re.compile(r"(?<![\w./)}-])/(?=(?:app|tests|logs)(?![\w.-]))")

log = logging.getLogger(__name__)


class HarborTasks(Format):
    """A folder of task folders. The columns of task.toml's `metadata` are kept for rewards."""

    example = '{"task": "reverse-cat", "instruction": "Reverse the word cat."}'
    wants = (
        "a folder of task folders, or rows with task and instruction; never detected, so name "
        "the format"
    )

    def rows_of_folder(self, folder: Path) -> Iterator[tuple[int, Any]]:
        tasks = sorted(
            path
            for path in folder.iterdir()
            if path.is_dir() and not path.name.startswith((".", "_"))
        )
        if (folder / "task.toml").is_file() or not tasks:
            raise DataError(f"{folder} holds no folders of tasks; name the folder that holds them")
        for number, task in enumerate(tasks, 1):
            try:
                yield number, read_task(task)
            except BadRow as error:
                yield number, BadRow(f"task '{task.name}': {error}")

    def read(self, row: Any) -> Group:
        prompt = (Message(role="user", content=self.text(row, "instruction").strip()),)
        return Group(prompt, meta={**self.rest(row, "instruction"), COLUMN: self.text(row, COLUMN)})


def read_task(task: Path) -> dict[str, Any]:
    """What a task's files say. Raises BadRow for what is missing, or cannot work without a
    container.
    """
    try:
        names = ("task.toml", "instruction.md", "tests/test.sh")
        written, instruction, script = [(task / name).read_text(encoding="utf-8") for name in names]
        config = tomllib.loads(written)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadRow(f"cannot read it: {error}") from error
    if config.get("steps"):
        raise BadRow("it has [[steps]], and only tasks of one step work without a container")
    if found := INSTALLS.search(script):
        raise BadRow(
            f"tests/test.sh calls `{found[0]}`, which would change your machine; delete such lines"
        )
    # JSON has no dates, as TOML has
    metadata = json.loads(json.dumps(config.get("metadata", {}), default=str))
    return {**metadata, COLUMN: task.name, "instruction": instruction}


class Harbor(Reward):
    """The reward that the task's verifier writes. None if it writes none, or takes too long."""

    class Options(alignkit.Options):
        tasks: Path = Field(
            description="folder of the task folders that the prompts' column `task` names"
        )
        key: str = Field(
            "reward", description="which reward, if a verifier writes several into reward.json"
        )
        seconds: float = Field(30, gt=0, description="longest time of a verifier")
        confirm_run_unsafe_code: bool = Field(
            False,
            description="run the tasks' scripts on this machine, where they can do what you can",
        )

    options: Options
    _folder = Path()

    def check(self, folder: Path) -> None:
        self._folder = folder
        if not self._tasks.is_dir():
            raise RunFailed(f"reward 'harbor': {self._tasks} is no folder")
        if not self.options.confirm_run_unsafe_code:
            raise RunFailed(
                "reward 'harbor' runs the tasks' scripts on this machine, without a container: "
                "they can read and change your files, and use the network\n"
                "help: read them, then set 'confirm_run_unsafe_code: true'"
            )

    @property
    def _tasks(self) -> Path:
        return self._folder / self.options.tasks.expanduser()

    def check_prompts(self, groups: Sequence[Group]) -> None:
        for group in groups:
            name = column_of(
                "harbor", group, COLUMN, "read them with the format 'harbor', or add the column"
            )
            if (
                not isinstance(name, str)
                or Path(name).name != name
                or not (self._tasks / name / "tests").is_dir()
            ):
                raise DataError(f"harbor: there is no task {name!r} in {self._tasks}")

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.check(context.folder)

    def score(self, groups: Sequence[Group]) -> Sequence[float | None]:
        self.check_prompts(groups)
        jobs = [
            (str(group.meta[COLUMN]), answer_of(response))
            for group in groups
            for response in group.responses
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(
                pool.map(lambda job: verify(self._tasks / job[0], job[1], self.options), jobs)
            )


def verify(task: Path, answer: str, options: Harbor.Options) -> float | None:
    """Run a task's verifier on an answer. Returns its reward; None, and a warning, if there is
    none.
    """
    with tempfile.TemporaryDirectory(prefix="alignkit-", ignore_cleanup_errors=True) as name:
        root = Path(name)
        logs = root / "logs" / "verifier"
        logs.mkdir(parents=True)
        (root / ANSWER).parent.mkdir()
        (root / ANSWER).write_text(answer, encoding="utf-8", errors="replace")
        shutil.copytree(task / "tests", root / "tests")
        for file in (path for path in (root / "tests").rglob("*") if path.is_file()):
            text = file.read_text(encoding="utf-8", errors="surrogateescape")
            file.write_text(
                CONTAINER.sub(f"{root}/", text), encoding="utf-8", errors="surrogateescape"
            )
        (root / "tests" / "test.sh").chmod(0o755)
        try:
            run_script(root, options.seconds)
            return reward_in(logs, options.key)
        except (OSError, TypeError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
            log.warning(
                "harbor: task '%s' gave no reward: %s: %s", task.name, type(error).__name__, error
            )
            return None


def run_script(root: Path, seconds: float) -> None:
    """Run tests/test.sh, without the user's keys. What it started ends with it. Raises
    TimeoutExpired.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    process = subprocess.Popen(
        ["/bin/sh", "-c", LIMITED, str(root / "tests" / "test.sh"), str(math.ceil(seconds))],
        cwd=root / "app",
        env={"PATH": path, "HOME": str(root), "TMPDIR": str(root), "LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def reward_in(logs: Path, key: str) -> float:
    """What a verifier wrote, as Harbor reads it: reward.json, else reward.txt. Raises ValueError
    and others.
    """
    if (logs / "reward.json").is_file():
        value = json.loads((logs / "reward.json").read_text(encoding="utf-8"))[key]
    else:
        value = (logs / "reward.txt").read_text(encoding="utf-8")
    reward = float(value)
    if not math.isfinite(reward):
        raise ValueError(f"{reward} is not finite")
    return reward


@hookimpl
def register(add: Add) -> None:
    add(
        "format",
        "harbor",
        HarborTasks,
        "Harbor: a folder of tasks, each with task.toml, instruction.md and tests/test.sh",
    )
    add("reward", "harbor", Harbor, "a Harbor task's verifier script, without a container")

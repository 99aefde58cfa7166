"""Every shipped recipe runs on the tiny model to its end, by each command of its header."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ai_feedback.judge_server import (
    KEYS,
    LINE,
    Reply,
    asked_for,
    one_token,
    said,
    serving,
    texts_of,
)
from tests.documented_commands import commands
from tests.net.changes import ROOT
from tests.pages import Reader
from tests.people.labelers import label

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
SERVER = "http://localhost:8000/v1"  # in a header
TINY = "model.base=tiny"
WAITS = 75  # for people


def overrides(name: str) -> list[list[str]]:
    """Those of each command of the header, on the tiny model: first those of the one that names
    it, which the others need as well.
    """
    found = []
    for command in commands():
        if command.page == ROOT / "recipes" / f"{name}.yaml":
            words = list(command.words[3:])
            found.append(words[: words.index("--out")] if "--out" in words else words)
    on_tiny = [words for words in found if TINY in words]
    assert on_tiny or name == "smoke", f"recipes/{name}.yaml: no command for the tiny model"
    (own,) = on_tiny or [[]]
    return [own, *([*own, *words] for words in found if words and words != own)]


def answered(request: dict[str, Any]) -> Reply:
    """What a server says that is asked for a critique, a revision or a verdict."""
    if request.get("logprobs"):
        *_, first, second = texts_of(request)
        return one_token(0.9 if first > second else 0.1)
    asked = request["messages"][-1]["content"]
    if LINE.search(asked) or KEYS.search(asked):
        word, code = asked_for(request)
        return said(f"{word} {code}: 1")
    return said("It could be kinder.")


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs(name: str, tmp_path: Path) -> None:
    """People label when a run asks them. Stages of an earlier command are reused."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ALIGNKIT_REPORT": "1"}
    for words in overrides(name):
        with serving(answered) as server:
            line = shlex.join(words).replace(SERVER, server.url)
            command = [sys.executable, "-m", "alignkit", "run", name, *shlex.split(line)]
            code, printed = WAITS, ""
            while code == WAITS:
                done = subprocess.run(
                    [*command, "--out", "out"],
                    cwd=tmp_path,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                code, printed = done.returncode, done.stdout + done.stderr
                if code == WAITS:
                    assert "alignkit label" in printed and label(tmp_path / "out/labels.feedback")
        assert code == 0 and "Traceback" not in printed, f"{command}:\n{printed}"
        page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        Reader(page)
        assert len(page) > 10_000

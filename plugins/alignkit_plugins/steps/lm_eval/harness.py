"""Runs the harness in a process of its own, which ends with the run, and turns what it says into errors for people."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from alignkit import RunFailed
from alignkit.stopping import should_stop

COMMAND = ("-P", "-m", "alignkit_plugins.steps.lm_eval.process")
LOG = "lm_eval.log"
LAST_LINES = 5  # of the log, in an error
# Nothing is reported to anybody, and a question on the terminal is answered with no.
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}


def check_tasks(request: Mapping[str, Any], folder: Path) -> None:
    """Raise RunFailed for names that are no tasks. folder: the recipe's, where relative paths start."""
    with tempfile.TemporaryDirectory(prefix="alignkit-lm-eval-") as place:
        _ask("names", request, folder, Path(place))


def check_data(request: Mapping[str, Any], folder: Path, out: Path) -> None:
    """Load the tasks with their data. Raises RunFailed for one that cannot be loaded."""
    _ask("data", request, folder, out)


def evaluate(request: Mapping[str, Any], folder: Path, out: Path) -> str:
    """The harness's results as it writes them, in JSON. request: also has the `model` folder, and one for `samples`."""
    return str(_ask("evaluate", request, folder, out)["results"])


def _ask(what: str, request: Mapping[str, Any], folder: Path, out: Path) -> dict[str, Any]:
    """The answer of the harness's process. out: for its log."""
    with tempfile.TemporaryDirectory(prefix="alignkit-lm-eval-") as place:
        asked, answered = Path(place) / "request.json", Path(place) / "answer.json"
        asked.write_text(json.dumps({**request, "what": what, "answer": str(answered)}), encoding="utf-8")
        code = _run(asked, folder, out / LOG)
        if not answered.is_file():
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise RunFailed(f"lm_eval: its process {how}{_said(out / LOG)}")
        answer: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
    if "problem" in answer:
        raise RunFailed(f"lm_eval: {answer['problem']}")
    return answer


def _run(request: Path, folder: Path, log: Path) -> int:
    """Run the process to its end, and return its exit code. It ends with this one, however that ends."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, *COMMAND, str(request)],
            stdin=subprocess.PIPE,  # closed if this process is killed
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **QUIET},
            start_new_session=True,  # Ctrl-C is for the run, which ends this process
        )
        try:
            while True:
                should_stop()
                try:
                    return process.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that the harness has started
            with process:  # waits, and closes the pipe
                pass


def _said(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LAST_LINES:]
    return ":\n" + "\n".join(lines) if lines else ""


# Python code that the YAML files of tasks name


# The harness's tag for a function of a Python file next to the YAML, and YAML's own for Python objects.
CODE = ("!function", "tag:yaml.org,2002:python/")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the harness's parser, so that both see the same


def code_in(folder: Path) -> list[str]:
    """The places, as `FILE:LINE`, at which tasks in a folder, or files that they include, name Python code."""
    seen: set[Path] = set()
    return [place for path in sorted(folder.rglob("*.yaml")) for place in _places(path.resolve(), seen)]


def _places(path: Path, seen: set[Path]) -> Iterator[str]:
    if path in seen or not path.is_file():
        return
    seen.add(path)
    try:
        root = yaml.compose(path.read_bytes(), Loader=_LOADER)  # bytes, because YAML may be UTF-16
    except yaml.YAMLError:
        return  # the harness cannot read it either
    nodes = list(_nodes(root, set()))
    for node in nodes:
        if str(node.tag).startswith(CODE):
            yield f"{path}:{node.start_mark.line + 1}"
    for included in _included(nodes):
        yield from _places((path.parent / included).resolve(), seen)


def _nodes(node: Any, seen: set[int]) -> Iterator[Any]:
    """A node and all below it, each once: an alias may even point to a node around it."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    yield node
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _nodes(key, seen)
            yield from _nodes(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _nodes(item, seen)


def _included(nodes: Sequence[Any]) -> Iterator[str]:
    """The files that a task takes its other keys from. A key at any depth counts: `<<` moves keys up."""
    for node in nodes:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value == "include":
                items = value.value if isinstance(value, yaml.SequenceNode) else [value]
                yield from (str(item.value) for item in items)

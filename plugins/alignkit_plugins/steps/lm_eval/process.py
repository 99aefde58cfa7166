"""The process in which lm-evaluation-harness runs: reads a request, and writes one answer.

Only what has kept its meaning from version to version is used: `simple_evaluate`, and the names and data of
`TaskManager`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

UNSAFE = "confirm_run_unsafe_code"
MOST = 5  # names in a message


class Problem(BaseException):
    """What the user did wrong or lacks, with help. The harness catches exceptions, which must not hide it."""


def main(request_file: str) -> None:
    """Answer the request in a file."""
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    try:
        answer = answered(request)
    except Problem as problem:
        answer = {"problem": str(problem)}
    path = Path(request["answer"])
    new = path.with_suffix(".new")
    new.write_text(json.dumps(answer), encoding="utf-8")
    new.replace(path)


def _end_with_the_run() -> None:
    while os.read(sys.stdin.fileno(), 1):  # which holds no lock, so that this process can end
        pass
    if os.getpgrp() == os.getpid():  # those that the harness has started end, too
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def answered(request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request. Raises Problem."""
    if not request[UNSAFE]:
        _refuse_code(request["include_path"] is not None)
    manager, names = _tasks(request)
    if request["what"] == "data":
        for name in names:
            _load(manager, name, request)
    return {"results": _results(manager, names, request)} if request["what"] == "evaluate" else {}


# --- tasks


def _tasks(request: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The harness's task manager, and the names that the request means. Raises Problem for unknown ones."""
    from lm_eval.tasks import TaskManager

    wanted, own = request["tasks"], request["include_path"]
    if own is not None:  # the harness's own 15,000 tasks take it many seconds
        manager = TaskManager(include_path=own, include_defaults=False)
        if set(wanted) <= set(manager.all_subtasks):
            return manager, list(wanted)
    manager = TaskManager(include_path=own)
    names: list[str] = []
    for task in wanted:
        found = manager.match_tasks([task])
        if not found:
            _unknown(task, manager.all_tasks, own)
        names += [name for name in found if name not in names]
    return manager, names


def _unknown(task: str, known: Sequence[str], own: str | None) -> NoReturn:
    import difflib

    near = difflib.get_close_matches(task, known, MOST)
    near += [name for name in known if name.startswith(f"{task}_") and name not in near][: MOST - len(near)]
    places = f"the harness and {own}" if own else "the harness; include_path adds tasks of your own"
    names = f"did you mean {', '.join(repr(name) for name in near)}?" if near else "`lm-eval ls tasks` lists them"
    raise Problem(f"no task '{task}' among {len(known)} of {places}\nhelp: {names}")


def _load(manager: Any, name: str, request: Mapping[str, Any]) -> None:
    """Build a task, which reads its data."""
    load = getattr(manager, "load", None) or manager.load_task_or_group
    try:
        loaded = load([name])
    except Exception as error:
        _raise_if_code(error)
        raise Problem(f"task '{name}' cannot be loaded: {_first_line(error)}\nhelp: {_help(error)}") from error
    tasks = loaded.get("tasks", loaded) if isinstance(loaded, dict) else {}
    for task in tasks.values():
        if getattr(task, "UNSAFE_CODE", False) and not request[UNSAFE]:
            raise Problem(f"task '{name}' runs code that the model writes\nhelp: set '{UNSAFE}: true' to allow it")


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _help(error: BaseException) -> str:
    causes, kinds = [error], list[str]()
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    for each in causes:
        kinds += [kind.__name__ for kind in type(each).__mro__]
    if {"ConnectionError", "ConnectError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"} & set(kinds):
        return (
            "its data are on the Hugging Face hub, which cannot be reached; connect this machine, run the task once on "
            "one that is connected and copy HF_HOME, or give tasks with local data by include_path"
        )
    if "DatasetNotFoundError" in kinds:
        return "check dataset_path of the task; a gated data set needs HF_TOKEN"
    if "FileNotFoundError" in kinds:
        return "check dataset_path and data_files of the task; relative paths start at the recipe's folder"
    return "check the task's YAML; lm_eval.log in the stage's folder has more"


# --- code that nobody has read


def _refuse_code(own: bool) -> None:
    """Keep templates of a user's own tasks from reaching Python, and metrics from being downloaded."""
    import evaluate
    from jinja2.sandbox import SandboxedEnvironment

    import lm_eval.utils

    def refuse(name: str, *args: Any, **kwargs: Any) -> NoReturn:
        raise Problem(f"the metric '{name}' is code from the hub\nhelp: set '{UNSAFE}: true' to run it")

    evaluate.load = refuse
    plain = getattr(lm_eval.utils, "env", None)
    if own and plain is None:
        raise Problem(f"this version renders templates without a sandbox\nhelp: read them and set '{UNSAFE}: true'")
    if own and plain is not None:
        sandbox = SandboxedEnvironment(
            loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
        )
        sandbox.filters.update(plain.filters)
        lm_eval.utils.env = sandbox


def _raise_if_code(error: BaseException) -> None:
    from jinja2.exceptions import SecurityError

    if isinstance(error, SecurityError):
        raise Problem(
            f"a template of a task reaches for Python: {error}\nhelp: read it, then set '{UNSAFE}: true'"
        ) from error


# --- results


def _results(manager: Any, names: Sequence[str], request: Mapping[str, Any]) -> str:
    """The results in JSON, as the harness writes them."""
    import lm_eval

    keys = ("num_fewshot", "limit", "batch_size", "device", "apply_chat_template", "system_instruction", UNSAFE)
    try:
        found = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": request["model"], **request["model_args"]},
            tasks=list(names),
            task_manager=manager,
            gen_kwargs=request["gen_kwargs"] or None,
            log_samples=request["samples"] is not None,
            **{key: request[key] for key in keys} | {"device": device_of(request["device"])},
        )
    except Exception as error:
        _raise_if_code(error)
        raise
    samples = found.pop("samples", None) or {}
    if request["samples"] is not None:
        folder = Path(request["samples"])
        folder.mkdir(parents=True, exist_ok=True)
        for task, rows in samples.items():
            lines = "".join(f"{_json(row)}\n" for row in rows)
            (folder / f"{task}.jsonl").write_text(lines, encoding="utf-8")
    return _json(found, indent=2)


def device_of(device: str | None) -> str:
    """The device that a request names, or the GPU if there is one. Versions of the harness take none for a GPU."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _json(value: Any, indent: int | None = None) -> str:
    from lm_eval.utils import handle_non_serializable

    return json.dumps(value, indent=indent, default=handle_non_serializable, ensure_ascii=False)


if __name__ == "__main__":
    main(sys.argv[1])

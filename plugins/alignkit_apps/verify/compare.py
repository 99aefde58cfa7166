"""The differences between the files of a stage and those of its rerun: which file, where in it, and how large."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.io.changes import Change, changes
from alignkit.io.digest import file_digest
from alignkit.io.stage_results import read_record

METRICS = "metrics.jsonl"
# What each stage writes first, so that the first difference is the one that others follow from.
_ORDER = (METRICS, "rollouts", "kept", "adapter")
_NO_RESULTS = ("map", "checkpoints", "stage.json")  # stores of unfinished work; stage.json is compared by its facts
_PLACES = ("base_model_name_or_path",)  # where the base model was: another machine may keep it elsewhere
_LONGEST = 60  # characters of a value in a message


class Difference(NamedTuple):
    """A file that differs, and its first difference in words. step: in which it is; None if it is in no step."""

    file: str
    text: str
    step: int | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.text}"


class Compared(NamedTuple):
    """What was compared. files: how many. steps: lines of metrics. differences: in the order in which files appear."""

    files: int
    steps: int
    differences: list[Difference]


def compare(old: Path, new: Path, steps: int | None = None) -> Compared:
    """Compare the folder of a stage with that of its rerun.

    steps: of the rerun, which has ended after so many that the stage itself has more; None: it is complete.
    """
    before, now = read_record(old), read_record(new)
    digests: Mapping[str, str] = before.get("files", {})
    files = [path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()]
    made = now["files"] if steps is None else {name: file_digest(new / name) for name in files}
    names = sorted((digests.keys() | made.keys()) if steps is None else made.keys(), key=_place)
    names = [name for name in names if name.split("/")[0] not in _NO_RESULTS]
    if steps is not None:  # the adapter of an unfinished stage is none, or that of its best epoch yet
        names = [name for name in names if not name.startswith("adapter/")]
    found: list[Difference] = []
    for name in names:
        if digests.get(name) != made.get(name):
            found += _differences(name, old / name, new / name, steps, name in digests)
    if steps is None:
        one, other = ({key: record.get(key) for key in ("policy", "summary")} for record in (before, now))
        found += [Difference("stage.json", text) for text in _first(one, other)]
    return Compared(len(names), _count(new / METRICS), found)


def is_time(name: str) -> bool:
    """Whether a metric measures time, which no rerun repeats."""
    return name in ("time", "seconds") or name.startswith("seconds/") or name.endswith(("_per_second", "_runtime"))


def _place(name: str) -> tuple[int, str]:
    first = name.split("/")[0]
    return (_ORDER.index(first) if first in _ORDER else len(_ORDER), name)


def _count(metrics: Path) -> int:
    return len(metrics.read_bytes().splitlines()) if metrics.is_file() else 0


def _differences(name: str, old: Path, new: Path, steps: int | None, recorded: bool) -> Iterator[Difference]:
    """The first difference of a file, if it has one that counts. recorded: whether stage.json has its checksum."""
    if not new.is_file():
        yield Difference(name, "only in the run")
    elif not old.is_file():
        text = "deleted from the run; the rerun's has another checksum" if recorded else "only in the rerun"
        yield Difference(name, text)
    elif name == METRICS:
        yield from _of_metrics(old, new, steps)
    else:
        kinds = {".jsonl": _in_rows, ".json": _in_json, ".safetensors": _in_tensors}
        yield from (Difference(name, text) for text in kinds.get(old.suffix, _in_bytes)(old, new))


def _of_metrics(old: Path, new: Path, steps: int | None) -> Iterator[Difference]:
    before, now = _rows(old), _rows(new)
    before = before if steps is None else before[: len(now)]
    for number, text in _first_row(before, now):
        step = before[number - 1].get("step", number)
        yield Difference(METRICS, f"step {step}, {text}", step if isinstance(step, int) else number)
        return
    if len(before) != len(now):
        yield Difference(METRICS, f"{len(before)} lines in the run, {len(now)} here")


def _untimed(value: Any) -> Any:
    """Plain data without times and places."""
    if isinstance(value, Mapping):
        return {name: _untimed(item) for name, item in value.items() if not is_time(name) and name not in _PLACES}
    return [_untimed(item) for item in value] if isinstance(value, list) else value


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _first(old: Any, new: Any) -> list[str]:
    """The first difference of plain data in words, if there is one: `loss: 0.5 in the run, 0.25 here (off by 0.25)`."""
    return [
        f"{'.'.join(map(str, change.path)) or 'everything'}: {_sizes(change)}"
        for change in islice(changes(_untimed(old), _untimed(new)), 1)
    ]


def _first_row(old: Sequence[Any], new: Sequence[Any]) -> Iterator[tuple[int, str]]:
    """The number of each row that differs, and its first difference in words."""
    for number, (one, other) in enumerate(zip(old, new, strict=False), 1):
        yield from ((number, text) for text in _first(one, other))


def _in_rows(old: Path, new: Path) -> Iterator[str]:
    before, now = _rows(old), _rows(new)
    for number, text in _first_row(before, now):
        yield f"row {number}, {text}"
        return
    if len(before) != len(now):
        yield f"{len(before)} rows in the run, {len(now)} here"


def _in_json(old: Path, new: Path) -> Iterator[str]:
    yield from _first(*(json.loads(file.read_text(encoding="utf-8")) for file in (old, new)))


def _in_tensors(old: Path, new: Path) -> Iterator[str]:
    from safetensors import safe_open

    differing, first = 0, ""
    with safe_open(old, framework="pt") as before, safe_open(new, framework="pt") as now:
        names = dict.fromkeys([*before.keys(), *now.keys()])
        for name in names:
            known = name in before.keys(), name in now.keys()  # noqa: SIM118  # it is no mapping
            if not all(known):
                differing, first = differing + 1, first or f"{name} is only {'in the run' if known[0] else 'here'}"
                continue
            one, other = before.get_tensor(name), now.get_tensor(name)
            if one.shape != other.shape or one.dtype != other.dtype:
                text = f"{name} is {one.dtype} {list(one.shape)} in the run, {other.dtype} {list(other.shape)} here"
            elif (one != other).any():
                text = f"{name} by up to {(one.double() - other.double()).abs().max().item():.2g}"
            else:
                continue
            differing, first = differing + 1, first or text
    if differing:
        yield f"{differing} of {len(names)} tensors, the first: {first}"
    else:
        yield from _in_bytes(old, new)


def _in_bytes(old: Path, new: Path) -> Iterator[str]:
    before, now = old.read_bytes(), new.read_bytes()
    first = next((place for place, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), None)
    if first is not None:
        line = before.count(b"\n", 0, first) + 1
        yield f"line {line}, byte {first + 1} of {len(before)}"
    elif len(before) != len(now):
        yield f"{len(before)} bytes in the run, {len(now)} here"


def _sizes(change: Change) -> str:
    """`0.5 in the run, 0.25 here (off by 0.25)`"""
    texts = [json.dumps(value, ensure_ascii=False) for value in (change.old, change.new)]
    old, new = (text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..." for text in texts)
    numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in (change.old, change.new))
    return f"{old} in the run, {new} here" + (f" (off by {abs(change.new - change.old):.2g})" if numbers else "")

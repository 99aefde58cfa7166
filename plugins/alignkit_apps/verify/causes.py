"""Differences between the record of a stage and this process, which may be why the bytes of a rerun differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alignkit.io.changes import Change, changes
from alignkit_apps.verify.source import of_code

UNKNOWN = "nothing that the record knows is different here"
_ON_A_GPU = "a GPU may add numbers in another order each time"
_ADVICE = {"threads": "set OMP_NUM_THREADS={old}", "kernels": "set ALIGNKIT_KERNELS={old}"}
# Facts of the machine.
_LIKELIEST = ("code", "processes", "threads", "instructions", "processor", "device", "python", "system")


def causes(record: Mapping[str, Any], parts: Mapping[str, Any], machine: Mapping[str, Any]) -> list[str]:
    """Differences between a stage's record and this process, the likeliest cause first.

    record: its stage.json. parts: of its hash, now. machine: `machine_of` now.
    """
    found = list(changes(record["depends_on"], parts))
    versions = [change for change in found if change.path[0] == "versions"]
    plugins = {_plugin(change, record["depends_on"]) for change in found if of_code(change)}
    kernels = [change for change in found if change.path[0] == "kernels"]
    texts = [f"{change.path[-1]} {change.old} -> {change.new}" for change in versions]
    texts += [f"the code of plugin {name} has changed" for name in sorted(plugins)]
    texts += [_with_advice("kernels", change.old, change.new) for change in kernels]
    return texts + list(_of_machine(record.get("machine"), machine))


def not_recorded(record: Mapping[str, Any]) -> str:
    """What the record does not say; empty for one that says all."""
    if record.get("machine"):
        return ""
    return "an earlier version made this result, and did not record processor, threads and device"


def unknown(machine: Mapping[str, Any]) -> str:
    """The likely cause if nothing is known to be different."""
    if machine.get("device") not in (None, "cpu"):
        return f"{UNKNOWN}, but {_ON_A_GPU}"
    return f"{UNKNOWN}: a plugin that draws from a stream of its own, or hardware that miscalculates?"


def _of_machine(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> Iterator[str]:
    if not before:
        return
    for name in _LIKELIEST:
        new = now.get(name)
        old = before.get(name, new)  # earlier versions recorded less
        if old == new:
            continue
        yield "the code of alignkit has changed" if name == "code" else _with_advice(name, old, new)


def _with_advice(name: str, old: Any, new: Any) -> str:
    advice = f" ({_ADVICE[name].format(old=old)})" if name in _ADVICE and old is not None else ""
    return f"{name} {old} -> {new}{advice}"


def _plugin(change: Change, parts: Mapping[str, Any]) -> str:
    """The name of the plugin whose code has changed: next to its `source` in the parts of the hash."""
    value: Any = parts
    for key in change.path:
        if key in ("source", "version"):
            return str(value.get("name", key)) if isinstance(value, Mapping) else str(key)
        if key == "recognized":
            found = value.get("recognized") if isinstance(value, Mapping) else None
            return str(found[0]) if found else str(key)
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int):
            value = value[key]
    return ".".join(map(str, change.path))

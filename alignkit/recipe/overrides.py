"""Overrides from the command line: `a.b=c` sets a value, `~a.b` deletes one."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit.engine import WITHOUT_PLUGIN
from alignkit.errors import Problem, did_you_mean
from alignkit.recipe.yaml_nodes import Failed, Mark, Node, Reader


def apply_override(root: Node, text: str, problems: list[Problem]) -> None:
    """Apply `a.b=c` or `~a.b` to a recipe. Raises Failed if that is impossible."""
    mark = Mark(f"override '{text}'")
    delete = text.startswith("~") and "=" not in text
    path, equals, value = text.removeprefix("~" if delete else "").partition("=")
    segments = path.strip().split(".")
    if not all(segments) or not (delete or equals):
        raise Failed(mark.problem("an override must be key.path=value, or ~key.path to delete a key"))
    if segments[0] == "extends":
        raise Failed(mark.problem("'extends' cannot be overridden: it is applied before overrides"))
    if delete:
        _delete(root, segments, mark)
        return
    _require_stage(root, segments, mark)
    reader = Reader(value, mark.file, in_file=False)
    node = reader.read()
    problems += reader.problems
    parent = root
    for position, segment in enumerate(segments[:-1]):
        parent = _descend(parent, segment, segments[:position], mark)
    _assign(parent, segments, node, mark)


def _require_stage(root: Node, segments: Sequence[str], mark: Mark) -> None:
    """Check that the stage of a key exists: a misspelled stage must not add a new one."""
    stages = root.value.get("stages")
    known = stages.value if stages is not None and isinstance(stages.value, dict) else {}
    if segments[0] == "stages" and len(segments) > 2 and segments[1] not in known:
        name = segments[1]
        help = did_you_mean(name, known) or f"stages: {', '.join(known)}; write 'stages.{name}={{...}}' to add it"
        raise Failed(mark.problem(f"no stage '{name}'", help))


def _descend(node: Node, segment: str, before: Sequence[str], mark: Mark) -> Node:
    """Return the child to write into. Create a missing mapping; validation checks it later."""
    if isinstance(node.value, list):
        return _item(node, segment, before, mark)
    _open(node, segment, before, mark, f"{{{segment}: {{...}}}}")
    if segment not in node.value:
        node.value[segment] = Node({}, mark)
        node.keys[segment] = mark
    child: Node = node.value[segment]
    return child


def _open(node: Node, segment: str, before: Sequence[str], mark: Mark, instead: str = "{...}") -> None:
    """Turn a node into a mapping: an empty one becomes `{}`, and the component `ppo` becomes `{ppo: {}}`.

    instead: what could replace another value.
    """
    if isinstance(node.value, dict):
        return
    if node.value is None:
        node.value = {}
    elif node.value == segment:
        node.value, node.keys = {segment: Node({}, mark)}, {segment: node.mark}
    else:
        where = ".".join(before)
        message = f"'{where}' is {node.value!r}, so it has no key '{segment}'"
        inside = f"write '{where}.{node.value}.{segment}=...' for an option of {node.value}, or "
        named = before[-1] in ("algorithm", "engine", "judge", "reward") and isinstance(node.value, str)
        named = named and node.value not in WITHOUT_PLUGIN.get(before[-1], ())  # these have no options
        raise Failed(mark.problem(message, f"{inside if named else 'write '}'{where}={instead}' to replace it"))


def _item(node: Node, segment: str, before: Sequence[str], mark: Mark) -> Node:
    """Return an item of a list."""
    length = len(node.value)
    if not segment.isdecimal() or int(segment) >= length:
        message = f"'{'.'.join(before)}' is a list of {length} item{'s' * (length != 1)} and has no item '{segment}'"
        raise Failed(mark.problem(message, "items are numbered from 0"))
    child: Node = node.value[int(segment)]
    return child


def _assign(parent: Node, segments: Sequence[str], node: Node, mark: Mark) -> None:
    *before, last = segments
    if isinstance(parent.value, list):
        _item(parent, last, before, mark)
        parent.value[int(last)] = node
        return
    _open(parent, last, before, mark)
    parent.value[last] = node
    parent.keys[last] = mark


def _delete(root: Node, segments: Sequence[str], mark: Mark) -> None:
    parent = root
    for position, segment in enumerate(segments):
        last = position == len(segments) - 1
        if isinstance(parent.value, list):
            child = _item(parent, segment, segments[:position], mark)
            if last:
                del parent.value[int(segment)]
        elif isinstance(parent.value, dict) and segment in parent.value:
            child = parent.value[segment]
            if last:
                del parent.value[segment], parent.keys[segment]
        else:
            known = parent.value if isinstance(parent.value, dict) else ()
            message = f"cannot delete '{'.'.join(segments[: position + 1])}': no such key"
            help = did_you_mean(segment, known) or (f"known keys: {', '.join(known)}" if known else "")
            raise Failed(mark.problem(message, help))
        parent = child

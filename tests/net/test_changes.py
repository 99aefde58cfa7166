"""The file of changes re-pins what it names, and nothing else."""

from __future__ import annotations

import pytest

from tests.net.changes import differences, expected

PINS = {"a": 1, "b": 2}


def change(entry: str, old: object, new: object) -> dict[str, object]:
    return {"entry": entry, "reason": "a test", "old": old, "new": new}


def test_a_change_is_what_is_right_from_now_on() -> None:
    changes = [
        change("adapters/a", 1, 3),
        change("adapters/b", 2, None),
        change("adapters/c", None, 4),
    ]
    assert expected("adapters", PINS, changes) == {"a": 3, "c": 4}
    assert expected("tokens", PINS, changes) == PINS
    assert len(differences("adapters", {"a": 1, "b": 2}, {"a": 3, "c": 4})) == 3


def test_a_change_of_something_else_is_refused() -> None:
    with pytest.raises(AssertionError, match="another `old`"):
        expected("adapters", PINS, [change("adapters/a", 2, 3)])
    with pytest.raises(AssertionError, match="reason"):
        expected("adapters", PINS, [{**change("adapters/a", 1, 3), "reason": ""}])

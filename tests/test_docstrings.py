"""The docstrings of public names, as griffe reads them: every parameter is explained, and none that
does not exist.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest

from tests.test_public_names import PAGES, ROOT

griffe = pytest.importorskip("griffe")
sys.path.insert(0, str(ROOT / "docs"))
import api_names  # noqa: E402

sys.path.remove(str(ROOT / "docs"))

# Parameters of methods that mean the same everywhere, and whose types say all.
SAME = {
    "context",
    "setup",
    "batch",
    "out",
    "groups",
    "group",
    "folder",
    "row",
    "rows",
    "names",
    "register",
    "options",
}
NAMES = [name for names in PAGES.values() for name in names]


def functions(name: str) -> Iterator[tuple[str, griffe.Function, set[str]]]:
    """A public function, or the methods that a public class defines, and which parameters need no
    words.
    """
    thing = api_names.found(name)
    if thing.is_function:
        yield name, thing, {"register", "run", "stage"}  # hooks
    for each, member in thing.members.items() if thing.is_class else ():
        # A dataclass has one without a line
        made = each == "__init__" and member.is_function and member.lineno
        if (
            member.is_function
            and (not each.startswith("_") or made)
            and "dataclass" not in thing.labels | {each}
        ):
            yield f"{name}.{each}", member, SAME


def problems(name: str, function: griffe.Function, unsaid: set[str]) -> list[str]:
    """What the docstring says too little, or of parameters that do not exist."""
    docstring = function.docstring or (
        function.parent.docstring if function.name == "__init__" else None
    )
    sections = docstring.parse("google") if docstring else []
    said = {
        one.name.lstrip("*")
        for part in sections
        if part.kind.value == "parameters"
        for one in part.value
    }
    taken = {one.name for one in function.parameters} - {"self", "cls"}
    wrong = [f"{name}: no parameter {one}" for one in sorted(said - taken)]
    wrong += [] if docstring else [f"{name}: no docstring"]
    return wrong + [f"{name}: says nothing of {one}" for one in sorted(taken - said - unsaid)]


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_explained(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = [line for function in functions(name) for line in problems(*function)]
    assert found == [] and caplog.messages == []

"""A reader: each line of a file is a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignkit import Add, Reader, hookimpl


class Lines(Reader):
    def rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            yield number, {"prompt": line}


@hookimpl
def register(add: Add) -> None:
    add("reader", ".lines", Lines, "each line is a prompt")

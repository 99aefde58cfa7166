"""The report of a step: lines, tables and texts side by side, laid out for any width or as Markdown.

No number and no interval such as `[0.21, 0.63]` is ever broken across lines. A table that is too wide gets cells of
several lines; its words decide how narrow it can be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

from alignkit.io.text import JOINT, joined, printable, wrapped

WIDTH = 80  # of files and pipes, in characters
GAP = 2  # between columns
TEXT = 24  # least width of a text next to others
_MARKUP = re.compile(r"[\\`*|<]")

Cells = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Table:
    """Rows of short cells.

    Attributes:
        keys: First columns, which name a row.
        note: A line below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Cells
    keys: int = 1
    note: str = ""


@dataclass(frozen=True)
class SideBySide:
    """Texts next to each other, each under its heading."""

    title: str
    headings: Sequence[str]
    texts: Sequence[str]


Block = str | Table | SideBySide
_KINDS: dict[str, type] = {"lines": str, "table": Table, "side_by_side": SideBySide}


@dataclass(frozen=True)
class Report:
    """Blocks, one below the other. A str is one or more lines, which are wrapped between words."""

    blocks: Sequence[Block]

    def text(self, width: int = WIDTH) -> str:
        """The report in lines of at most `width` characters, wherever words and intervals allow it.

        Args:
            width: In characters.
        """
        return "\n\n".join(_text(block, width) for block in self.blocks)

    def markdown(self) -> str:
        """The report for an issue or a wiki. Texts are in fences, so that nothing in them is a mention or a link."""
        return "\n\n".join(_markdown(block) for block in self.blocks) + "\n"

    def plain(self) -> list[dict[str, Any]]:
        """The report as JSON, for `restored`."""
        names = {kind: name for name, kind in _KINDS.items()}
        return [{names[type(b)]: b if isinstance(b, str) else asdict(b)} for b in self.blocks]

    @classmethod
    def restored(cls, plain: Sequence[Mapping[str, Any]]) -> Report:
        """The report that `plain` turned into JSON.

        Args:
            plain: What `plain` returned.
        """
        items = [item for block in plain for item in block.items()]
        return cls([value if isinstance(value, str) else _KINDS[name](**value) for name, value in items])


def _text(block: Block, width: int) -> str:
    if isinstance(block, str):
        return "\n".join(_wrapped(line, width) for line in block.split("\n"))
    title = [_wrapped(block.title, width)] if block.title else []
    if isinstance(block, Table):
        return "\n".join(filter(None, [*title, _grid(block, width), _wrapped(block.note, width)]))
    most = max(1, (width + GAP) // (TEXT + GAP))
    grids = []
    for start in range(0, len(block.texts), most):
        end = start + most
        texts = Table("", block.headings[start:end], [block.texts[start:end]], keys=most)
        grids.append(_grid(texts, width, equal=True))
    return "\n".join([*title, "\n\n".join(grids)])


def _wrapped(line: str, width: int) -> str:
    return "\n".join(wrapped(line, width, indent=2))


def _grid(block: Table, width: int, equal: bool = False) -> str:
    """A table in lines. equal: its columns have the same width, and may break words. Else only headings may."""
    from rich import box, table
    from rich.cells import cell_len
    from rich.console import Console

    grid = table.Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), expand=equal)
    for head in block.columns:
        grid.add_column(joined(head), overflow="fold", ratio=1 if equal else None)
    for row in block.rows:
        grid.add_row(*(joined(cell).expandtabs(4) for cell in row))
    for index, column in enumerate(grid.columns):
        if index >= block.keys:
            column.justify = "right"
        if not equal:
            words = " ".join(map(str, column.cells)).split()
            column.min_width = max(map(cell_len, words), default=1)
    out = StringIO()
    # Nothing in a cell has a meaning.
    console = Console(file=out, width=width, color_system=None, markup=False, emoji=False, highlight=False)
    console.print(grid, crop=False)
    return "\n".join(line.rstrip() for line in out.getvalue().replace(JOINT, " ").splitlines())


def _markdown(block: Block) -> str:
    if isinstance(block, str):
        lines = [_escaped(line) for line in block.split("\n")]
        return "\n".join(f"- {line}" for line in lines) if len(lines) > 1 else lines[0]
    if isinstance(block, SideBySide):
        texts = [f"{head}:\n{text}" for head, text in zip(block.headings, block.texts, strict=True)]
        content = printable("\n\n".join([block.title, *texts]))
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", content)), default=0))
        return f"{fence}text\n{content}\n{fence}"
    marks = ["---"] * block.keys + ["---:"] * (len(block.columns) - block.keys)
    rows = [[_escaped(cell) for cell in row] for row in (block.columns, *block.rows)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], marks, *rows[1:]))
    title = f"**{_escaped(block.title)}**" if block.title else ""
    return "\n\n".join(filter(None, [title, table, _escaped(block.note)]))


def _escaped(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", printable(text).replace("\n", " "))

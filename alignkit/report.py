"""The report of a step: lines, tables and texts side by side, laid out for any width or as Markdown.

No number and no interval such as `[0.21, 0.63]` is ever broken across lines. A table that is too wide gets cells of
several lines first, and is cut between columns last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from alignkit.io.text import INTERVAL, printable, wrapped

if TYPE_CHECKING:
    import rich.table

WIDTH = 80  # of files and pipes, in characters
GAP = 2  # between columns
TEXT = 24  # least width of a text next to others
_JOINT = "\ue000"  # stands for the space in an interval while lines are broken
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
        return "\n\n".join("\n".join(line.rstrip() for line in _lines(block, width)) for block in self.blocks)

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


def _lines(block: Block, width: int) -> Iterator[str]:
    if isinstance(block, str):
        for line in block.split("\n"):
            yield from wrapped(line, width, indent=2)
        return
    if block.title:
        yield from wrapped(block.title, width, indent=2)
    for number, grid in enumerate(_grids(block, width)):
        yield from [""] * bool(number)
        yield from _printed(grid)
    if isinstance(block, Table) and block.note:
        yield from wrapped(block.note, width, indent=2)


def _grids(block: Table | SideBySide, width: int) -> Iterator[rich.table.Table]:
    """The block as tables that fit: with all key columns, and as many others as there is room for."""
    if isinstance(block, SideBySide):
        most = max(1, (width + GAP) // (TEXT + GAP))
        for start in range(0, len(block.texts), most):
            texts = block.texts[start : start + most]
            each = (width - GAP * (len(texts) - 1)) // len(texts)
            pairs = zip(map(_joined, block.headings[start:]), map(_joined, texts), strict=False)
            columns = [_Column(head, [text], each) for head, text in pairs]
            yield _grid(columns, len(columns))
        return
    keys = min(block.keys, len(block.columns))
    for level in (0, 1, 2):
        columns = [_column(block, index, level) for index in range(len(block.columns))]
        if _total(columns) <= width:
            yield _grid(columns, keys)
            return
    most = max(1, width // (2 * max(1, keys)) - GAP)  # characters of a key
    columns[:keys] = [column._replace(width=min(column.width, most)) for column in columns[:keys]]
    part, rest = columns[:keys], width - _total(columns[:keys]) - GAP
    for column in columns[keys:]:
        column = column._replace(width=min(column.width, rest))
        if len(part) > keys and _total([*part, column]) > width:
            yield _grid(part, keys)
            part = columns[:keys]
        part.append(column)
    yield _grid(part, keys)


class _Column(NamedTuple):
    head: str
    cells: Sequence[str]
    width: int


def _column(table: Table, index: int, level: int) -> _Column:
    """level: 0 breaks no line, 1 those of headings, 2 those of all cells."""
    from rich.cells import cell_len

    head, *cells = [_joined(text) for text in (table.columns[index], *(row[index] for row in table.rows))]
    parts = [head, *cells]
    if level == 1 or (level == 2 and index < table.keys):
        parts = [*head.split(), *cells]
    elif level == 2:
        parts = " ".join(parts).split()
    return _Column(head, cells, max(map(cell_len, parts), default=0))


def _total(columns: Sequence[_Column]) -> int:
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)


def _joined(text: str) -> str:
    """The text with intervals in one piece."""
    return INTERVAL.sub(lambda found: found[0].replace(" ", _JOINT), printable(text).expandtabs(4))


def _grid(columns: Sequence[_Column], keys: int) -> rich.table.Table:
    from rich import box, table
    from rich.text import Text

    grid = table.Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for index, column in enumerate(columns):
        justify: Literal["left", "right"] = "left" if index < keys else "right"
        grid.add_column(Text(column.head), justify=justify, overflow="fold", width=max(1, column.width))
    for row in zip(*(column.cells for column in columns), strict=True):
        grid.add_row(*map(Text, row))
    return grid


def _printed(grid: rich.table.Table) -> list[str]:
    from rich.console import Console

    out = StringIO()
    Console(file=out, width=10_000, color_system=None).print(grid)
    return out.getvalue().replace(_JOINT, " ").splitlines()


def _markdown(block: Block) -> str:
    if isinstance(block, SideBySide):
        return _fenced(block)
    if isinstance(block, str):
        lines = [_escaped(line) for line in block.split("\n")]
        return "\n".join(f"- {line}" for line in lines) if len(lines) > 1 else lines[0]
    marks = ["---" if index < block.keys else "---:" for index in range(len(block.columns))]
    rows = [[_escaped(cell) for cell in row] for row in (block.columns, *block.rows)]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], marks, *rows[1:])]
    parts = [f"**{_escaped(block.title)}**", "\n".join(lines), _escaped(block.note)]
    return "\n\n".join(part for part in parts if part not in ("", "****"))


def _fenced(block: SideBySide) -> str:
    texts = [f"{head}:\n{text}" for head, text in zip(block.headings, block.texts, strict=True)]
    content = printable("\n\n".join([block.title, *texts]))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", content)), default=0))
    return f"{fence}text\n{content}\n{fence}"


def _escaped(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", printable(text).replace("\n", " "))

"""The report of a step: lines, tables and texts to compare, laid out for any width or as Markdown.

No number and no interval such as `[0.21, 0.63]` is ever broken across lines. A table that is too
wide gets cells of several lines; its words decide how narrow it can be.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import StringIO
from textwrap import indent, wrap
from typing import Any

from alignkit.io.text import printable

WIDTH = 80  # characters per line of files and pipes
MOST = 1_000_000  # characters per line of Markdown, which is not wrapped
INTERVAL = re.compile(r"\[[-+\w.]+, [-+\w.]+\]\S*")  # such as [0.21, 0.63]
JOINT = "\ue000"  # stands for the space in an interval while lines are broken
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
    """Texts to compare, each under its heading; a page has them next to each other."""

    title: str
    headings: Sequence[str]
    texts: Sequence[str]


Block = str | Table | SideBySide


@dataclass(frozen=True)
class Report:
    """Blocks, one below the other. A str is one or more lines, which are wrapped between words."""

    blocks: Sequence[Block]

    def text(self, width: int = WIDTH) -> str:
        """The report in lines of at most `width` characters, wherever words and intervals allow it.

        Args:
            width: In characters.
        """
        return "\n\n".join(_text(block, width) for block in self.blocks).replace(JOINT, " ")

    def markdown(self) -> str:
        """The report for an issue or a wiki. Texts are in fences, so that nothing in them is a
        mention or a link.
        """
        return "\n\n".join(map(_markdown, self.blocks)) + "\n"

    def plain(self) -> list[Any]:
        """The report as JSON, for `restored`."""
        return _blocks().dump_python([*self.blocks])

    @classmethod
    def restored(cls, plain: Sequence[Any]) -> Report:
        """The report that `plain` turned into JSON.

        Args:
            plain: What `plain` returned.
        """
        return cls(_blocks().validate_python(plain))


@cache
def _blocks() -> Any:
    from pydantic import TypeAdapter  # slow, and `alignkit --help` needs none

    return TypeAdapter(list[Block])


def _text(block: Block, width: int) -> str:
    if isinstance(block, str):
        return _wrapped(block, width)
    if isinstance(block, Table):
        parts = [_wrapped(block.title, width), _grid(block, width), _wrapped(block.note, width)]
    else:
        parts = [_wrapped(block.title, width)]
        for heading, text in zip(block.headings, block.texts, strict=True):
            parts += [_wrapped(f"{heading}:", width), _wrapped(indent(text, "  "), width)]
    return "\n".join(filter(None, parts))


def _wrapped(text: str, width: int) -> str:
    lines = []
    for line in _joined(text).split("\n"):
        lines += wrap(line, width, subsequent_indent="  ", break_on_hyphens=False) or [""]
    return "\n".join(lines)


def _joined(text: str) -> str:
    """The printable text with JOINT in its intervals, so that no line ends in one."""
    return INTERVAL.sub(lambda match: match[0].replace(" ", JOINT), printable(text))


def _grid(block: Table, width: int) -> str:
    """A table in lines, with intervals, and words of up to half a line, in one piece."""
    from rich import box, table
    from rich.cells import cell_len
    from rich.console import Console

    grid = table.Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, head in enumerate(block.columns):
        words = " ".join(_joined(row[index]) for row in block.rows).split()
        longest = max(map(cell_len, words), default=1)
        grid.add_column(_joined(head), overflow="fold", min_width=min(longest, width // 2))
        if index >= block.keys:
            grid.columns[index].justify = "right"
    for row in block.rows:
        grid.add_row(*map(_joined, row))
    out = StringIO()
    # Nothing in a cell has a meaning.
    console = Console(
        file=out, width=width, color_system=None, markup=False, emoji=False, highlight=False
    )
    console.print(grid, crop=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _markdown(block: Block) -> str:
    if isinstance(block, str):
        lines = list(map(_escaped, block.split("\n")))
        return "\n".join(lines if len(lines) == 1 else [f"- {line}" for line in lines])
    if isinstance(block, SideBySide):
        texts = Report([block]).text(MOST)
        fence = "```"
        while fence in texts:
            fence += "`"
        return f"{fence}text\n{texts}\n{fence}"
    marks = ["---"] * block.keys + ["---:"] * (len(block.columns) - block.keys)
    rows = [f"| {' | '.join(map(_escaped, row))} |" for row in (block.columns, marks, *block.rows)]
    title = f"**{_escaped(block.title)}**" * bool(block.title)
    return "\n\n".join(filter(None, [title, "\n".join(rows), _escaped(block.note)]))


def _escaped(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", printable(text).replace("\n", " "))

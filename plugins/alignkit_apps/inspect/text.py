"""A row's inspection for people: in a terminal learned tokens have a color, and everywhere they have a mark."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from alignkit.io.printable import printable
from alignkit_apps.inspect.row import Inspection, Tokens

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

BREAK = "\u23ce"  # stands for a line break
EDGE = "|"  # between tokens
STYLES = {True: ("green", "bold green"), False: ("dim", "none")}  # of every other token


def show(found: Inspection, console: Console) -> None:
    """Print an inspection."""
    from rich.text import Text

    console.print(Text(printable(found.title), style="bold"))
    for note in found.notes:
        console.print(Text(f"note: {printable(note)}"))
    for who, what in found.turns:
        _print_block(console, who, what)
    for who, what in found.questions:
        _print_block(console, who, what)
    for tokens in found.tokens:
        console.print()
        console.print(Text(heading(tokens), style="bold"))
        for line in _lines(tokens):
            console.print(line, soft_wrap=not console.is_terminal)


def heading(tokens: Tokens) -> str:
    """`response: 12 tokens, 10 learned`."""
    count, counted = len(tokens.pieces), sum(tokens.counts)
    what = "scored at the last" if tokens.scored else f"{counted or 'none'} learned"
    return f"{printable(tokens.title)}: {count} token{'s' * (count != 1)}, {what}"


def _print_block(console: Console, who: str, what: str) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console.print()
    console.print(Text(printable(who), style="bold"))
    console.print(Padding(Text(printable(what)), (0, 0, 0, 2), expand=False))


def _lines(tokens: Tokens) -> Iterator[Text]:
    """The tokens, a paragraph for each stretch that counts or does not."""
    from rich.text import Text

    name = "scored:  " if tokens.scored else "learned: "
    marked = list(zip(tokens.pieces, tokens.counts, strict=True))
    for counts, stretch in groupby(marked, key=lambda token: token[1]):
        line = Text(f"  {name if counts else 'context: '}")
        for place, (piece, _) in enumerate(stretch):
            line.append(EDGE if place else "", style="dim")
            line.append(visible(piece), style=STYLES[counts][place % 2])
        yield line


def visible(piece: str) -> str:
    """A token's text on one line."""
    return printable(piece.replace("\n", BREAK).replace("\t", "\u21e5"))

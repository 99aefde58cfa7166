"""Raw text for language modeling: rows {text: ...}, or plain text files split into documents at
blank lines.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from alignkit import Field, Group, Options, Response
from alignkit_plugins.formats.columns import ColumnFormat

Piece = tuple[int, str]  # number of the first line, and text
MAX_CHARS = 2000  # approximate length of a document of a .txt file


class TextOptions(Options):
    """How a plain text file is split into documents. A row of any other file is one document."""

    paragraphs: bool = Field(False, description="make every paragraph a document, however short")


class Text(ColumnFormat):
    """Text without a prompt."""

    Options = TextOptions
    example = '{"text": "Raw text."}'
    wants = "text (one text, no prompt)"
    needs_prompt = False
    plain_text = True

    @classmethod
    def matches(cls, row: Any) -> bool:
        other = cls.lacks(
            row, "prompt", "messages", "conversations", "chosen", "completion", "instruction"
        )
        # A turn, as in the rows of OpenAssistant on the Hub
        other = other and cls.lacks(row, "role", "parent_id")
        return other and isinstance(row.get("text"), str)

    def read(self, row: Any) -> Group:
        if isinstance(row, str):
            row = {"text": row}
        text = self.text(row if isinstance(row, dict) else {}, "text")
        return Group((), (Response(text=text),), meta=self.rest(row, "text"))

    def rows_of_text(self, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
        pieces = paragraphs(lines)
        return pieces if self.options.paragraphs else joined(pieces)


def paragraphs(lines: Iterable[tuple[int, str]]) -> Iterator[Piece]:
    """Paragraphs between blank lines; those above MAX_CHARS characters are cut between lines, or
    between words.
    """
    start, held, size = 0, list[str](), 0
    for number, line in ((number, part) for number, whole in lines for part in _parts(whole)):
        blank = not line.strip()
        if held and (blank or size + len(line) > MAX_CHARS):
            yield start, "\n".join(held)
            held, size = [], 0
        if not blank:
            start = start if held else number
            held.append(line)
            size += len(line) + 1
    if held:
        yield start, "\n".join(held)


def _parts(line: str) -> list[str]:
    if len(line) <= 2 * MAX_CHARS:
        return [line]
    return textwrap.wrap(
        line, MAX_CHARS, expand_tabs=False, replace_whitespace=False, break_on_hyphens=False
    ) or [""]


def joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Neighboring paragraphs, joined up to MAX_CHARS characters."""
    start, text = 0, ""
    for number, piece in pieces:
        if text and len(text) + 2 + len(piece) > MAX_CHARS:
            yield start, text
            text = ""
        start = start if text else number
        text = f"{text}\n\n{piece}" if text else piece
    if text:
        yield start, text

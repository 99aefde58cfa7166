"""Raw text for language modeling: rows {text: ...}, or plain text files split into documents at
blank lines.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from alignkit import Field, Group, Options, Response
from alignkit_plugins.formats.columns import ColumnFormat, with_text

Piece = tuple[int, str]  # number of the first line, and text
MAX_CHARS = 2000  # approximate length of a document of a .txt file
# Columns of other formats, and of a turn, as in the rows of OpenAssistant on the Hub.
OTHERS = (
    *("prompt", "messages", "conversations", "chosen", "completion", "instruction"),
    *("role", "parent_id"),
)


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
        return (
            isinstance(row, dict) and isinstance(row.get("text"), str) and cls.lacks(row, *OTHERS)
        )

    def read(self, row: Any) -> Group:
        row = with_text(row)
        return Group((), (Response(text=self.text(row, "text")),), meta=self.rest(row, "text"))

    def rows_of_text(self, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
        if self.options.paragraphs:
            return paragraphs(lines)
        return joined(paragraphs(lines))


def paragraphs(lines: Iterable[tuple[int, str]]) -> Iterator[Piece]:
    """Paragraphs between blank lines; those above MAX_CHARS characters are cut between lines, or
    between words.
    """
    start, held = 0, ""
    for number, whole in lines:
        for line in _parts(whole):
            is_blank = not line.strip()
            if held and (is_blank or len(held) + len(line) >= MAX_CHARS):
                yield start, held
                held = ""
            if held and not is_blank:
                held += f"\n{line}"
            elif not is_blank:
                start, held = number, line
    if held:
        yield start, held


def _parts(line: str) -> list[str]:
    if len(line) <= 2 * MAX_CHARS:
        return [line]
    cut = textwrap.wrap(
        line, MAX_CHARS, expand_tabs=False, replace_whitespace=False, break_on_hyphens=False
    )
    return cut or [""]


def joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Neighboring paragraphs, joined up to MAX_CHARS characters."""
    start, text = 0, ""
    for number, piece in pieces:
        if text and len(text) + 2 + len(piece) > MAX_CHARS:
            yield start, text
            text = ""
        if text:
            text += f"\n\n{piece}"
        else:
            start, text = number, piece
    if text:
        yield start, text

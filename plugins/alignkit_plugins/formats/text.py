"""Raw text for language modeling: rows {text: ...}, plain text files split into documents at blank
lines, web pages, and folders of these; and conversations in raw text: every dialogue of a .txt
file, or the one dialogue of a row {text: ...}.

Dialogues are found by the heuristic behind Gopher's dialogue data (Rae et al. 2021,
arXiv:2112.11446). A dialogue is a run of at least 6 paragraphs in which two speakers take turns:
the odd paragraphs begin with one prefix, the even ones with another, such as `Gopher: `, `Dr Smith
- ` or `Q. `.

The paper does not define a prefix. Here it ends with one of the separators `: `, ` - ` and `. `,
after at least one other character, within the first line and the first 40 characters. The
longest prefix that all paragraphs of a speaker share counts, so that `Dr. Ann: ` and `Dr.
Ben: ` are two speakers.

The first speaker becomes the user and the second the assistant, whose turns are learned. A last
turn without an answer is left out. `meta["speakers"]` holds the speakers' names.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

from alignkit import BadRow, DataError, Field, Group, Options, Reader, Response
from alignkit.data.files import NumberedRows
from alignkit.data.group import assistant_turn, user_turn
from alignkit_plugins.extras import check_extra
from alignkit_plugins.formats.columns import ColumnFormat, with_text
from alignkit_plugins.formats.public_sets import opened

Piece = tuple[int, str]  # number of the first line, and text
SEPARATOR = re.compile(r"(?<=.)(?=(: | - |\. ))")  # a lookahead, because two separators may overlap
MAX_PREFIX = 40  # characters
MAX_CHARS = 2000  # approximate length of a document of a .txt file
PLAIN, PAGES = (".txt", ".md"), (".html", ".htm", ".mhtml")
CHARSET = re.compile(rb"""charset=["']?([\w-]+)""")
# Columns of other formats, and of a turn, as in the rows of OpenAssistant on the Hub.
OTHERS = (
    *("prompt", "messages", "conversations", "chosen", "completion", "instruction"),
    *("role", "parent_id"),
)


class TextOptions(Options):
    """How a plain text file is split into documents. A row of any other file is one document."""

    paragraphs: bool = Field(False, "make every paragraph a document, however short")


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

    def rows(self, rows: NumberedRows) -> NumberedRows:
        return opened(rows, questions=False)

    def read(self, row: Any) -> Group:
        row = with_text(row)
        return Group((), (Response(text=self.text(row, "text")),), meta=self.rest(row, "text"))

    def rows_of_text(self, lines: Iterable[tuple[int, str]]) -> NumberedRows:
        pieces = paragraphs(lines, MAX_CHARS)
        return pieces if self.options.paragraphs else joined(pieces)

    def rows_of_folder(self, folder: Path) -> NumberedRows:
        if self.options.paragraphs:
            raise DataError(f"{folder}: 'paragraphs' splits one .txt file, and not a folder")
        return rows_of_texts(folder)


class WebPage(Reader):
    """A web page as one row of text."""

    def rows(self, path: Path) -> NumberedRows:
        return rows_of_texts(path)


def rows_of_texts(path: Path) -> NumberedRows:
    """A row for each of `texts_in`."""
    for number, (name, text) in enumerate(texts_in(path).items(), 1):
        row = {"text": text, "file": name}
        yield number, row if text.strip() else BadRow(f"no text was found in {name}")


def texts_in(path: Path) -> dict[str, str]:
    """The text of the file, or of those in a folder and its folders, by name: of a web page the
    main text as Markdown, without menus and comments.

    Raises DataError if there is none, or one that cannot be read.
    """
    texts, files, folder = {}, [path], path.parent
    if path.is_dir():
        files, folder = sorted(path.rglob("*")), path
    for file in files:
        name, kind = file.relative_to(folder).as_posix(), file.suffix.lower()
        try:
            if kind in PLAIN:
                texts[name] = file.read_text("utf-8-sig")
            # Browsers save what a page shows, such as advertisements, in a folder next to it.
            elif kind in PAGES and "_files/" not in name:
                texts[name] = _text_of_page(file.read_bytes(), kind)
        except (OSError, UnicodeDecodeError, LookupError) as error:
            raise DataError(f"{file}: cannot be read as UTF-8 text ({error})") from None
    if not texts:
        kinds = ", ".join((*PLAIN, *PAGES))
        raise DataError(f"{path}: expected a file that ends in {kinds}, or a folder of them")
    return texts


def _text_of_page(content: Any, kind: str) -> str:
    """kind: the file's suffix; .mhtml: a page with all its parts."""
    check_extra("a web page", "web", "trafilatura", "lxml_html_clean")
    import trafilatura

    if kind == ".mhtml":
        body = message_from_bytes(content, policy=default).get_body(("html",))
        content = body.get_content() if body else ""
    elif charset := CHARSET.search(content):
        with suppress(LookupError, UnicodeDecodeError):  # a page may say what is wrong
            content = content.decode(charset[1].decode())
    return trafilatura.extract(content, output_format="markdown", include_comments=False) or ""


def paragraphs(lines: Iterable[Piece], most: int) -> Iterator[Piece]:
    """Paragraphs between blank lines; those above `most` characters are cut between lines, or
    between words.
    """
    start, held = 0, ""
    for number, whole in lines:
        parts = [whole]
        if len(whole) > 2 * most:
            parts = textwrap.wrap(
                whole, most, expand_tabs=False, replace_whitespace=False, break_on_hyphens=False
            )
        for line in parts or [""]:
            is_blank = not line.strip()
            if held and (is_blank or len(held) + len(line) >= most):
                yield start, held
                held = ""
            if held and not is_blank:
                held += f"\n{line}"
            elif not is_blank:
                start, held = number, line
    if held:
        yield start, held


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


# Dialogues


@dataclass(frozen=True)
class Dialogue:
    """Two speakers taking turns.

    start: number of the first paragraph, from 0. line: number of its first line, from 1. prefixes:
    of the first and the second speaker's paragraphs. turns: the paragraphs without their prefixes.
    """

    start: int
    line: int
    prefixes: tuple[str, str]
    turns: tuple[str, ...]


def find_dialogues(text: str, *, min_paragraphs: int = 6) -> list[Dialogue]:
    """All dialogues of a text in order, each as long as possible, without overlaps.

    Blank lines separate paragraphs. Raises `ValueError` if `min_paragraphs` is below 2.
    """
    if min_paragraphs < 2:
        raise ValueError(f"min_paragraphs must be at least 2, not {min_paragraphs}")
    lines = enumerate(text.replace("\r\n", "\n").split("\n"), 1)
    found = [(line, piece.lstrip()) for line, piece in paragraphs(lines, sys.maxsize)]
    prefixes = [_prefixes(paragraph) for _, paragraph in found]
    dialogues: list[Dialogue] = []
    start = 0
    while start + min_paragraphs <= len(found):
        length, speakers = _run(prefixes[start:])
        if length < min_paragraphs:
            start += 1
            continue
        turns = []
        for number, (_, paragraph) in enumerate(found[start : start + length]):
            turns.append(paragraph[len(speakers[number % 2]) :].strip())
        dialogues.append(Dialogue(start, found[start][0], speakers, tuple(turns)))
        start += length
    return dialogues


def _prefixes(paragraph: str) -> set[str]:
    """All possible prefixes of a paragraph."""
    line = paragraph.partition("\n")[0]
    return {line[: match.end(1)] for match in SEPARATOR.finditer(line, 0, MAX_PREFIX)}


def _run(prefixes: Sequence[set[str]]) -> tuple[int, tuple[str, str]]:
    """The number of paragraphs in which two speakers take turns, and the speakers' prefixes."""
    shared: list[set[str]] = [set(), set()]  # by the odd paragraphs, and by the even ones
    speakers = ["", ""]
    for length, candidates in enumerate(prefixes):
        speaker = length % 2
        remaining = candidates & shared[speaker] if length > 1 else candidates
        longest = max(remaining, key=len, default="")
        if not longest or longest == speakers[1 - speaker]:
            return length, (speakers[0], speakers[1])
        shared[speaker], speakers[speaker] = remaining, longest
    return len(prefixes), (speakers[0], speakers[1])


class Dialogues(ColumnFormat):
    """Dialogues in raw text. The recipe must name this format, because a row of text is raw text by
    default.
    """

    example = (
        r'{"text": "Q. Hi\n\nA. Hello!\n\nQ. Who are you?\n\nA. A model.\n\nQ. Bye\n\nA. Bye!"}'
    )
    wants = (
        "text with one dialogue, or a .txt file with any number; never detected, so name the format"
    )

    def read(self, row: Any) -> Group:
        if isinstance(row, Dialogue):
            return self._group(row, {})
        row = with_text(row)
        matches = find_dialogues(self.text(row, "text"))
        if len(matches) != 1:
            raise BadRow(
                f"the text holds {len(matches)} dialogues, but a row must hold one (a .txt file "
                "may hold many)"
            )
        return self._group(matches[0], self.rest(row, "text"))

    def rows_of_text(self, lines: Iterable[tuple[int, str]]) -> NumberedRows:
        numbered = list(lines)
        for dialogue in find_dialogues("\n".join(line for _, line in numbered)):
            yield numbered[dialogue.line - 1][0], dialogue

    def _group(self, dialogue: Dialogue, meta: dict[str, Any]) -> Group:
        turns = []
        for question, answer in zip(dialogue.turns[::2], dialogue.turns[1::2], strict=False):
            turns += [user_turn(question), assistant_turn(answer)]
        prompt, response = self.demonstration(turns)
        return Group(prompt, (response,), meta={**meta, "speakers": list(dialogue.prefixes)})

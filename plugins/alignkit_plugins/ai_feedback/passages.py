"""Passages of text files and web pages, each with the heading above it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alignkit import RunFailed
from alignkit.errors import check_extra

PLAIN, PAGES = (".txt", ".md"), (".html", ".htm")
# A heading of Markdown, or a line such as "Chapter 3: The sea" or "CHAPTER III".
_HEADING = re.compile(
    r"^[ \t]*(?:#{1,6}[ \t]+(?P<name>\S.*?)[ \t#]*|(?P<chapter>chapter[ \t]+(?:\d+|[ivxlc]+)\b.{0,80}))$",
    re.I | re.M,
)


@dataclass(frozen=True)
class Passage:
    """Paragraphs that follow each other. source: a file's name. section: the heading above it."""

    text: str
    source: str
    section: str = ""


def files_of(path: Path) -> list[Path]:
    """The file, or those of a folder and its folders, by name. Raises RunFailed if there is none
    that can be read.
    """
    files = (
        [path] if not path.is_dir() else sorted(each for each in path.rglob("*") if each.is_file())
    )
    files = [each for each in files if each.suffix.lower() in (*PLAIN, *PAGES)]
    if not files:
        kinds = ", ".join((*PLAIN, *PAGES))
        raise RunFailed(
            f"{path}: expected a file that ends in {kinds}, or a folder with such files"
        )
    return files


def check_texts(texts: Path) -> None:
    """Raise RunFailed for what shows before anything is asked: no such text, or no package for
    pages.
    """
    files = files_of(texts)
    if any(each.suffix.lower() in PAGES for each in files):
        check_extra("step 'questions'", "web", "trafilatura", "lxml_html_clean")
    for file in files:
        _read(file)


def read_texts(texts: Path) -> list[tuple[str, str]]:
    """(name, text) of all files and pages, in order."""
    named = []
    for file in files_of(texts):
        text = _read(file)
        name = file.name if file == texts else file.relative_to(texts).as_posix()
        named.append((name, from_html(text) if file.suffix.lower() in PAGES else text))
    return named


def from_html(page: str) -> str:
    """The main text of a page as Markdown, without menus and advertisements; empty if it has
    none.
    """
    import trafilatura

    return (
        trafilatura.extract(
            page, output_format="markdown", include_comments=False, include_links=False
        )
        or ""
    )


def passages_of(name: str, text: str, words: int) -> Iterator[Passage]:
    """The passages of a text: whole paragraphs of one section, up to a number of words. A longer
    paragraph is cut.
    """
    section, held = "", list[str]()
    # A heading may stand without an empty line around it.
    spaced = _HEADING.sub(lambda match: f"\n\n{match[0]}\n\n", text.replace("\r\n", "\n"))
    for block in re.split(r"\n[ \t]*\n", spaced):
        heading = _HEADING.fullmatch(block.strip())
        found = [] if heading else list(re.finditer(r"\S+", block))
        for start in range(0, len(found), words):
            part = found[start : start + words]
            if sum(len(each.split()) for each in held) + len(part) > words:
                yield Passage("\n\n".join(held), name, section)
                held = []
            held.append(block[part[0].start() : part[-1].end()])
        if heading:
            if held:
                yield Passage("\n\n".join(held), name, section)
            section, held = (heading["name"] or heading["chapter"]).strip(), []
    if held:
        yield Passage("\n\n".join(held), name, section)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RunFailed(f"{file}: cannot be read as UTF-8 text ({error})") from None

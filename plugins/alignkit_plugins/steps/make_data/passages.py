"""Passages of text files and web pages, each with the heading above it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from alignkit import RunFailed
from alignkit.extras import check_extra
from alignkit_http import ReplyStore

PLAIN, PAGES = (".txt", ".md"), (".html", ".htm")
MOST_BYTES = 20 << 20  # of a web page
_SECONDS = 60.0  # for a page, and for each of its redirects
# A heading of Markdown, or a line such as "Chapter 3: The sea" or "CHAPTER III".
_HEADING = re.compile(
    r"^(?:#{1,6}[ \t]+(?P<name>.+?)[ \t#]*|(?P<chapter>chapter[ \t]+(?:\d+|[ivxlc]+)\b.{0,80}))$", re.I
)


@dataclass(frozen=True)
class Passage:
    """Paragraphs that follow each other. source: a file's name or an address. section: the heading above it."""

    text: str
    source: str
    section: str = ""


def files_of(path: Path) -> list[Path]:
    """The file, or those of a folder and its folders, by name. Raises RunFailed if there is none that can be read."""
    kinds = (*PLAIN, *PAGES)
    files = sorted(each for each in path.rglob("*") if each.suffix in kinds) if path.is_dir() else [path]
    if not files or files[0].suffix not in kinds:
        raise RunFailed(f"{path}: expected a file that ends in {', '.join(kinds)}, or a folder with such files")
    return files


def check_sources(texts: Path | None, urls: Sequence[str]) -> None:
    """Raise RunFailed for what shows before anything is asked: no such text, or no package for pages."""
    files = files_of(texts) if texts is not None else []
    if urls or any(each.suffix in PAGES for each in files):
        check_extra("step 'questions'", "web", "trafilatura", "lxml_html_clean")
    for file in files:
        _read(file)


def read_texts(texts: Path | None, urls: Sequence[str], cache: Path) -> list[tuple[str, str]]:
    """(name, text) of all files and pages, in order. A page is fetched once and then kept in the cache."""
    named = []
    for file in files_of(texts) if texts is not None else []:
        text = _read(file)
        name = file.name if file == texts else file.relative_to(texts or file).as_posix()
        named.append((name, from_html(text) if file.suffix in PAGES else text))
    return named + [(url, from_html(_fetched(url, cache))) for url in urls]


def from_html(page: str) -> str:
    """The main text of a page as Markdown, without menus and advertisements; empty if it has none."""
    import trafilatura

    found = trafilatura.extract(page, output_format="markdown", include_comments=False, include_links=False)
    return found or ""


def passages_of(name: str, text: str, words: int) -> Iterator[Passage]:
    """The passages of a text: whole paragraphs of one section, up to a number of words. A longer paragraph is cut."""
    section, held = "", list[str]()

    def flushed() -> Iterator[Passage]:
        if held:
            yield Passage("\n\n".join(held), name, section)
            held.clear()

    for part in _parts(text, words):
        if heading := _HEADING.match(part):
            yield from flushed()
            section = (heading["name"] or heading["chapter"]).strip()
            continue
        if sum(len(each.split()) for each in held) + len(part.split()) > words:
            yield from flushed()
        held.append(part)
    yield from flushed()


def _parts(text: str, words: int) -> Iterator[str]:
    """Headings and paragraphs, none longer than a number of words."""
    for block in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")):
        paragraph = list[str]()
        for line in block.split("\n"):
            if _HEADING.match(line.strip()):
                yield from _cut(paragraph, words)
                paragraph = []
                yield line.strip()
            else:
                paragraph.append(line)
        yield from _cut(paragraph, words)


def _cut(lines: Sequence[str], words: int) -> Iterator[str]:
    found = list(re.finditer(r"\S+", text := "\n".join(lines)))
    for start in range(0, len(found), words):
        part = found[start : start + words]
        yield text[part[0].start() : part[-1].end()]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RunFailed(f"{file}: cannot be read as UTF-8 text ({error})") from None


def _fetched(url: str, cache: Path) -> str:
    """The page, from the cache if it has been fetched before."""
    import httpx2

    with closing(ReplyStore(cache, "pages")) as store:
        if kept := store.get([url]).get(url):
            return str(kept.value)
        try:
            with httpx2.stream("GET", url, follow_redirects=True, timeout=_SECONDS) as response:
                if response.status_code != 200:
                    raise RunFailed(f"{url}: the server replied with HTTP {response.status_code}")
                body = bytearray()
                for part in response.iter_bytes():
                    body += part
                    if len(body) > MOST_BYTES:
                        raise RunFailed(f"{url}: the page is larger than {MOST_BYTES >> 20} MiB")
                text = body.decode(response.encoding or "utf-8", "replace")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise RunFailed(f"{url}: {type(error).__name__}: {error}") from None
        store.put(url, text)
        return text

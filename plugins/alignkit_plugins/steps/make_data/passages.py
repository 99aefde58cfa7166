"""Passages of text files and web pages, each with the heading above it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from alignkit import RunFailed
from alignkit.errors import check_extra
from alignkit_http import ReplyStore

PLAIN, PAGES = (".txt", ".md"), (".html", ".htm")
MOST_BYTES = 20 << 20  # of a web page
MOST_SECONDS = 60.0  # for a web page
# A heading of Markdown, or a line such as "Chapter 3: The sea" or "CHAPTER III".
_HEADING = re.compile(
    r"^[ \t]*(?:#{1,6}[ \t]+(?P<name>\S.*?)[ \t#]*|(?P<chapter>chapter[ \t]+(?:\d+|[ivxlc]+)\b.{0,80}))$", re.I | re.M
)
_CHARSET = re.compile(rb"<meta[^>]+charset=[\"']?([\w-]+)", re.I)


@dataclass(frozen=True)
class Passage:
    """Paragraphs that follow each other. source: a file's name or an address. section: the heading above it."""

    text: str
    source: str
    section: str = ""


def files_of(path: Path) -> list[Path]:
    """The file, or those of a folder and its folders, by name. Raises RunFailed if there is none that can be read."""
    files = [path] if not path.is_dir() else sorted(each for each in path.rglob("*") if each.is_file())
    files = [each for each in files if each.suffix.lower() in (*PLAIN, *PAGES)]
    if not files:
        kinds = ", ".join((*PLAIN, *PAGES))
        raise RunFailed(f"{path}: expected a file that ends in {kinds}, or a folder with such files")
    return files


def check_sources(texts: Path | None, urls: Sequence[str]) -> None:
    """Raise RunFailed for what shows before anything is asked: no such text, or no package for pages."""
    files = files_of(texts) if texts is not None else []
    if urls or any(each.suffix.lower() in PAGES for each in files):
        check_extra("step 'questions'", "web", "trafilatura", "lxml_html_clean")
    for file in files:
        _read(file)


def read_texts(texts: Path | None, urls: Sequence[str], cache: Path) -> list[tuple[str, str]]:
    """(name, text) of all files and pages, in order. A page is fetched once and then kept in the cache."""
    named = []
    for file in files_of(texts) if texts is not None else []:
        text = _read(file)
        name = file.name if file == texts else file.relative_to(texts or file).as_posix()
        named.append((name, from_html(text) if file.suffix.lower() in PAGES else text))
    return named + [(url, from_html(_fetched(url, cache))) for url in urls]


def from_html(page: str) -> str:
    """The main text of a page as Markdown, without menus and advertisements; empty if it has none."""
    import trafilatura

    return trafilatura.extract(page, output_format="markdown", include_comments=False, include_links=False) or ""


def passages_of(name: str, text: str, words: int) -> Iterator[Passage]:
    """The passages of a text: whole paragraphs of one section, up to a number of words. A longer paragraph is cut."""
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


def _fetched(url: str, cache: Path) -> str:
    """The page, from the cache if it has been fetched before."""
    import httpx2

    with closing(ReplyStore(cache, "pages")) as store:
        if kept := store.get([url]).get(url):
            return str(kept.value)
        end, body = time.monotonic() + MOST_SECONDS, bytearray()
        try:
            # A redirect could lead to any machine that this one reaches.
            with httpx2.stream("GET", url, follow_redirects=False, timeout=MOST_SECONDS) as response:
                if response.is_redirect:
                    there = response.headers.get("location", "")
                    raise RunFailed(f"{url}: the page has moved to {there}; put that address into 'urls'")
                if response.status_code != 200:
                    raise RunFailed(f"{url}: the server replied with HTTP {response.status_code}")
                for part in response.iter_bytes():
                    body += part
                    if len(body) > MOST_BYTES or time.monotonic() > end:
                        limit = f"{MOST_BYTES >> 20} MiB or {MOST_SECONDS:.0f} s"
                        raise RunFailed(f"{url}: the page takes more than {limit}")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise RunFailed(f"{url}: {type(error).__name__}: {error}") from None
        named = response.charset_encoding or (meta[1].decode() if (meta := _CHARSET.search(body[:2048])) else "utf-8")
        try:
            text = body.decode(named, "replace")
        except LookupError:
            raise RunFailed(f"{url}: the page is in '{named}', an encoding that Python does not have") from None
        store.put(url, text)
        return text

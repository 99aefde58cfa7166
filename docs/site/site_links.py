"""What the pages of a built site link to and load: links that lead nowhere, and addresses of other
hosts.

The generator checks links between pages. This checks the result: also links to reports, pictures,
scripts and styles.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

LOADED = {
    "script": "src",
    "img": "src",
    "source": "srcset",
    "iframe": "src",
    "link": "href",
    "object": "data",
}
NOT_LOADED = {"canonical", "next", "prev", "alternate"}  # kinds of <link> that name a page


class _Page(HTMLParser):
    """The anchors of a page, its links, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "__skip"}
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        self.anchors |= {known[name] for name in ("id", "name") if name in known}
        if tag == "a" and "href" in known:
            self.links.append(known["href"])
        elif known.get(LOADED.get(tag, "")) and not NOT_LOADED & set(known.get("rel", "").split()):
            self.loads.append(known[LOADED[tag]])


@cache
def _page(file: Path) -> _Page:
    return _Page(file.read_text(encoding="utf-8"))


def broken(site: Path) -> Iterator[str]:
    """Links and files that are not there, as `PAGE: TARGET`."""
    for file in sorted(site.rglob("*.html")):
        for target in (*_page(file).links, *_page(file).loads):
            address, anchor = urldefrag(target)
            # That one is shown for any address
            if urlsplit(address).scheme or file.name == "404.html":
                continue
            found = (file.parent / unquote(address)).resolve() if address else file
            is_page = found.suffix == ".html" and found.is_file()
            if not found.is_file() or (is_page and unquote(anchor) not in _page(found).anchors):
                yield f"{file.relative_to(site)}: {target}"


def foreign(site: Path) -> Iterator[str]:
    """What a page would load from another host, as `PAGE: ADDRESS`."""
    for file in sorted(site.rglob("*.html")):
        for target in _page(file).loads:
            if urlsplit(target).netloc:
                yield f"{file.relative_to(site)}: {target}"

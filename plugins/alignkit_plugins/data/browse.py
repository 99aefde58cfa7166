"""The page of `alignkit data browse`: the rows that a search finds, and one of them in full. It has
no scripts.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from alignkit.data.group import Group
from alignkit.errors import check_extra
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.data.clean_command import faults
from alignkit_plugins.data.found_rows import Row, Rows, encoder_of, entry, read_rows
from alignkit_plugins.data.rules import Fault, Rules, redacted
from alignkit_plugins.formats.columns import words_in
from alignkit_plugins.formats.shown import shortened, shown
from alignkit_plugins.people.server import (
    PACKAGES,
    addresses_of,
    annotators_of,
    announce,
    listening,
    server_of,
)
from alignkit_plugins.people.texts import cut, visible
from alignkit_plugins.policies.row_tokens import heading, marked

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from alignkit_plugins.people.site import Session, Sessions

HERE = Path(__file__).parent
PAGE = 50  # rows in the list
LONGEST = 20_000  # characters of a text
TOKENIZED = 50_000  # characters of a row whose tokens are shown
ANY = "any"  # instead of a rule's name


def serve(file: str, rules: Sequence[str], model: str | None) -> None:
    """Read the rows, and serve the page until Ctrl-C.

    Raises RunFailed if a package is missing, RecipeError for wrong arguments, DataError for rows
    that cannot be read.
    """
    check_extra("the page", "label", *PACKAGES)
    from alignkit_plugins.people.site import Sessions

    options = entry(file, rules)
    options.check("alignkit data browse")
    browsed = Browsed(
        read_rows(options.data), options, None if model is None else encoder_of(model)
    )
    sessions = Sessions(annotators_of(None))
    with listening(None) as listener, suppress(KeyboardInterrupt):
        announce(addresses_of(sessions, listener), "Open it in a browser of this machine.")
        server_of(make_page(browsed, sessions)).run(sockets=[listener])


class Browsed:
    """The rows of a file, and what is wrong with them. encoder: of the model whose tokens are
    shown.
    """

    def __init__(self, read: Rows, rules: Rules, encoder: Encoder | None = None):
        self.read, self.rows, self.encoder = read, read.rows, encoder
        self.faults = faults(self.rows, rules)
        for at, row in enumerate(self.rows):
            if rules.personal and at not in self.faults and redacted(row.raw) != row.raw:
                self.faults[at] = Fault("personal", "has personal details")
        self.counts = Counter(fault.rule for fault in self.faults.values())

    def view(self, query: Mapping[str, str]) -> dict[str, Any]:
        """What the page shows. query: `text` and `fault` of the rows that are wanted, `first` and
        `row`, by place.
        """
        wanted = {"text": query.get("text", ""), "fault": query.get("fault", "")}
        found = [at for at in range(len(self.rows)) if self._fits(at, **wanted)]
        first = _number(query.get("first"), len(found))
        listed = found[first : first + PAGE]
        at = (
            _number(query.get("row"), len(self.rows))
            if "row" in query
            else next(iter(listed), None)
        )

        def link(**more: int) -> str:
            return "?" + urlencode({**wanted, "first": first, **more})

        return {
            **wanted,
            "total": len(found),
            "first": first,
            "faults": {ANY: self.counts.total(), **dict(self.counts.most_common())}
            if self.counts
            else {},
            "list": [
                {**self._line(one), "link": link(row=one), "current": one == at} for one in listed
            ],
            "earlier": link(first=max(0, first - PAGE)) if first else "",
            "later": link(first=first + PAGE) if first + PAGE < len(found) else "",
            "row": None if at is None else self._row(at),
        }

    def _fits(self, at: int, text: str, fault: str) -> bool:
        if fault and (at not in self.faults or fault not in (ANY, self.faults[at].rule)):
            return False
        return text.lower() in " ".join(words_in(self.rows[at].raw)).lower()

    def _line(self, at: int) -> dict[str, Any]:
        row = self.rows[at]
        text = row.bad or " ".join(one.text for one in _said(row)[:1])
        fault = self.faults.get(at)
        why = visible(f"{fault.rule.replace('_', ' ')}: {fault.reason}") if fault else ""
        return {"where": visible(str(row)), "preview": visible(shortened(text)), "fault": why}

    def _row(self, at: int) -> dict[str, Any]:
        row = self.rows[at]
        columns = [pair for group in row.groups for pair in group.meta.items()]
        return {
            **self._line(at),
            "said": [
                [one.who, [visible(fact) for fact in one.facts], _shown(one.text)]
                for one in _said(row)
            ],
            "columns": [[visible(str(name)), _shown(_text(value))] for name, value in columns],
            "raw": _shown(json.dumps(row.raw, indent=1, ensure_ascii=False, default=str)),
            "tokens": [tokens for group in row.groups for tokens in self._tokens(group, row)],
        }

    def _tokens(self, group: Group, row: Row) -> Iterator[dict[str, Any]]:
        """The tokens of a group as a stage learns it, each with whether it is in the loss."""
        if self.encoder is None or len(_text(row.raw)) > TOKENIZED:
            return
        encoded = self.encoder.encode(group, sys.maxsize)
        for one in marked(self.encoder, encoded, False) if encoded is not None else ():
            pieces = [visible(piece).replace("\n", "⏎\n") for piece in one.pieces]
            yield {"title": heading(one), "pieces": list(zip(pieces, one.counts, strict=True))}


def _said(row: Row) -> list[Any]:
    return [said for group in row.groups for said in shown(group)]


def _number(text: str | None, most: int) -> int:
    """A place that a page asks for, within bounds."""
    return min(int(text), max(0, most - 1)) if text and text.isdecimal() else 0


def _shown(text: str) -> str:
    return visible(cut(text, LONGEST))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def make_page(browsed: Browsed, sessions: Sessions) -> Starlette:
    """The page's application."""
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    from alignkit_plugins.people.pages import Site, guarded, templates

    site = Site(sessions, browsed.read.name, templates("alignkit data browse", HERE))

    async def endpoint(request: Request) -> Response:
        async def show(session: Session) -> Response:
            facts = {
                "format": browsed.read.format,
                "count": len(browsed.rows),
                **browsed.view(request.query_params),
            }
            page: Response = site.page("browse.html.j2", session, **facts)
            return page

        response: Response = await site.opened(show)(request)
        return response

    return guarded(
        [Route("/", endpoint), Mount("/browse", StaticFiles(directory=HERE / "static"))], sessions
    )

"""The page of `alignkit data browse`: its routes, and the command from its arguments to Ctrl-C."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.extras import check_extra
from alignkit.io.printable import printable
from alignkit_apps.data.clean import check_target
from alignkit_apps.data.corpus import Corpus, corpus_of, entry, text_of
from alignkit_apps.web.hosting import PACKAGES, addresses_of, annotators_of, announce, hosted, listening

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.responses import Response

    from alignkit_apps.data.browse import BrowseApi, Marks
    from alignkit_apps.web.guard import Session, Sessions

HERE = Path(__file__).parent
POLL = 0.5  # seconds between two looks at the server


def serve(
    file: str, rules: Sequence[str], model: str | None, path: Path | None, port: int | None, open_page: bool
) -> None:
    """Read the rows, serve the page until Ctrl-C, and look for faults meanwhile.

    Raises RunFailed if a package is missing, RecipeError for wrong arguments, DataError for rows or marks that cannot
    be read.
    """
    check_extra("the page", "label", *PACKAGES)
    from alignkit.tokens.encoding import Encoder
    from alignkit_apps.data.browse import BrowseApi, Marks
    from alignkit_apps.web.guard import Sessions

    options = entry(file, rules)
    options.check("alignkit data browse")
    corpus = corpus_of(options.data)
    name = re.split(r"[.\[]", Path(corpus.spec.sources[0].name).name)[0]  # without a suffix or a split
    path = path or Path(f"{name}.marks.jsonl")
    check_target(path, corpus, "--marks")
    marks = Marks(path, corpus.files)
    api = BrowseApi(corpus, marks, None if model is None else Encoder(*text_of(model)))
    sessions = Sessions(annotators_of(None))
    with (
        listening(port) as listener,
        hosted(make_page(api, sessions), listener) as look,
        suppress(KeyboardInterrupt),
    ):
        announce(addresses_of(sessions, listener), "Open it in a browser of this machine.", open_page)
        api.look(options)
        while True:
            look()
            time.sleep(POLL)
    print(printable(_said_last(file, marks)), file=sys.stderr)


def _said_last(file: str, marks: Marks) -> str:
    count = len(marks)
    if not count:
        return "no row is marked"
    rows, them = ("rows are", "them") if count > 1 else ("row is", "it")
    clean = f"alignkit data clean {shlex.quote(file)} --out FILE marks={marks.path}"
    return f"{count} {rows} marked in {marks.path}; `{clean}` leaves {them} out"


def make_page(api: BrowseApi, sessions: Sessions) -> Starlette:
    """The page's application."""
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    from alignkit_apps.web.pages import Site, guarded, templates

    site = Site(sessions, api.corpus.name, templates("alignkit data browse", HERE))
    routes: list[Any] = [
        Route("/", site.opened(partial(_page, site, api))),
        *(Route(f"/api/browse/{name}", partial(site.action, act=getattr(api, name)), methods=["POST"])
          for name in ("rows", "row", "tokens", "mark")),
        Mount("/browse", StaticFiles(directory=HERE / "static")),
    ]  # fmt: skip
    return guarded(routes, sessions)


async def _page(site: Any, api: BrowseApi, session: Session) -> Response:
    corpus: Corpus = api.corpus
    facts = {"format": corpus.readers[0].format_name, "count": len(corpus.rows), "columns": api.columns()}
    response: Response = site.page(
        "browse.html.j2", session, tokens=api.encoder is not None, marks=str(api.marks.path), **facts
    )
    return response

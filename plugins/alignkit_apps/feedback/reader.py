"""Stores of feedback as data of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignkit import Reader


class StoreReader(Reader):
    """Labels of people, which runs ask for. How far the annotators agree is what reports show of them."""

    grows = True
    no_rows = "it has no label that the recipe reads; pairs of evaluations are held out, unless 'held_out: true'"

    def rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        from alignkit_apps.feedback.rows import store_rows

        return store_rows(path)

    def digest(self, path: Path) -> str:
        from alignkit_apps.feedback.rows import store_digest

        return store_digest(path)

    def facts(self, path: Path) -> Mapping[str, Any]:
        from alignkit_apps.feedback.agreement_summary import agreement
        from alignkit_apps.feedback.effective_labels import labeled
        from alignkit_apps.feedback.store import Store

        with Store.open(path, write=False) as store:
            found = agreement(labeled(store))
        return {"agreement": found} if found else {}

"""The reader of stores, and what a run says of the stores that it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignkit import Reader, hookimpl


class StoreReader(Reader):
    """Labels of people, which runs ask for. How far the annotators agree is what reports show of
    them.
    """

    grows = True

    def rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        from alignkit_plugins.people.votes import store_rows

        return store_rows(path)

    def digest(self, path: Path) -> str:
        from alignkit_plugins.people.votes import store_digest

        return store_digest(path)

    def facts(self, path: Path) -> Mapping[str, Any]:
        from alignkit_plugins.people.agreement import agreement
        from alignkit_plugins.people.store import Store
        from alignkit_plugins.people.votes import attributes, labeled

        with Store.open(path) as store:
            found = agreement(labeled(store), attributes(store))
        return {"agreement": found} if found else {}


@hookimpl(tryfirst=True)
def run_started(run: Any) -> None:
    """Raise DataError if the run has labels that cannot be read. Say which stores are gone."""
    from alignkit_plugins.people.step import STORE
    from alignkit_plugins.people.store import Store

    if (path := run.folder / STORE).exists():
        Store.open(path).close()
    for stage in run.recipe.stages:
        waits = run.store.record(stage).get("waits_for")
        if waits and not Path(waits["store"]).exists():
            gone = f"the store {waits['store']} is gone, with all labels in it"
            run.reporter.say(f"{stage}: warning: {gone}; people will be asked again")

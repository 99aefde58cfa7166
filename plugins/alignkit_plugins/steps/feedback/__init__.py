"""Labels of people: the format `feedback`, which reads them, and the step `people`, which asks for them."""

from __future__ import annotations

from typing import Any

from alignkit import Register, hookimpl
from alignkit_apps.feedback.database import SUFFIX
from alignkit_apps.feedback.reader import StoreReader
from alignkit_plugins.steps.feedback.format import Feedback
from alignkit_plugins.steps.feedback.people import People


@hookimpl
def register_formats(register: Register) -> None:
    register("feedback", Feedback, summary=Feedback.summary)


@hookimpl
def register_steps(register: Register) -> None:
    register("people", People, summary="ask people about rows, wait, and continue with their labels")


@hookimpl
def register_readers(register: Register) -> None:
    register(SUFFIX, StoreReader, summary="people's labels from a store")


@hookimpl(tryfirst=True)
def run_started(run: Any) -> None:
    """Raise DataError if the run has labels that cannot be read. Say which stores are gone."""
    from alignkit_apps.feedback.store import Store
    from alignkit_apps.feedback.waiting import STORE

    if (path := run.folder / STORE).exists():
        Store.open(path, write=False).close()
    for stage in run.recipe.stages:
        if (gone := run.store.labels(stage)) is not None and not gone.exists():
            text = f"{stage}: warning: the store {gone} is gone, with all labels in it; people will be asked again"
            run.reporter.say(text)

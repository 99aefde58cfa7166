"""Labels of people: the format `feedback`, which reads them, and the step `people`, which asks for them."""

from __future__ import annotations

from alignkit import Register, hookimpl
from alignkit_plugins.feedback.format import Feedback
from alignkit_plugins.feedback.people import People


@hookimpl
def register_formats(register: Register) -> None:
    register("feedback", Feedback, summary=Feedback.summary)


@hookimpl
def register_steps(register: Register) -> None:
    register("people", People, summary="ask people about rows, wait, and continue with their labels")

"""What a page sends: JSON that is checked before anything reads it."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from alignkit_apps.feedback.labels import BadLabel, StrictModel


class Undone(StrictModel):
    """What its author takes back. of: an event; uuid: of the event that undoes it."""

    uuid: str
    of: str


class Agreed(StrictModel):
    """Whether somebody agrees to the terms."""

    uuid: str
    granted: bool


M = TypeVar("M", bound=StrictModel)


def read(model: type[M], message: Any) -> M:
    """The message that a page sent. Raises BadLabel if it is not one of `model`."""
    try:
        return model.model_validate(message)
    except ValidationError as error:
        faults = "; ".join(f"'{'.'.join(map(str, f['loc']))}': {f['msg']}" for f in error.errors(include_url=False))
        raise BadLabel(f"the page sent what the server does not take: {faults}") from None

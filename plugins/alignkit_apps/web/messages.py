"""What a page sends: JSON that is checked before anything reads it."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from alignkit_apps.feedback.labels import BadLabel


class PageMessage(BaseModel):
    """A message of a page, with nothing missing and nothing else in it."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


M = TypeVar("M", bound=PageMessage)


def read(model: type[M], message: Any) -> M:
    """The message that a page sent. Raises BadLabel if it is not one of `model`."""
    try:
        return model.model_validate(message)
    except ValidationError as error:
        faults = "; ".join(f"'{'.'.join(map(str, f['loc']))}': {f['msg']}" for f in error.errors(include_url=False))
        raise BadLabel(f"the page sent what the server does not take: {faults}") from None

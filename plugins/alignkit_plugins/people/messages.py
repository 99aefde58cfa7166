"""What a page sends, which is checked before anything reads it, and what it shows: texts in which
nothing hides.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

from pydantic import ValidationError

from alignkit.io.text import BIDI
from alignkit_plugins.people.labels import BadLabel, StrictModel

# Joiners and the first variation selectors stay, because emoji and many scripts need them.
_UNSEEN = "\u180e\u200b\u2060-\u2064\ufeff\u115f\u1160\u3164\uffa0\ufff9-\ufffb"
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff"
# Invisible, and used to hide instructions or bytes
_CARRIERS = "\U000e0000-\U000e007f\U000e0100-\U000e01ef"
_HIDDEN = re.compile(f"[{_CONTROLS}{_UNSEEN}{_CARRIERS}{''.join(BIDI)}]")


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
        faults = "; ".join(
            f"'{'.'.join(map(str, f['loc']))}': {f['msg']}" for f in error.errors(include_url=False)
        )
        raise BadLabel(f"this message is none that the server takes: {faults}") from None


def visible(text: str) -> str:
    """The text with control characters, direction marks and invisible characters named, such as
    ⟦U+202E⟧.
    """
    return _HIDDEN.sub(lambda found: f"⟦U+{ord(found[0]):04X}⟧", text.replace("\r\n", "\n"))

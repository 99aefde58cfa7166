"""Texts of models and people as a page shows them: what would not be seen, or would turn the text, is named."""

from __future__ import annotations

import re

from alignkit.io.printable import BIDI

# Joiners and the first variation selectors stay, because emoji and many scripts need them.
_UNSEEN = "\u180e\u200b\u2060-\u2064\ufeff\u115f\u1160\u3164\uffa0\ufff9-\ufffb"
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff"
_CARRIERS = "\U000e0000-\U000e007f\U000e0100-\U000e01ef"  # invisible, and used to hide instructions or bytes
_HIDDEN = re.compile(f"[{_CONTROLS}{_UNSEEN}{_CARRIERS}{''.join(BIDI)}]")


def visible(text: str) -> str:
    """The text with control characters, direction marks and invisible characters named, such as ⟦U+202E⟧."""
    return _HIDDEN.sub(lambda found: f"⟦U+{ord(found[0]):04X}⟧", text.replace("\r\n", "\n"))

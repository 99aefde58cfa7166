"""Token ids and masks of every family's chat template, on conversations of every kind, are those of
the pins.
"""

from __future__ import annotations

import hashlib
import json
import sys
from datetime import date
from typing import Any

import pytest

from tests.net.changes import NET, ROOT, expected

sys.path.insert(0, str(ROOT / "tests" / "models"))

import families
from matrix import MAX_LENGTH

from alignkit.errors import AlignkitError
from alignkit.tokens import template as chat_template
from alignkit.tokens.chat_templates import PLAIN
from alignkit_plugins.bases import templates

PINS = NET / "pins" / "tokens.json"
MADE = date(2026, 11, 27)  # the day that three families' templates write into the pins
CONVERSATIONS = (
    "single",
    "three turns",
    "the question holds the answer",
    "system, two turns",
    "reasoning, two turns",
    "inline reasoning",
    "white space, two turns",
    "control tokens of the user",
    "unicode",
    "tools",
)
SHOWN = ("single", "tools")  # in full; of the others there is a digest
BUNDLED = {
    name: families.Family(name, text, **families.ALIKE["chatml"])
    for name, text in (
        ("`chat_template: chatml`", templates.CHATML),
        ("`chat_template: hermes`", templates.HERMES),
        ("`chat_template: plain`", PLAIN),
    )
}
families.FAMILIES.update(BUNDLED)


def rows(family: families.Family, kind: str, conversation: str) -> list[Any]:
    """What training on all turns, training on the last one and scoring make of a conversation:
    tokens and lengths.

    A row is the prompt's ids, the answer's ids, and the lengths of runs in the mask, which begins
    with what does not count; or "refused".
    """
    group = families.group(family, conversation)
    found: list[Any] = []
    for turns, scoring in (("all", False), ("last", False), ("all", True)):
        encoder = families.encoder(family, kind)
        try:
            encoded = encoder.encode(group, MAX_LENGTH, turns=turns, scoring=scoring)
        except AlignkitError:
            found.append("refused")
            continue
        assert encoded is not None
        runs, counts = [0], False
        for mark in encoded.responses[0].mask:
            if mark != counts:
                runs.append(0)
                counts = mark
            runs[-1] += 1
        found.append(
            [
                list(encoded.prompt),
                list(encoded.responses[0].tokens),
                runs,
                sorted(encoder.counts.items()),
            ]
        )
    return found


def made() -> dict[str, Any]:
    """FAMILY/TOKENIZER/CONVERSATION -> a digest, or the rows themselves."""
    result: dict[str, Any] = {}
    for name, family in families.FAMILIES.items():
        for kind in family.kinds:
            for conversation in CONVERSATIONS:
                found = rows(family, kind, conversation)
                text = json.dumps(found)
                short = found[0] == "refused" or (conversation in SHOWN and kind == family.kinds[0])
                digest = hashlib.sha256(text.encode()).hexdigest()[:16]
                result[f"{name}/{kind}/{conversation}"] = text if short else digest
    return result


def test_every_template_gives_the_pinned_tokens_and_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "TODAY", MADE)
    assert made() == expected("tokens", json.loads(PINS.read_text(encoding="utf-8")))

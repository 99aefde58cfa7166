"""What tells languages apart: py3langid (Lui and Baldwin 2012), whose model comes with it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from alignkit import RunFailed


@cache
def identifier(among: tuple[str, ...] = ()) -> Any:
    """py3langid's identifier. among: codes of the languages to tell apart (ISO 639-1); default: all."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    found = LanguageIdentifier.from_model_file(MODEL_FILE)
    if among:
        found.set_languages(list(among))
    return found


def check_languages(user: str, codes: Iterable[str]) -> None:
    """Raise RunFailed for a code of a language that py3langid does not know. user: who asks, for the error."""
    labels = identifier().labels
    if unknown := sorted(set(codes) - set(labels)):
        raise RunFailed(f"{user}: py3langid does not know {', '.join(unknown)}; it knows {', '.join(sorted(labels))}")

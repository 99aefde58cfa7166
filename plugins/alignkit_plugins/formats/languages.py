"""What tells languages apart: py3langid (Lui and Baldwin 2012), whose model comes with it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from alignkit import RunFailed


@cache
def identifier() -> Any:
    """py3langid's identifier."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


def check_languages(user: str, codes: Iterable[str]) -> None:
    """Raise RunFailed for a code of a language that py3langid does not know. user: who asks, for
    the error.
    """
    labels = identifier().labels
    if unknown := sorted(set(codes) - set(labels)):
        raise RunFailed(
            f"{user}: py3langid does not know {', '.join(unknown)}; it knows "
            f"{', '.join(sorted(labels))}"
        )

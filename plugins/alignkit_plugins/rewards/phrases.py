"""A recipe's own phrases, for rewards and rules that otherwise know English ones only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pydantic import field_validator

import alignkit
from alignkit import Field, Group
from alignkit.evaluation.answers import spaced, typed, unmarked
from alignkit_plugins.rewards.text import OfAnswers
from alignkit_plugins.text.text_metrics import other_languages


class Phrases(alignkit.Options):
    """Where phrases in other languages are."""

    phrases: Path | None = Field(
        None, "file with your own phrases, one per line, instead of the English ones"
    )

    @field_validator("phrases")
    @classmethod
    def _has_some(cls, file: Path | None) -> Path | None:
        if file is not None:
            own_phrases(file)
        return file

    @property
    def own(self) -> re.Pattern[str] | None:
        """What finds the file's phrases in a text of `plain`."""
        return own_phrases(self.phrases) if self.phrases else None

    def warnings(self, groups: Sequence[Group]) -> list[str]:
        """What to say about data that need such a file."""
        found = "" if self.phrases else other_languages(groups)
        text = f"it knows English phrases, and many texts are in {found}: see its option 'phrases'"
        return [text] if found else []


class OfPhrases(OfAnswers):
    """A reward that looks for phrases."""

    options: Phrases

    def check_prompts(self, groups: Sequence[Group]) -> Sequence[str]:
        super().check_prompts(groups)
        return self.options.warnings(groups)


@cache
def own_phrases(file: Path) -> re.Pattern[str]:
    """What finds the phrases of a file, in whole words. Raises ValueError if it has none."""
    lines = plain(file.read_text("utf-8")).splitlines() if file.is_file() else []
    phrases = "|".join(
        r"\s+".join(map(re.escape, words)) for words in map(str.split, lines) if words
    )
    if not phrases:
        raise ValueError("expected a text file with a phrase on each line")
    return re.compile(rf"(?<!\w)(?:{phrases})(?!\w)")


def plain(text: str) -> str:
    """The text in lower case, without emphasis, and with blanks around each character of a script
    without spaces.
    """
    return spaced(typed(unmarked(text))).lower()

"""Whether an answer is the known one, and whether a pattern occurs in it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import field_validator

import alignkit
from alignkit import DataError, Field, Group, Reward
from alignkit.evaluation import answers
from alignkit_plugins.formats.rows import column_of, row_of
from alignkit_plugins.formats.spoken import TAGS, after_thoughts, answer_in
from alignkit_plugins.formats.text_metrics import repetition
from alignkit_plugins.rewards.answers import scored

# The package `regex` can be interrupted: a policy may write what keeps a pattern busy for years.
SECONDS = 2.0


def checked_pattern(pattern: str) -> str:
    """The pattern. Raises ValueError if it cannot be read."""
    import regex

    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return pattern


class ExactMatch(Reward):
    """1 if the answer (see `alignkit.evaluation.answers`) equals the prompt's known one, or one of
    several, else 0.
    """

    class Options(alignkit.Options):
        column: str = Field(
            "answer", description="column of the prompts with the right answer, or a list of them"
        )
        extract: str = Field(
            "",
            description=(
                "pattern that finds the answer in the response: its last match, or the match's "
                "first group; default: the whole response"
            ),
        )
        strict: bool = Field(
            False,
            description=(
                "letter for letter; false: regardless of Markdown, LaTeX and brackets around it, "
                "case, articles and punctuation; numbers by their value, and choices by their "
                "letter: `**(B)**` is B, `$1,234` is 1234"
            ),
        )
        within: bool = Field(
            False,
            description=(
                "the known answer may be a part of the answer, in whole words: `Paris` of `It is "
                "Paris.`; an answer that names two letters of choices, or denies one, names none"
            ),
        )

        @property
        def verifies(self) -> bool:
            """Whether the scores prove what was learned: not if an answer may name everything."""
            return not self.within

        @field_validator("extract")
        @classmethod
        def _readable(cls, pattern: str) -> str:
            return checked_pattern(pattern)

    options: Options

    def check_prompts(self, groups: Sequence[Group]) -> None:
        for group in groups:
            self._known(group)

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        return scored(groups, self._score, thoughts=True)

    def _score(self, group: Group, text: str) -> float | None:
        known = self._known(group)
        try:
            said = self._extracted(text)
        except TimeoutError:
            return None
        if said is None:
            return 0.0
        right = answers.mentions if self.options.within else answers.same
        if self.options.strict:
            right = _letter_for_letter_within if self.options.within else _letter_for_letter
        return float(any(right(said, one) for one in known))

    def _known(self, group: Group) -> list[str]:
        value = column_of("exact_match", group, self.options.column)
        known = value if isinstance(value, list) else [value]
        if not known or not all(map(_is_answer, known)):
            raise DataError(
                f"exact_match: {row_of(group)}: '{self.options.column}' is {value!r:.60}, not a "
                "text, a number, or a list of these"
            )
        return [str(each) for each in known]

    def _extracted(self, text: str) -> str | None:
        """The part of the answer that counts, None if there is none. Raises TimeoutError.

        A pattern may describe the thoughts, too, as long as what it extracts follows them.
        """
        import regex

        answer, pattern = answer_in(text), self.options.extract
        if not pattern:
            return answer
        found = list(regex.finditer(pattern, answer, timeout=SECONDS))
        if not found and answer != text:
            thoughts = len(text) - len(after_thoughts(text) or "")
            whole = regex.finditer(pattern, text, timeout=SECONDS)
            found = [match for match in whole if match.start(min(1, match.re.groups)) >= thoughts]
        if not found:
            return None
        return str((found[-1][1] or "") if found[-1].re.groups else found[-1][0])


def _letter_for_letter(said: str, known: str) -> bool:
    return unicodedata.normalize("NFC", said) == unicodedata.normalize("NFC", known)


def _letter_for_letter_within(said: str, known: str) -> bool:
    known, said = (" ".join(unicodedata.normalize("NFC", text).split()) for text in (known, said))
    return re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(known)}(?!\w|[.,]\d)", said) is not None


def _is_answer(value: object) -> bool:
    """Whether it is a text or a number. A blank one is missing: an empty response must not equal
    it.
    """
    return (
        isinstance(value, str | int | float)
        and not isinstance(value, bool)
        and bool(str(value).strip())
    )


class Regex(Reward):
    """1 if the pattern occurs in the answer, else 0. A pattern with a tag of thoughts reads these,
    too.
    """

    class Options(alignkit.Options):
        pattern: str = Field(
            min_length=1, description="regular expression, as the package `regex` reads it"
        )
        whole: bool = Field(False, description="the whole answer must match, not a part of it")
        scale: float = Field(
            1.0, description="the score of an answer that matches; -1 to train against it"
        )

        @field_validator("pattern")
        @classmethod
        def _readable(cls, pattern: str) -> str:
            return checked_pattern(pattern)

    options: Options

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        import regex

        pattern = regex.compile(self.options.pattern)
        match = pattern.fullmatch if self.options.whole else pattern.search

        def score(group: Group, answer: str) -> float | None:
            try:
                return self.options.scale if match(answer, timeout=SECONDS) else 0.0
            except TimeoutError:
                return None

        return scored(
            groups, score, thoughts=any(f"{tag}>" in self.options.pattern for tag in TAGS)
        )


class Repetition(Reward):
    """0 if nothing is repeated, up to -1 if everything is. An answer shorter than n repeats
    nothing. Thoughts count.
    """

    class Options(alignkit.Options):
        n: int = Field(3, ge=1, le=100, description="length of a sequence that counts as repeated")
        unit: Literal["words", "characters"] = Field(
            "words",
            description="what a sequence consists of; `characters` for languages without spaces",
        )
        scale: float = Field(-1.0, description="factor of the repeated share")

    options: Options

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        return scored(
            groups, lambda group, answer: self.options.scale * self._share(answer), thoughts=True
        )

    def _share(self, answer: str) -> float:
        words = answer.casefold().split()
        units: Sequence[str] = words if self.options.unit == "words" else " ".join(words)
        return repetition(units, self.options.n)

"""Rewards for what an answer says: the known answer, a pattern, repetition, a language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator

import alignkit
from alignkit import DataError, Field, Group, Reward
from alignkit.errors import check_extra
from alignkit.evaluation import answers
from alignkit.reward import Scores
from alignkit_plugins.formats.rows import column_of, row_of
from alignkit_plugins.formats.spoken import TAGS, after_thoughts, answer_in, answer_of, last_turn
from alignkit_plugins.formats.text_metrics import check_languages, identifier, repetition

# The package `regex` can be interrupted: a policy may write what keeps a pattern busy for years.
SECONDS = 2.0


def scored(
    groups: Sequence[Group],
    score: Callable[[Group, str], float | None],
    *,
    thoughts: bool = False,
    calls: bool = False,
) -> Scores:
    """What `score` makes of each answer, as `Reward.score` returns it. thoughts: with those before
    it. calls: with those of tools.
    """
    read = last_turn if thoughts else answer_of
    scores: list[float | None] = []
    for group in groups:
        scores += [score(group, read(response, calls=calls)) for response in group.responses]
    return {"": scores}


def _checked(pattern: str) -> str:
    """The pattern. Raises ValueError if it cannot be read."""
    import regex

    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_checked)]


class ExactMatch(Reward):
    """1 if the answer equals the prompt's known one, or one of several, else 0.

    Regardless of Markdown, LaTeX and brackets around it, case, articles and punctuation; numbers
    count by their value, and choices by their letter: `**(B)**` is B (see
    `alignkit.evaluation.answers`).
    """

    class Options(alignkit.Options):
        column: str = Field(
            "answer", "column of the prompts with the right answer, or a list of them"
        )
        extract: Pattern = Field(
            "",
            (
                "pattern that finds the answer in the response: its last match, or the "
                "match's first group; default: the whole response"
            ),
        )
        within: bool = Field(
            False,
            (
                "the known answer may be a part of the answer, in whole words: `Paris` of `It is "
                "Paris.`; an answer that names two choices, or rules out its own, names none"
            ),
        )

        @property
        def verifies(self) -> bool:
            """Whether the scores prove what was learned: not if an answer may name everything."""
            return not self.within

    options: Options

    def check_prompts(self, groups: Sequence[Group]) -> None:
        for group in groups:
            self._known(group)

    def score(self, groups: Sequence[Group]) -> Scores:
        return scored(groups, self._score, thoughts=True)

    def _score(self, group: Group, text: str) -> float | None:
        known = self._known(group)
        try:
            answer = self._extracted(text)
        except TimeoutError:
            return None
        if answer is None:
            return 0.0
        right = answers.mentions if self.options.within else answers.same
        return float(any(right(answer, one) for one in known))

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
        matches = list(regex.finditer(pattern, answer, timeout=SECONDS))
        if not matches and answer != text:
            thoughts = len(text) - len(after_thoughts(text) or "")
            for match in regex.finditer(pattern, text, timeout=SECONDS):
                if match.start(min(1, match.re.groups)) >= thoughts:
                    matches.append(match)
        if not matches:
            return None
        last = matches[-1]
        return str((last[1] or "") if last.re.groups else last[0])


def _is_answer(value: object) -> bool:
    """Whether it is a text or a number. A blank one is missing: an empty response must not equal
    it.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    return bool(str(value).strip())


class Regex(Reward):
    """1 if the pattern occurs in the answer, else 0. A pattern with a tag of thoughts reads these,
    too.
    """

    class Options(alignkit.Options):
        pattern: Pattern = Field(
            min_length=1, description="regular expression, as the package `regex` reads it"
        )
        scale: float = Field(1.0, "the score of an answer that matches; -1 to train against it")

        @property
        def grader(self) -> str:
            """Another pattern is another reward."""
            return f"regex {self.pattern}"

    options: Options

    def score(self, groups: Sequence[Group]) -> Scores:
        import regex

        pattern = regex.compile(self.options.pattern)

        def score(group: Group, answer: str) -> float | None:
            try:
                return self.options.scale if pattern.search(answer, timeout=SECONDS) else 0.0
            except TimeoutError:
                return None

        thoughts = any(f"{tag}>" in self.options.pattern for tag in TAGS)
        return scored(groups, score, thoughts=thoughts, calls=True)


class Repetition(Reward):
    """0 if nothing is repeated, up to -1 if everything is.

    An answer shorter than n repeats nothing. Thoughts count.
    """

    class Options(alignkit.Options):
        n: int = Field(3, "length of a sequence that counts as repeated", ge=1, le=100)
        unit: Literal["words", "characters"] = Field(
            "words", "what a sequence consists of; `characters` for languages without spaces"
        )
        scale: float = Field(-1.0, "factor of the repeated share")

    options: Options

    def score(self, groups: Sequence[Group]) -> Scores:
        return scored(groups, self._score, thoughts=True, calls=True)

    def _score(self, group: Group, answer: str) -> float:
        words = answer.casefold().split()
        units = words if self.options.unit == "words" else " ".join(words)
        return self.options.scale * repetition(units, self.options.n)


class Language(Reward):
    """1 if the answer is in the expected language, else 0, also if it has no letters.

    The language is named by py3langid (Lui and Baldwin 2012), whose model comes with it.
    """

    class Options(alignkit.Options):
        language: str | None = Field(
            None, "code of the expected language, such as `de` (ISO 639-1)"
        )
        column: str | None = Field(None, "column of the prompts that holds the code instead")

        def check_values(self) -> None:
            if self.language is not None and self.column is not None:
                raise ValueError("set 'language' or 'column', or neither for that of the prompt")

        @property
        def packages(self) -> tuple[str, ...]:
            """The package whose version decides the scores."""
            return ("py3langid",)

        @property
        def grader(self) -> str:
            """Another language is another reward."""
            return f"language {self.language}"

    options: Options

    def check(self, folder: Path) -> None:
        check_extra("reward 'language'", "language", "py3langid")
        if self.options.language is not None:
            check_languages("reward 'language'", [self.options.language])

    def check_prompts(self, groups: Sequence[Group]) -> None:
        for group in groups:
            self._expected(group)

    def score(self, groups: Sequence[Group]) -> Scores:
        return scored(groups, self._score)

    def _score(self, group: Group, answer: str) -> float:
        has_letters = any(map(str.isalpha, answer))
        return float(has_letters and _language_of(answer) == self._expected(group))

    def _expected(self, group: Group) -> str:
        """The expected code. Raises DataError for a prompt without one."""
        if self.options.language is not None:
            return self.options.language
        if self.options.column is None:
            questions = [turn["content"] for turn in group.prompt if turn["role"] == "user"]
            return _language_of(questions[-1] if questions else "")
        code = column_of("language", group, self.options.column)
        known = identifier().labels
        if code not in known:
            raise DataError(
                f"language: {row_of(group)}: '{self.options.column}' is {code!r:.60}, expected one "
                f"of {', '.join(sorted(known))}"
            )
        return str(code)


def _language_of(text: str) -> str:
    return str(identifier().classify(text)[0])

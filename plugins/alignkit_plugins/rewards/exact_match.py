"""The reward `exact_match`: whether an answer is the known one."""

from __future__ import annotations

from collections.abc import Sequence

import alignkit
from alignkit import DataError, Field, Group
from alignkit.evaluation import answers
from alignkit.evaluation.numbers import NEXT
from alignkit_plugins.rewards.text import SECONDS, OfAnswers, Pattern
from alignkit_plugins.text.rows import column_of, row_of
from alignkit_plugins.text.spoken import after_thoughts, answer_in

LAST_NUMBER = "last number"  # an option's name for what follows, which has no group
# With a unit, which must be the known one if there is one; words that often follow a number are none
_NUMBER = (
    r"[-−]?(?:\d+ \d+/\d+|\d+(?:,\d{3})*(?:\.\d+|/\d+)?|\.\d+)(?:[^\S\n]?(?:[%°][CF]?"
    rf"|(?!(?:{NEXT}|remaining|now|today)\b)[^\W\d_]{{1,20}}(?:/[^\W\d_]{{1,9}})?))?"
)


class ExactMatch(OfAnswers):
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
                "pattern that finds the answer in the response: its last match, or the match's "
                "first group; `last number` finds that with its unit; default: the whole response"
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
    thoughts = True

    def grade(self, answer: str, known: Sequence[str]) -> float | None:
        try:
            extracted = self._extracted(answer)
        except TimeoutError:
            return None
        if extracted is None:
            return 0.0
        right = answers.mentions if self.options.within else answers.same
        return float(any(right(extracted, one) for one in known))

    def known(self, group: Group) -> list[str]:
        value = column_of("exact_match", group, self.options.column)
        known = value if isinstance(value, list) else [value]
        if not known or not all(map(_is_answer, known)):
            raise DataError(
                f"exact_match: {row_of(group)}: '{self.options.column}' is {value!r:.60}, not a "
                "text, a number, or a list of these"
            )
        return list(map(str, known))

    def _extracted(self, text: str) -> str | None:
        """The part of the answer that counts, None if there is none. Raises TimeoutError.

        A pattern may describe the thoughts, too, as long as what it extracts follows them.
        """
        import regex

        answer, pattern = answer_in(text), self.options.extract
        if not pattern:
            return answer
        if pattern == LAST_NUMBER:
            pattern = _NUMBER
        matches = list(regex.finditer(pattern, answer, timeout=SECONDS))
        after = after_thoughts(text) or ""
        if not matches and text.endswith(after):
            thoughts = len(text) - len(after)
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

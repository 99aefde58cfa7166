"""The reward `language`: whether an answer is in the expected language."""

from __future__ import annotations

from pathlib import Path

import alignkit
from alignkit import DataError, Field, Group
from alignkit_plugins.extras import check_extra
from alignkit_plugins.rewards.text import OfAnswers
from alignkit_plugins.text.rows import column_of, row_of
from alignkit_plugins.text.text_metrics import check_languages, identifier, language_of


class Language(OfAnswers):
    """1 if the answer is in the expected language, else 0. Text with few letters, which may be in
    any language, has no score.

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
    may_not_apply = True  # a short text may be in any language

    def check(self, folder: Path) -> None:
        check_extra("reward 'language'", "language", "py3langid")
        if self.options.language is not None:
            check_languages("reward 'language'", [self.options.language])

    def grade(self, answer: str, known: str) -> float | None:
        if not answer.strip():
            return 0.0  # or a policy could learn to write nothing
        code = language_of(answer)
        return float(code == known) if code and known else None

    def known(self, group: Group) -> str:
        """The expected code; empty if the prompt has few letters. Raises DataError for a prompt without one."""
        if self.options.language is not None:
            return self.options.language
        if self.options.column is None:
            questions = [turn["content"] for turn in group.prompt if turn["role"] == "user"]
            return language_of(questions[-1] if questions else "")
        code = column_of("language", group, self.options.column)
        codes = identifier().labels
        if code not in codes:
            raise DataError(
                f"language: {row_of(group)}: '{self.options.column}' is {code!r:.60}, expected one "
                f"of {', '.join(sorted(codes))}"
            )
        return str(code)

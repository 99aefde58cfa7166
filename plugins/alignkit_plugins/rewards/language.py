"""Whether an answer is in the right language, by py3langid (Lui and Baldwin 2012), whose model
comes with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import model_validator

import alignkit
from alignkit import DataError, Field, Group, Reward
from alignkit.errors import check_extra
from alignkit_plugins.formats.languages import check_languages, identifier
from alignkit_plugins.formats.rows import column_of, row_of
from alignkit_plugins.rewards.answers import scored


class Language(Reward):
    """1 if the answer is in the expected language, else 0, also if it has no letters."""

    class Options(alignkit.Options):
        language: str | None = Field(
            None, description="code of the expected language, such as `de` (ISO 639-1)"
        )
        column: str | None = Field(
            None, description="column of the prompts that holds the code instead"
        )

        @model_validator(mode="after")
        def _one_source(self) -> Language.Options:
            if self.language is not None and self.column is not None:
                raise ValueError(
                    "set 'language' or 'column', or neither for the language of the prompt"
                )
            return self

        @property
        def packages(self) -> tuple[str, ...]:
            """The package whose version decides the scores."""
            return ("py3langid",)

    options: Options

    def check(self, folder: Path) -> None:
        check_extra("reward 'language'", "language", "py3langid")
        if self.options.language is not None:
            check_languages("reward 'language'", [self.options.language])

    def check_prompts(self, groups: Sequence[Group]) -> None:
        for group in groups:
            self._expected(group)

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        return scored(groups, self._score)

    def _score(self, group: Group, answer: str) -> float:
        if not any(map(str.isalpha, answer)):
            return 0.0
        return float(self._of(answer) == self._expected(group))

    def _expected(self, group: Group) -> str:
        """The expected code. Raises DataError for a prompt without one."""
        if self.options.language is not None:
            return self.options.language
        if self.options.column is None:
            said = [message["content"] for message in group.prompt if message["role"] == "user"]
            return self._of(said[-1] if said else "")
        code = column_of("language", group, self.options.column)
        known = identifier().labels
        if code not in known:
            raise DataError(
                f"language: {row_of(group)}: '{self.options.column}' is {code!r:.60}, expected "
                f"one of {', '.join(sorted(known))}"
            )
        return str(code)

    def _of(self, text: str) -> str:
        return str(identifier().classify(text)[0])

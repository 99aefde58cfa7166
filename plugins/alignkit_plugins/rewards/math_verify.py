"""A verifiable reward: whether the answer to a mathematical question equals the known one.

The package math-verify reads both, as numbers, LaTeX or expressions, and compares what they mean:
`1/2` is `\\boxed{0.5}`. An answer that it cannot read, or not in five seconds, is wrong, and so is
a response that ends while it thinks.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import alignkit
from alignkit import DataError, Field, Group, Reward
from alignkit.errors import check_extra
from alignkit.evaluation.answers import bare
from alignkit.evaluation.numbers import number_of
from alignkit_plugins.formats.rows import column_of, row_of
from alignkit_plugins.formats.spoken import answer_of

# The package reads no upright letters, such as e
_UPRIGHT = re.compile(r"\\(?:mathrm|operatorname)\{(\w)\}")
SECONDS = 5  # for reading an answer, and for comparing two


class MathVerify(Reward):
    """1 if the answer equals the prompt's known one, else 0."""

    class Options(alignkit.Options):
        verifies: ClassVar[bool] = True
        column: str = Field(
            "answer", description="column of the prompts that holds the right answer"
        )

        @property
        def packages(self) -> tuple[str, ...]:
            """The package whose version decides the scores."""
            return ("math-verify",)

    options: Options

    def check(self, folder: Path) -> None:
        check_extra("reward 'math_verify'", "math", "math_verify")

    def check_prompts(self, groups: Sequence[Group]) -> None:
        for group in groups:
            self._right(group)

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        return {"": [score for group in groups for score in self._of_group(group)]}

    def _of_group(self, group: Group) -> list[float]:
        from math_verify import verify

        text, right, seconds = str(group.meta[self.options.column]), self._right(group), _seconds()
        number = number_of(text)

        def equal(answer: str) -> bool:
            # What follows GSM8K's mark may be a number that the package does not read: 1.5e3, −5,
            # or 1 1/2.
            last = bare(answer.rpartition("####")[2])
            said = number_of(last)
            if number is not None and said is not None and number.accepts(said):
                return True
            # Without $ or \boxed the package reads no \pi, no (1,2) and no x^2.
            if "".join(last.split()) == "".join(bare(text).split()):
                return True
            return bool(verify(right, _read(answer), timeout_seconds=seconds))

        return [float(equal(answer_of(response))) for response in group.responses]

    def _right(self, group: Group) -> Any:
        """The known answer. Raises DataError if the prompt has none, or one that cannot be read."""
        column = self.options.column
        value = column_of("math_verify", group, column)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise DataError(
                f"math_verify: {row_of(group)}: '{column}' is {value!r:.60}, not a number or text"
            )
        text, number = str(value), number_of(str(value))
        forms = [text] if "$" in text or "\\boxed" in text else [f"${text}$", text]
        for written in forms if number is None else [*forms, f"${number}$"]:
            read = _read(written)
            # A text is what could not be understood
            if any(not isinstance(item, str) for item in read):
                return read
        raise DataError(f"math_verify: {row_of(group)}: cannot read the answer {text!r}")


def _read(text: str) -> Any:
    """What the package reads; nothing if it reads a number out of the middle of a formula that it
    does not know.
    """
    from math_verify import parse

    found = parse(_UPRIGHT.sub(r"\1", text), parsing_timeout=_seconds())
    return (
        []
        if any(isinstance(part, str) and part.count("{") != part.count("}") for part in found)
        else found
    )


def _seconds() -> int | None:
    """The limit on the time; none outside the main thread, where Python cannot stop a
    computation.
    """
    return SECONDS if threading.current_thread() is threading.main_thread() else None

"""A verifiable reward: whether the answer to a mathematical question equals the known one.

The package math-verify reads both, as numbers, LaTeX or expressions, and compares what they mean:
`1/2` is `\\boxed{0.5}`. An answer that it cannot read, or not in five seconds, is wrong, and so is
a response that ends while it thinks.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any, ClassVar

import alignkit
from alignkit import DataError, Field, Group
from alignkit.evaluation.answers import bare
from alignkit.evaluation.numbers import number_of
from alignkit_plugins.extras import check_extra
from alignkit_plugins.rewards.text import OfAnswers
from alignkit_plugins.text.rows import column_of, row_of

# The package reads no upright letters, such as e
_UPRIGHT = re.compile(r"\\(?:mathrm|operatorname)\{(\w)\}")
SECONDS = 5  # for reading an answer, and for comparing two


class MathVerify(OfAnswers):
    """1 if the answer equals the prompt's known one, else 0."""

    class Options(alignkit.Options):
        verifies: ClassVar[bool] = True
        column: str = Field("answer", "column of the prompts that holds the right answer")

        @property
        def packages(self) -> tuple[str, ...]:
            """The package whose version decides the scores."""
            return ("math-verify",)

    options: Options

    def check(self, folder: Path) -> None:
        check_extra("reward 'math_verify'", "math", "math_verify")

    def grade(self, answer: str, known: tuple[str, Any]) -> float:
        return float(_equal(answer, *known))

    def known(self, group: Group) -> tuple[str, Any]:
        """The known answer, and what the package reads. Raises DataError if the prompt has none, or
        one that cannot be read.
        """
        column = self.options.column
        value = column_of("math_verify", group, column)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            text = f"'{column}' is {value!r:.60}, not a number or text"
            raise DataError(f"math_verify: {row_of(group)}: {text}")
        text, number = str(value), number_of(str(value))
        forms = [text] if "$" in text or "\\boxed" in text else [f"${text}$", text]
        for written in forms if number is None else [*forms, f"${number}$"]:
            read = _read(written)
            if any(not isinstance(item, str) for item in read):
                # A text is what could not be understood.
                return text, read
        raise DataError(f"math_verify: {row_of(group)}: cannot read the answer {text!r}")


def _equal(answer: str, known: str, right: Any) -> bool:
    """Whether an answer is the known one, of which `right` is what the package reads."""
    from math_verify import verify

    # What follows GSM8K's mark may be a number that the package does not read: 1.5e3, −5, or 1 1/2.
    last = bare(answer.rpartition("####")[2])
    number, ours = number_of(known), number_of(last)
    if number is not None and ours is not None and number.accepts(ours):
        return True
    # Without $ or \boxed the package reads no \pi, no (1,2) and no x^2.
    if "".join(last.split()) == "".join(bare(known).split()):
        return True
    return bool(verify(right, _read(answer), timeout_seconds=_seconds()))


def _read(text: str) -> Any:
    """What the package reads; nothing if it reads a number out of the middle of a formula that it
    does not know.
    """
    from math_verify import parse

    parts = parse(_UPRIGHT.sub(r"\1", text), parsing_timeout=_seconds())
    for part in parts:
        if isinstance(part, str) and part.count("{") != part.count("}"):
            return []
    return parts


def _seconds() -> int | None:
    """The limit on the time; none outside the main thread, where Python cannot stop a
    computation.
    """
    return SECONDS if threading.current_thread() is threading.main_thread() else None

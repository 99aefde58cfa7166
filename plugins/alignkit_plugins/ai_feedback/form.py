"""How a reply in words ends, and how it is read: one last line that carries the question's code.

Nothing else of a reply counts. A judge that quotes an answer while it thinks quotes no verdict,
because no text of the data contains the code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit_plugins.formats.spoken import after_thoughts

CUT = "the judge's reply was cut off by the limit on tokens: raise the judge's option max_tokens"
THINKING = "the judge's reply ends before its thoughts do"
NO_LINE = "the judge's reply does not end with the line that was asked for"
OUT_OF_SCALE = "the judge's rating is outside of the scale"
_MARKUP = " \t*_`#>$"  # around a line that a model emphasizes


@dataclass(frozen=True)
class Form:
    """What a reply ends with: `Verdict 3f9a12bc: 1`.

    word: that begins the line. meaning: of X, for the question. read: makes a value of the text of
    X; raises ValueError if it is none.
    """

    word: str
    meaning: str
    read: Callable[[str], Any]


def request(form: Form, code: str, *, reasons: bool) -> str:
    """The end of a question: what the reply has to look like."""
    if reasons:
        start = (
            "First think it through in a few sentences. Then end with a line of this form, and "
            "nothing after it:"
        )
    else:
        start = "Answer with a line of this form, and nothing else:"
    return f"{start}\n\n{form.word} {code}: X\n\n{form.meaning}"


def read_line(text: str, form: Form, code: str) -> Any:
    """The value in the last line. Raises ValueError, with a reason, if there is none."""
    lines = spoken(text).strip().splitlines()
    last = lines[-1].strip(_MARKUP) if lines else ""
    found = re.fullmatch(rf"{form.word}[ :]*[\[(]?{code}[\])]?[*_`]* *:(.*)", last, re.IGNORECASE)
    if not found:
        raise ValueError(NO_LINE)
    return form.read(found[1].strip(_MARKUP + "."))


def spoken(text: str) -> str:
    """What follows the model's thoughts. Raises ValueError if they have no end."""
    if (said := after_thoughts(text)) is None:
        raise ValueError(THINKING)
    return said


# The forms


def verdict_form(answers: Sequence[str]) -> Form:
    """Which of two responses is better: P(the first is)."""
    one, two = answers
    known = {one.lower(): 1.0, two.lower(): 0.0, "tie": 0.5}

    def read(text: str) -> float:
        if text.lower() not in known:
            raise ValueError(f"the judge's verdict is neither {one} nor {two} nor tie")
        return known[text.lower()]

    meaning = (
        f"X is {one} if response {one} is better, {two} if response {two} is, and tie if neither "
        "is."
    )
    return Form("Verdict", meaning, read)


def rating_form(scale: tuple[int, int]) -> Form:
    """How good a response is, on a scale."""
    low, high = scale
    if scale == (0, 1):
        meaning = "X is 1 if the response is good by this measure, and 0 if it is not."
    else:
        meaning = f"X is a number from {low}, for the worst response, to {high}, for the best."
    return Form("Rating", meaning, lambda text: _number(text, scale))


def _number(text: str, scale: tuple[int, int]) -> float:
    """A number on the scale; `7/10` is 7 on a scale that ends with 10."""
    low, high = scale
    found = re.fullmatch(
        rf"\s*([+-]?\d{{1,9}}(?:\.\d{{1,9}})?)(?:\s*/\s*{high})?\s*", text, re.ASCII
    )
    if not found:
        raise ValueError(
            f"the judge's rating is not a number: {text.strip()!r:.40}, and the scale is {low} to "
            f"{high}"
        )
    if not low <= float(found[1]) <= high:
        raise ValueError(f"{OUT_OF_SCALE}: {found[1]}, not {low} to {high}")
    return float(found[1])

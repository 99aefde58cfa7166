"""Numbers as people write them: one reader for rewards, formats, environments and demonstrations.

`1,234`, `1234.00`, `$1,234`, `1.234e3`, `1.234 × 10^3` and `1234 dollars` have the same value. So
have `-5` and `−5` (U+2212), and `3/4`, `¾` and `0.75`. A percent sign is a unit: `50%` is 50, not
0.5. A text with other words, or with a comma that groups no thousands (`1,23`), is no number.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

_MONEY = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee"}
_UNITS = {**_MONEY, "%": "percent", "°": "degree"}
_SCALES = {
    "hundred": 100,
    "dozen": 12,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
# Other signs for minus, the Arabic point and comma, and ¾ as a space and 3/4, so that 1¾ is a
# number and its fraction.
_PLAIN = str.maketrans(
    dict.fromkeys("\u2212\u2013\ufe63\uff0d", "-")
    | {"\u066b": ".", "\u066c": ","}
    | {
        mark: " " + unicodedata.normalize("NFKC", mark).replace("\u2044", "/")
        for mark in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
    }
)
_SIGN = rf"(?P<sign>[+-]?)(?:\\?(?P<money>[{''.join(_MONEY)}])\s?(?P<inner>[+-]?))?"
# At most 60 digits: longer numbers take long to compare. Spaces that do not break and apostrophes
# may group, too.
_DECIMAL = (
    r"(?P<decimal>(?:\d{1,3}(?:[,'’\u00a0\u2009\u202f]\d{3}){1,19}|\d{1,60})(?:\.\d{0,60})?|\.\d{1,60})"
    r"(?:[eE](?P<exponent>[+-]?\d{1,3})|\s?[x×·]\s?10\^\{?(?P<power>[+-]?\d{1,3})\}?)?"
)
_FRACTION = r"(?:(?P<whole>\d{1,60})[^\S\n])?(?P<top>\d{1,60})/(?P<bottom>\d{1,60})"
_NUMBER = rf"{_SIGN}(?:{_FRACTION}|{_DECIMAL})(?:\s(?P<scale>{'|'.join(_SCALES)})\b)?"
# A unit of one or two words; single letters may mean anything, such as k and m in `5k`.
_ALONE = re.compile(
    rf"{_NUMBER}(?:\s?(?:\\?(?P<symbol>[{''.join(_UNITS)}])|(?P<word>[^\W\d_]{{2,20}}(?:\s[^\W\d_]{{2,20}})?)))?",
    re.IGNORECASE,
)
_WITHIN = re.compile(
    rf"(?<![\w/])(?<!\d[.,]){_NUMBER}(?![\d_/]|[.,]\d|[^\W\d_](?![^\W\d_])|(?:st|nd|rd|th)\b)",
    re.IGNORECASE,
)
_NO_UNITS = {
    *(
        "or",
        "and",
        "not",
        "to",
        "times",
        "minus",
        "plus",
        "divided",
        "over",
        "st",
        "nd",
        "rd",
        "th",
        "pi",
    ),
    *(
        "sqrt",
        "root",
        "squared",
        "cubed",
        "factorial",
        "mod",
        "choose",
        "point",
        "half",
        "halves",
        "third",
        "thirds",
    ),
}


@dataclass(frozen=True)
class Number:
    """A number as it was written. unit: in the singular and in lower case; empty if there is
    none.
    """

    value: Fraction
    unit: str = ""

    @property
    def counts(self) -> bool:
        """Whether it has no unit, or one with a symbol; not a word such as that of `12 Monkeys`."""
        return self.unit in ("", *_UNITS.values())

    def accepts(self, said: Number) -> bool:
        """Whether an answer is this number. A unit that has a symbol may be left out."""
        left_out = not self.unit or (self.counts and not said.unit)
        return self.value == said.value and (left_out or self.unit == said.unit)

    def __str__(self) -> str:
        """The value, in digits or as a fraction."""
        if self.value.denominator == 1:
            return str(self.value.numerator)
        digits = f"{float(self.value):.15g}"
        return digits if Fraction(digits) == self.value else str(self.value)


def number_of(text: str) -> Number | None:
    """The number that a text consists of, which may have a unit and end with a period; None if it
    is something else.
    """
    match = _ALONE.fullmatch(text.translate(_PLAIN).strip().removesuffix(".").strip())
    if match is None or (value := _value(match)) is None:
        return None
    words = (match["word"] or "").lower().split()
    if not _NO_UNITS.isdisjoint(words):
        return None
    unit = _UNITS.get(match["symbol"] or match["money"] or "") or " ".join(
        word.removesuffix("s") for word in words
    )
    return Number(value, unit)


def numbers_in(text: str) -> Iterator[Fraction]:
    """The values of the numbers in a text, in order; not those that are parts of words, dates or
    other numbers.
    """
    return (
        value
        for match in _WITHIN.finditer(text.translate(_PLAIN))
        if (value := _value(match)) is not None
    )


def _value(match: re.Match[str]) -> Fraction | None:
    """The value of a match; None for a division by zero."""
    if match["bottom"]:
        if not int(match["bottom"]):
            return None
        value = int(match["whole"] or 0) + Fraction(int(match["top"]), int(match["bottom"]))
    else:
        digits = re.sub(r"[^\d.]", "", match["decimal"])
        value = Fraction(digits) * Fraction(10) ** int(match["exponent"] or match["power"] or 0)
    signs = match["sign"] + (match["inner"] or "")
    return (-value if "-" in signs else value) * _SCALES.get((match["scale"] or "").lower(), 1)

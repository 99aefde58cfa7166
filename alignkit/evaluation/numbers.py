"""Numbers as people write them: one reader for rewards, formats, environments and demonstrations.

`1,234`, `1234.00`, `$1,234`, `1.234e3`, `1.234 × 10^3` and `1234 dollars` have the same value. So
have `-5` and `−5` (U+2212), and `3/4`, `¾` and `0.75`. Digits may be of any script. A percent sign
is a unit: `50%` is 50, not 0.5. A text with other words, or with a comma that groups no thousands
(`1,23`), is no number.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from alignkit.io.text import WIDE

_UNITS = {
    "$": "dollar",
    "€": "euro",
    "£": "pound",
    "¥": "yen",
    "₹": "rupee",
    "%": "percent",
    "°": "degree",
}
_MONEY = "$£¥฿₠-⃀"  # as in brackets of a pattern
_SCALES = {
    "hundred": 100,
    "dozen": 12,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
# Other signs for minus, the Arabic point, comma and percent, and ¾ as a space and 3/4, so that 1¾
# is a number and its fraction.
_PLAIN = str.maketrans(
    WIDE
    | dict.fromkeys("\u2010\u2011\u2212\u2013\ufe63", "-")
    | {"\u066b": ".", "\u066c": ",", "\u066a": "%", "￥": "¥"}
    | {
        mark: " " + unicodedata.normalize("NFKC", mark).replace("\u2044", "/")
        for mark in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞℃℉"
    }
)
_SIGN = rf"(?P<sign>[+-]?)(?:\\?(?P<money>[{_MONEY}])\s?(?P<inner>[+-]?))?"
# At most 60 digits: longer numbers take long to compare. Spaces that do not break and apostrophes
# may group, too.
_DECIMAL = (
    r"(?P<decimal>(?:\d{1,3}(?:[,'’\u00a0\u2009\u202f]\d{3}){1,19}|\d{1,60})(?:\.\d{0,60})?|\.\d{1,60})"
    r"(?:[eE](?P<exponent>[+-]?\d{1,3})|\s?(?:[x×·*]|\\times)\s?10(?:\^|\*\*)\{?(?P<power>[+-]?\d{1,3})\}?)?"
)
_FRACTION = r"(?:(?P<whole>\d{1,60})[^\S\n])?(?P<top>\d{1,60})/(?P<bottom>\d{1,60})"
_NUMBER = rf"{_SIGN}(?:{_FRACTION}|{_DECIMAL})(?:\s(?P<scale>{'|'.join(_SCALES)})\b)?"
# Letters, and the vowel signs that Thai, Hindi and others write over or behind them
_LETTER = r"(?:[^\W\d_]|(?!\d)[\u0900-\u1cff])"
# Scripts whose words touch numbers and Latin letters, from Hebrew to Korean
_TOUCHING = (
    r"\u0590-\u1cff\u3005-\u3007\u3040-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
    r"\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORDS = re.compile(rf"(?:(?!\d)[{_TOUCHING}])+")
# A unit of one or two words; single Latin letters may mean anything, such as k and m in `5k`.
_WORD = rf"{_LETTER}{{2,20}}(?:\s{_LETTER}{{2,20}})?|(?!\d)[{_TOUCHING}]"
_ALONE = re.compile(
    rf"{_NUMBER}(?:\s?(?:\\?(?P<symbol>[{_MONEY}%°])|(?P<word>°[CF]|{_WORD})))?",
    re.IGNORECASE,
)
_PRICE = rf"[{_MONEY}]?\d[\w.,]*"
# What has numbers in it but is none: telephone numbers, a day next to its year, dates and times in
# Chinese, Japanese and Korean, 3 or 4; and 2024-05-01, 10:30, $10-$15, 555-1234 and COVID-19.
_SEVERAL = re.compile(
    r"(?:\+|\b0)\d+(?:[ -]\d+){2,}|\(\d{3,5}\) ?\d+[ -]\d+"
    r"|(?<=[^\W\d]\s)\d{1,2},\s(?=[12]\d{3}\b)|\b\d{1,2}\.?\s(?=[^\W\d]{3,}\.?,?\s[12]\d{3}\b)"
    r"|\d+\s*[年月日时時点點分년월일시분](?:\s*\d+\s*[年月日号時时点點分秒월일분초])+"
    rf"|{_PRICE}\s+or\s+{_PRICE}|[Bb]etween\s+{_PRICE}\s+and\s+{_PRICE}"
    rf"|(?<![\w.,])[\w.,]*(?:\d[%°]?[:~〜—]|\w(?<!\d[eE])[%°]?-){_PRICE}(?:[%°]?[-:~〜—]{_PRICE})*"
)
_MINUS = re.compile(r"(?<![\d)]\s)\b(?:minus|negative)\s(?=[\d.$])", re.IGNORECASE)
_WITHIN = re.compile(
    rf"(?<![\w/])(?<!\d[.,]){_NUMBER}(?![\d_/]|[.,]\d|[^\W\d_](?![^\W\d_])|(?:st|nd|rd|th)\b)",
    re.IGNORECASE,
)
_NO_UNIT = re.compile(
    "or|and|not|to|times|minus|plus|divided|over|st|nd|rd|th|pi|sqrt|root|squared|cubed|factorial"
    "|mod|choose|point|half|halves|third|thirds"
)


@dataclass(frozen=True)
class Number:
    """A number as it was written. unit: in the singular and in lower case; empty if there is
    none.
    """

    value: Fraction
    unit: str = ""

    @property
    def counts(self) -> bool:
        """Whether it has no unit, or one with a symbol, or of one character; not a word such as
        that of `12 Monkeys`.
        """
        return len(self.unit) < 2 or self.unit in _UNITS.values()

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


def apart(text: str) -> str:
    """The text with blanks around words in scripts that have none next to numbers and letters."""
    return _WORDS.sub(r" \g<0> ", text)


def number_of(text: str) -> Number | None:
    """The number that a text consists of, which may have a unit and end with a period; None if it
    is something else.
    """
    match = _ALONE.fullmatch(_plain(text).strip().removesuffix(".").strip())
    if match is None or (value := _value(match)) is None:
        return None
    words = (match["word"] or "").lower().split()
    if any(map(_NO_UNIT.fullmatch, words)):
        return None
    sign = match["symbol"] or match["money"] or ""
    unit = _UNITS.get(sign, sign) or " ".join(word.removesuffix("s") for word in words)
    return Number(value, unit)


def numbers_in(text: str) -> Iterator[Fraction]:
    """The values of the numbers in a text, in order; not those that are parts of words, dates,
    times, ranges, telephone numbers or other numbers.
    """
    return (
        value
        for match in _WITHIN.finditer(_SEVERAL.sub(" ; ", apart(_plain(text))))
        if (value := _value(match)) is not None
    )


def _plain(text: str) -> str:
    """The text with ASCII's digits and signs."""
    return _MINUS.sub("-", text.translate(_PLAIN))


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

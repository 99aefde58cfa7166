"""Numbers as people write them: one reader for rewards, formats, environments and demonstrations.

`1,234`, `1234.00`, `$1,234`, `1.234e3`, `1.234 × 10^3` and `1234 dollars` have the same value. So
have `-5` and `−5` (U+2212), and `3/4`, `¾` and `0.75`. Digits may be of any script. `5 million`,
`5 crore` and `3亿` are products. A percent sign is a unit: `50%` is 50, not 0.5. So are words, and
one letter after a blank, as in `4000 m`. A text with other
words, or with a comma that groups no thousands (`0,250`), is no number, and neither is a sum such as
`3万5千`.
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
# Other names of units, as patterns
_NAMED = {
    "$": r"\bUS(?:D\b|\$)|美元|달러",
    "€": r"\bEUR\b|欧元",
    "£": r"\bGBP\b",
    "%": r"\bper cent\b",
}
_MONEY = "$£¥฿₠-⃀"  # as in brackets of a pattern
# Words that multiply, as patterns; no km, kg, hPa, MW and pieces in Chinese and Korean
_SCALES = {
    12: "dozens?",
    10**2: "hundreds?|百(?![分帕])|백",
    10
    ** 3: r"thousands?|tausend|tsd\.?|duizend|tusen|mil|mille|mila|tys\.?|тыс(?:яч[аи]?|\.)?|тисяч[аі]?|ribu|nghìn"
    r"|ngàn|हज\u093c?ार|ألف|آلاف|千(?![米克瓦卡赫帕伏焦安兆]|字节)|천|พัน",
    10**4: "万|萬|만|หมื่น",
    10**5: "lakhs?|लाख|แสน",
    10
    ** 6: r"mil(?:l?i|[jy])oe?n(?:s|e[nr]?|[iyu]|ów)?|mill(?:ón|ones|ió)|milh(?:ão|ões)|milioane|mio\.?|mln\.?|mn|млн"
    r"|миллион(?:а|ов)?|мільйон(?:и|ів)?|triệu|juta|मिलियन|مليون|ملايين|ล้าน",
    10**7: r"crores?|करोड\u093c?",
    10**8: "亿|億|억",
    10
    ** 9: r"billions?|bn|bilh(?:ão|ões)|mil(?:l?i|[jy])[aá]r(?:d\w{0,2})?|mrd\.?|mld\.?|млрд|миллиард(?:а|ов)?"
    r"|мільярд(?:и|ів)?|tỷ|مليار",
    10
    ** 12: "trillions?|tn|billionen|bill(?:ón|ones)|трлн|триллион(?:а|ов)?|兆(?![瓦字赫帕])|조(?!각)",
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
_CURRENCY = rf"(?-i:[A-Z]{{0,3}})[{_MONEY}]"  # also HK$
_POWER = re.compile("(?<=10)[⁺⁻]?[⁰¹²³⁴-⁹]+")
_SIGN = rf"(?P<sign>[+-]?)(?:\\?(?P<money>{_CURRENCY})\s?(?P<inner>[+-]?))?"
# At most 60 digits: longer numbers take long to compare. Spaces and apostrophes may group, too.
_DECIMAL = (
    r"(?P<decimal>(?:(?!0)\d{1,3}(?:[,'’ \u00a0\u2009\u202f]\d{3}){1,19}|\d{1,60})(?:\.\d{0,60})?|\.\d{1,60})"
    r"(?:[eE](?P<exponent>[+-]?\d{1,3})|\s?(?:[x×·*]|\\times)\s?10(?:\^|\*\*)\{?(?P<power>[+-]?\d{1,3})\}?)?"
)
_FRACTION = r"(?:(?P<whole>\d{1,60})(?: and)?[^\S\n])?(?P<top>\d{1,60})/(?P<bottom>\d{1,60})"
# Letters, and the vowel signs that Thai, Hindi and others write over or behind them
_LETTER = r"(?:[^\W\d_]|(?!\d)[\u0900-\u1cff])"
_SCALE = rf"(?i:{'|'.join(_SCALES.values())})(?:(?<=[\u0e00-\u0eff\u3400-\ud7a3])|(?!{_LETTER}))"
_FACTOR = rf"(?:[^\S\n]{{0,3}}{_SCALE}){{1,3}}"
_NUMBER = rf"{_SIGN}(?:{_FRACTION}|{_DECIMAL})(?P<scale>{_FACTOR})?"
# Scripts whose words touch numbers and Latin letters, from Hebrew to Korean
_TOUCHING = (
    r"\u0590-\u1cff\u3005-\u3007\u3040-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
    r"\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORDS = re.compile(rf"(?:(?!\d)[{_TOUCHING}])+")
# A unit of one or two words, or of one letter after a blank: k and m in `5k` may mean anything.
_WORD = rf"{_LETTER}{{2,20}}(?:\s{_LETTER}{{2,20}})?|(?!\d)[{_TOUCHING}]|(?<=\s)(?-i:[ghlLmNsVW])"
_PER = r"(?:/[^\W\d_]{1,9}|\^[23])*"  # In m/s and m^2
_ALONE = re.compile(
    rf"{_NUMBER}(?:\s?(?:\\?(?P<symbol>[{_MONEY}%°])|(?P<word>°[CF]|(?:{_WORD}){_PER})))?",
    re.IGNORECASE,
)
_NAME = re.compile("[A-Z][a-z]{2}")  # A name, such as a film's, is no unit
_PRICE = rf"(?:{_CURRENCY})?\d[\w.,]*"
_STEP = r"\b(?i:step|part|question|problem|case|example|item|exercise)\s?\d+\s?"
# What has numbers in it but is none: telephone numbers, a day next to its year, dates and times in
# Chinese, Japanese and Korean, 1億2000万, 3 or 4; 2024-05-01, 10:30, $10-$15, 555-1234 and COVID-19;
# where a range begins; and the labels of steps and lists.
_SEVERAL = re.compile(
    r"(?:\+|\b0)\d+(?:[ -]\d+){2,}|\(\d{3,5}\) ?\d+[ -]\d+"
    r"|(?<=[^\W\d]\s)\d{1,2},\s(?=[12]\d{3}\b)|\b\d{1,2}\.?\s(?=[^\W\d]{3,}\.?,?\s[12]\d{3}\b)"
    r"|(?<!\d)\d+\s*[年月日时時点點分년월일시분](?:\s*\d+\s*[年月日号時时点點分秒월일분초])+"
    rf"|(?<![\d.,])\d[\d.,]*(?:{_FACTOR}[^\S\n]{{0,3}}\d[\d.,]*)+(?:{_FACTOR})?"
    rf"|(?<![\w.,]){_PRICE}\s+or\s+{_PRICE}|[Bb]etween\s+{_PRICE}\s+and\s+{_PRICE}"
    rf"|[Ff]rom\s+{_PRICE}(?=\s+to\s+{_PRICE})"
    rf"|(?<![\w.,])[\w.,]*(?:\d[%°]?[:~〜—]|\w(?<!\d[eE])[%°]?-){_PRICE}(?:[%°]?[-:~〜—]{_PRICE})*"
    rf"|{_STEP}[:)]|^{_STEP}\.|^[^\S\n]*\(?\d{{1,2}}\)(?=[^\S\n])|(?<=\n)[^\S\n]*\d{{1,2}}\.(?=[^\S\n]\S)"
    r"|\A\s*\d{1,2}\.(?=\s(?:\W?\d\S*\Z|[\s\S]*\n\s*\d{1,2}\.\s))",
    re.MULTILINE,
)
_MINUS = re.compile(r"(?<![\d)]\s)\b(?:minus|negative)\s(?=[\d.$])", re.IGNORECASE)
# What follows a number and is none of its units
NEXT = (
    "or|and|not|to|times|minus|plus|over|is|are|was|were|in|of|for|per|but|because|so|as|at|on|by|with"
    "|from|if|when|which|that|then|total|each|more|less|left|only|altogether|since|while|the|an|it"
    "|this|we|en|im|ist|sind|es|est|sont|son|de|und|et"
)
_AMOUNT = (
    rf"[+-]?(?:\\?{_CURRENCY}\s?[+-]?)?\.?\d+"
    r"(?:[.,/'’\u00a0\u2009\u202f]\d+| \d{3}(?!\d)|(?: and)? \d+/\d+)*(?:[eE][+-]?\d+)?"
    r"(?:[^\W\d_](?![^\W\d_])\w*|[_/][\w/]*)?"
    rf"(?:{_FACTOR})?(?:[^\S\n]?(?:\\?[{_MONEY}%°](?:[CF]\b)?"
    rf"|(?!\d|[是でだ입이])[百千兆조]?[{_TOUCHING}]|(?:(?!(?:{NEXT})\b){_LETTER}{{2,20}}|(?<=\s)[ghlLmNsVW](?![\w'’])){_PER}))?"
)
_VARIABLE = r"(?<![^\W\d_])(?<![</])[b-zB-HJ-Z](?![^\W\d_])"
_FUNCTION = (
    r"(?:√|\\?\b(?:sqrt|log|ln|exp|sin|cos|tan|binom|[dt]?frac)(?![a-z])|\b(?:root|square|cube|half) of\b)"
    r"(?:_\{?\w+\}?|\[\d+\])?\s?"
)
_BOUND = (
    r"(?i:[≤≥±]|\\(?:[lg]eq?|[lg]t)\b|<(?!\s?[\d.,]+>)=?|(?<=\w )>=?|\bat (?:least|most)"
    r"|\b(?:[a-z]{2,9}er|more|less) than(?: or equal to)?|\b(?:up to|over|under|above|below|exceeds))\s?"
)
_TERM = (
    rf"(?:{_BOUND})?(?:{_FUNCTION}(?:(?:\{{(?:[^{{}}\n]|\{{[^{{}}\n]*\}}){{0,99}}\}}){{1,2}}|\([^()\n]{{0,99}}\))"
    rf"|(?:{_FUNCTION})?(?:{_AMOUNT}|{_VARIABLE}|\\(?:pi|theta)\b"
    rf"|\\?[({{\[](?:[^()\[\]{{}}\n\w=≈]|\d|{_VARIABLE}){{1,60}}\\?[)}}\]]))"
)
_OPERATOR = (
    r"(?:[^\S\n]*(?:\*\*|\+/-|[+*×·÷±∓^<>≤≥]=?|\\(?:times|cdot|div|pm|[lg]eq?)|(?:plus|times|over|divided by"
    r"|multiplied by)\b)[^\S\n]*|[^\S\n][-/x][^\S\n]?|[^\S\n]?(?=[√\\])|(?=[({]))"
)
# A calculation, a list in brackets or a bound as a whole, or a number with its unit
_EXPRESSION = re.compile(
    rf"(?<![\w/^×÷√±{_MONEY}])(?<![×÷√±]\s)(?<!\d[.,])(?<![\^_]\{{){_TERM}(?:{_OPERATOR}{_TERM})*"
    r"(?:\+(?!\w)|![^\S\n]*(?=[=a-z+*/-])|[^\S\n](?:at (?:least|most)|and (?:a|one) (?:half|third|quarter)"
    r"|(?:or|and) (?:more|less|fewer|above|over|higher|lower|greater|up|under|below))\b)?"
)
_NO_UNIT = re.compile(
    "or|and|not|to|at|times|minus|plus|divided|over|st|nd|rd|th|pi|sqrt|root|squared|cubed|factorial"
    "|mod|choose|point|half|halves|third|thirds"
)


@dataclass(frozen=True)
class Number:
    """A number as it was written. unit: in the singular and in lower case; empty if there is
    none. named: what follows it is a name, as in `12 Monkeys`.
    """

    value: Fraction
    unit: str = ""
    named: bool = False

    def accepts(self, answer: Number) -> bool:
        """Whether an answer is this number. A unit may be left out, but not replaced."""
        left_out = not self.unit or not (self.named or answer.unit)
        return self.value == answer.value and (left_out or self.unit == answer.unit)

    def spaced(self, text: str) -> str:
        """A text with a blank before its own unit where it has one letter: `5m` may be 5 million,
        but not as an answer in `m`.
        """
        if not re.match(r"[A-Za-z](?![^\W\d_])", self.unit):
            return text
        return re.sub(rf"(?<=\d)(?={re.escape(self.unit)}(?!\w))", " ", text)

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
    word = match["word"] or ""
    words = (word.lower() if len(word) > 1 else word).split()
    if any(map(_NO_UNIT.fullmatch, words)):
        return None
    sign = match["symbol"] or match["money"] or ""
    unit = _UNITS.get(sign, sign) or " ".join(word.removesuffix("s") for word in words)
    return Number(value, unit, bool(_NAME.match(word)))


def numbers_in(text: str) -> Iterator[Number]:
    """The numbers in a text, in order; not those that are parts of words, dates, times, ranges,
    telephone numbers, calculations or bounds, or labels of steps.
    """
    for match in _EXPRESSION.finditer(_SEVERAL.sub(" ; ", apart(_plain(text)))):
        if number := number_of(match[0].strip("\\()[]{} ")):
            yield number


def _plain(text: str) -> str:
    """The text with ASCII's digits and signs."""
    text = _POWER.sub(lambda match: f"^{unicodedata.normalize('NFKC', match[0])}", text)
    text = text.translate(_PLAIN)
    for sign, names in _NAMED.items():
        text = re.sub(names, sign, text)
    return _MINUS.sub("-", text)


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
    for scale in re.findall(_SCALE, match["scale"] or ""):
        value *= next(by for by, names in _SCALES.items() if re.fullmatch(names, scale, re.I))
    return -value if "-" in signs else value

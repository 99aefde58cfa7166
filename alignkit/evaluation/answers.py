"""The answer in a response: one definition for rewards, graders and judges.

Thoughts are off. Markdown, LaTeX, quotation marks and brackets
around an answer are off, and so is a mark at its end. Numbers are compared by their value. A letter
that names a choice may have brackets, `Option` before it and the choice's text after it. Other
answers are compared word by word as SQuAD's evaluation does (Rajpurkar et al. 2016,
arXiv:1606.05250, section 6.1): in lower case, without articles and punctuation, except what makes
another number, formula or list of it. In scripts without spaces and in Korean, each character is a
word. Articles, and words such as "not", "but" and "option", are English.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from alignkit.evaluation.numbers import apart, number_of, numbers_in
from alignkit.io.text import typed

_DASHES = re.compile("[‒–—―]")
_FRACTION = re.compile(r"(\d?)\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")
_SHORT_FRACTION = re.compile(r"(?<=frac)(\d)(\d)")
_INSIDE = r"[^{}]*"
for _ in range(4):  # levels of braces
    _INSIDE = rf"(?:[^{{}}]|\{{{_INSIDE}\}})*"
_BOXED = re.compile(rf"\\(?:boxed|fbox)\s*\{{({_INSIDE})\}}")
_BETWEEN_DOLLARS = re.compile(r"\$([^$]+)\$")
_SET = re.compile(
    r"\\(?:text|mathrm|mathbf|mathit|textbf|textit|texttt|operatorname)\s*\{([^{}]*)\}"
)
_SPACING = re.compile(r"\\(?:[,;:!]|(?:left|right|displaystyle|q?quad)(?![a-z]))")
# Nothing within it opens another one of its kind, which keeps the search short
_EMPHASIS = re.compile(
    r"(?<![\w*`])(\*{1,3}|_{1,3}|`{1,3})(?=\S)((?:(?!(?<![\w*`])\1\S).){1,500}?)(?<=\S)\1(?![\w*`])",
    re.DOTALL,
)
_DEGREE = re.compile(r"\^(?:\\circ(?![a-z])|\{\\circ\})")
_HEADING = re.compile(r"#{1,6}\s+")
_AROUND = re.compile(
    r"```\w*\n(.*?)\n?```|\$\$?([^$]+?)\$\$?|\\\(([^\\]+)\\\)|\\\[([^\\]+)\\\]|\"([^\"]+)\"|'([^']+)'|“([^”]+)”"
    r"|„([^“]+)“|‘([^’]+)’|«([^»]+)»|「([^」]+)」|『([^』]+)』|\(([^(),\[\]]+)\)|\[+([^(),\[\]]+)\]+|\{([^{},]+)\}"
    r"|<(?P<tag>\w+)[^<>]*>(?P<inside>[^<>]+)</(?P=tag)>",
    re.DOTALL,
)
_MOST_AROUND = 8  # layers
_CHOICE = re.compile(
    r"(?:(?:option|choice|answer)\s*:?\s*)?"
    r"(?:[(\[]?(?P<marked>[a-z])(?:[)\]][.:]?|[.:])(?:\s+(?P<text>.+))?|(?P<alone>[a-z]))",
    re.IGNORECASE | re.DOTALL,
)
# What makes the words after a letter no text of a choice: they are about the letter, or name
# another one.
_ABOUT = re.compile(
    r"(?:is|isn't|was|are|or|and|nor|not|but|if|because|seems|can|cannot|can't|could)\b",
    re.IGNORECASE,
)
_ANOTHER = re.compile(
    r"\b(?:is|no|not|but|option|choice|answer|so)\b[\s:,*(\[]*[A-HJ]\b"
    r"|[(\[][A-J][)\]]|\b[A-J][).:](?!\w)"
)
# A choice about other choices, such as "Both A and B" and "A and C only"
_OF_CHOICES = re.compile(
    r"(?:both|all|any|none|neither|either|only)\b|\W?[A-J]\W*(?:and|or|only|[A-J])\b", re.IGNORECASE
)
_LETTER = re.compile(
    r"(?<![\w'./-])(?:[(\[]?(?P<marked>[A-Za-z])[)\]]|(?P<alone>[A-Za-z])(?![\w'/+#-])(?P<next>\s+\w+)?)"
)
_WORDS = "eiklmnopqrstuvwxyz"  # small letters that are rarely choices, such as Spanish "e" and "y"
_DENIED = re.compile(
    r"\b(?:(?:can)?not|no|never|neither|wrong|incorrect|false)\b|n't\b", re.IGNORECASE
)
# What denies another thing than the letter is behind one of these.
_CLAUSE = re.compile(
    r"[.,;!](?=\s)|:(?!\s*(?:no|not|wrong|incorrect|false)\b)"
    r"|\b(?:because|since|as|while|whereas|although|but|so)\b",
    re.IGNORECASE,
)
# What follows in its clause is no answer, nor is anything before a correction.
_RULED_OUT = re.compile(
    r"(?:\b(?:cannot|(?:not|never)(?! (?:only|just))|neither|nor|instead of|(?:rather|other) than)\b|n['’]t\b)"
    rf"(?:(?!{_CLAUSE.pattern}|\?\s|—).)*",
    re.IGNORECASE,
)
_CORRECTED = re.compile(
    r"\b(?:wait,? no|no,? wait|scratch that|correction)\b|\?\s+no\b"
    r"|(?<=[.!?])\s+actually,?\s+(?:(?:it's|it is|the answer is)\s+)?(?=\S+\W*$)",
    re.IGNORECASE,
)
# The sentence that says which choice the answer is
_STATED = re.compile(
    r"(?:\b(?i:answer)(?: is|:)|答案(?:是|[:：])|正解は|정답은|คำตอบคือ)\W*[A-J]\b(?!')"
)
_SENTENCE = re.compile(r"(?<=[.!?。])\s+|\n")
_OPERATOR = re.compile(r"\s*([+*/^=<>])\s*|(?<=\b\w)\s+(-)\s+(?=\w\b)")
# Signs next to words, such as those of "Answer => Paris", are not parts of them.
_BETWEEN = re.compile(
    r"-?[=<>|]+(?=[^\W\d]{2})|(?<=[^\W\d]{2})[=<>|]+|(?<=[^\W\d]{2})[+*/^](?=[^\W\d]{2})"
)
_IN_BRACKETS = re.compile(r"[(\[]([^()\[\]]*)[)\]]")
_FORMULA = re.compile(r"[+*/^=<>|\\]|(?<![^\W\d]{2})-|\d.*,|,.*\d", re.DOTALL)
_JOINED = re.compile(r"(?<=[^\W\d]{2})-(?=[^\W\d]{2})|'|(?<=[^\W\d])\.(?=[^\W\d])")
_MARKS = re.compile(
    r"[,:](?!(?<=\d[,:])\d)|\.(?!\d)|(?<=[^\W\d.])\.|(?<!\d)!|\s-(?=\s)"
    r"|[;?\"—–…¿¡،؛؟۔।\u2190-\u21ff\u2600-\u27bf\U0001f300-\U0001faff]"
)
# They count as digits in H₂O, but not as the base of 4210₅
_SUBSCRIPTS = re.compile("(?<![0-9₀-₉])[₀-₉]+")
_ARTICLE = re.compile(r"\b(?:the|an|a(?=\s+\w\w))(?=\s+\S)")
# Scripts without spaces: each character counts as a word.
_SINGLE = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff]"
)
_SYLLABLE = re.compile(r"[\uac00-\ud7a3]")  # Korean, whose particles touch the word before them


def spaced(text: str) -> str:
    """The text with blanks around each character of a script without spaces, so that splitting it
    finds its words.
    """
    return _SINGLE.sub(lambda match: f" {match[0]} ", text)


def unmarked(text: str) -> str:
    """The text without Markdown's emphasis."""
    return _EMPHASIS.sub(r"\2", text)


def bare(text: str) -> str:
    """The text without Markdown, LaTeX, quotation marks, brackets and tags around it, and without a
    mark at its end.
    """
    text = _BOXED.sub(r"\1", unicodedata.normalize("NFC", text))
    for _ in range(_MOST_AROUND):
        before = text
        text = _SHORT_FRACTION.sub(r"{\1}{\2}", text)
        text = _FRACTION.sub(
            _divided,
            _SPACING.sub("", _DEGREE.sub("°", text.replace("{,}", ",")).replace("\\ ", " ")),
        )
        text = _HEADING.sub("", unmarked(_SET.sub(r"\1", text)).strip(), count=1)
        if match := _AROUND.fullmatch(text):
            text = match["inside"] or next(filter(None, match.groups()), "")
        text = text.strip("\u200b\ufeff \t\r\n").rstrip(" .?,;:。？，।۔؟،")
        # Such as a check mark
        if text and unicodedata.category(text[-1]) == "So" and text[-1] not in "°℃℉":
            text = text[:-1]
        if text == before:
            break
    return text


def _divided(match: re.Match[str]) -> str:
    whole, top, bottom = match.groups()
    return f"{whole} {top}/{bottom}" if whole else f"{top}/{bottom}"


class Choice(NamedTuple):
    """A choice as it was named. letter: in lower case. text: of the choice, if it follows."""

    letter: str
    text: str


def choice_of(text: str) -> Choice | None:
    """The choice that a text names, such as `(B)`, `Option B`, `b)` or `B. Oslo`; None if it says
    anything else.
    """
    match = _CHOICE.fullmatch(apart(typed(bare(text))).strip())
    if match is None:
        return None
    letter, option = (match["marked"] or match["alone"]).lower(), match["text"] or ""
    others = _ANOTHER.search(option) and not _OF_CHOICES.match(option)
    if option and (letter > "j" or _ABOUT.match(option) or others):
        return None
    return Choice(letter, option)


def words(text: str) -> list[str]:
    """The words of a text as answers are compared: SQuAD's, but 3.5 is not 35, -5 is not 5, and
    1,000 is 1000.
    """
    plain = _SUBSCRIPTS.sub(_in_ascii, typed(bare(text)).casefold())
    plain = _BETWEEN.sub(r" \g<0> ", _OPERATOR.sub(r"\1\2", plain))
    plain = _IN_BRACKETS.sub(_without_brackets, plain)
    plain = _SYLLABLE.sub(r" \g<0> ", spaced(_MARKS.sub(" ", _JOINED.sub("", plain))))
    return list(map(_number, _ARTICLE.sub(" ", " ".join(plain.split())).split())) or text.split()


def _in_ascii(match: re.Match[str]) -> str:
    return unicodedata.normalize("NFKC", match[0])


def _without_brackets(match: re.Match[str]) -> str:
    """What is in brackets; with them if they make a formula, or a list of numbers."""
    return "".join(match[0].split()) if _FORMULA.search(match[1]) else f" {match[1]} "


def _number(word: str) -> str:
    number = number_of(word)
    return word if number is None or number.unit else str(number)


def same(answer: str, known: str) -> bool:
    """Whether an answer is the known one."""
    ours, theirs = choice_of(answer), choice_of(known)
    if ours and theirs:
        same_letter = ours.letter == theirs.letter
        return same_letter and (
            not ours.text or not theirs.text or _same_value(ours.text, theirs.text)
        )
    return _same_value((ours and ours.text) or answer, (theirs and theirs.text) or known)


def _same_value(answer: str, known: str) -> bool:
    if not bare(known).endswith("!"):  # 5! is not 5
        answer = bare(answer).rstrip("!")
    number = number_of(bare(known))
    if number and (other := number_of(number.spaced(bare(answer)))):
        return number.accepts(other)
    return words(answer) == words(known)


def mentions(answer: str, known: str, denied: bool = False) -> bool:
    """Whether an answer is or has the known one, in whole words.

    An answer that names two choices, or denies its own, has none, unless a sentence says what the
    answer is. A number is there if it has the same value and no other unit. What follows "not" in
    its clause is not there, and neither is what "wait, no" takes back. In a script without spaces
    and in Korean, a word may be a part of a longer one.

    denied: what follows "not" is there, too.
    """
    if same(answer, known):
        return True
    answer = _CORRECTED.split(answer)[-1]
    if choice := choice_of(known):
        stated = filter(_STATED.search, _SENTENCE.split(apart(typed(bare(answer)))))
        answer = [answer, *stated][-1]
        if choice.text and choice_of(answer):
            return same(answer, known)
        named = _letters(answer, choice.letter)
        if named or not choice.text:
            clauses = filter(_DENIED.search, _CLAUSE.split(typed(answer)))
            denied = any(_letters(clause, choice.letter) for clause in clauses)
            return named == {choice.letter} and not denied
        known = choice.text
    if not denied and not _RULED_OUT.search(known):
        answer = _RULED_OUT.sub("", answer)
    if number := number_of(bare(known)):
        found = list(numbers_in(number.spaced(bare(answer))))
        if any(map(number.accepts, found)):
            return True
        # Next to its value, the words of a longer unit may be there
        if number.value not in [one.value for one in found]:
            return False
    ours, theirs = words(answer), words(known)
    if any(ours[at : at + len(theirs)] == theirs for at in range(len(ours) - len(theirs) + 1)):
        return True
    formulas = [*_BOXED.findall(answer), *_BETWEEN_DOLLARS.findall(answer)]
    return any(same(formula, known) for formula in formulas)


def _letters(text: str, known: str) -> set[str]:
    """The letters that stand alone in a text. The article, the pronoun `I`, and small letters that
    are words of other languages count only where they are the known letter and nothing else.
    """
    found = set()
    for match in _LETTER.finditer(apart(typed(bare(text)))):
        letter, after = match["alone"], (match["next"] or "").strip()
        if letter and letter in _WORDS and letter != known:
            continue
        is_about = not after or _ABOUT.match(after)
        if letter and (letter == "a" or (letter == "A" and after.islower())) and not is_about:
            continue
        if letter and letter in "Ii" and (known != "i" or after.islower()):
            continue
        found.add((letter or match["marked"]).lower())
    return found


def normalized(text: str) -> str:
    """The same for texts that say the same, however they are typed: as by `typed`, in lower case,
    with plain letters for their variants, one kind of dash, and one blank for each white space.
    """
    text = _DASHES.sub("-", unicodedata.normalize("NFKC", typed(text)))
    return " ".join(text.casefold().split())

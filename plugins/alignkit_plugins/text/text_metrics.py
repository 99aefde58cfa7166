"""What texts look like, without a model: words, repetition, and how much texts
differ.

These are cheap signs of reward hacking. They are simple on purpose: anyone can check them by hand.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import regex

from alignkit import RunFailed
from alignkit.data.group import Group, Response, length
from alignkit.errors import DataError
from alignkit.evaluation.answers import spaced
from alignkit.seeds import stream
from alignkit_plugins.text.spoken import all_turns

REPEATED = 3  # words of an n-gram in `repetition`
BLEU = 4  # words of the longest n-gram in `self_bleu`
COMPARED = 16  # texts, for self-BLEU
# `re` takes the vowel signs of Hindi, accents that follow their letter and the like for
# punctuation.
_WORD = regex.compile(r"[^\W_]+(?:['’\-][^\W_]+)*|[^\w\s]")
_NOT_LATIN = regex.compile(r"[^\P{L}\p{Latin}]")
LETTERS = 20  # a text with fewer may be in any language
CLEARLY = 20  # how much likelier than English a language must be, as a logarithm
GROUPS_READ = 200  # groups, for `other_languages`


def sampled_length(response: Response, reward: str, help: str = "") -> int:
    """`length`, for a reward that counts tokens. Raises DataError for a response without any, such
    as one of a file.

    help: what the user can do instead.
    """
    if response.tokens is None:
        advice = f"\nhelp: {help}" if help else ""
        raise DataError(
            f"reward '{reward}' counts tokens, but a response was not sampled in this run{advice}"
        )
    return length(response)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, and each punctuation mark or emoji as a word of its
    own.
    """
    return [word.replace("’", "'") for word in _WORD.findall(spaced(text).lower())]


def repetition(words: Sequence[str], size: int = REPEATED) -> float:
    """The share of n-grams that occurred in the text before: 1 - different / all. 0 for a text that
    has none.

    seq-rep-n of Welleck et al. 2020 (arXiv:1908.04319), over words instead of tokens.
    """
    grams = ngrams(words, size)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(texts: Iterable[Sequence[str]], size: int) -> float | None:
    """Different n-grams / all n-grams of all texts together; None if there are none.

    distinct-n of Li et al. 2016 (arXiv:1510.03055). It falls as there are more words: compare equal
    numbers of texts.
    """
    grams: list[str] = []
    for words in texts:
        grams += ngrams(words, size)
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[Sequence[str]]) -> float | None:
    """The mean BLEU of each text with the others as its references; 1 if all are equal, None if
    there is one text.

    If there are more than COMPARED texts, that many are compared, drawn by a fixed seed from their
    number. The time grows with the square of their number, and the value with the
    number of references.

    Zhu et al. 2018 (arXiv:1802.01886). BLEU: Papineni et al. 2002, with one added to the counts of
    n-grams of two and more words, as answers are short (Lin and Och 2004, "ORANGE"), and with
    shorter n-grams only for texts of fewer than four words.
    """
    if len(texts) < 2:
        return None
    if len(texts) > COMPARED:
        drawn = stream(0, "self_bleu", len(texts)).permutation(len(texts))[:COMPARED]
        texts = [texts[index] for index in sorted(drawn.tolist())]
    values = []
    for index, words in enumerate(texts):
        values.append(_bleu(words, [*texts[:index], *texts[index + 1 :]]))
    return sum(values) / len(values)


def _bleu(words: Sequence[str], others: Sequence[Sequence[str]]) -> float:
    if not words:
        return float(not all(others))
    logs = []
    for size in range(1, min(BLEU, len(words)) + 1):
        counts, most = Counter(ngrams(words, size)), Counter[str]()
        for other in others:
            most |= Counter(ngrams(other, size))
        shared, added = (counts & most).total(), float(size > 1)
        if not shared + added:
            return 0.0
        logs.append(math.log((shared + added) / (counts.total() + added)))
    closest = min(map(len, others), key=lambda other: (abs(other - len(words)), other))
    return math.exp(min(0.0, 1 - closest / len(words)) + sum(logs) / len(logs))


def ngrams(words: Sequence[str], size: int) -> list[str]:
    """The n-grams of a text, in order; none if it is shorter."""
    return [" ".join(words[start : start + size]) for start in range(len(words) - size + 1)]


# Languages, by py3langid (Lui and Baldwin 2012), whose model comes with it


@cache
def identifier() -> Any:
    """py3langid's identifier."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


def check_languages(user: str, codes: Iterable[str]) -> None:
    """Raise RunFailed for a code of a language that py3langid does not know. user: who asks, for
    the error.
    """
    labels = identifier().labels
    if unknown := sorted(set(codes) - set(labels)):
        raise RunFailed(
            f"{user}: py3langid does not know {', '.join(unknown)}; it knows "
            f"{', '.join(sorted(labels))}"
        )


def language_of(text: str, clearly: float = 0.0) -> str:
    """The code of a text's language (ISO 639-1), by py3langid; empty if it has too few letters.

    clearly: English, unless another language is this much likelier, as a logarithm.
    """
    # More take longer, and hardly ever change the answer. Full-width letters are no Cantonese.
    text = unicodedata.normalize("NFKC", text[:500])
    # A character of Chinese, Japanese or Korean says as much as several letters.
    if sum(1 + 4 * (char >= "\u2e80") for char in text if char.isalpha()) < LETTERS:
        return ""
    (best, score), *others = identifier().rank(text)
    return "en" if clearly and score - dict(others).get("en", -math.inf) < clearly else str(best)


def other_languages(groups: Sequence[Group]) -> str:
    """The languages but English of questions and answers, if more than one in ten is in another;
    else empty. Without py3langid, only other scripts are seen.
    """
    texts = list[str]()
    for group in groups[:GROUPS_READ]:
        texts += [turn["content"] for turn in group.prompt[-1:]]
        texts += [all_turns(response, calls=False) for response in group.responses]
    others = [language for language in map(_other_language, texts) if language]
    return ", ".join(sorted(set(others))) if len(others) * 10 > len(texts) else ""


def _other_language(text: str) -> str:
    if 2 * len(_NOT_LATIN.findall(text)) > sum(map(str.isalpha, text)):
        return "another script"
    return language_of(text, CLEARLY).removeprefix("en") if find_spec("py3langid") else ""

"""How alike two texts are, by the longest common subsequence of their words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from alignkit.evaluation import answers
from alignkit_plugins.formats.text_metrics import words_of


class Texts:
    """Texts that differ from each other: which one is nearest to a new one."""

    def __init__(self, texts: Iterable[str] = ()):
        self._texts = [(text, _words(text)) for text in texts]

    def add(self, text: str) -> None:
        """Compare later ones with this text, too."""
        self._texts.append((text, _words(text)))

    def nearest(self, text: str) -> tuple[float, str]:
        """The highest ROUGE-L with a text here (F-measure, Lin 2004), and that text; 0 and "" if
        there is none.
        """
        words, best, nearest = _words(text), 0.0, ""
        for other, others in self._texts:
            both = len(words) + len(others)
            # The longest common subsequence is no longer than the shorter text, so most pairs need
            # no comparison.
            if (
                2 * min(len(words), len(others)) > best * both
                and (value := 2 * _common(words, others) / both) > best
            ):
                best, nearest = value, other
        return best, nearest


def agreement(one: str, other: str) -> float:
    """The share of the shorter text's words that the other one has in the same order: a sentence
    agrees with a word.

    0 for a text without words.
    """
    words, others = answers.words(one), answers.words(other)
    return _common(words, others) / min(len(words), len(others)) if words and others else 0.0


def _words(text: str) -> list[str]:
    return [word for word in words_of(text) if word[0].isalnum()]


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, by bits of a whole number (Hyyrö 2004).

    Bit i of `column` is 0 if the length grows at word i of `one`.
    """
    places: dict[str, int] = {}
    for number, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << number
    whole = (1 << len(one)) - 1
    column = whole
    for word in other:
        matches = column & places.get(word, 0)
        column = ((column + matches) | (column - matches)) & whole
    return len(one) - column.bit_count()

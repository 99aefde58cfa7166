"""How alike two texts are: ROUGE-L, by which self-instruct and the questions about a text leave out near duplicates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from alignkit.evaluation.text_metrics import words_of


def rouge_l(one: Sequence[str], other: Sequence[str]) -> float:
    """The F-measure of the longest common subsequence of words, from 0 to 1 (Lin 2004). 0 for a text without words."""
    return 2 * _common(one, other) / (len(one) + len(other)) if one and other else 0.0


def agreement(one: str, other: str) -> float:
    """The share of the shorter answer's words that the other one has in the same order: a sentence agrees with a word.

    0 for an answer without words.
    """
    words, others = _words(one), _words(other)
    return _common(words, others) / min(len(words), len(others)) if words and others else 0.0


class Texts:
    """Texts that differ from each other: which one is nearest to a new one."""

    def __init__(self, texts: Iterable[str]):
        self.texts: list[str] = []
        self._words: list[list[str]] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Compare later ones with this text, too."""
        self.texts.append(text)
        self._words.append(_words(text))

    def nearest(self, text: str) -> tuple[float, str]:
        """The highest `rouge_l` with a text here, and that text; 0 and "" if there is none."""
        words, best, at = _words(text), 0.0, -1
        for number, other in enumerate(self._words):
            # The longest common subsequence is no longer than the shorter text, so most pairs need no comparison.
            if (
                2 * min(len(words), len(other)) > best * (len(words) + len(other))
                and (value := rouge_l(words, other)) > best
            ):
                best, at = value, number
        return best, self.texts[at] if at >= 0 else ""


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

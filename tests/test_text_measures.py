"""Words, repetition and diversity, against numbers counted by hand."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest

from alignkit_plugins.formats.text_metrics import (
    distinct,
    repetition,
    self_bleu,
    words_of,
)


def test_words_are_lower_case_and_marks_are_words() -> None:
    assert words_of("I’m sure, e-mail WORKS! 👍") == [
        "i'm",
        "sure",
        ",",
        "e-mail",
        "works",
        "!",
        "👍",
    ]
    assert words_of("漢字です ok") == ["漢", "字", "で", "す", "ok"] and words_of(" \n_ ") == []


@pytest.mark.silent_bug(
    "evaluation: words",
    "Vowel signs and accents that follow their letter split words of Hindi, Arabic and "
    "decomposed text.",
    "They belong to their word.",
    "huggingface/evaluate#256",
)
@pytest.mark.parametrize("text", ["हिन्दी भाषा", "cafe\u0301 cre\u0300me", "العَرَبِيَّة لُغَة"])
def test_marks_on_letters_belong_to_their_word(text: str) -> None:
    assert words_of(text) == text.split()


@pytest.mark.parametrize(
    ("letters", "share"), [("abcabc", 1 / 4), ("aaaaa", 2 / 3), ("abcd", 0), ("ab", 0)]
)
def test_repetition_is_the_share_of_trigrams_that_came_before(letters: str, share: float) -> None:
    assert repetition(list(letters)) == pytest.approx(share)  # abc bca cab abc


def test_distinct_counts_over_all_texts() -> None:
    texts = [list("abab"), list("ab")]
    assert distinct(texts, 1) == pytest.approx(2 / 6)
    assert distinct(texts, 2) == pytest.approx(2 / 4)  # ab ba ab, ab
    assert distinct([["a"]], 2) is None


def test_self_bleu_of_equal_and_of_different_texts() -> None:
    text = list("abcde")
    assert self_bleu([text, text, text]) == pytest.approx(1.0)
    assert self_bleu([text, list("vwxyz")]) == 0.0
    assert self_bleu([text]) is None
    assert self_bleu([[], []]) == 1.0


def test_self_bleu_by_hand() -> None:
    """Of `a b c d` against `a b x`: 2 of 4 words; pairs (1+1)/(3+1), triples (0+1)/(2+1), fours
    (0+1)/(1+1).
    """
    ours, theirs = list("abcd"), list("abx")
    first = math.exp((math.log(2 / 4) + math.log(2 / 4) + math.log(1 / 3) + math.log(1 / 2)) / 4)
    # Of `a b x` against `a b c d`: it is shorter, so it pays exp(1 - 4/3); it has no n-gram of four
    # words.
    second = math.exp(1 - 4 / 3) * math.exp(
        (math.log(2 / 3) + math.log(2 / 3) + math.log(1 / 2)) / 3
    )
    assert self_bleu([ours, theirs]) == pytest.approx((first + second) / 2)


def test_a_repeated_word_matches_only_as_often_as_a_reference_has_it() -> None:
    """Papineni's clipping: `the the` against `the cat` matches one of two words, and (0+1)/(1+1)
    pairs.
    """
    assert self_bleu([["the", "the"], ["the", "cat"]]) == pytest.approx(math.sqrt(1 / 2 * 1 / 2))


def test_self_bleu_of_many_texts_compares_a_fixed_number_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[int] = []
    measures = importlib.import_module(self_bleu.__module__)
    bleu = measures._bleu

    def counted(words: Any, others: Any) -> float:
        compared.append(len(others))
        return bleu(words, others)

    monkeypatch.setattr(measures, "_bleu", counted)
    texts = [[str(number), "a", "b", str(number % 7)] for number in range(64)]
    first = self_bleu(texts)
    assert compared == [15] * 16 and self_bleu(texts) == first  # always the same ones
    compared.clear()
    self_bleu(texts[:16])
    assert compared == [15] * 16  # all of them

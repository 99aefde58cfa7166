"""Words, repetition and diversity, against numbers counted by hand."""

from __future__ import annotations

import pytest

from alignkit_plugins.text import text_metrics
from alignkit_plugins.text.text_metrics import distinct, repetition, self_bleu, words_of
from tests.rows import cells


def test_words_are_lower_case_and_marks_are_words() -> None:
    found = words_of("I’m sure, e-mail WORKS! 👍 漢字です \n_ ")
    assert " ".join(found) == "i'm sure , e-mail works ! 👍 漢 字 で す"


@pytest.mark.silent_bug(
    "evaluation: words",
    "Vowel signs and accents that follow their letter split words of Hindi, Arabic and "
    "decomposed text.",
    "They belong to their word.",
    "huggingface/evaluate#256",
)
def test_marks_on_letters_belong_to_their_word() -> None:
    text = "हिन्दी भाषा cafe\u0301 cre\u0300me العَرَبِيَّة لُغَة"
    assert words_of(text) == text.split()


def test_repetition_is_the_share_of_trigrams_that_came_before() -> None:
    found = [repetition(list(letters)) for letters in ("abcabc", "aaaaa", "abcd", "ab")]
    assert found == pytest.approx([1 / 4, 2 / 3, 0, 0])  # abc bca cab abc


def test_distinct_counts_over_all_texts() -> None:
    texts = [list("abab"), list("ab")]
    assert distinct(texts, 1) == pytest.approx(2 / 6)
    assert distinct(texts, 2) == pytest.approx(2 / 4)  # ab ba ab, ab
    assert distinct([["a"]], 2) is None


# Texts of letters, and their self-BLEU. `abcd` against `abx`: 2 of 4 words; pairs (1+1)/(3+1),
# triples (0+1)/(2+1), fours (0+1)/(1+1); `abx` against `abcd` is shorter, so it pays exp(1 - 4/3),
# and has no n-gram of four words. `tt` against `tc` is clipped, as by Papineni: it matches one of
# two words, and (0+1)/(1+1) pairs. `abc` is as near to two lengths, of which the shorter counts:
# (2/3 2/3 1/2) ** (1/3); `ab` pays exp(1 - 3/2). Of `aa`, which matches one
# of two words in both others: (1/2 1/2) ** (1/2).
BLEU = """
    abcde abcde abcde | 1
    abcde vwxyz       | 0
    abcd abx          | 0.4429
    tt tc             | 0.5
    abc wxyz ab       | 0.4041
    aa a a            | 0.8333
"""


@pytest.mark.parametrize(("texts", "expected"), cells(BLEU))
def test_self_bleu_by_hand(texts: str, expected: str) -> None:
    assert self_bleu([*map(list, texts.split())]) == pytest.approx(float(expected), abs=1e-4)
    assert self_bleu([["a"]]) is None and self_bleu([[], []]) == 1.0
    assert self_bleu([[], [], ["a"]]) == pytest.approx(2 / 3)


def test_self_bleu_of_many_texts_compares_a_fixed_number_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[int] = []
    monkeypatch.setattr(
        text_metrics, "_bleu", lambda words, others: compared.append(len(others)) or 0.0
    )
    self_bleu([[str(number), "a"] for number in range(64)])
    assert compared == [15] * 16

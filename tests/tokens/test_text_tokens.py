"""Rendered text as tokens with their places, also where SentencePiece would put a space."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignkit.errors import RunFailed
from alignkit.tokens.encoder import Encoder, TextTokenizer
from alignkit.tokens.template import BREAK
from tests.models import family_tokenizers
from tests.models.tiny import encoder, user

BRACKETS = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"


@pytest.mark.parametrize(
    ("text", "following", "words", "starts"),
    [
        ("It is", False, "▁I t ▁is", [0, 1, 2]),
        # A piece that follows text has no space of its own
        ("It is", True, "I t ▁is", [0, 1, 2]),
        (" It", True, "▁I t", [0, 2]),
        # Text around a break never joins
        (f"It<{BREAK}/s>It</s>", False, "▁I t < / s > I t </s>", [0, 1, 2, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_words_and_the_characters_at_which_they_begin(
    text: str, following: bool, words: str, starts: list[int]
) -> None:
    tokenizer = family_tokenizers.tokenizer("spm_legacy", bos=None, eos="</s>")
    made = TextTokenizer(tokenizer)
    ids, places = made.tokens(text, following=following)
    assert tokenizer.convert_ids_to_tokens(list(ids)) == words.split() and places == starts
    assert following or made.ids(text) == ids


@pytest.mark.parametrize("kind", ["spm_legacy", "spm_first", "unigram"])
def test_answers_of_one_character_begin_with_tokens_of_their_own(kind: str) -> None:
    """Although SentencePiece writes a space before the first word of a text."""
    tokenizer = family_tokenizers.tokenizer(kind, bos="<s>", eos="</s>")
    tokenizer.chat_template = BRACKETS
    _, answers = Encoder(tokenizer).answers((user("is it so?"),), "answer=", list("12345"))
    assert len({first for first, *_ in answers}) == 5


def test_places_are_characters_of_the_text() -> None:
    ids, starts = TextTokenizer(encoder().tokenizer).tokens("a é<|im_end|>b")
    assert ids[starts.index(3)] == 2 and starts[-1] == 13 and starts == sorted(starts)


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(RunFailed, match=r"Slow is not a fast tokenizer.*\nhelp: "):
        TextTokenizer(Slow())


def test_truncation_and_padding_of_a_saved_tokenizer_have_no_effect(tmp_path: Path) -> None:
    """Folders that others saved after training have both, and transformers itself ignores them."""
    from transformers import AutoTokenizer

    tokenizer = encoder().tokenizer
    text = "many words that are not truncated " * 20
    wanted = TextTokenizer(tokenizer).ids(text)
    tokenizer([text, "a"], truncation=True, max_length=8, padding="max_length")
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    made = TextTokenizer(saved)
    # Otherwise this tests nothing
    assert saved.backend_tokenizer.truncation and saved.backend_tokenizer.padding
    made.prepare([text, "a"])
    assert made.ids(text) == wanted and len(made.ids("a")) == 1
    # And later calls change them again, and the mode of special tokens
    saved([text, "a"], truncation=True, max_length=8, padding="max_length")
    saved("x", split_special_tokens=True)
    assert made.tokens(text + "<|im_end|>")[0] == (*wanted, 2)

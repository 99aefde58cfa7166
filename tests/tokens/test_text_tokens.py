"""Rendered text as tokens with their places, also where SentencePiece would put a space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import RunFailed
from alignkit.tokens.encoder import TextTokenizer
from alignkit.tokens.template import BREAK
from tests.models.tiny import encoder


def sentencepiece() -> Any:
    """A small Unigram tokenizer that, like SentencePiece, writes `▁` before a text and for every
    space.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["▁It", "It", "▁is", "▁", "\n", *"abcdefghijklmnopqrstuvwxyzI.<|/>_"]
    likely = [(word, -1 / len(word)) for word in words]
    made = Tokenizer(models.Unigram([("<unk>", 0.0), *likely], unk_id=0))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.pre_tokenizer = pre_tokenizers.Split("never matches", "isolated")
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", additional_special_tokens=["</s>"]
    )


@pytest.mark.parametrize(
    ("text", "following", "words", "starts"),
    [
        ("It is", False, "▁It ▁is", [0, 2]),
        # A piece that follows text has no space of its own
        ("It is", True, "It ▁is", [0, 2]),
        (" It", True, "▁It", [0]),
        # Text around a break never joins
        (f"It<{BREAK}/s>It</s>", False, "▁It < / s > It </s>", [0, 2, 4, 5, 6, 7, 9]),
    ],
)
def test_words_and_the_characters_at_which_they_begin(
    text: str, following: bool, words: str, starts: list[int]
) -> None:
    tokenizer = sentencepiece()
    made = TextTokenizer(tokenizer)
    ids, places = made.tokens(text, following=following)
    assert tokenizer.convert_ids_to_tokens(list(ids)) == words.split() and places == starts
    assert following or made.ids(text) == ids


def test_places_are_characters_of_the_text() -> None:
    ids, starts = TextTokenizer(encoder().tokenizer).tokens("a é<|im_end|>b")
    assert ids[starts.index(3)] == 2 and starts[-1] == 13 and starts == sorted(starts)


def test_texts_prepared_together_are_the_same() -> None:
    made = TextTokenizer(encoder().tokenizer)
    texts = ["some words", f"<{BREAK}|im_end|>", "more<|im_end|>", "some words"]
    alone = [made.ids(text) for text in texts]
    made.prepare(texts)
    assert [made.ids(text) for text in texts] == alone


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

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
    made = Tokenizer(
        models.Unigram(
            [("<unk>", 0.0), *((word, -(len(word) ** -1.0)) for word in words)], unk_id=0
        )
    )
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


def test_places_are_characters_of_the_text() -> None:
    ids, starts = TextTokenizer(encoder().tokenizer).tokens("a é<|im_end|>b")
    assert ids[starts.index(3)] == 2 and starts[-1] == 13 and starts == sorted(starts)


def test_a_piece_that_follows_text_has_no_space_of_its_own() -> None:
    tokenizer = sentencepiece()
    made = TextTokenizer(tokenizer)

    def words(ids: Any) -> list[str]:
        return list(tokenizer.convert_ids_to_tokens(list(ids)))

    assert words(made.ids("It is")) == ["▁It", "▁is"]
    assert words(made.tokens("It is", following=True)[0]) == ["It", "▁is"]
    assert words(made.tokens(" It", following=True)[0]) == ["▁It"]
    assert made.tokens("It is", following=True)[1] == [0, 2]


def test_text_around_a_break_never_joins() -> None:
    tokenizer = sentencepiece()
    made = TextTokenizer(tokenizer)
    text = f"a<{BREAK}/s>It</s>"
    ids, starts = made.tokens(text)
    end = tokenizer.convert_tokens_to_ids("</s>")
    assert ids.count(end) == 1 and ids[-1] == end
    assert tokenizer.decode(ids) == "a</s>It</s>" and starts[-1] == text.rindex("</s>")
    assert starts == sorted(starts) and made.ids(text) == ids


def test_texts_prepared_together_are_the_same() -> None:
    made = TextTokenizer(encoder().tokenizer)
    texts = ["some words", f"<{BREAK}|im_end|>", "more<|im_end|>", "some words"]
    alone = [made.ids(text) for text in texts]
    made.prepare(texts)
    assert [made.ids(text) for text in texts] == alone
    # transformers leaves the tokenizer in another mode after raw text.
    made.prepare([])
    encoder().tokenizer("x", split_special_tokens=True)
    assert [made.ids(text) for text in texts] == alone


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(
        RunFailed, match=r"Slow is not a fast tokenizer.*\nhelp: use a model with a tokenizer\.json"
    ):
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
    # And later calls change them again
    saved([text, "a"], truncation=True, max_length=8, padding="max_length")
    assert made.ids(text + " ")[: len(wanted)] == wanted and made.tokens(text)[0] == wanted

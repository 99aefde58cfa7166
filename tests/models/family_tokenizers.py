"""Tokenizers of every common kind, trained on a bundled text in a second, the same on every
machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXT = Path(__file__).parents[2] / "recipes" / "data" / "text.txt"
SPACE = "▁"
SIZE = 1000
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Pieces of white space that real vocabularies have: two line breaks, two spaces, and a line break
# after a full stop.
LAYOUT = "1. one\n\n2. two  \n\n  three\n    four.\n\nassistant\nuser: system\n\n" * 5


@cache
def _texts() -> tuple[str, ...]:
    lines = TEXT.read_text(encoding="utf-8").splitlines(keepends=True)[:600]
    return ("".join(lines), *[LAYOUT] * 20)


def _sentencepiece(tokenizer: Tokenizer, prepend: str) -> None:
    """prepend: "always", "first" or "never", as in Metaspace."""
    # The older form: a normalizer, which sees every text between two special tokens
    if prepend == "always":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
        )
    elif prepend == "never":
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=SPACE, prepend_scheme="first", split=False
        )
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        parts + ([] if prepend == "never" else [decoders.Strip(" ", 1, 0)])
    )


@cache
def _sentencepiece_bpe() -> str:
    """The JSON of a BPE whose words were joined with their spaces in training, as SentencePiece
    does.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(f"{SPACE}?[^{SPACE}\n]+|\n+|{SPACE}+"), "isolated"
    )
    # Digits, punctuation and line breaks are pieces of their own, as in Llama's vocabulary.
    symbols = [SPACE, *(chr(code) for code in range(33, 127))]
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE + 259,
        special_tokens=["<unk>", *BYTES],
        initial_alphabet=symbols,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    text: str = tokenizer.to_str()
    return text


def _words(kind: str) -> Tokenizer:
    if kind.startswith("spm"):
        tokenizer = Tokenizer.from_str(_sentencepiece_bpe())
        tokenizer.pre_tokenizer = None
        _sentencepiece(
            tokenizer, {"spm_legacy": "always", "spm_first": "first", "spm_bare": "never"}[kind]
        )
        return tokenizer
    if kind == "unigram":
        # The BPE's pieces, likelier the lower their rank: a trainer of Unigram gives other numbers
        # each time.
        ranks = Tokenizer.from_str(_sentencepiece_bpe()).get_vocab()
        words = sorted(ranks.keys() - {"<unk>", *BYTES}, key=ranks.__getitem__)
        pieces = [
            ("<unk>", 0.0),
            *((piece, -math.log(rank)) for rank, piece in enumerate(words, 2)),
        ]
        pieces += [(byte, -20.0) for byte in BYTES]
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
        _sentencepiece(tokenizer, "first")
        return tokenizer
    tokenizer = Tokenizer(models.BPE())
    split: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind != "gpt2":
        words = pre_tokenizers.Split(Regex(WORDS), "isolated")
        split = pre_tokenizers.Sequence(
            [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


@cache
def _trained(kind: str) -> str:
    text: str = _words(kind).to_str()
    return text


def tokenizer(
    kind: str,
    *,
    bos: str | None,
    eos: str,
    special: Iterable[str] = (),
    ordinary: Iterable[str] = (),
    strips: Sequence[str] = (),
) -> Any:
    """A tokenizer of this kind.

    kind: spm_legacy (SentencePiece BPE, a dummy prefix after every special token), spm_first (a
    dummy prefix at the start of the text), spm_bare (without one), unigram (SentencePiece Unigram,
    a dummy prefix at the start), bytes (byte-level BPE, words as in Llama 3 and Qwen), bytes_bos
    (the same, adds BOS) or gpt2 (byte-level BPE, words as in GPT-2). special: its control tokens
    besides bos and eos. ordinary: added tokens that are not special, such as `<think>`. strips:
    special tokens that swallow the white space after them.
    """
    backend = Tokenizer.from_str(_trained(kind))
    names = [name for name in (bos, eos, *special) if name]
    backend.add_special_tokens(
        [
            AddedToken(name, special=True, normalized=False, rstrip=name in strips)
            for name in dict.fromkeys(names)
        ]
    )
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in ordinary])
    if kind == "bytes_bos" and bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, backend.token_to_id(bos))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token=eos,
        clean_up_tokenization_spaces=False,
    )

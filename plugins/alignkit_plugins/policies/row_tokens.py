"""The tokens of one row, with those that are learned, and what its responses are to each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from alignkit.io.text import REPLACEMENT, printable
from alignkit.tokens.encoder import Encoded, Encoder
from alignkit_plugins.formats.shown import response_names

BEFORE = 4  # tokens that are decoded with a token, because its text depends on them


@dataclass(frozen=True)
class Tokens:
    """Tokens as a model reads them.

    pieces: the text of each. counts: whether each is in the loss, or is where a reward model reads
    the score. scored: it is the latter.
    """

    title: str
    pieces: tuple[str, ...]
    counts: tuple[bool, ...]
    scored: bool = False


def marked(encoder: Encoder, encoded: Encoded, scoring: bool) -> Iterator[Tokens]:
    """The prompt, then each response. scoring: a reward model reads them."""
    prompt = encoded.prompt
    if prompt:
        yield Tokens("prompt", pieces(encoder, (), prompt), (False,) * len(prompt))
    for name, response in zip(response_names(encoded.group), encoded.rows, strict=True):
        counts = tuple(map(bool, response.mask))
        if scoring:
            counts = (*[False] * (len(counts) - 1), True)
        title = ", ".join([*name, *["truncated"] * response.truncated])
        yield Tokens(title, pieces(encoder, prompt, response.tokens), counts, scoring)


def pieces(encoder: Encoder, before: Sequence[int], ids: Sequence[int]) -> tuple[str, ...]:
    """The text of each token. before: tokens in front of them, on which spaces depend.

    A character that the last tokens only begin is the text of the token that ends it.
    """
    texts, decoded = [], _decoded(encoder, before[-BEFORE:])
    for count in range(1, len(ids) + 1):
        longer = _decoded(encoder, [*before[-BEFORE:], *ids[:count]])
        texts.append(longer[len(decoded) :])
        decoded = longer
    return tuple(texts)


def _decoded(encoder: Encoder, ids: Sequence[int]) -> str:
    text = encoder.tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return str(text).rstrip(REPLACEMENT)


def heading(tokens: Tokens) -> str:
    """`response: 12 tokens, 10 learned`."""
    count = len(tokens.pieces)
    what = "scored at the last" if tokens.scored else f"{sum(tokens.counts) or 'none'} learned"
    return f"{printable(tokens.title)}: {count} token{'s' * (count != 1)}, {what}"

"""From rendered text to token ids with their places in the text.

The ids are those of the whole text. A piece tokenized separately can differ: SentencePiece puts a space before it, and
byte pairs do not merge across its edges.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from alignkit.errors import RunFailed
from alignkit.tokens.chat_template import BREAK

Ids = tuple[int, ...]
# Characters that no tokenizer merges with what follows; a piece is read after an anchor.
ANCHORS = ("\n", ":", "]", "a")


@dataclass(frozen=True)
class TextTokens:
    """Token ids, and the characters of the text that each covers: [starts, ends)."""

    ids: Ids
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    def first_from(self, character: int) -> int:
        """The index of the first token that begins at a character or after it. It may cover white space."""
        return bisect_left(self.starts, character)

    def after(self, index: int, shift: int = 0) -> TextTokens:
        """The tokens from an index on, with their places moved."""
        starts, ends = (tuple(place + shift for place in places[index:]) for places in (self.starts, self.ends))
        return TextTokens(self.ids[index:], starts, ends)


class TextTokenizer:
    """A tokenizer for rendered text, in which special tokens count as such."""

    def __init__(self, tokenizer: Any):
        """Raises RunFailed for a tokenizer that does not say which characters a token covers."""
        if not getattr(tokenizer, "is_fast", False):
            raise RunFailed(
                f"{type(tokenizer).__name__} is not a fast tokenizer, so the places of its tokens in a text are "
                "unknown\nhelp: use a model with a tokenizer.json"
            )
        # Directly in Rust: transformers' own call costs a third of the time on top.
        self._backend = tokenizer.backend_tokenizer
        self._ready: dict[str, Ids] = {}

    @cached_property
    def longest(self) -> int:
        """Characters of the longest token; twice as many as written, because normalization may shorten text."""
        return 2 * max(map(len, self._backend.get_vocab()))

    def prepare(self, texts: Iterable[str]) -> None:
        """Tokenize texts on all cores; `ids` then has them. Replaces those of the last call."""
        plain = list({text for text in texts if BREAK not in text})
        self._ready = dict(zip(plain, self._encode_ids(plain), strict=True))

    def ids(self, text: str) -> Ids:
        """Tokenize rendered text."""
        if (ready := self._ready.get(text)) is not None:
            return ready
        return self.tokens(text).ids if BREAK in text else self._encode_ids([text])[0]

    def tokens(self, text: str) -> TextTokens:
        """Tokenize rendered text. Text before and after a BREAK never joins into one token."""
        first, *pieces = text.split(BREAK)
        return (
            _joined([self._encode(first), *map(self._piece, pieces)], [first, *pieces])
            if pieces
            else self._encode(first)
        )

    def following(self, text: str) -> TextTokens:
        """Tokenize a piece that follows other text: without the space that SentencePiece puts before a beginning."""
        pieces = text.split(BREAK)
        return _joined([self._piece(piece) for piece in pieces], pieces)

    def _piece(self, text: str) -> TextTokens:
        for anchor in ANCHORS:
            alone, both = self._encode(anchor), self._encode(anchor + text)
            count, size = len(alone.ids), len(anchor)
            if both.ids[:count] == alone.ids and all(start >= size for start in both.starts[count:]):
                return both.after(count, -size)
        return self._encode(text)

    def _encode_ids(self, texts: list[str]) -> list[Ids]:
        """Without places, which take a quarter of the time."""
        self._reset()
        return [tuple(found.ids) for found in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _reset(self) -> None:
        """Undo what calls of transformers left in the tokenizer, also those before it was saved."""
        if self._backend.encode_special_tokens:
            self._backend.encode_special_tokens = False
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()

    def _encode(self, text: str) -> TextTokens:
        self._reset()
        encoding = self._backend.encode(text, add_special_tokens=False)
        starts, ends = zip(*encoding.offsets, strict=True) if encoding.offsets else ((), ())
        return TextTokens(tuple(encoding.ids), starts, ends)


def _joined(parts: Sequence[TextTokens], pieces: Sequence[str]) -> TextTokens:
    """The tokens of pieces of a text with a BREAK between them, with places in that text."""
    ids: list[int] = []
    starts: list[int] = []
    ends: list[int] = []
    place = 0
    for part, piece in zip(parts, pieces, strict=True):
        ids += part.ids
        starts += [place + start for start in part.starts]
        ends += [place + end for end in part.ends]
        place += len(piece) + len(BREAK)
    return TextTokens(tuple(ids), tuple(starts), tuple(ends))

"""Answers that are read while they are written: the text that no later token changes, cut before a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignkit.data.group import Message
from alignkit.errors import DataError
from alignkit.models.next_token import Sampling
from alignkit.models.sampling import Continuation, generate
from alignkit.models.sequence import ActiveSequence
from alignkit.models.shared_model import SharedModel
from alignkit.tokens.encoding import Encoder
from alignkit.tokens.text_tokens import Ids


@dataclass(frozen=True)
class TokenLogprobs:
    """The text and log-probability, in nats, of a token that was sampled; and of the likeliest ones at its place.

    They are at the sampling temperature, or at 1 if it is 0, over the whole vocabulary.
    """

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Answer:
    """A complete answer.

    text: without the stop string that ended it. ended: by an end token or a stop string, not by the length.
    logprobs: of its tokens, if the question asks for them. drafts: what it was chosen from; None: it is the only one.
    """

    text: str
    tokens: Ids
    ended: bool
    logprobs: tuple[TokenLogprobs, ...] = ()
    drafts: Drafts | None = None

    @property
    def written(self) -> int:
        """The tokens that it cost, those of all drafts."""
        return sum(len(draft.tokens) for draft in (self.drafts.answers if self.drafts else [self]))


@dataclass(frozen=True)
class Drafts:
    """Answers of which one was chosen. scores: by which. place: of the chosen one."""

    answers: Sequence[Answer]
    scores: Sequence[float | None]
    place: int


@dataclass(frozen=True)
class Piece:
    """More of an answer. number: of the answer. logprobs: of the tokens since its last piece.

    answer: all of it, in the last piece, whose text may be empty; else None.
    """

    number: int
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    answer: Answer | None = None


@dataclass(frozen=True)
class Question:
    """A prompt as token ids, and the random streams of its answers, as from `seeds.number`.

    heard: is given every piece of its answers. in_pieces: false if one piece with all of an answer is enough, which
    saves decoding. wanted: asked after every token; once it is false, its answers are written no further.
    logprobs: how many of the likeliest tokens are listed at each place; None: no log-probabilities. messages: what the
    prompt asks, for a reward that chooses among answers.
    """

    prompt: Ids
    streams: Sequence[int]
    heard: Callable[[Piece], None] = lambda piece: None
    in_pieces: bool = True
    wanted: Callable[[], bool] = lambda: True
    logprobs: int | None = None
    messages: Sequence[Message] = ()


def answer(
    model: SharedModel, role: str, encoder: Encoder, questions: Sequence[Question], sampling: Sampling
) -> list[list[Answer]]:
    """Sample the answers to questions together, and let those who asked hear them while they are written.

    They are those of `alignkit.models.sampling.generate`, except that a stop string is cut off. With an engine they are
    heard when all are complete. Raises DataError for log-probabilities that it cannot tell.
    """
    readers = [[_Reader(encoder, q, sampling, k) for k in range(len(q.streams))] for q in questions]

    def wrote(rows: Sequence[ActiveSequence], logits: Tensor) -> None:
        for row, scores in zip(rows, logits, strict=True):
            readers[row.prompt][row.sample].read(row, scores)

    prompts, streams = [q.prompt for q in questions], [q.streams for q in questions]
    if model.engine is not None and any(q.logprobs for q in questions):
        raise DataError("this engine cannot tell top_logprobs; ask for 0 of them")
    written = generate(model, role, encoder, prompts, streams, sampling, wrote=wrote)
    return [
        [reader.finish(one) for reader, one in zip(*pair, strict=True)] for pair in zip(readers, written, strict=True)
    ]


class _Reader:
    """Reads one answer."""

    def __init__(self, encoder: Encoder, question: Question, sampling: Sampling, number: int):
        self._encoder, self._question, self._sampling, self._number = encoder, question, sampling, number
        self._text, self._seen, self._answer = "", 0, None  # type: tuple[str, int, Answer | None]
        self._logprobs: list[TokenLogprobs] = []
        self._told = 0  # of the log-probabilities

    def read(self, row: ActiveSequence, logits: Tensor) -> None:
        """Read a row's last token, if it has a new one. logits: [vocabulary], from which it was chosen."""
        if len(row.tokens) <= self._seen:  # idle, or written again because memory ran out
            return
        self._seen = len(row.tokens)
        if self._question.logprobs is not None:
            self._logprobs.append(self._measured(row, logits, self._question.logprobs))
        if not row.active:
            self.finish(Continuation(tuple(row.tokens), tuple(row.logprobs), row.ended))
        elif not self._question.wanted():
            row.abandon()
        elif self._question.in_pieces:
            self._hear(_before(self._settled(row.tokens), self._sampling.stop))

    def finish(self, written: Continuation) -> Answer:
        """The complete answer, which is heard once."""
        if self._answer is None:
            if self._question.logprobs is not None and not self._logprobs:  # an engine wrote it
                if written.logprobs is None:
                    raise DataError("with top_p, top_k or min_new_tokens, this engine cannot tell log-probabilities")
                texts = map(self._encoder.token_text, written.tokens)
                self._logprobs = list(map(TokenLogprobs, texts, written.logprobs))
            text = until_stop(self._encoder.decode(written.tokens), self._sampling.stop)
            self._answer = Answer(text, written.tokens, written.ended, tuple(self._logprobs))
            self._hear(text)
        return self._answer

    def _hear(self, text: str) -> None:
        piece = text[len(self._text) :] if text.startswith(self._text) else ""
        if piece or self._answer is not None:
            self._text += piece
            new, self._told = tuple(self._logprobs[self._told :]), len(self._logprobs)
            self._question.heard(Piece(self._number, piece, new, self._answer))

    def _settled(self, tokens: Sequence[int]) -> str:
        """The text that no later token changes: a character may take several tokens, and a lead-in may be left out."""
        text = self._encoder.decode(tokens).rstrip("\ufffd")
        return "" if self._encoder.may_be_lead(text) else text

    def _measured(self, row: ActiveSequence, logits: Tensor, most: int) -> TokenLogprobs:
        top = torch.log_softmax(logits / (self._sampling.temperature or 1.0), dim=-1).topk(min(most, len(logits)))
        texts = map(self._encoder.token_text, top.indices.tolist())
        pairs = tuple(zip(texts, top.values.tolist(), strict=True))
        return TokenLogprobs(self._encoder.token_text(row.tokens[-1]), row.logprobs[-1], pairs)


def until_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def _before(text: str, stops: Sequence[str]) -> str:
    """The text that is not the beginning of a stop string."""
    text = until_stop(text, stops)
    held = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return text[: len(text) - max(held, default=0)]

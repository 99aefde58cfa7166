"""From groups to tokens: the text that the chat template renders, masks, and a limit on the length.

A response's tokens are those of the whole text after its prompt's: the policy continues exactly
these. Nothing is dropped silently: `Encoder.counts` counts what is left out or changed, by the
names of `counts.DROP_REASONS`.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from alignkit.data.files import bad_rows_error
from alignkit.data.group import Group, Message, Pair, Response, preview, resolved_pairs
from alignkit.errors import DataError, RunFailed
from alignkit.io.digest import digest
from alignkit.recipe.sources import OR_SKIP
from alignkit.tokens.template import (
    AFTER_REASONING,
    ANSWER,
    BREAK,
    CLOSE,
    ChatTemplate,
    Conversation,
    Turn,
    has_names,
)

Ids = tuple[int, ...]
Mask = tuple[float, ...]  # true, false, or the weight of a turn
# Characters that no tokenizer merges with what follows; a piece is read after an anchor.
ANCHORS = ("\n", ":", "]", "a")


class TextTokenizer:
    """A tokenizer for rendered text, in which special tokens count as such.

    The ids are those of the whole text. A piece tokenized separately can differ: SentencePiece puts
    a space before it, and byte pairs do not merge across its edges.
    """

    def __init__(self, tokenizer: Any):
        """Raises RunFailed for a tokenizer that does not say which characters a token covers."""
        if not getattr(tokenizer, "is_fast", False):
            raise RunFailed(
                f"{type(tokenizer).__name__} is not a fast tokenizer, so the places of its tokens "
                "in a text are unknown\n"
                "help: use a model with a tokenizer.json"
            )
        # Directly in Rust: transformers' own call costs a third of the time on top.
        self._backend = tokenizer.backend_tokenizer
        self._ready: dict[str, Ids] = {}

    def prepare(self, texts: Iterable[str]) -> None:
        """Tokenize texts on all cores; `ids` then has them. Replaces those of the last call."""
        plain = list({text for text in texts if BREAK not in text})
        encode = self._fresh().encode_batch_fast  # without places, which take a quarter of the time
        encodings = encode(plain, add_special_tokens=False)
        self._ready = {
            text: tuple(encoding.ids) for text, encoding in zip(plain, encodings, strict=True)
        }

    def ids(self, text: str) -> Ids:
        """Tokenize rendered text."""
        ready = self._ready.get(text)
        return self.tokens(text)[0] if ready is None else ready

    def tokens(self, text: str, *, following: bool = False) -> tuple[Ids, list[int]]:
        """Tokenize rendered text, and find the character at which each token begins.

        Text before and after a BREAK never joins into one token. following: the text follows other
        text, so it gets no space as SentencePiece puts one before a beginning.
        """
        ids, starts, place = list[int](), list[int](), 0
        for number, piece in enumerate(text.split(BREAK)):
            own, begins = self._piece(piece) if number or following else self._encode(piece)
            ids += own
            starts += [place + begin for begin in begins]
            place += len(piece) + len(BREAK)
        return tuple(ids), starts

    def _piece(self, text: str) -> tuple[Sequence[int], Sequence[int]]:
        for anchor in ANCHORS:
            alone, _ = self._encode(anchor)
            ids, starts = self._encode(anchor + text)
            count, size = len(alone), len(anchor)
            if ids[:count] == alone and all(start >= size for start in starts[count:]):
                return ids[count:], [start - size for start in starts[count:]]
        return self._encode(text)

    def _encode(self, text: str) -> tuple[Sequence[int], Sequence[int]]:
        encoding = self._fresh().encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def _fresh(self) -> Any:
        """The tokenizer without what calls of transformers left in it, also those before it was
        saved.
        """
        self._backend.encode_special_tokens = False
        self._backend.no_truncation()
        self._backend.no_padding()
        return self._backend


class RowRefused(DataError):
    """The chat template refuses or changes a group."""

    def __init__(self, group: Group, reason: str):
        self.group = group
        super().__init__(f"{group.origin or f'the row {preview(group)}'}: {reason}")


@dataclass(frozen=True)
class ResponseTokens:
    """A response in tokens. mask: whether each token counts, or how much. truncated: it has no end
    of turn.
    """

    tokens: Ids
    mask: Mask
    truncated: bool = False


@dataclass(frozen=True)
class Encoded:
    """A group in tokens. pairs: indices into `responses`; their tokens differ."""

    group: Group
    prompt: Ids
    responses: tuple[ResponseTokens, ...]
    pairs: tuple[Pair, ...] = ()

    @classmethod
    def of(cls, prompt: Ids, *responses: Ids) -> Encoded:
        """Token ids of no group, of which all in the responses count."""
        counted = (ResponseTokens(ids, (True,) * len(ids)) for ids in responses)
        return cls(Group(()), prompt, tuple(counted))

    @property
    def length(self) -> int:
        """Tokens in a pack, where the prompt appears once."""
        return len(self.prompt) + sum(len(response.tokens) for response in self.responses)


# A group, its prompt as text, and its conversations as far as they become tokens; None for a
# response whose own tokens are read.
Rendered = tuple[Group, str, list[Conversation | None]]


class Encoder:
    """The only place that turns text into tokens, so training, sampling, and scoring agree.

    counts: what did not fit, by the names of DROP_REASONS. groups: the groups it happened in.
    refused: rows that `accepted` left out. foreign: whether tokens whose tokenizer nobody named are
    those of another model, so that their text is read.
    """

    foreign = False

    def __init__(
        self,
        tokenizer: Any,
        template_kwargs: Mapping[str, Any] | None = None,
        end_ids: Iterable[int] = (),
    ):
        """template_kwargs: of the chat template. end_ids: tokens that end a response, besides the
        template's own.
        """
        self.tokenizer, self.rendered = tokenizer, TextTokenizer(tokenizer)
        self._known_ends = frozenset({tokenizer.eos_token_id, *end_ids} - {None})
        ends = map(str, tokenizer.convert_ids_to_tokens(sorted(self._known_ends)))
        self.chat = ChatTemplate(tokenizer, template_kwargs, frozenset(ends))
        self.counts: Counter[str] = Counter()
        self.groups = defaultdict[str, list[Group]](list)
        self.refused: list[RowRefused] = []

    def forget_counts(self) -> None:
        self.counts.clear()
        self.groups.clear()
        self.refused.clear()

    def count(self, case: str, group: Group, count: int = 1) -> None:
        """Count a case of DROP_REASONS."""
        self.counts[case] += count
        self.groups[case].append(group)

    # The template's tokens

    @cached_property
    def digest(self) -> str:
        """16 hex digits. Sampled tokens mean the same, and end the same way, for encoders with an
        equal one.
        """
        return digest([self.tokenizer.get_vocab(), self.end_of_turn])[:16]

    @cached_property
    def bos(self) -> Ids:
        """The beginning-of-sequence token, if the tokenizer adds one to raw text."""
        empty = self.tokenizer("")["input_ids"]
        if empty and empty[0] == self.tokenizer.bos_token_id:
            return tuple(empty[:1])
        return ()

    @cached_property
    def closing(self) -> Ids:
        """All tokens that the template writes after an answer."""
        return self._after_answer(self.chat.markers.close + self.chat.markers.tail)

    @cached_property
    def end_of_turn(self) -> Ids:
        """The tokens from the end of the assistant's text through the end of turn; EOS if the
        template writes none.
        """
        if self.chat.markers.close:
            return self._after_answer(self.chat.markers.close)
        return (self.eos,)

    def _after_answer(self, end: str) -> Ids:
        markers = self.chat.markers
        answer = markers.whole.removesuffix(markers.close + markers.tail)
        return self._continuation(answer, answer + end)[0]

    @property
    def eos(self) -> int:
        """The end-of-sequence token. Without one, the template's end of turn ends raw text, too."""
        eos = self.tokenizer.eos_token_id
        return int(self.end_of_turn[-1] if eos is None else eos)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a response."""
        markers = self.tokenizer.convert_tokens_to_ids(list(self.chat.end_markers.values()))
        return frozenset({self.end_of_turn[-1], *markers}) | self._known_ends

    # Decoding

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode a response to the words from which the template would render it, without its end
        of turn.
        """
        return self._continued(tokens).removeprefix(self.lead)

    def shown_text(self, tokens: Sequence[int]) -> str:
        """Decode a sample as rewards, judges and people read it: with the block of reasoning that
        its prompt opens.

        A sample that closes the block at once, as the template itself does, has no reasoning.
        """
        text = self._continued(tokens)
        if CLOSE in self.lead and text.startswith(self.lead):
            return text.removeprefix(self.lead)
        return self.chat.markers.opening + text.removeprefix(self.lead)

    @cached_property
    def lead(self) -> str:
        """What the template writes before an answer, as it is decoded: SentencePiece may add a
        space.
        """
        markers = self.chat.markers
        if not markers.follows:
            return markers.lead
        ids, _ = self._continuation(markers.prompt, markers.whole)
        lead, answered, _ = self._continued(ids).partition(ANSWER)
        return lead if answered else markers.lead

    def _continued(self, tokens: Sequence[int]) -> str:
        """The text of tokens after a prompt, without the end of turn: its first space depends on
        the prompt.
        """
        ids = list(tokens)
        while ids and ids[-1] in self.end_ids:
            ids.pop()
        # Without a decoder, tokenizers put spaces between all tokens, and nothing depends on the
        # prompt.
        prompt: Sequence[int] = ()
        if self.tokenizer.backend_tokenizer.decoder:
            prompt = self.rendered.ids(self.chat.markers.prompt)
        before, text = self._decoded(prompt), self._decoded([*prompt, *ids])
        return text[len(before) :] if text.startswith(before) else self._decoded(ids)

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    # Prompts and pieces of text

    def text(self, text: str) -> Ids:
        """Encode raw text. Special tokens in it are ordinary text, so data cannot end a turn."""
        return tuple(
            self.tokenizer(
                text, add_special_tokens=False, split_special_tokens=True, verbose=False
            )["input_ids"]
        )

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> Ids:
        """Encode a prompt up to the start of the assistant's text; raw text has an empty prompt.

        Raises DataError if the template refuses it.
        """
        return self.rendered.ids(self.chat.prompt(messages, tools)) if messages else self.bos

    def answers(
        self, messages: Sequence[Message], prefill: str, answers: Sequence[str]
    ) -> tuple[Ids, list[Ids]]:
        """A prompt that ends with `prefill`, outside of any reasoning, and the tokens of each
        answer after it.
        """
        text, markers = self.chat.prompt(messages), self.chat.markers
        if markers.follows and CLOSE in markers.lead:
            text += markers.lead
        elif markers.opening:
            text += AFTER_REASONING
        text += prefill
        self.rendered.prepare([text])
        return self.rendered.ids(text), [
            self._continuation(text, text + answer)[0] for answer in answers
        ]

    def _continuation(self, prompt: str, text: str) -> tuple[Ids, int]:
        """The tokens of a text that begins with the prompt, after the prompt's.

        Also returns the character from which on the text was tokenized. It is the prompt's end if a
        token of the text covers that: the policy sees the prompt as it is.
        """
        cut, before = self._cut_of(prompt), self.rendered.ids(prompt)
        tail = self.rendered.ids(prompt[cut:])
        if before[-len(tail) :] != tail:
            cut, tail = 0, before
        ids = self.rendered.ids(text[cut:])
        if ids[: len(tail)] == tail:
            return ids[len(tail) :], cut
        return self.rendered.tokens(text[len(prompt) :], following=True)[0], len(prompt)

    def _cut_of(self, prompt: str) -> int:
        """The character at which the prompt's last special token begins.

        Tokenizers read the text between special tokens separately, so a response is tokenized with
        the text from there.
        """
        return max((match.start() for match in self.chat.special.finditer(prompt)), default=0)

    # Groups

    def encode(
        self, group: Group, max_length: int, *, turns: str = "all", scoring: bool = False
    ) -> Encoded | None:
        """Encode a group, each prompt with a response in at most `max_length` tokens; None if its
        prompt does not fit.

        A longer raw text is cut to its first piece. turns: the assistant's turns that
        count in a demonstration, "all" or "last". scoring: read each response to the end of what
        the template writes. Raises RowRefused if the template refuses or changes the conversation,
        or if a response's `action_mask` does not match its tokens.
        """
        rendered = [self.render(group, scoring)]
        return next(
            iter(self.encode_batch(rendered, max_length, turns=turns, scoring=scoring)), None
        )

    def encode_batch(
        self, rendered: Sequence[Rendered], max_length: int, *, turns: str, scoring: bool
    ) -> list[Encoded]:
        """`encode` the groups that fit, and all pieces of raw texts. They are tokenized on all
        cores.
        """
        texts: list[str] = []  # `_continuation` will ask for these
        for _, prompt, conversations in rendered:
            cut = self._cut_of(prompt)
            texts += [prompt, prompt[cut:]]
            texts += [conversation.text[cut:] for conversation in conversations if conversation]
        self.rendered.prepare(texts)
        encoded: list[Encoded] = []
        for one in rendered:
            encoded += self._encode(*one, max_length, turns, scoring)
        return encoded

    def accepted(self, groups: Iterable[Group], scoring: bool = False) -> list[Rendered]:
        """Render the groups that the chat template accepts; `count_refused` tells of the others."""
        accepted: list[Rendered] = []
        for group in groups:
            try:
                accepted.append(self.render(group, scoring))
            except RowRefused as error:
                self.refused.append(error)
        return accepted

    def count_refused(self) -> list[RowRefused]:
        """The refused rows, all of which their sources leave out (`on_bad_row: skip`). Raises
        DataError with others.
        """
        bad = [row for row in self.refused if row.group.origin is None or not row.group.origin.skip]
        if bad:
            raise DataError(f"{bad_rows_error(bad)}\nhelp: correct the rows{OR_SKIP}")
        for row in self.refused:
            self.count("refused", row.group)
        return self.refused

    def reads(self, response: Response) -> bool:
        """Whether a response has tokens of this tokenizer; otherwise its text is read."""
        own = response.tokenizer == self.digest if response.tokenizer else not self.foreign
        return response.tokens is not None and own

    def render(self, group: Group, scoring: bool = False) -> Rendered:
        """Render a group without tokenizing it, and count what the template leaves out. Raises
        RowRefused.
        """
        try:
            return self._render(group, scoring)
        except DataError as error:
            raise RowRefused(group, str(error)) from error

    def _render(self, group: Group, scoring: bool) -> Rendered:
        prompt, whole = "", ""
        if group.prompt:
            prompt = whole = self.chat.prompt(group.prompt, group.tools)
        conversations: list[Conversation | None] = []
        roles = {message["role"] for message in group.prompt}
        for response in group.responses:
            one = None
            if self.reads(response):
                tokens, mask = response.tokens or (), response.action_mask
                if mask and len(mask) != len(tokens):
                    raise DataError(
                        f"a response has {len(tokens)} tokens, but {len(mask)} entries in its "
                        "`action_mask`"
                    )
            elif not group.prompt:
                whole += self.chat.special.sub(BREAK, response.text)
            else:
                answers = answers_of(response)
                roles.update(answer["role"] for answer in answers)
                one = self.chat.conversation(group.prompt, answers, group.tools, prompt)
                whole += one.text
                if not one.text.startswith(prompt):
                    if len(group.responses) > 1:
                        raise DataError(
                            "the chat template renders the first answer without its own prompt"
                        )
                    # What the template writes once an answer follows
                    prompt = one.text[: one.turns[0].start]
                if not scoring:
                    one = self._ended(one, response.truncated, bool(answers[-1].get("tool_calls")))
            conversations.append(one)
        cases = {
            "dropped_tools": not has_names(prompt, group.tools),
            "dropped_messages": roles & self.chat.dropped_roles,
            "typed_tokens": BREAK in whole,
        }
        for case, found in cases.items():
            if found:
                self.count(case, group)
        return group, prompt, conversations

    def _ended(self, conversation: Conversation, truncated: bool, calls: bool) -> Conversation:
        """The conversation up to the end of its last turn, with EOS if the template writes no end,
        as in sampling.
        """
        close, last = self.chat.markers.close, conversation.turns[-1]
        text = conversation.text[: last.end]
        if truncated:
            text = text.removesuffix(close)
        elif not close:
            eos = self.tokenizer.eos_token or ""
            text += self.chat.end_markers.get(True, eos) if calls else eos
        return Conversation(text, (*conversation.turns[:-1], replace(last, end=len(text))))

    def _encode(
        self,
        group: Group,
        text: str,
        conversations: Sequence[Conversation | None],
        max_length: int,
        turns: str,
        scoring: bool,
    ) -> list[Encoded]:
        prompt = self.rendered.ids(text) if group.prompt else self.bos
        if is_document(group) and not scoring:
            pieces = chunks(
                Encoded(group, prompt, (self._own(group, group.responses[0], scoring),)), max_length
            )
            if not pieces:
                self.count("no_room", group)
            elif len(pieces) > 1:
                self.count("split", group)
                self.count("chunks", group, len(pieces))
            return pieces
        scoring = scoring and bool(group.prompt)
        end = self.closing if scoring else ()  # a response that is cut keeps it
        room = max_length - len(prompt)
        keep = room - len(end)
        if keep < 1:
            self.count("no_room", group)
            return []
        encoded = []
        for response, conversation in zip(group.responses, conversations, strict=True):
            if conversation is None:
                one = self._own(group, response, scoring)
            else:
                one = self._learned(group, response, conversation, text, turns, scoring)
            if len(one.tokens) > room:
                self.count("cut", group)
                one = ResponseTokens(
                    one.tokens[:keep] + end, one.mask[:keep] + (True,) * len(end), not scoring
                )
            encoded.append(one)
        pairs = list[Pair]()
        for pair in resolved_pairs(group):
            better, worse = encoded[pair.better], encoded[pair.worse]
            # Without a counted token a response's log-probability would be 0.
            texts = group.responses[pair.better].text, group.responses[pair.worse].text
            is_equal = better.tokens == worse.tokens or _typed_otherwise(*texts)
            if not is_equal and (scoring or (any(better.mask) and any(worse.mask))):
                pairs.append(pair)
            else:
                self.count("equal_pairs", group)
        return [Encoded(group, prompt, tuple(encoded), tuple(pairs))]

    # Responses

    def _own(self, group: Group, response: Response, scoring: bool) -> ResponseTokens:
        """A sample's own tokens, or raw text and EOS; for scoring with everything that the template
        writes after it.
        """
        if not self.reads(response):
            response = Response(tokens=(*self.text(response.text), self.eos))
        tokens = response.tokens or ()
        written = response.action_mask or (True,) * len(tokens)
        if not group.prompt and not self.bos and tokens:  # nothing predicts the first token
            written = (False, *written[1:])
        if not scoring:
            return ResponseTokens(tokens, written, response.truncated)
        end = self.closing
        if tokens and tokens[-1] in self.end_ids:
            if self.chat.markers.close:  # only what the template writes behind the end of turn
                end = end[len(self.end_of_turn) :]
            else:  # the template writes none, so the engine's is not part of what is scored
                tokens, written = tokens[:-1], written[:-1]
        return ResponseTokens(tokens + end, written + (True,) * len(end))

    def _learned(
        self,
        group: Group,
        response: Response,
        conversation: Conversation,
        prompt: str,
        turns: str,
        scoring: bool,
    ) -> ResponseTokens:
        """A response. The assistant's turns count; the template and other authors do not."""
        text, last = conversation.text, conversation.turns[-1]
        learned: list[Turn] = []
        for turn in conversation.turns:
            if turn.weight and (turns == "all" or turn is last):
                # A response that is empty text is learned
                if turn.learnable or response.messages is None:
                    learned.append(turn)
                else:
                    self.count("unprompted_turns", group)
        ids, begin = self._continuation(prompt, text)
        if learned == [last] and last.start == len(prompt) and last.end >= len(text):
            # All tokens belong to one turn, so their places need not be known
            mask = [last.weight] * len(ids)
        else:
            mask = [False] * len(ids)
            _, starts = self.rendered.tokens(text[begin:], following=begin == len(prompt))
            del starts[: len(starts) - len(ids)]
            for turn in learned:
                # A token that begins before the turn is the header's: the policy never writes it.
                first, end = (
                    bisect_left(starts, turn.start - begin),
                    bisect_left(starts, turn.end - begin),
                )
                mask[first:end] = [turn.weight] * (end - first)
        return ResponseTokens(ids, tuple(mask), response.truncated and not scoring)


def answers_of(response: Response) -> Sequence[Mapping[str, Any]]:
    """The turns of a response, up to the assistant's last one."""
    if response.messages is None:
        return [{"role": "assistant", "content": response.text}]
    last = max(i for i, message in enumerate(response.messages) if message["role"] == "assistant")
    return response.messages[: last + 1]


def is_document(group: Group) -> bool:
    """Whether a group is one raw text, which can be learned in pieces."""
    return not group.prompt and len(group.responses) == 1 and group.responses[0].tokens is None


def chunks(document: Encoded, max_length: int) -> list[Encoded]:
    """A document in chunks of at most `max_length` tokens; none if not even two tokens fit.

    Each chunk begins with the beginning-of-sequence token, if there is one. Every chunk but the
    first repeats the last token before it as context, which does not count. So every token counts
    once, and is predicted from the one before.
    """
    (text,) = document.responses
    room = max_length - len(document.prompt)
    if room < 2:
        return []
    pieces = []
    for start in range(0, max(1, len(text.tokens) - 1), room - 1):
        end = start + room
        mask = text.mask[start:end]
        if start:
            mask = (False, *mask[1:])
        piece = ResponseTokens(
            text.tokens[start:end], mask, text.truncated or end < len(text.tokens)
        )
        pieces.append(replace(document, responses=(piece,)))
    return pieces


def _typed_otherwise(one: str, other: str) -> bool:
    """Whether two texts differ only in how their accents are stored."""
    return one != other and unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)

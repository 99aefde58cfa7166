"""From groups to tokens: the text that the chat template renders, masks, and a limit on the length.

A response's tokens are those of the whole text after its prompt's: the policy continues exactly these. Nothing is
dropped silently: `Encoder.counts` counts what is left out or changed, by the names of `DROP_REASONS`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from alignkit.data.group import Group, Message, Pair, Response, every_turn, preview, resolved_pairs
from alignkit.errors import DataError, RunFailed
from alignkit.io.digest import digest
from alignkit.tokens.template import (
    ANSWER,
    BREAK,
    CLOSE,
    OPENED_AT_END,
    ChatTemplate,
    Conversation,
    Turn,
    has_names,
)

Ids = tuple[int, ...]
Mask = tuple[float, ...]  # true, false, or the weight of a turn
# Characters that no tokenizer merges with what follows; a piece is read after an anchor.
ANCHORS = ("\n", ":", "]", "a")
INDENTED = 2  # spaces or tabs; many data sets begin each answer with one space, which means nothing
WHOLE = 2**62  # a limit on the length that cuts nothing

# Name of a count -> what is counted, and what happened to it, in words that fit one and several.
DROP_REASONS = {
    "no_room": ("row", "left out: no room for a response in max_length"),
    "cut": ("response", "truncated at max_length"),
    "equal_pairs": ("pair", "left out: both responses have the same tokens, or one has none that counts"),
    "unprompted_turns": (
        "turn",
        "not learned: the chat template does not write such a turn after the generation prompt",
    ),
    "endless_turns": (
        "turn",
        "learned without an end: the chat template writes no token behind such a turn, so the policy may not stop "
        "there; set model.chat_template to one that ends turns",
    ),
    "trimmed_turns": (
        "answer",
        "learned in other words: the chat template drops the indentation at the beginning, as of code; set "
        "model.chat_template to one that does not trim",
    ),
    "dropped_calls": ("turn", "not learned: the chat template does not write the tool calls"),
    "dropped_tools": ("row", "learned without tools: the chat template does not write them"),
    "untold_tools": (
        "row",
        "learned without tools, though turns call some: list them in the column 'tools', or the policy may call "
        "tools that nobody offers",
    ),
    "dropped_messages": (
        "row",
        "learned without a message: the chat template does not write that of the system or of a tool; set "
        "model.chat_template",
    ),
    "dropped_names": ("row", "learned without a name: the chat template does not write who speaks in a message"),
    "typed_tokens": (
        "row",
        "with control tokens in the words, which are read as letters: give a conversation as messages, not as the "
        "text that a chat template made of it",
    ),
    "closed_at_once": (
        "answer",
        "without reasoning: learned to end at once the block of reasoning that the chat template opens; set "
        "model.chat_template_kwargs (as {enable_thinking: false}) if it has an argument that ends the block",
    ),
    "blank_turns": ("turn", "not learned: empty"),
    "joined": ("response", "tokenized after the prompt: in the whole text, one token covers the end of the prompt"),
    "weightless": ("row", "of weight 0 left out"),
    "refused": ("row", "left out: refused by the chat template"),
    "split": ("document", "longer than max_length and learned in pieces"),
    "chunks": ("piece", "of these"),
}


def counted(count: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def drop_reason(name: str, count: int) -> str:
    """`2 responses truncated at max_length`."""
    noun, what = DROP_REASONS[name]
    return f"{counted(count, noun)} {what}"


class TextTokenizer:
    """A tokenizer for rendered text, in which special tokens count as such.

    The ids are those of the whole text. A piece tokenized separately can differ: SentencePiece puts a space before it,
    and byte pairs do not merge across its edges.
    """

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

    def prepare(self, texts: Iterable[str]) -> None:
        """Tokenize texts on all cores; `ids` then has them. Replaces those of the last call."""
        plain = list({text for text in texts if BREAK not in text})
        self._ready = dict(zip(plain, self._encode_ids(plain), strict=True))

    def ids(self, text: str) -> Ids:
        """Tokenize rendered text."""
        if (ready := self._ready.get(text)) is not None:
            return ready
        return self.tokens(text)[0] if BREAK in text else self._encode_ids([text])[0]

    def tokens(self, text: str, *, following: bool = False) -> tuple[Ids, list[int]]:
        """Tokenize rendered text, and find the character at which each token begins.

        Text before and after a BREAK never joins into one token. following: the text follows other text, so it gets no
        space as SentencePiece puts one before a beginning.
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

    def _encode_ids(self, texts: list[str]) -> list[Ids]:
        """Without places, which take a quarter of the time."""
        self._reset()
        return [tuple(encoding.ids) for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode(self, text: str) -> tuple[Sequence[int], Sequence[int]]:
        self._reset()
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def _reset(self) -> None:
        """Undo what calls of transformers left in the tokenizer, also those before it was saved."""
        self._backend.encode_special_tokens = False
        self._backend.no_truncation()
        self._backend.no_padding()


class RowRefused(DataError):
    """The chat template refuses or changes a group. reason: why."""

    def __init__(self, group: Group, reason: str):
        self.group, self.reason = group, reason
        super().__init__(f"{group.origin or f'the row {preview(group)}'}: {reason}")


@dataclass(frozen=True)
class ResponseTokens:
    """A response in tokens. mask: whether each token counts, or how much. truncated: it has no end of turn."""

    tokens: Ids
    mask: Mask
    truncated: bool = False


@dataclass(frozen=True)
class Encoded:
    """A group in tokens. rows: its responses. pairs: indices into `rows`; their tokens differ."""

    group: Group
    prompt: Ids
    rows: tuple[ResponseTokens, ...]
    pairs: tuple[Pair, ...] = ()

    @property
    def length(self) -> int:
        """Tokens in a packed row, where the prompt appears once."""
        return len(self.prompt) + sum(len(row.tokens) for row in self.rows)


@dataclass(frozen=True)
class Rendered:
    """A group as the chat template renders it. conversations: as far as they become tokens; None for a response whose
    own tokens are read. cases: of DROP_REASONS.
    """

    prompt: str
    conversations: Sequence[Conversation | None]
    cases: Sequence[str]


class Encoder:
    """The only place that turns text into tokens, so training, sampling, and scoring agree.

    counts: what did not fit, by the names of DROP_REASONS. groups: the groups it happened in. foreign: whether
    tokens whose tokenizer nobody named are those of another model, so that their text is read.
    """

    foreign = False

    def __init__(self, tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None, end_ids: Iterable[int] = ()):
        """template_kwargs: of the chat template. end_ids: tokens that end a response, besides the template's own."""
        self.tokenizer, self.rendered = tokenizer, TextTokenizer(tokenizer)
        self._known_ends = frozenset({tokenizer.eos_token_id, *end_ids} - {None})
        ends = map(str, tokenizer.convert_ids_to_tokens(sorted(self._known_ends)))
        self.chat = ChatTemplate(tokenizer, template_kwargs, frozenset(ends))
        self.counts: Counter[str] = Counter()
        self.groups: dict[str, list[Group]] = {}

    def forget_counts(self) -> None:
        self.counts.clear()
        self.groups.clear()

    def count(self, case: str, group: Group, count: int = 1) -> None:
        """Count a case of DROP_REASONS."""
        if count:
            self.counts[case] += count
            self.groups.setdefault(case, []).append(group)

    # The template's tokens

    @cached_property
    def digest(self) -> str:
        """16 hex digits. Sampled tokens mean the same, and end the same way, for encoders with an equal one."""
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
        return self._after_answer(self.chat.shape.close + self.chat.shape.tail)

    @cached_property
    def end_of_turn(self) -> Ids:
        """The tokens from the end of the assistant's text through the end of turn; EOS if the template writes none."""
        return self._after_answer(self.chat.shape.close) if self.chat.shape.close else (self.eos,)

    def _after_answer(self, end: str) -> Ids:
        shape = self.chat.shape
        answer = shape.whole.removesuffix(shape.close + shape.tail)
        return self._continuation(answer, self.rendered.ids(answer), answer + end)[0]

    @property
    def eos(self) -> int:
        """The end-of-sequence token. Without one, the template's end of turn ends raw text, too."""
        eos = self.tokenizer.eos_token_id
        return int(self.end_of_turn[-1] if eos is None else eos)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a response."""
        markers = self.tokenizer.convert_tokens_to_ids(list(self.chat.markers.values()))
        return frozenset({self.end_of_turn[-1], *markers}) | self._known_ends

    @property
    def end_of_call(self) -> Ids:
        """What ends a last turn that calls a tool, if the template writes no end of turn."""
        marker = self.chat.markers.get(True)
        return self.end_of_turn if marker is None else (int(self.tokenizer.convert_tokens_to_ids(marker)),)

    # Decoding

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode a response to the words from which the template would render it, without its end of turn."""
        return self._continued(tokens).removeprefix(self._decoded_lead)

    def said(self, tokens: Sequence[int]) -> str:
        """Decode a sample as rewards, judges and people read it: with the block of reasoning that its prompt opens.

        A sample that closes the block at once, as the template itself does, has no reasoning.
        """
        closes = CLOSE in self._decoded_lead and self._continued(tokens).startswith(self._decoded_lead)
        opening = OPENED_AT_END.search(self.chat.shape.prompt)
        return self.decode(tokens) if closes or not opening else opening[0] + self.decode(tokens)

    def may_be_lead(self, text: str) -> bool:
        """Whether a decoded text may be the beginning of what `decode` leaves out before an answer."""
        return self._decoded_lead.startswith(text)

    def _continued(self, tokens: Sequence[int]) -> str:
        """The text of tokens after a prompt, without the end of turn."""
        ids = list(tokens)
        while ids and ids[-1] in self.end_ids:
            ids.pop()
        before = self._decoded(self._example_prompt)
        text = self._decoded([*self._example_prompt, *ids])
        return text[len(before) :] if text.startswith(before) else self._decoded(ids)

    @cached_property
    def _example_prompt(self) -> Ids:
        """A prompt, after which a response is decoded: its first space depends on it.

        Without a decoder, tokenizers put spaces between all tokens, and nothing depends on it.
        """
        if self.tokenizer.backend_tokenizer.decoder:
            return self.rendered.ids(self.chat.shape.prompt)
        return ()

    @cached_property
    def _decoded_lead(self) -> str:
        """What the template writes before an answer, as it is decoded: SentencePiece may add a space."""
        shape = self.chat.shape
        if not shape.follows:
            return shape.lead
        ids, _ = self._continuation(shape.prompt, self.rendered.ids(shape.prompt), shape.whole)
        text = self._decoded([*self._example_prompt, *ids]).removeprefix(self._decoded(self._example_prompt))
        return text[: text.index(ANSWER)] if ANSWER in text else shape.lead

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    # Prompts and pieces of text

    def text(self, text: str) -> Ids:
        """Encode raw text. Special tokens in it are ordinary text, so data cannot end a turn."""
        return tuple(
            self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        )

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> Ids:
        """Encode a prompt up to the start of the assistant's text; raw text has an empty prompt.

        Raises DataError if the template refuses it.
        """
        return self._prompt_ids(self.chat.prompt(messages, tools)) if messages else self.bos

    def _prompt_ids(self, text: str) -> Ids:
        if not text:  # the prompt's last token predicts a response's first one
            raise DataError("the chat template renders the prompt as empty text")
        return self.rendered.ids(text)

    def answers(self, messages: Sequence[Message], prefill: str, answers: Sequence[str]) -> tuple[Ids, list[Ids]]:
        """A prompt that ends with `prefill`, outside of any reasoning, and the tokens of each answer after it."""
        text = self.chat.prompt(messages, answering=True) + prefill
        prompt = self._prompt_ids(text)
        return prompt, [self._continuation(text, prompt, text + answer)[0] for answer in answers]

    def _continuation(self, prompt: str, before: Ids, text: str) -> tuple[Ids, int]:
        """The tokens of a text that begins with the prompt, after the prompt's.

        Also returns the character from which on the text was tokenized. It is the prompt's end if a token of the text
        covers that: the policy sees the prompt as it is.
        """
        cut = self._cut_of(prompt)
        tail = self.rendered.ids(prompt[cut:])
        if before[-len(tail) :] != tail:
            cut, tail = 0, before
        ids = self.rendered.ids(text[cut:])
        if ids[: len(tail)] == tail:
            return ids[len(tail) :], cut
        return self.rendered.tokens(text[len(prompt) :], following=True)[0], len(prompt)

    def _cut_of(self, prompt: str) -> int:
        """The character at which the prompt's last special token begins.

        Tokenizers read the text between special tokens separately, so a response is tokenized with the text from there.
        """
        return max((match.start() for match in self.chat.special.finditer(prompt)), default=0)

    # Groups

    def encode(self, group: Group, max_length: int, *, turns: str = "all", scoring: bool = False) -> Encoded | None:
        """Encode a group, each prompt with a response in at most `max_length` tokens; None if its prompt does not fit.

        turns: the assistant's turns that count in a demonstration, "all" or "last". scoring: read each response to the
        end of what the template writes. Raises RowRefused if the template refuses or changes the conversation, or if a
        response's `written` does not match its tokens.
        """
        (encoded,) = self.encode_batch([group], max_length, turns=turns, scoring=scoring)
        if isinstance(encoded, RowRefused):
            raise encoded
        return encoded

    def encode_batch(
        self, groups: Sequence[Group], max_length: int, *, turns: str = "all", scoring: bool = False
    ) -> list[Encoded | RowRefused | None]:
        """`encode` groups, whose texts are tokenized on all cores. A refused group's error takes its place."""
        rendered = [self.render(group, scoring) for group in groups]
        texts: list[str] = []  # for which `_continuation` will ask
        for one in rendered:
            if isinstance(one, Rendered):
                cut = self._cut_of(one.prompt)
                texts += [one.prompt, one.prompt[cut:]]
                texts += [conversation.text[cut:] for conversation in one.conversations if conversation is not None]
        self.rendered.prepare(texts)
        return [
            self._encode(group, one, max_length, turns, scoring) for group, one in zip(groups, rendered, strict=True)
        ]

    def reads(self, response: Response) -> bool:
        """Whether a response has tokens of this tokenizer; otherwise its text is read."""
        if response.tokens is None or response.tokenizer is None:
            return response.tokens is not None and not self.foreign
        return response.tokenizer == self.digest

    def render(self, group: Group, scoring: bool = False) -> Rendered | RowRefused:
        """Render a group without tokenizing it."""
        try:
            for response in group.responses:
                _check_written(response)
            if group.prompt:
                return self._render(group, scoring)
        except DataError as error:
            return RowRefused(group, str(error))
        typed = any(one.tokens is None and self.chat.special.search(one.text) for one in group.responses)
        return Rendered("", [None] * len(group.responses), ["typed_tokens"] if typed else [])

    def _render(self, group: Group, scoring: bool) -> Rendered:
        prompt = self.chat.prompt(group.prompt, group.tools)
        cases = set[str]() if has_names(prompt, group.tools) else {"dropped_tools"}
        if not group.tools and any(turn.get("tool_calls") for turn in every_turn(group)):
            cases.add("untold_tools")
        conversations: list[Conversation | None] = []
        for response in group.responses:
            answers = [] if self.reads(response) else answers_of(response)
            cases |= self.chat.drops([*group.prompt, *answers], group.tools)
            conversation = self.chat.conversation(group.prompt, answers, group.tools, prompt) if answers else None
            conversations.append(conversation)
        if not group.responses:
            cases |= self.chat.drops(group.prompt, group.tools)
        rendered = [one for one in conversations if one is not None]
        if any(BREAK in text for text in (prompt, *(one.text for one in rendered))):
            cases.add("typed_tokens")
        if not all(one.text.startswith(prompt) for one in rendered):
            if len(group.responses) > 1:
                raise DataError("the chat template renders the first answer without its own prompt")
            prompt = rendered[0].text[: rendered[0].turns[0].start]  # what the template writes once an answer follows
        if not prompt:  # the prompt's last token predicts a response's first one
            raise DataError("the chat template renders the prompt as empty text")
        for place, (response, one) in enumerate(zip(group.responses, conversations, strict=True)):
            if one is not None:
                text = one.text if scoring else one.text[: one.turns[-1].end]
                if response.truncated and not scoring:
                    text = text.removesuffix(self.chat.shape.close)
                conversations[place] = Conversation(text, one.turns)
        return Rendered(prompt, conversations, sorted(cases))

    def _encode(
        self, group: Group, rendered: Rendered | RowRefused, max_length: int, turns: str, scoring: bool
    ) -> Encoded | RowRefused | None:
        if isinstance(rendered, RowRefused):
            return rendered
        scoring = scoring and bool(group.prompt)
        prompt = self.rendered.ids(rendered.prompt) if group.prompt else self.bos
        room = max_length - len(prompt)
        if room < 1 + (len(self.closing) if scoring else 0):
            self.count("no_room", group)
            return None
        for case in rendered.cases:
            self.count(case, group)
        rows = []
        for response, conversation in zip(group.responses, rendered.conversations, strict=True):
            if not group.prompt:
                row = self._raw(response)
            elif conversation is None:
                row = self._sampled(response, scoring)
            else:
                row = self._row(group, response, conversation, rendered.prompt, turns, scoring)
            rows.append(self._cut(group, row, room, scoring))
        return Encoded(group, prompt, tuple(rows), self._pairs(group, rows, scoring))

    def _cut(self, group: Group, row: ResponseTokens, room: int, scoring: bool) -> ResponseTokens:
        """Truncate a response on the right, keeping the end for scoring."""
        if len(row.tokens) <= room:
            return row
        self.count("cut", group)
        end = self.closing if scoring else ()
        keep = room - len(end)
        return ResponseTokens(row.tokens[:keep] + end, row.mask[:keep] + (True,) * len(end), not scoring)

    def _pairs(self, group: Group, rows: Sequence[ResponseTokens], scoring: bool) -> tuple[Pair, ...]:
        """Return the pairs that can be learned from and count the others."""
        pairs, usable = resolved_pairs(group), list[Pair]()
        for pair in pairs:
            better, worse = rows[pair.better], rows[pair.worse]
            # Without a counted token a response's log-probability would be 0.
            if better.tokens != worse.tokens and (scoring or (any(better.mask) and any(worse.mask))):
                usable.append(pair)
        self.count("equal_pairs", group, len(pairs) - len(usable))
        return tuple(usable)

    # Responses

    def _raw(self, response: Response) -> ResponseTokens:
        """Raw text, and EOS. Without a BOS token nothing predicts the first token."""
        if self.reads(response):
            row = self._sampled(response, False)
        else:
            tokens = (*self.text(response.text), self.eos)
            row = ResponseTokens(tokens, (True,) * len(tokens))
        if self.bos:
            return row
        return replace(row, mask=(*(False for _ in row.mask[:1]), *row.mask[1:]))

    def _sampled(self, response: Response, scoring: bool) -> ResponseTokens:
        """A sample's own tokens; for scoring with everything that the template writes after them."""
        tokens = response.tokens or ()
        written = response.written or (True,) * len(tokens)
        if not scoring:
            return ResponseTokens(tokens, written, response.truncated)
        end = self.closing
        if tokens and tokens[-1] in self.end_ids:
            if self.chat.shape.close:  # only what the template writes behind the end of turn
                end = end[len(self.end_of_turn) :]
            else:  # the template writes none, so the sampler's is not part of what is scored
                tokens, written = tokens[:-1], written[:-1]
        return ResponseTokens(tokens + end, written + (True,) * len(end))

    def _row(
        self, group: Group, response: Response, conversation: Conversation, prompt: str, turns: str, scoring: bool
    ) -> ResponseTokens:
        """A response. The assistant's turns count; the template and other authors do not."""
        text, last = conversation.text, conversation.turns[-1]
        ids, begin = self._continuation(prompt, self.rendered.ids(prompt), text)
        joined = begin == len(prompt)
        self.count("joined", group, joined)
        learned = self._learned(group, response, conversation, turns, scoring)
        if [*learned] == [last] and last.start == len(prompt) and last.end >= len(text):
            mask = [*learned.values()] * len(ids)  # all tokens belong to one turn, so their places need not be known
        else:
            mask = self._mask(text[begin:], begin, joined, ids, learned)
        if not self.chat.shape.close and not scoring and not response.truncated:
            # A template without an end of turn: EOS ends it, as in sampling.
            end = self.end_of_call if answers_of(response)[-1].get("tool_calls") else self.end_of_turn
            ids, mask = (*ids, *end), [*mask, *(learned.get(last, False) for _ in end)]
        return ResponseTokens(ids, tuple(mask), response.truncated and not scoring)

    def _learned(
        self, group: Group, response: Response, conversation: Conversation, turns: str, scoring: bool
    ) -> dict[Turn, float]:
        """The turns that count, and how much."""
        own = [message for message in answers_of(response) if message["role"] == "assistant"]
        if turns == "last":
            own = [{**message, "train": False} for message in own[:-1]] + own[-1:]
        learned: dict[Turn, float] = {}
        for turn, message in zip(conversation.turns, own, strict=True):
            weight, text = message.get("train", True), conversation.text[turn.start : turn.end]
            if not weight:
                continue
            if turn.problem and response.messages is not None:  # a response that is empty text is learned
                self.count(turn.problem, group)
                continue
            learned[turn] = weight
            self.count("trimmed_turns", group, _is_trimmed(message["content"], text))
            self.count("endless_turns", group, not self.chat.is_ended(text) and turn is not conversation.turns[-1])
            closed = self.chat.shape.opens and text.lstrip().startswith(CLOSE)
            self.count("closed_at_once", group, closed and not scoring)
        return learned

    def _mask(self, text: str, begin: int, following: bool, ids: Ids, learned: Mapping[Turn, float]) -> list[float]:
        """How much each of the last tokens of a text counts. begin: where it begins in the conversation."""
        _, starts = self.rendered.tokens(text, following=following)
        skipped = len(starts) - len(ids)
        mask: list[float] = [False] * len(ids)
        for turn, weight in learned.items():
            # A token that begins before the turn is the header's: the policy never writes it.
            first, end = (max(0, bisect_left(starts, place - begin) - skipped) for place in (turn.start, turn.end))
            mask[first:end] = [weight] * (min(end, len(mask)) - first)
        return mask


def _check_written(response: Response) -> None:
    """Raise DataError unless there is a mark in `written` for each token."""
    tokens, written = response.tokens or (), response.written
    if written and response.tokens is not None and len(written) != len(tokens):
        raise DataError(f"a response has {len(tokens)} tokens, but {len(written)} marks in `written`")


def _is_trimmed(said: str, text: str) -> bool:
    """Whether an answer begins with an indentation, as code does, which the template leaves out."""
    indentation = len(said) - len(said.lstrip(" \t"))
    return indentation >= INDENTED and said[: indentation + 1] not in text


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
    """A document in rows of at most `max_length` tokens; none if not even two tokens fit.

    Each row begins with the beginning-of-sequence token, if there is one. Every row but the first repeats the last
    token before it as context, which does not count. So every token counts once, and is predicted from the one before.
    """
    (text,) = document.rows
    room = max_length - len(document.prompt)
    if len(text.tokens) <= room:
        return [document]
    if room < 2:
        return []
    rows = []
    for start in range(0, len(text.tokens) - 1, room - 1):
        end = start + room
        mask = text.mask[start:end] if start == 0 else (False, *text.mask[start + 1 : end])
        row = ResponseTokens(text.tokens[start:end], mask, text.truncated or end < len(text.tokens))
        rows.append(Encoded(document.group, document.prompt, (row,)))
    return rows

"""From rendered text to token ids with their places in the text.

The ids are those of the whole text. A piece tokenized separately can differ: SentencePiece puts a space before it, and
byte pairs do not merge across its edges.

From rendered text to the tokens of prompts and answers, and back.

A response's tokens are those of the whole text after its prompt's: the policy continues exactly these.

From groups to tokens: the text that the chat template renders, masks, and a limit on the length.

Nothing is dropped silently: `Encoder.counts` counts what is left out or changed, by the names of `DROP_REASONS`.

Raw text that is too long for a row: several rows, which learn all of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from alignkit.data.group import Group, Message, Pair, Response, preview, resolved_pairs
from alignkit.data.spoken import OPENED_AT_END
from alignkit.errors import DataError, RunFailed
from alignkit.io.digest import digest
from alignkit.tokens.template import ANSWER, BREAK, CLOSE, Chat, ChatOptions, Conversation, Turn, has_names, time_limit

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


@dataclass(frozen=True)
class PromptTokens:
    """A prompt as text and tokens. cut: character of its last control token. tail: the tokens from there on."""

    text: str
    ids: Ids
    cut: int
    tail: Ids


class TemplateTokens:
    """A tokenizer with its chat template."""

    def __init__(self, tokenizer: Any, chat: ChatOptions | None = None, end_ids: Iterable[int] = ()):
        """chat: how the chat template is used. end_ids: tokens that end a response, besides the template's own."""
        self.tokenizer = tokenizer
        self.rendered = TextTokenizer(tokenizer)
        self._more_ends = frozenset(end_ids)
        known = {self.tokenizer.eos_token_id, *self._more_ends} - {None}
        ends = frozenset(map(str, self.tokenizer.convert_ids_to_tokens(sorted(known))))
        self.chat = Chat(tokenizer, chat or ChatOptions(), ends)

    @cached_property
    def digest(self) -> str:
        """16 hex digits. Sampled tokens mean the same, and end the same way, for encoders with an equal one."""
        return digest([self.tokenizer.get_vocab(), self.end_of_turn])[:16]

    # The template's tokens

    @cached_property
    def bos(self) -> Ids:
        """The beginning-of-sequence token, if the tokenizer adds one to raw text."""
        empty = self.tokenizer("")["input_ids"]
        return tuple(empty[:1]) if empty and empty[0] == self.tokenizer.bos_token_id else ()

    @cached_property
    def _example(self) -> TextTokens:
        return self.rendered.tokens(self.chat.shape.whole)

    @cached_property
    def closing(self) -> Ids:
        """All tokens that the template writes after an answer."""
        return self._after(self.chat.shape.close + self.chat.shape.tail)

    @cached_property
    def end_of_turn(self) -> Ids:
        """The tokens from the end of the assistant's text through the end of turn; EOS if the template writes none."""
        shape = self.chat.shape
        if not shape.close:
            return (self.eos,)
        tail = len(self._example.ids) - self._example.first_from(len(shape.whole) - len(shape.tail))
        return self.closing[: len(self.closing) - tail]

    def _after(self, end: str) -> Ids:
        """The tokens of the example's end; by themselves, if one token covers the answer's last character, too."""
        place = len(self.chat.shape.whole) - len(end)
        first = self._example.first_from(place)
        whole = first == 0 or self._example.ends[first - 1] <= place
        return self._example.ids[first:] if whole else self.rendered.following(end).ids

    @property
    def eos(self) -> int:
        """The end-of-sequence token. Without one, the template's end of turn ends raw text, too."""
        eos = self.tokenizer.eos_token_id
        return int(self.end_of_turn[-1] if eos is None else eos)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a response."""
        markers = self.tokenizer.convert_tokens_to_ids(list(self.chat.markers.values()))
        return frozenset({self.end_of_turn[-1], *markers, *self._more_ends, self.tokenizer.eos_token_id} - {None})

    @property
    def end_of_call(self) -> Ids:
        """What ends a last turn that calls a tool, if the template writes no end of turn."""
        marker = self.chat.markers.get(True)
        return self.end_of_turn if marker is None else (int(self.tokenizer.convert_tokens_to_ids(marker)),)

    @cached_property
    def _before_answer(self) -> Ids:
        """The last tokens of every prompt, after which a response is decoded: its first space depends on them.

        Without a decoder, tokenizers put spaces between all tokens, and nothing depends on them.
        """
        if self.tokenizer.backend_tokenizer.decoder is None:
            return ()
        return self.prompt_of(self.chat.prompt([{"role": "user", "content": "?"}])).tail

    # Pieces of text

    def text(self, text: str) -> Ids:
        """Encode raw text. Special tokens in it are ordinary text, so data cannot end a turn."""
        return tuple(
            self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        )

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode a response to the words from which the template would render it, without its end of turn."""
        return self._continued(tokens).removeprefix(self._decoded_lead)

    def said(self, tokens: Sequence[int]) -> str:
        """Decode a sample as rewards, judges and people read it: with the block of reasoning that its prompt opens.

        A sample that closes the block at once, as the template itself does, has no reasoning.
        """
        closes = CLOSE in self._decoded_lead and self._continued(tokens).startswith(self._decoded_lead)
        return self.decode(tokens) if closes else self._opening + self.decode(tokens)

    @cached_property
    def _opening(self) -> str:
        """The end of every prompt that opens a block of reasoning, such as `<think>`; empty if it opens none."""
        opened = OPENED_AT_END.search(self.chat.prompt([{"role": "user", "content": "?"}]))
        return opened[0] if opened else ""

    def _continued(self, tokens: Sequence[int]) -> str:
        """The text of tokens after a prompt, without the end of turn."""
        ids = list(tokens)
        while ids and ids[-1] in self.end_ids:
            ids.pop()
        before, text = self._decoded(self._before_answer), self._decoded([*self._before_answer, *ids])
        return text[len(before) :] if text.startswith(before) else self._decoded(ids)

    def may_be_lead(self, text: str) -> bool:
        """Whether a decoded text may be the beginning of what `decode` leaves out before an answer."""
        return self._decoded_lead.startswith(text)

    @cached_property
    def _decoded_lead(self) -> str:
        """What the template writes before an answer, as it is decoded: SentencePiece may add a space."""
        shape = self.chat.shape
        if not shape.follows:
            return shape.lead
        ids, _ = self.continuation(self.prompt_of(shape.prompt), shape.whole)
        found = self._decoded([*self._before_answer, *ids]).removeprefix(self._decoded(self._before_answer))
        return found[: found.index(ANSWER)] if ANSWER in found else shape.lead

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    # Prompts

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> Ids:
        """Encode a prompt up to the start of the assistant's text; raw text has an empty prompt.

        Raises DataError if the template refuses it.
        """
        return self.prompt_of(self.chat.prompt(messages, tools)).ids if messages else self.bos

    def answers(self, messages: Sequence[Message], prefill: str, answers: Sequence[str]) -> tuple[Ids, list[Ids]]:
        """A prompt that ends with `prefill`, outside of any reasoning, and the tokens of each answer after it."""
        text = self.chat.prompt(messages, answering=True) + prefill
        prompt = self.prompt_of(text)
        return prompt.ids, [self.continuation(prompt, text + answer)[0] for answer in answers]

    def prompt_of(self, text: str) -> PromptTokens:
        if not text:  # the prompt's last token predicts a response's first one
            raise DataError("the chat template renders the prompt as empty text")
        cut = self.cut_of(text)
        ids, tail = self.rendered.ids(text), self._tail(text[cut:])
        return PromptTokens(text, ids, cut, tail) if ids[-len(tail) :] == tail else PromptTokens(text, ids, 0, ids)

    def cut_of(self, prompt: str) -> int:
        """The character at which the prompt's last special token begins.

        Tokenizers read the text between special tokens separately, so a response is tokenized with the text from there.
        """
        return max((match.start() for match in self.chat.template.special.finditer(prompt)), default=0)

    @lru_cache(maxsize=64)  # noqa: B019 - an encoder lives as long as its model; prompts end in the same few words
    def _tail(self, text: str) -> Ids:
        return self.rendered.ids(text)

    def continuation(self, prompt: PromptTokens, text: str) -> tuple[Ids, bool]:
        """The tokens of a text that begins with the prompt, after the prompt's.

        Also returns whether a token of the text covers the prompt's end. Then the rest is tokenized after the prompt,
        which the policy sees as it is.
        """
        found = self.rendered.ids(text[prompt.cut :])
        count = len(prompt.tail)
        if found[:count] == prompt.tail:
            return found[count:], False
        return self.rendered.following(text[len(prompt.text) :]).ids, True

    def mask(self, prompt: PromptTokens, text: str, ids: Ids, learned: Sequence[Turn]) -> list[bool]:
        """Whether each token after the prompt belongs to one of the turns."""
        start = prompt.cut
        tokens = self.rendered.tokens(text[start:])
        skipped = len(tokens.ids) - len(ids)
        if tokens.ids[skipped:] != ids:
            start, skipped = len(prompt.text), 0
            tokens = self.rendered.following(text[start:])
        mask = [False] * len(ids)
        for turn in learned:
            # A token that begins before the turn is the header's: the policy never writes it.
            begin, end = (max(0, tokens.first_from(place - start) - skipped) for place in (turn.start, turn.end))
            mask[begin:end] = [True] * (min(end, len(mask)) - begin)
        return mask


Mask = tuple[float, ...]  # true, false, or the weight of a turn
INDENTED = 2  # spaces or tabs; many data sets begin each answer with one space, which means nothing


# Name of a count -> what is counted, and what happened to it, in words that fit one and several.
DROP_REASONS = {
    "no_room": ("row", "left out: no room for a response in max_length"),
    "cut": ("response", "truncated at max_length"),
    "equal_pairs": ("pair", "left out: both responses have the same tokens"),
    "uncounted_pairs": ("pair", "left out: a response has no token that counts"),
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
        "model.chat_template, or, for the system's, model.system_messages to merge",
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
        "model.reasoning to empty, and prompts will end with an empty block",
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
class _Plan:
    """A group as the chat template renders it. conversations: None for a response whose own tokens are read.

    drops: what the template leaves out.
    """

    prompt: str
    conversations: tuple[Conversation | None, ...]
    drops: frozenset[str]

    @property
    def texts(self) -> list[str]:
        return [self.prompt, *(found.text for found in self.conversations if found is not None)]


class Encoder(TemplateTokens):
    """The only place that turns text into tokens, so training, sampling, and scoring agree.

    counts: what did not fit, by the names in the module's table. groups: the groups it happened in.
    """

    def __init__(self, tokenizer: Any, chat: ChatOptions | None = None, end_ids: Iterable[int] = ()):
        super().__init__(tokenizer, chat, end_ids)
        self.counts: Counter[str] = Counter()
        self.groups: dict[str, list[Group]] = {}
        self._plans: dict[int, tuple[Group, _Plan]] = {}  # by the group's id in memory

    def forget_counts(self) -> None:
        self.counts.clear()
        self.groups.clear()

    def count(self, case: str, group: Group, count: int = 1) -> None:
        """Count a case of the module's table, or one of the stage's own."""
        if count:
            self.counts[case] += count
            self.groups.setdefault(case, []).append(group)

    def reads(self, response: Response) -> bool:
        """Whether a response has tokens of this tokenizer; otherwise its text is read."""
        return response.tokens is not None and (response.tokenizer is None or response.tokenizer == self.digest)

    # Groups

    def encode(self, group: Group, max_length: int, *, turns: str = "all", scoring: bool = False) -> Encoded | None:
        """Encode a group, each prompt with a response in at most `max_length` tokens; None if its prompt does not fit.

        turns: the assistant's turns that count in a demonstration, "all" or "last". scoring: read each response to the
        end of what the template writes. Raises RowRefused if the template refuses or changes the conversation, or if a
        response's `written` does not match its tokens.
        """
        try:
            return self._encode(group, max_length, turns, scoring)
        except DataError as error:
            raise RowRefused(group, str(error)) from error

    def render(self, group: Group) -> None:
        """Render a group without tokenizing it. Raises RowRefused as `encode` does."""
        try:
            if group.prompt:
                self._plan(group)
        except DataError as error:
            raise RowRefused(group, str(error)) from error

    def _encode(self, group: Group, max_length: int, turns: str, scoring: bool) -> Encoded | None:
        if not group.prompt:
            typed = any(r.tokens is None and self.chat.template.special.search(r.text) for r in group.responses)
            self.count("typed_tokens", group, typed)
            return self._fitted(
                group, self.bos, [self._raw(response) for response in group.responses], max_length, False
            )
        plan = self._plans.pop(id(group), (group, None))[1] or self._plan(group)
        # In characters: a longer text cannot fit, and tokenizing it would take long.
        most = max_length * self.rendered.longest
        if len(plan.prompt) > most:
            self.count("no_room", group)
            return None
        prompt = self.prompt_of(plan.prompt)
        self.count("dropped_tools", group, not has_names(prompt.text, group.tools))
        self.count("untold_tools", group, not group.tools and _calls(group))
        for case in sorted(plan.drops):
            self.count(case, group)
        self.count("typed_tokens", group, any(BREAK in text for text in plan.texts))
        rows = []
        for response, found in zip(group.responses, plan.conversations, strict=True):
            if found is None:
                rows.append(self._sampled(response, scoring))
                continue
            # Some templates write a prompt differently once an answer follows.
            if not found.text.startswith(prompt.text):
                if len(group.responses) > 1:
                    raise DataError("the chat template renders the first answer without its own prompt")
                prompt = self.prompt_of(found.text[: found.turns[0].start])
            rows.append(self._rendered(group, response, prompt, found, turns, scoring, most))
        return self._fitted(group, prompt.ids, rows, max_length, scoring)

    def whole(self, group: Group, response: Response, max_length: int) -> Ids | None:
        """A conversation as the template renders it, for a model that only scores; None if the prompt does not fit.

        It needs no prompt of its own in front of the answer. Counts as `encode` does, and raises RowRefused.
        """
        try:
            ids = self.rendered.ids(self.chat.whole(group.prompt, _answers(response), group.tools))
            if len(ids) <= max_length:
                return ids
            prompt = self.prompt(group.prompt, group.tools)
        except DataError as error:
            raise RowRefused(group, str(error)) from error
        if len(prompt) + 1 + len(self.closing) > max_length:
            self.count("no_room", group)
            return None
        self.count("cut", group)
        return ids[: max_length - len(self.closing)] + self.closing

    def _plan(self, group: Group) -> _Plan:
        with time_limit():
            prompt = self.chat.open(group.prompt, group.tools)
            found = (
                None if self.reads(r) else self.chat.conversation(prompt, _answers(r), group.tools)
                for r in group.responses
            )
            read = [() if self.reads(r) else _answers(r) for r in group.responses] or [()]
            drops = frozenset[str]().union(*(self.chat.drops([*group.prompt, *said], group.tools) for said in read))
            return _Plan(prompt.text, tuple(found), drops)

    def ahead(self, groups: Sequence[Group], max_length: int, *, scoring: bool = False) -> None:
        """Render groups and tokenize their texts on all cores; the next calls of `encode` with them are faster."""
        self._plans, texts = {}, []
        most = max_length * self.rendered.longest
        for group in groups:
            try:
                plan = self._plan(group) if group.prompt else None
            except DataError:  # `encode` will raise it
                continue
            if plan is None:
                continue
            # The group is kept as well, or another one could get its id.
            self._plans[id(group)] = (group, plan)
            if len(plan.prompt) > most:
                continue
            cut = self.cut_of(plan.prompt)
            found = zip(group.responses, plan.conversations, strict=True)
            # From `cut` on, as `continuation` will ask for it.
            read = [self._text_of(r, c, scoring, len(plan.prompt) + most)[cut:] for r, c in found if c is not None]
            texts += [plan.prompt, *read]
        self.rendered.prepare(texts)

    def _text_of(self, response: Response, found: Conversation, scoring: bool, most: int) -> str:
        """The conversation's text as far as it becomes tokens; more than `most` characters never fit."""
        if scoring:
            return found.text[:most]
        text = found.text[: found.turns[-1].end]
        return (text.removesuffix(self.chat.shape.close) if response.truncated else text)[:most]

    def _fitted(
        self, group: Group, prompt: Ids, rows: Sequence[ResponseTokens], max_length: int, scoring: bool
    ) -> Encoded | None:
        """The rows in the room that the prompt leaves."""
        room = max_length - len(prompt)
        if room < 1 + (len(self.closing) if scoring else 0):
            self.count("no_room", group)
            return None
        rows = [self._cut(group, row, room, scoring) for row in rows]
        return Encoded(group, prompt, tuple(rows), self._pairs(group, rows, scoring))

    def _cut(self, group: Group, row: ResponseTokens, room: int, scoring: bool) -> ResponseTokens:
        """Truncate a response on the right, keeping the end for scoring."""
        if len(row.tokens) <= room:
            return row
        self.count("cut", group)
        end = self.closing if scoring else ()
        keep = room - len(end)
        return ResponseTokens(row.tokens[:keep] + end, row.mask[:keep] + (True,) * len(end), not scoring)

    # Responses

    def _raw(self, response: Response) -> ResponseTokens:
        """Raw text, and EOS."""
        if self.reads(response):
            row = self._sampled(response, False)
            return row if self.bos else replace(row, mask=(*(False for _ in row.mask[:1]), *row.mask[1:]))
        tokens = (*self.text(response.text), self.eos)
        # Without a BOS token nothing predicts the first token.
        return ResponseTokens(tokens, (bool(self.bos), *(True for _ in tokens[1:])))

    def _sampled(self, response: Response, scoring: bool) -> ResponseTokens:
        """A sample's own tokens; for scoring with everything that the template writes after them."""
        tokens = response.tokens or ()
        written = response.written or (True,) * len(tokens)
        if len(written) != len(tokens):
            raise DataError(
                f"a response has {len(tokens)} tokens, but {len(written)} marks in `written`; there must be one for "
                "each token"
            )
        if not scoring:
            return ResponseTokens(tokens, written, response.truncated)
        ended = bool(tokens) and tokens[-1] in self.end_ids
        if not self.chat.shape.close:
            # The template writes no end of turn, so the sampler's end token is not part of what is scored.
            tokens, written = (tokens[:-1], written[:-1]) if ended else (tokens, written)
        # Only what the template writes behind the end of turn, which the sample already has.
        end = self.closing[len(self.end_of_turn) :] if ended and self.chat.shape.close else self.closing
        return ResponseTokens(tokens + end, written + (True,) * len(end))

    def _rendered(
        self,
        group: Group,
        response: Response,
        prompt: PromptTokens,
        found: Conversation,
        turns: str,
        scoring: bool,
        most: int,
    ) -> ResponseTokens:
        """A response that the template renders. The assistant's turns count; the template and other authors do not."""
        text, last = self._text_of(response, found, scoring, len(prompt.text) + most), found.turns[-1]
        ids, joined = self.continuation(prompt, text)
        self.count("joined", group, joined)
        learned = self._learned(group, response, found, turns)
        closed = (t for t in learned if self.chat.opens and text[t.start : t.end].lstrip().startswith(CLOSE))
        self.count("closed_at_once", group, 0 if scoring else len([*closed]))
        # All tokens belong to the one turn that counts, so their places in the text need not be found.
        if learned == [last] and last.start == len(prompt.text) and last.end >= len(text):
            mask: list[float] = [True] * len(ids)
        else:
            mask = list(self.mask(prompt, text, ids, learned))
        weights = _weights(response, found)
        for turn, weight in weights.items():
            inside = self.mask(prompt, text, ids, [turn])
            mask = [weight if own and counts else counts for own, counts in zip(inside, mask, strict=True)]
        if not self.chat.shape.close and not scoring and not response.truncated:
            # A template without an end of turn: EOS ends it, as in sampling.
            end = self.end_of_call if _answers(response)[-1].get("tool_calls") else self.end_of_turn
            learns_end = weights.get(last, True) if last in learned else False
            ids, mask = (*ids, *end), [*mask, *(learns_end for _ in end)]
        return ResponseTokens(ids, tuple(mask), response.truncated and not scoring)

    def _learned(self, group: Group, response: Response, found: Conversation, turns: str) -> list[Turn]:
        """The turns that count."""
        if response.messages is None:
            self.count("trimmed_turns", group, _is_trimmed(found, found.turns[-1], response.text))
            return [found.turns[-1]]  # an empty response is one, too
        own = [message for message in response.messages if message["role"] == "assistant"][: len(found.turns)]
        asked = [
            turn
            for index, (turn, message) in enumerate(zip(found.turns, own, strict=True))
            if message.get("train", True) and (turns == "all" or index == len(own) - 1)
        ]
        for turn in asked:
            if turn.problem:
                self.count(turn.problem, group)
        said = zip(found.turns, own, strict=True)
        trimmed = sum(turn in asked and _is_trimmed(found, turn, message["content"]) for turn, message in said)
        self.count("trimmed_turns", group, trimmed)
        endless = [turn for turn in asked if not (turn.problem or turn.ended or turn is found.turns[-1])]
        self.count("endless_turns", group, len(endless))
        return [turn for turn in asked if not turn.problem]

    # Pairs

    def _pairs(self, group: Group, rows: Sequence[ResponseTokens], scoring: bool) -> tuple[Pair, ...]:
        """Return the pairs that can be learned from and count the others."""
        pairs = resolved_pairs(group)
        unequal = [pair for pair in pairs if rows[pair.better].tokens != rows[pair.worse].tokens]
        # Without a counted token a response's log-probability would be 0.
        usable = [pair for pair in unequal if scoring or (any(rows[pair.better].mask) and any(rows[pair.worse].mask))]
        self.count("equal_pairs", group, len(pairs) - len(unequal))
        self.count("uncounted_pairs", group, len(unequal) - len(usable))
        return tuple(usable)


def _is_trimmed(found: Conversation, turn: Turn, said: str) -> bool:
    """Whether an answer begins with an indentation, as code does, which the template leaves out."""
    indentation = len(said) - len(said.lstrip(" \t"))
    return indentation >= INDENTED and said[: indentation + 1] not in found.text[turn.start : turn.end]


def _weights(response: Response, found: Conversation) -> dict[Turn, float]:
    """The weights of turns that count for less or more than others."""
    own = [message.get("train", True) for message in response.messages or () if message["role"] == "assistant"]
    return {turn: train for turn, train in zip(found.turns, own, strict=False) if not isinstance(train, bool)}


def _calls(group: Group) -> bool:
    """Whether a turn calls a tool."""
    said = (_answers(response) for response in group.responses)
    return any(turn.get("tool_calls") for turns in (group.prompt, *said) for turn in turns)


def _answers(response: Response) -> Sequence[Mapping[str, Any]]:
    """The turns of a response, up to the assistant's last one."""
    if response.messages is None:
        return [{"role": "assistant", "content": response.text}]
    last = max(i for i, message in enumerate(response.messages) if message["role"] == "assistant")
    return response.messages[: last + 1]


def encode_all(
    encoder: Encoder, groups: Sequence[Group], max_length: int, *, turns: str = "all", scoring: bool = False
) -> list[Encoded]:
    """Encode all groups and return those that fit."""
    encoded = (encoder.encode(group, max_length, turns=turns, scoring=scoring) for group in groups)
    return [e for e in encoded if e is not None]


WHOLE = 2**62  # a limit on the length that cuts nothing


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

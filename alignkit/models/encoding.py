"""From groups to tokens: the text that the chat template renders, masks, and a limit on the length.

Nothing is dropped silently. `Encoder.counts` counts what is left out or changed:

| case | treatment | counted as |
|---|---|---|
| the prompt leaves no room for a response token | the group is dropped | `no_room` |
| a response is longer than the room | truncated, no end of turn: the model must not learn to stop there | `cut` |
| the same, for scoring | truncated, then the end of turn, as the reward model was trained | `cut` |
| truncation makes the responses of a pair equal | the pair is dropped | `equal_pairs` |
| no token of a pair's response counts | the pair is dropped, except for a reward model | `uncounted_pairs` |
| the template renders a turn without its own generation prompt | the turn is context | `unprompted_turns` |
| a turn of a demonstration is empty | the turn is context | `blank_turns` |
| prompt and response would share a token | the response is tokenized after the prompt | `joined` |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from alignkit.data.group import Group, Message, Pair, Response, preview, resolved_pairs
from alignkit.errors import DataError
from alignkit.models.chat import Chat, ChatOptions, Conversation, Turn
from alignkit.models.text_tokens import Ids, TextTokenizer, TextTokens

Mask = tuple[bool, ...]


class RowRefused(DataError):
    """The chat template refuses or changes a group. reason: why."""

    def __init__(self, group: Group, reason: str):
        self.group, self.reason = group, reason
        super().__init__(f"{group.origin or f'the row {preview(group)}'}: {reason}")


@dataclass(frozen=True)
class ResponseTokens:
    """A response in tokens. mask: whether each token counts. truncated: it has no end of turn."""

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
    """A group as the chat template renders it. conversations: None for a response that is given as tokens."""

    prompt: str
    conversations: tuple[Conversation | None, ...]


@dataclass(frozen=True)
class _Prompt:
    """A prompt as text and tokens. cut: character of its last control token. tail: the tokens from there on."""

    text: str
    ids: Ids
    cut: int
    tail: Ids


class Encoder:
    """The only place that turns text into tokens, so training, sampling, and scoring agree.

    counts: what did not fit, by the names in the module's table. groups: the groups it happened in.
    """

    def __init__(self, tokenizer: Any, chat: ChatOptions | None = None, end_ids: Iterable[int] = ()):
        """chat: how the chat template is used. end_ids: tokens that end a response, besides the template's own."""
        self.tokenizer = tokenizer
        self.counts: Counter[str] = Counter()
        self.groups: dict[str, list[Group]] = {}
        self._tokens = TextTokenizer(tokenizer)
        self._more_ends = frozenset(end_ids)
        self._plans: dict[int, tuple[Group, _Plan]] = {}  # by the group's id in memory
        known = {self.tokenizer.eos_token_id, *self._more_ends} - {None}
        ends = frozenset(map(str, self.tokenizer.convert_ids_to_tokens(sorted(known))))
        self.chat = Chat(tokenizer, chat or ChatOptions(), ends)

    def forget_counts(self) -> None:
        self.counts.clear()
        self.groups.clear()

    def _count(self, case: str, group: Group, count: int = 1) -> None:
        if count:
            self.counts[case] += count
            self.groups.setdefault(case, []).append(group)

    # The template's tokens

    @cached_property
    def bos(self) -> Ids:
        """The beginning-of-sequence token, if the tokenizer adds one to raw text."""
        empty = self.tokenizer("")["input_ids"]
        return tuple(empty[:1]) if empty and empty[0] == self.tokenizer.bos_token_id else ()

    @cached_property
    def _example(self) -> TextTokens:
        return self._tokens.tokens(self.chat.shape.whole)

    @cached_property
    def closing(self) -> Ids:
        """All tokens that the template writes after an answer."""
        shape = self.chat.shape
        return self._example.ids[self._example.begin(len(shape.whole) - len(shape.close + shape.tail)) :]

    @cached_property
    def end_of_turn(self) -> Ids:
        """The tokens from the end of the assistant's text through the end of turn; EOS if the template writes none."""
        shape = self.chat.shape
        tail = len(self._example.ids) - self._example.begin(len(shape.whole) - len(shape.tail))
        return self.closing[: len(self.closing) - tail] if shape.close else (self._eos,)

    @property
    def _eos(self) -> int:
        """The end-of-sequence token. Without one, the template's end of turn ends raw text, too."""
        eos = self.tokenizer.eos_token_id
        return int(self.end_of_turn[-1] if eos is None else eos)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a response."""
        return frozenset({self.end_of_turn[-1], *self._more_ends, self.tokenizer.eos_token_id} - {None})

    @cached_property
    def _before_answer(self) -> Ids:
        """The last tokens of every prompt, after which a response is decoded: its first space depends on them."""
        return self._prompt_of(self.chat.prompt([{"role": "user", "content": "?"}])).tail

    # Pieces of text

    def text(self, text: str) -> Ids:
        """Encode raw text. Special tokens in it are ordinary text, so data cannot end a turn."""
        return tuple(
            self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        )

    def rendered_ids(self, text: str) -> Ids:
        """Encode text that the chat template wrote, in which special tokens count as such."""
        return self._tokens.ids(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode a response to the words from which the template would render it, without its end of turn."""
        ids = list(tokens)
        while ids and ids[-1] in self.end_ids:
            ids.pop()
        before = self._decoded(self._before_answer)
        text = self._decoded([*self._before_answer, *ids])
        text = text[len(before) :] if text.startswith(before) else self._decoded(ids)
        return text.removeprefix(self.chat.shape.lead)

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    # Prompts

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> Ids:
        """Encode a prompt up to the start of the assistant's text; raw text has an empty prompt.

        Raises DataError if the template refuses it.
        """
        return self._prompt_of(self.chat.prompt(messages, tools)).ids if messages else self.bos

    def answers(self, messages: Sequence[Message], prefill: str, answers: Sequence[str]) -> tuple[Ids, list[Ids]]:
        """A prompt that ends with `prefill`, outside of any reasoning, and the tokens of each answer after it."""
        text = self.chat.prompt(messages, answering=True) + prefill
        prompt = self._prompt_of(text)
        return prompt.ids, [self._continuation(prompt, text + answer)[0] for answer in answers]

    def _prompt_of(self, text: str) -> _Prompt:
        if not text:  # the prompt's last token predicts a response's first one
            raise DataError("the chat template renders the prompt as empty text")
        cut = self._cut_of(text)
        ids, tail = self._tokens.ids(text), self._tail(text[cut:])
        return _Prompt(text, ids, cut, tail) if ids[-len(tail) :] == tail else _Prompt(text, ids, 0, ids)

    def _cut_of(self, prompt: str) -> int:
        """The character at which the prompt's last special token begins.

        Tokenizers read the text between special tokens separately, so a response is tokenized with the text from there.
        """
        return max((match.start() for match in self.chat.template.special.finditer(prompt)), default=0)

    @lru_cache(maxsize=64)  # noqa: B019 - an encoder lives as long as its model; prompts end in the same few words
    def _tail(self, text: str) -> Ids:
        return self._tokens.ids(text)

    def _continuation(self, prompt: _Prompt, text: str) -> tuple[Ids, bool]:
        """The tokens of a text that begins with the prompt, after the prompt's.

        Also returns whether a token of the text covers the prompt's end. Then the rest is tokenized after the prompt,
        which the policy sees as it is.
        """
        found = self._tokens.ids(text[prompt.cut :])
        count = len(prompt.tail)
        if found[:count] == prompt.tail:
            return found[count:], False
        return self._tokens.following(text[len(prompt.text) :]).ids, True

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
            return self._fitted(
                group, self.bos, [self._raw(response) for response in group.responses], max_length, False
            )
        plan = self._plans.pop(id(group), (group, None))[1] or self._plan(group)
        prompt = self._prompt_of(plan.prompt)
        rows = []
        for response, found in zip(group.responses, plan.conversations, strict=True):
            if found is None:
                rows.append(self._sampled(response, scoring))
                continue
            if not found.text.startswith(prompt.text):
                if len(group.responses) > 1:
                    raise DataError("the chat template renders the first answer without its own prompt")
                prompt = self._prompt_of(found.text[: found.turns[0].start])
            rows.append(self._rendered(group, response, prompt, found, turns, scoring))
        return self._fitted(group, prompt.ids, rows, max_length, scoring)

    def _plan(self, group: Group) -> _Plan:
        prompt, raw = self.chat.prompts(group.prompt, group.tools)
        responses = group.responses
        return _Plan(
            prompt, tuple(None if r.tokens is not None else self._conversation(group, r, raw) for r in responses)
        )

    def ahead(self, groups: Sequence[Group], *, scoring: bool = False) -> None:
        """Render groups and tokenize their texts on all cores; the next calls of `encode` with them are faster."""
        self._plans, texts = {}, []
        for group in groups:
            try:
                plan = self._plan(group) if group.prompt else None
            except DataError:  # `encode` will raise it
                continue
            if plan is None:
                continue
            self._plans[id(group)] = (group, plan)
            cut = self._cut_of(plan.prompt)
            found = zip(group.responses, plan.conversations, strict=True)
            texts += [plan.prompt, *(self._text_of(r, c, scoring)[cut:] for r, c in found if c is not None)]
        self._tokens.prepare(texts)

    def _text_of(self, response: Response, found: Conversation, scoring: bool) -> str:
        """The conversation's text as far as it becomes tokens."""
        if scoring:
            return found.text
        text = found.text[: found.turns[-1].end]
        return text.removesuffix(self.chat.shape.close) if response.truncated else text

    def _fitted(
        self, group: Group, prompt: Ids, rows: Sequence[ResponseTokens], max_length: int, scoring: bool
    ) -> Encoded | None:
        """The rows in the room that the prompt leaves."""
        room = max_length - len(prompt)
        if room < 1 + (len(self.closing) if scoring else 0):
            self._count("no_room", group)
            return None
        rows = [self._cut(group, row, room, scoring) for row in rows]
        return Encoded(group, prompt, tuple(rows), self._pairs(group, rows, scoring))

    def _cut(self, group: Group, row: ResponseTokens, room: int, scoring: bool) -> ResponseTokens:
        """Truncate a response on the right, keeping the end for scoring."""
        if len(row.tokens) <= room:
            return row
        self._count("cut", group)
        end = self.closing if scoring else ()
        keep = room - len(end)
        return ResponseTokens(row.tokens[:keep] + end, row.mask[:keep] + (True,) * len(end), not scoring)

    # Responses

    def _raw(self, response: Response) -> ResponseTokens:
        """Raw text, and EOS."""
        if response.tokens is not None:
            return self._sampled(response, False)
        tokens = (*self.text(response.text), self._eos)
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
            tokens, written = (tokens[:-1], written[:-1]) if ended else (tokens, written)
        end = self.closing[len(self.end_of_turn) :] if ended and self.chat.shape.close else self.closing
        return ResponseTokens(tokens + end, written + (True,) * len(end))

    def _conversation(self, group: Group, response: Response, raw_prompt: str) -> Conversation:
        """The group's prompt with a response, up to the assistant's last turn."""
        answers: Sequence[Mapping[str, Any]] = [{"role": "assistant", "content": response.text}]
        if response.messages is not None:
            last = max(i for i, message in enumerate(response.messages) if message["role"] == "assistant")
            answers = response.messages[: last + 1]
        return self.chat.conversation(group.prompt, answers, group.tools, raw_prompt)

    def _rendered(
        self, group: Group, response: Response, prompt: _Prompt, found: Conversation, turns: str, scoring: bool
    ) -> ResponseTokens:
        """A response that the template renders. The assistant's turns count; the template and other authors do not."""
        text, last = self._text_of(response, found, scoring), found.turns[-1]
        ids, joined = self._continuation(prompt, text)
        self._count("joined", group, joined)
        learned = self._learned(group, response, found, turns)
        if learned == [last] and last.start == len(prompt.text) and last.end >= len(text):
            mask = [True] * len(ids)
        else:
            mask = self._mask(prompt, text, ids, learned)
        if not self.chat.shape.close and not scoring and not response.truncated:
            ids, mask = (*ids, *self.end_of_turn), [*mask, last in learned]
        return ResponseTokens(ids, tuple(mask), response.truncated and not scoring)

    def _mask(self, prompt: _Prompt, text: str, ids: Ids, learned: Sequence[Turn]) -> list[bool]:
        """Whether each token after the prompt belongs to one of the turns."""
        start = prompt.cut
        tokens = self._tokens.tokens(text[start:])
        skipped = len(tokens.ids) - len(ids)
        if tokens.ids[skipped:] != ids:
            start, skipped = len(prompt.text), 0
            tokens = self._tokens.following(text[start:])
        mask = [False] * len(ids)
        for turn in learned:
            begin, end = (max(0, place - skipped) for place in tokens.span(turn.start - start, turn.end - start))
            mask[begin:end] = [True] * (min(end, len(mask)) - begin)
        return mask

    def _learned(self, group: Group, response: Response, found: Conversation, turns: str) -> list[Turn]:
        """The turns that count."""
        if response.messages is None:
            return [found.turns[-1]]  # an empty response is one, too
        own = [message for message in response.messages if message["role"] == "assistant"][: len(found.turns)]
        asked = [
            turn
            for index, (turn, message) in enumerate(zip(found.turns, own, strict=True))
            if message.get("train", True) and (turns == "all" or index == len(own) - 1)
        ]
        for turn in asked:
            if turn.problem:
                self._count(turn.problem, group)
        return [turn for turn in asked if not turn.problem]

    # Pairs

    def _pairs(self, group: Group, rows: Sequence[ResponseTokens], scoring: bool) -> tuple[Pair, ...]:
        """Return the pairs that can be learned from and count the others."""
        pairs = resolved_pairs(group)
        unequal = [pair for pair in pairs if rows[pair.better].tokens != rows[pair.worse].tokens]
        # Without a counted token a response's log-probability would be 0.
        usable = [pair for pair in unequal if scoring or (any(rows[pair.better].mask) and any(rows[pair.worse].mask))]
        self._count("equal_pairs", group, len(pairs) - len(unequal))
        self._count("uncounted_pairs", group, len(unequal) - len(usable))
        return tuple(usable)


def encode_all(
    encoder: Encoder, groups: Sequence[Group], max_length: int, *, turns: str = "all", scoring: bool = False
) -> list[Encoded]:
    """Encode all groups and return those that fit."""
    encoded = (encoder.encode(group, max_length, turns=turns, scoring=scoring) for group in groups)
    return [e for e in encoded if e is not None]

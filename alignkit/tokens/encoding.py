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
| the template ends a turn with no token of its own, and others follow | only its words are learned | `endless_turns` |
| the template does not write the tools that a turn calls | the turn is context | `dropped_calls` |
| the template does not write a row's tools | the row is learned without them | `dropped_tools` |
| the template does not write a message, such as the system's | the row is learned without it | `dropped_messages` |
| the template does not write the name of whoever speaks | the row is learned without it | `dropped_names` |
| words hold control tokens, as of a text that was rendered before | they are read as letters | `typed_tokens` |
| a turn without reasoning follows a prompt that opens it | its end is learned first | `closed_at_once` |
| the template drops the indentation with which an answer begins | learned without it | `trimmed_turns` |
| a turn of a demonstration is empty | the turn is context | `blank_turns` |
| prompt and response would share a token | the response is tokenized after the prompt | `joined` |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignkit.data.group import Group, Pair, Response, preview, resolved_pairs
from alignkit.errors import DataError
from alignkit.tokens.chat import CLOSE, Conversation, Turn, has_names
from alignkit.tokens.chat_template import BREAK, ChatOptions, time_limit
from alignkit.tokens.template_tokens import PromptTokens, TemplateTokens
from alignkit.tokens.text_tokens import Ids

Mask = tuple[float, ...]  # true, false, or the weight of a turn
INDENTED = 2  # spaces or tabs; many data sets begin each answer with one space, which means nothing


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

"""From groups to tokens: the chat template, masks, packed rows, and the batches that algorithms see.

Treatment of what does not fit, counted in `Encoder.counts` and logged, never silent:

| case | treatment |
|---|---|
| prompt that leaves no room for a response token | the group is left out (`no_room`) |
| response longer than the room | cut on the right, no end of turn: the model is not taught to stop there (`cut`) |
| the same for scoring | cut, then the end of turn, as a reward model was trained (`cut`) |
| pair whose responses are equal once cut | the pair is left out (`equal_pairs`) |
| pair with a response of which no token counts | left out, except for a reward model (`uncounted_pairs`) |
| empty response | the end of turn alone |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from alignkit.data.group import Group, Message, Pair, Response, resolved_pairs
from alignkit.errors import DataError

Ids = tuple[int, ...]


@dataclass(frozen=True)
class ResponseTokens:
    """A response in tokens. mask: true where a token counts. truncated: it ends without an end of turn."""

    tokens: Ids
    mask: tuple[bool, ...]
    truncated: bool = False


@dataclass(frozen=True)
class Encoded:
    """A group in tokens. pairs: those whose responses differ in tokens; indices are into rows."""

    group: Group
    prompt: Ids
    rows: tuple[ResponseTokens, ...]
    pairs: tuple[Pair, ...] = ()

    @property
    def length(self) -> int:
        """Tokens in a packed row: the prompt counts once."""
        return len(self.prompt) + sum(len(row.tokens) for row in self.rows)


class Encoder:
    """The one place where text becomes tokens, so that training, sampling and scoring agree."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.counts: Counter[str] = Counter()
        self.groups: dict[str, list[Group]] = {}  # those counted

    def forget_counts(self) -> None:
        self.counts.clear()
        self.groups.clear()

    def _count(self, what: str, group: Group, count: int = 1) -> None:
        if count:
            self.counts[what] += count
            self.groups.setdefault(what, []).append(group)

    # Pieces of text

    def text(self, text: str) -> Ids:
        """Tokens of plain text; special tokens that occur in it are ordinary text, so data cannot end a turn."""
        return tuple(
            self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        )

    def templated(self, text: str) -> Ids:
        """Tokens of what the chat template wrote."""
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def render(self, messages: Sequence[Message], generation: bool) -> str:
        plain = [{"role": m["role"], "content": m["content"]} for m in messages]
        text: str = self.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=generation)
        return text

    @cached_property
    def bos(self) -> Ids:
        """What the tokenizer puts before a text of its own accord."""
        empty = self.tokenizer("")["input_ids"]
        return tuple(empty[:1]) if empty and empty[0] == self.tokenizer.bos_token_id else ()

    @cached_property
    def end_of_turn(self) -> Ids:
        """What ends an assistant's turn: the template's first special token after its words, else the EOS token."""
        question: list[Message] = [{"role": "user", "content": "q"}]
        answer: Message = {"role": "assistant", "content": "answer"}
        before, whole = self.render(question, True), self.render([*question, answer], False)
        eos = self.tokenizer.eos_token_id
        start = whole.rfind("answer") + len("answer")
        if before and whole.startswith(before.rstrip()):
            ids = self.templated(whole[start:])
            special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
            for index, token in enumerate(ids):
                if token in special:
                    return ids[: index + 1]
        return (eos,)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a response."""
        return frozenset({self.end_of_turn[-1], self.tokenizer.eos_token_id})

    # Groups

    def prompt(self, messages: Sequence[Message]) -> Ids:
        """A prompt in tokens, up to where the assistant begins to write; empty for raw text."""
        if not messages:
            return self.bos
        ids = self.templated(self.render(messages, True))
        ids = ids if ids[: len(self.bos)] == self.bos else self.bos + ids
        if not ids:  # a response is predicted from its prompt's last token
            raise DataError(f"the chat template makes no token of the prompt {list(messages)!r}")
        return ids

    def encode(self, group: Group, max_length: int, *, turns: str = "all", scoring: bool = False) -> Encoded | None:
        """A group in tokens, each sequence at most `max_length`; None when its prompt leaves no room.

        turns: which assistant turns of a demonstration count, `all` or `last`. scoring: every response ends with an
        end of turn.
        """
        prompt = self.prompt(group.prompt)
        room = max_length - len(prompt)
        if room < 1 + (len(self.end_of_turn) if scoring else 0):
            self._count("no_room", group)
            return None
        rows = tuple(self._row(group, response, room, turns, scoring) for response in group.responses)
        return Encoded(group, prompt, rows, self._pairs(group, rows, scoring))

    def _row(self, group: Group, response: Response, room: int, turns: str, scoring: bool) -> ResponseTokens:
        tokens, mask, truncated = self._response(group, response, turns)
        if scoring and (not tokens or tokens[-1] not in self.end_ids):
            tokens, mask = tokens + self.end_of_turn, mask + (True,) * len(self.end_of_turn)
            truncated = False
        if len(tokens) > room:
            self._count("cut", group)
            end = self.end_of_turn if scoring else ()
            tokens = tokens[: room - len(end)] + end
            mask = mask[: room - len(end)] + (True,) * len(end)
            truncated = not scoring
        return ResponseTokens(tokens, mask, truncated)

    def _response(self, group: Group, response: Response, turns: str) -> tuple[Ids, tuple[bool, ...], bool]:
        if response.tokens is not None:
            written = response.written or (True,) * len(response.tokens)
            if len(written) != len(response.tokens):
                raise DataError(
                    f"group {group.id}: a response has {len(response.tokens)} tokens, but {len(written)} marks of "
                    "which of them the policy wrote"
                )
            return response.tokens, written, response.truncated
        if response.messages is not None:
            return self._turns(group, response.messages, turns)
        if not group.prompt:
            tokens = (*self.text(response.text), self.tokenizer.eos_token_id)
            # Without a token before it the first one is nobody's prediction.
            return tokens, (bool(self.bos), *(True for _ in tokens[1:])), False
        tokens = self.text(response.text) + (() if response.truncated else self.end_of_turn)
        return tokens, (True,) * len(tokens), response.truncated

    def _turns(self, group: Group, messages: Sequence[Message], turns: str) -> tuple[Ids, tuple[bool, ...], bool]:
        """Several turns: the assistant's words and ends of turn count, what the template and others wrote does not."""
        tokens: list[int] = []
        mask: list[bool] = []
        history = list(group.prompt)
        last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
        pending: list[Message] = []
        for index, message in enumerate(messages[: last + 1]):
            if message["role"] != "assistant":
                pending.append(message)
                continue
            if pending:
                between = self.templated(self._between(group, history, pending))
                tokens += between
                mask += [False] * len(between)
                history, pending = [*history, *pending], []
            words = self.text(message["content"]) + self.end_of_turn
            counts = message.get("train", True) and (turns == "all" or index == last)
            tokens += words
            mask += [counts] * len(words)
            history = [*history, message]
        return tuple(tokens), tuple(mask), False

    def _between(self, group: Group, history: Sequence[Message], new: Sequence[Message]) -> str:
        """What the template writes between an assistant's end of turn and its next words."""
        whole = self.render([*history, *new], True)
        end = self.tokenizer.decode(list(self.end_of_turn))
        before = self.render(history[:-1], False)
        place = whole.find(end, len(before) if whole.startswith(before) else 0)
        words = history[-1]["content"].strip()
        if place < 0 or words not in whole[:place]:
            raise DataError(
                f"group {group.id}: the chat template does not keep the assistant's words and '{end}' after them, so "
                "it is not known which tokens to learn; name another one under model.chat_template"
            )
        return whole[place + len(end) :]

    def _pairs(self, group: Group, rows: Sequence[ResponseTokens], scoring: bool) -> tuple[Pair, ...]:
        pairs = resolved_pairs(group)
        unequal = [pair for pair in pairs if rows[pair.better].tokens != rows[pair.worse].tokens]
        # A response without a counted token would have probability 1.
        found = [pair for pair in unequal if scoring or (any(rows[pair.better].mask) and any(rows[pair.worse].mask))]
        self._count("equal_pairs", group, len(pairs) - len(unequal))
        self._count("uncounted_pairs", group, len(unequal) - len(found))
        return tuple(found)

    def decode(self, tokens: Sequence[int]) -> str:
        """A response's words without its end of turn."""
        ids = list(tokens)
        while ids and ids[-1] in self.end_ids:
            ids.pop()
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


# Packed rows


# What algorithms see


def encode_all(
    encoder: Encoder, groups: Sequence[Group], max_length: int, *, turns: str = "all", scoring: bool = False
) -> list[Encoded]:
    """All groups that fit."""
    found = (encoder.encode(group, max_length, turns=turns, scoring=scoring) for group in groups)
    return [encoded for encoded in found if encoded is not None]

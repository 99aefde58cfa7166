"""From groups to tokens: chat template, masks, and a limit on the length.

Nothing is dropped silently. `Encoder.counts` counts what does not fit:

| case | treatment | counted as |
|---|---|---|
| the prompt leaves no room for a response token | the group is dropped | `no_room` |
| a response is longer than the room | truncated, no end of turn: the model must not learn to stop there | `cut` |
| the same, for scoring | truncated, then the end of turn, as the reward model was trained | `cut` |
| truncation makes the responses of a pair equal | the pair is dropped | `equal_pairs` |
| no token of a pair's response counts | the pair is dropped, except for a reward model | `uncounted_pairs` |
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
Mask = tuple[bool, ...]


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


class Encoder:
    """The only place that turns text into tokens, so training, sampling, and scoring agree.

    counts: what did not fit, by the names in the module's table. groups: the groups it happened in.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.counts: Counter[str] = Counter()
        self.groups: dict[str, list[Group]] = {}

    def forget_counts(self) -> None:
        self.counts.clear()
        self.groups.clear()

    def _count(self, case: str, group: Group, count: int = 1) -> None:
        if count:
            self.counts[case] += count
            self.groups.setdefault(case, []).append(group)

    # Pieces of text

    def text(self, text: str) -> Ids:
        """Encode plain text. Special tokens in it are ordinary text, so data cannot end a turn."""
        return tuple(
            self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        )

    def templated(self, text: str) -> Ids:
        """Encode text that the chat template wrote, in which special tokens count as such."""
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def render(self, messages: Sequence[Message], generation: bool) -> str:
        """Apply the chat template. generation: append the start of the assistant's turn."""
        plain = [{"role": m["role"], "content": m["content"]} for m in messages]
        text: str = self.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=generation)
        return text

    @cached_property
    def bos(self) -> Ids:
        """The beginning-of-sequence token, if the tokenizer adds one."""
        empty = self.tokenizer("")["input_ids"]
        return tuple(empty[:1]) if empty and empty[0] == self.tokenizer.bos_token_id else ()

    @cached_property
    def end_of_turn(self) -> Ids:
        """The tokens from the end of the assistant's text to the template's next special token; else the EOS token."""
        question: list[Message] = [{"role": "user", "content": "q"}]
        answer: Message = {"role": "assistant", "content": "answer"}
        before, whole = self.render(question, True), self.render([*question, answer], False)
        if before and whole.startswith(before.rstrip()):
            ids = self.templated(whole[whole.rfind("answer") + len("answer") :])
            special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
            for index, token in enumerate(ids):
                if token in special:
                    return ids[: index + 1]
        return (self.tokenizer.eos_token_id,)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a response."""
        return frozenset({self.end_of_turn[-1], self.tokenizer.eos_token_id})

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode a response without its end of turn."""
        ids = list(tokens)
        while ids and ids[-1] in self.end_ids:
            ids.pop()
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    # Groups

    def prompt(self, messages: Sequence[Message]) -> Ids:
        """Encode a prompt up to the start of the assistant's text; raw text has an empty prompt."""
        if not messages:
            return self.bos
        ids = self.templated(self.render(messages, True))
        ids = ids if ids[: len(self.bos)] == self.bos else self.bos + ids
        if not ids:  # the prompt's last token predicts a response's first one
            raise DataError(f"the chat template renders the prompt {list(messages)!r} as empty text")
        return ids

    def encode(self, group: Group, max_length: int, *, turns: str = "all", scoring: bool = False) -> Encoded | None:
        """Encode a group, each prompt with a response in at most `max_length` tokens; None if its prompt does not fit.

        turns: the assistant's turns that count in a demonstration, "all" or "last". scoring: make every response end
        with an end of turn. Raises DataError if the chat template drops text, or if a response's `written` does not
        match its tokens.
        """
        prompt = self.prompt(group.prompt)
        room = max_length - len(prompt)
        if room < 1 + (len(self.end_of_turn) if scoring else 0):
            self._count("no_room", group)
            return None
        rows = []
        for response in group.responses:
            row = self._response(group, response, turns)
            rows.append(self._cut(group, self._ended(row) if scoring else row, room, scoring))
        return Encoded(group, prompt, tuple(rows), self._pairs(group, rows, scoring))

    def _ended(self, row: ResponseTokens) -> ResponseTokens:
        """Append an end of turn unless there is one."""
        if row.tokens and row.tokens[-1] in self.end_ids:
            return row
        return ResponseTokens(row.tokens + self.end_of_turn, row.mask + (True,) * len(self.end_of_turn))

    def _cut(self, group: Group, row: ResponseTokens, room: int, scoring: bool) -> ResponseTokens:
        """Truncate a response on the right, keeping an end of turn for scoring."""
        if len(row.tokens) <= room:
            return row
        self._count("cut", group)
        end = self.end_of_turn if scoring else ()
        keep = room - len(end)
        return ResponseTokens(row.tokens[:keep] + end, row.mask[:keep] + (True,) * len(end), not scoring)

    def _response(self, group: Group, response: Response, turns: str) -> ResponseTokens:
        """Encode a response: a sample's own tokens, a demonstration's turns, raw text, or one turn."""
        if response.tokens is not None:
            written = response.written or (True,) * len(response.tokens)
            if len(written) != len(response.tokens):
                raise DataError(
                    f"group {group.id}: a response has {len(response.tokens)} tokens, but {len(written)} marks in "
                    "`written`; there must be one for each token"
                )
            return ResponseTokens(response.tokens, written, response.truncated)
        if response.messages is not None:
            return self._turns(group, response.messages, turns)
        if not group.prompt:
            tokens = (*self.text(response.text), self.tokenizer.eos_token_id)
            # Without a BOS token nothing predicts the first token.
            return ResponseTokens(tokens, (bool(self.bos), *(True for _ in tokens[1:])))
        tokens = self.text(response.text) + (() if response.truncated else self.end_of_turn)
        return ResponseTokens(tokens, (True,) * len(tokens), response.truncated)

    def _turns(self, group: Group, messages: Sequence[Message], turns: str) -> ResponseTokens:
        """Encode several turns. The assistant's text and ends of turn count; the template and other authors do not."""
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
            turn = self.text(message["content"]) + self.end_of_turn
            counts = message.get("train", True) and (turns == "all" or index == last)
            tokens += turn
            mask += [counts] * len(turn)
            history = [*history, message]
        return ResponseTokens(tuple(tokens), tuple(mask))

    def _between(self, group: Group, history: Sequence[Message], new: Sequence[Message]) -> str:
        """Render everything from an assistant's end of turn to the start of its next text."""
        whole = self.render([*history, *new], True)
        end = self.tokenizer.decode(list(self.end_of_turn))
        before = self.render(history[:-1], False)
        position = whole.find(end, len(before) if whole.startswith(before) else 0)
        text = history[-1]["content"].strip()
        if position < 0 or text not in whole[:position]:
            raise DataError(
                f"group {group.id}: the chat template does not keep the assistant's text followed by '{end}', so the "
                "tokens to learn are unknown; set model.chat_template to another template"
            )
        return whole[position + len(end) :]

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

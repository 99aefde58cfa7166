"""Renders conversations with the model's chat template, and locates the assistant's turns in the
text.

One rule: what is trained, scored and sampled is what `apply_chat_template` renders. A turn is
learned if the text begins with its own generation prompt, which the policy will continue, and it
ends with the end of turn.

A template is a program that others wrote. It gets a fixed date. Control tokens that someone typed
into a message stay text: a `BREAK` splits them in the rendered text, and tokenization removes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from os.path import commonprefix
from typing import Any

from alignkit.errors import DataError, reason_of

# Unicode reserves it for internal use: no text that is meant to be exchanged contains it
BREAK = "\ufdd0"
OPEN, CLOSE = REASONING = ("<think>", "</think>")
AFTER_REASONING = f"\n{CLOSE}\n\n"  # what templates write between reasoning and answer
# A prompt may end in such a tag.
OPENED_AT_END = re.compile(r"<(think|thinking|thought|reasoning)>\s*\Z", re.IGNORECASE)
# Templates may read these.
KEYS = ("role", "content", "reasoning_content", "tool_calls", "name", "tool_call_id")

# What a template writes as today: the same tokens on every day. Llama 3.2's writes it by itself if
# it gets no date.
TODAY = date(2024, 7, 26)
DATE_FORMS = (*"aAbBdHIjmMpSyY", "-d", "-m")

# An example, in which the template's markers are seen.
QUESTION, ANSWER = "What is two plus two?", "It is four."
ASKED, ANSWERED = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
# What an example's function takes
NO_PARAMETERS = {"type": "object", "properties": dict[str, Any]()}
EXAMPLE_TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "adds", "parameters": NO_PARAMETERS},
}
EXAMPLE_CALL = {
    "type": "function",
    "id": "call00000",
    "function": {"name": "add", "arguments": dict[str, Any]()},
}
CALLED = {"role": "assistant", "content": "", "tool_calls": [EXAMPLE_CALL]}
RESULT = {"role": "tool", "content": "four", "name": "add", "tool_call_id": "call00000"}
MARK = "said0said"  # a word that no template has

REFUSED = (
    "the chat template does not write {} after its own prompt; set model.chat_template_kwargs "
    "(as {{enable_thinking: false}}) or model.chat_template, or edit the row: templates that "
    "think expect 'reasoning_content', and others none"
)

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Turn:
    """An assistant turn: characters [start, end) of the conversation's text, with the end of turn.

    weight: how much its message says that it counts. learnable: whether the policy would write it
    as the template does.
    """

    start: int
    end: int
    weight: float
    learnable: bool


@dataclass(frozen=True)
class Conversation:
    """A rendered conversation. turns: the assistant's after the prompt."""

    text: str
    turns: tuple[Turn, ...]


class TemplateMarkers:
    """What a template writes around an answer, seen on an example.

    prompt, whole: the example. opening: of a block of reasoning, at the prompt's end. lead: between
    the prompt and the answer. close: from the answer through the end of turn; empty if the template
    writes none. tail: the rest. follows: whether the finished turn begins with its own generation
    prompt. keeps_open: whether it begins with the opening of its block of reasoning, which the
    answer closes.
    """

    def __init__(self, prompt: str, whole: str, added: str, ends: str):
        """added, ends: match the added tokens, and those that are known to end turns.

        Raises DataError if the template drops words of the example.
        """
        self.prompt, self.whole = prompt, whole
        before, written, rest = whole.rpartition(ANSWER)
        if QUESTION not in prompt or QUESTION not in whole or not written:
            raise DataError("the chat template drops or changes words of a question and its answer")
        # The first added token and, unless it is known to end turns, those next to it.
        close = re.match(rf"(?s).*?(?:(?:{added})*?(?:{ends})|(?:{added})+)|", rest)
        assert close is not None
        self.close, self.tail = close[0], rest[close.end() :]
        self.lead = before[common_length(prompt, before) :]
        opening = OPENED_AT_END.search(prompt)
        self.opening = opening[0] if opening else ""
        self.follows = whole.startswith(prompt)
        self.keeps_open = bool(opening) and self.follows and CLOSE not in self.lead


class ChatTemplate:
    """A tokenizer's chat template. kwargs: its arguments. ends: the texts of tokens that end a
    response.
    """

    def __init__(
        self, tokenizer: Any, kwargs: Mapping[str, Any] | None, ends: frozenset[str] = frozenset()
    ):
        self.tokenizer, self.kwargs = tokenizer, kwargs or {}
        self.source = str(tokenizer.chat_template)
        added = [
            (token.content, token.special) for token in tokenizer.added_tokens_decoder.values()
        ]
        self.ends, self.added = _any_of(ends), _any_of(content for content, _ in added)
        self.special = _any_of(content for content, special in added if special)
        # What others than the assistant do not write: also other tokens of the template, such as
        # `<think>`.
        self.control = _any_of(
            content for content, special in added if special or content in self.source
        )
        self.answers_lack = _any_of(
            content for content, special in added if special and content not in REASONING
        )

    # Rendering

    def render(self, messages: Messages, generation: bool, tools: Sequence[Any] = ()) -> str:
        """Apply the template to `prepare`d messages. generation: append the start of the
        assistant's turn.

        Raises DataError if the template refuses the conversation, or fails.
        """
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages),
                tools=_broken(list(tools), self.control) or None,
                tokenize=False,
                add_generation_prompt=generation,
                chat_template=self._dated(
                    self.tokenizer.get_chat_template(None, list(tools) or None)
                ),
                **self.kwargs,
            )
        except Exception as error:  # the template is foreign code, which can fail in any way
            help = "edit the row, or set model.chat_template"
            raise DataError(
                f"the chat template refuses the conversation: {reason_of(error)}; {help}"
            ) from error
        return text

    def _dated(self, code: str) -> str:
        """The template with a fixed date. transformers passes no functions to templates, so a macro
        takes its place.
        """
        if "strftime_now" not in code:
            return code
        filters = [f"replace('%{form}', '{TODAY.strftime(f'%{form}')}')" for form in DATE_FORMS]
        macro = (
            f"{{% macro strftime_now(format) %}}{{{{ format | {' | '.join(filters)} }}}}{{% "
            f"endmacro +%}}"
        )
        return macro + code

    def prepare(self, messages: Messages) -> list[dict[str, Any]]:
        """The messages with the keys that templates read, and without control tokens that someone
        typed.

        An answer does not begin with the tag of its reasoning if the prompt ends with it. Raises
        DataError for a character that is reserved.
        """
        prepared = []
        for message in messages:
            answers = message["role"] == "assistant"
            typed = self.answers_lack if answers else self.control
            plain = {
                key: _broken(message[key], typed) for key in KEYS if message.get(key) is not None
            }
            content = str(plain.get("content", "")).lstrip()
            if answers and content.startswith(OPEN) and self.markers.keeps_open:
                plain["content"] = content.removeprefix(OPEN).lstrip("\n")
            prepared.append(plain)
        return prepared

    def prompt(self, messages: Messages, tools: Sequence[Any] = ()) -> str:
        """Render a prompt up to the assistant's words. Raises DataError if the template refuses it,
        or for no text.
        """
        text = self.render(self.prepare(messages), True, tools)
        if not text:  # the prompt's last token predicts a response's first one
            raise DataError("the chat template renders the prompt as empty text")
        return text

    @cached_property
    def dropped_roles(self) -> set[str]:
        """Roles whose messages the template does not write, as seen on examples."""
        system, result = {"role": "system", "content": MARK}, {**RESULT, "content": MARK}
        examples: dict[str, Messages] = {"system": [system, ASKED], "tool": [ASKED, CALLED, result]}
        dropped = set[str]()
        for role, messages in examples.items():
            with suppress(DataError):  # a template may refuse a role
                if MARK not in self.render(messages, True):
                    dropped.add(role)
        return dropped

    # Turns

    def conversation(
        self, prompt: Messages, answers: Messages, tools: Sequence[Any] = (), opened: str = ""
    ) -> Conversation:
        """Render a prompt with the turns after it, the last of which is the assistant's.

        opened: the rendered prompt. Raises DataError if the template changes or drops text that
        would be learned.
        """
        messages, turns = self.prepare([*prompt, *answers]), list[Turn]()
        whole = self.render(messages, False, tools)
        for index, answer in enumerate(answers, len(prompt)):
            if answer["role"] == "assistant":
                if not opened or index > len(prompt):
                    opened = self.render(messages[:index], True, tools)
                turns.append(
                    self._turn(messages, index, answer.get("train", True), opened, whole, tools)
                )
        return Conversation(whole, tuple(turns))

    def _turn(
        self,
        messages: Messages,
        index: int,
        weight: float,
        opened: str,
        whole: str,
        tools: Sequence[Any],
    ) -> Turn:
        """The turn of a message, behind its own prompt.

        Raises DataError if the template changes its words, or if the last turn cannot be learned.
        """
        message = messages[index]
        inline, _, content = str(message.get("content", "")).rpartition(CLOSE)
        thoughts = [
            inline.strip().removeprefix(OPEN).strip(),
            str(message.get("reasoning_content", "")).strip(),
        ]
        calls = message.get("tool_calls") or ()
        if not whole.startswith(opened):
            common = common_length(whole, opened)
            start, end = max(common, whole.find(content, common)), -1
        else:
            start = len(opened)
            end = self._end(messages, index, whole, start, tools)
        text, problem = whole[start:end], ""
        if end < 0:
            problem = "the answer"
        elif not all(words in text for words in thoughts):
            problem = "the answer's reasoning"
        elif content.strip() not in text:
            raise DataError(REFUSED.format("the assistant's words as they are"))
        elif not has_names(text, calls):
            problem = "the answer's tool calls"
        if problem and message is messages[-1]:
            raise DataError(REFUSED.format(problem))
        blank = not (content.strip() or any(thoughts) or calls)
        return Turn(start, end, weight, not problem and not blank)

    def _end(
        self, messages: Messages, index: int, whole: str, start: int, tools: Sequence[Any]
    ) -> int:
        """Where a turn ends in the whole text, with its end of turn; -1 if that is unknown."""
        markers, last = self.markers, index == len(messages) - 1
        if last and whole.endswith(markers.close + markers.tail):
            return len(whole) - len(markers.tail)
        closes = markers.close and whole.count(markers.close) >= sum(
            m["role"] == "assistant" for m in messages
        )
        if not last and not closes:
            # Only the last turn has an end of its own; a token of the next message ends others.
            alone = self.render(messages[: index + 1], False, tools)
            words = alone.removesuffix(markers.tail).removesuffix(markers.close)
            if whole.startswith(words):
                marker = re.compile(rf"\s*(?:{self.special.pattern})").match(whole, len(words))
                return marker.end() if marker and not self.is_ended(words) else len(words)
        match = self.turn_end.search(whole, start)
        return match.end() if match else -1

    @cached_property
    def turn_end(self) -> re.Pattern[str]:
        """Matches what ends a turn. It is not in the words of a message, where its tokens are
        broken up.
        """
        return re.compile(f"{re.escape(self.markers.close) or '(?!)'}|{self.ends.pattern}")

    def is_ended(self, text: str) -> bool:
        """Whether a special token ends a text."""
        return bool(re.search(rf"(?:{self.special.pattern})\Z", text))

    # The template's markers

    @cached_property
    def markers(self) -> TemplateMarkers:
        """Raises DataError if the template cannot render a question and an answer, or drops their
        words.
        """
        prompt, whole = self.render([ASKED], True), self.render([ASKED, ANSWERED], False)
        return TemplateMarkers(prompt, whole, self.added.pattern, self.ends.pattern)

    @cached_property
    def end_markers(self) -> dict[bool, str]:
        """The token that ends a turn which others follow, seen on an example: of words (False), and
        of a call (True).

        Templates that write no end of turn end it with the next role's marker. Without a key:
        nothing ends such a turn.
        """
        examples: dict[bool, Messages] = {
            False: [ANSWERED, ASKED, ANSWERED],
            True: [CALLED, RESULT, ANSWERED],
        }
        markers = dict[bool, str]()
        for calls, turns in examples.items():
            # A template without tools, or one that cannot be learned at all
            with suppress(DataError):
                example = self.conversation([ASKED], turns, [EXAMPLE_TOOL] if calls else [])
                turn = example.turns[0]
                text = example.text[turn.start : turn.end]
                if turn.learnable and self.is_ended(text):
                    markers[calls] = self.added.findall(text)[-1]
        return markers


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the tokens, longer ones first; white space and single characters are ordinary
    text.
    """
    words = sorted(
        {token for token in tokens if len(token) > 1 and not token.isspace()}, key=len, reverse=True
    )
    return re.compile("|".join(map(re.escape, words)) or "(?!)")


def _broken(value: Any, pattern: re.Pattern[str]) -> Any:
    """The value with a BREAK after the first character of every control token in its texts."""
    if isinstance(value, str):
        if BREAK in value:
            raise DataError("a text contains U+FDD0, which Unicode reserves for internal use")
        return pattern.sub(lambda match: match[0][0] + BREAK + match[0][1:], value)
    if isinstance(value, Mapping):
        return {key: _broken(item, pattern) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_broken(item, pattern) for item in value]
    return value


def common_length(one: str, other: str) -> int:
    """The number of characters with which both texts begin."""
    return len(commonprefix([one, other]))  # noqa: RUF071  characters are meant, and no folders


def has_names(text: str, functions: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a text has the names of all functions, given as schemas or calls."""
    return all(
        str(function.get("function", function).get("name", "")) in text for function in functions
    )

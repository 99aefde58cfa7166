"""Renders conversations with the model's chat template, and locates the assistant's turns in the text.

One rule: what is trained, scored and sampled is what `apply_chat_template` renders. A turn is learned if the text
begins with its own generation prompt, which the policy will continue, and it ends with the end of turn.

A template is a program that others wrote. It gets a fixed date. Control tokens that
someone typed into a message stay text: a `BREAK` splits them in the rendered text, and tokenization removes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

from alignkit.errors import DataError

BREAK = "\ufdd0"  # Unicode reserves it for internal use: no text that is meant to be exchanged contains it
OPEN, CLOSE = REASONING = ("<think>", "</think>")
AFTER_REASONING = f"\n{CLOSE}\n\n"  # what templates write between reasoning and answer
OPENED_AT_END = re.compile(r"<(think|thinking|thought|reasoning)>\s*\Z", re.IGNORECASE)  # of a prompt
KEYS = ("role", "content", "reasoning_content", "tool_calls", "name", "tool_call_id")  # that templates may read

# What a template writes as today: the same tokens on every day. Llama 3.2's writes it by itself if it gets no date.
TODAY = date(2024, 7, 26)
DATE_FORMS = (*"aAbBdHIjmMpSyY", "-d", "-m")

# An example, on which the template's shape is seen.
QUESTION, ANSWER = "What is two plus two?", "It is four."
ASKED, ANSWERED = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
NO_PARAMETERS = {"type": "object", "properties": dict[str, Any]()}  # of a function in an example
EXAMPLE_TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "adds", "parameters": NO_PARAMETERS},
}
EXAMPLE_CALL = {"type": "function", "id": "call00000", "function": {"name": "add", "arguments": dict[str, Any]()}}

# Why an assistant turn is only context. The names are counted by the encoder.
BLANK, UNPROMPTED, DROPPED = "blank_turns", "unprompted_turns", "dropped_calls"
REFUSED = (
    "the chat template does not write {} after its own prompt; set model.chat_template_kwargs (as {{enable_thinking: "
    "false}}) or model.chat_template, or edit the row: templates that think expect 'reasoning_content', and others none"
)

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Turn:
    """An assistant turn: characters [start, end) of the conversation's text, with the end of turn.

    problem: why it cannot be learned; empty if it can.
    """

    start: int
    end: int
    problem: str = ""


@dataclass(frozen=True)
class Conversation:
    """A rendered conversation. turns: the assistant's after the prompt."""

    text: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Shape:
    """What a template writes around an answer, seen on an example.

    prompt, whole: the example. lead: between the prompt and the answer. close: from the answer through the end of turn;
    empty if the template writes none. tail: the rest.
    """

    prompt: str
    whole: str
    lead: str
    close: str
    tail: str

    @property
    def follows(self) -> bool:
        """Whether the finished turn begins with its own generation prompt."""
        return self.whole.startswith(self.prompt)

    @property
    def opens(self) -> bool:
        """Whether prompts end inside a block of reasoning."""
        header = self.prompt.rpartition(QUESTION)[2]
        return header.rfind(OPEN) > header.rfind(CLOSE)


class ChatTemplate:
    """A tokenizer's chat template. kwargs: its arguments. ends: the texts of tokens that end a response."""

    def __init__(self, tokenizer: Any, kwargs: Mapping[str, Any] | None = None, ends: frozenset[str] = frozenset()):
        self.tokenizer, self.kwargs, self.ends = tokenizer, kwargs or {}, ends
        self._drops: dict[tuple[Any, ...], set[str]] = {}  # by the roles of a conversation

    @property
    def source(self) -> str:
        """The template's Jinja code."""
        return str(self.tokenizer.chat_template)

    # Rendering

    def render(self, messages: Messages, generation: bool, tools: Sequence[Any] = ()) -> str:
        """Apply the template to `prepare`d messages. generation: append the start of the assistant's turn.

        Raises DataError if the template refuses the conversation, or fails.
        """
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages),
                tools=_broken(list(tools), self.control) or None,
                tokenize=False,
                add_generation_prompt=generation,
                chat_template=self._dated(self.tokenizer.get_chat_template(None, list(tools) or None)),
                **self.kwargs,
            )
        except Exception as error:  # the template is foreign code, which can fail in any way
            help = "edit the row, or set model.chat_template"
            raise DataError(f"the chat template refuses the conversation: {_reason(error)}; {help}") from error
        return text

    def _dated(self, code: str) -> str:
        """The template with a fixed date. transformers passes no functions to templates, so a macro takes its place."""
        if "strftime_now" not in code:
            return code
        filters = [f"replace('%{form}', '{TODAY.strftime(f'%{form}')}')" for form in DATE_FORMS]
        macro = f"{{% macro strftime_now(format) %}}{{{{ format | {' | '.join(filters)} }}}}{{% endmacro +%}}"
        return macro + code

    def prepare(self, messages: Messages) -> list[dict[str, Any]]:
        """The messages with the keys that templates read, and without control tokens that someone typed.

        Raises DataError for a character that is reserved.
        """
        return [self._plain(message) for message in messages]

    def _plain(self, message: Mapping[str, Any]) -> dict[str, Any]:
        answers = message["role"] == "assistant"
        typed = self._not_of_assistants if answers else self.control
        plain = {key: _broken(message[key], typed) for key in KEYS if message.get(key) is not None}
        content = str(plain.get("content", "")).lstrip()
        if answers and content.startswith(OPEN) and self._writes_tag:
            plain["content"] = content.removeprefix(OPEN).lstrip("\n")
        return plain

    @cached_property
    def _writes_tag(self) -> bool:
        """Whether an answer that begins with the tag has it twice, as the template writes it itself."""
        if not self.shape.opens:
            return False
        whole = self.render([ASKED, {**ANSWERED, "content": OPEN + ANSWER}], False)
        return whole.removeprefix(self.shape.prompt).lstrip().startswith(OPEN)

    @cached_property
    def special(self) -> re.Pattern[str]:
        """Matches the tokenizer's special tokens."""
        return _any_of(token.content for token in self._added if token.special)

    @cached_property
    def _not_of_assistants(self) -> re.Pattern[str]:
        """Matches special tokens that an assistant does not write: all but those around its reasoning."""
        return _any_of(token.content for token in self._added if token.special and token.content not in REASONING)

    @cached_property
    def control(self) -> re.Pattern[str]:
        """Matches special tokens, and other added tokens that the template writes, such as `<think>`."""
        return _any_of(token.content for token in self._added if token.special or token.content in self.source)

    @cached_property
    def added(self) -> re.Pattern[str]:
        """Matches every token that was added to the tokenizer's vocabulary."""
        return _any_of(token.content for token in self._added)

    @cached_property
    def _added(self) -> list[Any]:
        return list(self.tokenizer.added_tokens_decoder.values())

    # Prompts

    def prompt(self, messages: Messages, tools: Sequence[Any] = (), *, answering: bool = False) -> str:
        """Render a prompt up to the assistant's words. answering: close a block of reasoning that it opens."""
        text = self.render(self.prepare(messages), True, tools)
        if answering and self.shape.follows and CLOSE in self.shape.lead:
            return text + self.shape.lead
        if answering and self.shape.opens:
            return text + AFTER_REASONING
        return text

    def whole(self, prompt: Messages, answers: Messages, tools: Sequence[Any] = ()) -> str:
        """Render a finished conversation. Raises DataError if the template refuses it."""
        return self.render([*self.prepare(prompt), *self.prepare(answers)], False, tools)

    def drops(self, messages: Messages, tools: Sequence[Any] = ()) -> set[str]:
        """What the template leaves out, by the names of the encoder's counts: a message that is not the assistant's,
        such as the system's or a tool's, and the name of whoever speaks. That of a tool is in its call.

        Found out once for each order of roles, with other words, which occur nowhere else.
        """
        key = (bool(tools), *((message["role"], "tool_calls" in message, "name" in message) for message in messages))
        if key in self._drops:
            return self._drops[key]
        marked, marks = list(messages), dict[str, str]()
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                marked[place] = {**marked[place], "content": f"said{place}said"}
                marks[f"said{place}said"] = "dropped_messages"
            if message.get("name") and message["role"] != "tool":
                marked[place] = {**marked[place], "name": f"called{place}called"}
                marks[f"called{place}called"] = "dropped_names"
        try:
            text = self.render(self.prepare(marked), messages[-1]["role"] != "assistant", tools)
        except DataError:  # the words had a meaning
            return set()
        self._drops[key] = {case for mark, case in marks.items() if mark not in text}
        return self._drops[key]

    # Turns

    def conversation(
        self, prompt: Messages, answers: Messages, tools: Sequence[Any] = (), opened: str = ""
    ) -> Conversation:
        """Render a prompt with the turns after it, the last of which is the assistant's.

        opened: the rendered prompt. Raises DataError if the template changes or drops text that would be learned.
        """
        messages = self.prepare(prompt)
        first = len(messages)
        messages += self.prepare(answers)
        whole = self.render(messages, False, tools)
        turns: list[Turn] = []
        for index in range(first, len(messages)):
            if messages[index]["role"] == "assistant":
                prompt_text = opened if opened and index == first else self.render(messages[:index], True, tools)
                turns.append(self._turn(messages, index, prompt_text, whole, tools))
        return Conversation(whole, tuple(turns))

    def _turn(self, messages: Messages, index: int, prompt: str, whole: str, tools: Sequence[Any]) -> Turn:
        """The turn of a message, behind its own prompt.

        Raises DataError if the template changes its words, or if the last turn cannot be learned.
        """
        message, last = messages[index], index == len(messages) - 1
        start = len(prompt)
        end = self._end(messages[: index + 1], whole, start, last, tools) if whole.startswith(prompt) else -1
        inline, _, content = str(message.get("content", "")).rpartition(CLOSE)
        thoughts = [inline.strip().removeprefix(OPEN).strip(), str(message.get("reasoning_content", "")).strip()]
        calls = message.get("tool_calls") or ()
        text = whole[start:end]
        if end < 0 or not all(words in text for words in thoughts):
            if last:
                raise DataError(REFUSED.format("the answer" if end < 0 else "the answer's reasoning"))
            common = common_length(whole, prompt)
            place = max(common, whole.find(content, common))
            return Turn(place, place, UNPROMPTED)
        if content.strip() not in text:
            raise DataError(REFUSED.format("the assistant's words as they are"))
        if has_names(text, calls):
            return Turn(start, end, "" if content.strip() or any(thoughts) or calls else BLANK)
        if last:
            raise DataError(REFUSED.format("the answer's tool calls"))
        return Turn(start, end, DROPPED)

    def _end(self, messages: Messages, whole: str, start: int, last: bool, tools: Sequence[Any]) -> int:
        """Where the last turn of the messages ends in the whole text, with its end of turn; -1 if that is unknown."""
        shape = self.shape
        if last and whole.endswith(shape.close + shape.tail):
            return len(whole) - len(shape.tail)
        if not last and not self._closes:
            alone = self.render(messages, False, tools)
            words = alone.removesuffix(shape.tail).removesuffix(shape.close)
            if whole.startswith(words):
                marker = self._marker.match(whole, len(words))
                return marker.end() if marker and not self.is_ended(words) else len(words)
        match = self.turn_end.search(whole, start)
        return match.end() if match else -1

    @cached_property
    def turn_end(self) -> re.Pattern[str]:
        """Matches what ends a turn. It is not in the words of a message, where its tokens are broken up."""
        close = self.shape.close
        token = self.added.search(close)
        return _any_of([*self.ends, *([close, token[0]] if token else [])])

    @cached_property
    def _marker(self) -> re.Pattern[str]:
        """Matches a special token behind white space."""
        return re.compile(rf"\s*(?:{self.special.pattern})")

    @cached_property
    def _closes(self) -> bool:
        """Whether the template writes the end of turn behind every turn, not only behind the last one."""
        close = self.shape.close
        try:
            return bool(close) and self.render([ASKED, ANSWERED] * 2, False).count(ANSWER + close) == 2
        except DataError:  # one turn only
            return bool(close)

    def is_ended(self, text: str) -> bool:
        """Whether a special token ends a text."""
        return text.endswith(tuple(token.content for token in self._added if token.special))

    # The template's shape

    @cached_property
    def shape(self) -> Shape:
        """Raises DataError if the template cannot render a question and an answer, or drops their words."""
        prompt, whole = self.render([ASKED], True), self.render([ASKED, ANSWERED], False)
        place = whole.rfind(ANSWER)
        if QUESTION not in whole or QUESTION not in prompt or place < 0:
            raise DataError("the chat template drops or changes words of a question and its answer")
        lead = whole[common_length(prompt, whole[:place]) : place]
        rest = whole[place + len(ANSWER) :]
        size, match = 0, self.added.search(rest)
        while match:  # the first added token and, unless it is known to end turns, those next to it
            size = match.end()
            match = self.added.match(rest, size) if match[0] not in self.ends else None
        return Shape(prompt, whole, lead, rest[:size], rest[size:])

    @cached_property
    def markers(self) -> dict[bool, str]:
        """The token that ends a turn which others follow, seen on an example: of words (False), and of a call (True).

        Templates that write no end of turn end it with the next role's marker. Without a key: nothing ends such a turn.
        """
        called = {"role": "assistant", "content": "", "tool_calls": [EXAMPLE_CALL]}
        result = {"role": "tool", "content": "4", "name": "add", "tool_call_id": "call00000"}
        examples: dict[bool, list[Mapping[str, Any]]] = {
            False: [ANSWERED, ASKED, ANSWERED],
            True: [called, result, ANSWERED],
        }
        markers = dict[bool, str]()
        for calls, turns in examples.items():
            try:
                example = self.conversation([ASKED], turns, [EXAMPLE_TOOL] if calls else [])
            except DataError:  # a template without tools, or one that cannot be learned at all
                continue
            turn = example.turns[0]
            text = example.text[turn.start : turn.end]
            if self.is_ended(text) and not turn.problem:
                markers[calls] = self.added.findall(text)[-1]
        return markers


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the tokens, longer ones first; white space and single characters are ordinary text."""
    words = sorted({token for token in tokens if len(token) > 1 and not token.isspace()}, key=len, reverse=True)
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


def _reason(error: Exception) -> str:
    """The error's first line, with its type unless the template raised it on purpose."""
    text = str(error).strip().split("\n")[0]
    if type(error).__name__ == "TemplateError":
        return text
    return f"{type(error).__name__}: {text}"


def common_length(one: str, other: str) -> int:
    """The number of characters with which both texts begin."""
    differing = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def has_names(text: str, functions: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a text has the names of all functions, given as schemas or calls."""
    return all(str(function.get("function", function).get("name", "")) in text for function in functions)

"""Renders conversations with the model's chat template, and locates the assistant's turns in the text.

One rule: what is trained, scored and sampled is what `apply_chat_template` renders. A turn is learned if the text
begins with its own generation prompt, which the policy will continue, and it ends with the end of turn.

A template is a program that others wrote. It gets a fixed date. Control tokens that
someone typed into a message stay text: a `BREAK` splits them in the rendered text, and tokenization removes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import Any, Literal

from alignkit.errors import DataError

BREAK = "\ufdd0"  # Unicode reserves it for internal use: no text that is meant to be exchanged contains it
OPEN, CLOSE = REASONING = ("<think>", "</think>")
AFTER_REASONING = f"\n{CLOSE}\n\n"  # what templates write between reasoning and answer
OPENED_AT_END = re.compile(r"<(think|thinking|thought|reasoning)>\s*\Z", re.IGNORECASE)  # of a prompt
KEYS = ("role", "content", "reasoning_content", "tool_calls", "name", "tool_call_id")  # that templates may read
MERGED = "\n\n"  # between a merged system message and the user's words

# What a template writes as today: the same tokens on every day. Llama 3.2's writes it by itself if it gets no date.
TODAY = date(2024, 7, 26)
UNKNOWN_DATE = "it computes the format of its date, which alignkit cannot fix"
_DATE_CALL = re.compile(r"strftime_now\(\s*(?:format\s*=\s*)?(['\"])(.*?)\1\s*\)")

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
CHANGED = "the chat template changes or drops the assistant's words; set model.chat_template to another template"
NOT_AFTER_PROMPT = (
    "the chat template does not write the answer after its own prompt; if it thinks, give the answer its reasoning, "
    "set model.chat_template_kwargs (as {enable_thinking: false}), or set model.chat_template"
)
NO_REASONING = "the chat template drops the answer's reasoning; set model.reasoning to keep, or model.chat_template"

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ChatOptions:
    """How the chat template is used; the keys of `model:` in a recipe.

    template_kwargs: arguments of the template. reasoning: "keep" puts it into the answers if the template does not know
    reasoning. system_messages: "merge" puts them in front of the next user turn.
    """

    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    reasoning: Literal["template", "keep"] = "template"
    system_messages: Literal["template", "merge"] = "template"


@dataclass(frozen=True)
class Turn:
    """An assistant turn: characters [start, end) of the conversation's text, with the end of turn.

    problem: why it cannot be learned; empty if it can. ended: whether the template writes a token that ends it.
    """

    start: int
    end: int
    problem: str = ""
    ended: bool = True


@dataclass(frozen=True)
class Conversation:
    """A rendered conversation. turns: the assistant's after the prompt."""

    text: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Shape:
    """What a template writes around an answer, seen on an example.

    prompt, whole: the example. header: from the user's words to the answer's place in the prompt. lead: between the
    prompt and the answer. close: from the answer through the end of turn; empty if the template writes none. tail: the
    rest.
    """

    prompt: str
    whole: str
    header: str
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
        return self.header.rfind(OPEN) > self.header.rfind(CLOSE)


class ChatTemplate:
    """A tokenizer's chat template with the user's options. ends: the texts of tokens that end a response."""

    def __init__(self, tokenizer: Any, options: ChatOptions, ends: frozenset[str] = frozenset()):
        self.tokenizer, self.options, self.ends = tokenizer, options, ends
        self._drops: dict[tuple[Any, ...], set[str]] = {}  # by the roles of a conversation

    def source(self, tools: Sequence[Any] = ()) -> str:
        """The template's Jinja code, which may differ with tools. Raises DataError if there is none."""
        try:
            code: str = self.tokenizer.get_chat_template(None, list(tools) or None)
        except ValueError as error:
            raise DataError("the tokenizer has no chat template; set model.chat_template") from error
        return code

    @cached_property
    def uses_date(self) -> bool:
        """Whether the template writes today's date."""
        return "strftime_now" in self.source()

    @cached_property
    def reasons(self) -> bool:
        """Whether the template knows blocks of reasoning."""
        return CLOSE in self.source()

    # Rendering

    def render(self, messages: Messages, generation: bool, tools: Sequence[Any] = ()) -> str:
        """Apply the template to `prepare`d messages. generation: append the start of the assistant's turn.

        Raises DataError if the template refuses the conversation, or fails.
        """
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(messages),
                tools=_broken(list(tools), self.control) or None,
                chat_template=self._dated(self.source(tools)),
                tokenize=False,
                add_generation_prompt=generation,
                **self.options.template_kwargs,
            )
        except Exception as error:  # the template is foreign code, which can fail in any way
            raise DataError(f"the chat template refuses the conversation: {_reason(error)}") from error
        return text

    def _dated(self, code: str) -> str:
        """The template with a fixed date. transformers passes no functions to templates, so a macro takes its place."""
        if "strftime_now" not in code:
            return code
        forms = dict.fromkeys(match[2] for match in _DATE_CALL.finditer(code))
        cases = "".join(f"{{% elif format == {form!r} %}}{{{{ {TODAY.strftime(form)!r} }}}}" for form in forms)
        cases = f"{{%- if not format %}}{cases}{{% else %}}{{{{ raise_exception({UNKNOWN_DATE!r}) }}}}{{% endif %}}"
        return f"{{% macro strftime_now(format) %}}{cases}{{% endmacro +%}}{code}"

    def prepare(self, messages: Messages) -> list[dict[str, Any]]:
        """The messages as the template receives them. Raises DataError for a character that is reserved."""
        plain = [self._plain(message) for message in messages]
        if self.options.system_messages == "merge":
            return _merge_system(plain)
        return plain

    def _plain(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message with the keys that templates read, and without control tokens that someone typed."""
        if message["role"] != "assistant":
            return {key: _broken(message[key], self.control) for key in KEYS if message.get(key) is not None}
        plain = {key: _broken(message[key], self._not_of_assistants) for key in KEYS if message.get(key) is not None}
        content = str(plain.get("content", "")).lstrip()
        if content.startswith(OPEN) and self._writes_tag:
            plain["content"] = content.removeprefix(OPEN).lstrip("\n")
        elif plain.get("reasoning_content") and self.options.reasoning == "keep" and not self.reasons:
            reasoning = plain.pop("reasoning_content").strip()
            opening = "" if self.shape.opens else f"{OPEN}\n"
            plain["content"] = f"{opening}{reasoning}{AFTER_REASONING}{content}"
        return plain

    @cached_property
    def _writes_tag(self) -> bool:
        """Whether an answer that begins with the tag has it twice, as the template writes it itself."""
        if not self.shape.opens:
            return False
        whole = self.render([ASKED, {**ANSWERED, "content": OPEN + ANSWER}], False)
        return whole.startswith(self.shape.prompt) and whole[len(self.shape.prompt) :].lstrip().startswith(OPEN)

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
        code = self.source()
        return _any_of(token.content for token in self._added if token.special or token.content in code)

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
                begin = turns[-1].end if turns else 0
                turns.append(self._turn(messages, index, prompt_text, whole, begin, tools))
        return Conversation(whole, tuple(turns))

    def _turn(self, messages: Messages, index: int, prompt: str, whole: str, begin: int, tools: Sequence[Any]) -> Turn:
        """The turn of a message, behind its own prompt. begin: where the turn before it ends.

        Raises DataError if the template changes its words, or if the last turn cannot be learned.
        """
        message, last = messages[index], index == len(messages) - 1
        if last and not whole.startswith(prompt):
            raise DataError(NOT_AFTER_PROMPT)
        inline, _, content = str(message.get("content", "")).rpartition(CLOSE)
        thoughts = [inline.strip().removeprefix(OPEN).strip(), str(message.get("reasoning_content", "")).strip()]
        start = self._start(messages[:index], prompt, whole, begin, tools)
        end = self._end(messages[: index + 1], whole, start, last, tools)
        if start < 0 or end < 0 or not all(words in whole[start:end] for words in thoughts):
            if last:
                raise DataError(NO_REASONING if end >= 0 else "the chat template does not end a turn that calls tools")
            common = common_length(whole, prompt)
            place = max(common, whole.find(content, common))
            return Turn(place, place, UNPROMPTED)
        if content.strip() not in whole[start:end]:
            raise DataError(CHANGED)
        calls = message.get("tool_calls") or ()
        ended = bool(self.shape.close) if last else self._closes or self._is_ended(whole, end)
        if has_names(whole[start:end], calls):
            return Turn(start, end, "" if content.strip() or any(thoughts) or calls else BLANK, ended)
        if last:
            raise DataError("the chat template drops the answer's tool calls; set model.chat_template")
        return Turn(start, end, DROPPED, ended)

    def _start(self, before: Messages, prompt: str, whole: str, begin: int, tools: Sequence[Any]) -> int:
        """Where a turn starts: after its own generation prompt; -1 if the text does not have that.

        The text may differ before the last question: some templates move the system's message to the last one.
        """
        if whole.startswith(prompt):
            return len(prompt)
        question = str(before[-1].get("content", "")).strip() if before else ""
        if not question:
            return -1
        asked = prompt[prompt.rfind(question) :]
        place = whole.find(question, begin)
        if question in self.render([ASKED], True).replace(QUESTION, BREAK):  # as N is in [INST]
            other = self.render([*before[:-1], {**before[-1], "content": QUESTION}], True, tools)
            asked = question + other.rpartition(QUESTION)[2]
            place = whole.find(asked, begin)
        return place + len(asked) if whole.startswith(asked, max(0, place)) else -1

    def _end(self, messages: Messages, whole: str, start: int, last: bool, tools: Sequence[Any]) -> int:
        """Where the last turn of the messages ends in the whole text, with its end of turn; -1 if that is unknown."""
        shape = self.shape
        if last and whole.endswith(shape.close + shape.tail):
            return len(whole) - len(shape.tail)
        end = self.end_from(whole, max(0, start))
        if self._closes or last:
            return end
        alone = self.render(messages, False, tools)
        words = alone.removesuffix(shape.tail).removesuffix(shape.close)
        if not whole.startswith(words):
            return end
        marker = self._marker.match(whole, len(words))
        return marker.end() if marker and not self._is_ended(whole, len(words)) else len(words)

    def end_from(self, text: str, place: int) -> int:
        """Where the first end of turn behind a place ends; -1 if there is none."""
        found = self.turn_end.search(text, place)
        if found is None:
            return -1
        close = self.shape.close
        begin = found.start() - close.find(found[0])
        return begin + len(close) if found[0] in close and text.startswith(close, begin) else found.end()

    @cached_property
    def turn_end(self) -> re.Pattern[str]:
        """Matches the tokens that end a turn. They are not in the words of a message, where they are broken up."""
        close = self.added.search(self.shape.close)
        return _any_of([*self.ends, *([close[0]] if close else [])])

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

    def _is_ended(self, text: str, place: int) -> bool:
        """Whether a special token comes right before a place."""
        return text.endswith(tuple(token.content for token in self._added if token.special), 0, place)

    # The template's shape

    @cached_property
    def shape(self) -> Shape:
        """Raises DataError if the template cannot render a question and an answer, or drops their words."""
        prompt, whole = self.render([ASKED], True), self.render([ASKED, ANSWERED], False)
        place = whole.rfind(ANSWER)
        for role, kept in (("user", QUESTION in whole and QUESTION in prompt), ("assistant", place >= 0)):
            if not kept:
                raise DataError(f"the chat template drops or changes the words of the {role}'s message")
        header = prompt[prompt.rfind(QUESTION) + len(QUESTION) :]
        lead = whole[common_length(prompt, whole[:place]) : place]
        rest = whole[place + len(ANSWER) :]
        size, match = 0, self.added.search(rest)
        while match:  # the first added token and, unless it is known to end turns, those next to it
            size = match.end()
            match = self.added.match(rest, size) if match[0] not in self.ends else None
        return Shape(prompt, whole, header, lead, rest[:size], rest[size:])

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
            tokens = self.added.findall(example.text[turn.start : turn.end])
            if tokens and turn.ended and not turn.problem:
                markers[calls] = tokens[-1]
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


def _merge_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make system messages the user's: in front of the user turn that follows, or else behind the one before."""
    merged: list[dict[str, Any]] = []
    joins = False  # the words before are the system's, or the user's behind which these come
    for message in messages:
        system = message["role"] == "system"
        if merged and merged[-1]["role"] == "user" and message["role"] in ("system", "user") and (system or joins):
            words = MERGED.join([merged[-1]["content"], message["content"]])
            merged[-1] = {**message, "role": "user", "content": words}
        else:
            merged.append({**message, "role": "user"} if system else message)
        joins = system
    return merged


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

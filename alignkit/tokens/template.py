"""Renders conversations with the model's chat template, which is a program that others wrote.

It gets a fixed date and a limit on time and length. Control tokens that someone typed into a message stay text: a
`BREAK` splits them in the rendered text, and tokenization removes it (`alignkit.tokens.encoder`).

From messages to the text that the chat template renders, with the place of each assistant turn in it.

One rule: what is trained, scored and sampled is what `apply_chat_template` renders. A turn that can be learned begins
with its own generation prompt, because the policy will continue that prompt, and ends with the end of turn.

Templates of reasoning models break the rule in their own ways; `reasoning` says what to do about it:

| `reasoning` | the prompt | the answer | an answer's reasoning |
|---|---|---|---|
| `refuse` | the template's | must follow the prompt in the template's own rendering | must be in that rendering |
| `keep` | the template's | the reasoning, the end of the block, and the answer | is learned |
| `empty` | ends with an empty block | only the answer | is left out |
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import Any, Literal

from alignkit.errors import DataError

# Unicode reserves these for internal use: no text that is meant to be exchanged contains them.
BREAK, SENTINEL = "\ufdd0", "\ufdd1"
SECONDS = 10  # for one row of data
GROWTH = 50  # characters that a template may write per character of the conversation,
ALLOWANCE = 1_000_000  # beyond these
REASONING = ("<think>", "</think>")
KEYS = ("role", "content", "reasoning_content", "tool_calls", "name", "tool_call_id")  # that templates may read
MERGED = "\n\n"  # between a merged system message and the user's words

# What a template writes as today: the same tokens on every day. Llama 3.2's writes it by itself if it gets no date.
TODAY = date(2024, 7, 26)
UNKNOWN_DATE = "it computes the format of its date, which alignkit cannot fix"
_limited: list[bool] = []  # holds True inside a `time_limit`
_DATE_CALL = re.compile(r"strftime_now\(\s*(?:format\s*=\s*)?(['\"])(.*?)\1\s*\)")


@dataclass(frozen=True)
class ChatOptions:
    """How the chat template is used; the keys of `model:` in a recipe.

    template_kwargs: arguments of the template. reasoning: see `alignkit.tokens.template`. system_messages: "merge" puts
    them in front of the next user turn.
    """

    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    reasoning: Literal["refuse", "keep", "empty"] = "refuse"
    system_messages: Literal["template", "merge"] = "template"


class TemplateTimeout(DataError):
    """A template did not finish in time."""

    def __init__(self) -> None:
        super().__init__(f"the chat template did not finish within {SECONDS} seconds")


class ChatTemplate:
    """A tokenizer's chat template with the user's options."""

    def __init__(self, tokenizer: Any, options: ChatOptions):
        self.tokenizer, self.options = tokenizer, options

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

    def render(self, messages: Sequence[Mapping[str, Any]], generation: bool, tools: Sequence[Any] = ()) -> str:
        """Apply the template to `prepare`d messages. generation: append the start of the assistant's turn.

        Raises DataError if the template refuses the conversation, fails, or writes too much.
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
        except TemplateTimeout:
            raise
        except MemoryError as error:
            raise DataError("the chat template takes too much memory") from error
        except Exception as error:  # the template is foreign code, which can fail in any way
            raise DataError(f"the chat template refuses the conversation: {_reason(error)}") from error
        if len(text) > ALLOWANCE and len(text) > ALLOWANCE + GROWTH * len(str([*messages, *tools])):
            raise DataError(f"the chat template wrote {len(text)} characters for {len(messages)} turns")
        return text

    def prepare(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages as the template receives them. Raises DataError for characters that are reserved."""
        plain = [self._plain(message) for message in messages]
        return _merge_system(plain) if self.options.system_messages == "merge" else plain

    def _plain(self, message: Mapping[str, Any]) -> dict[str, Any]:
        pattern = self._not_of_assistants if message["role"] == "assistant" else self.control
        return {key: _broken(message[key], pattern) for key in KEYS if message.get(key) is not None}

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

    def _dated(self, code: str) -> str:
        """The template with a fixed date. transformers passes no functions to templates, so a macro takes its place."""
        if "strftime_now" not in code:
            return code
        forms = dict.fromkeys(match[2] for match in _DATE_CALL.finditer(code))
        cases = "".join(f"{{% elif format == {form!r} %}}{{{{ {TODAY.strftime(form)!r} }}}}" for form in forms)
        cases = f"{{%- if not format %}}{cases}{{% else %}}{{{{ raise_exception({UNKNOWN_DATE!r}) }}}}{{% endif %}}"
        return f"{{% macro strftime_now(format) %}}{cases}{{% endmacro +%}}{code}"


def _any_of(tokens: Iterator[str]) -> re.Pattern[str]:
    """Matches any of the tokens, longer ones first; white space and single characters are ordinary text."""
    words = sorted({token for token in tokens if len(token) > 1 and not token.isspace()}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, words)) or "(?!)")


def _broken(value: Any, pattern: re.Pattern[str]) -> Any:
    """The value with a BREAK after the first character of every control token in its texts."""
    if isinstance(value, str):
        if BREAK in value or SENTINEL in value:
            raise DataError("a text contains U+FDD0 or U+FDD1, which Unicode reserves for internal use")
        return pattern.sub(lambda match: match[0][0] + BREAK + match[0][1:], value)
    if isinstance(value, Mapping):
        return {key: _broken(item, pattern) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_broken(item, pattern) for item in value]
    return value


def _merge_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put every system message in front of the next user turn, or behind the user turn before if no user follows."""
    merged: list[dict[str, Any]] = []
    pending: list[str] = []
    for message in messages:
        if message["role"] == "system":
            pending.append(message["content"])
        elif message["role"] == "user":
            merged.append({**message, "content": MERGED.join([*pending, message["content"]])})
            pending = []
        else:
            merged = [*_with_words(merged, pending), message]
            pending = []
    return _with_words(merged, pending)


def _with_words(messages: list[dict[str, Any]], words: Sequence[str]) -> list[dict[str, Any]]:
    """The messages with more words of the user at the end."""
    if not words:
        return messages
    if messages and messages[-1]["role"] == "user":
        last = messages[-1]
        return [*messages[:-1], {**last, "content": MERGED.join([last["content"], *words])}]
    return [*messages, {"role": "user", "content": MERGED.join(words)}]


def _reason(error: Exception) -> str:
    """The error's first line, with its type unless the template raised it on purpose."""
    text = str(error).strip().split("\n")[0]
    return text if type(error).__name__ == "TemplateError" else f"{type(error).__name__}: {text}"


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise TemplateTimeout after SECONDS; only the main thread of a Unix process can be interrupted.

    Inside another limit it does nothing: setting a timer takes as long as a short rendering.
    """
    if _limited or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise TemplateTimeout

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _limited.append(True)
    try:
        yield
    finally:
        _limited.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


OPEN, CLOSE = REASONING
AFTER_REASONING = f"\n{CLOSE}\n\n"  # what templates write between reasoning and answer
_INLINE = re.compile(rf"\s*{OPEN}(.*?){CLOSE}\s*(.*)", re.DOTALL)
_OPENED = re.compile(rf"\s*(?:{OPEN})?(.*?){CLOSE}\s*(.*)", re.DOTALL)  # after a prompt that opens the block
QUESTION, ANSWER = "What is two plus two?", "It is four."

# Why an assistant turn is only context. The names are counted in the encoder's table.
BLANK, UNPROMPTED, DROPPED = "blank_turns", "unprompted_turns", "dropped_calls"

CHANGED = "the chat template changes or drops the assistant's words; set model.chat_template to another template"

LONGEST = 64  # characters of a special token
NO_PARAMETERS = {"type": "object", "properties": dict[str, Any]()}  # of a function in an example

Messages = Sequence[Mapping[str, Any]]
Place = tuple[int, int]  # characters [begin, end)


@dataclass(frozen=True)
class OpenPrompt:
    """A rendered prompt. raw: as the template writes it, without a block that `reasoning` adds. messages: prepared."""

    text: str
    raw: str
    messages: list[dict[str, Any]]


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
    rest. removed, block: the end of the prompt that an empty block replaces, and the block; both empty if the template
    knows no reasoning.
    """

    prompt: str
    whole: str
    header: str
    lead: str
    close: str
    tail: str
    removed: str
    block: str

    @property
    def follows(self) -> bool:
        """Whether the finished turn begins with its own generation prompt."""
        return self.whole.startswith(self.prompt)


class Chat:
    """A chat template whose turns are located in the text."""

    def __init__(self, tokenizer: Any, options: ChatOptions, ends: frozenset[str] = frozenset()):
        """ends: the texts of tokens that end a response."""
        self.template, self.options, self.ends = ChatTemplate(tokenizer, options), options, ends
        self._drops: dict[tuple[Any, ...], Sequence[str]] = {}  # by the roles of a conversation

    # The template's shape

    @cached_property
    def shape(self) -> Shape:
        """Raises DataError if the template cannot render a question and an answer, or drops their words."""
        question, answer = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
        with time_limit():
            prompt = self.template.render([question], True)
            whole = self.template.render([question, answer], False)
        place = whole.rfind(ANSWER)
        for role, kept in (("user", QUESTION in whole and QUESTION in prompt), ("assistant", place >= 0)):
            if not kept:
                raise DataError(f"the chat template drops or changes the words of the {role}'s message")
        rest = whole[place + len(ANSWER) :]
        size = self._close(rest, 0, last=True)
        common = len(prompt) if whole.startswith(prompt) else common_length(prompt, whole[:place])
        lead, removed = whole[common:place], prompt[common:]
        header = prompt[prompt.rfind(QUESTION) + len(QUESTION) :]
        block = lead if CLOSE in lead else AFTER_REASONING if header.rfind(OPEN) > header.rfind(CLOSE) else ""
        return Shape(
            prompt,
            whole,
            header=header,
            lead=lead,
            close=rest[:size],
            tail=rest[size:],
            removed=removed if CLOSE in lead else "",
            block=block,
        )

    @cached_property
    def markers(self) -> dict[bool, str]:
        """The token that ends a turn which others follow, seen on an example: of words (False), and of a call (True).

        Templates that write no end of turn end it with the next role's marker. Without a key: nothing ends such a turn.
        """
        question, answer = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
        call = {"type": "function", "id": "call00000", "function": {"name": "add", "arguments": {}}}
        called = {"role": "assistant", "content": "", "tool_calls": [call]}
        tool = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": NO_PARAMETERS}}
        result = {"role": "tool", "content": "4", "name": "add", "tool_call_id": "call00000"}
        found = dict[bool, str]()
        examples: list[tuple[Messages, tuple[Any, ...]]] = [
            ([answer, question, answer], ()),
            ([called, result, answer], (tool,)),
        ]
        for turns, tools in examples:
            try:
                first = self.conversation(self.open([question], tools), turns, tools)
            except DataError:  # a template without tools, or one that cannot be learned at all
                continue
            turn = first.turns[0]
            tokens = self.template.added.findall(first.text[turn.start : turn.end])
            if tokens and turn.ended and not turn.problem:
                found[bool(tools)] = tokens[-1]
        return found

    def _close(self, text: str, place: int, last: bool) -> int:
        """Where the end of turn ends: after the next added token and, at the last turn, those next to it."""
        match, end = self.template.added.search(text, place), place
        while match:
            end = match.end()
            match = self.template.added.match(text, end) if last and match[0] not in self.ends else None
        return end

    @cached_property
    def reasons(self) -> bool:
        """Whether the template knows blocks of reasoning."""
        return CLOSE in self.template.source()

    # Prompts

    def prompt(self, messages: Messages, tools: Sequence[Any] = (), *, answering: bool = False) -> str:
        """Render a prompt up to the assistant's words. answering: close a block of reasoning that it opens."""
        return self.open(messages, tools, answering=answering).text

    def open(self, messages: Messages, tools: Sequence[Any] = (), *, answering: bool = False) -> OpenPrompt:
        """Render a prompt up to the assistant's words; see `prompt`."""
        prepared = self._prepared(messages)
        with time_limit():
            raw = self.template.render(prepared, True, tools)
        return OpenPrompt(
            self._answering(raw) if answering or self.options.reasoning == "empty" else raw, raw, prepared
        )

    def _answering(self, prompt: str) -> str:
        """The prompt with an empty block of reasoning at its end."""
        shape = self.shape
        return prompt.removesuffix(shape.removed) + shape.block if prompt.endswith(shape.removed) else prompt

    def _prepared(self, messages: Messages) -> list[dict[str, Any]]:
        """The messages as the template receives them, with reasoning in its own key, or without it."""
        if self.options.reasoning != "refuse":
            messages = [self._split(message) for message in messages]
        elif any(str(message.get("content")).lstrip().startswith(OPEN) for message in messages) and self.opens:
            messages = [self._once_opened(message) for message in messages]
        if self.options.reasoning == "empty":
            messages = [{k: v for k, v in message.items() if k != "reasoning_content"} for message in messages]
        return self.template.prepare(messages)

    @cached_property
    def opens(self) -> bool:
        """Whether prompts end inside a block of reasoning."""
        return self.shape.header.rfind(OPEN) > self.shape.header.rfind(CLOSE)

    def _once_opened(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """An assistant's message without the tag that begins it, if the template writes the tag itself."""
        begun = str(message.get("content")).lstrip()
        if message["role"] != "assistant" or not begun.startswith(OPEN) or not self._repeats:
            return message
        return {**message, "content": begun.removeprefix(OPEN).lstrip("\n")}

    @cached_property
    def _repeats(self) -> bool:
        """Whether a turn that begins with the tag has it twice, as the prompt ends with it."""
        question, answer = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": OPEN + ANSWER}
        whole = self.template.render([question, answer], False)
        return whole.startswith(self.shape.prompt) and whole[len(self.shape.prompt) :].lstrip().startswith(OPEN)

    def _split(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """The message with the reasoning inside its content as `reasoning_content`."""
        if message["role"] != "assistant" or message.get("reasoning_content"):
            return message
        match = (_OPENED if self.opens else _INLINE).fullmatch(message.get("content") or "")
        return {**message, "reasoning_content": match[1].strip("\n"), "content": match[2]} if match else message

    # Conversations

    def conversation(self, prompt: OpenPrompt, answers: Messages, tools: Sequence[Any] = ()) -> Conversation:
        """Render a prompt with the turns after it, the last of which is the assistant's.

        Raises DataError if the template changes or drops text that would be learned, unless `reasoning` allows it.
        """
        messages, first = [*prompt.messages, *self._prepared(answers)], len(prompt.messages)
        own = [index for index in range(first, len(messages)) if messages[index]["role"] == "assistant"]
        with time_limit():
            whole = self.template.render(messages, False, tools)
            last_prompt = prompt.raw if own[-1] == first else self.template.render(messages[: own[-1]], True, tools)
            messages, places = self._located(messages, own, whole, last_prompt, tools)
            return self._conversation(messages, own, whole, last_prompt, places, tools)

    def drops(self, messages: Messages, tools: Sequence[Any] = ()) -> Sequence[str]:
        """What the template leaves out, by the names of the encoder's counts: a message that is not the assistant's,
        such as the system's or a tool's, and the name of whoever speaks. That of a tool is in its call.

        Found out once for each order of roles, with other words, which occur nowhere else.
        """
        named = [place for place, message in enumerate(messages) if message.get("name") and message["role"] != "tool"]
        key = (bool(tools), *named, *((message["role"], bool(message.get("tool_calls"))) for message in messages))
        if key not in self._drops:
            others = [place for place, message in enumerate(messages) if message["role"] != "assistant"]
            marked = list(messages)
            for place in others:
                marked[place] = {**messages[place], "content": f"said{place}said"}
            for place in named:
                marked[place] = {**marked[place], "name": f"called{place}called"}
            try:
                with time_limit():
                    text = self.template.render(self._prepared(marked), len(messages) - 1 in others, tools)
            except DataError:  # the words had a meaning
                return ()
            lost = {
                "dropped_messages": any(marked[place]["content"] not in text for place in others),
                "dropped_names": any(marked[place]["name"] not in text for place in named),
            }
            self._drops[key] = [case for case, dropped in lost.items() if dropped]
        return self._drops[key]

    def whole(self, prompt: Messages, answers: Messages, tools: Sequence[Any] = ()) -> str:
        """Render a finished conversation. Raises DataError if the template refuses it."""
        with time_limit():
            return self.template.render([*self._prepared(prompt), *self._prepared(answers)], False, tools)

    def _conversation(
        self,
        messages: Messages,
        own: Sequence[int],
        whole: str,
        last_prompt: str,
        places: Sequence[Place | None],
        tools: Sequence[Any],
    ) -> Conversation:
        """The conversation with its turns, located from the end."""
        if places[-1] is None:
            raise DataError("the chat template does not end a turn that calls tools")
        text, turns = self._last_turn(messages[own[-1]], whole, last_prompt, places[-1])
        start, common = turns[0].start, common_length(text, whole)
        for index, place in zip(own[-2::-1], places[-2::-1], strict=True):
            turn = self._earlier_turn(messages, index, text, place, tools) if place else Turn(start, start, UNPROMPTED)
            if turn.end > min(start, common):
                turn = Turn(turn.start, turn.start, UNPROMPTED)
            turns.append(turn)
            start = turn.start
        return Conversation(text, tuple(reversed(turns)))

    def _last_turn(self, message: Mapping[str, Any], whole: str, prompt: str, place: Place) -> tuple[str, list[Turn]]:
        """The conversation's text, in which the last turn follows its prompt, and that turn."""
        begin, end = place
        reasoning = str(message.get("reasoning_content", "")).strip()
        follows = whole.startswith(prompt)
        kept = follows and reasoning in whole[len(prompt) : begin]
        if self.options.reasoning == "empty":
            start = self._answering(prompt)
            text = whole if whole.startswith(start) else start + whole[begin:]
        elif kept:
            start, text = prompt, whole
        elif self.options.reasoning == "keep":
            start = prompt
            opening = "" if self.opens else f"{OPEN}\n"
            text = prompt + opening + reasoning + AFTER_REASONING + whole[begin:]
        elif follows:
            raise DataError(
                "the chat template drops the answer's reasoning; set model.reasoning to keep (learn it) or "
                "empty (leave it out)"
            )
        else:
            raise DataError(
                "the chat template does not write the answer after its own prompt; set model.reasoning to keep or empty"
            )
        end += len(text) - len(whole)
        turn = Turn(len(start), self._end(text, end), _blank(message), bool(self.shape.close))
        if not _has_calls(message, text[turn.start : turn.end]):
            raise DataError("the chat template drops the answer's tool calls; set model.chat_template")
        return text, [turn]

    def _earlier_turn(self, messages: Messages, index: int, text: str, place: Place, tools: Sequence[Any]) -> Turn:
        """A turn that others follow. It can be learned if its own generation prompt comes before it."""
        begin, end = place
        message, header = messages[index], self.shape.header
        lead = next((lead for lead in (self.shape.lead, "") if text.endswith(header + lead, 0, begin)), None)
        if lead is not None and self.options.reasoning != "empty":
            start = begin - len(lead)
        else:
            prompt = self.template.render(messages[:index], True, tools)
            prompt = self._answering(prompt) if self.options.reasoning == "empty" else prompt
            if not text.startswith(prompt) or len(prompt) > begin:
                return Turn(begin, begin, UNPROMPTED)
            start = len(prompt)
        if str(message.get("reasoning_content", "")).strip() not in text[start:begin]:
            return Turn(begin, begin, UNPROMPTED)
        found = self._end(text, end)
        problem = _blank(message) if _has_calls(message, text[start:found]) else DROPPED
        return Turn(start, found, problem, found > end or self._is_ended(text, end))

    def _end(self, text: str, place: int) -> int:
        """Where the end of turn after an answer ends."""
        close = self.shape.close
        if close and text.startswith(close, place):
            return place + len(close)
        if self._closes:
            return self._close(text, place, last=False)
        if self._is_ended(text, place):  # such as by a token for calls
            return place
        marker = self._marker.match(text, place)  # of the next role
        return marker.end() if marker else place

    def _is_ended(self, text: str, place: int) -> bool:
        """Whether a special token comes right before a place."""
        before = text[max(0, place - LONGEST) : place]
        return any(match.end() == len(before) for match in self.template.special.finditer(before))

    @cached_property
    def _closes(self) -> bool:
        """Whether the template writes the end of turn behind every turn, not only behind the last one."""
        turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}] * 2
        try:
            return bool(self.shape.close) and self.template.render(turns, False).count(ANSWER + self.shape.close) == 2
        except DataError:  # one turn only
            return bool(self.shape.close)

    @cached_property
    def _marker(self) -> re.Pattern[str]:
        """Matches a special token behind white space."""
        return re.compile(rf"\s*(?:{self.template.special.pattern})")

    # Where the assistant's words are

    def _located(
        self, messages: list[dict[str, Any]], own: Sequence[int], whole: str, last_prompt: str, tools: Sequence[Any]
    ) -> tuple[list[dict[str, Any]], list[Place | None]]:
        """The messages, and where the words of the assistant's turns are; None for calls that no end of turn ends.

        If the template moves reasoning out of the content, it is moved first.
        """
        try:
            return messages, self._places(messages, own, whole, last_prompt, tools)
        except DataError:
            split = [dict(self._split(message)) for message in messages]
            if split != messages and self.template.render(split, False, tools) == whole:
                return split, self._places(split, own, whole, last_prompt, tools)
            if len(own) > 1 or not (place := self._reasoned_place(split[own[0]], whole, last_prompt)):
                raise
            return messages, [place]

    def _places(
        self, messages: Messages, own: Sequence[int], whole: str, last_prompt: str, tools: Sequence[Any]
    ) -> list[Place | None]:
        if len(own) == 1 and (place := self._usual_place(messages[own[0]], whole, last_prompt)):
            return [place]
        named = [index for index in own if messages[index].get("content") or not messages[index].get("tool_calls")]
        marked = [dict(message) for message in messages]
        for index in named:
            marked[index]["content"] = f"{SENTINEL}{index}{SENTINEL}"
        literals = re.split(f"{SENTINEL}(\\d+){SENTINEL}", self.template.render(marked, False, tools))
        if list(map(int, literals[1::2])) != named:
            raise DataError(CHANGED)
        found = dict(zip(named, self._between(messages, literals, whole), strict=True))
        places = [found.get(index) or self._call_place(messages, index, whole, tools) for index in own]
        if self._closes:
            return places
        return [
            (place[0], self._calls_end(messages, index, whole, tools) or place[1]) if place else None
            for index, place in zip(own, places, strict=True)
        ]

    def _usual_place(self, message: Mapping[str, Any], whole: str, prompt: str) -> Place | None:
        """The place in a text that is the prompt, the words, and what the template writes around them."""
        end = len(whole) - len(self.shape.close) - len(self.shape.tail)
        begin = len(prompt) + len(self.shape.lead)
        if message.get("tool_calls") or not whole.endswith(self.shape.close + self.shape.tail):
            return None
        if not message["content"].strip() and whole.startswith(prompt):
            return max(end, len(prompt)), max(end, len(prompt))
        if whole[:begin] != prompt + self.shape.lead or whole[begin:end] not in _variants(message["content"]):
            return None
        return begin, end

    def _reasoned_place(self, message: Mapping[str, Any], whole: str, prompt: str) -> Place | None:
        """The place of the words after reasoning that the template spaces in its own way."""
        end = len(whole) - len(self.shape.close) - len(self.shape.tail)
        reasoning, words = str(message.get("reasoning_content", "")).strip(), message["content"].strip()
        written = whole[len(prompt) : end]
        if not reasoning or not whole.startswith(prompt) or not whole.endswith(self.shape.close + self.shape.tail):
            return None
        return (end - len(words), end) if reasoning in written and written.endswith(words) else None

    def _between(self, messages: Messages, literals: Sequence[str], whole: str) -> list[Place]:
        """Places of the words between the texts that the template writes itself."""
        if not whole.startswith(literals[0]):
            raise DataError(CHANGED)
        places, place = [], len(literals[0])
        for index, after in zip(literals[1::2], literals[2::2], strict=True):
            words = _variants(messages[int(index)].get("content", ""))
            found = next((word for word in words if whole.startswith(word + after, place)), None)
            if found is None:
                raise DataError(CHANGED)
            places.append((place, place + len(found)))
            place += len(found) + len(after)
        if place != len(whole):
            raise DataError(CHANGED)
        return places

    def _call_place(self, messages: Messages, index: int, whole: str, tools: Sequence[Any]) -> Place | None:
        """The place of a turn that only calls tools: all that the template writes before the end of turn."""
        start = common_length(whole, self.template.render(messages[:index], True, tools))
        if not self._closes and (end := self._calls_end(messages, index, whole, tools)):
            return start, end
        close = self.template.added.search(self.shape.close)
        ends = [whole.find(end, start) for end in {*self.ends, *([close[0]] if close else [])}]
        end = min((end for end in ends if end >= 0), default=-1)
        return (start, end) if end >= 0 else None

    def _calls_end(self, messages: Messages, index: int, whole: str, tools: Sequence[Any]) -> int:
        """Where the calls of a turn end that has no end of its own; 0 if it has no calls, or is not just appended."""
        if not messages[index].get("tool_calls"):
            return 0
        alone = self.template.render(messages[: index + 1], False, tools).rstrip().removesuffix(self.shape.close)
        return len(alone) if whole.startswith(alone) else 0


def common_length(one: str, other: str) -> int:
    """The number of characters with which both texts begin."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one.startswith(other[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low


def _variants(content: str) -> list[str]:
    """The words as templates write them: unchanged, or without white space around them."""
    return list(dict.fromkeys([content, content.strip(), content.lstrip(), content.rstrip(), content.strip("\n")]))


def _has_calls(message: Mapping[str, Any], text: str) -> bool:
    """Whether a text has the names of all functions that a message calls."""
    return has_names(text, message.get("tool_calls") or ())


def has_names(text: str, functions: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a text has the names of all functions, given as schemas or calls."""
    return all(str(function.get("function", function).get("name", "")) in text for function in functions)


def _blank(message: Mapping[str, Any]) -> str:
    return "" if str(message.get("content", "")).strip() or message.get("tool_calls") else BLANK

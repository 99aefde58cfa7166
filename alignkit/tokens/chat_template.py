"""Renders conversations with the model's chat template, which is a program that others wrote.

It gets a fixed date and a limit on time and length. Control tokens that someone typed into a message stay text: a
`BREAK` splits them in the rendered text, and tokenization removes it (`alignkit.tokens.text_tokens`).
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

    template_kwargs: arguments of the template. reasoning: see `alignkit.tokens.chat`. system_messages: "merge" puts
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

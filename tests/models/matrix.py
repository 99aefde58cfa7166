"""What alignkit makes of a family's conversation, judged by what plain transformers makes of it.

The judge knows nothing of the encoder: it renders and tokenizes with `apply_chat_template`. Where
exactly masks begin and end is in tests/net, for every family, and in tests/tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, tzinfo
from functools import cached_property
from typing import Any
from unittest.mock import patch

import families
from families import Family

from alignkit.data.group import Group, Response
from alignkit.errors import AlignkitError
from alignkit.tokens import template as chat_template
from alignkit.tokens.encoder import Encoded, Encoder

MAX_LENGTH = 100_000


class _Today(datetime):
    """A clock that shows the day that alignkit gives to templates."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.combine(chat_template.TODAY, time(), tz)


def squeezed(text: str) -> str:
    """The text without white space: tokenizers and control tokens add and swallow some."""
    return re.sub(r"\s+", "", text)


@dataclass(frozen=True)
class Judge:
    """A conversation as plain transformers sees it, up to its last answer. rendered: what
    `apply_chat_template` gave.
    """

    family: Family
    kind: str
    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    rendered: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> Any:
        return self.family.tokenizer(self.kind)

    @cached_property
    def typed(self) -> str:
        """A control token of the family, which users and assistants type in some conversations."""
        return self.family.ends[0] if self.family.ends else self.family.eos

    @cached_property
    def messages(self) -> list[dict[str, Any]]:
        found = families.conversation(self.name, self.typed)
        while found[-1]["role"] != "assistant":
            found.pop()
        return found

    @property
    def types_control_tokens(self) -> bool:
        return self.name.startswith("control tokens")

    @property
    def tools(self) -> tuple[dict[str, Any], ...]:
        return families.TOOLS if self.name == "tools" else ()

    @cached_property
    def answers(self) -> list[int]:
        """Indices of the assistant's turns."""
        return [n for n, message in enumerate(self.messages) if message["role"] == "assistant"]

    @patch("transformers.utils.chat_template_utils.datetime", _Today)
    def _applied(self, until: int | None, tokenize: bool, typed: str | None = None) -> Any:
        if (until, tokenize, typed) not in self.rendered:
            key = self.family.reasoning_key
            said = families.conversation(self.name, typed or self.typed)[: len(self.messages)]
            renamed = [
                {
                    (key if name == "reasoning_content" else name): value
                    for name, value in one.items()
                }
                for one in said[:until]
            ]
            self.rendered[until, tokenize, typed] = self.tokenizer.apply_chat_template(
                renamed,
                tokenize=tokenize,
                return_dict=False,
                add_generation_prompt=until is not None,
                tools=list(self.tools) or None,
                **self.kwargs,
            )
        return self.rendered[until, tokenize, typed]

    def text(self, until: int | None = None) -> str:
        """The rendered messages before `until` with the start of an answer, or all."""
        found: str = self._applied(until, tokenize=False)
        return found

    def ids(self, until: int | None = None) -> list[int]:
        """The same in tokens, as transformers makes them."""
        found: list[int] = self._applied(until, tokenize=True)
        return found

    def special(self, ids: Sequence[int]) -> Counter[int]:
        """How often each added token occurs."""
        known = set(self.tokenizer.get_added_vocab().values())
        return Counter(token for token in ids if token in known)

    @property
    def templates_own(self) -> Counter[int]:
        """The added tokens that are not typed."""
        text = self._applied(None, False, "x" * len(self.typed))
        return self.special(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def words(self, turn: int) -> list[str]:
        """What a template must write of a turn."""
        message = self.messages[turn]
        reasoning, _, content = message["content"].rpartition("</think>")
        words = [content, reasoning.rpartition("<think>")[2], message.get("reasoning_content", "")]
        words += [call["function"]["name"] for call in message.get("tool_calls", ())]
        return [squeezed(text) for text in words if text.strip()]

    def follows(self, turn: int) -> bool:
        """Whether a turn follows its own generation prompt, with all its words. A call has an end
        only where turns have one.
        """
        if self.messages[turn].get("tool_calls") and not self.family.ends:
            return False
        try:
            prompt, whole = self.text(turn), self.text()
        except Exception:  # whatever a template raises
            return False
        rest = squeezed(whole[len(prompt) :])
        return whole.startswith(prompt) and all(words in rest for words in self.words(turn))

    def plain(self, ids: Sequence[int]) -> str:
        return squeezed(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )


def group(judge: Judge) -> Group:
    """The conversation as the formats read it: a single answer is text, several turns are
    messages.
    """
    first, *_ = judge.answers
    prompt, rest = judge.messages[:first], judge.messages[first:]
    rest += families.conversation(judge.name, judge.typed)[len(judge.messages) :]
    simple = len(rest) == 1 and rest[0].keys() == {"role", "content"}
    response = Response(text=rest[0]["content"]) if simple else Response(messages=tuple(rest))  # type: ignore[arg-type]
    return Group(tuple(prompt), (response,), id=judge.name, tools=judge.tools)  # type: ignore[arg-type]


def wrong(judge: Judge, encoder: Encoder, turns: str = "all", scoring: bool = False) -> str:
    """What is wrong with what the encoder makes of the conversation; nothing if it is refused with
    reason.
    """
    try:
        found = encoder.encode(group(judge), MAX_LENGTH, turns=turns, scoring=scoring)
    except AlignkitError as error:
        needless = judge.follows(judge.answers[-1])
        return f"refused without need: {error}" if needless else ""
    assert found is not None
    return _tokens(judge, found, scoring) or ("" if scoring else _mask(judge, found, turns))


def _tokens(judge: Judge, found: Encoded, scoring: bool) -> str:
    """The tokens are those of transformers. Where it joins prompt and answer in a token, or tokens
    are typed, they have its text.
    """
    first, tokens = judge.answers[0], [*found.prompt, *found.rows[0].tokens]
    ended = bool(judge.family.ends)
    if not ended and not scoring:
        assert tokens.pop() in encoder_ends(judge)  # as in sampling
    text, read = squeezed(judge.text()), judge.plain(tokens)
    rest = text[len(read) :]
    if not text.startswith(read) or any(words in rest for words in judge.words(judge.answers[-1])):
        return f"text {read[-80:]!r}, not {text[-80:]!r}"
    if ended and not scoring and not read.endswith(tuple(map(squeezed, judge.family.ends))):
        return f"no end of turn: {read[-40:]!r}"
    if judge.types_control_tokens:
        more = judge.special(tokens) - judge.templates_own
        return (
            f"typed text became {judge.tokenizer.convert_ids_to_tokens(list(more))}" if more else ""
        )
    whole, prompt = judge.ids(), judge.ids(first)
    joined = whole[: len(prompt)] != prompt or not ended
    if tokens != whole[: len(tokens)] and not joined:
        return "other tokens than transformers"
    if scoring and len(tokens) != len(whole) and not joined:
        return "not all tokens are scored"
    same = list(found.prompt) == prompt
    return "another prompt" if judge.follows(first) and not same else ""


def encoder_ends(judge: Judge) -> set[int]:
    """What ends a response where the template writes no end: EOS, or the next role's marker."""
    markers = judge.tokenizer.convert_tokens_to_ids(list(judge.family.control))
    return {judge.tokenizer.eos_token_id, *markers}


def _mask(judge: Judge, found: Encoded, turns: str) -> str:
    """The words of the turns that follow their prompts count, with an end each, and nobody else's
    words do.
    """
    row = found.rows[0]
    kept = [token for token, counts in zip(row.tokens, row.mask, strict=True) if counts]
    counted, last = judge.plain(kept), judge.answers[-1]
    asked = judge.answers if turns == "all" else [last]
    must = [turn for turn in asked if judge.follows(turn)]
    missing = [words for turn in must for words in judge.words(turn) if words not in counted]
    ends = sum(counted.count(squeezed(end)) for end in judge.family.ends)
    if missing or (judge.family.ends and ends < len(must)):
        return f"not counted: {missing}, {ends} of {len(must)} ends"
    said = {words for turn in asked for words in judge.words(turn)}
    others = {squeezed(m["content"]) for n, m in enumerate(judge.messages) if n not in asked}
    extra = [text for text in others - said if len(text) > 5 and text in counted]
    return f"counted {extra}" if extra else ""

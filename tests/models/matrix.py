"""What alignkit makes of a family's conversation, judged by what plain transformers makes of it.

The judge knows nothing of the encoder. It renders and tokenizes with `apply_chat_template`, finds
the assistant's turns by the family's header and end of turn.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, tzinfo
from functools import cached_property
from itertools import groupby
from typing import Any
from unittest.mock import patch

import families
from families import Family

from alignkit.data.group import Group, Response
from alignkit.errors import AlignkitError
from alignkit.tokens import template as chat_template
from alignkit.tokens.encoder import Encoded, Encoder

MAX_LENGTH = 100_000
Span = tuple[int, int]


class _Today(datetime):
    """A clock that shows the day that alignkit gives to templates."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.combine(chat_template.TODAY, time(), tz)


on_the_same_day = patch("transformers.utils.chat_template_utils.datetime", _Today)


@dataclass(frozen=True)
class Outcome:
    """state: "same" as the template, "refused", or "wrong". why: the refusal or what is wrong."""

    state: str
    why: str = ""


class Unrenderable(Exception):
    """The template refuses a conversation, or writes it in a way that has no spans."""


@dataclass(frozen=True)
class Judge:
    """A conversation as plain transformers sees it, up to its last answer."""

    family: Family
    kind: str
    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    # May be shared by the family's tokenizers
    texts: dict[Any, str | Unrenderable] = field(default_factory=dict)
    tokens: dict[int | None, list[int]] = field(default_factory=dict)

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
        return found[: max(self._answers(found)) + 1]

    @cached_property
    def neutral(self) -> list[dict[str, Any]]:
        """The messages with ordinary letters instead of typed control tokens."""
        return families.conversation(self.name, "x" * len(self.typed))[: len(self.messages)]

    @property
    def types_control_tokens(self) -> bool:
        return self.name.startswith("control tokens")

    @property
    def tools(self) -> tuple[dict[str, Any], ...]:
        return families.TOOLS if self.name == "tools" else ()

    @staticmethod
    def _answers(messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return [index for index, message in enumerate(messages) if message["role"] == "assistant"]

    @cached_property
    def answers(self) -> list[int]:
        """Indices of the assistant's turns."""
        return self._answers(self.messages)

    def text(self, until: int | None = None, neutral: bool = False) -> str:
        """The rendered messages before `until` with the start of an answer, or all. neutral:
        without typed tokens.
        """
        key = (until, neutral and self.types_control_tokens)
        if key not in self.texts:
            self.texts[key] = self._render(*key)
        text = self.texts[key]
        if isinstance(text, Unrenderable):
            raise text
        return text

    @on_the_same_day
    def _applied(
        self, messages: Sequence[dict[str, Any]], until: int | None, tokenize: bool
    ) -> Any:
        return self.tokenizer.apply_chat_template(
            self._renamed(messages[:until]),
            tokenize=tokenize,
            return_dict=False,
            add_generation_prompt=until is not None,
            tools=list(self.tools) or None,
            **self.kwargs,
        )

    def _render(self, until: int | None, neutral: bool) -> str | Unrenderable:
        messages = self.neutral if neutral else self.messages
        try:
            text: str = self._applied(messages, until, tokenize=False)
        except Exception as error:  # whatever a template raises
            return Unrenderable(f"{type(error).__name__}: {error}")
        return text

    def _renamed(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages with reasoning under the key that the template reads."""
        key = self.family.reasoning_key
        return [
            {(key if k == "reasoning_content" else k): v for k, v in message.items()}
            for message in messages
        ]

    def ids(self, until: int | None = None) -> list[int]:
        """The same in tokens, as transformers makes them."""
        if until not in self.tokens:
            self.tokens[until] = self._applied(self.messages, until, tokenize=True)
        return self.tokens[until]

    @cached_property
    def whole(self) -> str:
        return self.text()

    @cached_property
    def spans(self) -> list[Span]:
        """Where the assistant's turns are in the text: from the generation prompt to the end of
        turn.
        """
        text = self.text(neutral=True)  # as long as the real one
        spans, place = [], 0
        for turn in self.answers:
            start = self._start(turn, text, place)
            said = start
            for words in self._words(self.neutral[turn]):
                said = max(said, text.find(words, start) + len(words))
            content = self.neutral[turn]["content"]
            said = (
                max(said, text.find(content, start) + len(content))
                if content in text[start:]
                else said
            )
            ends = [
                text.find(end, said) + len(end) for end in self.family.ends if end in text[said:]
            ]
            if not self.family.ends:
                ends = [
                    len(text) - len(self.family.after)
                    if turn == self.answers[-1]
                    else self._marked(turn, text, said)
                ]
            place = min(ends, default=len(text))
            spans.append((start, place))
        return spans

    def _marked(self, turn: int, text: str, said: int) -> int:
        """The end of the next role's marker behind a turn, which ends it; `said` if there is
        none.
        """
        if not self.family.control:
            return said
        marker = re.compile("|".join(map(re.escape, self.family.control)))
        # Of a call only the name is known, which is not its end.
        found = (
            marker.search(text, said)
            if self.messages[turn].get("tool_calls")
            else marker.match(text, said)
        )
        return found.end() if found else said

    def _start(self, turn: int, text: str, place: int) -> int:
        """The end of a turn's generation prompt, or of the next header if the text does not begin
        with that prompt.
        """
        prompt = self.text(turn, neutral=True)
        if text.startswith(prompt) and len(prompt) >= place:
            return len(prompt)
        header = text.find(self.family.header, place)
        if header < 0:
            raise Unrenderable(f"the header of message {turn} is not in the text")
        start = header + len(self.family.header)
        more = self.after_header(turn)
        return start + len(more) if text.startswith(more, start) else start

    def after_header(self, turn: int) -> str:
        """What a turn's generation prompt writes after the header, for example the start of a
        reasoning block.
        """
        prompt = self.text(turn, neutral=True)
        return prompt[prompt.rfind(self.family.header) + len(self.family.header) :]

    def counts(self, number: int) -> bool | None:
        """Whether a turn can be learned; None if both answers are right.

        It cannot if the template drops some of its words, or does not write its generation prompt
        before it. Both are right if its generation prompt is there, but the template writes earlier
        messages differently.
        """
        turn, (start, end) = self.answers[number], self.spans[number]
        if not self.family.ends and self.messages[turn].get("tool_calls"):
            return None  # nothing says where a call ends
        if not all(words in self.whole[start:end] for words in self._words(self.messages[turn])):
            return False
        if self.whole.startswith(self.text(turn)):
            return True
        prompt_end = self.family.header + self.after_header(turn)
        return None if self.text(neutral=True)[:start].endswith(prompt_end) else False

    @staticmethod
    def _words(message: Mapping[str, Any]) -> list[str]:
        """What a template must write of a turn."""
        reasoning, closed, content = message["content"].rpartition("</think>")
        words = [content.strip(), message.get("reasoning_content", "")]
        words += [reasoning.split("<think>")[-1].strip()] if closed else []
        return words + [call["function"]["name"] for call in message.get("tool_calls", ())]

    @cached_property
    def offsets(self) -> list[Span]:
        found = self.tokenizer(self.whole, add_special_tokens=False, return_offsets_mapping=True)
        assert found["input_ids"] == self.ids()
        return [tuple(pair) for pair in found["offset_mapping"]]

    @cached_property
    def merges(self) -> bool:
        """Whether a token reaches from the template's text into an answer, or prompt and answer do
        not add up.
        """
        prompt = self.ids(self.answers[0])
        edges = [start for start, _ in self.spans] + (
            [] if self.family.ends else [end for _, end in self.spans]
        )
        reach = any(a < edge < b for edge in edges for a, b in self.offsets)
        return reach or self.ids()[: len(prompt)] != prompt

    def wanted(self, scoring: bool) -> list[int]:
        """The tokens to the last end of turn, or for scoring all. Without an end of turn, EOS ends
        a response.
        """
        ids, end = self.ids(), self.spans[-1][1]
        if scoring:
            return ids
        length = sum(a < end for a, _ in self.offsets)
        return ids[:length] + ([] if self.family.ends else [self.tokenizer.eos_token_id])

    def mask(self, turns: str = "all") -> list[bool]:
        """Whether each of the wanted tokens is the assistant's, in turns that can be learned."""
        last = len(self.answers) - 1
        asked = range(last + 1) if turns == "all" else [last]
        spans = [self.spans[number] for number in asked if self.counts(number)]
        length = len(self.wanted(scoring=False))
        found = [any(a < end and b > start for start, end in spans) for a, b in self.offsets][
            :length
        ]
        if not self.family.ends:
            found[length - 1 :] = [True]  # EOS
        begin = len(self.ids(self.answers[0]))
        # A control token of the prompt may swallow the answer's first space
        found[:begin] = [False] * begin
        return found

    def plain(self, ids: Sequence[int]) -> str:
        """The decoded text, as `spaced` leaves it."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return self.spaced(text)

    def spaced(self, text: str) -> str:
        """The text without the spaces that the tokenizer adds and removes."""
        if self.family.strips:
            text = re.sub(f"({'|'.join(map(re.escape, self.family.control))})\\s+", r"\1", text)
        return (
            text
            if self.kind in ("bytes", "bytes_bos", "gpt2", "spm_bare")
            else text.replace(" ", "")
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


def modes(judge: Judge, own: bool) -> list[tuple[str, bool]]:
    """Pairs (turns, scoring) to try. own: with the family's own tokenizer."""
    several = len(judge.answers) > 1
    return [("all", False)] + [("last", False)] * (several and own) + [("all", True)] * own


def follows(judge: Judge) -> bool:
    """Whether the answer follows its own generation prompt, in characters and in tokens."""
    try:
        return bool(judge.counts(0)) and not judge.merges
    except Unrenderable:
        return False


def outcome(judge: Judge, encoder: Encoder, turns: str = "all", scoring: bool = False) -> Outcome:
    """What the encoder makes of the conversation, judged."""
    last = len(judge.answers) - 1
    try:
        counts: bool | None = judge.counts(last)
        problem = (
            "" if counts else "the template does not write the last answer after its own prompt"
        )
    except Unrenderable as error:
        counts, problem = False, str(error)
    try:
        found = encoder.encode(group(judge), MAX_LENGTH, turns=turns, scoring=scoring)
    except AlignkitError as error:
        # A refusal is wrong if the answer begins with its generation prompt and the template keeps
        # every word.
        return (
            Outcome("wrong", f"refused without need: {error}")
            if counts
            else Outcome("refused", str(error))
        )
    if found is None:
        return Outcome("wrong", "dropped without a word")
    if counts is False:
        return Outcome("wrong", f"encoded, but {problem}")
    complaint = _complaint(judge, found, turns, scoring)
    return Outcome("wrong", complaint) if complaint else Outcome("same")


def _complaint(judge: Judge, found: Encoded, turns: str, scoring: bool) -> str:
    row = found.rows[0]
    tokens, mask = [*found.prompt, *row.tokens], [*([False] * len(found.prompt)), *row.mask]
    text = judge.whole if scoring else judge.whole[: judge.spans[-1][1]]
    if not judge.family.ends and not scoring:
        text += judge.tokenizer.eos_token
    if judge.types_control_tokens:
        complaint = _typed(judge, tokens)
    elif judge.merges:  # the prompt's tokens are kept, and the rest is tokenized after them
        complaint = ""
    else:
        complaint = (
            ""
            if tokens == (wanted := judge.wanted(scoring))
            else _differ(judge, "tokens", tokens, wanted)
        )
    complaint = complaint or _prompt(judge, found.prompt)
    if not complaint and (read := judge.plain(tokens)) != judge.spaced(text):
        complaint = f"text {read[-80:]!r}, not {text[-80:]!r}"
    return complaint or ("" if scoring else _mask(judge, tokens, mask, turns))


def _prompt(judge: Judge, prompt: Sequence[int]) -> str:
    """The prompt is the template's, unless the first answer cannot be learned."""
    text = judge.text(judge.answers[0])
    if not judge.counts(0):
        return ""
    if judge.types_control_tokens:
        return (
            ""
            if judge.plain(prompt) == judge.spaced(text)
            else f"prompt {judge.plain(prompt)!r}, not {text!r}"
        )
    wanted = judge.ids(judge.answers[0])
    return "" if list(prompt) == wanted else _differ(judge, "prompt", prompt, wanted)


def _differ(judge: Judge, what: str, found: Sequence[int], wanted: Sequence[int]) -> str:
    pairs = zip(found, wanted, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(wanted)))
    near = slice(max(0, place - 3), place + 6)
    ours, theirs = (
        judge.tokenizer.convert_ids_to_tokens(list(ids[near])) for ids in (found, wanted)
    )
    return f"{what} from {place}: {ours}, transformers {theirs}"


def _typed(judge: Judge, tokens: Sequence[int]) -> str:
    """Only the template writes special tokens."""
    special = set(judge.tokenizer.get_added_vocab().values())
    neutral = judge.tokenizer(judge.text(neutral=True), add_special_tokens=False)["input_ids"]
    found, wanted = (Counter(t for t in ids if t in special) for ids in (tokens, neutral))
    more = found - wanted
    more.pop(judge.tokenizer.eos_token_id if not judge.family.ends else None, None)
    return f"typed text became {judge.tokenizer.convert_ids_to_tokens(list(more))}" if more else ""


def _joined(judge: Judge, said: Mapping[int, str], numbers: Sequence[int]) -> list[str]:
    """The texts of turns; one text where the marker that ends a turn begins the next."""
    texts: list[str] = []
    for place, number in enumerate(numbers):
        if place and judge.spans[numbers[place - 1]][1] == judge.spans[number][0]:
            texts[-1] += said[number]
        else:
            texts.append(said[number])
    return texts


def _mask(judge: Judge, tokens: Sequence[int], mask: Sequence[bool], turns: str) -> str:
    """The counted tokens are those of the turns that can be learned: as text, and where tokens are
    known, as tokens.
    """
    last = len(judge.answers) - 1
    asked = range(last + 1) if turns == "all" else [last]
    pairs = groupby(zip(mask, tokens, strict=True), key=lambda pair: pair[0])
    runs = [judge.plain([token for _, token in run]) for counts, run in pairs if counts]
    said = {number: judge.spaced(judge.whole[slice(*judge.spans[number])]) for number in asked}
    if not judge.family.ends:
        said[last] += judge.tokenizer.eos_token
    choices = {number: judge.counts(number) for number in asked}
    must = _joined(judge, said, [number for number in asked if choices[number]])
    may = _joined(judge, said, [number for number in asked if choices[number] is not False])
    if judge.merges:  # a token may hold white space of the template and of the answer
        runs, must, may = ([run.strip() for run in texts] for texts in (runs, must, may))
    if runs not in (must, may):
        return f"counted {runs}, not {may}"
    if judge.merges or judge.types_control_tokens or must != may:
        return ""
    wanted = judge.mask(turns)
    odd = [index for index, (a, b) in enumerate(zip(mask, wanted, strict=True)) if a != b]
    names = judge.tokenizer.convert_ids_to_tokens([tokens[index] for index in odd])
    return f"the mask is wrong at {odd[:8]}: {names[:8]}" if odd else ""

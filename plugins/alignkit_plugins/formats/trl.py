"""TRL's data set types: preference, prompt-only and prompt-completion, as text or as messages.

A preference without a prompt must hold conversations: the turns that both share are the prompt. Two
texts without a prompt are refused: letters that both answers begin with are not the user's words.

Also Anthropic's HH-RLHF transcripts (Bai et al. 2022, arXiv:2204.05862): a row is {chosen,
rejected}, or one transcript, as a string or as {text: ...}, which is a demonstration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from alignkit import BadRow, Group, Message, Pair
from alignkit.contract.formats import columns_of
from alignkit_plugins.formats.columns import (
    LABEL_COLUMNS,
    NUMBERED,
    ColumnFormat,
    check_one,
    own_layout,
    rated_alike,
    shared_turns,
    with_text,
)
from alignkit_plugins.formats.messages import COMPARED
from alignkit_plugins.formats.turns import first_of, only_of

ANSWERS = (*COMPARED, "completion", "response", "responses", "output", "messages")
COMPLETIONS = ("completion", "response")


class Preference(ColumnFormat):
    """A prompt with a chosen and a rejected answer, and optionally the margin between them."""

    example = '{"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}'
    wants = (
        "chosen and rejected (texts with prompt, or messages); optional margin, p, system, tools"
    )

    @classmethod
    def matches(cls, row: Any) -> bool:
        if not cls.has(row, "chosen", "rejected"):
            return False
        if isinstance(row["chosen"], list):  # several texts are RewardBench 2's
            return not any(isinstance(each, str) for each in row["chosen"])
        return cls.has(row, "prompt")

    def read(self, row: Any) -> Group:
        row = columns_of(row)
        chosen: Sequence[Message] = self.column(row, "chosen", user=False)
        rejected: Sequence[Message] = self.column(row, "rejected", user=False)
        if row.get("prompt"):
            prompt: Sequence[Message] = self.column(row, "prompt")
            chosen, rejected = answer_after(prompt, chosen), answer_after(prompt, rejected)
        else:
            shared = shared_turns(chosen, rejected)
            if not shared:
                raise BadRow(
                    "there is no prompt: chosen and rejected begin with different turns, or are "
                    "single texts; name the prompt's column with `columns: {prompt: COLUMN}`"
                )
            prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if self.text(row, "input", "").strip():
            raise BadRow(
                "column 'input' would be lost next to the prompt; rename it if it means something "
                "else"
            )
        p = self.number(row, "p")
        better, worse = ("chosen", "rejected") if p is None or p >= 0.5 else ("rejected", "chosen")
        pairs = [Pair(0, 1, 1.0 if p is None else p, self.margin(row))]
        if p != 0.5 and rated_alike(row, better, worse):  # none of them is better
            pairs = []
        used = ("prompt", "chosen", "rejected", "margin", "p")
        responses = self.answer(chosen), self.answer(rejected)
        return self.group(row, used, prompt, responses, tuple(pairs))


def answer_after(prompt: Sequence[Message], turns: Sequence[Message]) -> Sequence[Message]:
    """The turns without the prompt, which many data sets repeat in both answers."""
    if len(turns) > len(prompt) and list(turns[: len(prompt)]) == list(prompt):
        return turns[len(prompt) :]
    is_opening = (
        len(turns) > 1
        and len(prompt) == 1
        and turns[0]["content"].strip() == prompt[0]["content"].strip()
    )
    return turns[1:] if is_opening else turns


class PromptOnly(ColumnFormat):
    """A prompt for the policy to answer; other columns go to the group's meta."""

    example = '{"prompt": "Hi"}'
    wants = "prompt (text or messages), and no answer; optional system, tools"

    @classmethod
    def matches(cls, row: Any) -> bool:
        if isinstance(row, str):
            return not is_transcript(row)
        if not cls.has(row, "prompt") or not cls.lacks(row, *ANSWERS) or "alignkit" in row:
            return False
        if isinstance(row["prompt"], Mapping) and "replies" in row["prompt"]:
            return False
        return not any(map(NUMBERED.fullmatch, row)) and own_layout([row]) is None

    def read(self, row: Any) -> Group:
        row = with_text(row, "prompt")
        return self.group(row, ["prompt"], self.column(row, "prompt"))


class PromptCompletion(ColumnFormat):
    """A prompt and its answer; `label` says whether the answer is good."""

    example = '{"prompt": "Hi", "completion": "Hello!"}'
    wants = (
        "prompt and completion or response (texts or messages); optional label (true or false) "
        "or score (a number)"
    )

    @classmethod
    def matches(cls, row: Any) -> bool:
        answered = cls.has(row, "prompt") and first_of(row, COMPLETIONS)
        others = ("chosen", "rejected", "rejected_response", "instruction", "messages")
        return bool(answered) and cls.lacks(row, *others)

    def read(self, row: Any) -> Group:
        name = only_of(row, COMPLETIONS) or COMPLETIONS[0]
        check_one(columns_of(row), name, "{{ prompt }}")
        prompt = self.column(row, "prompt")
        turns = answer_after(prompt, self.column(row, name, user=False))
        scores, label = self.scores(self.number(row, "score")), self.label(row)
        if label is None:
            response = self.answer(turns, scores=scores)
        else:
            prompt, response = self.demonstration((*prompt, *turns), label=label, scores=scores)
        return self.group(row, ("prompt", name, "score", *LABEL_COLUMNS), prompt, [response])


# Transcripts


# A speaker's tag counts at the start of a paragraph only: people also type `Human:` in the middle
# of a turn.
TAG = re.compile(r"(?:^|\n\n)(Human|Assistant):")
ROLE = {"Human": "user", "Assistant": "assistant"}


def transcript_turns(transcript: Any, name: str) -> list[Message]:
    """The turns of a transcript, one per tag."""
    if not is_transcript(transcript):
        raise BadRow(f"column '{name}' must be text that starts with 'Human:' or 'Assistant:'")
    _, *parts = TAG.split(transcript.lstrip())
    tagged = zip(parts[::2], parts[1::2], strict=True)
    return [Message(role=ROLE[speaker], content=words.strip()) for speaker, words in tagged]


def merged(tagged: list[Message]) -> list[Message]:
    """Join consecutive turns of the same speaker."""
    joined: list[Message] = []
    for role, turns in groupby(tagged, key=itemgetter("role")):
        words = filter(None, map(itemgetter("content"), turns))
        joined.append(Message(role=role, content="\n\n".join(words)))
    return joined


def is_transcript(value: Any) -> bool:
    """Whether a value is text that starts with a speaker's tag."""
    return isinstance(value, str) and TAG.match(value.lstrip()) is not None


class HHRLHF(ColumnFormat):
    """Comparisons and demonstrations as `\\n\\nHuman: ...\\n\\nAssistant: ...` transcripts."""

    example = r'{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: No."}'
    wants = "chosen and rejected as 'Human: ... Assistant: ...' transcripts; or one as text"

    @classmethod
    def matches(cls, row: Any) -> bool:
        if isinstance(row, str):
            return is_transcript(row)
        has_pair = cls.has(row, "chosen", "rejected") and cls.lacks(row, "prompt")
        return has_pair and is_transcript(row["chosen"])

    def read(self, row: Any) -> Group:
        row = with_text(row)
        if "chosen" not in row:
            turns = transcript_turns(row.get("text"), "text")
            prompt, response = self.demonstration(merged(turns))
            return Group(prompt, (response,), meta=self.rest(row, "text"))
        sides = []
        for name in ("chosen", "rejected"):
            turns = transcript_turns(self.text(row, name), name)
            if turns[-1]["role"] != "assistant":
                raise BadRow(f"column '{name}' does not end with an assistant turn")
            sides.append(turns)
        chosen, rejected = sides
        # Compare before merging, or a stray turn on one side would hide in its answer.
        if chosen[:-1] != rejected[:-1]:
            raise BadRow("chosen and rejected differ before their last turn")
        chosen, rejected = merged(chosen), merged(rejected)
        responses = self.answer(chosen[-1:]), self.answer(rejected[-1:])
        meta = self.rest(row, "chosen", "rejected")
        pairs = () if rated_alike(row, "chosen", "rejected") else (Pair(0, 1),)
        return Group(tuple(chosen[:-1]), responses, pairs, meta=meta)

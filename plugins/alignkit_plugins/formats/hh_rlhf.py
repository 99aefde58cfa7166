"""Anthropic's HH-RLHF transcripts (Bai et al. 2022, arXiv:2204.05862), as pairs or demonstrations.

A row is {chosen, rejected}; or {text: [transcript, transcript], score: [number, number]}, in which
the higher score wins, the difference is the margin, and a tie makes no pair; or one transcript, as
a string or as {text: ...}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import BadRow, Group, Message, Pair, Response
from alignkit.formats import columns_of
from alignkit_plugins.formats.columns import ColumnFormat

# A speaker's tag counts at the start of a paragraph only: people also type `Human:` in the middle
# of a turn.
TAG = re.compile(r"(?:^|\n\n)(?:## )?(Human|Assistant):")
ROLE = {"Human": "user", "Assistant": "assistant"}


def turns(transcript: Any, name: str) -> list[Message]:
    """The turns of a transcript, one per tag."""
    if not is_transcript(transcript):
        raise BadRow(f"column '{name}' must be text that starts with 'Human:' or 'Assistant:'")
    _, *parts = TAG.split(transcript.lstrip())
    tagged = zip(parts[::2], parts[1::2], strict=True)
    return [Message(role=ROLE[speaker], content=words.strip()) for speaker, words in tagged]


def merged(tagged: list[Message]) -> list[Message]:
    """Join consecutive turns of the same speaker."""
    joined: list[Message] = []
    for turn in tagged:
        content = turn["content"]
        if joined and joined[-1]["role"] == turn["role"]:
            content = f"{joined.pop()['content']}\n\n{content}".strip()
        joined.append(Message(role=turn["role"], content=content))
    return joined


def is_transcript(value: Any) -> bool:
    """Whether a value is text that starts with a speaker's tag."""
    return isinstance(value, str) and TAG.match(value.lstrip()) is not None


class HHRLHF(ColumnFormat):
    """Comparisons and demonstrations as `\\n\\nHuman: ...\\n\\nAssistant: ...` transcripts."""

    example = r'{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: No."}'
    wants = "chosen and rejected as 'Human: ... Assistant: ...' transcripts; or text: [a, b] with score: [x, y]"

    @classmethod
    def matches(cls, row: Any) -> bool:
        if isinstance(row, str):
            return is_transcript(row)
        if cls.has(row, "chosen", "rejected"):
            return is_transcript(row["chosen"]) and cls.lacks(row, "prompt", "conversations")
        return (
            cls.has(row, "text", "score")
            and isinstance(row["text"], list)
            and isinstance(row["score"], list)
        )

    def read(self, row: Any) -> Group:
        row = columns_of({"text": row} if isinstance(row, str) else row)
        if "chosen" in row:
            texts = [self.text(row, "chosen"), self.text(row, "rejected")]
            return self._pair(row, texts, None)
        if isinstance(row.get("text"), str):
            prompt, response = self.demonstration(merged(turns(row["text"], "text")))
            return Group(prompt, (response,), meta=self.rest(row, "text", "score"))
        texts, scores = row.get("text"), row.get("score")
        if (
            not isinstance(texts, list)
            or not isinstance(scores, list)
            or not len(texts) == len(scores) == 2
        ):
            raise BadRow("columns 'text' and 'score' must be lists of two items each")
        first, second = (self.number({"score": score}, "score") for score in scores)
        if first is None or second is None:
            raise BadRow("a score is missing")
        return self._pair(row, texts if first >= second else texts[::-1], abs(first - second))

    def _pair(self, row: Mapping[str, Any], texts: Sequence[Any], margin: float | None) -> Group:
        """The group of a better and a worse transcript; a margin of 0 is a tie."""
        names = ("chosen", "rejected")
        chosen, rejected = map(turns, texts, names)
        for name, side in zip(names, (chosen, rejected), strict=True):
            if side[-1]["role"] != "assistant":
                raise BadRow(f"column '{name}' does not end with an assistant turn")
        # Compare before merging, or a stray turn on one side would hide in its answer.
        if chosen[:-1] != rejected[:-1]:
            raise BadRow("chosen and rejected differ before their last turn")
        chosen, rejected = merged(chosen), merged(rejected)
        responses = Response(text=chosen[-1]["content"]), Response(text=rejected[-1]["content"])
        pairs = () if margin == 0 else (Pair(0, 1, margin=margin),)
        used = names if margin is None else ("text", "score")
        return Group(tuple(chosen[:-1]), responses, pairs, meta=self.rest(row, *used))

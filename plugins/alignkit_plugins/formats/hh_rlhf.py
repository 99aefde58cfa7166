"""Anthropic's HH-RLHF transcripts (Bai et al. 2022, arXiv:2204.05862), as pairs or demonstrations.

A row is {chosen, rejected}; or {text: [transcript, transcript], score: [number, number]}, in which
the higher score wins, the difference is the margin, and a tie makes no pair; or one transcript, as
a string or as {text: ...}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from alignkit import BadRow, Group, Message, Pair, Response
from alignkit_plugins.formats.columns import ColumnFormat

# A speaker's tag counts at the start of a paragraph only: people also type `Human:` in the middle
# of a turn.
TAG = re.compile(r"(?:^|\n\n)(?:## )?(Human|Assistant):")
ROLE = {"Human": "user", "Assistant": "assistant"}


def turns(transcript: Any, name: str) -> list[Message]:
    """The turns of a transcript, one per tag."""
    if not isinstance(transcript, str):
        raise BadRow(f"column '{name}' must be a transcript, not {type(transcript).__name__}")
    before, *rest = TAG.split(transcript.lstrip())
    if before or not rest:
        raise BadRow(f"column '{name}' does not start with 'Human:' or 'Assistant:'")
    spoken = zip(rest[::2], rest[1::2], strict=True)
    return [Message(role=ROLE[speaker], content=words.strip()) for speaker, words in spoken]


def merged(tagged: list[Message]) -> list[Message]:
    """Join consecutive turns of the same speaker."""
    joined: list[Message] = []
    for turn in tagged:
        if joined and joined[-1]["role"] == turn["role"]:
            words = f"{joined[-1]['content']}\n\n{turn['content']}".strip()
            joined[-1] = Message(role=turn["role"], content=words)
        else:
            joined.append(turn)
    return joined


def is_transcript(value: Any) -> bool:
    """Whether a value is text that starts with a speaker's tag."""
    return isinstance(value, str) and TAG.match(value.lstrip()) is not None


class HHRLHF(ColumnFormat):
    """Comparisons and demonstrations as `\\n\\nHuman: ...\\n\\nAssistant: ...` transcripts."""

    example = r'{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: No."}'
    wants = (
        "chosen and rejected as 'Human: ... Assistant: ...' transcripts; or text: [a, b] with "
        "score: [x, y]"
    )

    @classmethod
    def matches(cls, row: Any) -> bool:
        if isinstance(row, str):
            return is_transcript(row)
        if not isinstance(row, Mapping):
            return False
        if cls.has(row, "chosen", "rejected"):
            return is_transcript(row["chosen"]) and cls.lacks(row, "prompt", "conversations")
        return isinstance(row.get("text"), list) and isinstance(row.get("score"), list)

    def read(self, row: Any) -> Group:
        if isinstance(row, str):
            return self._single(row, {})
        if not isinstance(row, Mapping):
            raise BadRow(f"a row must be an object or a transcript, not {type(row).__name__}")
        if "chosen" in row:
            meta = self.rest(row, "chosen", "rejected")
            return self._pair(self.text(row, "chosen"), self.text(row, "rejected"), None, meta)
        meta = self.rest(row, "text", "score")
        if isinstance(row.get("text"), str):
            return self._single(row["text"], meta)
        better, worse, margin = self._by_score(row.get("text"), row.get("score"))
        group = self._pair(better, worse, margin or None, meta)
        return group if margin else replace(group, pairs=())

    def _single(self, transcript: str, meta: dict[str, Any]) -> Group:
        prompt, response = self.demonstration(merged(turns(transcript, "text")))
        return Group(prompt, (response,), meta=meta)

    def _by_score(self, texts: Any, scores: Any) -> tuple[Any, Any, float]:
        """The better text, the worse text, and the margin, which is 0 for a tie."""
        if (
            not isinstance(texts, list)
            or not isinstance(scores, list)
            or len(texts) != 2
            or len(scores) != 2
        ):
            raise BadRow("columns 'text' and 'score' must be lists of two items each")
        first, second = (self.number({"score": score}, "score") for score in scores)
        if first is None or second is None:
            raise BadRow("a score is missing")
        better, worse = texts if first >= second else texts[::-1]
        return better, worse, abs(first - second)

    def _pair(self, better: Any, worse: Any, margin: float | None, meta: dict[str, Any]) -> Group:
        chosen, rejected = turns(better, "chosen"), turns(worse, "rejected")
        for name, side in (("chosen", chosen), ("rejected", rejected)):
            if side[-1]["role"] != "assistant":
                raise BadRow(f"column '{name}' does not end with an assistant turn")
        # Compare before merging, or a stray turn on one side would hide in its answer.
        if chosen[:-1] != rejected[:-1]:
            raise BadRow("chosen and rejected differ before their last turn")
        chosen, rejected = merged(chosen), merged(rejected)
        responses = (Response(text=chosen[-1]["content"]), Response(text=rejected[-1]["content"]))
        return Group(tuple(chosen[:-1]), responses, (Pair(0, 1, margin=margin),), meta=meta)

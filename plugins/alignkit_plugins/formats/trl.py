"""TRL's data set types: preference, prompt-only and prompt-completion, as text or as messages.

A preference without a prompt must hold conversations: the turns that both share are the prompt. Two
texts without a prompt are refused: letters that both answers begin with are not the user's words.

Also Anthropic's HH-RLHF transcripts (Bai et al. 2022, arXiv:2204.05862), as pairs or
demonstrations. A row is {chosen, rejected}; or {text: [transcript, transcript], score: [number,
number]}, in which the higher score wins, the difference is the margin, and a tie makes no pair; or
one transcript, as a string or as {text: ...}.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import BadRow, Format, Group, Message, Pair, Response
from alignkit.formats import columns_of
from alignkit_plugins.formats.columns import (
    LABEL_COLUMNS,
    ColumnFormat,
    first_of,
    shared_turns,
    with_text,
)
from alignkit_plugins.formats.messages import NAMES

ANSWERS = (
    *("chosen", "rejected", "completion", "responses", "response", "output", "messages"),
    *("chosen_messages", "chosen_response", "rejected_response"),
)
PAIRS = (
    ("chosen", "rejected"),
    ("chosen_messages", "rejected_messages"),
    ("chosen_response", "rejected_response"),
    ("response_j", "response_k"),
    ("response", "rejected_response"),
    ("completion", "rejected"),
)
# Than the last answer of `messages`, in ms-swift
OTHERS = ("rejected_response", "rejected_messages", "rejected")
PROMPTS = ("prompt", "conversations", "question", "query", "instruction", "input", "messages")
SCORES = ("score", "rating", "reward")
# One of two answers, such as `output_1`, `response b` or `model_a_completion`: `labeled_pairs`
# reads such rows.
NUMBERED = re.compile(
    r"(response|output|completion|answer|conversation)s?[ _-]?[0-9ab]$|model_[ab]_completion$"
)
# Columns with the rating of the chosen answer; those of the rejected one are called alike.
_RATING = "((avg|mean|overall)[_-])?(score|rating)"
RATED = re.compile(f"chosen[_-]{_RATING}|{_RATING}[_-]chosen")
# Columns that say which of two answers is better, and what they may say.
VERDICTS = ("label", "labels", "preference", "winner", "verdict", "better", "choice")
VERDICT = re.compile(
    r"-?\d+(\.\d+)?|(model|response|output|completion|answer)?[ _-]?[ab12]|tie.*|both.*|.*better.*"
)


def has_words(row: Any, name: str) -> bool:
    """Whether a column says something: neither null nor white space nor an empty list."""
    value = row.get(name)
    return bool(value.strip()) if isinstance(value, str) else value not in (None, [])


def with_other_answer(row: Any) -> Any:
    """The row of a conversation and of another last answer, a worse one, as `chosen` and
    `rejected`.
    """
    name, other = first_of(row, NAMES), first_of(row, OTHERS)
    if not name or not other or pair_columns(row):
        return row
    chosen = list(ColumnFormat.conversation(row[name], name))
    rejected = list(ColumnFormat.conversation(row[other], other, user=False))
    if len(rejected) == 1:
        rejected = chosen[:-1] + rejected
    others = {key: value for key, value in row.items() if key not in (name, other)}
    return {**others, "chosen": chosen, "rejected": rejected}


def pair_columns(row: Any) -> tuple[str, str] | None:
    """The columns of the better and the worse answer."""
    return next((pair for pair in PAIRS if Format.has(row, *pair)), None)


class Preference(ColumnFormat):
    """A prompt with a chosen and a rejected answer, and optionally the margin between them."""

    example = '{"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}'
    wants = (
        "chosen and rejected (texts with prompt, or messages); optional margin, p, system, tools"
    )

    @classmethod
    def matches(cls, row: Any) -> bool:
        row = with_other_answer(row)
        columns = pair_columns(row)
        if columns is None:
            return False
        chosen = row[columns[0]]
        if isinstance(chosen, list) and any(isinstance(each, str) for each in chosen):
            return False  # several texts: RewardBench 2's
        return not is_transcript(chosen) or any(has_words(row, name) for name in PROMPTS[:-1])

    def check_columns(self, row: Any, columns: Mapping[str, str]) -> None:
        """Refuse to make one column always the better one in a row that says which one is
        better.
        """
        for name in VERDICTS if {"chosen", "rejected"} <= columns.keys() else ():
            value = row.get(name)
            words = str(value).strip().lower() if isinstance(value, str | int | float) else ""
            if words and VERDICT.fullmatch(words):
                raise BadRow(
                    f"column '{name}' holds {value!r}, which seems to say which answer is better, "
                    f"but `columns` makes '{columns['chosen']}' the better one in every row; use "
                    f"the format `labeled_pairs`, or, if '{name}' means something else, rename "
                    "it, too"
                )

    def read(self, row: Any) -> Group:
        row = with_other_answer(columns_of(row))
        better, worse = pair_columns(row) or PAIRS[0]
        chosen: Sequence[Message] = self.column(row, better, user=False)
        rejected: Sequence[Message] = self.column(row, worse, user=False)
        names = [name for name in PROMPTS if has_words(row, name)]
        if names == ["messages"] and len(chosen) > 1:
            names = []
        if names:
            prompt, used = self._prompt(row, names[0])
            if (
                len(chosen) > 1
                and chosen[:1] == rejected[:1]
                and chosen[0]["role"] == "system" != prompt[0]["role"]
            ):
                prompt = (chosen[0], *prompt)
            chosen, rejected = answer_after(prompt, chosen), answer_after(prompt, rejected)
        else:
            shared, used = shared_turns(chosen, rejected), PROMPTS[:2]
            if not shared:
                raise BadRow(
                    f"there is no prompt: {better} and {worse} begin with different turns, or are "
                    f"single texts; name the prompt's column with `columns: {{prompt: COLUMN}}`"
                )
            prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        pairs = () if self._tied(row) else (self.pair(row),)
        responses = self.answer(chosen), self.answer(rejected)
        return self.group(
            row,
            (better, worse, *used, "margin", "p"),
            prompt,
            responses,
            pairs,
        )

    def _tied(self, row: Mapping[str, Any]) -> bool:
        """Whether a row's scores are equal, so that none is better. Refuses scores that contradict
        its columns.
        """
        tied = False
        for better in filter(RATED.fullmatch, map(str, row)):
            worse = better.replace("chosen", "rejected")
            try:
                good, bad = self.number(row, better), self.number(row, worse)
            except BadRow:  # words
                continue
            if good is None or bad is None:
                continue
            if math.isclose(good, bad, rel_tol=1e-9, abs_tol=1e-12):
                tied = True
            elif good < bad:
                raise BadRow(
                    f"{better} {good:g} is below {worse} {bad:g}, so the columns contradict each "
                    "other"
                )
        return tied

    def _prompt(self, row: Mapping[str, Any], name: str) -> tuple[Sequence[Message], Sequence[str]]:
        """The turns of the prompt, and the columns that they are from."""
        if name == "instruction":
            return self.joined(row, (name, "input")), (name, "input")
        if name != "input" and has_words(row, "input"):
            raise BadRow(
                f"column 'input' would be lost next to '{name}'; rename it if it means something "
                "else"
            )
        return self.column(row, name), (name,)


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
        is_tree = isinstance(row["prompt"], Mapping) and "replies" in row["prompt"]
        return not is_tree and not any(NUMBERED.match(str(name).lower()) for name in row)

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
        answered = cls.has(row, "prompt") and first_of(row, ("completion", "response"))
        return bool(answered) and cls.lacks(
            row, "chosen", "rejected", "rejected_response", "instruction", "messages"
        )

    def read(self, row: Any) -> Group:
        name = first_of(row, ("completion", "response")) or "completion"
        prompt = self.column(row, "prompt")
        turns = answer_after(prompt, self.column(row, name, user=False))
        rating = next((column for column in SCORES if row.get(column) not in (None, "")), SCORES[0])
        scores, label = self.scores(self.number(row, rating)), self.label(row)
        if label is None:
            response = self.answer(turns, scores=scores)
        else:
            prompt, response = self.demonstration((*prompt, *turns), label=label, scores=scores)
        return self.group(row, ("prompt", name, rating, *LABEL_COLUMNS), prompt, [response])


# Transcripts


# A speaker's tag counts at the start of a paragraph only: people also type `Human:` in the middle
# of a turn.
TAG = re.compile(r"(?:^|\n\n)(?:## )?(Human|Assistant):")
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
    wants = (
        "chosen and rejected as 'Human: ... Assistant: ...' transcripts; or text: [a, b] with "
        "score: [x, y]"
    )

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
        row = with_text(row)
        if "chosen" in row:
            texts = [self.text(row, "chosen"), self.text(row, "rejected")]
            return self._pair(row, texts, None)
        if isinstance(row.get("text"), str):
            prompt, response = self.demonstration(merged(transcript_turns(row["text"], "text")))
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
        chosen, rejected = map(transcript_turns, texts, names)
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

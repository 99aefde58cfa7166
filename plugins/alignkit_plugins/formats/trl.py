"""TRL's data set types: preference, prompt-only and prompt-completion, as text or as messages.

A preference without a prompt must hold conversations: the turns that both share are the prompt. Two
texts without a prompt are refused: letters that both answers begin with are not the user's words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import BadRow, Format, Group, Message, Pair
from alignkit.formats import columns_of
from alignkit_plugins.formats.columns import (
    LABEL_COLUMNS,
    SYSTEM_COLUMNS,
    ColumnFormat,
    shared_turns,
)

ANSWERS = (
    "chosen",
    "rejected",
    "completion",
    "responses",
    "response",
    "output",
    "messages",
    "chosen_messages",
    "chosen_response",
    "rejected_response",
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
PROMPTS = ("prompt", "conversations", "question", "query", "instruction", "input")
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


def is_transcript(value: Any) -> bool:
    """Whether a value is a Human/Assistant transcript, which `hh_rlhf` reads."""
    return isinstance(value, str) and value.lstrip().startswith(
        ("Human:", "Assistant:", "## Human:", "## Assistant:")
    )


def is_blank(value: Any) -> bool:
    """Whether a column says nothing: null, white space or an empty list."""
    return value is None or (not value.strip() if isinstance(value, str) else value == [])


def with_other_answer(row: Any) -> Any:
    """The row of a conversation and of another last answer, a worse one, as `chosen` and
    `rejected`.
    """
    name = next((name for name in ("messages", "conversations") if Format.has(row, name)), "")
    other = next((other for other in OTHERS if Format.has(row, other)), "")
    if not name or not other or pair_columns(row):
        return row
    turns, worse = (
        ColumnFormat.conversation(row[name], name),
        ColumnFormat.conversation(row[other], other, user=False),
    )
    chosen = [dict(turn) for turn in turns]
    rejected = [*(chosen[:-1] if len(worse) == 1 else ()), *map(dict, worse)]
    return {
        **{key: value for key, value in row.items() if key not in (name, other)},
        "chosen": chosen,
        "rejected": rejected,
    }


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
        if isinstance(row[columns[0]], list) and any(
            isinstance(each, str) for each in row[columns[0]]
        ):
            return False  # several texts: RewardBench 2's
        return not is_transcript(row[columns[0]]) or any(
            not is_blank(row.get(name)) for name in PROMPTS
        )

    def check_columns(self, row: Any, columns: Mapping[str, str]) -> None:
        """Refuse to make one column always the better one in a row with a column that says which
        one is better.
        """
        if not {"chosen", "rejected"} <= columns.keys() or not isinstance(row, Mapping):
            return
        for name in VERDICTS:
            value = row.get(name)
            said = (
                value
                if isinstance(value, str)
                else str(value)
                if isinstance(value, int | float)
                else ""
            )
            if said and VERDICT.fullmatch(said.strip().lower()):
                raise BadRow(
                    f"column '{name}' holds {value!r}, which seems to say which answer is better, "
                    f"but `columns` makes '{columns['chosen']}' the better one in every row; use "
                    f"the format `labeled_pairs`, or, if '{name}' means something else, rename "
                    "it, too"
                )

    def read(self, row: Any) -> Group:
        row = with_other_answer(columns_of(row))
        columns = pair_columns(row) or PAIRS[0]
        prompt, chosen, rejected, used = self._parts(row, *columns)
        p = self.number(row, "p")
        pairs = (
            ()
            if self._tied(row)
            else (Pair(0, 1, p=1.0 if p is None else p, margin=self.margin(row)),)
        )
        meta = self.rest(row, *columns, *used, *SYSTEM_COLUMNS, "tools", "margin", "p")
        responses = (self.answer(chosen), self.answer(rejected))
        return Group(self.opened(prompt, row), responses, pairs, meta=meta, tools=self.tools(row))

    def _tied(self, row: Mapping[str, Any]) -> bool:
        """Whether a row's scores are equal, so that none is better. Refuses scores that contradict
        its columns.
        """
        tied = False
        for better, worse in ((name, str(name).replace("chosen", "rejected")) for name in row):
            if RATED.fullmatch(str(better)):
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
                        f"{better} {good:g} is below {worse} {bad:g}, so the columns contradict "
                        "each other"
                    )
        return tied

    def _parts(
        self, row: Mapping[str, Any], better: str, worse: str
    ) -> tuple[Sequence[Message], Sequence[Message], Sequence[Message], Sequence[str]]:
        """The turns of the prompt and of the two answers, and the columns of the prompt."""
        for name in (better, worse):
            if row.get(name) is None:
                self.text(row, name)  # raises, and says whether it is absent or null
        chosen = self.conversation(row[better], better, user=False)
        rejected = self.conversation(row[worse], worse, user=False)
        named = [name for name in PROMPTS if not is_blank(row.get(name))]
        if not named and len(chosen) == 1 and not is_blank(row.get("messages")):
            named = ["messages"]
        if not named:
            return *_shared(chosen, rejected, better, worse), PROMPTS[:2]
        used = ("instruction", "input") if named[0] == "instruction" else (named[0],)
        if "input" not in used and not is_blank(row.get("input")):
            raise BadRow(
                f"column 'input' would be lost next to '{named[0]}'; leave `columns` out if the "
                "row has 'instruction', or rename it if it means something else"
            )
        prompt = self._prompt(row, used)
        if (
            len(chosen) > 1
            and chosen[:1] == rejected[:1]
            and chosen[0]["role"] == "system" != prompt[0]["role"]
        ):
            prompt = (chosen[0], *prompt)
        return prompt, _after(prompt, chosen), _after(prompt, rejected), used

    def _prompt(self, row: Mapping[str, Any], columns: Sequence[str]) -> tuple[Message, ...]:
        if len(columns) == 1:
            return self.conversation(row[columns[0]], columns[0])
        parts = [self.text(row, name, "").strip() for name in columns]
        return (Message(role="user", content="\n\n".join(part for part in parts if part)),)


def _shared(
    chosen: Sequence[Message], rejected: Sequence[Message], better: str, worse: str
) -> tuple[Sequence[Message], Sequence[Message], Sequence[Message]]:
    """The turns that two conversations share, and what follows in each."""
    if len(chosen) == 1 and len(rejected) == 1:
        raise BadRow(
            f"there is no prompt: {better} and {worse} are single texts, not conversations, so "
            "that nothing in them is the user's; name the prompt's column with `columns: "
            f"{{prompt: COLUMN}}`"
        )
    shared = shared_turns(chosen, rejected)
    if not shared:
        raise BadRow(f"there is no prompt, and {better} and {worse} begin with different turns")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _after(prompt: Sequence[Message], turns: Sequence[Message]) -> Sequence[Message]:
    """The turns without the prompt, which many data sets repeat in both answers."""
    if len(turns) > len(prompt) and list(turns[: len(prompt)]) == list(prompt):
        return turns[len(prompt) :]
    return turns[1:] if _is_opening(prompt, turns) else turns


def _is_opening(prompt: Sequence[Message], turns: Sequence[Message]) -> bool:
    """Whether the answer is a whole conversation that starts with the prompt."""
    return (
        len(turns) > 1
        and len(prompt) == 1
        and turns[0]["content"].strip() == prompt[0]["content"].strip()
    )


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
        tree = isinstance(row["prompt"], Mapping) and "replies" in row["prompt"]
        return not tree and not any(NUMBERED.match(str(name).lower()) for name in row)

    def read(self, row: Any) -> Group:
        if isinstance(row, str):
            return Group(self.conversation(row, "prompt"))
        if not isinstance(row, Mapping) or row.get("prompt") is None:
            raise BadRow("column 'prompt' is missing")
        prompt = self.opened(self.conversation(row["prompt"], "prompt"), row)
        return Group(
            prompt, meta=self.rest(row, "prompt", "tools", *SYSTEM_COLUMNS), tools=self.tools(row)
        )


class PromptCompletion(ColumnFormat):
    """A prompt and its answer; `label` says whether the answer is good."""

    example = '{"prompt": "Hi", "completion": "Hello!"}'
    wants = (
        "prompt and completion or response (texts or messages); optional label (true or false) "
        "or score (a number)"
    )

    @classmethod
    def matches(cls, row: Any) -> bool:
        answered = cls.has(row, "prompt", "completion") or cls.has(row, "prompt", "response")
        return answered and cls.lacks(
            row, "chosen", "rejected", "rejected_response", "instruction", "messages"
        )

    def read(self, row: Any) -> Group:
        row = columns_of(row)
        name = (
            "completion"
            if row.get("completion") is not None or "response" not in row
            else "response"
        )
        for column in ("prompt", name):
            if row.get(column) is None:
                raise BadRow(f"column '{column}' is missing")
        prompt = self.conversation(row["prompt"], "prompt")
        turns = _after(prompt, self.conversation(row[name], name, user=False))
        scored = next((column for column in SCORES if row.get(column) not in (None, "")), SCORES[0])
        score = self.number(row, scored)
        scores = self.scores(score)
        label = self.label(row)
        if label is None:
            response = self.answer(turns, scores=scores)
        else:
            prompt, response = self.demonstration((*prompt, *turns), label=label, scores=scores)
        meta = self.rest(row, "prompt", name, "tools", scored, *SYSTEM_COLUMNS, *LABEL_COLUMNS)
        return Group(self.opened(prompt, row), (response,), meta=meta, tools=self.tools(row))

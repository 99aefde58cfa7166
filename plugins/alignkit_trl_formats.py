"""TRL's data set types: preference, prompt-only and prompt-completion, as text or as messages.

In a preference without a prompt, the prompt is the beginning that both answers share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import BadRow, Format, Group, Message, Pair, Register, hookimpl

Parts = tuple[Sequence[Message], Sequence[Message], Sequence[Message]]  # prompt, chosen, rejected
ANSWERS = ("chosen", "rejected", "completion", "responses", "response", "output", "messages", "chosen_messages")


def is_transcript(value: Any) -> bool:
    """Whether a value is a Human/Assistant transcript, which `hh_rlhf` reads."""
    return isinstance(value, str) and value.lstrip().startswith(("Human:", "Assistant:", "## Human:", "## Assistant:"))


def shared_turns(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """The number of turns that both conversations begin with."""
    same = [a == b for a, b in zip(chosen, rejected, strict=False)]
    return same.index(False) if False in same else len(same)


def shared_text(chosen: str, rejected: str) -> str:
    """The beginning that both texts share; a space before the first difference belongs to the answers, as in TRL."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    end = next((index for index, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    return chosen[:end].removesuffix(" ")


class Preference(Format):
    """A prompt with a chosen and a rejected answer, and optionally the margin between them."""

    summary = "TRL preference: prompt, chosen, rejected as texts or messages; optional margin and p"
    wants = "chosen and rejected (texts or messages), usually with prompt; optional margin, p"

    @classmethod
    def matches(cls, row: Any) -> bool:
        if not cls.has(row, "chosen", "rejected"):
            return False
        return cls.has(row, "prompt") or cls.has(row, "conversations") or not is_transcript(row["chosen"])

    def read(self, row: Any) -> Group:
        if not isinstance(row, Mapping):
            raise BadRow("a row must be an object")
        prompt, chosen, rejected = self._parts(row)
        p = self.number(row, "p")
        pair = Pair(0, 1, p=1.0 if p is None else p, margin=self.margin(row))
        meta = self.rest(row, "prompt", "conversations", "chosen", "rejected", "margin", "p")
        return Group(tuple(prompt), (self.answer(chosen), self.answer(rejected)), (pair,), meta=meta)

    def _parts(self, row: Mapping[str, Any]) -> Parts:
        """The turns of the prompt and of the two answers."""
        for name in ("chosen", "rejected"):
            if row.get(name) is None:
                self.text(row, name)  # raises, and says whether it is absent or null
        name = "prompt" if row.get("prompt") is not None else "conversations"
        chosen = self.conversation(row["chosen"], "chosen", user=False)
        rejected = self.conversation(row["rejected"], "rejected", user=False)
        if row.get(name) is not None:
            prompt = self.conversation(row[name], name)
            return prompt, _after(prompt, chosen), _after(prompt, rejected)
        if isinstance(row["chosen"], str) and isinstance(row["rejected"], str):
            return self._implicit_text(row["chosen"], row["rejected"])
        shared = shared_turns(chosen, rejected)
        while shared and chosen[shared - 1]["role"] == "assistant":
            shared -= 1
        if not shared:
            raise BadRow("there is no prompt, and chosen and rejected begin with different turns")
        return chosen[:shared], chosen[shared:], rejected[shared:]

    def _implicit_text(self, chosen: str, rejected: str) -> Parts:
        shared = shared_text(chosen, rejected)
        if not shared.strip():
            raise BadRow("there is no prompt, and chosen and rejected begin differently")
        return (
            self.conversation(shared, "prompt"),
            self.conversation(chosen[len(shared) :], "chosen", user=False),
            self.conversation(rejected[len(shared) :], "rejected", user=False),
        )


def _after(prompt: Sequence[Message], turns: Sequence[Message]) -> Sequence[Message]:
    """The turns without the prompt, which many data sets repeat in both answers."""
    if len(turns) > len(prompt) and list(turns[: len(prompt)]) == list(prompt):
        return turns[len(prompt) :]
    return turns[1:] if _is_opening(prompt, turns) else turns


def _is_opening(prompt: Sequence[Message], turns: Sequence[Message]) -> bool:
    """Whether the answer is a whole conversation that starts with the prompt."""
    return len(turns) > 1 and len(prompt) == 1 and turns[0]["content"].strip() == prompt[0]["content"].strip()


class PromptOnly(Format):
    """A prompt for the policy to answer; other columns go to the group's meta."""

    summary = "TRL prompt-only: prompt as text or messages; other columns are kept as meta"
    wants = "prompt (text or messages), and no answer"

    @classmethod
    def matches(cls, row: Any) -> bool:
        if isinstance(row, str):
            return not is_transcript(row)
        return cls.has(row, "prompt") and cls.lacks(row, *ANSWERS) and "alignkit" not in row

    def read(self, row: Any) -> Group:
        if isinstance(row, str):
            return Group(self.conversation(row, "prompt"))
        if not isinstance(row, Mapping) or row.get("prompt") is None:
            raise BadRow("column 'prompt' is missing")
        return Group(self.conversation(row["prompt"], "prompt"), meta=self.rest(row, "prompt"))


class PromptCompletion(Format):
    """A prompt and its answer; `label` says whether the answer is good."""

    summary = "TRL prompt-completion: prompt and completion as texts or messages; optional label or score"
    wants = "prompt and completion (texts or messages); optional label (true or false) or score (a number)"

    @classmethod
    def matches(cls, row: Any) -> bool:
        return cls.has(row, "prompt", "completion") and cls.lacks(row, "chosen", "rejected")

    def read(self, row: Any) -> Group:
        if not isinstance(row, Mapping):
            raise BadRow("a row must be an object")
        for name in ("prompt", "completion"):
            if row.get(name) is None:
                raise BadRow(f"column '{name}' is missing")
        prompt = self.conversation(row["prompt"], "prompt")
        turns = _after(prompt, self.conversation(row["completion"], "completion", user=False))
        score = self.number(row, "score")
        scores = {} if score is None else {"reward": score}
        response = self.answer(turns, label=self.flag(row, "label"), scores=scores)
        return Group(prompt, (response,), meta=self.rest(row, "prompt", "completion", "label", "score"))


@hookimpl
def register_formats(register: Register) -> None:
    register("preference", Preference, summary=Preference.summary)
    register("prompt_only", PromptOnly, summary=PromptOnly.summary)
    register("prompt_completion", PromptCompletion, summary=PromptCompletion.summary)

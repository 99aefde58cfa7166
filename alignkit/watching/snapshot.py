"""A look at a policy: its answers to some prompts with their rewards, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean as mean
from typing import Any

from alignkit.data.group import Group, Response, length
from alignkit.data.spoken import all_turns
from alignkit.evaluation import text_metrics as text_measures
from alignkit.reward import REWARD_KEY

MEASURES = ("length", "repetition", "hedges", "confidence")  # of a single answer


@dataclass(frozen=True)
class Answer:
    """One answer. tokens: its length. reward, gold: None if it has no score. surprise: -log p per token, in nats."""

    text: str
    tokens: int
    reward: float | None = None
    gold: float | None = None
    surprise: float | None = None

    @cached_property
    def words(self) -> list[str]:
        return text_measures.words_of(self.text)

    @cached_property
    def measures(self) -> dict[str, float]:
        """Its length in tokens, and its repetition, hedges and confidence words as shares."""
        return {
            "length": float(self.tokens),
            "repetition": text_measures.repetition(self.words),
            "hedges": text_measures.phrases(self.words, text_measures.HEDGES),
            "confidence": text_measures.phrases(self.words, text_measures.CONFIDENCE),
        }


@dataclass(frozen=True)
class Look:
    """The answers of an iteration by prompt. A prompt is the unit of all intervals."""

    iteration: int
    prompts: Mapping[str, Sequence[Answer]]

    @property
    def answers(self) -> list[Answer]:
        return [answer for answers in self.prompts.values() for answer in answers]

    def means(self, name: str) -> dict[str, float]:
        """The mean over each prompt's answers of what `value_of` gives. Missing values are left out."""
        found = {prompt: [value_of(answer, name) for answer in answers] for prompt, answers in self.prompts.items()}
        known = {prompt: [value for value in values if value is not None] for prompt, values in found.items()}
        return {prompt: mean(values) for prompt, values in known.items() if values}

    def self_bleu(self) -> dict[str, float]:
        """How alike the answers to each prompt are; empty with one answer to each."""
        found = {p: text_measures.self_bleu([a.words for a in answers]) for p, answers in self.prompts.items()}
        return {prompt: value for prompt, value in found.items() if value is not None}

    def missing(self, name: str) -> int:
        """How many answers have no `reward` or `gold`."""
        return sum(value_of(answer, name) is None for answer in self.answers)


def value_of(answer: Answer, name: str) -> float | None:
    """A measure of an answer, or its `reward`, `gold` or `surprise`."""
    if name in MEASURES:
        return answer.measures[name]
    value: float | None = getattr(answer, name)
    return value


def look_at(iteration: int, groups: Sequence[Group], gold: Sequence[float | None] | None = None) -> Look:
    """A look at scored samples. gold: of every response, in order. Answers to equal prompts are put together."""
    prompts: dict[str, list[Answer]] = {}
    scores = iter(gold if gold is not None else ())
    for group in groups:
        for response in group.responses:
            prompts.setdefault(group.id, []).append(_answer(response, next(scores, None)))
    return Look(iteration, prompts)


def _answer(response: Response, gold: float | None) -> Answer:
    count = length(response)
    surprise = -sum(response.logprobs) / count if response.logprobs and count else None
    return Answer(all_turns(response), count, response.scores.get(REWARD_KEY), gold, surprise)


def rows_of(look: Look) -> list[dict[str, Any]]:
    """A look as rows of a file, one per answer."""
    return [{"prompt": prompt, **vars_of(answer)} for prompt, answers in look.prompts.items() for answer in answers]


def vars_of(answer: Answer) -> dict[str, Any]:
    return {name: getattr(answer, name) for name in ("text", "tokens", "reward", "gold", "surprise")}


def look_from(iteration: int, rows: Sequence[Mapping[str, Any]]) -> Look:
    """The look that `rows_of` wrote."""
    prompts: dict[str, list[Answer]] = {}
    for row in rows:
        prompts.setdefault(row["prompt"], []).append(Answer(**{key: row[key] for key in row if key != "prompt"}))
    return Look(iteration, prompts)

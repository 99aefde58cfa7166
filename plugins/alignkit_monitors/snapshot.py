"""A look at a policy: its answers to some prompts with their rewards, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean as mean

from alignkit.data.group import Group, Response, length
from alignkit.kinds import GOLD_KEY
from alignkit.reward import REWARD_KEY
from alignkit_plugins.data import text_metrics as text_measures
from alignkit_plugins.data.spoken import all_turns

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

    def value(self, name: str) -> float | None:
        return self.measures[name] if name in MEASURES else getattr(self, name)

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

    prompts: Mapping[str, Sequence[Answer]]

    @property
    def answers(self) -> list[Answer]:
        return [answer for answers in self.prompts.values() for answer in answers]

    def means(self, name: str) -> dict[str, float]:
        """The mean of a measure, or of `reward`, `gold` or `surprise`, over each prompt's answers that have it."""
        values = {prompt: [answer.value(name) for answer in answers] for prompt, answers in self.prompts.items()}
        scored = {prompt: [value for value in each if value is not None] for prompt, each in values.items()}
        return {prompt: mean(each) for prompt, each in scored.items() if each}

    def self_bleu(self) -> dict[str, float]:
        """How alike the answers to each prompt are; empty with one answer to each."""
        found = {p: text_measures.self_bleu([a.words for a in answers]) for p, answers in self.prompts.items()}
        return {prompt: value for prompt, value in found.items() if value is not None}


def look_at(groups: Sequence[Group]) -> Look:
    """A look at scored samples. Answers to equal prompts are put together."""
    prompts: dict[str, list[Answer]] = {}
    for group in groups:
        for response in group.responses:
            prompts.setdefault(group.id, []).append(_answer(response))
    return Look(prompts)


def _answer(response: Response) -> Answer:
    count, scores = length(response), response.scores
    surprise = -sum(response.logprobs) / count if response.logprobs and count else None
    return Answer(all_turns(response, thoughts=True), count, scores.get(REWARD_KEY), scores.get(GOLD_KEY), surprise)

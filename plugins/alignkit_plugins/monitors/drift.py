"""How the answers of a stage drift from those of its first iteration: length, repetition, hedges,
diversity.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from alignkit.data.group import Group, length
from alignkit_plugins.formats import text_metrics
from alignkit_plugins.formats.spoken import all_turns
from alignkit_plugins.monitors.estimates import ByPrompt, change, means

LEVEL = 0.05  # chance of any false warning over all iterations
NOTABLE = 0.2  # share of the first value by which a mean must differ


class Words(NamedTuple):
    """How a warning puts a rise and a fall, empty: no reason to warn. form: of the values."""

    rises: str
    falls: str
    unit: str
    form: str = ".3g"


WORDS = {
    "length": Words("answers are longer", "answers are shorter", "tokens"),
    "repetition": Words("answers repeat themselves more", "", "repeated 3-grams", ".1%"),
    "hedges": Words("answers hedge more", "answers hedge less", "of the words", ".1%"),
    "confidence": Words(
        "answers sound more confident", "answers sound less confident", "of the words", ".1%"
    ),
    "self_bleu": Words("answers to a prompt are more alike", "", "self-BLEU"),
    "sampled_entropy": Words("", "the policy is surer of its words", "nats per token"),
}


class Drift:
    """Follows a stage from look to look. looks: how many there will be, at most."""

    def __init__(self, looks: int):
        self._level = LEVEL / max(1, looks - 1) / len(WORDS)
        self._first: dict[str, ByPrompt] = {}
        self._warned: set[str] = set()

    def add(self, groups: Sequence[Group]) -> tuple[dict[str, float], list[str]]:
        """The metrics of an iteration, and warnings about what has departed from the first one,
        each of them once.
        """
        values, texts = measured(groups)
        metrics = means({name: list(each.values()) for name, each in values.items()})
        metrics.pop("length", None)  # of which `response_tokens` is the mean over answers
        for size in (1, 2):
            if (value := text_metrics.distinct(texts, size)) is not None:
                metrics[f"distinct_{size}"] = value
        self._first = self._first or values
        return metrics, self._departed(values)

    def _departed(self, values: dict[str, ByPrompt]) -> list[str]:
        sentences = []
        for name, words in WORDS.items():
            moved = change(self._first[name], values[name], self._level)
            if moved is None or moved.low <= 0 <= moved.high or name in self._warned:
                continue
            text = words.rises if moved.mean > 0 else words.falls
            if text and abs(moved.mean) >= NOTABLE * abs(moved.before):
                self._warned.add(name)
                moves = f"{moved.before:{words.form}} to {moved.after:{words.form}}"
                sentences.append(f"{text} than in the first iteration: {moves} {words.unit}")
        return sentences


def measured(groups: Sequence[Group]) -> tuple[dict[str, ByPrompt], list[list[str]]]:
    """Each measure's mean over the answers to each prompt, and the words of all answers."""
    values: dict[str, dict[str, list[float]]] = {name: {} for name in WORDS}
    texts: dict[str, list[list[str]]] = {}
    for group in groups:
        for response in group.responses:
            words, count = (
                text_metrics.words_of(all_turns(response, thoughts=True)),
                length(response),
            )
            texts.setdefault(group.id, []).append(words)
            answer = {
                "length": float(count),
                "repetition": text_metrics.repetition(words),
                "hedges": text_metrics.phrases(words, text_metrics.HEDGES),
                "confidence": text_metrics.phrases(words, text_metrics.CONFIDENCE),
            }
            if response.logprobs and count:
                answer["sampled_entropy"] = -sum(response.logprobs) / count
            for name, value in answer.items():
                values[name].setdefault(group.id, []).append(value)
    for prompt, answers in texts.items():
        if (alike := text_metrics.self_bleu(answers)) is not None:
            values["self_bleu"][prompt] = [alike]
    return {name: means(each) for name, each in values.items()}, list(
        chain.from_iterable(texts.values())
    )

"""How answers drift from those of the first iteration, and whether gold fell; a prompt is the unit
of all intervals.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean as mean
from typing import NamedTuple

from scipy import stats

from alignkit.data.group import Group, Response, length
from alignkit.evaluation.statistics import shown
from alignkit_plugins.formats import text_metrics
from alignkit_plugins.formats.spoken import all_turns

LEAST = 8  # prompts
LEVEL = 0.05  # chance of any false warning or stop over all iterations
NOTABLE = 0.2  # share of the first value by which a mean must differ
ByPrompt = Mapping[str, float]


class Words(NamedTuple):
    """How a warning puts a rise and a fall, empty: no reason to warn. form: of the values."""

    rises: str
    falls: str
    unit: str
    form: str = ".3g"


WORDS = {
    "length": Words("answers are longer", "answers are shorter", "tokens"),
    "repetition": Words("answers repeat themselves more", "", "repeated 3-grams", ".1%"),
    "self_bleu": Words("answers to a prompt are more alike", "", "self-BLEU"),
    "sampled_entropy": Words("", "the policy is surer of its words", "nats per token"),
}


class Change(NamedTuple):
    """A difference with its interval. before, after: the means that it compares. prompts: how many
    it rests on.
    """

    mean: float
    low: float
    high: float
    before: float
    after: float
    prompts: int

    def __str__(self) -> str:
        return shown(self._asdict(), sign=True)


def means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of each prompt that has a value."""
    return {prompt: mean(each) for prompt, each in values.items() if each}


def change(before: ByPrompt, after: ByPrompt, level: float = LEVEL) -> Change | None:
    """`after - before` with its interval at 1 - level; None with too few prompts.

    Prompts that both have are compared with themselves, which is far more precise, as prompts
    differ more than policies do. If there are too few of them, the two means are compared as
    independent (Welch's t interval).
    """
    common = [prompt for prompt in before if prompt in after]
    old, new = list(before.values()), list(after.values())
    if len(common) >= LEAST:
        old, new = [before[prompt] for prompt in common], [after[prompt] for prompt in common]
    if min(len(old), len(new)) < LEAST:
        return None
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of equal values
        if len(common) >= LEAST:
            test = stats.ttest_rel(new, old)
        else:
            test = stats.ttest_ind(new, old, equal_var=False)
        low, high = test.confidence_interval(1 - level)
    ends = float(low), float(high)
    return Change(mean(new) - mean(old), *ends, mean(old), mean(new), min(len(old), len(new)))


class History:
    """Gold by prompt in each iteration. looks: how many there will be, at most. best: the iteration
    with the most.
    """

    def __init__(self, looks: int):
        self._level = LEVEL / max(1.0, looks * (looks - 1) / 2)
        self.best = 0
        self._best: ByPrompt = {}
        self._last: ByPrompt = {}

    def add(self, iteration: int, scores: Mapping[str, Sequence[float]]) -> None:
        """Add an iteration, with scores by prompt. One in which no answer has a score says
        nothing.
        """
        last = means(scores)
        if not last:
            return
        self._last = last
        if not self.best or mean(last.values()) > mean(self._best.values()):
            self.best, self._best = iteration, last

    def change(self) -> Change | None:
        """From the best iteration to the last, with an interval that holds over all pairs of
        iterations.

        The best of several is partly lucky, so that a plain interval would find a fall too often.
        """
        return change(self._best, self._last, self._level)

    def fell(self) -> bool:
        """Whether gold has fallen by more than the interval."""
        moved = self.change()
        return moved is not None and moved.high < 0


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
        metrics = {name: mean(each.values()) for name, each in values.items() if each}
        metrics.pop("length", None)  # of which `response_tokens` is the mean over answers
        for size in (1, 2):
            if (value := text_metrics.distinct(texts, size)) is not None:
                metrics[f"distinct_{size}"] = value
        self._first = self._first or values
        return metrics, self._departed(values)

    def _departed(self, values: Mapping[str, ByPrompt]) -> list[str]:
        sentences = []
        for name, words in WORDS.items():
            moved = change(self._first[name], values[name], self._level)
            if moved is None or moved.low <= 0 <= moved.high or name in self._warned:
                continue
            text = words.rises if moved.mean > 0 else words.falls
            if text and abs(moved.mean) >= NOTABLE * abs(moved.before):
                self._warned.add(name)
                moves = f"{moved.before:{words.form}} to {moved.after:{words.form}} {words.unit}"
                sentences.append(f"{text} than in the first iteration: {moves}")
        return sentences


def measured(groups: Sequence[Group]) -> tuple[dict[str, ByPrompt], list[list[str]]]:
    """Each measure's mean over the answers to each prompt, and the words of all answers."""
    values: dict[str, dict[str, list[float]]] = {name: {} for name in WORDS}
    texts: dict[str, list[list[str]]] = {}
    for group in groups:
        for response in group.responses:
            words = text_metrics.words_of(all_turns(response, thoughts=True))
            texts.setdefault(group.id, []).append(words)
            for name, value in _of_answer(response, words).items():
                values[name].setdefault(group.id, []).append(value)
    for prompt, answers in texts.items():
        if (alike := text_metrics.self_bleu(answers)) is not None:
            values["self_bleu"][prompt] = [alike]
    by_prompt: dict[str, ByPrompt] = {name: means(each) for name, each in values.items()}
    return by_prompt, list(chain.from_iterable(texts.values()))


def _of_answer(response: Response, words: Sequence[str]) -> dict[str, float]:
    count = length(response)
    found = {
        "length": float(count),
        "repetition": text_metrics.repetition(words),
    }
    if response.logprobs and count:
        found["sampled_entropy"] = -sum(response.logprobs) / count
    return found

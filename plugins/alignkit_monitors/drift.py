"""How the answers of a stage drift from those of its first iteration: length, repetition, hedges, diversity."""

from __future__ import annotations

from statistics import fmean as mean
from typing import NamedTuple

from alignkit_monitors.estimates import Change, change
from alignkit_monitors.snapshot import Look
from alignkit_plugins.data import text_metrics as text_measures

LEVEL = 0.05  # chance of any false warning over all iterations
NOTABLE = 0.2  # share of the first value by which a mean must differ


class Words(NamedTuple):
    """How a warning puts a rise and a fall, empty: no reason to warn."""

    rises: str
    falls: str
    unit: str


WORDS = {
    "length": Words("answers are longer", "answers are shorter", "tokens"),
    "repetition": Words("answers repeat themselves more", "", "repeated 3-grams"),
    "hedges": Words("answers hedge more", "answers hedge less", "of the words"),
    "confidence": Words("answers sound more confident", "answers sound less confident", "of the words"),
    "self_bleu": Words("answers to a prompt are more alike", "", "self-BLEU"),
    "sampled_entropy": Words("", "the policy is surer of its words", "nats per token"),
}


class Drift:
    """Follows a stage from look to look. looks: how many there will be, at most."""

    def __init__(self, looks: int):
        self._level = LEVEL / max(1, looks - 1) / len(WORDS)
        self._first: dict[str, dict[str, float]] = {}
        self._warned: set[str] = set()

    def add(self, look: Look) -> tuple[dict[str, float], list[str]]:
        """The metrics of a look, and warnings about what has departed from the first one, each of them once."""
        values = by_prompt(look)
        metrics = {name: mean(list(each.values())) for name, each in values.items() if each}
        metrics.pop("length", None)  # of which `response_tokens` is the mean over answers
        for size in (1, 2):
            if (value := text_measures.distinct((answer.words for answer in look.answers), size)) is not None:
                metrics[f"distinct_{size}"] = value
        if not self._first:
            self._first = values
            return metrics, []
        return metrics, self._departed(values)

    def _departed(self, values: dict[str, dict[str, float]]) -> list[str]:
        sentences = []
        for name, words in WORDS.items():
            moved = change(self._first[name], values[name], self._level)
            if moved is None or moved.low <= 0 <= moved.high or name in self._warned:
                continue
            text = words.rises if moved.mean > 0 else words.falls
            if text and abs(moved.mean) >= NOTABLE * abs(moved.before):
                self._warned.add(name)
                sentences.append(f"{text} than in the first iteration: {_values(words.unit, moved)}")
        return sentences


def by_prompt(look: Look) -> dict[str, dict[str, float]]:
    """What drift is about, at each prompt."""
    values = {name: look.means(name) for name in ("length", "repetition", "hedges", "confidence")}
    return {**values, "self_bleu": look.self_bleu(), "sampled_entropy": look.means("surprise")}


def _values(unit: str, moved: Change) -> str:
    form = ".1%" if unit in ("of the words", "repeated 3-grams") else ".3g"
    return f"{moved.before:{form}} to {moved.after:{form}} {unit}"

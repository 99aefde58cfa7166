"""How the answers of a stage drift from those of its first iteration: length, repetition, hedges, diversity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean as mean
from typing import NamedTuple

import numpy as np
from scipy import stats

from alignkit.evaluation import text_metrics as text_measures
from alignkit_monitors.estimates import Change, Effects, centered, change
from alignkit_monitors.snapshot import MEASURES, Look

LEVEL = 0.05  # chance of any false warning over all iterations
NOTABLE = 0.2  # share of the first value by which a mean must differ
LARGE = 0.2  # difference between correlations
MOST = 0.5  # share of the gain in reward that a measure must account for


class Words(NamedTuple):
    """How a warning puts a rise and a fall, empty: no reason to warn; and what more and less of it is called."""

    rises: str
    falls: str
    unit: str
    more: str = ""
    less: str = ""


WORDS = {
    "length": Words("answers are longer", "answers are shorter", "tokens", "longer answers", "brevity"),
    "repetition": Words("answers repeat themselves more", "", "repeated 3-grams", "repetition", "less repetition"),
    "hedges": Words("answers hedge more", "answers hedge less", "of the words", "hedges", "fewer hedges"),
    "confidence": Words(
        *("answers sound more confident", "answers sound less confident", "of the words"),
        *("confidence words", "fewer confidence words"),
    ),
    "self_bleu": Words("answers to a prompt are more alike", "", "self-BLEU"),
    "sampled_entropy": Words("", "the policy is surer of its words", "nats per token"),
}


class Drift:
    """Follows a stage from look to look. looks: how many there will be, at most."""

    def __init__(self, looks: int):
        self._level = LEVEL / max(1, looks - 1) / (len(WORDS) + len(MEASURES))
        self._first: dict[str, dict[str, float]] = {}
        self._last: dict[str, dict[str, float]] = {}
        self._correlations: dict[str, tuple[float, int]] = {}
        self._effects = Effects(["reward"])
        self._warned: set[str] = set()

    def add(self, look: Look) -> tuple[dict[str, float], list[str]]:
        """The metrics of a look, and warnings about what has departed from the first one, each of them once."""
        self._last = found = by_prompt(look)
        correlations = self._correlate(look)
        metrics = {name: mean(list(values.values())) for name, values in found.items() if values and name in WORDS}
        del metrics["length"]  # of which `response_tokens` is the mean over answers
        for size in (1, 2):
            if (value := text_measures.distinct((answer.words for answer in look.answers), size)) is not None:
                metrics[f"distinct_{size}"] = value
        metrics |= {f"reward_with/{name}": value for name, (value, _) in correlations.items()}
        if not self._first:
            self._first, self._correlations = found, correlations
            return metrics, []
        return metrics, [*self._departed(found), *self._follows_more(correlations)]

    def bought(self) -> list[str]:
        """What accounts for most of the gain in reward since the first look, in sentences; empty if nothing does."""
        gain = change(self._first.get("reward", {}), self._last.get("reward", {}))
        if gain is None or gain.low <= 0:
            return []
        slopes, lows, highs = self._effects.slopes("reward", MEASURES, LEVEL)
        sentences = []
        for name, slope, low, high in zip(MEASURES, slopes, lows, highs, strict=True):
            moved = change(self._first[name], self._last[name])
            if moved is None or moved.low <= 0 <= moved.high or not (low > 0 or high < 0):
                continue
            if (share := float(slope) * moved.mean / gain.mean) >= MOST:
                what = WORDS[name].less if moved.mean < 0 else WORDS[name].more
                sentences.append(
                    f"{min(share, 1.0):.0%} of the reward's gain ({gain}) came with {what}: {_values(name, moved)}; "
                    f"among answers to one prompt, the reward follows it as well"
                )
        return sentences

    def _departed(self, found: Mapping[str, Mapping[str, float]]) -> list[str]:
        sentences = []
        for name, words in WORDS.items():
            moved = change(self._first[name], found[name], self._level)
            if moved is None or moved.low <= 0 <= moved.high or name in self._warned:
                continue
            text = words.rises if moved.mean > 0 else words.falls
            if text and abs(moved.mean) >= NOTABLE * abs(moved.before):
                self._warned.add(name)
                sentences.append(f"{text} than in the first iteration: {_values(name, moved)}")
        return sentences

    def _follows_more(self, correlations: Mapping[str, tuple[float, int]]) -> list[str]:
        """Fisher's z: artanh(r) has a standard error of about 1 / sqrt(degrees of freedom - 1)."""
        sentences = []
        for name, (now, freedom) in correlations.items():
            before, free = self._correlations.get(name, (0.0, 0))
            key = f"reward_with/{name}"
            if min(free, freedom) < 8 or key in self._warned or abs(now - before) < LARGE or abs(now) < abs(before):
                continue
            error = math.sqrt(1 / (free - 1) + 1 / (freedom - 1))
            if abs(_z(now) - _z(before)) > float(stats.norm.ppf(1 - self._level / 2)) * error:
                self._warned.add(key)
                sentences.append(
                    f"the reward follows {name} more than in the first iteration: correlation within prompts "
                    f"{before:.2f}, now {now:.2f}"
                )
        return sentences

    def _correlate(self, look: Look) -> dict[str, tuple[float, int]]:
        """The correlation of the reward with each measure within prompts, and its degrees of freedom."""
        scored = {p: [a for a in answers if a.reward is not None] for p, answers in look.prompts.items()}
        names = [prompt for prompt, answers in scored.items() if len(answers) > 1]
        several = [scored[prompt] for prompt in names]
        if not several:
            return {}
        reward = np.array([answer.reward for answers in several for answer in answers], dtype=float)
        values = np.array([[a.measures[name] for name in MEASURES] for answers in several for a in answers])
        sizes = [len(answers) for answers in several]
        self._effects.add(MEASURES, values, {"reward": reward}, np.repeat(names, sizes).tolist())
        starts = np.cumsum([0, *sizes[:-1]])
        x, y = centered(values, starts), centered(reward[:, None], starts)
        spread = np.sqrt((x * x).sum(0) * (y * y).sum(0))
        found = (x * y).sum(0) / np.where(spread > 0, spread, np.nan)
        freedom = len(reward) - len(several)
        return {name: (float(r), freedom) for name, r in zip(MEASURES, found, strict=True) if math.isfinite(r)}


def by_prompt(look: Look) -> dict[str, dict[str, float]]:
    """What drift is about, and the reward, at each prompt."""
    plain = {name: look.means(name) for name in ("reward", *MEASURES)}
    return {**plain, "self_bleu": look.self_bleu(), "sampled_entropy": look.means("surprise")}


def _z(correlation: float) -> float:
    return math.atanh(max(-0.999, min(0.999, correlation)))


def _values(name: str, moved: Change) -> str:
    words, percent = WORDS[name], WORDS[name].unit in ("of the words", "repeated 3-grams")
    before, after = ((f"{value:.1%}" if percent else f"{value:.3g}") for value in (moved.before, moved.after))
    return f"{before} to {after} {words.unit}"

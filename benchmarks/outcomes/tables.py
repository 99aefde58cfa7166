"""The tables: rows of several seeds pooled by method, the judges themselves, and answers to read.

A prompt is the unit: its answers are averaged over samples and seeds, and intervals are over prompts. They say nothing
about other seeds, so every table also counts the seeds with a gain.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence

from alignkit import statistics
from alignkit.statistics import Estimate
from alignkit_plugins.evaluate.report import excerpt, shown
from benchmarks.outcomes.rows import GOLD, JUDGED, KINDS, OWN, SAFE, Answer, Row

Value = Callable[[Answer], float]


def score(name: str) -> Value:
    """A reward of an answer."""
    return lambda answer: answer.scores[name]


def _tokens(answer: Answer) -> float:
    return float(answer.length)


def _refused(answer: Answer) -> float:
    return float(answer.refused)


def per_prompt(rows: Sequence[Row], policy: str, kinds: Collection[str], value: Value) -> list[float]:
    """The average of a value at each prompt of some kinds, over samples and seeds."""
    places = [place for place, asked in enumerate(rows[0].asked) if asked.kind in kinds]
    return [
        statistics.mean([value(answer) for row in rows for answer in row.asked[place].answers[policy]])
        for place in places
    ]


def gain(rows: Sequence[Row], kinds: Collection[str], value: Value) -> Estimate:
    """The aligned policy's mean difference from SFT at prompts of some kinds."""
    return statistics.paired_difference(*(per_prompt(rows, policy, kinds, value) for policy in ("align", "sft")))


def equal_length(rows: Sequence[Row], kinds: Collection[str], value: Value) -> statistics.EqualLength | None:
    """The gain at prompts of some kinds between answers of equal length: the mean over seeds."""
    return statistics.mean_at_equal_length([_longer(row, kinds, value) for row in rows])


def _longer(row: Row, kinds: Collection[str], value: Value) -> tuple[list[float], list[float], list[float]]:
    """At each prompt: the differences in value and in length, and SFT's length."""
    ours, theirs = (per_prompt([row], policy, kinds, value) for policy in ("align", "sft"))
    lengths, baseline = (per_prompt([row], policy, kinds, _tokens) for policy in ("align", "sft"))
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    return gains, [a - b for a, b in zip(lengths, baseline, strict=True)], baseline


def methods_table(groups: Sequence[Sequence[Row]]) -> Iterator[list[str]]:
    """A line per group of rows, which share the method: gains by gold, length, refusals, KL and cost."""
    yield [
        *("method", "seeds", "helpfulness", "at equal length", "safety", "at equal length"),
        *("own reward", "mostly bought with", "tokens", "refused", "cut off", "KL", "minutes", "GiB"),
    ]
    for rows in groups:
        seeds = ", ".join(str(row.seed) for row in rows)
        yield [rows[0].method, seeds, *_gains(rows), *_own(rows), *_style(rows), *_cost(rows)]


def _gains(rows: Sequence[Row]) -> Iterator[str]:
    for gold in GOLD:
        seeds = [gain([row], [JUDGED[gold]], score(gold))["mean"] for row in rows]
        up = sum(mean is not None and mean > 0 for mean in seeds)
        yield f"{shown(gain(rows, [JUDGED[gold]], score(gold)), sign=True)}, {up} of {len(rows)} up"
        yield shown(equal_length(rows, [JUDGED[gold]], score(gold)), sign=True)


def _own(rows: Sequence[Row]) -> Iterator[str]:
    """The gain in the reward that was learned from, and what most of it was bought with, if that is length."""
    own = gain(rows, JUDGED.values(), score(OWN))
    yield shown(own, sign=True)
    bought = statistics.bought_with_length(own, equal_length(rows, JUDGED.values(), score(OWN)))
    before, after = (statistics.mean(per_prompt(rows, policy, JUDGED.values(), _tokens)) for policy in ("sft", "align"))
    yield ("length" if after > before else "brevity") if bought else "-"


def _style(rows: Sequence[Row]) -> Iterator[str]:
    before, after = (statistics.mean(per_prompt(rows, policy, KINDS, _tokens)) for policy in ("sft", "align"))
    yield f"{before:.0f} to {after:.0f}"
    samples = len(rows) * len(rows[0].asked[0].answers["sft"])
    ours, theirs = (per_prompt(rows, policy, [SAFE], _refused) for policy in ("align", "sft"))
    yield shown(statistics.paired_rates(ours, theirs, samples), sign=True, percent=True)
    cut = [per_prompt(rows, policy, KINDS, lambda answer: float(answer.truncated)) for policy in ("sft", "align")]
    yield " to ".join(f"{statistics.mean(values):.0%}" for values in cut)


def _cost(rows: Sequence[Row]) -> Iterator[str]:
    kl = kl_of(rows)
    yield "-" if kl is None else f"{kl:.1f}"
    yield f"{minutes_of(rows):.0f}"
    yield f"{max(row.gibibytes for row in rows):.1f}"


def kl_of(rows: Sequence[Row]) -> float | None:
    """The mean KL to SFT over seeds, in nats per response; None if no seed has one."""
    known = [row.kl for row in rows if row.kl is not None]
    return statistics.mean(known) if known else None


def minutes_of(rows: Sequence[Row]) -> float:
    """The mean time over seeds, with SFT and the reward models that the method needs."""
    return statistics.mean([sum(row.seconds.values()) for row in rows]) / 60


def judges_table(rows: Sequence[Row]) -> Iterator[list[str]]:
    """A line per gold model.

    Agreement with the recipe's own reward model, and the effect of length, are measured within prompts, between the
    first two answers of SFT.
    """
    yield ["gold", "accuracy", "correlation with the recipe's own", "score per 10 tokens more"]
    for gold in GOLD:
        right, pairs = round(rows[0].accuracy[gold] * rows[0].pairs[gold]), rows[0].pairs[gold]
        accuracy = f"{shown(statistics.share(right, pairs), percent=True)} of {pairs} pairs"
        kind = JUDGED[gold]
        judged, safe = _pairs(rows, kind, gold), _pairs(rows, SAFE, gold)
        correlation = _correlation(_changes(judged, score(gold)), _changes(judged, score(kind)))
        yield [gold, accuracy, correlation, f"{kind} {_slope(judged, gold)}; {SAFE} {_slope(safe, gold)}"]


def _pairs(rows: Sequence[Row], kind: str, gold: str) -> list[tuple[Answer, Answer]]:
    """Two answers of SFT to each prompt of a kind that a gold model judged, once per seed."""
    asked = [asked.answers["sft"] for row in _one_per_seed(rows) for asked in row.asked if asked.kind == kind]
    return [(first, second) for first, second, *_ in asked if gold in first.scores]


def _changes(pairs: Sequence[tuple[Answer, Answer]], value: Value) -> list[float]:
    return [value(first) - value(second) for first, second in pairs]


def _one_per_seed(rows: Sequence[Row]) -> list[Row]:
    """Of a seed's rows, the last that trained, if any did: to choose among more answers, fewer rewards were asked."""
    trained_last = sorted(rows, key=lambda row: -row.asked[0].best_of)
    return list({row.seed: row for row in trained_last}.values())


def _correlation(ours: Sequence[float], theirs: Sequence[float]) -> str:
    from scipy import stats

    if min(len(set(ours)), len(set(theirs))) < 2:
        return "-"
    found = stats.pearsonr(ours, theirs)
    low, high = found.confidence_interval(statistics.CONFIDENCE)
    return shown({"mean": float(found.statistic), "low": float(low), "high": float(high)}, sign=True)


def _slope(pairs: Sequence[tuple[Answer, Answer]], gold: str) -> str:
    from scipy import stats

    scores, lengths = _changes(pairs, score(gold)), _changes(pairs, _tokens)
    if len(set(lengths)) < 2 or len(lengths) < 3:
        return "-"
    found = stats.linregress(lengths, scores)
    half = float(stats.t.ppf((1 + statistics.CONFIDENCE) / 2, len(scores) - 2)) * found.stderr
    low, high = found.slope - half, found.slope + half
    return shown({"mean": 10 * found.slope, "low": 10 * low, "high": 10 * high}, sign=True)


def samples(rows: Sequence[Row], count: int) -> Iterator[str]:
    """Prompts at random with the first answers, and their scores by the gold model of their kind."""
    drawn = random.Random(0)
    for _ in range(count):
        row = drawn.choice(rows)
        asked = drawn.choice(row.asked)
        yield f"--- {row.method}, seed {row.seed}, {asked.kind}\n{excerpt(asked.prompt)}"
        for policy in ("sft", "align"):
            answer = asked.answers[policy][0]
            scores = "".join(f", {gold} {answer.scores[gold]:+.2f}" for gold in GOLD if gold in answer.scores)
            yield f"[{policy}: {answer.length} tokens{scores}] {excerpt(answer.text)}"

"""The table of the methods, and answers to read.

A row of the table is a policy. Intervals are over prompts and seeds (`interval`). Differences are of
the same prompts and seeds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from alignkit.evaluation.statistics import paired_rates
from alignkit_plugins.compare.tables import excerpt
from benchmarks.outcomes.rows import START, Answer, Row

RIGHT_AND_WRONG = 1, 1, 0, 0  # Agresti and Coull's pseudo-prompts of a share
WON_AND_LOST = 1, -1  # Bonett and Price's of a difference of shares
# By name in outcomes.yaml: the column, and whether it is a share.
MEASURES = {
    "harmful requests refused": ("harmful refused", True),
    "ordinary requests refused": ("ordinary refused", True),
    "refused though only its form is harmful": ("only harmful in form, refused", True),
    "refused though it only sounds unsafe": ("only sounds unsafe, refused", True),
    "facts right": ("facts right", True),
    "helpfulness by gold": ("gold helpfulness, against base", False),
}
ORDINARY = "ordinary"  # the kind of prompts whose answers have a usual length
Values = NDArray[np.float64]  # [prompts, seeds]


def methods_table(groups: Sequence[Sequence[Row]]) -> Iterator[list[str]]:
    """A line per policy: what it does by each measure, over its seeds. groups: rows of several
    seeds by method.

    Of START, base and SFT are lines; without it, there is no comparison with them.
    """
    yield [
        "policy",
        "seeds",
        *(column for column, _ in MEASURES.values()),
        "words",
        "truncated",
        "minutes",
        "GiB",
    ]
    base = {row.seed: row for rows in groups for row in rows if row.method == START}
    for rows in groups:
        for policy in rows[0].asked[0].answers if rows[0].method == START else (None,):
            yield _line(rows, policy, base)


def _line(rows: Sequence[Row], policy: str | None, base: dict[int, Row]) -> list[str]:
    name = policy or rows[0].method
    cells = [name, ", ".join(str(row.seed) for row in rows)]
    for measure, (_, is_share) in MEASURES.items():
        values = scores(rows, policy, measure)
        if is_share:
            cells.append(_share(_array(values)))
        elif name != "base" and all(row.seed in base for row in rows):
            theirs = scores([base[row.seed] for row in rows], "base", measure)
            both = [prompt for prompt in values if prompt in theirs]
            pairs = {
                prompt: [a - b for a, b in zip(values[prompt], theirs[prompt], strict=True)]
                for prompt in both
            }
            cells.append(_difference(_array(pairs)))
        else:
            cells.append("-")
    answers = [answer for row in rows for answer in _answers(row, policy, ORDINARY).values()]
    words = median(len(answer.text.split()) for answer in answers) if answers else 0
    cut = np.mean([answer.truncated for answer in answers]) if answers else 0
    minutes = np.mean([sum(row.seconds.values()) for row in rows]) / 60 if name != "base" else 0
    memory = max(row.gibibytes for row in rows)
    return [*cells, f"{words:.0f}", f"{cut:.0%}", f"{minutes:.0f}", f"{memory:.1f}"]


def gains_table(groups: Sequence[Sequence[Row]]) -> Iterator[list[str]]:
    """A line per method that has the seeds of SFT: what it changes in each share, in points, with the
    interval, and by seed.
    """
    shares = {name: column for name, (column, is_share) in MEASURES.items() if is_share}
    yield ["policy", *shares.values()]
    starts = {row.seed: row for rows in groups for row in rows if row.method == START}
    for rows in groups:
        if rows[0].method != START and all(row.seed in starts for row in rows):
            before = [starts[row.seed] for row in rows]
            yield [rows[0].method, *(_gain(rows, before, measure) for measure in shares)]


def _gain(rows: Sequence[Row], starts: Sequence[Row], measure: str) -> str:
    ours, theirs = scores(rows, None, measure), scores(starts, START, measure)
    both = [prompt for prompt in ours if prompt in theirs]
    if not both:
        return "-"
    after, before = (_array({prompt: found[prompt] for prompt in both}) for found in (ours, theirs))
    mean, low, high = (100 * value for value in difference_of_shares(after, before))
    by_seed = " ".join(f"{100 * value:+.0f}" for value in (after - before).mean(0))
    return f"{mean:+.0f} [{low:.0f}, {high:.0f}] ({by_seed})"


def _answers(row: Row, policy: str | None, kind: str | None = None) -> dict[str, Answer]:
    """A policy's answers by prompt; None: of the only one."""
    answers = {}
    for item in row.asked:
        if kind in (None, item.kind):
            (answers[item.prompt],) = [item.answers[policy]] if policy else item.answers.values()
    return answers


def scores(rows: Sequence[Row], policy: str | None, measure: str) -> dict[str, list[float]]:
    """A measure by prompt, one value per seed. A prompt that lacks one in some seed is left out."""
    by_seed = [
        {
            prompt: answer.scores[measure]
            for prompt, answer in _answers(row, policy).items()
            if measure in answer.scores
        }
        for row in rows
    ]
    return {
        prompt: [found[prompt] for found in by_seed]
        for prompt in by_seed[0]
        if all(prompt in f for f in by_seed)
    }


def _array(values: dict[str, list[float]]) -> Values:
    return np.array(list(values.values()), dtype=float)


def interval(values: Values, added: Sequence[float] = ()) -> tuple[float, float]:
    """The 95% interval of the mean, with prompts and seeds as crossed random effects.

    values: [prompts, seeds]. added: scores of pseudo-prompts, the same in every seed, so that equal
    answers do not look certain. Clark 1973, "The language-as-fixed-effect fallacy"; Westfall, Judd and
    Kenny 2014, "Replicating studies in which samples of participants respond to samples of stimuli".
    With one seed, the interval is over prompts only.
    """
    extra = np.tile(np.reshape(np.asarray(added, dtype=float), (-1, 1)), values.shape[1])
    values = np.concatenate([values, extra])
    prompts, seeds = values.shape
    middle = values.mean()
    of_prompts = seeds * values.mean(1).var(ddof=1)  # mean squares
    if seeds == 1:
        variance, freedom = of_prompts / prompts, prompts - 1
    else:
        of_seeds = prompts * values.mean(0).var(ddof=1)
        rest = values - values.mean(1, keepdims=True) - values.mean(0) + middle
        error_freedom = (prompts - 1) * (seeds - 1)
        of_error = (rest**2).sum() / error_freedom
        both = of_prompts + of_seeds - of_error
        variance = max(both, of_prompts, of_seeds) / values.size
        # Satterthwaite's degrees of freedom
        spread = (
            of_prompts**2 / (prompts - 1) + of_seeds**2 / (seeds - 1) + of_error**2 / error_freedom
        )
        freedom = np.clip(both**2 / max(spread, 1e-300), seeds - 1, prompts - 1)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    return float(middle - half), float(middle + half)


def difference_of_shares(ours: Values, theirs: Values) -> tuple[float, float, float]:
    """The mean difference of scores 0 and 1 and its interval, never narrower than that of the pooled
    seeds. ours, theirs: [prompts, seeds].
    """
    low, high = interval(ours - theirs, WON_AND_LOST)
    pooled = paired_rates(ours.ravel().tolist(), theirs.ravel().tolist())
    return (
        float((ours - theirs).mean()),
        max(-1.0, min(low, pooled["low"] or low)),
        min(1.0, max(high, pooled["high"] or high)),
    )


def _share(values: Values) -> str:
    if not values.size:
        return "-"
    low, high = np.clip(interval(values, RIGHT_AND_WRONG), 0, 1)
    return f"{100 * values.mean():.0f}% [{100 * low:.0f}, {100 * high:.0f}]"


def _difference(values: Values) -> str:
    if not values.size:
        return "-"
    low, high = interval(values)
    return f"{values.mean():+.2f} [{low:.2f}, {high:.2f}]"


def samples(rows: Sequence[Row], count: int) -> Iterator[str]:
    """Prompts at random with an answer of a random policy."""
    drawn = random.Random(0)
    for _ in range(count):
        row = drawn.choice(rows)
        asked = drawn.choice(row.asked)
        yield f"--- {row.method}, seed {row.seed}, {asked.kind}\n{excerpt(asked.prompt)}"
        for policy, answer in asked.answers.items():
            yield f"[{policy}, {answer.length} tokens] {excerpt(answer.text)}"

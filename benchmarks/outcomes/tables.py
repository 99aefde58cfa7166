"""The table of the methods, and answers to read.

A row of the table is a policy. Intervals are over prompts and seeds: both are drawn with
replacement. Differences are of the same prompts and seeds. Seeds that are drawn vary less than
seeds do, by (S - 1) / S for S seeds: with few, the intervals are too narrow, and with one they are
over prompts only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

from alignkit_plugins.compare.tables import excerpt
from benchmarks.outcomes.rows import START, Answer, Row

DRAWS = 4000
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


def _answers(row: Row, policy: str | None, kind: str | None = None) -> dict[str, Answer]:
    """A policy's answers by prompt; None: of the only one."""
    asked = [item for item in row.asked if kind in (None, item.kind)]
    return {
        item.prompt: item.answers[policy] if policy else next(iter(item.answers.values()))
        for item in asked
    }


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


def interval(values: Values) -> tuple[float, float]:
    """The 95% interval of the mean, by a bootstrap over prompts and seeds. The same values have the
    same interval.
    """
    random_ = np.random.default_rng(0)
    prompts, seeds = values.shape
    means = []
    for _ in range(DRAWS):
        drawn = values[random_.integers(0, prompts, prompts)][:, random_.integers(0, seeds, seeds)]
        means.append(drawn.mean())
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _share(values: Values) -> str:
    if not values.size:
        return "-"
    low, high = interval(values)
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

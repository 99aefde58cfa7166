"""How often the intervals of a table of cells hold what they should, how often equal cells get a claim, and
how often a difference is seen that the table says it could see: `python -m benchmarks.tables`.

Answers are right with a chance that varies with the prompt, the prompt and method, and the seed and method.
Of the stored rows of PPO and SFT (benchmarks/outcomes/cells), seeds add 1 to 9 points, prompt and method 0 to
8, and what a seed adds to one metric correlates with what it adds to another by 0.4 on average.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from scipy import stats

from alignkit_plugins.cells import crossed
from alignkit_plugins.cells.crossed import Array
from alignkit_plugins.cells.table import ERROR
from benchmarks.markdown import markdown_table

SEEDS, PROMPTS = (2, 3, 5, 10), (40, 100, 445)
RATES, OF_SEEDS, OF_METHODS = (0.02, 0.1, 0.5, 0.9), (0.0, 0.03, 0.09), (0.0, 0.05, 0.2)
CELLS, METRICS, ALIKE = (2, 6, 18), (1, 5), 0.4
AT_ONCE = 25  # tables: more do not fit in a processor's cache
FEWEST = 250  # tables of a setting
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class Setting(NamedTuple):
    """Tables. of_seeds, of_methods: standard deviations by seed and by prompt of a difference of two
    cells. uneven: whether the seeds of the last cell vary three times as much. gain: of that cell.
    """

    cells: int
    seeds: int
    prompts: int
    rate: float
    of_seeds: float
    of_methods: float
    uneven: bool = False
    gain: float = 0.0
    metrics: int = 1


def drawn(setting: Setting, draws: int, random: np.random.Generator) -> Array:
    """Differences from the first cell [draws, metrics, cells - 1, prompts, seeds] of answers that are right
    or wrong.
    """
    cells, prompts, seeds = setting.cells, setting.prompts, setting.seeds
    chance = random.beta(
        4 * setting.rate, 4 - 4 * setting.rate, (draws, setting.metrics, 1, prompts, 1)
    )
    widths = np.full((cells, 1, 1), setting.of_seeds / np.sqrt(2))
    widths[-1] *= np.sqrt(3) if setting.uneven else 1.0
    own = random.normal(size=(draws, setting.metrics, cells, 1, seeds)) * np.sqrt(1 - ALIKE)
    common = random.normal(size=(draws, 1, cells, 1, seeds)) * np.sqrt(ALIKE)
    chance = chance + widths * (own + common)
    by_prompt = random.normal(size=(draws, setting.metrics, cells, prompts, 1))
    chance = chance + setting.of_methods / np.sqrt(2) * by_prompt
    chance[:, :, -1] += setting.gain
    right = random.random(chance.shape, np.float32) < chance.astype(np.float32)
    return np.subtract(right[:, :, 1:], right[:, :, :1], dtype=float)


def covers(setting: Setting, draws: int, random: np.random.Generator) -> tuple[float, float]:
    """The share of intervals of differences of equal cells that have 0 in them; those of the last cell, if it
    is uneven. Also its standard error: the intervals of one table depend on each other.
    """
    inside = list[Any]()
    for _ in range(0, draws, AT_ONCE):
        found = crossed.intervals(drawn(setting, AT_ONCE, random), True)
        held = np.abs(found.middle) <= found.half
        inside.append(held[..., -1] if setting.uneven else held.mean(-1))
    return float(np.mean(inside)), float(np.std(inside) / np.sqrt(np.size(inside)))


class Claims(NamedTuple):
    """Shares of tables: with any claim, with one by a t test over prompts of the means of seeds, which
    knows nothing of seeds, and whose last cell is clearly better by the headline. visible: the difference
    that they say they could see, from its least to its most.
    """

    false: float
    plain: float
    seen: float
    visible: Sequence[float]


def claims(setting: Setting, draws: int, random: np.random.Generator) -> Claims:
    """What tables claim, as `alignkit_plugins.cells.table` does."""
    false, plain, seen, visible = list[Any](), list[Any](), list[Any](), list[Any]()
    others = setting.cells - 1
    for _ in range(0, draws, AT_ONCE):
        gaps = drawn(setting, AT_ONCE, random)
        found = crossed.intervals(gaps, True)
        better, worse = crossed.one_sided(found.middle, found.spread)
        gains = better[:, 0] < ERROR / others  # by the headline; other metrics follow it
        losses = worse < ERROR / others / setting.metrics
        false.append(gains.any(-1) | losses.any((-2, -1)))
        seen.append(gains[:, -1])
        means = gaps[:, 0].mean(-1)
        p_values = stats.ttest_1samp(means, 0.0, axis=-1).pvalue
        plain.append((p_values < 2 * ERROR / others).any(-1))
        one = crossed.intervals(gaps[0, 0], True).parts
        visible.append(crossed.visible(one, ERROR / others))
    false_share, plain_share, seen_share = (float(np.mean(one)) for one in (false, plain, seen))
    return Claims(false_share, plain_share, seen_share, np.mean(visible, 0).tolist())


@app.command()
def main(
    draws: Annotated[int, typer.Option(min=1)] = 2000,
    only: Annotated[int, typer.Option(help="Coverage of tables of so many cells alone.")] = 0,
) -> None:
    """Simulate tables of cells."""
    rows = []
    for cells, uneven in ((2, False), (6, False), (6, True), (18, False), (18, True)):
        if only not in (0, cells):
            continue
        found = dict[Setting, tuple[float, float]]()
        few = draws if uneven else max(FEWEST, draws // (cells - 1))
        settings = itertools.product(SEEDS, PROMPTS, RATES, OF_SEEDS, OF_METHODS)
        for place, facts in enumerate(settings):
            setting, random = (
                Setting(cells, *facts, uneven),
                np.random.default_rng([cells, uneven, place]),
            )
            found[setting] = covers(setting, few, random)
        least = min(found, key=found.__getitem__)
        shares = [np.mean([*found.values()], 0)[0], *found[least]]
        rows.append([str(cells), "yes" if uneven else "no", *(f"{one:.1%}" for one in shares)])
        rows[-1] += map(str, least[1:6])
        print(*rows[-1], flush=True)
    print("\nCoverage of 95% intervals: mean of all settings, and the least, with its setting\n")
    heads = ["cells", "one varies more", "mean", "least", "standard error"]
    heads += ["seeds", "prompts", "rate", "sd of seeds", "sd of methods"]
    print(markdown_table(heads, rows))
    if only:
        return
    random = np.random.default_rng(0)
    rows, powers = [], []
    for cells, metrics, seeds, deviation in itertools.product(CELLS, METRICS, SEEDS, OF_SEEDS):
        setting = Setting(cells, seeds, 100, 0.5, deviation, 0.05, metrics=metrics)
        even = claims(setting, draws, random)
        apart = claims(setting._replace(uneven=True), draws, random)
        rows.append([*map(str, (cells, metrics, seeds, deviation))])
        rows[-1] += [f"{one:.1%}" for one in (even.false, apart.false, even.plain)]
        if metrics == 1:
            low, typical, high = even.visible
            planted = claims(setting._replace(gain=min(0.5, typical)), draws, random)
            powers += [planted.seen] if seeds == 5 and cells > 2 else []
            rows[-1] += [f"{100 * low:.0f} to {100 * high:.0f}", f"{100 * typical:.0f}"]
            rows[-1] += [f"{planted.seen:.0%}"]
        else:
            rows[-1] += ["", "", ""]
        print(*rows[-1], flush=True)
    print(f"\nClaims of equal cells (standard error of 5%: {np.sqrt(0.05 * 0.95 / draws):.1%})")
    print("Power at the middle of the range that a table prints\n")
    heads = ["cells", "metrics", "seeds", "sd of seeds", "claims", "one varies more"]
    heads += ["without seeds", "could see", "middle", "power"]
    print(markdown_table(heads, rows))
    print(f"\nPower with 5 seeds and 6 or 18 cells: mean {np.mean(powers):.0%}")


if __name__ == "__main__":
    app()

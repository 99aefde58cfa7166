"""How often the intervals of a table of cells hold what they should, how often equal cells get a claim, and
how often a difference is seen that the table says it could see: `python -m benchmarks.tables`.

Answers are right with a chance that varies with the prompt, the prompt and method, and the seed and method.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any

import numpy as np
import typer

from alignkit_plugins.cells import crossed
from alignkit_plugins.cells.crossed import Array
from alignkit_plugins.cells.table import ERROR
from benchmarks.markdown import markdown_table

SEEDS, PROMPTS = (2, 3, 5, 10), (40, 100, 445)
RATES, OF_SEEDS, OF_METHODS = (0.02, 0.1, 0.5, 0.9), (0.0, 0.03, 0.09), (0.0, 0.05, 0.2)
CELLS = (2, 6, 18)
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def drawn(
    shape: tuple[int, int, int, int],
    rate: float,
    spread: tuple[float, float],
    random: np.random.Generator,
    gain: float = 0.0,
    uneven: bool = False,
) -> Array:
    """Right answers [draws, cells, prompts, seeds]. spread: standard deviations by seed and by prompt of a
    difference of two cells. gain: of the last cell. uneven: whether its seeds vary three times as much.
    """
    draws, cells, prompts, seeds = shape
    chance = random.beta(4 * rate, 4 - 4 * rate, (draws, 1, prompts, 1))
    by_seed, by_prompt = (one / np.sqrt(2) for one in spread)
    widths = np.full((1, cells, 1, 1), by_seed)
    widths[:, -1] *= np.sqrt(3) if uneven else 1.0
    chance = chance + widths * random.normal(size=(draws, cells, 1, seeds))
    chance = chance + by_prompt * random.normal(size=(draws, cells, prompts, 1))
    chance[:, -1] += gain
    return np.asarray(random.random(shape) < chance, float)


def covers(
    shape: tuple[int, int, int, int],
    rate: float,
    spread: tuple[float, float],
    random: np.random.Generator,
) -> float:
    """The share of intervals of the difference of two equal cells that have 0 in them."""
    right = drawn(shape, rate, spread, random)
    found = crossed.intervals(right[:, 1:] - right[:, :1], True)
    return float((np.abs(found.middle) <= found.half).mean())


def claims(shape: tuple[int, int, int, int], *facts: Any, **more: Any) -> tuple[Any, Any, float]:
    """Whether there is any claim, whether the last cell is clearly better, and what the tables say that they
    could see, on average.
    """
    right = drawn(shape, *facts, **more)
    gaps = right[:, 1:] - right[:, :1]
    found, level = crossed.intervals(gaps, True), ERROR / (shape[1] - 1)
    better, worse = (p < level for p in crossed.one_sided(found.middle, found.spread))
    seen = list[float]()
    for at in range(0, shape[0], max(1, shape[0] // 50)):
        one = crossed.Spread(found.spread.variance[at], found.spread.free[at])
        seen.append(crossed.visible(one, level))
    return (better | worse).any(-1), better[:, -1], float(np.mean(seen))


@app.command()
def main(draws: Annotated[int, typer.Option(min=1)] = 2000) -> None:
    """Simulate tables of cells."""
    random = np.random.default_rng(0)
    found = {
        facts: covers((draws, 2, facts[1], facts[0]), facts[2], facts[3:], random)
        for facts in itertools.product(SEEDS, PROMPTS, RATES, OF_SEEDS, OF_METHODS)
    }
    worst = sorted(found, key=found.__getitem__)[:5]
    error = np.sqrt(0.05 * 0.95 / draws)
    print(
        f"\nCoverage of 95% intervals, standard error {error:.1%}: mean {np.mean([*found.values()]):.1%}\n"
    )
    print(
        markdown_table(
            ["seeds", "prompts", "rate", "sd of seeds", "sd of methods", "covers"],
            [[*map(str, facts), f"{found[facts]:.1%}"] for facts in worst],
        )
    )
    rows, powers = [], []
    for cells, seeds, deviation in itertools.product(CELLS, SEEDS, OF_SEEDS):
        shape, facts = (draws, cells, 100, seeds), (0.5, (deviation, 0.05), random)
        false, _, visible = claims(shape, *facts)
        uneven, _, _ = claims(shape, *facts, uneven=True)
        _, seen, _ = claims(shape, *facts, gain=min(0.5, visible))
        powers += [seen.mean()] if seeds == 5 and cells > 2 else []
        shares = [f"{one.mean():.1%}" for one in (false, uneven)]
        ends = [f"{100 * visible:.0f}", f"{seen.mean():.0%}"]
        rows.append([*map(str, (cells, seeds, deviation)), *shares, *ends])
    print("\nClaims of equal cells, and power at the difference that a table prints\n")
    heads = ["cells", "seeds", "sd of seeds", "claims", "one varies more", "points", "power"]
    print(markdown_table(heads, rows))
    print(f"\nPower with 5 seeds and 6 or 18 cells: mean {np.mean(powers):.0%}")


if __name__ == "__main__":
    app()

"""How often `evaluate` claims something of equal policies: `python -m benchmarks.verdicts`.

And how often it sees a gain of 20 points in the headline, next to the paired t test of that measure
alone, which corrects nothing; and a loss in another measure beside an even headline, next to plain
Holm of one-sided t tests. Scores are drawn, and judged as an evaluation judges them
(`alignkit_plugins.evals`). A claim is any "better" or "worse" of any policy, by any rater, than
the baseline or the base model; without adjusting, the same scores give many, so the draws can show
errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import typer
from scipy import special

from alignkit.data.files import jsonl_rows
from alignkit.evaluation.statistics import CONFIDENCE
from alignkit.recipe.load import load_recipe
from alignkit_plugins.compare.rows import Row, adjusted
from alignkit_plugins.compare.scores import Measure, Scale, Scores, compare
from alignkit_plugins.compare.verdicts import verdicts
from alignkit_plugins.evals.judged import Preference
from alignkit_plugins.evals.metrics import raters_of

RECIPES = Path(__file__).parents[1] / "recipes"
GAIN = 0.2
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Setting:
    """An evaluation. raters: the prompts of each metric or reward, the headline first. compared:
    policies besides the baseline and the base model. scores: how they are distributed.
    """

    name: str
    raters: Sequence[int]
    judges: int = 0
    compared: int = 1
    samples: int = 1
    scores: str = "binary"
    rate: float = 0.4  # of binary scores that are 1
    base: bool = True  # whether the base model answers
    composite: bool = False  # whether the headline is the mean of all raters


def settings() -> Iterator[Setting]:
    """1, 4 and 7 metrics with and without judges, other scores, and the evaluations of the shipped
    recipes.
    """
    for count in (1, 4, 7):
        for judges in (0, 2):
            yield from (Setting("metrics", [64] * count, judges, compared) for compared in (1, 2))
    yield from (
        Setting(f"{scores} scores", [40] * 4, 1, scores=scores) for scores in ("normal", "skewed")
    )
    yield Setting("few prompts", [8] * 4, 1)
    yield Setting("rare", [20] * 4, rate=0.1)
    yield Setting("composite", [20] * 4, composite=True)
    yield Setting("rare, composite", [20] * 4, rate=0.1, composite=True)
    yield Setting("4 answers to a prompt", [40] * 4, samples=4)
    for path in sorted(RECIPES.glob("*.yaml")):
        for stage, part in load_recipe(path).stages.items():
            options: Any = part.component.options
            if part.component.name == "evaluate" and len(options.policies) > 1:
                rows = [
                    SimpleNamespace(meta=row)
                    for _, row in jsonl_rows(options.prompts.sources[0].path)
                ]
                rows = rows[: options.prompts.sources[0].limit]
                counted = [sum(map(one.counts, rows)) for one in options.metrics.values()]
                others = len(raters_of(options)) - len(counted) - len(options.judges)
                raters, compared = (
                    [*counted, *[len(rows)] * others],
                    len({*options.policies} - {"base"}) - 1,
                )
                yield Setting(
                    f"{path.stem}: {stage}",
                    raters,
                    len(options.judges),
                    max(1, compared),
                    options.samples_per_prompt,
                    base=options.base,
                    composite=bool(options.composites),
                )


def drawn(
    setting: Setting, prompts: int, gain: float, random: np.random.Generator
) -> list[list[float]]:
    """Scores of each policy at each prompt: base, baseline and those that are compared, of which
    the last gains; or the baseline, if the gain is negative.
    """
    size = (setting.compared + 2, prompts, setting.samples)
    if setting.scores == "binary":
        rates = random.beta(4 * setting.rate, 4 - 4 * setting.rate, (1, prompts, 1)) * (
            1 - abs(gain)
        ) + np.zeros(size)
        rates[-1 if gain > 0 else 1] += abs(gain)
        scores: Any = random.random(size) < rates
    else:
        noise = (
            random.normal(size=size)
            if setting.scores == "normal"
            else random.lognormal(0, 1.5, size)
        )
        scores = random.normal(size=(1, prompts, 1)) + noise
    found: list[list[float]] = scores.mean(2).tolist()
    return found


def evaluation(
    setting: Setting, gain: float, random: np.random.Generator
) -> tuple[list[Row], list[float]]:
    """The rows of an evaluation, as far as verdicts read them, and the t values of the last policy
    against the baseline, by rater. gain: of the headline, or of all in a composite; a negative one is of
    the rater after it.
    """
    policies = [f"policy {number}" for number in range(setting.compared)]
    scale = Scale((0.0, 1.0) if setting.scores == "binary" else None, setting.samples)
    facts: dict[str, Any] = {"trained_on": dict.fromkeys(policies, False), "tested": True}
    table, t_values, every = Scores(), list[float](), list[dict[str, list[float]]]()
    for number, prompts in enumerate(setting.raters):
        of_all = setting.composite and gain > 0
        planted = gain if of_all or number == (gain < 0) else 0.0
        base, baseline, *ours = drawn(setting, prompts, planted, random)
        every.append({**dict(zip(policies, ours, strict=True)), "baseline": baseline, "base": base})
        gap = np.subtract(ours[-1], baseline)
        error = float(gap.std(ddof=1)) / np.sqrt(prompts)
        t_values.append(float(gap.mean()) / error if error else 0.0)
    if setting.composite:
        parts = {f"rater {number}": 1 / len(every) for number in range(len(every))}
        table.measures["composite"] = Measure(scale=Scale(None), parts=parts, **facts)
    for number, scores in enumerate(every):
        table.measures[f"rater {number}"] = Measure(scale=scale, **facts)
        places = [(str(place), None) for place in range(setting.raters[number])]
        table.add(f"rater {number}", scores, places)
    table.combine()
    for number in range(setting.judges):
        prefers = {"baseline": [0.5] * setting.raters[0]}
        for policy in policies:
            drawn_ones = random.choice([0.0, 0.5, 1.0], setting.raters[0], p=(0.35, 0.3, 0.35))
            prefers[policy] = drawn_ones.tolist()
        table.measures[f"judge {number}"] = Measure("judge", Preference(None), **facts)
        table.add(f"judge {number}", prefers, [(str(at), None) for at in range(setting.raters[0])])
    rows = compare(table, "baseline", policies, "base" if setting.base else None)
    rows.sort(key=lambda row: row.policy)
    return adjusted(rows), t_values


def outcome(rows: list[Row], policy: str) -> str:
    """What the verdict on a policy is."""
    return next(one.outcome for one in verdicts(rows) if one.policy == policy)


def one_sided(setting: Setting, t_values: Sequence[float]) -> list[float]:
    """The p value of each t test that the policy is worse."""
    pairs = zip(setting.raters, t_values, strict=True)
    return [float(special.stdtr(prompts - 1, t)) for prompts, t in pairs]


def told_by_holm(p_values: Sequence[float], place: int) -> bool:
    """Whether plain Holm at 2.5% rejects one hypothesis."""
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[at] >= (1 - CONFIDENCE) / 2 / (len(p_values) - rank):
            return False
        if at == place:
            return True
    return False


def rates(setting: Setting, draws: int, seed: int = 0) -> dict[str, float]:
    """Shares of evaluations: with any claim of equal policies, by direction and without adjusting,
    and with a gain seen, by `evaluate` and by a t test.
    """
    random, last = np.random.default_rng(seed), f"policy {setting.compared - 1}"
    claims: dict[str, list[bool]] = {"claims": [], "better": [], "worse": [], "unadjusted": []}
    for _ in range(draws):
        rows = [row for row in evaluation(setting, 0.0, random)[0] if row.p is not None]
        claims["better"].append(any(row.clear == 1 for row in rows))
        claims["worse"].append(any(row.clear == -1 for row in rows))
        claims["claims"].append(claims["better"][-1] or claims["worse"][-1])
        claims["unadjusted"].append(any(row.difference["p"] < 1 - CONFIDENCE for row in rows))
    found = {name: float(np.mean(one)) for name, one in claims.items()}
    if setting.scores != "binary":
        return found | {"power": np.nan, "alone": np.nan}
    seen, alone = list[bool](), list[bool]()
    for _ in range(draws):
        rows, t_values = evaluation(setting, GAIN, random)
        seen.append(outcome(rows, last) in ("gained", "mixed"))
        alone.append(1 - one_sided(setting, t_values)[0] < (1 - CONFIDENCE) / 2)
    return found | {"power": float(np.mean(seen)), "alone": float(np.mean(alone))}


# Five metrics on as many prompts as the quick start's; the second one loses
HARM = Setting("loss of", [100, 100, 85, 80, 80], rate=0.07, base=False)


def losses(loss: float, draws: int, seed: int = 0) -> tuple[float, float]:
    """How often a loss is told: by `evaluate`, and by plain Holm over all metrics."""
    random, told, plainly = np.random.default_rng(seed), 0, 0
    for _ in range(draws):
        rows, t_values = evaluation(HARM, -loss, random)
        own = [row for row in rows if row.metric == "rater 1" and row.difference]
        told += own[0].clear == -1
        plainly += told_by_holm(one_sided(HARM, t_values), 1)
    return told / draws, plainly / draws


@app.command()
def main(
    draws: Annotated[int, typer.Option(min=1, help="Simulated evaluations of each kind.")] = 2000,
) -> None:
    """Print the table."""
    print(
        f"{draws} evaluations each; standard error of a rate of 5%: "
        f"{np.sqrt(0.05 * 0.95 / draws):.1%}"
    )
    heads = (
        f"{'raters':>6} {'judges':>6} {'policies':>8} {'prompts':>7} {'claims':>7} {'better':>7} "
        f"{'worse':>7} {'unadjusted':>10} {'gain seen':>9} {'t test':>7}"
    )
    print(f"{'':<26} {heads}")
    for one in settings():
        found = rates(one, draws)
        cells = f"{len(one.raters):>6} {one.judges:>6} {one.compared + 1:>8} {one.raters[0]:>7}"
        print(
            f"{one.name:<26} {cells} {found['claims']:>7.1%} {found['better']:>7.1%} "
            f"{found['worse']:>7.1%} {found['unadjusted']:>10.1%} {found['power']:>9.1%} "
            f"{found['alone']:>7.1%}",
            flush=True,
        )
    for loss in (0.0, 0.11, 0.4):
        told, plainly = losses(loss, draws)
        print(
            f"{HARM.name} {loss * 100:.0f} points: told in {told:.1%}, by plain Holm in {plainly:.1%}"
        )


if __name__ == "__main__":
    app()

"""Curves of a stage's metrics: which numbers belong in one panel, in few points that keep every
spike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict, cast

from alignkit_plugins.compare.readable import bounds, number
from alignkit_plugins.compare.rows import Row

POINTS = 300  # of a series
OTHERS = 8  # panels of a stage for metrics that have no place of their own
NOT_METRICS = ("stage", "step", "time")

# Title of a panel -> names of metrics, of which `*` ends a prefix.
PANELS: dict[str, tuple[str, ...]] = {
    "Loss": ("loss", "validation/loss"),
    "Reward": ("reward", "best_reward", "return"),
    "Gold": ("gold",),
    "Scores": ("score/*",),
    "KL to the reference, nats": ("kl",),
    "Entropy, nats per token": ("entropy", "sampled_entropy"),
    "Repetition, hedges, confidence words, shares": ("repetition", "hedges", "confidence"),
    "Diversity": ("distinct_1", "distinct_2", "self_bleu"),
    "Response length, tokens": ("response_tokens",),
    "Truncated responses": ("truncated",),
    "Accuracy": ("accuracy", "validation/accuracy"),
    "Rewards of better and worse": ("rewards/*",),
    "Clipped": ("clip_fraction", "value_clip_fraction"),
    "KL of an update, nats": ("approx_kl",),
    "Ranking loss": ("rank",),
    "Centering loss": ("center",),
    "KL loss, nats per token": ("kl_loss",),
    "Probability ratio": ("ratio",),
    "Gradient norm": ("grad_norm", "value_grad_norm"),
    "Learning rate": ("learning_rate",),
    "Spread of the reward": ("reward_std",),
    "Prompts whose rewards are all equal": ("groups_without_spread",),
    "Sampler against training, nats per token": ("sampler_gap",),
    "Weights of importance, shares": ("importance_capped", "importance_masked"),
}
# What curves of training are about; a stage shows the first ones that it has, and the others on
# demand.
MAIN = ("Reward and gold against KL", "Reward", "KL to the reference, nats", "Loss", "Accuracy")
SHOWN = 2
# Metrics with a panel for themselves
ALONE = {names[0]: title for title, names in PANELS.items() if len(names) == 1}
WORDS = {  # of other metrics whose names say too little with blanks for their underscores
    "kl_coefficient": "KL coefficient",
    "grad_norm": "gradient norm",
    "value_grad_norm": "gradient norm of the values",
    "reward_std": "deviation of the reward",
    "gold_std": "deviation of gold",
    "self_bleu": "self-BLEU",
    "score": "score by",
    "rewards": "reward of",
    "seconds": "seconds of",
}
UNDRAWN = {
    "epoch",
    "tokens_per_second",
    "unscored",
    "replayed",
    "skipped",
    "gold_std",
    "gold_unscored",
}
TIMES = "seconds"  # begins metrics that a table sums up


class Series(TypedDict):
    """Points to draw. style: line, points, or path (arrows from point to point).

    low, high: bounds of y. x_low, x_high: bounds of x. labels: one per point. All are as long as x,
    or absent.
    """

    name: str
    style: str
    x: list[float]
    y: list[float]
    low: NotRequired[list[float | None]]
    high: NotRequired[list[float | None]]
    x_low: NotRequired[list[float | None]]
    x_high: NotRequired[list[float | None]]
    labels: NotRequired[list[str]]


class Figure(TypedDict):
    """A panel. marks: x of the places where the run was resumed. lines: x and y of a cross to draw.
    note: below it.
    """

    stage: str
    title: str
    x_label: str
    y_label: str
    series: list[Series]
    marks: list[float]
    lines: list[float]
    note: str


def figure(stage: str, title: str, series: list[Series], **more: Any) -> Figure:
    """A panel over steps. more: other parts of a `Figure` than those of a bare one."""
    bare = Figure(
        stage=stage,
        title=title,
        x_label="step",
        y_label="",
        series=series,
        marks=[],
        lines=[],
        note="",
    )
    return cast(Figure, {**bare, **more})


def worded(metric: str) -> str:
    """A metric's name in words: `score by helpful` for `score/helpful`, whose last part is
    somebody's name.
    """
    first, _, rest = metric.partition("/")
    title = ALONE.get(first, "")
    words = (
        WORDS.get(first)
        or (title if title[:2].isupper() else title[:1].lower() + title[1:])
        or first.replace("_", " ")
    )
    return f"{words} {rest if first == 'score' else rest.replace('_', ' ')}" if rest else words


def main_first(figures: Sequence[Figure]) -> tuple[list[Figure], list[Figure]]:
    """The figures that a reader of a stage needs, at most SHOWN, and the others."""
    by_title = {figure["title"]: figure for figure in figures}
    main = [by_title[title] for title in MAIN if title in by_title][:SHOWN]
    return main, [figure for figure in figures if figure not in main]


def series_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and finite values of each metric, in the order in which metrics first occur."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for index, row in enumerate(rows, 1):
        at = number(row.get("step"))
        for name, value in row.items():
            if name not in NOT_METRICS and (y := number(value)) is not None:
                x, values = found.setdefault(name, ([], []))
                x.append(float(index) if at is None else at)
                values.append(y)
    return found


def ends(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """First, last, least and largest value of each metric."""
    return {
        name: {"first": y[0], "last": y[-1], "min": min(y), "max": max(y)}
        for name, (_, y) in series_of(rows).items()
    }


def not_finite(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How often each metric was not a finite number."""
    counts: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            if value in ("nan", "inf", "-inf"):
                counts[name] = counts.get(name, 0) + 1
    return counts


def panels(
    stage: str, rows: Sequence[Mapping[str, Any]], restarts: Sequence[float] = ()
) -> list[Figure]:
    """A stage's curves. Metrics with one value have none. restarts: when it was started again, as
    `time` in rows.
    """
    timeless = {name: xy for name, xy in series_of(rows).items() if name.partition("/")[0] != TIMES}
    found = {name: xy for name, xy in timeless.items() if len(xy[0]) > 1 and name not in UNDRAWN}
    grouped = {
        title: [name for name in found if _belongs(name, names)] for title, names in PANELS.items()
    }
    placed = {name for names in grouped.values() for name in names}
    if [found[name] for name in grouped["Scores"]] == [found.get("reward")]:
        grouped["Scores"] = []
    drawn = [found[name] for name in placed]
    rest = {name: xy for name, xy in found.items() if name not in placed and xy not in drawn}
    others = [name for name, (_, y) in rest.items() if len(set(y)) > 1]
    grouped |= {worded(name).capitalize(): [name] for name in others[:OTHERS]}
    marks = _marks(rows, restarts)
    return [
        figure(
            stage,
            title,
            [
                {"name": name, "style": "line", "x": found[name][0], "y": found[name][1]}
                for name in names
            ],
            marks=marks,
        )
        for title, names in grouped.items()
        if names
    ]


def _belongs(name: str, wanted: Iterable[str]) -> bool:
    return any(name.startswith(one[:-1]) if one.endswith("*") else name == one for one in wanted)


def _marks(rows: Sequence[Mapping[str, Any]], restarts: Sequence[float]) -> list[float]:
    """The steps after which a start continued the stage."""
    times = [(number(row.get("time")), number(row.get("step"))) for row in rows]
    known = [(when, step) for when, step in times if when is not None and step is not None]
    marks = []
    for start in restarts:
        before = [step for when, step in known if when < start]
        if before and len(before) < len(known):
            marks.append(max(before))
    return sorted(set(marks))


def thinned(figures: Sequence[Figure]) -> list[Figure]:
    """The figures with at most POINTS per line."""
    return [
        {**figure, "series": [_thinned(series) for series in figure["series"]]}
        for figure in figures
    ]


def _thinned(series: Series) -> Series:
    if series["style"] != "line" or len(series["x"]) <= POINTS:
        return series
    kept = spikes(series["y"], POINTS)
    return {**series, "x": [series["x"][i] for i in kept], "y": [series["y"][i] for i in kept]}


def spikes(values: Sequence[float], limit: int) -> list[int]:
    """Indices of at most `limit` values: the first, the last, and the least and largest of equal
    parts in between.
    """
    if len(values) <= limit:
        return list(range(len(values)))
    parts = max(1, (limit - 2) // 2)
    inner = len(values) - 2
    kept = {0, len(values) - 1}
    for part in range(parts):
        indices = range(1 + part * inner // parts, 1 + (part + 1) * inner // parts)
        kept |= {min(indices, key=values.__getitem__), max(indices, key=values.__getitem__)}
    return sorted(kept)


HALF = 50.0  # the win rate of the baseline against itself, in %


def alignment_path(stage: str, rows: Sequence[Row]) -> list[Figure]:
    """Helpfulness against harmlessness by version, as in Llama 2's figure 11 (Touvron et al. 2023,
    arXiv:2307.09288).

    The path of the versions by win rate against the baseline, by the first two rewards; none
    without two. The baseline itself is in the middle. Versions without a win rate are left out.
    rows: of the evaluation.
    """
    names = list(
        dict.fromkeys(row.metric for row in rows if row.kind == "reward" and row.difference)
    )[:2]
    compared = [row for row in rows if row.win_rate and not row.column]
    won: dict[Any, Any] = {(row.policy, row.metric): row.win_rate for row in compared}
    baseline = next((row.baseline for row in compared), "")
    won |= {(baseline, name): {"mean": HALF / 100} for name in names}
    path: dict[str, Any] = {
        key: [] for key in ("labels", "x", "x_low", "x_high", "y", "low", "high")
    }
    for policy in dict.fromkeys(row.policy for row in rows):
        places = [end for name in names for end in bounds(won.get((policy, name)))]
        if len(places) == 6 and None not in (places[0], places[3]):
            percent = [None if end is None else 100 * end for end in places]
            for values, value in zip(path.values(), [policy, *percent], strict=True):
                values.append(value)
    if len(path["x"]) < 2:
        return []
    x_name, y_name = names
    return [
        figure(
            stage,
            f"{x_name} against {y_name}, by version",
            [cast(Series, {"name": "versions", "style": "path", **path})],
            x_label=f"{x_name}: won against {baseline}, %",
            y_label=f"{y_name}: won against {baseline}, %",
            lines=[HALF, HALF],
            note=(
                f"win rates with 95% intervals; {baseline} is at 50%; arrows follow the order of "
                "the policies"
            ),
        )
    ]

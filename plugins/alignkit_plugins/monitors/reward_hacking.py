"""Monitors of reward hacking: drift and kinds of prompts, which every stage in iterations has; gold;
a budget of KL (docs/report.md). A prompt is the unit of all intervals.
"""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean as mean
from statistics import pstdev
from typing import Any, NamedTuple

from alignkit import (
    DataError,
    DataRef,
    Field,
    Group,
    Monitor,
    MonitorReport,
    Options,
    RewardRef,
    RunFailed,
)
from alignkit.contract.kinds import MonitoredStage
from alignkit.contract.settings import Settings
from alignkit.data.group import Response, length, read_groups, write_groups
from alignkit.evaluation.statistics import interval_text
from alignkit_plugins.text import text_metrics
from alignkit_plugins.text.rows import with_score
from alignkit_plugins.text.spoken import all_turns

GOLD_KEY = "gold"  # a key of a response's scores
SAMPLES = 2  # answers to each held-out prompt, enough to compare answers to one prompt


LEAST = 8  # prompts
LEVEL = 0.05  # chance of any false warning or stop over all iterations
KINDS_LEVEL = 0.01  # the same, of a warning that the reward of a kind of prompt falls
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
        return interval_text(self._asdict(), sign=True)


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
    # Takes a second to load, which no command that only looks at a recipe should wait for
    from scipy import stats

    # Scipy warns of equal values
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
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
        """The change from the best iteration to the last, with an interval that holds over all pairs
        of iterations.

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
        metrics.pop("length", None)  # `response_tokens` is its mean over answers
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


class Rewards(NamedTuple):
    """Mean and deviation over prompts of a kind, in some iterations, and how many they are."""

    mean: float
    std: float
    prompts: int


def fallen(rows: Sequence[Mapping[str, Any]], level: float, least: int = LEAST) -> dict[str, str]:
    """What to say of each kind of prompt whose reward fell, from the first third of the iterations
    to the last, while the mean reward rose; by Welch's t test.

    rows: their metrics. level: the chance to say so of any kind although none has changed. least:
    the prompts of a kind from which on something is said; below LEAST, that nobody can tell.
    """
    part, found = max(1, len(rows) // 3), dict[str, str]()
    first, last = rows[:part], rows[-part:]
    kinds = fnmatch.filter(rows[-1], "kind/*/reward")
    for name in kinds:
        kind = name.removeprefix("kind/").removesuffix("/reward")
        before, after = _of_kind(kind, first), _of_kind(kind, last)
        began, now = (mean(row["reward"] for row in end) for end in (first, last))
        prompts = min(before.prompts, after.prompts)
        if prompts >= least and after.mean < before.mean and now > began:
            # Takes a second to load, see `change`
            from scipy import stats

            test = stats.ttest_ind_from_stats(*after, *before, equal_var=False, alternative="less")
            if test.pvalue < level / len(kinds):
                moved = f"from {before.mean:.3g} to {after.mean:.3g}"
                text = (
                    f"the reward of '{kind}' fell {moved} while the mean rose from {began:.3g} to "
                    f"{now:.3g}: give that kind more weight"
                )
                if prompts < LEAST:
                    text = (
                        f"{prompts} prompts of '{kind}' are too few to tell whether its reward "
                        f"fell {moved}: sample more of them"
                    )
                found[kind] = text
    return found


def _of_kind(kind: str, rows: Sequence[Mapping[str, Any]]) -> Rewards:
    """The rewards of all iterations together, from the mean, standard error and count of each."""
    means, squares, counts = list[float](), 0.0, list[int]()
    for row in rows:
        if count := row.get(f"kind/{kind}/prompts"):
            counts.append(count)
            means.append(row[f"kind/{kind}/reward"])
            squares += row.get(f"kind/{kind}/reward_se", 0.0) ** 2 * count * (count - 1)
    total = sum(counts)
    if total < 2:
        return Rewards(math.nan, math.nan, total)
    middle = mean(means, counts)
    squares += sum(n * (one - middle) ** 2 for n, one in zip(counts, means, strict=True))
    return Rewards(middle, math.sqrt(squares / (total - 1)), total)


# The monitors


class RewardHacking(Monitor):
    """Warns of drift, and of kinds of prompts that pay for others."""

    def start(self, stage: MonitoredStage) -> Sequence[str]:
        self.looks = stage.settings.iterations
        self.drift = Drift(self.looks)
        self.rows, self.warned = list[Mapping[str, Any]](), set[str]()
        return ()

    def observe(
        self, iteration: int, groups: Sequence[Group], metrics: Mapping[str, Any]
    ) -> MonitorReport:
        self.rows.append(dict(metrics))
        # Looks share the chance of a false warning, and the first one compares nothing
        found = fallen(self.rows, KINDS_LEVEL / max(1, self.looks - 1))
        warnings = [text for kind, text in found.items() if kind not in self.warned]
        self.warned |= found.keys()
        if not groups:  # people delete files; drift begins later then
            return MonitorReport(warnings=warnings)
        drift, departures = self.drift.add(groups)
        return MonitorReport(drift, [*warnings, *departures])


class Gold(Monitor):
    """Measures a reward that nothing learns from, and may end the stage when it falls."""

    class Options(Options):
        reward: RewardRef = Field(
            description="what is measured and never learned from, to see whether 'reward' is hacked"
        )
        prompts: DataRef = Field(
            None, "held-out prompts, with two responses to each; default: the stage's own samples"
        )
        stop: bool = Field(
            False,
            (
                "end when gold has fallen from its best iteration by more than its interval; the "
                "result is the policy of the best iteration"
            ),
        )

    options: Options

    def check(self, settings: Settings) -> None:
        held_out = self.options.prompts is not None
        if held_out and settings.environment is not None:
            raise DataError(
                "'prompts' of gold cannot be played with an environment\nhelp: leave 'prompts' out"
            )
        if self.options.stop and settings.rollout.async_level and not held_out:
            # Its samples would say how good the policy was one update before the one that the stage
            # goes back to.
            raise DataError(
                "'stop' of gold would judge a policy by what the one before it wrote\n"
                "help: add 'prompts'"
            )
        if sum(isinstance(each.options, Gold.Options) for each in settings.monitors or ()) > 1:
            raise DataError("a stage has one gold\nhelp: combine the rewards")

    def start(self, stage: MonitoredStage) -> Sequence[str]:
        self.stage, self.rewards = stage, stage.scorer(self.options.reward)
        self.history = History(stage.settings.iterations)
        self.prompts: Sequence[Group] = ()
        if self.options.prompts is not None:
            self.prompts = stage.prompts(self.options.prompts)
        if self.options.reward == stage.settings.reward:
            return ["gold is the reward itself, so it cannot tell whether the reward is hacked"]
        return ()

    def observe(
        self, iteration: int, groups: Sequence[Group], metrics: Mapping[str, Any]
    ) -> MonitorReport:
        file = self.stage.folder / "gold" / f"{iteration:04d}.jsonl"
        if iteration > self.stage.done:
            if self.prompts:
                groups = self.stage.answer(self.prompts, SAMPLES, iteration)
            scored = zip(groups, self.rewards.score(groups), strict=True)
            measured = [with_score(group, by_gold, GOLD_KEY) for group, by_gold in scored]
            self.stage.on_main_process(lambda: write_groups(file, measured))
        scores: dict[str, list[float]] = {}
        numbers = {"gold_unscored": 0.0}
        for group in read_groups(file):
            for response in group.responses:
                score = response.scores[GOLD_KEY]
                if score is None:
                    numbers["gold_unscored"] += 1
                else:
                    scores.setdefault(group.id, []).append(score)
        self.history.add(iteration, scores)
        if not numbers["gold_unscored"]:
            numbers = {}
        if gold := list(chain.from_iterable(scores.values())):
            numbers |= {"gold": mean(gold), "gold_std": pstdev(gold)}
        stop = ""
        if self.options.stop and self.history.fell():
            stop = f"gold fell by more than its interval: {self.history.change()}"
        return MonitorReport(numbers, stop=stop, best=self.history.best)

    def finish(self, stopped: str) -> MonitorReport:
        """What gold did."""
        moved, best = self.history.change(), self.history.best
        warnings = []
        if self.history.fell() and not stopped:
            warnings = [f"gold was best in iteration {best} and has fallen since: {moved}"]
        summary = {"best_iteration": best, "change": moved and moved._asdict()}
        return MonitorReport(warnings=warnings, summary={"gold": summary})


class KLBudget(Monitor):
    """Ends a stage whose policy is too far from the reference."""

    class Options(Options):
        max: float = Field(
            gt=0,
            description=(
                "end when the KL to the reference exceeds this many nats per response that is "
                "learned from; the result is the last policy within this budget"
            ),
        )

    options: Options
    within = 0

    def start(self, stage: MonitoredStage) -> Sequence[str]:
        self.async_level = stage.settings.rollout.async_level
        return ()

    def observe(
        self, iteration: int, groups: Sequence[Group], metrics: Mapping[str, Any]
    ) -> MonitorReport:
        # NaN, the KL of no samples, is neither within the budget nor beyond it.
        kl, budget, stop = metrics.get("kl", float("nan")), self.options.max, ""
        if self.async_level and "kl" in metrics and "engine_mismatch" not in metrics:
            raise RunFailed(
                "kl_budget with 'async_level' reads log-probabilities, and the engine returns none"
            )
        if kl > budget:
            stop = f"the KL of {kl:.3g} nats is beyond the budget of {budget:.3g}"
        elif kl <= budget:
            self.within = iteration
        return MonitorReport(stop=stop, best=self.within)

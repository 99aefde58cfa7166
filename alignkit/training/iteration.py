"""One iteration of an online stage: the state that its steps share, its metrics, and what it did not learn from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from alignkit import functional as F
from alignkit.batch import likelier_now
from alignkit.data.describe import said
from alignkit.data.group import Group, length
from alignkit.errors import RunFailed
from alignkit.models.packing import Examples
from alignkit.reward import REWARD_KEY, CombinedReward
from alignkit.tokens.encoder import counted
from alignkit.training.context import StageContext
from alignkit.training.scoring import ScoredRollouts

FILTERED = "filters left out every group"
FILTERED_HELP = (
    "look at the rewards in the samples and widen the filter, or leave it out; with more prompts_per_iteration or "
    "samples_per_prompt, a group that it keeps is likelier"
)


@dataclass
class Iteration:
    """The state of one iteration, filled step by step.

    number: counts from 1. sampled: every sample so far. parts: what the parts of the reward say of them: [responses].
    rollouts: every sample with its scores. groups, combined: the groups that the algorithm keeps, and their reward;
    None if it learns from none. examples: these groups in tokens, with the measurements and the signal. skipped: why
    the iteration learns nothing, or an empty string.
    """

    number: int
    sampled: list[Group] = field(default_factory=list)
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    rollouts: ScoredRollouts = field(init=False)
    groups: list[Group] = field(init=False)
    combined: CombinedReward | None = field(init=False)
    examples: Examples = field(init=False)
    skipped: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timer(self, part: str) -> Iterator[None]:
        """Measure the wall-clock time of a part of the iteration, which may have several pieces."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - began

    def speed_metrics(self) -> dict[str, float]:
        """Seconds in total and by part, and tokens sampled per second."""
        new_tokens = sum(length(response) for group in self.rollouts.all_groups for response in group.responses)
        parts = {f"seconds/{part}": seconds for part, seconds in self.seconds.items()}
        speed = new_tokens / (self.metrics.get("seconds/sampling") or self.seconds["rollout"])
        return {"tokens_per_second": speed, "seconds": sum(self.seconds.values()), **parts}

    def sample(self) -> tuple[str, str, str]:
        """The first answer to the first prompt, which is as good as any: the prompt's last turn, text, and facts."""
        group = self.rollouts.all_groups[0]
        response = group.responses[0]
        reward = response.scores.get(REWARD_KEY)
        facts = [] if reward is None else [f"reward {reward:.3g}"]
        facts += [counted(length(response), "token")] + ["cut off"] * response.truncated
        return said(group.prompt[-1:]), response.text, ", ".join(facts)

    def why_nothing_learned(self) -> str:
        """The most likely reason, judging by the metrics."""
        if self.metrics.get("skipped"):
            return "the loss or its gradient was not finite"
        if self.rollouts.combined is None:
            return self.skipped or "no sample was selected"
        rewards = self.rollouts.combined.raw.tolist()
        low, high = min(rewards), max(rewards)
        if F.nearly_equal(low, high):
            equal = f"all {len(rewards)} rewards were {low:.4g}"
            reason = f"{self.skipped} ({equal})" if self.skipped else equal
            return f"{reason}. Check the reward, or start with easier prompts"
        if self.skipped:
            return self.skipped
        return f"no sample was selected: rewards ranged from {low:.4g} to {high:.4g}"


def rollout_metrics(rollouts: ScoredRollouts) -> dict[str, Any]:
    """Mean and deviation of the raw reward, means of its components, lengths, and the share of truncated responses.

    Without a reward there are only the last two.
    The reward is the one in the files of rollouts: it includes the mean of `missing_eos_penalty`, which is logged too.
    """
    responses = [response for group in rollouts.groups for response in group.responses]
    metrics: dict[str, Any] = {}
    if (raw := rollouts.raw) is not None:
        metrics |= {"reward": float(raw.mean()), "reward_std": float(raw.std(correction=0))}
    if REWARD_KEY in responses[0].scores:
        metrics["unscored"] = rollouts.unscored
    if rollouts.scores is not None:
        metrics |= rollouts.scores.missing()
    for name in responses[0].scores:
        values = [score for response in responses if (score := response.scores.get(name)) is not None]
        if name != REWARD_KEY and values:
            metrics[f"score/{name}"] = sum(values) / len(values)
    if rollouts.combined is not None:
        metrics |= {f"reward/{name}": value for name, value in rollouts.combined.metrics.items()}
    if rollouts.penalty is not None:
        metrics["missing_eos_penalty"] = rollouts.penalty
    metrics["response_tokens"] = sum(map(length, responses)) / len(responses)
    metrics["truncated"] = sum(response.truncated for response in responses) / len(responses)
    return metrics


def mean_kl(logprobs: Sequence[torch.Tensor], reference: Sequence[torch.Tensor], groups: Sequence[Group]) -> float:
    """Mean KL of responses to the reference, in nats, by k3, which is never negative. NaN if the policy diverged."""
    kl = _summed(F.kl_k3, logprobs, reference, groups)
    return sum(kl) / len(kl) if kl else math.nan


def below_zero(logprobs: Sequence[torch.Tensor], reference: Sequence[torch.Tensor], groups: Sequence[Group]) -> float:
    """The mean log ratio of policy and reference (k1), if it is below 0 by more than chance can explain; else 0.

    It estimates the KL of samples of the policy, and cannot be negative for them. Chance alone: 1 report in 1,000.
    """
    from scipy import special

    kl = torch.tensor(_summed(F.kl_k1, logprobs, reference, groups))
    if len(kl) < 2:
        return 0.0
    mean, error = float(kl.mean()), float(kl.std()) / math.sqrt(len(kl))
    return mean if mean < -error * float(special.stdtrit(len(kl) - 1, 0.999)) else 0.0


def _summed(
    estimator: Callable[..., torch.Tensor],
    logprobs: Sequence[torch.Tensor],
    reference: Sequence[torch.Tensor],
    groups: Sequence[Group],
) -> list[float]:
    """An estimate per response. Tokens that do not count are 0 in both."""
    responses = [response for group in groups for response in group.responses]
    found = zip(responses, logprobs, reference, strict=True)
    return [float((estimator(a, b) * likelier_now([r], a[None])[0]).sum()) for r, a, b in found]


def report_filtered(context: StageContext, summary: Mapping[str, Any]) -> None:
    """Report how many groups each filter left out, over all iterations."""
    counts = summary.get("filtered", {})
    if any(counts.values()):
        facts = ", ".join(f"{name} {count}" for name, count in counts.items())
        context.say(f"groups that filters left out: {facts}")


def report_idle(context: StageContext, summary: Mapping[str, Any], iterations: int, samples: Path) -> None:
    """Report iterations that learned nothing. Raises RunFailed if none learned anything. samples: their folder."""
    idle = summary.get("idle_iterations", 0)
    if not idle:
        return
    fact = (
        f"{idle} of {counted(iterations, 'iteration')} had nothing to learn from. Last reason: {summary['idle_reason']}"
    )
    if idle == iterations:
        text = f"stage '{context.name}': {fact}. The samples are in {samples}"
        raise RunFailed(f"{text}\nhelp: {FILTERED_HELP}" if FILTERED in summary["idle_reason"] else text)
    context.say(fact)

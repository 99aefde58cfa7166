"""The raters that a verdict goes by, and a warning if policies learned from all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignkit import StepData
from alignkit.evaluation.judge_card import judge_names
from alignkit.evaluation.reward_columns import label


def raters_of(options: Any) -> dict[str, Any]:
    """Measures, the first combination, reward models, and judges, by name; without measures the first reward too.

    Other rewards, such as length, are shown but do not say which policy is better. options: of `evaluate`.
    """
    rewards = {label(spec): spec for spec in options.rewards}
    combined = [name for name, spec in rewards.items() if spec.kind == "combine"]
    models = [name for name, spec in rewards.items() if spec.kind in ("stage", "folder")]
    kept = dict.fromkeys([*(combined or ([] if options.measures else list(rewards)))[:1], *models])
    measured = {name: measure.reward for name, measure in options.measures.items()}
    judges = dict(zip(judge_names(options.judges), options.judges, strict=True))
    return {**measured, **{name: rewards[name] for name in kept}, **judges}


def warn_of_own_raters(options: Any, policies: Sequence[str], baseline: str, data: StepData) -> None:
    """Say which policies nothing judges independently, in one line."""
    raters = raters_of(options)
    alone = [
        policy
        for policy in policies
        if policy != baseline and raters and all(data.learned_from(policy, rater) for rater in raters.values())
    ]
    if alone:
        data.say(
            f"warning: nothing in this evaluation judges {', '.join(alone)} independently: training was to please "
            f"{', '.join(raters)}. Add `measures:` with a reward that nothing was trained on"
        )

"""DPO's frontier, again: compared over the KL that both policies reach, with a control that spans
it. See `dpo_frontier`, whose control stopped at 0.1 nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.papers import dpo_frontier

compute, figures = dpo_frontier.compute, dpo_frontier.figures


def measures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, dict[int, float]]:
    """By method and seed the area below its frontier, which chooses the rate; and of `dpo` and each
    other method those up to the KL that both reach, as shares of that below the optimal one.
    """
    found = dpo_frontier.measures(rows, rule)
    for name in [*found]:
        if name not in ("dpo", "optimum"):
            for seed, (own, other) in dpo_frontier.shared(rows, rule, "dpo", name).items():
                found.setdefault(f"dpo, up to {name}", {})[seed] = own
                found.setdefault(f"{name}, up to dpo", {})[seed] = other
    return found


def after(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, dict[int, float]]:
    """The areas that tests compare; and DPO minus PPO up to lower KLs."""
    found, methods = dict[str, dict[int, float]](), rule["methods"]
    measured = measures(rows, rule)
    for name in ("ppo", "ppo_true", "unlikelihood", "coins"):
        found[f"{methods[name]['name']}: share of the optimal area"] = measured[
            f"{name}, up to dpo"
        ]
    found["DPO, up to PPO: share of the optimal area"] = measured["dpo, up to ppo"]
    for nats in (0.5, 1, 1.5):
        both = dpo_frontier.shared(rows, {**rule, "most_kl": nats}, "dpo", "ppo")
        title = f"DPO minus PPO, up to KL {nats:g}: share of the optimal area"
        found[title] = {seed: own - other for seed, (own, other) in both.items()}
    return found

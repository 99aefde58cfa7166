"""An evaluation's rows by policy and metric, for tests that look one number up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignkit_plugins.compare.rows import ANSWERS, BASE_MODEL, KL, LENGTH, TRUNCATED, Row, rows_of


def result(row: Row) -> dict[str, Any]:
    """A comparison with the baseline: its numbers, and the prompts won, lost and tied."""
    wins, losses, ties = map(int, row.counts.split("/"))
    numbers = {
        "difference": row.difference,
        "at_equal_length": row.equal_length or None,
        "win_rate": row.win_rate or None,
    }
    return {**numbers, "wins": wins, "losses": losses, "ties": ties}


def by_policy(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of an evaluation.json with its rows as `policies`, `against`, `judged` and
    others.
    """
    policies: dict[str, Any] = {}
    for name in evaluation["policies"]:
        policies[name] = {"rewards": {}, "kl": None, "diversity": {}}
    found: dict[str, Any] = {**evaluation, "policies": policies, "rewards": [], "by": {}}
    found |= {key: {} for key in ("against", "against_base", "judged", "trained_on")}
    answers = {LENGTH: "length", TRUNCATED: "truncated", KL: "kl"}
    for row in rows_of(evaluation):
        part, own = found, policies[row.policy]
        if row.column:
            empty: dict[str, Any] = {"policies": {}, "against": {}, "judged": {}}
            part = found["by"].setdefault(row.column, {}).setdefault(row.value, empty)
            own = part["policies"].setdefault(row.policy, {"rewards": {}})
        if row.baseline == BASE_MODEL:
            found["against_base"].setdefault(row.policy, {})[row.metric] = row.difference
        elif row.kind == ANSWERS:
            own[answers[row.metric]] = {**row.estimate, "unmeasured": row.missing}
        elif row.kind == "diversity":
            own["diversity"][row.metric] = {**row.estimate, "difference": row.difference or None}
        elif row.kind == "judge":
            judged = {"preference": row.estimate, **result(row), "missing": row.missing}
            part["judged"].setdefault(row.policy, {})[row.metric] = judged
        else:
            own["rewards"][row.metric] = {**row.estimate, "unscored": row.missing}
            found["rewards"] += [row.metric] * (row.metric not in found["rewards"])
            if row.difference:
                part["against"].setdefault(row.policy, {})[row.metric] = result(row)
        if row.tested and not row.column:
            found["trained_on"].setdefault(row.policy, {})[row.metric] = row.trained_on
    return found

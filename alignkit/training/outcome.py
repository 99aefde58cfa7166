"""What an online stage says at its end: groups that filters left out, and iterations that learned nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.errors import RunFailed
from alignkit.training.context import StageContext
from alignkit.training.encoder import counted

FILTERED = "filters left out every group"
FILTERED_HELP = (
    "look at the rewards in the samples and widen the filter, or leave it out; with more prompts_per_iteration or "
    "samples_per_prompt, a group that it keeps is likelier"
)


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

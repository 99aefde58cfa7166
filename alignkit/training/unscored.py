"""Why responses of an iteration have no score, in words: whose code gave none, for which row; and what judges cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from alignkit.data.group import Group, Response, preview
from alignkit.environment import EPISODE_KEY
from alignkit.errors import RunFailed
from alignkit.judges import costs
from alignkit.plugin_errors import Author
from alignkit.reward import Reward
from alignkit.training.checked_environment import CheckedEnvironment
from alignkit.training.episodes import Episodes
from alignkit.training.scoring import Scorer

T = TypeVar("T")
_NEVER_ZERO = (
    "A missing score is None and never 0: the policy would learn from a 0 as if somebody had found the response bad, "
    "so responses without a score are left out, and here none is left."
)
_NO_ROOM = "the prompt leaves it no room for a response"


def nothing_scored(stage: str, scorer: Scorer, groups: Sequence[Group], episodes: Episodes | None = None) -> RunFailed:
    """The error for groups without a single score. episodes: the stage's, which give some rewards."""
    environment = episodes.environment if episodes is not None else None
    rows = [(group, number, r) for group in groups for number, r in enumerate(group.responses, 1)]
    lines, advice = [], []
    for key, leaf in scorer.leaves():
        missing = [row for row in rows if row[2].scores.get(key) is None]
        if not missing:
            continue
        whose, why, what = _cause(leaf, [response for _, _, response in missing], environment)
        group, number, _ = missing[0]
        at = f"{preview(group)}, response {number}{f' ({group.origin})' if group.origin else ''}"
        lines.append(f"{whose} has no score for {len(missing)} of {len(rows)} responses, first in the row {at}{why}")
        advice.append(what)
    if not lines:  # every part has a score, and the combination makes none of them
        method = f"{type(scorer.plugin).__name__}.combine"
        lines = [f"reward '{scorer.name}' ({scorer.author}, in `{method}`) makes no number of the scores of its parts"]
        advice = [f"let `{method}` return a finite number for responses whose parts all have a score"]
    help = f"help: {'; '.join(dict.fromkeys(advice))}"
    return RunFailed("\n".join([f"stage '{stage}': no response could be scored", *lines, _NEVER_ZERO, help]))


def _cause(leaf: Scorer, responses: Sequence[Response], environment: CheckedEnvironment | None) -> tuple[str, str, str]:
    """Whose score is missing, why (empty if nobody says), and what to do."""
    if leaf.plugin is None:
        help = f"shorten the prompts, or use a reward model with a longer context than '{leaf.name}' has"
        return f"reward model '{leaf.name}'", f": {_NO_ROOM}", help
    of_episodes = isinstance(leaf.plugin, Reward) and leaf.plugin.of_episodes
    if of_episodes and environment is not None and all(r.scores.get(EPISODE_KEY) is None for r in responses):
        method = f"{environment.kind.__name__}.get_reward"
        help = f"let `{method}` return a number for the episodes that it can judge, also for those that were cut short"
        return f"reward '{leaf.name}' ({_at(environment.author, method)})", ": it returned None", help
    method = f"{type(leaf.plugin).__name__}.score"
    whose = f"reward '{leaf.name}' ({_at(leaf.author, method)})"
    if leaf.reasons:
        said = "; ".join(f"{judge}: {reason or 'no reason given'}" for judge, reason in leaf.reasons.items())
        return whose, f". It asks a judge. {said}", "change the judge's options, or use another judge"
    help = f"check the options of '{leaf.name}' and the columns that it reads; it returns None where it cannot score"
    return whose, ": it returned None", help


def _at(author: Author, method: str) -> str:
    return f"{author}, in `{method}`"


def spent(scorer: Scorer) -> dict[str, float]:
    """Questions, tokens and cost of the last scoring, as metrics; stored replies count, too. Empty without judges.

    Of all processes, which call this together.
    """
    found = costs(_everywhere(scorer, [each for _, leaf in scorer.leaves() for each in leaf.spent]))
    names = {"calls": "judge/questions", "tokens": "judge/tokens", "cost": "judge/cost"}
    return {names[name]: value for name, value in found.items() if value is not None}


def why_unscored(scorer: Scorer) -> str:
    """The first reason of each judge that gave no rating or verdict, to end a sentence with; empty without one.

    Of all processes, which call this together.
    """
    found = _everywhere(scorer, [each for _, leaf in scorer.leaves() for each in leaf.reasons.items()])
    reasons: dict[str, str] = {}
    for judge, reason in found:
        if reason:
            reasons.setdefault(judge, reason)
    return "".join(f"; {judge}: {reason}" for judge, reason in reasons.items())


def _everywhere(scorer: Scorer, here: list[T]) -> list[T]:
    return [each for part in scorer.reducer.gather(here) for each in part]

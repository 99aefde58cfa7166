"""What an iteration says of the judges that its rewards ask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignkit import Context, Group, Judge, Rating, Response, Verdict
from alignkit.contract.reward import costs, spending
from alignkit.host.judges import CheckedJudge
from alignkit.host.registry import Component, Registration
from alignkit.recipe.schema import RewardSpec
from alignkit.training.collectives import Collectives
from alignkit.training.rewards import Rewards
from alignkit_plugins.ai_feedback.panel import Panel
from alignkit_plugins.ai_feedback.rubric import Rated
from tests.rows import user

CUT = "the judge's reply was cut off: raise max_tokens"


class Priced(Judge):
    """Long answers get no rating. options: unused."""

    scale = 0.0, 1.0

    def rate(self, items: Sequence[Any], rubric: Any = "") -> list[Rating]:
        cut_off = Rating(None, CUT, calls=1, tokens=10)
        good = Rating(1.0, calls=1, tokens=10)
        return [cut_off if len(text) > 5 else good for _, text in items]

    def compare(self, items: Sequence[Any]) -> list[Verdict]:
        return [Verdict(0.5, calls=1, tokens=10) for _ in items]


def made(kind: str, plugin: Any, **options: Any) -> Component:
    return Component(kind, "x", Registration("x", plugin), plugin.Options(**options))


PRICED = made("judge", Priced)


def around(folder: Path) -> Context:
    return Context(models=None, cache=folder, folder=folder, seed=0, load=list)  # type: ignore[arg-type]


GROUP = Group((user("q"),), (Response("a"), Response("b"), Response("too long")))


def test_ratings_are_counted_and_a_missing_one_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = RewardSpec("reward", "rating", made("reward", Rated, judge=PRICED))
    rewards = Rewards(spec, around(tmp_path))
    assert rewards.bounds == Priced.scale
    table = rewards.ask([GROUP])
    counts = {"judge/questions": 3, "judge/tokens": 30}
    for asked in (table, rewards.ask([GROUP])):
        assert rewards.combine(asked).summary().items() >= counts.items()
    assert rewards.combine(rewards.ask([GROUP], table)).summary()["judge/questions"] == 6
    assert table.why_unscored() == f"; reason: {CUT}"
    # Of another process, which has asked the same, too
    both = Collectives()
    monkeypatch.setattr(both, "gather", lambda mine: [mine] * (1 + isinstance(mine[0], Rating)))
    rewards.collectives = both
    assert rewards.combine(rewards.ask([GROUP])).summary()["judge/questions"] == 6


def test_what_a_panel_costs_is_counted_once(tmp_path: Path) -> None:
    panel = made("judge", Panel, judges=[PRICED, PRICED])
    with spending() as spent:
        CheckedJudge(panel, around(tmp_path)).compare([(GROUP.prompt, "a", "b")] * 3)
    assert costs(spent) == {"calls": 6, "tokens": 60}

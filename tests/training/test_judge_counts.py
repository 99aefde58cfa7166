"""What an iteration says of the judges that its rewards ask."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from processes import Exchange, Simulated

from alignkit import Context, Group, Judge, Rating, Response, Verdict
from alignkit.judges import CheckedJudge, costs, spending
from alignkit.recipe.schema import RewardSpec
from alignkit.registry import Component, Registration
from alignkit.training.collectives import ONE_PROCESS, Collectives
from alignkit.training.rewards import Rewards, RewardTable
from alignkit_plugins.ai_feedback.panel import Panel
from alignkit_plugins.ai_feedback.rubric import Rated

CUT = "the judge's reply was cut off: raise max_tokens"


class Priced(Judge):
    """Long answers get no rating. options: unused."""

    @property
    def scale(self) -> tuple[float, float]:
        return 0.0, 1.0

    def rate(self, items: Sequence[Any], rubric: Any = "") -> list[Rating]:
        cut_off = Rating(None, CUT, calls=1, tokens=10)
        good = Rating(1.0, calls=1, tokens=10)
        return [cut_off if len(text) > 5 else good for _, text in items]

    def compare(self, items: Sequence[Any]) -> list[Verdict]:
        return [Verdict(0.5, calls=1, tokens=10) for _ in items]


def around(folder: Path) -> Context:
    return Context(models=None, cache=folder, folder=folder, seed=0, load=list)  # type: ignore[arg-type]


def scorer(folder: Path, collectives: Collectives = ONE_PROCESS) -> Rewards:
    options = Rated.Options(judge=priced())
    component = Component("reward", "rating", Registration("rating", Rated), options)
    spec = RewardSpec("reward", "rating", component)
    return Rewards(spec, around(folder), collectives=collectives)


def priced() -> Component:
    return Component("judge", "priced", Registration("priced", Priced), Priced.Options())


GROUP = Group(
    ({"role": "user", "content": "q"},), (Response("a"), Response("b"), Response("too long"))
)


def usage(rewards: Rewards, table: RewardTable) -> dict[str, float]:
    summary = rewards.combine(table).summary()
    return {name: value for name, value in summary.items() if name.startswith("judge/")}


def test_ratings_are_counted_and_a_missing_one_says_why(tmp_path: Path) -> None:
    made = scorer(tmp_path)
    table = made.ask([GROUP])
    assert usage(made, table) == {"judge/questions": 3, "judge/tokens": 30}
    assert usage(made, made.ask([GROUP]))["judge/questions"] == 3
    assert usage(made, made.ask([GROUP], table))["judge/questions"] == 6
    assert table.why_unscored() == f"; a judge said: {CUT}"


def test_what_a_panel_costs_is_counted_once(tmp_path: Path) -> None:
    options = Panel.Options(judges=[priced(), priced()])
    panel = Component("judge", "panel", Registration("panel", Panel), options)
    with spending() as spent:
        CheckedJudge(panel, around(tmp_path)).compare([(GROUP.prompt, "a", "b")] * 3)
    assert costs(spent) == {"calls": 6, "tokens": 60}


def test_what_all_processes_ask_is_counted_in_each(tmp_path: Path) -> None:
    """The second scoring has one group, so that one process asks nobody."""
    exchange = Exchange(2)

    def process(number: int) -> list[tuple[float, str]]:
        made, found = scorer(tmp_path, Simulated(exchange, number, (1, 1))), []
        with exchange.turn:
            for groups in ([GROUP, GROUP], [GROUP]):
                table = made.ask(groups)
                found.append((usage(made, table)["judge/questions"], table.why_unscored()))
        return found

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(process, range(2))
    assert one == other and [questions for questions, _ in one] == [6, 3]
    assert all(why.endswith(f": {CUT}") for _, why in one)

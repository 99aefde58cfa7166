"""The step `rate_feedback`: rewards and judges say what they think of the items of a store, so that people know what
to label next."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import model_validator

import alignkit
from alignkit import Artifact, DataError, Field, JudgeRef, Register, RewardRef, Step, StepContext, hookimpl
from alignkit.evaluation.judge_card import check_names, judge_names
from alignkit.evaluation.reward_columns import label
from alignkit.evaluation.statistics import equal, share, shown
from alignkit.report import Report, Table
from alignkit_plugins.people.active_learning import rated
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.store import Store


class RateFeedback(Step):
    """Store what rewards and judges think of responses, and let people label first where they disagree.

    Each time it runs, all items that can be compared are rated, also labeled ones. Pairs of evaluations are not: people
    must see them in the order in which they were drawn, or the first labels are no sample of all pairs.
    """

    class Options(alignkit.Options):
        store: Path = Field(description="store of feedback, such as labels.feedback")
        rewards: list[RewardRef] = Field(default_factory=list, description="rewards that score the responses")
        judges: list[JudgeRef] = Field(default_factory=list, description="judges that compare them")
        contents: str = Field("", description="anything that names the store's contents: another one asks again")

        @model_validator(mode="after")
        def _consistent(self) -> Any:
            if not self.rewards and not self.judges:
                raise ValueError("name at least one reward or judge")
            check_names(self.rewards, self.judges)
            return self

    options: Options

    def run(self, context: StepContext) -> Artifact:
        options = self.options
        names = [*map(label, options.rewards), *judge_names(options.judges)]
        with Store.open(options.store) as store:
            usable = (one for one in store.items() if not one.retired and not one.item.held_out)
            known = [stored for stored in usable if len(stored.item.responses) > 1]
            if not known:
                text = "the store has no item with two responses, besides those of evaluations"
                raise DataError(f"{options.store}: {text}", option=("store",))
            items = rated([stored.item for stored in known], options.rewards, options.judges, context)
            store.rate(items)
        waiting = [item for item, stored in zip(items, known, strict=True) if stored.labels < stored.wanted]
        summary = {"items": len(items), "waiting": len(waiting)}
        return Artifact(summary=summary, report=Report([_said(summary), *_agreement(items, names)]))


def _said(summary: dict[str, int]) -> str:
    return (
        f"{summary['items']} items rated, of which {summary['waiting']} wait for labels; "
        "those on which the raters disagree most come first"
    )


def _agreement(items: Sequence[Item], names: Sequence[str]) -> list[Table]:
    """How often each two raters prefer the same of two responses."""
    rows = []
    for one, other in combinations(names, 2):
        gaps = [
            (item.opinions[one][i], item.opinions[one][j], item.opinions[other][i], item.opinions[other][j])
            for item in items
            for i, j in combinations(range(len(item.responses)), 2)
        ]
        known = [tuple(score for score in gap if score is not None) for gap in gaps if None not in gap]
        clear = [(a > b) == (c > d) for a, b, c, d in known if not (equal(a, b) or equal(c, d))]
        rows.append([f"{one} and {other}", str(len(clear)), shown(share(sum(clear), len(clear)), percent=True)])
    heads = ["raters", "pairs that both order", "alike"]
    return [Table("how far rewards and judges agree", heads, rows)] if rows else []


@hookimpl
def register_steps(register: Register) -> None:
    register("rate_feedback", RateFeedback, summary="rate a store's items, to choose what to label next")

"""The step `people`: a run asks people about rows, waits, and continues with their labels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import model_validator

from alignkit import (
    Artifact,
    BadRow,
    DataError,
    DataRef,
    Field,
    Group,
    RewardRef,
    RunFailed,
    Step,
    StepContext,
    StepData,
)
from alignkit.evaluation import statistics
from alignkit.report import Report, Table
from alignkit_plugins.people.active_learning import prioritized
from alignkit_plugins.people.asking import (
    LabelPlaces,
    items_of,
    joined,
    questions_of,
    shortage,
    with_rewards,
)
from alignkit_plugins.people.effective_labels import Labeled, labeled
from alignkit_plugins.people.feedback.format import Feedback, FeedbackOptions, Task, VoteOptions
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.rows import counts, row_of
from alignkit_plugins.people.store import Store
from alignkit_plugins.people.waiting import STORE, labels_of


class People(Step):
    """Ask people about rows, on the page of `alignkit label`.

    The run puts the rows into a store, says how to label them, and ends with exit code 75. The same
    command continues when enough labels are in. Stages that do not need them run meanwhile. What
    the step hands on is what the format `feedback` reads: pairs with margins, rankings, scores,
    reviews, demonstrations or thumbs.

    Pairs of two policies' samples are also an evaluation: the report says how often people prefer
    which.

    Only labels of the rows that the stage has now count. If an earlier stage changes, people are
    asked about its new rows, and the labels of the old ones stay in the store.
    """

    class Options(LabelPlaces, VoteOptions):
        """What is asked, how many labels are enough, and how they are collected."""

        data: DataRef = Field(
            description=(
                "what people label: rows with responses, such as a `sample` stage, or prompts"
            )
        )
        task: Task | None = Field(
            None,
            description=(
                "what people do with each item; default: by its responses: 2 are a pair, 3 to 9 "
                "a ranking, 1 or none a demonstration"
            ),
        )
        join_prompts: bool = Field(
            False,
            description=(
                "rows with the same prompt are one, such as the samples of several policies"
            ),
        )
        limit: int | None = Field(None, ge=1, description="use only the first N rows")
        labels: int | None = Field(
            None,
            ge=1,
            description=(
                "number of labeled items that are enough; default: all that nobody skipped or "
                "flagged"
            ),
        )
        annotators: int = Field(1, ge=1, le=100, description="number of people who label each item")
        gold: DataRef | None = Field(
            None,
            description=(
                "items with known labels, mixed in unseen to check people; nobody waits for them"
            ),
        )
        rewards: list[RewardRef] = Field(
            default_factory=list,
            description=(
                "rewards that score the responses; people are asked first where these disagree"
            ),
        )
        license: str = Field(
            "", description="license of rows that state none; items without one are never exported"
        )

        @model_validator(mode="after")
        def _usable(self) -> Any:
            if self.min_gold is not None and self.gold is None:
                raise ValueError("'min_gold' needs 'gold': rows whose labels are right")
            return self

    options: Options

    def check(self, folder: Path) -> None:
        self.options.check_files()

    def check_data(self, data: StepData) -> None:
        gold = data.load(self.options.gold)
        self._items(gold or (), gold=True)
        if (rows := data.load(self.options.data)) is not None:
            items = self._items(self._questions(rows))
            if lack := shortage(
                list({item.id: item for item in items}.values()), self.options.labels
            ):
                raise DataError(lack, option=("data",) if not items else ("labels",))

    def run(self, context: StepContext) -> Artifact:
        options = self.options
        store = options.store or context.out.parent / STORE
        left_out: list[str] = []
        questions = self._questions(context.load(options.data), left_out)
        items = self._items(questions, left_out=left_out)
        items = list({item.id: item for item in items}.values())
        known = self._items(context.load(options.gold), gold=True) if options.gold else []
        if lack := shortage(items, options.labels):
            reasons = "".join(
                f"\n  {count} left out: {why}" for why, count in Counter(left_out).items()
            )
            raise RunFailed(f"stage '{context.stage}': {lack}{reasons}")
        if options.rewards:
            items = prioritized(items, options.rewards, context)
        entries = labels_of(
            store,
            items,
            needed=options.labels,
            annotators=options.annotators,
            stage=context.stage,
            folder=context.out,
            gold=known,
            guidelines=options.guidelines,
            say=context.say,
        )
        # Gold items are not learned from, but say who knows the task.
        with Store.open(store, write=False) as opened:
            gold = labeled(opened, {item.id for item in known} - {item.id for item in items})
        try:
            groups, notes = self._groups(entries, gold)
        except BadRow as error:
            raise RunFailed(f"stage '{context.stage}': {error}") from error
        if not groups:
            raise RunFailed(
                f"stage '{context.stage}': the labels leave nothing to learn: all are tied or of "
                "no use"
            )
        from alignkit_plugins.people.agreement import agreement, sentence  # only here: it is slow

        facts = facts_of(entries, left_out) | {"notes": notes}
        agreed = agreement([*entries, *gold])
        context.write_json("agreement.json", {"questions": agreed})
        facts["wins"] = wins(entries)
        preferred = [wins_table(facts["wins"])] if facts["wins"] else []
        shown = Report([f"{lines_of(facts)}\n{sentence(agreed)}", *preferred])
        return Artifact(groups=groups, summary=facts, report=shown)

    def _questions(self, rows: Sequence[Group], left_out: list[str] | None = None) -> list[Group]:
        result = []
        rows = joined(rows) if self.options.join_prompts else rows
        for row in rows[: self.options.limit]:
            questions = questions_of(with_rewards(row), self.options.task)
            result += questions
            if not questions and left_out is not None:
                left_out.append("its responses do not differ")
        return result

    def _items(self, groups: Sequence[Group], **how: Any) -> list[Item]:
        return items_of(groups, self.options.task, license=self.options.license, **how)

    def _groups(
        self, entries: Sequence[Labeled], gold: Sequence[Labeled]
    ) -> tuple[list[Group], list[str]]:
        """What is learned of the items, and who was left out or weighed. gold: items that only say
        who is right.
        """
        chosen: dict[str, Any] = {
            name: getattr(self.options, name) for name in VoteOptions.model_fields
        }
        feedback = Feedback(FeedbackOptions(**chosen))
        rows = feedback.rows(
            enumerate(row_of(entry) for entry in [*entries, *gold] if counts(entry))
        )
        own = sum(map(counts, entries))
        return [group for at, row in rows if at < own for group in feedback.groups(row)], [
            *feedback.notes
        ]


def facts_of(entries: Sequence[Labeled], left_out: Sequence[str]) -> dict[str, Any]:
    """The numbers of a stage's labels."""
    labels = [vote for entry in entries for vote in entry.votes]
    seconds = [vote.seconds for vote in labels if vote.seconds is not None]
    return {
        "items": len(entries),
        "tasks": dict(Counter(entry.stored.item.task for entry in entries)),
        "labeled": sum(map(counts, entries)),
        "labels": len(labels),
        "annotators": len({vote.annotator for vote in labels}),
        "flagged": sum(bool(entry.flags) for entry in entries),
        "skipped": sum(bool(entry.skips) for entry in entries),
        "median_seconds": median(seconds) if seconds else None,
        "left_out": dict(Counter(left_out)),
    }


def lines_of(facts: Mapping[str, Any]) -> str:
    """What the report says first."""
    tasks = " and ".join(f"{count} of the task {task}" for task, count in facts["tasks"].items())
    lines = [
        f"people: {facts['labeled']} of {facts['items']} items have labels that count ({tasks})"
    ]
    lines.append(f"{facts['labels']} labels of {facts['annotators']} people")
    if facts["median_seconds"] is not None:
        lines[-1] += f", in {facts['median_seconds']:.3g} seconds each (median)"
    lines[-1] += f"; items skipped: {facts['skipped']}, flagged: {facts['flagged']}"
    lines += [f"{count} rows left out: {why}" for why, count in facts["left_out"].items()]
    return "\n".join([*lines, *facts["notes"]])


def wins(entries: Sequence[Labeled]) -> list[dict[str, Any]]:
    """How often people prefer the answers of one source to those of another one, as plain JSON.

    A pair is one case, in which its labels are averaged; pairs of one source, or without sources,
    are left out.
    """
    cases: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for entry in entries:
        item = entry.stored.item
        names = tuple(sorted({origin for origin in item.origins if origin}))
        if item.task not in ("pair", "safety") or len(names) < 2 or not counts(entry):
            continue
        labels = (
            [entry.adjudicated.label] if entry.adjudicated else [vote.label for vote in entry.votes]
        )
        chosen = [item.origins[label["better"]] for label in labels]
        cases[names].append(chosen.count(names[0]) / len(chosen))
    rows = []
    for (one, other), values in sorted(cases.items()):
        preferred = statistics.rate(values, 1 if set(values) <= {0.0, 1.0} else len(values))
        rows.append({"source": one, "against": other, "pairs": len(values), "preferred": preferred})
    return rows


def wins_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The table of what `wins` returned."""
    cells = []
    for row in rows:
        preferred = statistics.shown(row["preferred"], percent=True)
        cells.append([row["source"], row["against"], str(row["pairs"]), preferred])
    return Table("what people prefer", ["source", "against", "pairs", "preferred"], cells)

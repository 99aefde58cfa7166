"""The step `people`: a run asks people about rows, waits, and continues with their labels.

Only labels of the items that a stage asks now count. Items that it asked before, of another version
of its data, are retired: nobody is asked about them again, and their labels stay in the store.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

import alignkit
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
from alignkit.contract.report import Report, Table
from alignkit.errors import StageWaits
from alignkit.evaluation import statistics
from alignkit.io.results import AGREEMENT
from alignkit_plugins.compare.comparison import together
from alignkit_plugins.compare.scores import Scale
from alignkit_plugins.people.active_learning import prioritized
from alignkit_plugins.people.items import AUTHOR, Item, items_of, joined, questions_of
from alignkit_plugins.people.store import SUFFIX, Store
from alignkit_plugins.people.votes import (
    Labeled,
    below,
    is_good,
    labeled,
    labeled_groups,
    with_units,
)

STORE = "labels.feedback"  # a file in the run's folder
Task = Literal["pair", "safety", "ranking", "review", "demonstration", "thumb"]


class NobodyAsked(RunFailed):
    """A stage needs people where nobody is asked, as when it is verified."""


class People(Step):
    """Ask people about rows, on the page of `alignkit label`.

    The run puts the rows into a store, says how to label them, and ends with exit code 75. The same
    command continues when enough labels are in. Stages that do not need them run meanwhile. What
    the step hands on are pairs with margins, rankings, reviews, demonstrations or thumbs.

    Pairs of two policies' samples are also an evaluation: the report says how often people prefer
    which. With `reviewers`, others read what people wrote, and only what most of them find good is
    handed on.

    Only labels of the rows that the stage has now count. If an earlier stage changes, people are
    asked about its new rows, and the labels of the old ones stay in the store.
    """

    class Options(alignkit.Options):
        """What is asked, where labels go, and whose count."""

        data: DataRef = Field(
            description=(
                "what people label: rows with responses, such as a `sample` stage, or prompts"
            )
        )
        task: Task | None = Field(
            None,
            (
                "what people do with each item; default: by its responses: 2 are a pair, 3 to 9 "
                "a ranking, 1 or none a demonstration"
            ),
        )
        join_prompts: bool = Field(
            False, "rows with the same prompt are one, such as the samples of several policies"
        )
        limit: int | None = Field(
            None,
            (
                "ask about only the first N items, or, with `rewards`, those on which they "
                "disagree most"
            ),
            ge=1,
        )
        annotators: int = Field(1, "number of people who label each item", ge=1, le=100)
        reviewers: int = Field(
            0, "number of others who say whether each written demonstration is good", ge=0, le=100
        )
        settled_by: str = Field(
            "", "name of the person who decides where the others contradict each other"
        )
        rewards: list[RewardRef] = Field(
            [], "rewards that score the responses; people are asked first where these disagree"
        )
        store: Path | None = Field(
            None,
            (
                "where labels go, a file that ends in .feedback; default: labels.feedback in the "
                "run's folder"
            ),
        )
        show_results: bool = Field(
            False, "labelers see at the end what others said, and can undo nothing then"
        )
        min_gold: float | None = Field(
            None, "drop people who are right in a smaller share of gold items", gt=0, le=1
        )

        @field_validator("store")
        @classmethod
        def _named_as_stores_are(cls, path: Path | None) -> Path | None:
            if path is not None and path.suffix != SUFFIX:
                raise ValueError(f"the name of a store must end in {SUFFIX}")
            return path

        def check_values(self) -> None:
            if self.reviewers and self.task != "demonstration":
                raise ValueError("'reviewers' needs 'task: demonstration'")
            if self.settled_by and self.annotators < 2:
                raise ValueError("'settled_by' needs 'annotators: 2' or more")

    options: Options

    def check_data(self, data: StepData) -> None:
        if any(source.stage for source in self.options.data.sources):
            return  # the run leaves out what nobody can label of what a stage made
        rows = data.load(self.options.data)
        if rows is not None and not self._items(rows):
            raise DataError("there is no row to label", option=("data",))

    def run(self, context: StepContext) -> Artifact:
        options, stage = self.options, f"stage '{context.stage}'"
        path = options.store or context.out.parent / STORE
        left_out: list[str] = []
        orders = list[str]()
        items = self._items(context.load(options.data), left_out, orders)
        if not items:
            reasons = [f"\n  {count} left out: {why}" for why, count in Counter(left_out).items()]
            raise RunFailed(f"{stage}: there is no row to label{''.join(reasons)}")
        if options.rewards:
            items = prioritized(items, options.rewards, context)
            items.sort(key=lambda item: -item.priority)
        items = [
            replace(item, results=options.show_results, settled_by=options.settled_by)
            for item in items[: options.limit]
        ]

        def ask(items: Sequence[Item], people: int, why: str = "") -> list[Labeled]:
            folder = context.out.with_name(context.out.name + why)
            return labels_of(path, items, stage=context.stage, folder=folder, annotators=people)

        entries = ask(items, options.annotators)
        if options.settled_by:
            unclear = [
                replace(entry.item, disputed=True)
                for entry in entries
                if entry.counts and entry.is_disputed and not entry.item.gold
            ]
            ask(unclear, options.annotators + 1, "-settled")
            entries = ask(items, options.annotators)
        if options.reviewers:
            texts = list[Item]()
            for entry in entries:
                texts += [_review_of(entry, who) for who in entry.votes]
            _keep_good(entries, ask(texts, options.reviewers, "-reviews"))
        # Gold items are not learned from, but say who knows the task.
        with Store.open(path) as store:
            every, item_ids = labeled(store), {entry.item.id for entry in entries}
        gold = [each for each in every if each.item.gold and each.item.id not in item_ids]
        try:
            worse, notes = below([*entries, *gold], options.min_gold)
            notes = [*orders, *notes]
        except BadRow as error:
            raise RunFailed(f"{stage}: {error}") from error
        counted = list[Labeled]()
        for entry in entries:
            votes = {who: label for who, label in entry.votes.items() if who not in worse}
            counted.append(replace(entry, votes=votes))
        groups = [*chain.from_iterable(map(labeled_groups, counted))]
        if not groups:
            raise RunFailed(
                f"{stage}: nothing can be learned from the labels: all are tied or absent"
            )
        from alignkit_plugins.people.agreement import agreement, sentence

        agreed = agreement([*entries, *gold], worse)
        context.write_json(AGREEMENT, {"questions": agreed})
        labels = Counter(chain.from_iterable(entry.votes for entry in entries))
        facts: dict[str, Any] = {
            "items": len(entries),
            "labels": labels.total(),
            "annotators": len(labels),
            "left_out": dict(Counter(left_out)),
            "notes": notes,
            "wins": wins(counted),
        }
        lines = [
            f"people: {labels.total()} labels of {len(entries)} items by {len(labels)} people",
            *(f"{count} rows left out: {why}" for why, count in facts["left_out"].items()),
            *notes,
            sentence(agreed),
        ]
        tables = [wins_table(facts["wins"])] if facts["wins"] else []
        return Artifact(groups=groups, summary=facts, report=Report(["\n".join(lines), *tables]))

    def _items(
        self,
        rows: Sequence[Group],
        left_out: list[str] | None = None,
        notes: list[str] | None = None,
    ) -> list[Item]:
        """What people are asked about the rows. left_out: gets why some are not asked about; None:
        rows that nobody could label are an error. notes: as of `items_of`.
        """
        questions = []
        rows = together(rows)
        for row in joined(rows) if self.options.join_prompts else rows:
            those = questions_of(row, self.options.task)
            questions += those
            if not those and left_out is not None:
                left_out.append("its responses do not differ")
        return items_of(questions, self.options.task, left_out=left_out, notes=notes)


def labels_of(
    path: Path, items: Sequence[Item], *, stage: str, folder: Path, annotators: int = 1
) -> list[Labeled]:
    """The items, in their order, with what people said about them.

    They are added to the store at `path`, which is made if it is not there. folder: of the stage,
    so that runs that share a store do not retire each other's items.

    Raises StageWaits until each item has labels by `annotators` people, or was flagged or skipped;
    DataError for a store that cannot be used, BadRow for an item that nobody could label, and
    NobodyAsked while a stage is verified.
    """
    from alignkit_plugins.servers.remote import (
        asking_is_allowed,  # imports asyncio, which `alignkit check` can spare
    )

    if not asking_is_allowed():
        raise NobodyAsked(f"stage '{stage}' needs labels of people, and nobody is asked here")
    # A link, so that its name stays.
    here = folder.parent.resolve() / folder.name
    batch = Path(os.path.relpath(here, path.parent.resolve())).as_posix()
    with Store.open(path, new=True) as store:
        entries = labeled(store, store.ask(items, batch, annotators))
        lacking = [_lacking(entry, annotators) for entry in entries]
        if not any(lacking):
            return entries
        with store.transaction():
            for entry in entries:  # others label what somebody labeled who has withdrawn since
                gone = entry.stored.labels - len(entry.votes)
                wanted = max(entry.stored.wanted, annotators + gone)
                store.put(entry.item, wanted=wanted)
    missing = sum(lacking)
    done = f"{lacking.count(0)} of {len(entries)} items are done"
    people = " --annotator NAME" * annotators if annotators > 1 else ""
    if items[0].disputed:
        people = f" --annotator {shlex.quote(items[0].settled_by)}"
    raise StageWaits(
        f"stage '{stage}' waits for {missing} label{'s' * (missing != 1)}: {done}\n"
        f"  to label: alignkit label {shlex.quote(str(path))}{people}",
        missing=missing,
        store=path,
    )


def _lacking(entry: Labeled, annotators: int) -> int:
    """How many labels an item lacks."""
    settled = entry.item.settled_by in entry.votes
    if settled or entry.item.gold is not None or entry.flags or entry.skips:
        return 0
    return max(0, annotators - len(entry.votes))


# Reviews of what people wrote


def _review_of(entry: Labeled, author: str) -> Item:
    item = entry.item
    return Item(
        "thumb",
        item.prompt,
        (entry.votes[author]["text"],),
        item.tools,
        (AUTHOR,),
        license=item.license,
        author=author,
        results=item.results,
    )


def _keep_good(entries: Sequence[Labeled], reviews: Sequence[Labeled]) -> None:
    """Leave out the texts that most reviewers did not find good."""
    good = {each.item.id for each in reviews if each.counts and is_good(each.labels)}
    for entry in entries:
        for who in list(entry.votes):
            if _review_of(entry, who).id not in good:
                del entry.votes[who]


# Two policies


def wins(entries: Sequence[Labeled]) -> list[dict[str, Any]]:
    """How often people prefer the answers of one source to those of another one, as plain JSON.

    A pair is one case, in which its labels are averaged; pairs of one source, or without sources,
    are left out. The unit of the interval is a prompt.
    """
    cases: dict[tuple[str, ...], list[tuple[float, int]]] = defaultdict(list)
    for unit, entry in with_units(entries):
        item = entry.item
        names = sorted({origin for origin in item.origins if origin})
        if item.task in ("pair", "safety") and len(names) == 2 and entry.counts:
            chosen = [item.origins[label["better"]] for label in entry.labels]
            cases[*names].append((chosen.count(names[0]) / len(chosen), unit))
    rows = []
    for (one, other), found in sorted(cases.items()):
        values, shared = zip(*found, strict=True)
        samples = 1 if set(values) <= {0.0, 1.0} else len(values)
        preferred = Scale((0.0, 1.0), samples).mean(values, shared)
        rows.append({"source": one, "against": other, "pairs": len(values), "preferred": preferred})
    return rows


def wins_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The table of what `wins` returned."""
    cells = []
    for row in rows:
        preferred = statistics.interval_text(row["preferred"], percent=True)
        cells.append([row["source"], row["against"], str(row["pairs"]), preferred])
    return Table("what people prefer", ["source", "against", "pairs", "preferred"], cells)

"""The step `people`: a run asks people about rows, waits, and continues with their labels.

Only labels of the items that a stage asks now count. Items that it asked before, of another version
of its data, are retired: nobody is asked about them again, and their labels stay in the store.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import field_validator, model_validator

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
from alignkit.errors import StageWaits
from alignkit.evaluation import statistics
from alignkit.io.results import AGREEMENT
from alignkit.report import Report, Table
from alignkit_plugins.people.active_learning import prioritized
from alignkit_plugins.people.format import Feedback, FeedbackOptions, Task, VoteOptions
from alignkit_plugins.people.items import AUTHOR, Item, items_of, joined, questions_of
from alignkit_plugins.people.store import SUFFIX, Store
from alignkit_plugins.people.votes import Labeled, Vote, attributes, labeled

STORE = "labels.feedback"  # of a run, in its folder
LONGEST_GUIDELINES = 1_000_000  # bytes
EVERYBODY = "everybody"


class NobodyAsked(RunFailed):
    """A stage needs people where nobody is asked, as when it is verified."""


class People(Step):
    """Ask people about rows, on the page of `alignkit label`.

    The run puts the rows into a store, says how to label them, and ends with exit code 75. The same
    command continues when enough labels are in. Stages that do not need them run meanwhile. What
    the step hands on is what the format `feedback` reads: pairs with margins, rankings, scores,
    reviews, demonstrations or thumbs.

    Pairs of two policies' samples are also an evaluation: the report says how often people prefer
    which. With `reviewers`, others read what people wrote, and only what most of them find good is
    handed on.

    Only labels of the rows that the stage has now count. If an earlier stage changes, people are
    asked about its new rows, and the labels of the old ones stay in the store.
    """

    class Options(VoteOptions):
        """What is asked, where labels go, and how many are enough."""

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
        reviewers: int = Field(
            0,
            ge=0,
            le=100,
            description="number of others who say whether each written demonstration is good",
        )
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
        store: Path | None = Field(
            None,
            description=(
                "where labels go, a file that ends in .feedback; default: labels.feedback in the "
                "run's folder"
            ),
        )
        guidelines: Path | None = Field(
            None, description="Markdown for labelers; each label names its version"
        )

        @field_validator("store")
        @classmethod
        def _named_as_stores_are(cls, path: Path | None) -> Path | None:
            if path is not None and path.suffix != SUFFIX:
                raise ValueError(f"the name of a store must end in {SUFFIX}")
            return path

        @model_validator(mode="after")
        def _usable(self) -> Any:
            if self.min_gold is not None and self.gold is None:
                raise ValueError("'min_gold' needs 'gold': rows whose labels are right")
            if self.reviewers and self.task != "demonstration":
                raise ValueError("'reviewers' needs 'task: demonstration'")
            return self

    options: Options

    def check(self, folder: Path) -> None:
        options = self.options
        if options.store is not None and options.store.exists():
            Store.open(options.store).close()
        if options.guidelines is not None:
            guidelines_of(options.guidelines)

    def check_data(self, data: StepData) -> None:
        self._items(data.load(self.options.gold) or (), gold=True)
        if (rows := data.load(self.options.data)) is not None:
            items = self._items(self._questions(rows, []))
            if lack := self._shortage(items):
                raise DataError(lack, option=("data",) if not items else ("labels",))

    def run(self, context: StepContext) -> Artifact:
        options = self.options
        store = options.store or context.out.parent / STORE
        left_out: list[str] = []
        questions = self._questions(context.load(options.data), left_out)
        items = self._items(questions, left_out=left_out)
        known = self._items(context.load(options.gold), gold=True) if options.gold else []
        if lack := self._shortage(items):
            reasons = "".join(
                f"\n  {count} left out: {why}" for why, count in Counter(left_out).items()
            )
            raise RunFailed(f"stage '{context.stage}': {lack}{reasons}")
        if options.rewards:
            items = prioritized(items, options.rewards, context)
        asks: dict[str, Any] = {"stage": context.stage, "guidelines": options.guidelines}
        many: dict[str, Any] = {"needed": options.labels, "annotators": options.annotators}
        entries = labels_of(store, items, folder=context.out, gold=known, **many, **asks)
        if options.reviewers:
            folder, written = (
                context.out.with_name(f"{context.out.name}-reviews"),
                _written(entries),
            )
            reviews = labels_of(store, written, folder=folder, annotators=options.reviewers, **asks)
            _keep_good(entries, reviews)
        # Gold items are not learned from, but say who knows the task.
        with Store.open(store) as opened:
            gold = labeled(opened, {item.id for item in known} - {item.id for item in items})
            people = attributes(opened)
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

        facts = facts_of(entries, left_out) | {"notes": notes, "wins": wins(entries, people)}
        agreed = agreement([*entries, *gold], people)
        context.write_json(AGREEMENT, {"questions": agreed})
        tables = [wins_table(facts["wins"])] if facts["wins"] else []
        report = Report([f"{lines_of(facts)}\n{sentence(agreed)}", *tables])
        return Artifact(groups=groups, summary=facts, report=report)

    def _questions(self, rows: Sequence[Group], left_out: list[str]) -> list[Group]:
        result = []
        rows = joined(rows) if self.options.join_prompts else rows
        for row in rows[: self.options.limit]:
            questions = questions_of(row, self.options.task)
            result += questions
            if not questions:
                left_out.append("its responses do not differ")
        return result

    def _items(self, groups: Sequence[Group], **how: Any) -> list[Item]:
        items = items_of(groups, self.options.task, license=self.options.license, **how)
        return list({item.id: item for item in items}.values())

    def _shortage(self, items: Sequence[Item]) -> str:
        """Why the stage cannot get the labels that it needs; empty if it can."""
        if not items:
            return "there is no row to label"
        return _too_few(items, self.options.labels)

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
        learned = [entry.row() for entry in entries if entry.counts]
        others = [entry.row() for entry in gold if entry.counts]
        rows = feedback.rows(enumerate([*learned, *others]))
        groups = []
        for number, row in rows:
            if number < len(learned):
                groups += feedback.groups(row)
        return groups, [*feedback.notes]


# Asking, waiting, counting


def labels_of(
    path: Path,
    items: Sequence[Item],
    *,
    stage: str,
    needed: int | None = None,
    annotators: int = 1,
    folder: Path | None = None,
    gold: Sequence[Item] = (),
    guidelines: Path | None = None,
) -> list[Labeled]:
    """The items, in their order and each once, with what people said about them.

    They are added to the store at `path`, which is made if it is not there. needed: how many of
    them must have labels by `annotators` people; None: all that nobody flagged or skipped. folder:
    of the stage, so that runs that share a store do not retire each other's items. gold: items with
    gold labels, mixed in. guidelines: a file for labelers.

    Raises StageWaits until there are enough labels, DataError for a store that cannot be used, if
    `needed` is more than there are items, or if labelers would read the guidelines of another
    stage, BadRow for an item that nobody could label, and NobodyAsked while a stage is verified.
    """
    from alignkit_plugins.ai_feedback.remote import (
        asking_is_allowed,  # imports asyncio, which `alignkit check` can spare
    )

    if not asking_is_allowed():
        raise NobodyAsked(f"stage '{stage}' needs labels of people, and nobody is asked here")
    unique = {item.id: item.checked() for item in items}
    if few := _too_few(unique, needed):
        raise DataError(f"stage '{stage}': {few}")
    batch = stage
    if folder is not None:  # a link, so that its name stays
        batch = Path(
            os.path.relpath(folder.parent.resolve() / folder.name, path.parent.resolve())
        ).as_posix()
    with Store.open(path, new=True) as store:
        _hand_out(store, guidelines, stage, batch)
        store.ask([*unique.values(), *gold], batch, annotators)
        found = {entry.stored.item.id: entry for entry in labeled(store, unique)}
        entries = [found[name] for name in unique]
        waiting = _waiting(entries, needed, annotators)
        with store.transaction() as connection:
            if waiting is None:  # nobody is asked about the rest
                rest = "batch = ? AND retired = 0 AND gold IS NULL AND labels < wanted"
                connection.execute(
                    f"UPDATE items SET retired = 1 WHERE {rest} AND labels = 0", (batch,)
                )
                connection.execute(f"UPDATE items SET wanted = labels WHERE {rest}", (batch,))
                return entries
            for entry in entries:  # others label what somebody labeled who has withdrawn since
                if (gone := entry.stored.labels - len(entry.votes)) > 0:
                    wanted = max(entry.stored.wanted, annotators + gone)
                    store.put(entry.stored.item, wanted=wanted)
    people = " --annotator NAME" * annotators if annotators > 1 else ""
    missing, text = waiting
    lines = [f"stage '{stage}' waits for {missing} label{'s' * (missing != 1)}: {text}"]
    lines.append(f"  to label: alignkit label {shlex.quote(str(path))}{people}")
    raise StageWaits("\n".join(lines), missing=missing, store=path)


def _too_few(items: Sequence[Item] | Mapping[str, Item], needed: int | None) -> str:
    if needed is None or needed <= len(items):
        return ""
    return f"labels of {needed} items are wanted, but there are only {len(items)}"


def _waiting(
    entries: Sequence[Labeled], needed: int | None, annotators: int
) -> tuple[int, str] | None:
    """How many labels are missing, and in words how far the items are; None if there are enough."""
    lacks = [_lacking(entry, annotators) for entry in entries]
    done = lacks.count(0)
    off = [bool(entry.waits or entry.skips) for entry in entries]
    open_items = sorted(lack for lack, aside in zip(lacks, off, strict=True) if lack and not aside)
    aside = len(entries) - done - len(open_items)
    if needed is None:
        needed = max(len(entries) - aside, min(1, len(entries)))
    if done >= needed:
        return None
    wanted = open_items[: needed - done]
    text = f"{done} of {needed} items are done"
    if short := needed - done - len(wanted):
        text += (
            f"\n  {aside} flagged or skipped, of which {short} needed: adjudicate them on the page"
        )
    return sum(wanted), text


def _lacking(entry: Labeled, annotators: int) -> int:
    """How many labels an item lacks."""
    if entry.settled is not None and not entry.waits:
        return 0
    return max(int(entry.waits), annotators - len(entry.votes))


def guidelines_of(path: Path) -> str:
    """The text of a file of guidelines, in Markdown. Raises `DataError` if it is none, or not
    there.
    """
    try:
        data = path.read_bytes()
        if len(data) <= LONGEST_GUIDELINES:
            return data.decode("utf-8-sig")
        reason = (
            f"the file has {len(data):,} bytes, but nobody reads more than {LONGEST_GUIDELINES:,}"
        )
    except OSError as error:
        reason = str(error.strerror)
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start}"
    raise DataError(f"guidelines: {path}: {reason}")


def _hand_out(store: Store, path: Path | None, stage: str, batch: str) -> None:
    """Put a stage's guidelines where the page finds them. Raises DataError if others would be read
    for its items.
    """
    own = "" if path is None else os.path.relpath(path, store.path.parent)
    # The page shows the last ones. Those of a stage that has its labels do not matter to one that
    # sets others.
    others = store.rows(
        "SELECT DISTINCT batch, value FROM items JOIN settings ON name = 'guidelines of ' || "
        "batch WHERE batch <> ? AND value <> ? AND (? = '' OR (retired = 0 AND gold IS NULL AND "
        "labels < wanted))",
        *(batch, own, own),
    )
    for row in others:
        raise DataError(
            f"its guidelines are {own or 'none'} and those of stage '{row['batch']}' are "
            f"{row['value'] or 'none'}, but both ask in {store.path}, whose labelers read one "
            "set\n"
            f"help: write 'store: {stage}.feedback', or give both the same 'guidelines'"
        )
    if path is not None:
        store.add_guidelines(guidelines_of(path))
    with store.transaction() as connection:
        connection.execute(
            "INSERT OR REPLACE INTO settings VALUES (?, ?)", (f"guidelines of {batch}", own)
        )


# Reviews of what people wrote


def _written(entries: Sequence[Labeled]) -> list[Item]:
    """The texts that people wrote, each to be reviewed by others."""
    written = []
    for entry in entries:
        written += [_review_of(entry, vote) for vote in entry.votes]
    return written


def _review_of(entry: Labeled, vote: Vote) -> Item:
    item = entry.stored.item
    more: dict[str, Any] = {"license": item.license, "author": vote.annotator, "origins": (AUTHOR,)}
    return Item("thumb", item.prompt, (vote.label["text"],), item.tools, **more)


def _keep_good(entries: Sequence[Labeled], reviews: Sequence[Labeled]) -> None:
    """Leave out the texts that most reviewers did not find good."""
    good = {review.stored.item.id for review in reviews if (review.final or {}).get("good")}
    for entry in entries:
        entry.votes = [vote for vote in entry.votes if _review_of(entry, vote).id in good]


# The report


def facts_of(entries: Sequence[Labeled], left_out: Sequence[str]) -> dict[str, Any]:
    """The numbers of a stage's labels."""
    labels = [vote for entry in entries for vote in entry.votes]
    seconds = [vote.seconds for vote in labels if vote.seconds is not None]
    return {
        "items": len(entries),
        "tasks": dict(Counter(entry.stored.item.task for entry in entries)),
        "labeled": sum(entry.counts for entry in entries),
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
    seconds = facts["median_seconds"]
    pace = "" if seconds is None else f", in {seconds:.3g} seconds each (median)"
    return "\n".join([
        f"people: {facts['labeled']} of {facts['items']} items have labels that count ({tasks})",
        (
            f"{facts['labels']} labels of {facts['annotators']} people{pace}; items skipped: "
            f"{facts['skipped']}, flagged: {facts['flagged']}"
        ),
        *(f"{count} rows left out: {why}" for why, count in facts["left_out"].items()),
        *facts["notes"],
    ])  # fmt: skip


def wins(
    entries: Sequence[Labeled], known: Mapping[str, Mapping[str, str]]
) -> list[dict[str, Any]]:
    """How often people prefer the answers of one source to those of another one, as plain JSON.

    A pair is one case, in which its labels are averaged; pairs of one source, or without sources,
    are left out. known: attributes of people, each value of which is a row of its own.
    """
    cases: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for entry in entries:
        item = entry.stored.item
        names = sorted({origin for origin in item.origins if origin})
        if item.task not in ("pair", "safety") or len(names) < 2 or not entry.counts:
            continue
        votes: dict[str, list[float]] = defaultdict(list)
        for vote in entry.votes if entry.adjudicated is None else [entry.adjudicated]:
            groups = [f"{name}: {value}" for name, value in known.get(vote.annotator, {}).items()]
            for group in (EVERYBODY, *groups):
                votes[group].append(float(item.origins[vote.label["better"]] == names[0]))
        for group, values in votes.items():
            cases[*names, group].append(statistics.mean(values))
    rows = []
    for (one, other, group), values in sorted(
        cases.items(), key=lambda case: (case[0][2] != EVERYBODY, case[0])
    ):
        preferred = statistics.rate(values, 1 if set(values) <= {0.0, 1.0} else len(values))
        row = {
            "source": one,
            "against": other,
            "people": group,
            "pairs": len(values),
            "preferred": preferred,
        }
        rows.append(row)
    return rows


def wins_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The table of what `wins` returned."""
    cells = []
    for row in rows:
        preferred = statistics.shown(row["preferred"], percent=True)
        cells.append([row["source"], row["against"], row["people"], str(row["pairs"]), preferred])
    return Table("what people prefer", ["source", "against", "people", "pairs", "preferred"], cells)

"""What counts: the labels that stand, and the groups that recipes learn from.

The latest label of an annotator counts, unless it was undone, replaced by a skip, or its author
withdrew consent. An item that anyone flagged does not count. A gold label replaces the others, and
so does that of the person who settles what people disagree on.

A pair becomes a pair with a margin by Llama 2's levels, a ranking its ranks with ties, a
demonstration a response to learn, and a thumb a label, good or bad. A review counts by its ranks;
its scores are the rewards of the responses, and the column `overall`; its flags are the column
`flags`. If several annotators have labeled an item, the share of those who prefer a response is its
probability of being better, so a reward model learns how sure people are; responses that as many
prefer as not form no pair.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from statistics import fmean, mean, mode
from typing import get_args

from alignkit import BadRow, Group, Pair, Response
from alignkit.data.group import with_responses
from alignkit_plugins.compare.comparison import units_of
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.labels import Consent, Flag, Label, agrees, canonical, gaps, level
from alignkit_plugins.people.store import Event, Store, Stored

UNLABELED = "without labels"  # why an item is left out
FEWEST = 5  # answers to gold items that decide about a person


@dataclass
class Labeled:
    """An item with what people said about it.

    votes: the label that stands of each annotator, in the item's own order and that of their names.
    flags: what each wrote who flagged it. skips: how many. withdrawn: its author took the consent
    back.
    """

    stored: Stored
    votes: dict[str, Label] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    skips: int = 0
    withdrawn: bool = False

    @property
    def item(self) -> Item:
        return self.stored.item

    @property
    def labels(self) -> list[Label]:
        """The labels to learn from: the gold one, else that of who settles it, else the votes."""
        if self.item.gold is not None:
            return [dict(self.item.gold)]
        if self.item.settled_by in self.votes:
            return [self.votes[self.item.settled_by]]
        return list(self.votes.values())

    @property
    def is_disputed(self) -> bool:
        """Whether two people contradict each other."""
        pairs = combinations(self.votes.values(), 2)
        return any(agrees(one, two) is False for one, two in pairs)

    @property
    def left_out(self) -> str:
        """Why no recipe reads the item; empty if one does."""
        if self.stored.retired:
            return "changed since"
        if self.withdrawn:
            return "consent withdrawn"
        if self.flags:
            return "flagged"
        return "" if self.labels else UNLABELED

    @property
    def counts(self) -> bool:
        """Whether a recipe reads the item."""
        return not self.left_out

    @property
    def is_tied(self) -> bool:
        """Whether its labels say nothing that could be learned."""
        return not self.is_scored and all(group.pairs == () for group in labeled_groups(self))

    @property
    def is_scored(self) -> bool:
        """Whether people scored and flagged its responses, which no gold label does."""
        return "scores" in self.labels[0]


def labeled(store: Store, items: Iterable[str] | None = None) -> list[Labeled]:
    """The items with everything that counts, in the order in which they were added; retired ones
    too. items: ids.
    """
    with store.transaction("DEFERRED"):
        entries = {name: Labeled(stored) for name, stored in store.by_id().items()}
        absent = withdrawn(store)
        events = store.effective("label", "skip", "flag")
    latest: dict[tuple[str, str], Event] = {}
    for event in events:
        if event.annotator in absent:
            continue
        if event.kind == "flag":
            entries[str(event.item)].flags[event.annotator] = event.payload["note"]
        else:
            latest[event.annotator, str(event.item)] = event
    for (annotator, item), event in sorted(latest.items()):
        if event.kind == "label":
            entries[item].votes[annotator] = canonical(event.payload, event.order)
        else:
            entries[item].skips += 1
    for entry in entries.values():
        entry.withdrawn = entry.item.author in absent
    return [entries[name] for name in (entries if items is None else dict.fromkeys(items))]


def consents(store: Store) -> dict[str, Consent]:
    """What each annotator last said about sharing; absent if never asked."""
    return {
        event.annotator: Consent.model_construct(**event.payload)
        for event in store.effective("consent")
    }


def withdrawn(store: Store) -> set[str]:
    """The annotators who took their consent back: their labels count nowhere, and nobody learns
    from their prompts.
    """
    answers = store.effective("consent")
    agreed = {event.annotator for event in answers if event.payload["granted"]}
    return {name for name, latest in consents(store).items() if not latest.granted} & agreed


# People whose labels count


def below(entries: Iterable[Labeled], least: float | None) -> tuple[set[str], list[str]]:
    """Who answers gold items worse than asked, and notes on it, as `why: person; person`. least:
    the smallest share of right answers; None: nobody is.

    Five answers are enough to leave somebody out. Raises `BadRow` if nobody answered a gold item,
    or if nobody is left.
    """
    answers: dict[str, list[bool]] = defaultdict(list)
    if least is None:
        return set(), []
    for entry in entries:
        gold = entry.item.gold
        for who, label in entry.votes.items():
            right = answers[who]
            agreed = None if gold is None else agrees(label, gold)
            if agreed is not None:  # nobody can say it of a text
                right.append(agreed)
    if not any(answers.values()):
        raise BadRow(
            "'min_gold' needs gold items that people answered, and there are none; add some with "
            "`alignkit label STORE --gold FILE`, or remove 'min_gold'"
        )
    worse, unsure = dict[str, str](), dict[str, str]()
    for name, right in sorted(answers.items()):
        share = f"{name} {sum(right)} of {len(right)}"
        if len(right) < FEWEST:
            unsure[name] = share
        elif sum(right) / len(right) < least:
            worse[name] = share
    if len(worse) == len(answers):
        text = f"'min_gold: {least:g}' leaves nobody; gold items right: {'; '.join(worse.values())}"
        raise BadRow(text)
    notes = []
    if worse:
        notes.append(f"left out, gold below {least:.0%}: {'; '.join(worse.values())}")
    if unsure:
        notes.append(f"kept, under {FEWEST} gold items: {'; '.join(unsure.values())}")
    return set(worse), notes


# What recipes learn


def with_units(entries: Sequence[Labeled]) -> Iterator[tuple[int, Labeled]]:
    """The unit of each item in all statistics, next to it."""
    return zip(units_of(entry.item.group for entry in entries), entries, strict=True)


def labeled_groups(entry: Labeled) -> list[Group]:
    """What is learned of an item: a group, or one for each text that people wrote; none if it does
    not count, or of a thumb that as many give up as down.
    """
    if not entry.counts:
        return []
    item, labels = entry.item, entry.labels
    group = replace(item.group, pairs=None)
    if item.license:
        group.meta["license"] = item.license
    if item.task == "demonstration":
        texts = [Response(text=label["text"]) for label in labels]
        return [with_responses(group, (text,)) for text in texts]
    if item.task == "thumb":
        good = is_good(labels)
        answer = replace(group.responses[0], label=good)
        return [] if good is None else [with_responses(group, (answer,))]
    if "scores" in labels[0]:
        group.meta["overall"], group.meta["flags"] = _review(labels)
        for answer, score in zip(group.responses, group.meta["overall"], strict=True):
            answer.scores["reward"] = score
    if "ranks" in labels[0] and len(labels) == 1:
        ranked = zip(group.responses, labels[0]["ranks"], strict=True)
        answers = [replace(answer, rank=float(rank)) for answer, rank in ranked]
        return [with_responses(group, answers)]
    pairs = tuple(_pairs(labels))
    if pairs and "safety" in labels[0]:
        bins = [label["safety"] for label in labels if label["better"] == pairs[0].better]
        group.meta["safety_bin"] = mode(sorted(bins))
    return [replace(group, pairs=pairs)]


def is_good(thumbs: Sequence[Label]) -> bool | None:
    """What most thumbs say; None if there are as many up as down."""
    up = sum(label["good"] for label in thumbs)
    return None if 2 * up == len(thumbs) else 2 * up > len(thumbs)


def _review(labels: Sequence[Label]) -> tuple[list[float], list[list[str]]]:
    """The mean score of each response, and the flags that most people set."""
    scores, flags = [], []
    for place in range(len(labels[0]["scores"])):
        scores.append(mean(label["scores"][place] for label in labels))
        counts = Counter(chain.from_iterable(label["flags"][place] for label in labels))
        flags.append([name for name in get_args(Flag) if 2 * counts[name] > len(labels)])
    return scores, flags


def _pairs(labels: Sequence[Label]) -> Iterator[Pair]:
    """The pairs that more labels order one way than the other; p is their share among those without
    a tie, and a margin the level nearest to the mean of all, with the other side counted as
    negative.
    """
    each = list(map(gaps, labels))
    for two in each[0]:
        sizes = [gap[two] for gap in each if gap[two]]
        first = sum(size > 0 for size in sizes)
        second = len(sizes) - first
        if first == second:
            continue
        better, worse = two if first > second else reversed(two)
        margin = labels[0].get("margin")
        if margin and len(labels) > 1:
            lead = fmean(sizes)
            margin = level(max(0.0, lead if first > second else -lead))
        yield Pair(better, worse, max(first, second) / len(sizes), margin)

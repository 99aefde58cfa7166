"""Labels in the layouts that TRL's trainers read: preference, ranked, unpaired (KTO), and prompt with completion.

Every item gives the rows of its final label. `group_id` is the same for all pairs of one prompt, so that they can stay
in one batch. `margin` is 0, 1/3, 2/3 or 1 for Llama 2's four levels (Touvron et al. 2023, table 27, small), the
difference of the mean scores, or 0 if there is none. `agreement` is the share of annotators who prefer `chosen`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

from alignkit_plugins.people.effective_labels import Labeled, places, review_columns, share_of_better
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.labels import Label
from alignkit_plugins.people.layouts import Row, demonstration, margin_of, preference, ranked

FILES = {
    "preference": "preference.jsonl",
    "ranked": "ranked.jsonl",
    "kto": "kto.jsonl",
    "sft": "sft.jsonl",
}


def layouts(entries: Iterable[Labeled]) -> dict[str, list[Row]]:
    """The rows of each layout, in the order of the items, without held-out ones, which trainers must not learn."""
    found: dict[str, list[Row]] = {name: [] for name in FILES}
    for entry in entries:
        if entry.stored.item.held_out:
            continue
        if entry.stored.item.task == "demonstration":
            found["sft"] += _demonstrations(entry)
        elif entry.final is not None:
            pairs = list(_pairs(entry, entry.final))
            found["preference"] += pairs
            found["ranked"] += _ranked(entry.stored.item, entry.final)
            found["kto"] += _rated(entry.stored.item, entry.final, pairs)
    return found


def _demonstrations(entry: Labeled) -> Iterator[Row]:
    labels = [vote.label for vote in entry.votes]
    if entry.adjudicated is not None:
        labels = [entry.adjudicated.label]
    for label in labels if not entry.waits else []:
        yield demonstration(entry.stored.item.prompt, label["text"])


def _pairs(entry: Labeled, label: Label) -> Iterator[Row]:
    item = entry.stored.item
    if "better" in label:
        better, margin = label["better"], label.get("margin")
        share = round(share_of_better([vote.label for vote in entry.votes], better), 6) if entry.votes else None
        bins = {"safety_bin": label["safety"]} if "safety" in label else {}
        yield _pair(item, better, 1 - better, margin_of(margin), share) | bins
    values = _values(label)
    for i, j in combinations(range(len(values)), 2):
        gap = values[j] - values[i]
        if gap:
            first, second = (i, j) if gap > 0 else (j, i)
            said = {
                f"{side}_{name}": values[place]
                for side, place in (("chosen", first), ("rejected", second))
                for name, values in _columns(item, label).items()
            }
            yield _pair(item, first, second, abs(gap) if item.task == "scores" else 0.0, None) | said


def _columns(item: Item, label: Label) -> dict[str, list[Any]]:
    return review_columns(label) if item.task == "review" else {}


def _pair(item: Item, better: int, worse: int, margin: float, share: float | None) -> Row:
    row = preference(item.prompt, item.responses[better], item.responses[worse], margin)
    return {**row, "agreement": share, "group_id": item.id}


def _values(label: Mapping[str, Any]) -> list[float]:
    """A number for each response of a ranking, or one rated with scores; lower is better."""
    if "scores" in label and "ranks" not in label:
        return [-sum(rated.values()) / len(rated) for rated in label["scores"]]
    return [float(rank) for rank in label.get("ranks", [])]


def _ranked(item: Item, label: Label) -> Iterator[Row]:
    values = _values(label)
    if len(values) > 1:
        yield ranked(item.prompt, item.responses, places(values)) | _columns(item, label)


def _rated(item: Item, label: Label, pairs: Iterable[Row]) -> Iterator[Row]:
    """Each response that is good or bad by itself, or by a comparison of two."""
    if "good" in label:
        yield demonstration(item.prompt, item.responses[0]) | {"label": label["good"]}
    for pair in pairs if "better" in label else []:
        for name in ("chosen", "rejected"):
            yield {"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"}

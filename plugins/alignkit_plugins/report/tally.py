"""What data hold in numbers: lengths in characters, pairs and their margins, and labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from alignkit.data.group import LEVELS, Group, Response, resolved_pairs
from alignkit.data.sources import Loaded


def cards(loaded: Loaded) -> list[dict[str, Any]]:
    """The card of each source of a data entry. Rows held out for validation count."""
    parts: list[list[Group]] = [[] for _ in loaded.sources]
    for groups in (loaded.groups, loaded.validation):
        for group in groups:
            parts[group.origin.source if group.origin is not None else 0].append(group)
    return list(map(card, parts))


def card(groups: Iterable[Group]) -> dict[str, Any]:
    """What groups hold. Parts that they lack are None: a prompt has no responses, and raw text has
    no prompt.
    """
    sizes, prompts, responses, labels, margins, licenses = (Counter[Any]() for _ in range(6))
    for group in groups:
        sizes["rows"] += 1
        licenses[group.meta.get("license") or ""] += 1
        if group.prompt:
            prompts[sum([len(turn["content"]) for turn in group.prompt])] += 1
        lengths = [_length(response) for response in group.responses]
        responses.update(lengths)
        labels.update(response.label for response in group.responses)
        for pair in resolved_pairs(group) if len(lengths) > 1 else ():
            difference = lengths[pair.better] - lengths[pair.worse]
            # Below 0.5, the other one is better
            sizes["better_longer"] += difference * (pair.p - 0.5) > 0
            sizes["equally_long"] += difference == 0
            margins[pair.margin] += 1
    longer = {name: sizes[name] for name in ("better_longer", "equally_long")}
    good, bad = labels[True], labels[False]
    return {
        "rows": sizes["rows"],
        "licenses": licenses,
        "responses": responses.total(),
        "prompt_characters": _spread(prompts),
        "response_characters": _spread(responses),
        "pairs": {"count": margins.total(), **longer, **_margins(margins)} if margins else None,
        "labels": {"good": good, "bad": bad} if good + bad else None,
    }


def _length(response: Response) -> int:
    turns = response.messages
    return len(response.text) if turns is None else sum([len(turn["content"]) for turn in turns])


def _spread(counts: Mapping[Any, int]) -> dict[str, Any] | None:
    """The number of values, the least, the median, the 95th percentile, and the largest; None
    without values.
    """
    if not counts:
        return None
    order, count = sorted(counts), sum(counts.values())
    wanted = {"median": 0.5 * count, "p95": 0.95 * count}
    found: dict[str, Any] = {"count": count, "least": order[0]}
    passed = 0
    for value in order:
        passed += counts[value]
        found |= {
            name: value for name, rank in wanted.items() if name not in found and passed >= rank
        }
    return {**found, "most": order[-1]}


def _margins(counts: Mapping[Any, int]) -> dict[str, Any]:
    """Margins by level, and the spread of those that are numbers."""
    numbers = {
        m: count for m, count in counts.items() if isinstance(m, int | float) and math.isfinite(m)
    }
    names = sorted((m for m in counts if isinstance(m, str)), key=lambda m: (*LEVELS, m).index(m))
    levels = {name: counts[name] for name in names}
    return {"without_margin": counts.get(None, 0), "levels": levels, "margins": _spread(numbers)}

"""RewardBench 2 (Malik et al. 2025, arXiv:2506.01937): the best of four or more responses.

Of the first RewardBench (Lambert et al. 2024, arXiv:2403.13787), the pairs have the same column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignkit import BadRow, Group, Message, Pair, Response
from alignkit.data.group import resolved_pairs
from alignkit.evaluation import statistics
from alignkit.formats import columns_of
from alignkit_plugins.compare.compared import Scale, compared
from alignkit_plugins.compare.rows import Row
from alignkit_plugins.formats.columns import ColumnFormat

COLUMN = "subset"


class RewardBench2(ColumnFormat):
    """A prompt with several chosen and several rejected texts; every chosen one is better than
    every rejected one.
    """

    example = (
        '{"prompt": "2 + 2?", "chosen": ["4"], "rejected": ["3", "5", "22"], "subset": "Math", '
        '"id": "1"}'
    )
    wants = (
        "prompt, and chosen and rejected, which are lists of texts; optional id, subset and "
        "num_correct"
    )

    @classmethod
    def matches(cls, row: Any) -> bool:
        has_columns = cls.has(row, "prompt", "chosen", "rejected")
        return has_columns and _texts(row["chosen"]) and _texts(row["rejected"])

    def read(self, row: Any) -> Group:
        row = columns_of(row)
        for name in ("chosen", "rejected"):
            if not _texts(row.get(name)):
                raise BadRow(f"column '{name}' must be a list of at least one text")
        chosen, rejected, count = row["chosen"], row["rejected"], self.number(row, "num_correct")
        if count is not None and count != len(chosen):
            raise BadRow(f"num_correct is {count:g}, but chosen holds {len(chosen)} texts")
        prompt: tuple[Message, ...] = self.opened(
            self.conversation(row.get("prompt"), "prompt"), row
        )
        responses = tuple(Response(text=text) for text in (*chosen, *rejected))
        pairs = []
        for better in range(len(chosen)):
            pairs += [Pair(better, worse) for worse in range(len(chosen), len(responses))]
        meta = self.rest(row, "prompt", "chosen", "rejected")
        return Group(prompt, responses, tuple(pairs), meta=meta)


def _texts(value: Any) -> bool:
    return (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(x, str) for x in value)
    )


def applies(groups: Sequence[Group]) -> bool:
    """Whether these are RewardBench 2's rows."""
    return all(COLUMN in group.meta and "num_correct" in group.meta for group in groups)


def rows_of(groups: Sequence[Group], rewards: Sequence[str]) -> list[Row]:
    """How often the chosen response scores highest, in each subset.

    If k responses share the highest score, it counts 1/k. Prompts without all scores, and those
    with several right answers (the subset Ties), count for nothing.
    """
    rows, subsets = [], sorted({str(group.meta[COLUMN]) for group in groups})
    for subset in subsets:
        inside = [group for group in groups if str(group.meta[COLUMN]) == subset]
        for reward in rewards:
            values = {reward: [result(group, reward) for group in inside]}
            rows += compared(
                "best of all",
                values,
                scale=Scale((0.0, 1.0)),
                percent=True,
                column=COLUMN,
                value=subset,
            )
    return rows


def result(group: Group, reward: str) -> float | None:
    """The result of a prompt with one chosen response; None without all scores."""
    scores = [response.scores[reward] for response in group.responses]
    better = {pair.better for pair in resolved_pairs(group)}
    known = [score for score in scores if score is not None]
    if len(better) != 1 or len(known) < len(scores):
        return None
    shared = [place for place, one in enumerate(known) if statistics.equal(one, max(known))]
    return len(better.intersection(shared)) / len(shared)

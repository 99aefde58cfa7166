"""The statistics of revised answers, and examples to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignkit import Group
from alignkit.constitution import Principle
from alignkit.evaluation import statistics
from alignkit.report import Report, SideBySide, Table

SHOWN = 2  # chains in the report


@dataclass
class Chain:
    """A prompt with its answer and what became of it.

    principles: one for each round. rounds: a dictionary with principle, critique and revision each. dropped: why the
    chain is of no use; empty if it is.
    """

    group: Group
    principles: Sequence[Principle]
    answer: str = ""
    rounds: list[dict[str, str]] = field(default_factory=list)
    dropped: str = ""

    @property
    def newest(self) -> str:
        """The last revision, or the answer."""
        return self.rounds[-1]["revision"] if self.rounds else self.answer


def facts_of(chains: Sequence[Chain], critic: str) -> dict[str, Any]:
    """The statistics as JSON."""
    kept = [chain for chain in chains if not chain.dropped]
    rounds = [entry for chain in kept for entry in chain.rounds]
    before = [chain.answer for chain in kept]
    after = [chain.newest for chain in kept]
    return {
        "critic": critic,
        "prompts": len(chains),
        "revised": len(kept),
        "dropped": dict(Counter(_kind(chain.dropped) for chain in chains if chain.dropped).most_common()),
        "unchanged": sum(a == b for a, b in zip(before, after, strict=True)),
        "principles": dict(Counter(entry["principle"] for entry in rounds).most_common()),
        "characters": {
            "answer": statistics.mean([len(text) for text in before]) if before else None,
            "revision": statistics.mean([len(text) for text in after]) if after else None,
        },
    }


def _kind(reason: str) -> str:
    """A reason without what differs from row to row, such as the words of a server's error."""
    return ": ".join(reason.split(": ")[:2])


def report(facts: Mapping[str, Any], kept: Sequence[Chain]) -> Report:
    """The statistics, and the first chains side by side."""
    lines = [f"{facts['revised']} of {facts['prompts']} answers revised by {facts['critic']}"]
    lines += [f"  left out, {why}: {count}" for why, count in facts["dropped"].items()]
    if facts["unchanged"]:
        lines.append(f"the last revision equals the answer: {facts['unchanged']} of {facts['revised']}")
    length = facts["characters"]
    lines.append(f"mean length: answers {length['answer']:.0f} characters, revisions {length['revision']:.0f}")
    rows = [[name, str(count)] for name, count in facts["principles"].items()]
    counts = Table("", ["principle", "revisions"], rows)
    return Report(["\n".join(lines), counts, *map(_shown, kept[:SHOWN]), "\n".join(facts["notes"])])


def _shown(chain: Chain) -> SideBySide:
    prompt = " ".join(chain.group.prompt[-1]["content"].split())
    first = chain.rounds[0]
    headings = ["answer", f"first critique, by '{first['principle']}'", "last revision"]
    return SideBySide(f"prompt: {prompt}", headings, [chain.answer, first["critique"], chain.newest])

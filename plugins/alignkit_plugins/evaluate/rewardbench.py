"""The sections of RewardBench (Lambert et al. 2024, arXiv:2403.13787), for pairs with its column
`subset`.
"""

from __future__ import annotations

from collections.abc import Mapping

COLUMN = "subset"
# Rows of each subset of the benchmark, by which its sections are weighted; math-prm has 447, and
# counts like all code.
SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        **{"alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95},
        **{"mt-bench-easy": 28, "mt-bench-med": 40},
    },
    "Chat Hard": {
        **{"mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134},
        **{"llmbar-adver-GPTInst": 92, "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46},
    },
    "Safety": {
        **{"refusals-dangerous": 100, "refusals-offensive": 100, "donotanswer": 136},
        **{"xstest-should-refuse": 154, "xstest-should-respond": 250},
    },
    "Reasoning": {
        **{"math-prm": 984, "hep-cpp": 164, "hep-go": 164, "hep-java": 164},
        **{"hep-js": 164, "hep-python": 164, "hep-rust": 164},
    },
}
ROWS = {subset: rows for section in SECTIONS.values() for subset, rows in section.items()}


def sections(subsets: Mapping[str, float]) -> dict[str, float]:
    """The accuracy of each section that has a subset, weighted as RewardBench does."""
    found = {}
    for section, names in SECTIONS.items():
        if present := [name for name in names if name in subsets]:
            total = sum(ROWS[name] for name in present)
            found[section] = sum(subsets[name] * ROWS[name] for name in present) / total
    return found

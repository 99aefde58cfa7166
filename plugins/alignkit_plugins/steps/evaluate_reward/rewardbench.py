"""Results in the layout of RewardBench (Lambert et al. 2024, arXiv:2403.13787), for pairs with its column `subset`.

`eval-set/NAME.json` has the accuracy of each subset, `eval-set-scores/NAME.json` the scores of each row, as in the data
set allenai/reward-bench-results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.data.spoken import all_turns
from alignkit_plugins.steps.evaluate_reward.comparisons import Comparison

COLUMN = "subset"
# Rows of each subset of the benchmark, by which its sections are weighted; math-prm has 447, and counts like all code.
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


def files(name: str, pairs: Sequence[Comparison], subsets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The contents of both files by their folders. name: of the reward. subsets: accuracy by subset."""
    rows = {
        "id": [pair.group.meta.get("id") for pair in pairs],
        "subset": [pair.group.meta.get(COLUMN) for pair in pairs],
        "text_chosen": [_text(pair, chosen=True) for pair in pairs],
        "text_rejected": [_text(pair, chosen=False) for pair in pairs],
        "scores_chosen": [pair.chosen for pair in pairs],
        "scores_rejected": [pair.rejected for pair in pairs],
        "results": [int(pair.gap > 0) for pair in pairs],
    }
    accuracies = {subset: found["correct"] / found["pairs"] for subset, found in subsets.items()}
    return layout(name, accuracies, rows)


def layout(name: str, subsets: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    """Both files by their folders. subsets: the result of each. rows: columns."""
    model = {"model": name, "model_type": "alignkit", "chat_template": None}
    return {"eval-set": {**model, **subsets}, "eval-set-scores": {**model, **rows}}


def _text(pair: Comparison, chosen: bool) -> str:
    better = chosen == (pair.pair.p > 0.5)
    return all_turns(pair.group.responses[pair.pair.better if better else pair.pair.worse])

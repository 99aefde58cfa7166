"""Writes decisions*.jsonl: notes of guests, and what simulated people say of them.

    python recipes/data/make_decisions.py

Nobody was asked. Each aspect of a note has a weight, and the probabilities of the options follow from their sum by a
softmax. Training rows have the counts of five people who are drawn from these probabilities. Held-out rows have the
probabilities themselves of other notes. The order of the options is drawn for each row.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

SEED = 20261126
PEOPLE = 5  # of each training row
ROWS = {"decisions": 600, "decisions_heldout": 150}
WEIGHTS = {"superb": 2, "good": 1, "okay": 0, "poor": -1, "awful": -2}
ASPECTS = ("food", "service", "room", "view", "music", "coffee", "parking", "heating")
LOGITS = {"recommend": (0.9, 0.0), "undecided": (0.0, 0.8), "avoid": (-0.9, 0.0)}  # slope by the sum, and start
HERE = Path(__file__).parent


def probabilities(total: int) -> dict[str, float]:
    """What the simulated people say of a note whose weights sum to `total`."""
    weights = {option: math.exp(slope * total + start) for option, (slope, start) in LOGITS.items()}
    return {option: weight / sum(weights.values()) for option, weight in weights.items()}


def main() -> None:
    """Write both files."""
    seen: set[str] = set()
    draws = random.Random(SEED)
    for name, count in ROWS.items():
        rows: list[str] = []
        while len(rows) < count:
            said = [(aspect, draws.choice(list(WEIGHTS))) for aspect in draws.sample(ASPECTS, 2)]
            text = ", ".join(f"the {aspect} was {word}" for aspect, word in said)
            prompt = f'A guest writes: "{text.capitalize()}." Does this guest recommend the place?'
            options = draws.sample(list(LOGITS), len(LOGITS))
            p = probabilities(sum(WEIGHTS[word] for _, word in said))
            people = draws.choices(options, [p[option] for option in options], k=PEOPLE)
            if prompt in seen:
                continue
            seen.add(prompt)
            held_out = {"probabilities": [round(p[option], 4) for option in options]}
            trained = {"counts": [people.count(option) for option in options]}
            row = {"prompt": prompt, "options": options, **(held_out if "heldout" in name else trained)}
            rows.append(json.dumps(row) + "\n")
        (HERE / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()

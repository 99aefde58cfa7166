"""Writes the weights of the reward `refusal`: a logistic regression on words and pairs of words.

    python recipes/data/make_refusal_words.py FOLDER

FOLDER has XSTest's labeled answers, `xstest_v2_completions_*.csv` of
https://github.com/paul-rottger/xstest. They are models' answers, so they aren't in this repository.
The other answers are those of refusal_examples.jsonl, and what the quick start's pairs take for
answers. No refusal of the quick start is among them.
"""

from __future__ import annotations

import csv
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from alignkit_plugins.rewards.refusal import FILE, features

HERE = Path(__file__).parent
COMPLIED = "1_full_compliance"  # XSTest's label; the others are partial and full refusals
CUTS = (12, 24)  # words: short answers occur too
SEEN = 3  # texts that a feature must occur in
DECAY = 0.25
SMALLEST = 0.2  # smaller weights are left out
PARTS = 5  # of XSTest's prompts, for cross-validation
Example = tuple[str, bool]  # an answer, and whether it refuses


def labeled(folder: Path) -> Iterator[tuple[str, str, bool]]:
    """Each prompt of XSTest with an answer, and whether people took it for a refusal."""
    for file in sorted(folder.glob("xstest_v2_completions_*.csv")):
        with file.open(encoding="utf-8", newline="") as text:
            for row in csv.DictReader(text):
                yield row["prompt"], row["completion"], row["final_label"] != COMPLIED


def others() -> Iterator[Example]:
    """Our own examples, and what the quick start's pairs take for answers."""
    for row in _rows("refusal_examples.jsonl"):
        yield row["text"], row["refused"]
    for row in _rows("quickstart/safety.jsonl"):
        yield row["rejected"][-1]["content"], False
    for row in _rows("quickstart/helpful.jsonl"):
        yield row["chosen"][-1]["content"], False


def _rows(name: str) -> Iterator[dict]:
    with (HERE / name).open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def trained(examples: list[Example]) -> dict[str, float]:
    """The weights by feature."""
    found = [
        (features(" ".join(text.split()[:cut])), refused)
        for text, refused in examples
        for cut in CUTS
    ]
    texts = defaultdict(list)
    for number, (present, _) in enumerate(found):
        for feature in present:
            texts[feature].append(number)
    names = sorted(name for name, where in texts.items() if len(where) >= SEEN * len(CUTS))
    inputs = torch.zeros(len(found), len(names))
    for column, name in enumerate(names):
        inputs[texts[name], column] = 1
    targets = torch.tensor([float(refused) for _, refused in found])
    weights = torch.zeros(len(names), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = binary_cross_entropy_with_logits(inputs @ weights, targets, reduction="sum")
        total = total + DECAY * (weights**2).sum()
        total.backward()
        return total

    optimizer.step(loss)
    rounded = {name: round(weight, 2) for name, weight in zip(names, weights.tolist(), strict=True)}
    return {name: weight for name, weight in rounded.items() if abs(weight) >= SMALLEST}


def read_right(people: list[tuple[str, str, bool]]) -> int:
    """How many of XSTest's answers are read as people did by weights that learned from answers to
    other prompts.
    """
    prompts = sorted({prompt for prompt, *_ in people})
    random.Random(0).shuffle(prompts)
    right = 0
    for part in range(PARTS):
        held = set(prompts[part::PARTS])
        weights = trained(
            [(text, refused) for prompt, text, refused in people if prompt not in held]
            + [*others()]
        )
        asked = [(features(text), refused) for prompt, text, refused in people if prompt in held]
        right += sum(
            (sum(weights.get(name, 0) for name in found) > 0) == refused for found, refused in asked
        )
    return right


if __name__ == "__main__":
    rows = list(labeled(Path(sys.argv[1])))
    print(f"XSTest, cross-validated by prompt: {read_right(rows)} of {len(rows)} as people")
    learned = trained([*((text, refused) for _, text, refused in rows), *others()])
    FILE.write_text(json.dumps(learned, separators=(",\n", ":")) + "\n", encoding="utf-8")

"""`alignkit init` on generated files: every recipe that it writes passes `check` and runs, or it says
why it writes none.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignkit.cli import main
from alignkit.recipe.load import load_recipe

pytestmark = pytest.mark.usefixtures("here")

HEADERS = {  # usual ones, odd ones, and how `--columns` names these
    "demos": (("prompt", "completion"), ("User Question", " Our reply "), ("prompt", "completion")),
    "pairs": (("prompt", "chosen", "rejected"), ("Frage", "good one", "bad-one"), ("prompt", "chosen", "rejected")),
    "known-answers": (("question", "answer"), ("Q:", "Lösung"), ("prompt", "answer")),
}  # fmt: skip
ALPHABET = "a b cd ef gh ij kl mn op qr st uv wx yz why how what where please tell me of it"


def words(draw: random.Random, least: int, most: int) -> str:
    return " ".join(draw.choices(ALPHABET.split(), k=draw.randint(least, most)))


def rows(draw: random.Random, kind: str, count: int) -> Iterator[list[Any]]:
    """Rows with repeated answers, doubled votes, the same question in other words, and missing
    cells.
    """
    canned = [words(draw, 8, 16) for _ in range(draw.choice((1, 3, 12)))]
    questions = [words(draw, 2, 14) for _ in range(max(1, count // draw.choice((1, 2, 5))))]
    repeats, gaps = draw.random(), draw.choice((0, 0, 0.03, 0.5))
    for at in range(count):
        question = draw.choice(questions) + draw.choice(("", "?", " ?", "!"))
        answer = draw.choice(canned) if draw.random() < repeats else words(draw, 1, 20)
        row: list[Any] = [question, answer]
        if kind == "pairs":
            row = draw.sample([question, answer, words(draw, 1, 9)], 3) if at % 50 == 7 else row
            row = [*row, words(draw, 1, 9)][:3]
        if kind == "known-answers":
            row = [question, at % 11]
        yield ["" if draw.random() < gaps else cell for cell in row]


def write(seed: int) -> tuple[str, list[str]]:
    """Write a file; return its name, and the words of the command."""
    draw = random.Random(seed)
    kind = draw.choice(list(HEADERS))
    usual, odd, expected = HEADERS[kind]
    is_odd = draw.random() < 0.5
    header = odd if is_odd else usual
    written = list(rows(draw, kind, round(2 * 200 ** draw.random())))
    said = [f"{kind}=data{draw.choice(('.csv', '.jsonl'))}"] if draw.random() < 0.7 else []
    name = said[0].partition("=")[2] if said else f"data{draw.choice(('.csv', '.jsonl'))}"
    with Path(name).open("w", encoding="utf-8", newline="") as file:
        if name.endswith(".csv"):
            csv.writer(file).writerows([header, *written])
        else:
            file.writelines(
                json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in written
            )
    columns = ",".join(f"{one}={other}" for one, other in zip(expected, header, strict=True))
    return name, [*(said or [name]), *(["--columns", columns] if is_odd and draw.random() < 0.8 else [])]  # fmt: skip


def try_it(seed: int, capsys: pytest.CaptureFixture[str], run: bool) -> str:
    """What became of a generated file."""
    _, command = write(seed)
    code = main(["init", *command, "--base", "tiny"])
    text = "".join(capsys.readouterr())
    if code:
        assert code in (2, 4) and "error: " in text and "help: " in text, (seed, text)
        return "none"
    recipe = load_recipe(Path("recipe.yaml"))
    assert main(["check", "recipe.yaml"]) == 0, (seed, capsys.readouterr())
    less = ["model.lora.r=2"]
    for name, stage in recipe.stages.items():
        if stage.settings is not None and stage.settings.prompts:
            less += [f"stages.{name}.iterations=1", f"stages.{name}.rollout.max_new_tokens=8"]
            # No answer of `tiny` is right
            less += [f"stages.{name}.reward={{regex: {{pattern: '[a-l]'}}}}"]
        elif stage.settings is not None:
            less += [f"stages.{name}.epochs=1"]
    if "report" in recipe.stages:
        less += ["stages.report.sampling.max_new_tokens=4", "stages.report.limit=4"]
    if run:
        assert main(["run", "recipe.yaml", *less, "--out", "run"]) == 0, (seed, capsys.readouterr())
    return "report" if "report" in recipe.stages else "no report"


@pytest.mark.parametrize("seed", range(12))
def test_a_recipe_for_a_generated_file_passes_check(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    try_it(seed, capsys, run=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_a_recipe_for_a_generated_file_runs(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    try_it(seed, capsys, run=True)

"""The step `evaluate_reward`: accuracy, margins, calibration, length, RewardBench's sections."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import BadRow, Group, Pair, Response
from alignkit.data.group import Origin
from alignkit.recipe.schema import RewardSpec
from alignkit_plugins.compare.pairs import Choice, accuracy, choices, gaps
from alignkit_plugins.compare.rows import plain
from alignkit_plugins.evals.learned_from import log_odds
from alignkit_plugins.evals.reward_step import breakdown, calibration
from alignkit_plugins.formats.public_sets import RewardBench2
from tests import rows
from tests.documented_keys import PAGE
from tests.evals.scripted import lines

PROMPTS = itertools.count()


def group(
    *scores: float | None, pairs: Sequence[Pair] = (Pair(0, 1),), prompt: str = "", **meta: Any
) -> Group:
    """Responses with these scores, whose texts get longer. prompt: by default, one that no other
    group has.
    """
    texts = [(score, "x" * (n + 1)) for n, score in enumerate(scores)]
    responses = tuple(Response(text, scores={"r": score}) for score, text in texts)
    return Group((rows.user(prompt or f"q{next(PROMPTS)}"),), responses, tuple(pairs), meta=meta)


def answers(word: str) -> tuple[Response, ...]:
    """The first is better by `r`."""
    return Response(word, scores={"r": 1.0}), Response("", scores={"r": 0.0})


def found(groups: Sequence[Group]) -> tuple[list[Choice], list[float | None]]:
    pairs = choices(groups)
    return pairs, gaps(pairs, "r")


def right(groups: Sequence[Group]) -> str:
    """The line of the accuracy."""
    pairs, known = found(groups)
    (row,) = accuracy(pairs, {"r": known})
    (line,) = lines({"results": [plain(row)]})
    return line


def groups_of(scores: Sequence[float], **pair: Any) -> list[Group]:
    return [group(score, 0.0, pairs=[Pair(0, 1, **pair)]) for score in scores]


def test_a_pair_is_right_if_the_chosen_response_scores_higher() -> None:
    """A tie is wrong. A pair that is more likely the other way around is turned; one without a
    score is left out.
    """
    groups = [group(2.0, 1.0), group(1.0, 2.0), group(0.1 + 0.2, 0.3), group(None, 1.0)]
    turned = group(1.0, 2.0, pairs=[Pair(0, 1, p=0.1)])
    line = right([*groups, turned, group(5.0, 1.0, pairs=[Pair(0, 1, p=0.5)])])
    assert line == "r accuracy |  | 0.5 0.15 0.85 4 |  |  | 2/1/1 1"
    for p in (0.1, 0.45):
        turned = group(1.0, 2.0, pairs=[Pair(0, 1, p=p)])
        (choice,), (gap,) = found([turned])
        assert (choice.better, choice.longer, choice.p, gap) == (turned.responses[1], 1, 1 - p, 1.0)


def test_a_prompt_is_the_unit_of_the_interval() -> None:
    """Ten pairs of one prompt are not ten prompts, in one row or in ten. Raw texts are one if all
    their words are.
    """
    many = [Pair(0, worse) for worse in range(1, 11)]
    ten = [group(1.0, 0.0, prompt="same") for _ in range(10)]
    for same in ([group(1.0, *[0.0] * 10, pairs=many)], ten):
        line = right([*same, group(0.0, 1.0)])
        assert line == "r accuracy |  | 0.5 0.001541 0.9985 2 |  |  | 10/1/0 0"
    for words, low in (("aaa", "0.1675 1 1"), ("abc", "0.3825 1 3")):
        raw = [replace(group(1.0, 0.0), prompt=(), responses=answers(word)) for word in words]
        assert right(raw) == f"r accuracy |  | 1 {low} |  |  | 3/0/0 0"
    # A passage is one unit, whose pairs still count alike
    origin = Origin("x", 1, group="passage")
    passages = [replace(group(1.0, 0.0, passage=n > 4), origin=origin) for n in range(10)]
    assert right(passages) == "r accuracy |  | 1 0.009224 1 2 |  |  | 10/0/0 0"


def test_pairs_by_margin_by_length_and_by_column() -> None:
    margins = ["slightly", None, 2.0]
    groups = [group(1.0, 0.0, pairs=[Pair(0, 1, margin=margin)]) for margin in margins]
    groups.append(group(0.0, 1.0, pairs=[Pair(1, 0, margin="slightly")], kind="a"))
    groups.append(replace(group(), responses=(Response("aa"), Response("bb"))))
    columns = "margin", "kind", "the chosen response"
    assert [breakdown(choices(groups), column) for column in columns] == [
        {"slightly": [0, 3]},
        {"a": [3]},
        {"equally long": [4], "longer": [3], "shorter": [0, 1, 2]},
    ]


def test_calibration_by_hand() -> None:
    """Confidences 0.731 (twice, once right), 0.5 (a tie) and nearly 1."""
    measured, bins = calibration(*found(groups_of([1.0, -1.0, 0.0, 50.0])), "r")
    confidence = 1 / (1 + math.exp(-1))
    counts = [(row["low"], row["n"], row["accuracy"]) for row in bins["r"]]
    assert counts == [(0.5, 1, 0.5), (0.7, 2, 0.5), (0.9, 1, 1.0)]
    means = {row.metric: row.estimate["mean"] for row in measured}
    assert means["confidence minus right"] == pytest.approx((2 * confidence - 1) / 4)
    assert means["Brier score"] == pytest.approx(((1 - confidence) ** 2 + confidence**2) / 4)
    assert means["measured calibration error (ECE)"] == pytest.approx((confidence - 0.5) / 2)
    _, soft = calibration(*found(groups_of([-1.0], p=0.8)), "r")
    assert soft["r"][0]["accuracy"] == pytest.approx(0.2)


# --- runs

SCORE = """
def score(completions):
    return [None if c == "unknown" else float(c.split()[0]) for c in completions]
"""
ROWS = rows.json_rows("""
{"prompt": "q1", "chosen": "2 yes", "rejected": "1 no", "subset": "hep-go", "id": 7}
{"prompt": "q2", "chosen": "1 no", "rejected": "3 yes, at length", "subset": "hep-go", "id": 8}
{"prompt": "q3", "chosen": "5 a", "rejected": "4 b", "subset": "mine", "id": 9}
{"prompt": "q4", "chosen": "unknown", "rejected": "4 b", "subset": "mine", "id": 10}
""")
PAIRS = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in ROWS]
LENGTH = {"length": {"unit": "characters"}}
PYTHON = {"python": {"path": "score.py", "function": "score"}}


def run(
    folder: Path, data: Sequence[Any], code: int = 0, stages: Any = None, **keys: Any
) -> tuple[dict[str, Any], Path]:
    """The reward_evaluation.json and the folder of a step."""
    rows.write_rows(folder / "rows.jsonl", data)
    (folder / "score.py").write_text(SCORE, encoding="utf-8")
    step = {"step": "evaluate_reward", "rewards": [PYTHON, LENGTH], "pairs": "rows.jsonl", **keys}
    recipe = rows.write_recipe(folder, {**(stages or {}), "check": step})
    written = rows.run(recipe, code=code) / "check" / "reward_evaluation.json"
    if code:
        return {}, written.parent
    return rows.read_json(written), written.parent


NUMBERS = """
python accuracy |  | 0.6667 0.2024 0.9437 3 |  |  | 2/1/0 1
length accuracy |  | 0.5 0.15 0.85 4 |  |  | 2/1/1 0
python accuracy equally long |  | 1 0.1675 1 1 |  |  | 1/0/0 0
length accuracy equally long |  | 0 0 0.8325 1 |  |  | 0/0/1 0
python accuracy longer |  | 1 0.1675 1 1 |  |  | 1/0/0 1
length accuracy longer |  | 1 0.2902 1 2 |  |  | 2/0/0 0
python accuracy shorter |  | 0 0 0.8325 1 |  |  | 0/1/0 0
length accuracy shorter |  | 0 0 0.8325 1 |  |  | 0/1/0 0
python accuracy hep-go |  | 0.5 0.09453 0.9055 2 |  |  | 1/1/0 0
length accuracy hep-go |  | 0.5 0.09453 0.9055 2 |  |  | 1/1/0 0
python accuracy mine |  | 1 0.1675 1 1 |  |  | 1/0/0 1
length accuracy mine |  | 0.5 0.09453 0.9055 2 |  |  | 1/0/1 0
"""
REPORT = """\
4 pairs of 4 prompts, without 0 ties
                python        length
────────────────────────────────────
accuracy  67% [20, 94]  50% [15, 85]

by the chosen response
the chosen response  policy        accuracy
───────────────────────────────────────────
equally long         python  100% [17, 100]
equally long         length      0% [0, 83]
longer               python  100% [17, 100]
longer               length  100% [29, 100]
shorter              python      0% [0, 83]
shorter              length      0% [0, 83]

by subset
"""


def test_a_run_writes_the_numbers(tmp_path: Path) -> None:
    written, folder = run(tmp_path, ROWS, by=["subset"])
    assert lines(written) == NUMBERS.strip().splitlines() and written["bins"] == {}
    assert REPORT in (folder / "report.txt").read_text()
    part = PAGE.read_text(encoding="utf-8").split("## reward_evaluation.json")[1]
    assert [key for key in written if f"`{key}`" not in part.split("\n## ")[0]] == []


def test_a_reward_model_has_a_calibration_and_its_training_pairs_are_named(
    tmp_path: Path, said: rows.Said
) -> None:
    """Unless its scores are no log odds: ratings are on the data's scale, and a margin pushes pairs
    further apart than their odds.
    """
    scored = [{"prompt": f"q{n}", "completion": "a", "score": n} for n in range(4)]
    rows.write_rows(tmp_path / "scored.jsonl", scored)
    leveled = [{**row, "margin": "better"} for row in PAIRS]
    rows.write_rows(tmp_path / "leveled.jsonl", leveled)
    stages = yaml.safe_load("""
    plain: {algorithm: reward_model, data: rows.jsonl, max_steps: 1}
    margin:
      algorithm: {reward_model: {margin: llama2-small}}
      data: leveled.jsonl
      max_steps: 1
    ratings: {algorithm: reward_regression, data: scored.jsonl, max_steps: 1}
    """)
    written, folder = run(tmp_path, PAIRS, stages=stages, rewards=list(stages))
    assert {name: sum(row["n"] for row in bins) for name, bins in written["bins"].items()} == {
        "plain": 4
    }
    (note,) = [note for note in written["notes"] if "plain" in note]
    assert note.startswith("warning: 4 of 4 rows are training data (4 by plain")
    assert note in said()
    out = folder.parent
    specs = ("folder", str(out / "plain" / "adapter")), ("stage", "plain"), ("folder", str(out))
    assert [log_odds(RewardSpec(*spec), out) for spec in specs] == [True, True, False]


MISTAKES = """
    {"by": ["subsets"]}                                          | 4 | did you mean 'subset'?
    {"rewards": [{"length": {}}, {"length": {"target": 3}}]}     | 2 | duplicates: length
    {"rewards": []}                                              | 2 | stages.check: name at least one
    {"pairs": "prompts.jsonl"}                                   | 4 | none of 3 rows has a preference pair
"""


@pytest.mark.parametrize(("keys", "code", "word"), rows.cells(MISTAKES))
def test_mistakes_are_named(
    keys: str, code: str, word: str, tmp_path: Path, said: rows.Said
) -> None:
    run(tmp_path, ROWS, int(code), **json.loads(keys))
    assert word in said()


# --- RewardBench 2

BENCH = """
{"id": "1", "prompt": "q1", "chosen": ["long enough"], "rejected": ["a", "b", "c"], "subset": "Focus"}
{"id": "2", "prompt": "q2", "chosen": ["no"], "rejected": ["a", "bbb", "c"], "subset": "Focus"}
{"id": "tied:0", "prompt": "q3", "chosen": ["cccc", "dddd"], "rejected": ["a"], "subset": "Ties"}
{"id": "ref:0", "prompt": "q4", "chosen": ["cccc"], "rejected": ["a"], "subset": "Ties"}
"""


def test_rows_of_reward_bench_2(tmp_path: Path) -> None:
    """The reward is the length: right at the first row, wrong at the second, whose pairs are
    averaged first.
    """
    row = json.loads(RewardBench2.example) | {"num_correct": 1, "models": ["m"] * 4}
    read = RewardBench2(None).read(row)
    assert RewardBench2.matches(row) and not RewardBench2.matches({**row, "rejected": "3"})
    assert [response.text for response in read.responses] == ["4", "3", "5", "22"]
    assert read.pairs == (Pair(0, 1), Pair(0, 2), Pair(0, 3)) and read.meta.keys() == {
        *("subset", "id", "num_correct", "models")
    }
    with pytest.raises(BadRow, match="column 'rejected' must be a list of at least one text"):
        RewardBench2(None).read({**row, "rejected": []})
    data = [{**row, "num_correct": len(row["chosen"])} for row in rows.json_rows(BENCH)]
    written, _ = run(tmp_path, data, rewards=[LENGTH], by=["subset"])
    assert "length accuracy Focus |  | 0.8333 0.01768 1 2 |  |  | 5/1/0 0" in lines(written)

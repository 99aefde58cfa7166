"""What an evaluation says of a policy, and what should make its reader doubt it, the most important
first.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import CARD, make_run, rewritten, write_stage

from alignkit.report import Report, Table
from alignkit_plugins.compare import readable as numbers
from alignkit_plugins.compare.rows import LENGTH, adjusted, plain, rows_of
from alignkit_plugins.compare.verdicts import doubts, verdicts
from alignkit_plugins.report.document import page
from alignkit_plugins.report.facts import facts_of

NONE = "this is no judge: it names the first answer that it reads in 97% of questions"


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = make_run(tmp_path_factory.mktemp("verdicts") / "run")
    return dict(json.loads((run / "report" / "evaluation.json").read_text()))


def changed(summary: Mapping[str, Any], metric: str, **values: Any) -> dict[str, Any]:
    """The summary with another row of align."""
    rows = []
    for row in rows_of(summary):
        own = (row.policy, row.metric, row.column) == ("align", metric, "")
        rows.append(replace(row, **values) if own else row)
    return {**summary, "results": list(map(plain, adjusted(rows)))}


def interval(mean: float, low: float, high: float, **more: float) -> dict[str, float]:
    return {"mean": mean, "low": low, "high": high, **more}


def said(summary: Mapping[str, Any]) -> str:
    return " ".join(verdicts(rows_of(summary))[0].sentences)


DOUBTS = """
2 of 20 prompts are training data (2 by sft)
between equally long answers, no difference between align and sft in helpful is clear
helpful and local_judge contradict each other on align: one of them may be fooled
between equally long answers, no difference between align and sft in local_judge is clear
answers of align are 100% longer than those of sft, and rewards and judges often depend on length
1 answers of sft have no helpful and do not count
1 answers of align have no helpful and do not count
many answers are truncated: 50% of sft, 50% of align
"""


def test_doubts_are_all_said(summary: dict[str, Any]) -> None:
    assert list(doubts(summary)) == DOUBTS.strip().splitlines()
    bad = {**summary, "judge_cards": {"local_judge": {**CARD, "no_judge": NONE}}}
    assert next(doubts(bad)) == f"local_judge: {NONE}"
    judged = {"estimate": interval(0.7, 0.6, 0.8, n=20)}
    judged |= {"difference": interval(0.2, 0.1, 0.3, p=0.001)}
    judged |= {"equal_length": interval(0.68, 0.58, 0.78, n=20)}
    good = changed(summary, "local_judge", **judged)
    assert not any("judge" in text.replace("and judges", "") for text in doubts(good))


def test_ties_on_every_example_are_no_reason_to_train_more(summary: dict[str, Any]) -> None:
    ties = summary
    for metric in ("helpful", "local_judge"):
        ties = changed(ties, metric, difference=interval(0.0, 0.0, 0.0, p=1.0, n=20))
    assert "cannot tell them apart" in said(ties)
    unclear = summary
    for metric in ("helpful", "local_judge"):
        unclear = changed(unclear, metric, difference=interval(0.1, -0.1, 0.3, p=0.6, n=20))
    assert "more training may show one" in said(unclear)


BOUGHT = "Most of this gain comes with"


@pytest.mark.parametrize(
    ("length", "equal", "expected"),
    [
        (24.0, (0.1, -0.1, 0.3), f"{BOUGHT} longer answers: between equally long ones it is +0.1"),
        (6.0, (0.1, -0.1, 0.3), f"{BOUGHT} shorter answers"),
        (6.0, (0.9, 0.7, 1.05), ""),
        (6.0, (0.4, -0.8, 1.6), ""),  # at equal length, all of it is possible
    ],
)
def test_a_policy_that_bought_its_reward_is_told_so(
    length: float, equal: tuple[float, float, float], expected: str, summary: dict[str, Any]
) -> None:
    told = changed(summary, LENGTH, estimate=interval(length, length, length, n=20))
    told = changed(told, "helpful", equal_length=interval(*equal))
    assert expected in said(told) and (BOUGHT in said(told)) == bool(expected)
    # A metric finds words, and no length fools it
    assert BOUGHT not in said(changed(told, "helpful", kind="metric"))


def test_what_a_step_reports_of_its_judge_is_its_own_warning(tmp_path: Path) -> None:
    """The run's log has it as well, wrapped, and after the last stage has ended."""
    folder = make_run(tmp_path / "other")
    text = f"local_judge: {NONE}, and would decide half of a coin's"
    write_stage(folder / "labels", "judge_pairs", report=Report([f"warning: {text}"]).plain())
    log = ["report: done in 2s", f"warning: local_judge: {NONE},", "  and would decide half of a"]
    with (folder / "run.log").open("a", encoding="utf-8") as file:
        file.writelines(f"2026-09-21T14:15:01Z {line}\n" for line in [*log, "  coin's"])
    found = [warning for warning in facts_of(folder)["warnings"] if NONE in warning["text"]]
    assert found == [{"stage": "labels", "text": text}]


def test_reports_of_other_stages_are_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "other")
    table = Table("accuracy by subset", ["subset", "right"], [["chat", "80%"]])
    report = Report(["checked 5 pairs", table]).plain()
    write_stage(folder / "labels", "evaluate_reward", report=report)
    written = {"judge_cards": {"strict": {"no_judge": NONE}}}
    (folder / "labels" / "reward_evaluation.json").write_text(json.dumps(written))
    rewritten(folder / "labels")
    facts = facts_of(folder)
    assert {"stage": "labels", "text": f"strict: {NONE}"} in facts["warnings"]
    text = page(facts).replace("\xa0", " ")
    for words in ("Evaluate reward: labels", "accuracy by subset", "checked 5 pairs"):
        assert words in text


SHORT: list[tuple[Any, list[Any], list[Any]]] = [
    (
        numbers.short,
        [None, 3, 1234567, 0.00012345, 2345.6, 2.0, True, "x"],
        ["-", "3", "1,234,567", "0.0001234", "2,346", "2", "True", "x"],
    ),
    (numbers.number, ["nan", float("nan"), 10**400, True, 2], [None, None, None, None, 2.0]),
    (numbers.duration, [None, 7.25, 65, 3900], ["-", "7.2s", "1m05s", "1h05m"]),
    (numbers.size, [12, 1200, 3_400_000, 5e9], ["12 bytes", "1.2 kB", "3.4 MB", "5 GB"]),
]


@pytest.mark.parametrize(("function", "values", "expected"), SHORT)
def test_numbers_are_short(function: Any, values: list[Any], expected: list[Any]) -> None:
    assert [function(value) for value in values] == expected


def test_shares_are_shown_as_percent() -> None:
    assert numbers.shown(interval(0.5, 0.4, 0.6), percent=True) == "50% [40, 60]"

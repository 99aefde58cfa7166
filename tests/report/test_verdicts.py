"""What an evaluation says of a policy, and what should make its reader doubt it, the most important
first.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import make_run, rewritten, write_stage

from alignkit.contract.report import Report, Table
from alignkit_plugins.compare.rows import LENGTH, adjusted, plain, rows_in
from alignkit_plugins.compare.verdicts import doubts, verdicts
from alignkit_plugins.report.document import page
from alignkit_plugins.report.facts import facts_of
from alignkit_plugins.text import readable as numbers
from tests.rows import cells, read_json

NONE = "this is no judge: it names the first answer that it reads in 97% of questions"


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = make_run(tmp_path_factory.mktemp("verdicts") / "run")
    return dict(read_json(run / "report" / "evaluation.json"))


def changed(summary: Mapping[str, Any], metric: str, **values: Any) -> dict[str, Any]:
    """The summary with another row of align."""
    rows = []
    for row in rows_in(summary):
        own = (row.policy, row.metric, row.column) == ("align", metric, "")
        rows.append(replace(row, **values) if own else row)
    return {**summary, "results": list(map(plain, adjusted(rows)))}


def with_numbers(summary: Mapping[str, Any], changes: str) -> dict[str, Any]:
    """changes: of metrics, a field with its mean, low, high and p, such as `x difference 1 0 2`."""
    found = dict(summary)
    for change in changes.split("; "):
        metric, field, *texts = change.split()
        numbers = [None if text == "-" else float(text) for text in texts]
        value = dict(zip(("mean", "low", "high", "p"), numbers, strict=False))
        found = changed(
            found, {"length": LENGTH}.get(metric, metric), **{field: {**value, "n": 20}}
        )
    return found


def said(summary: Mapping[str, Any]) -> str:
    return " ".join(verdicts(rows_in(summary))[0].sentences)


def test_doubts_are_of_what_they_say(summary: dict[str, Any]) -> None:
    """All of them are in test_facts.py."""
    card = {**summary["judge_cards"]["local_judge"], "no_judge": NONE}
    bad = {**summary, "judge_cards": {"local_judge": card}}
    assert next(doubts(bad)) == f"local_judge: {NONE}"
    judged = "estimate 0.7 0.6 0.8; local_judge difference 0.2 0.1 0.3 0.001"
    judged += "; local_judge equal_length 0.68 0.58 0.78"
    good = doubts(with_numbers(summary, f"local_judge {judged}"))
    assert not any("judge" in text.replace("and judges", "") for text in good)
    judged += "; local_judge equal_length 0.52 0.44 0.6; length estimate 12.5; truncated estimate"
    near = " ".join(doubts(with_numbers(summary, f"local_judge {judged} 0.25")))
    said = "sft in local_judge is clear", "align are 25% longer than", "25% of align"
    assert [text for text in said if text not in near] == []


BOUGHT = "Most of this gain comes with"
# What is different, and what is said; ties on every example are no reason to train more, and at
# equal length all of a gain may be possible
SAID = """
helpful difference 0 0 0 1; local_judge difference 0 0 0 1                     | cannot tell them apart
helpful difference 0.1 -0.1 0.3 0.6; local_judge difference 0.1 -0.1 0.3 0.6   | more training may show
helpful difference 0 -0.1 0.1 1; local_judge difference 0 -0.1 0.1 1           | more training may show
helpful difference - - - 1; local_judge difference - - - 1                     | cannot be compared
length estimate 24; helpful equal_length 0.1 -0.1 0.3  | comes with longer answers: between equally
length estimate 24; helpful equal_length 0.1 -0.1 0.3  | long ones it is +0.1
length estimate 6; helpful equal_length 0.1 -0.1 0.3   | Most of this gain comes with shorter answers
length estimate 6; helpful equal_length 0.9 0.7 1.05   |
length estimate 10; helpful equal_length 0.1 -0.1 0.3  |
length estimate 6; helpful equal_length 0.4 -0.8 1.6   |
"""


@pytest.mark.parametrize(("changes", "expected"), cells(SAID))
def test_what_is_said_of_numbers(changes: str, expected: str, summary: dict[str, Any]) -> None:
    told = with_numbers(summary, changes)
    assert expected in said(told) and (BOUGHT in said(told)) == (
        "answers" in expected or "long ones" in expected
    )
    # A metric finds words, and no length fools it
    assert BOUGHT not in said(changed(told, "helpful", kind="metric"))


def test_what_a_step_reports_of_its_judge_is_its_own_warning(tmp_path: Path) -> None:
    """The run's log has it as well, wrapped, and after the last stage has ended."""
    folder = make_run(tmp_path / "other")
    text = f"local_judge: {NONE}, and would decide half of a coin's"
    write_stage(
        folder / "labels", "judge_pairs", report=Report([f"asked\nwarning: {text}"]).plain()
    )
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


# Of functions, values of JSON and what is shown of them
SHORT = """
    short    | [null, 3, 1234567, 0.00012345, 2345.6, 2.0, true, "x"] | - 3 1,234,567 0.0001234 2,346 2 True x
    short    | [-2345.6, -0.5, 0]                                    | -2,346 -0.5 0
    number   | ["nan", NaN, 1e999, -1e999, true, 2]                  | None None None None None 2.0
    duration | [null, 0, 7.25, 65, 3599, 3600, 3900]                | - 0.0s 7.2s 1m05s 59m59s 1h00m 1h05m
    size     | [12, 1000, 1200, 3400000, 5e9]                        | 12_bytes 1_kB 1.2_kB 3.4_MB 5_GB
    percentage | [null, 0.156, 0]                                    | - 16% 0%
"""


@pytest.mark.parametrize(("function", "values", "expected"), cells(SHORT))
def test_numbers_are_short(function: str, values: str, expected: str) -> None:
    found = [str(getattr(numbers, function)(value)) for value in json.loads(values)]
    assert [text.replace(" ", "_") for text in found] == expected.split()

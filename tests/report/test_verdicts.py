"""What should make the reader of an evaluation doubt it, the most important first."""

import json
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


@pytest.fixture
def summary(tmp_path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(
        (make_run(tmp_path / "run") / "report" / "evaluation.json").read_text()
    )
    return value


def changed(summary: dict[str, Any], metric: str, **values: Any) -> dict[str, Any]:
    """The summary with another row of align."""
    rows = []
    for row in rows_of(summary):
        if (row.policy, row.metric, row.column) == ("align", metric, ""):
            row = replace(row, **values)
        rows.append(row)
    return {**summary, "results": list(map(plain, adjusted(rows)))}


def test_doubts_are_all_said(summary: dict[str, Any]) -> None:
    assert list(doubts(summary)) == [
        "2 of 20 prompts are training data (2 by sft)",
        "between equally long answers, no difference between align and sft in helpful is clear",
        "helpful and local_judge contradict each other on align: one of them may be fooled",
        "between equally long answers, no difference between align and sft in local_judge is clear",
        (
            "answers of align are 100% longer than those of sft, and rewards and judges often "
            "depend on length"
        ),
        "1 answers of sft have no helpful and do not count",
        "1 answers of align have no helpful and do not count",
        "many answers are truncated: 50% of sft, 50% of align",
    ]
    bad = {**summary, "judge_cards": {"local_judge": {**CARD, "no_judge": NONE}}}
    assert next(doubts(bad)) == f"local_judge: {NONE}"


def test_ties_on_every_example_are_no_reason_to_train_more(summary: dict[str, Any]) -> None:
    def told(**difference: float) -> str:
        rows = [
            replace(row, difference={**row.difference, **difference}) if row.difference else row
            for row in rows_of(summary)
        ]
        (verdict,) = [one for one in verdicts(adjusted(rows)) if one.policy == "align"]
        return " ".join(verdict.sentences)

    assert "cannot tell them apart" in told(mean=0.0, low=0.0, high=0.0)
    assert "more training may show one" in told(mean=0.1, low=-0.1, high=0.3, p=0.6)


def test_a_good_judge_raises_no_doubts(summary: dict[str, Any]) -> None:
    good = changed(
        summary,
        "local_judge",
        estimate={"mean": 0.7, "low": 0.6, "high": 0.8, "n": 20},
        difference={"mean": 0.2, "low": 0.1, "high": 0.3, "p": 0.001},
        equal_length={"mean": 0.68, "low": 0.58, "high": 0.78, "n": 20},
    )
    assert not any("judge" in text.replace("and judges", "") for text in doubts(good))


@pytest.mark.parametrize(
    ("length", "equal", "said"),
    [
        (
            24.0,
            (0.1, -0.1, 0.3),
            "Most of this gain comes with longer answers: between equally long ones it is +0.1",
        ),
        (6.0, (0.1, -0.1, 0.3), "Most of this gain comes with shorter answers"),
        (6.0, (0.9, 0.7, 1.05), ""),
        (6.0, (0.4, -0.8, 1.6), ""),  # at equal length, all of it is possible
    ],
)
def test_a_policy_that_bought_its_reward_is_told_so(
    length: float, equal: tuple[float, float, float], said: str, summary: dict[str, Any]
) -> None:
    estimate = dict.fromkeys(("mean", "low", "high"), length)
    told = changed(summary, LENGTH, estimate={**estimate, "n": 20})
    at_equal = dict(zip(("mean", "low", "high"), equal, strict=True))
    told = changed(told, "helpful", equal_length=at_equal)
    text = " ".join(verdicts(rows_of(told))[0].sentences)
    assert (said in text) if said else ("Most of this gain" not in text)
    as_metric = changed(told, "helpful", kind="metric")  # it finds words, and no length fools it
    assert "Most of this gain" not in " ".join(verdicts(rows_of(as_metric))[0].sentences)


def test_what_a_step_reports_of_its_judge_is_its_own_warning(tmp_path: Path) -> None:
    """The run's log has it as well, wrapped, and after the last stage has ended."""
    folder = make_run(tmp_path / "other")
    text = f"local_judge: {NONE}, and would decide half of a coin's"
    write_stage(folder / "labels", "judge_pairs", report=Report([f"warning: {text}"]).plain())
    log = [
        "report: stage 4 of 4, evaluate",
        "report: done in 2s",
        f"warning: local_judge: {NONE},",
        "  and would decide half of a coin's",
    ]
    with (folder / "run.log").open("a", encoding="utf-8") as file:
        file.writelines(f"2026-09-21T14:15:01Z {line}\n" for line in log)
    found = [warning for warning in facts_of(folder)["warnings"] if NONE in warning["text"]]
    assert found == [{"stage": "labels", "text": text}]


def test_reports_of_other_stages_are_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "other")
    checked = Report(
        ["checked 5 pairs", Table("accuracy by subset", ["subset", "right"], [["chat", "80%"]])]
    )
    write_stage(folder / "labels", "evaluate_reward", report=checked.plain())
    (folder / "labels" / "reward_evaluation.json").write_text(
        json.dumps({"judge_cards": {"strict": {"no_judge": NONE}}})
    )
    rewritten(folder / "labels")
    facts = facts_of(folder)
    assert {"stage": "labels", "text": f"strict: {NONE}"} in facts["warnings"]
    for text in [page(facts).replace("\xa0", " ")]:
        assert (
            "Evaluate reward: labels" in text
            and "accuracy by subset" in text
            and "checked 5 pairs" in text
        )


def test_numbers_are_short() -> None:
    assert [
        numbers.short(value) for value in (None, 3, 1234567, 0.00012345, 2345.6, 2.0, True, "x")
    ] == [*("-", "3", "1,234,567", "0.0001234", "2,346", "2", "True", "x")]
    assert [numbers.number(value) for value in ("nan", float("nan"), 10**400, True, 2)] == [
        None,
        None,
        None,
        None,
        2.0,
    ]
    assert [numbers.duration(value) for value in (None, 7.25, 65, 3900)] == [
        "-",
        "7.2s",
        "1m05s",
        "1h05m",
    ]
    assert [numbers.size(value) for value in (12, 1200, 3_400_000, 5e9)] == [
        "12 bytes",
        "1.2 kB",
        "3.4 MB",
        "5 GB",
    ]
    assert numbers.shown({"mean": 0.5, "low": 0.4, "high": 0.6}, percent=True) == "50% [40, 60]"

"""What judges said: verdicts, warnings and cards, from the files that `evaluate` writes."""

import json
from pathlib import Path
from typing import Any

import pytest
from made import CARD, JUDGED, at_value, make_run, rewritten, write_stage

from alignkit.report import Report, Table
from alignkit_apps.report import tables
from alignkit_apps.report.facts import facts_of
from alignkit_apps.report.markdown import markdown
from alignkit_apps.report.page import page
from alignkit_plugins.evaluate import judging, verdicts
from alignkit_plugins.evaluate.tables import by_column


@pytest.fixture
def summary(tmp_path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((make_run(tmp_path / "run") / "report" / "evaluation.json").read_text())
    return value


def changed(summary: dict[str, Any], **values: Any) -> dict[str, Any]:
    """The summary with another result of the judge."""
    return {**summary, "judged": {"align": {"local_judge": {**JUDGED, **values}}}}


def test_a_judge_that_prefers_the_baseline_says_so(summary: dict[str, Any]) -> None:
    (verdict,) = judging.verdicts("report", summary)
    assert verdict["outcome"] == "lost" and verdict["judge"] == "local_judge" and verdict["reward"] == ""
    assert verdict["sentence"] == (
        "local_judge prefers sft to align: align is preferred 31% [22, 40] over 19 prompts (4 wins, 13 losses, "
        "2 ties). At equal length by AlpacaEval's model: 47% (standard error 5%)."
    )
    (alone,) = judging.verdicts("report", {**summary, "headline": None, "against": {}})
    assert alone["sentence"].endswith(" Answers are 100% longer.") and alone["kl"] == 30.0


@pytest.mark.parametrize(
    ("p", "outcome", "begin"),
    [
        (0.001, "gained by its own reward", "local_judge prefers align to sft: "),
        (0.06, "nothing clear", "local_judge has no clear preference between align and sft: "),
    ],
)
def test_the_outcome_follows_the_p_value(p: float, outcome: str, begin: str, summary: dict[str, Any]) -> None:
    preference = {"mean": 0.6, "low": 0.5, "high": 0.7, "n": 20, "p": p}
    (verdict,) = judging.verdicts("report", changed(summary, preference=preference))
    assert verdict["outcome"] == outcome and verdict["sentence"].startswith(begin)


def test_a_judge_without_a_verdict_is_no_tie(summary: dict[str, Any]) -> None:
    nothing = changed(summary, preference={"mean": None, "low": None, "high": None, "n": 0}, length_controlled=None)
    (verdict,) = judging.verdicts("report", nothing)
    assert verdict["outcome"] == "unknown"
    assert verdict["sentence"] == (
        "local_judge cannot compare align and sft: none of its 40 comparisons has a verdict."
    )


def doubts(summary: dict[str, Any]) -> list[str]:
    found = [*verdicts.verdicts("report", summary), *judging.verdicts("report", summary)]
    return list(judging.doubts(summary, found))


def test_doubts_about_a_judge_are_all_said(summary: dict[str, Any]) -> None:
    assert doubts(summary) == [
        "helpful prefers align, but local_judge prefers sft: the reward or the judge may be fooled",
        "at equal length, local_judge has no clear preference between align and sft",
        "local_judge gave no verdict on 4 of 40 comparisons of align (refused 3, unreadable 1); they are left out",
        "the order of the answers decides 33% [20, 50] of local_judge's comparisons of align",
        "local_judge favors the first answer that it reads: it prefers the first in 64% [55, 73]",
    ]


def test_a_good_judge_raises_no_doubts(summary: dict[str, Any]) -> None:
    good = {
        "preference": {"mean": 0.7, "low": 0.6, "high": 0.8, "n": 20, "p": 0.001},
        "length_controlled": {"mean": 0.68, "standard_error": 0.05, "n": 20},
        "inconsistent": {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 40},
        "first_position": {"mean": 0.52, "low": 0.51, "high": 0.54, "n": 40},
        "unjudged": {},
    }
    assert doubts(changed(summary, **good)) == []
    wide = {"mean": 0.7, "low": 0.4, "high": 0.9, "n": 4}
    assert doubts(changed(summary, **good | {"first_position": wide})) == []
    unclear = {"mean": 0.55, "standard_error": 0.05, "n": 20}
    assert len(doubts(changed(summary, **good | {"length_controlled": unclear}))) == 1


@pytest.mark.parametrize(
    ("preferred", "controlled", "said"),
    [
        (0.7, 0.3, "prefers sft to align: length decides its preference"),
        (0.7, 0.45, "has no clear preference between align and sft"),
        (0.3, 0.7, "prefers align to sft: length decides its preference"),
        (0.3, 0.55, "has no clear preference between align and sft"),
    ],
)
def test_a_preference_that_turns_at_equal_length_is_named(
    preferred: float, controlled: float, said: str, summary: dict[str, Any]
) -> None:
    preference = {"mean": preferred, "low": preferred - 0.1, "high": preferred + 0.1, "n": 20, "p": 0.001}
    rate = {"mean": controlled, "standard_error": 0.05, "n": 20}
    found = doubts(changed(summary, preference=preference, length_controlled=rate))
    assert [text for text in found if "equal length" in text] == [f"at equal length, local_judge {said}"]


def test_a_length_is_doubted_once_per_policy(summary: dict[str, Any]) -> None:
    both = [*verdicts.verdicts("report", summary), *judging.verdicts("report", summary)]
    assert [text for text in verdicts.doubts(summary, both) if "longer than" in text] == [
        "answers of align are 100% longer than those of sft, and rewards often depend on length"
    ]
    alone = {**summary, "headline": None, "against": {}}
    texts = list(verdicts.doubts(alone, judging.verdicts("report", alone)))
    assert "answers of align are 100% longer than those of sft, and judges often depend on length" in texts


def test_many_values_of_a_column_are_the_most_frequent_ones(summary: dict[str, Any]) -> None:
    values = {f"v{at:02d}": {**at_value("x"), "prompts": at} for at in range(40)}
    table = by_column({**summary, "by": {"topic": values}}, "topic")
    assert len(table.rows) == 30 and table.rows[0][0] == "v10" and "10 rarer values are left out" in table.note
    assert table.columns[:3] == ["topic", "policy", "prompts"]
    assert table.columns[3:] == ["helpful, difference", "safety, difference", "preferred by local_judge"]
    means = by_column({**summary, "against": {}, "judged": {}}, "topic")
    assert means.columns[3:] == ["helpful, mean", "safety, mean"] and len(means.rows) == 4


NONE = "this is no judge: it names the first answer that it reads in 97% of questions"


def test_the_verdict_says_that_this_is_no_judge(summary: dict[str, Any], tmp_path: Path) -> None:
    """In the sentence and among the warnings."""
    folder = make_run(tmp_path / "other")
    bad = {**summary, "judge_cards": {"local_judge": {**CARD, "no_judge": NONE}}}
    (folder / "report" / "evaluation.json").write_text(json.dumps(bad))
    rewritten(folder / "report")
    facts = facts_of(folder)
    assert f"But {NONE}." in next(one["sentence"] for one in facts["verdicts"] if one["judge"])
    assert {"stage": "report", "text": f"local_judge: {NONE}"} in facts["warnings"]
    assert NONE in markdown(facts) and NONE in page(facts)


def test_a_good_card_warns_of_nothing(tmp_path: Path) -> None:
    facts = facts_of(make_run(tmp_path / "other"))
    assert not any("no judge" in warning["text"] for warning in facts["warnings"])


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


def test_reports_of_stages_are_shown(tmp_path: Path) -> None:
    """An evaluation's own tables, but those that the report makes anew; and all that another step reports."""
    folder = make_run(tmp_path / "other")
    checked = Report(["checked 5 pairs", Table("accuracy by subset", ["subset", "right"], [["chat", "80%"]])])
    write_stage(folder / "labels", "evaluate_reward", report=checked.plain())
    (folder / "labels" / "reward_evaluation.json").write_text(
        json.dumps({"judge_cards": {"strict": {"no_judge": NONE}}})
    )
    rewritten(folder / "labels")
    facts = facts_of(folder)
    assert {"stage": "labels", "text": f"strict: {NONE}"} in facts["warnings"]
    for text in (markdown(facts), page(facts).replace("\xa0", " ")):
        assert "Evaluate reward: labels" in text and "accuracy by subset" in text and "checked 5 pairs" in text
        assert "the judges themselves" in text and "how far to trust the judges" in text and "33% [20, 50]" in text
        assert "of the stage" not in text


def test_a_note_goes_with_its_column() -> None:
    columns, note = ["policy", "at equal length", "won"], "at equal length: '-' if unknown"
    without = tables._filled(Table("", columns, [["a", "-", "1"]], keys=1, note=note))
    assert (without.columns, without.note) == (["policy", "won"], "")
    kept = Table("", columns, [["a", "+1", "1"]], keys=1, note=note)
    assert tables._filled(kept) == kept

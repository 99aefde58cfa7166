"""One plain sentence per policy, and the doubts about it."""

import json
from pathlib import Path
from typing import Any

import pytest
from made import make_run

from alignkit_plugins.evaluate import readable as numbers
from alignkit_plugins.evaluate.verdicts import doubts, verdicts


@pytest.fixture
def summary(tmp_path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((make_run(tmp_path / "run") / "report" / "evaluation.json").read_text())
    return {**value, "judged": {}}


def test_a_gain_says_how_much_how_long_and_how_far(summary: dict[str, Any]) -> None:
    (verdict,) = verdicts("report", summary)
    assert verdict["outcome"] == "gained" and verdict["longer"] == 1.0 and verdict["kl"] == 30.0
    assert verdict["sentence"].startswith(
        "align gained over sft by an independent reward: helpful (reward) +1.095 [1.067, 1.123]. "
        "By helpful (reward), over 20 prompts, align won 100%"
    )
    assert "Answers are 100% longer; at equal length the difference is -0.5 [" in verdict["sentence"]
    assert "bought" not in verdict["sentence"]  # the interval at equal length contains everything
    assert verdict["sentence"].endswith("KL to sft: 30 nats.")


@pytest.mark.parametrize(
    ("low", "p", "outcome"), [(-0.3, 0.2, "nothing clear"), (-0.2, 0.01, "lost"), (None, 1.0, "nothing clear")]
)
def test_the_outcome_follows_the_p_value(low: float | None, p: float, outcome: str, summary: dict[str, Any]) -> None:
    high = None if low is None else -0.2 - low
    summary["against"]["align"]["helpful"]["difference"] |= {"mean": -0.1, "low": low, "high": high, "p": p}
    assert verdicts("report", summary)[0]["outcome"] == outcome


@pytest.mark.parametrize(
    ("length", "equal", "said"),
    [
        (24.0, (0.1, -0.1, 0.3), "align bought most of its reward with length."),
        (6.0, (0.1, -0.1, 0.3), "align bought most of its reward with brevity."),
        (6.0, (0.9, 0.7, 1.05), ""),
        (6.0, (0.4, -0.8, 1.6), ""),  # at equal length, all of it is possible
    ],
)
def test_a_policy_that_bought_its_reward_is_told_so(
    length: float, equal: tuple[float, float, float], said: str, summary: dict[str, Any]
) -> None:
    summary["policies"]["align"]["length"] |= {"mean": length, "low": length, "high": length}
    summary["against"]["align"]["helpful"]["at_equal_length"] |= dict(zip(("mean", "low", "high"), equal, strict=True))
    sentence = verdicts("report", summary)[0]["sentence"]
    assert (said in sentence) if said else ("bought" not in sentence)


def test_doubts_are_all_said(summary: dict[str, Any]) -> None:
    found = list(doubts(summary, verdicts("report", summary)))
    assert found == [
        "2 of 20 prompts are training data (2 by sft)",
        "1 prompts were left out, because they and their answers do not fit",
        "answers of align are 100% longer than those of sft, and rewards often depend on length",
        "at equal length, nothing is clear between align and sft",
        "align is 30 nats from the reference; so far away, a reward model is often fooled",
        "1 answers of sft have no score by helpful; they are left out",
        "1 answers of align have no score by helpful; they are left out",
        "many answers were cut off at max_new_tokens: 50% of sft, 50% of align",
    ]


def test_nothing_scored_is_unknown(summary: dict[str, Any]) -> None:
    summary["against"]["align"]["helpful"] |= {"difference": {"mean": None, "low": None, "high": None, "n": 0}}
    (verdict,) = verdicts("report", summary)
    assert verdict["outcome"] == "unknown" and "cannot be compared" in verdict["sentence"]


def test_numbers_are_short() -> None:
    assert [numbers.short(value) for value in (None, 3, 1234567, 0.00012345, 2345.6, 2.0, True, "x")] == [
        *("-", "3", "1,234,567", "0.0001234", "2,346", "2", "True", "x")
    ]
    assert [numbers.number(value) for value in ("nan", float("nan"), 10**400, True, 2)] == [None, None, None, None, 2.0]
    assert [numbers.duration(value) for value in (None, 7.25, 65, 3900)] == ["-", "7.2s", "1m05s", "1h05m"]
    assert [numbers.size(value) for value in (12, 1200, 3_400_000, 5e9)] == ["12 bytes", "1.2 kB", "3.4 MB", "5 GB"]
    assert numbers.shown({"mean": 0.5, "low": 0.4, "high": 0.6}, percent=True) == "50% [40, 60]"


def test_no_measure_is_bought_with_length(summary: dict[str, Any]) -> None:
    (as_reward,) = verdicts("report", summary)
    assert "at equal length the difference is" in as_reward["sentence"]
    measures = {summary["headline"]: {"better": "higher", "percent": False}}
    (as_measure,) = verdicts("report", {**summary, "measures": measures})
    assert "equal length" not in as_measure["sentence"] and "bought" not in as_measure["sentence"]
    assert "Answers are 100% longer." in as_measure["sentence"]

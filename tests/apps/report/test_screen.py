"""The screen of a run: what is said of each policy, where there is little room."""

from __future__ import annotations

from alignkit_plugins.report.screen import _verdict

LONG = " ".join(["B is better than sft in a metric with a very long name."] * 5)


def verdict(policy: str, *sentences: str) -> dict[str, object]:
    return {"policy": policy, "sentences": list(sentences)}


def test_what_is_said_of_a_policy_stays_with_it() -> None:
    """The last policy stands first. B has no room at all, and so nothing else of it is said."""
    every = [
        verdict("A", "A is better than sft."),
        verdict("B", LONG, "Worse: b."),
        verdict("C", "C is better than sft."),
    ]
    assert _verdict(every, 2) == ["C is better than sft.", "A is better than sft."]


def test_a_loss_is_told_before_what_is_not_clear() -> None:
    one = verdict(
        "A", "A is better than sft.", "No clear difference in x.", "Worse than the base model: y."
    )
    assert _verdict([one], 4) == [
        "A is better than sft. Worse than the base model: y. No clear difference in x."
    ]

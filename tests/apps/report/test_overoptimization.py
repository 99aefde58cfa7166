"""Rewards against KL, as points."""

from alignkit_plugins.report import overoptimization


def gold_rows(golds: list[float]) -> list[dict[str, float]]:
    """Iterations whose KL is the square of their number, and whose reward rises by 2 each."""
    return [
        {
            "step": n,
            "kl": float(n * n),
            "reward": 2.0 * n,
            "reward_std": 4.0,
            "gold": gold,
            "gold_std": 0.5,
        }
        for n, gold in enumerate(golds, 1)
    ]


def test_gold_and_reward_are_drawn_as_gains_in_their_own_deviations() -> None:
    (figure,) = overoptimization.gold("align", gold_rows([1.0, 1.5, 2.0, 1.25]))
    reward, gold = figure["series"]
    assert reward["name"] == "reward" and gold["name"] == "gold"
    assert reward["x"] == gold["x"] == [1.0, 2.0, 3.0, 4.0]
    assert reward["y"] == [0.0, 0.5, 1.0, 1.5] and gold["y"] == [0.0, 1.0, 2.0, 0.5]
    assert figure["marks"] == [3.0]
    assert figure["note"] == (
        "gold was highest in iteration 3, at a KL of 9 nats; since then gold changed by -1.5 and "
        "the reward by +0.5 deviations"
    )


def test_gold_that_still_rises_is_not_over_optimized() -> None:
    (figure,) = overoptimization.gold("align", gold_rows([1.0, 1.5, 2.0]))
    assert figure["note"].endswith("the last one: no over-optimization so far")


def test_iterations_without_gold_are_left_out_and_two_are_too_few() -> None:
    rows = gold_rows([1.0, 1.5, 2.0, 2.5])
    del rows[1]["gold"]
    (figure,) = overoptimization.gold("align", rows)
    assert figure["series"][1]["y"] == [0.0, 2.0, 3.0]
    del rows[2]["gold"]
    assert overoptimization.gold("align", rows) == []
    assert overoptimization.gold("align", [{"step": 1, "kl": 1.0, "reward": 2.0}]) == []

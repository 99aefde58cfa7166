"""Curves: which metrics share a panel, and few points that keep every spike."""

from made import BEGAN, align_rows, sft_rows

from alignkit_plugins.report import curves


def test_spikes_survive_thinning() -> None:
    values = [0.0] * 100_000
    values[777], values[99_000] = 50.0, -50.0
    kept = curves.spikes(values, 1500)
    assert len(kept) <= 1500 and {0, 777, 99_000, 99_999} <= set(kept) and kept == sorted(kept)
    assert curves.spikes([1.0, 2.0], 1500) == [0, 1]


def test_panels_group_metrics_and_mark_restarts() -> None:
    panels = {
        panel["title"]: panel
        for panel in curves.panels("align", align_rows(), [BEGAN + 65.5, BEGAN + 900])
    }
    assert [series["name"] for series in panels["Scores"]["series"]] == [
        "score/helpful",
        "score/safety",
    ]
    # The last step before the start; the later start continued nothing
    assert panels["Reward"]["marks"] == [5.0]
    assert "seconds/rollout" not in panels and "Tokens per second" not in panels


def test_values_that_are_no_numbers_are_left_out_and_counted() -> None:
    (loss,) = [panel for panel in curves.panels("sft", sft_rows()) if panel["title"] == "Loss"]
    assert loss["series"][0]["x"] == [1, 2, 4] and loss["series"][0]["y"] == [2.0, 1.5, 1.0]
    assert curves.not_finite(sft_rows()) == {"loss": 1}
    assert curves.ends(sft_rows())["loss"] == {"first": 2.0, "last": 1.0, "min": 1.0, "max": 2.0}


def test_a_metric_that_repeats_another_has_no_panel_of_its_own() -> None:
    rows = [
        {"step": at, "loss": float(at), "nll": float(at), "other": -float(at), "constant": 1}
        for at in range(3)
    ]
    assert [panel["title"] for panel in curves.panels("sft", rows)] == ["Loss", "Other"]
    rows = [{"step": at, "reward": float(at), "score/helpful": float(at)} for at in range(3)]
    assert [panel["title"] for panel in curves.panels("align", rows)] == ["Reward"]

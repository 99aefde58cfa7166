"""Combinations of rewards: conditions, limits, running statistics, GDPO and a constraint, against
plain numpy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from alignkit import DataError, Group, Response, RewardCombination
from alignkit.cli import main
from alignkit.data.group import Origin
from alignkit.plugins import plugins
from alignkit_plugins.rewards.combinations import Minimum, Weighted

NAN = math.nan


def made(cls: type[RewardCombination], **options: Any) -> RewardCombination:
    return cls(cls.Options(**options))


def groups(*sizes: int) -> list[Group]:
    return [
        Group((), tuple(Response() for _ in range(size)), id=str(n)) for n, size in enumerate(sizes)
    ]


def combined(thing: RewardCombination, given: Sequence[Group], **scores: Sequence[float]) -> Any:
    return thing.combine(
        given, {name: torch.tensor(x, dtype=torch.float64) for name, x in scores.items()}
    )


def numbers(values: Any) -> Any:
    return pytest.approx(list(values), nan_ok=True, rel=1e-9, abs=1e-12)


def test_the_smallest() -> None:
    scores = {"a": [1.0, -3.0, 2.0, NAN], "b": [2.0, 4.0, NAN, 0.0], "c": [0.5, 5.0, 1.0, 1.0]}
    thing = made(Minimum, rewards=dict.fromkeys(scores, "x"))
    assert combined(thing, groups(4), **scores).raw.tolist() == numbers([0.5, -3, 1, 0])


@pytest.mark.usefixtures("combinations")
@pytest.mark.silent_bug(
    "rewards: does not apply",
    "GDPO normalizes each reward over scores that include NaN.",
    "Each part is normalized over the scores that it has.",
    "modelscope/ms-swift#8123",
)
def test_gdpo_leaves_out_scores_that_do_not_apply() -> None:
    """They have no part in their group's statistics, and the response keeps its other scores."""
    thing = made(plugins().get("reward", "gdpo").implementation, rewards={"a": "x", "b": "y"})
    found = combined(thing, groups(3, 2), a=[1, NAN, 2, NAN, NAN], b=[4, 9, 3.5, NAN, 1])
    assert (
        found.reward.isnan().tolist()
        == found.raw.isnan().tolist()
        == [False, False, False, True, False]
    )
    assert found.raw[:3].tolist() == numbers([5, 9, 5.5])
    a, b = np.array([1.0, 2.0]), np.array([4.0, 9.0, 3.5])
    (a1, a2), within = ((x - x.mean()) / (x.std(ddof=1) + 1e-4) for x in (a, b))
    total = np.array([*(within + np.array([a1, 0, a2])), 0.0])
    wanted = (total - total.mean()) / np.sqrt(total.var(ddof=1) + 1e-8)
    assert found.reward[[0, 1, 2, 4]].tolist() == numbers(wanted)


# --- in a run that is stopped and continued

STOPPER = """
import os
from alignkit import hookimpl

@hookimpl
def metrics_logged(run, stage, step, metrics):
    if os.environ.get("STOP_AFTER") == str(step):
        os.kill(os.getpid(), 9) if os.environ.get("KILL") else run.request_stop("a test")
"""
PACKAGE = str(
    Path(__file__).parents[2] / "docs/examples/alignkit-combinations/alignkit_combinations.py"
)
LENGTH: dict[str, Any] = {"length": {"unit": "characters"}}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "lagrangian": {"reward": LENGTH, "cost": {"length": {"unit": "tokens"}}, "limit": 2.0},
    "running_normalization": {"reward": LENGTH},
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_what_it_remembers_survives_a_stop(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "p.py").write_text(STOPPER, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "how are you"}\n{"prompt": "and you"}\n', encoding="utf-8"
    )
    stage = {
        "algorithm": "rloo",
        "prompts": "rows.jsonl",
        "reward": {name: COMBINATIONS[name]},
        "rollout": {"samples_per_prompt": 2, "max_new_tokens": 4},
        "iterations": 4,
        "prompts_per_iteration": 2,
    }
    report = {
        "step": "evaluate",
        "policies": ["base"],
        "rewards": [stage["reward"]],
        "prompts": "rows.jsonl",
    }
    recipe = {
        "model": {"base": "tiny"},
        "stages": {"align": stage, "report": {**report, "sampling": {"max_new_tokens": 4}}},
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")

    def run(out: str) -> int:
        return main(
            [
                "run",
                str(tmp_path / "recipe.json"),
                "--plugin",
                str(tmp_path / "p.py"),
                "--plugin",
                PACKAGE,
                "--out",
                f"{tmp_path}/{out}",
            ]
        )

    assert run("whole") == 0
    monkeypatch.setenv("STOP_AFTER", "2")
    assert run("stopped") == 75
    monkeypatch.delenv("STOP_AFTER")
    assert run("stopped") == 0
    weights = [
        (tmp_path / out / "align/adapter/adapter_model.safetensors").read_bytes()
        for out in ("whole", "stopped")
    ]
    assert weights[0] == weights[1]
    rows = [
        json.loads(line)
        for line in (tmp_path / "stopped/align/metrics.jsonl").read_text().splitlines()
    ]
    if name == "lagrangian":
        # Each iteration's lambda follows from the costs before it.
        multiplier = 1.0
        for row in rows:
            assert row["reward/multiplier"] == pytest.approx(multiplier, rel=1e-4)
            multiplier = max(0.0, multiplier + 0.1 * (row["reward/cost_mean"] - 2.0))
        told = json.loads((tmp_path / "stopped/align/stage.json").read_text())["summary"][
            "combinations"
        ]
        assert told == {"lagrangian": {"multiplier": pytest.approx(multiplier, rel=1e-4)}}
    else:
        assert len({row["reward/mean"] for row in rows}) > 1


# --- weights by a column


def domains(*values: Any) -> list[Group]:
    return [
        Group((), (Response(), Response()), meta={"domain": value}, id=str(n))
        for n, value in enumerate(values)
    ]


def weighted(**weights: Mapping[str, float]) -> RewardCombination:
    rewards = {"truth": "a", "style": "b"}
    return made(Weighted, rewards=rewards, by="domain", weights=weights)


def test_weights_depend_on_the_prompts_column() -> None:
    thing = weighted(medicine={"truth": 3}, default={"truth": 0.5, "style": 2})
    scores = {"truth": [1, 2, 3, 4, NAN, 6], "style": [10, 20, 30, NAN, 50, 60]}
    found = combined(thing, domains("medicine", "law", None), **scores)
    assert found.raw.tolist() == numbers([3 + 20, 6 + 40, 1.5 + 60, 2, 100, 3 + 120])
    assert torch.equal(found.raw.nan_to_num(), found.reward.nan_to_num())
    assert found.metrics["share/medicine"] == pytest.approx(1 / 3)
    assert found.metrics["share/default"] == pytest.approx(2 / 3)
    assert found.metrics["truth_mean"] == pytest.approx(16 / 5)


def test_a_weight_that_is_left_out_is_one() -> None:
    found = combined(
        weighted(medicine={"truth": 3}, law={}),
        domains("medicine", "law"),
        truth=[1] * 4,
        style=[5] * 4,
    )
    assert found.raw.tolist() == numbers([8, 8, 6, 6])


def test_values_are_compared_as_yaml_writes_them() -> None:
    thing = weighted(**{"true": {"truth": 3}, "3": {"truth": 7}})
    assert combined(thing, domains(True, 3), truth=[1] * 4, style=[0] * 4).raw.tolist() == numbers(
        [3, 3, 7, 7]
    )


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"domain": "law"}, "has 'domain' 'law'"),
        ({}, "has no column 'domain'"),
        ({"domain": None}, "has 'domain' None"),
    ],
)
def test_a_value_without_weights_names_the_row(meta: dict[str, Any], words: str) -> None:
    row = Group(
        ({"role": "user", "content": "Is it legal?"},),
        (Response(),),
        meta=meta,
        origin=Origin("a.jsonl", 7),
    )
    for call in (
        lambda: weighted(medicine={}).check_prompts([row]),
        lambda: combined(weighted(medicine={}), [row], truth=[1.0], style=[1.0]),
    ):
        with pytest.raises(
            DataError, match=rf"'Is it legal\?' \(.*a\.jsonl.*7.*\) {words}.*known are medicine"
        ):
            call()


@pytest.mark.parametrize(
    ("names", "values", "help"),
    [
        (
            ("medicin",),
            ("medicine", "medicine", "law"),
            r"'medicine' \(2\), 'law' \(1\)\nhelp: did you mean 'medicine'",
        ),
        (
            ("Medicine", "law"),
            ("medicine", "law"),
            r"'medicine' \(1\)\nhelp: did you mean 'medicine'",
        ),
        (("9", "law"), ("law", "art"), r"'art' \(1\)\nhelp: correct the name"),
    ],
)
def test_weights_for_a_value_that_no_prompt_has_are_refused(
    names: tuple[str, ...], values: tuple[str, ...], help: str
) -> None:
    """Otherwise all of its prompts would take the default, and nobody would know."""
    thing = weighted(**{name: {"truth": 3} for name in names}, default={})
    with pytest.raises(
        DataError,
        match=rf"there are weights for '{names[0]}', but no prompt has 'domain' {names[0]}.*{help}",
    ):
        thing.check_prompts(domains(*values))


def test_every_value_may_have_the_default() -> None:
    weighted(medicine={}, default={}).check_prompts(domains("law", "medicine"))
    # Such as a few held-out prompts
    weighted(medicine={}, law={}, default={}).check_prompts(domains("law"))


def test_a_column_that_no_prompt_has_is_refused_with_a_default_too() -> None:
    rows = [replace(group, meta={"topic": "law", "domains": 1}) for group in domains("law")]
    with pytest.raises(
        DataError,
        match=r"no column 'domain' \(its columns: topic, domains\)\nhelp: did you mean 'domains'",
    ):
        weighted(law={}, default={}).check_prompts(rows)


def test_weights_are_for_rewards_that_exist() -> None:
    with pytest.raises(
        ValidationError, match="weights for honesty, which are not among the rewards"
    ):
        weighted(medicine={"honesty": 3})


def test_a_run_stops_before_it_samples_and_reports_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": "What helps?", "domain": "medicine"},
        {"prompt": "What rhymes?", "domain": "poetry"},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {
        "rewards": {"short": {"length": {"scale": -1}}, "long": {"length": {"unit": "characters"}}},
        "by": "domain",
        "weights": {"medicine": {"short": 3}},
    }
    stage = {
        "algorithm": "rloo",
        "prompts": "prompts.jsonl",
        "reward": {"weighted": options},
        "iterations": 1,
        "prompts_per_iteration": 2,
        "batch_size": 2,
        "rollout": {"samples_per_prompt": 2, "max_new_tokens": 4},
    }
    recipe = tmp_path / "r.json"
    recipe.write_text(json.dumps({"model": {"base": "tiny"}, "stages": {"align": stage}}))
    assert main(["check", str(recipe)]) == 4
    assert "prompts.jsonl" in (said := capsys.readouterr().err) and "'domain' 'poetry'" in said
    options["weights"]["default"] = {"long": 0.5}
    recipe.write_text(json.dumps({"model": {"base": "tiny"}, "stages": {"align": stage}}))
    assert main(["run", str(recipe), "--out", str(tmp_path / "run")]) == 0
    (lines,) = [file.read_text() for file in (tmp_path / "run" / "align").glob("metrics.jsonl")]
    assert json.loads(lines.splitlines()[0])["reward/share/medicine"] == 0.5

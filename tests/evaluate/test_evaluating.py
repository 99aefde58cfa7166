"""`alignkit evaluate`: the recipe that it makes, and what comes of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from by_policy import by_policy

from alignkit.cli import main
from alignkit.errors import RecipeError
from alignkit_plugins.policies.words import read_words, recipe_of


def made(
    *policies: object,
    rewards: Sequence[str] = ("length",),
    judges: Sequence[str] = (),
    baseline: str | None = None,
) -> dict[str, Any]:
    named = read_words([str(policy) for policy in policies], rewards, judges)
    return cast(dict[str, Any], recipe_of(named, "prompts.jsonl", baseline))


def evaluate(*words: object) -> int:
    return main(["evaluate", *map(str, words)])


def adapter(run: Path, stage: str = "sft") -> str:
    return str((run / stage / "adapter").resolve())


# --- the recipe


def test_a_bare_name_takes_the_settings_of_the_run(first_run: Path) -> None:
    recipe = made("tiny", first_run / "sft", baseline="tiny")
    assert recipe["model"]["lora"] == {"r": 4, "lora_alpha": 8}
    step = recipe["stages"]["evaluate"]
    assert (step["policies"], step["baseline"]) == (["base", adapter(first_run)], "base")


def test_another_rank_shares_the_base(first_run: Path, other_run: Path) -> None:
    recipe = made("tiny", first_run / "sft", other_run / "sft")
    assert recipe["model"]["lora"]["r"] == 4
    assert recipe["stages"]["evaluate"]["policies"] == [
        "base",
        adapter(first_run),
        adapter(other_run),
    ]


def test_whole_weights_are_named_by_their_folder(whole_run: Path, first_run: Path) -> None:
    recipe = made(whole_run / "sft", first_run / "sft")
    assert recipe["model"]["base"] == "tiny"
    assert recipe["stages"]["evaluate"]["policies"] == [adapter(whole_run), adapter(first_run)]


def test_reward_models_within_rewards(first_run: Path) -> None:
    liked = str(first_run / "liked")
    recipe = made(
        first_run / "sft", rewards=(liked, f"{{llama2: {{helpful: {liked}, safety: {liked}}}}}")
    )
    folder = {"folder": adapter(first_run, "liked")}
    assert recipe["stages"]["evaluate"]["rewards"] == [
        folder,
        {"llama2": {"helpful": folder, "safety": folder}},
    ]


def test_judges_name_policies_and_reward_models(first_run: Path) -> None:
    liked, sft = first_run / "liked", first_run / "sft"
    judges = (f"{{reward_judge: {{reward_model: {liked}}}}}", f"{{local_judge: {{role: {sft}}}}}")
    step = made(sft, first_run / "online", judges=judges)["stages"]["evaluate"]
    assert step["judges"] == [
        {"reward_judge": {"reward_model": {"folder": adapter(first_run, "liked")}}},
        {"local_judge": {"role": adapter(first_run)}},
    ]


def test_sampling_is_as_in_training_but_for_the_temperature(first_run: Path) -> None:
    step = made(first_run / "sft", first_run / "online")["stages"]["evaluate"]
    assert step["sampling"]["max_new_tokens"] == 6 and "temperature" not in step["sampling"]
    assert "sampling" not in made(first_run / "sft")["stages"]["evaluate"]


@pytest.mark.parametrize(
    ("policies", "rewards", "said"),
    [
        (["liked"], ["length"], "is a reward model, but a policy is needed"),
        (["sft"], ["sft"], "is a policy, but a reward is needed"),
    ],
)
def test_words_in_the_wrong_place(
    first_run: Path, policies: list[str], rewards: list[str], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        words = [str(first_run / word) if word != "length" else word for word in rewards]
        made(*(first_run / word for word in policies), rewards=tuple(words))


# --- the command


def test_policies_of_two_runs(
    first_run: Path,
    other_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Adapters of two ranks, a base and a reward model; the recipe in the folder repeats it."""
    monkeypatch.chdir(first_run.parent)
    words = [
        "run/base",
        "run/online",
        other_run / "sft",
        "--prompts",
        "prompts.jsonl",
        "--reward",
        "run/liked",
    ]
    words += ["--judge", "{reward_judge: {reward_model: run/liked}}"]
    assert evaluate(*words, "--out", tmp_path / "out", "--limit", 2, "seed=3") == 0
    found = json.loads(
        (tmp_path / "out" / "evaluate" / "evaluation.json").read_text(encoding="utf-8")
    )
    found = by_policy(found)
    assert list(found["policies"]) == ["base", "run/online", "run/sft"]
    assert found["rewards"] == ["run/liked"] and found["prompts"] == 2
    for policy, results in found["judged"].items():  # the judge is the reward
        by_reward = found["against"][policy]["run/liked"]
        assert [results["reward_judge"][key] for key in ("wins", "losses", "ties")] == [
            by_reward[key] for key in ("wins", "losses", "ties")
        ]
    assert (found["sampling"]["max_new_tokens"], found["sampling"]["temperature"]) == (6, 0.7)
    resolved = tmp_path / "out" / "recipe.resolved.yaml"
    assert yaml.safe_load(resolved.read_text(encoding="utf-8"))["seed"] == 3
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(resolved), "--out", str(tmp_path / "out")]) == 0
    assert "evaluate: unchanged, reused" in capsys.readouterr().err


def test_the_help_says_how_prompts_name_their_format(
    first_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--help") == 0
    assert "'{gsm8k: FILE}' names its format" in " ".join(capsys.readouterr().out.split())
    recipe = recipe_of(read_words(["tiny"]), "{gsm8k: FILE}")
    assert recipe["stages"]["evaluate"]["prompts"] == {"gsm8k": "FILE"}


def test_mistakes_are_found_before_anything_is_loaded(
    first_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        first_run / "sft",
        "--out",
        tmp_path / "out",
        "--reward",
        "leng",
        "--prompts",
        tmp_path / "gone.jsonl",
    ]
    assert evaluate(*words) == 2
    said = capsys.readouterr().err
    assert "did you mean 'length'" in said and "no such file" in said
    assert not (tmp_path / "out").exists()

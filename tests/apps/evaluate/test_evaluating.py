"""`alignkit evaluate`: the recipe that it makes, and what comes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.cli import main
from alignkit.errors import RecipeError
from alignkit.io.digest import digest
from alignkit_apps.policies.recipe import Request, recipe_of


def made(*policies: object, rewards: tuple[str, ...] = ("length",), **more: Any) -> tuple[dict[str, Any], list[str]]:
    return recipe_of(Request([str(policy) for policy in policies], "prompts.jsonl", rewards, **more))


def evaluate(*words: object) -> int:
    return main(["evaluate", *map(str, words)])


def adapter(run: Path, stage: str = "sft") -> str:
    return str((run / stage / "adapter").resolve())


# --- the recipe


def test_a_bare_name_takes_the_settings_of_the_run(first_run: Path) -> None:
    recipe, notes = made("tiny", first_run / "sft", baseline="tiny")
    assert recipe["model"]["lora"] == {"r": 4, "lora_alpha": 8} and "bases" not in recipe
    step = recipe["stages"]["evaluate"]
    assert (step["policies"], step["baseline"], notes) == (["base", adapter(first_run)], "base", [])


def test_another_rank_needs_a_base_of_its_own(first_run: Path, other_run: Path) -> None:
    recipe, notes = made(first_run / "sft", other_run / "sft")
    assert recipe["model"]["lora"]["r"] == 4 and recipe["bases"]["tiny"]["lora"]["r"] == 2
    assert notes == []


def test_settings_that_differ_are_named(first_run: Path, other_run: Path, tmp_path: Path) -> None:
    changed = tmp_path / "run"
    changed.mkdir()
    text = (first_run / "recipe.resolved.yaml").read_text(encoding="utf-8")
    (changed / "recipe.resolved.yaml").write_text(text, encoding="utf-8")
    record = json.loads((first_run / "sft" / "stage.json").read_text(encoding="utf-8"))
    record["depends_on"]["model"] |= {"dtype": "bfloat16", "chat_template": None}
    (changed / "sft").mkdir()
    (changed / "sft" / "adapter").symlink_to(first_run / "sft" / "adapter")
    record = {key: value for key, value in record.items() if key != "check"} | {"files": {}}
    (changed / "sft" / "stage.json").write_text(json.dumps({**record, "check": digest(record)}), encoding="utf-8")
    recipe, notes = made(first_run / "sft@1", changed / "sft")
    assert "bases" not in recipe
    assert notes == ["run-sft is evaluated with the dtype, chat_template of run-sft-1, on the same base model"]


def test_whole_weights_beside_others_are_bases(whole_run: Path, first_run: Path) -> None:
    recipe, _ = made(whole_run / "sft")
    assert recipe["model"]["lora"] is None and recipe["stages"]["evaluate"]["policies"] == [adapter(whole_run)]
    recipe, _ = made(first_run / "sft", whole_run / "sft")
    assert recipe["bases"] == {"run-sft": {"base": adapter(whole_run), "dtype": "float32"}}
    assert recipe["stages"]["evaluate"]["policies"] == [adapter(first_run), "run-sft"]


def test_reward_models_within_rewards(first_run: Path) -> None:
    liked = str(first_run / "liked")
    recipe, _ = made(first_run / "sft", rewards=(liked, f"{{llama2: {{helpful: {liked}, safety: {liked}}}}}"))
    folder = {"folder": adapter(first_run, "liked")}
    assert recipe["stages"]["evaluate"]["rewards"] == [folder, {"llama2": {"helpful": folder, "safety": folder}}]


def test_judges_name_policies_and_reward_models(first_run: Path) -> None:
    liked, sft = first_run / "liked", first_run / "sft"
    judges = (f"{{reward_judge: {{reward_model: {liked}}}}}", f"{{local_judge: {{role: {sft}}}}}")
    step = made(sft, first_run / "online", judges=judges)[0]["stages"]["evaluate"]
    assert step["judges"] == [
        {"reward_judge": {"reward_model": {"folder": adapter(first_run, "liked")}}},
        {"local_judge": {"role": adapter(first_run)}},
    ]


def test_sampling_is_as_in_training(first_run: Path) -> None:
    step = made(first_run / "sft", first_run / "online")[0]["stages"]["evaluate"]
    assert (step["max_new_tokens"], step["temperature"]) == (6, 0.5)
    step = made(first_run / "online", options={"max_new_tokens": 3})[0]["stages"]["evaluate"]
    assert (step["max_new_tokens"], step["temperature"]) == (3, 0.5)
    assert "max_new_tokens" not in made(first_run / "sft")[0]["stages"]["evaluate"]


@pytest.mark.parametrize(
    ("policies", "rewards", "said"),
    [
        (["liked"], ["length"], "is a reward model, but a policy is needed"),
        (["sft"], ["sft"], "is a policy, but a reward is needed"),
        (["sft", "sft/adapter"], ["length"], "are the same policy"),
    ],
)
def test_words_in_the_wrong_place(first_run: Path, policies: list[str], rewards: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        words = [str(first_run / word) if word != "length" else word for word in rewards]
        made(*(first_run / word for word in policies), rewards=tuple(words))


def test_examples_in_front_of_prompts(first_run: Path) -> None:
    step = made("tiny", first_run / "sft", few_shot="demos.jsonl")[0]["stages"]["evaluate"]
    assert step["few_shot"] == {"policies": ["base"], "examples": "demos.jsonl", "shots": 4}
    sft, online = str(first_run / "sft"), str(first_run / "online")
    more = {"few_shot": "{alpaca: demos.jsonl}", "shots": 2, "prompted": ["tiny", sft], "baseline": f"{sft}+2"}
    step = made(online, **more)[0]["stages"]["evaluate"]
    assert step["few_shot"] == {
        "policies": [adapter(first_run), "base"],  # the baseline is the first one
        "examples": {"alpaca": "demos.jsonl"},
        "shots": 2,
        "baseline": True,
    }
    assert "baseline" not in step and step["policies"] == [adapter(first_run, "online")]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"shots": 2}, "there are no examples to put in front of prompts\n  help: name a file: --few-shot FILE"),
        ({"prompted": ["tiny"]}, "there are no examples"),
        (
            {"few_shot": "demos.jsonl", "baseline": "tiny+3"},
            r"tiny\+3: prompts have 4 examples, not 3\n  help: name it tiny\+4",
        ),
        (
            {"baseline": "tiny+3"},
            r"tiny\+3 is no model: results call tiny so with 3 examples in front of each prompt\n"
            r"  help: keep it, and add --few-shot FILE --shots 3 --few-shot-policy tiny",
        ),
        ({"reference": "x/sft+4"}, r"help: name x/sft, and add --few-shot FILE --shots 4 --few-shot-policy x/sft"),
        ({"reference": "x/sft+4", "few_shot": "d.jsonl"}, r"add --few-shot d\.jsonl --shots 4"),
    ],
)
def test_examples_that_cannot_be(more: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        made("tiny", **more)


def test_no_examples_are_no_examples() -> None:
    step = made("tiny", few_shot="demos.jsonl", shots=0)[0]["stages"]["evaluate"]
    assert step["few_shot"]["shots"] == 0  # which the recipe refuses


# --- the command


def test_a_baseline_with_examples(first_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(first_run.parent)
    words = ["run/base", "run/online", "--prompts", "prompts.jsonl", "--reward", "length", "--out", tmp_path / "out"]
    assert evaluate(*words, "--few-shot", "prompts.jsonl", "--shots", 2, "--baseline", "run/base+2") == 0
    found = json.loads((tmp_path / "out" / "evaluate" / "evaluation.json").read_text(encoding="utf-8"))
    assert list(found["policies"]) == ["base", "base+2", "run/online"] and found["baseline"] == "base+2"
    assert found["few_shot"] == {
        "policies": {"base+2": "base"},
        "shots": 2,
        "own_words": found["few_shot"]["own_words"],
    }
    assert found["few_shot"]["own_words"] >= 1  # the prompts are the examples, and no prompt sees itself


def test_policies_of_two_runs(
    first_run: Path,
    other_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Adapters of two ranks, a base and a reward model; the recipe in the folder repeats it."""
    monkeypatch.chdir(first_run.parent)
    words = ["run/base", "run/online", other_run / "sft", "--prompts", "prompts.jsonl", "--reward", "run/liked"]
    words += ["--judge", "{reward_judge: {reward_model: run/liked}}"]
    assert evaluate(*words, "--out", tmp_path / "out", "--limit", 2, "seed=3") == 0
    found = json.loads((tmp_path / "out" / "evaluate" / "evaluation.json").read_text(encoding="utf-8"))
    assert list(found["policies"]) == ["base", "run/online", "run/sft"]
    assert found["rewards"] == ["run/liked"] and found["prompts"] == 2
    for policy, results in found["judged"].items():  # the judge is the reward
        by_reward = found["against"][policy]["run/liked"]
        assert [results["reward_judge"][key] for key in ("wins", "losses", "ties")] == [
            by_reward[key] for key in ("wins", "losses", "ties")
        ]
    assert (tmp_path / "out" / "evaluate" / "leaderboard.csv").exists()
    assert (found["sampling"]["max_new_tokens"], found["sampling"]["temperature"]) == (6, 0.5)
    resolved = tmp_path / "out" / "recipe.resolved.yaml"
    assert yaml.safe_load(resolved.read_text(encoding="utf-8"))["seed"] == 3
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(resolved), "--out", str(tmp_path / "out")]) == 0
    assert "evaluate reused" in capsys.readouterr().err


def test_the_help_says_how_prompts_name_their_format(first_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--help") == 0
    assert "'{gsm8k: FILE}' names its format" in " ".join(capsys.readouterr().out.split())
    request = Request(["tiny"], "{gsm8k: FILE}", ["length"])
    assert recipe_of(request)[0]["stages"]["evaluate"]["prompts"] == {"gsm8k": "FILE"}


def test_mistakes_are_found_before_anything_is_loaded(
    first_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [first_run / "sft", "--out", tmp_path / "out", "--reward", "leng", "--prompts", tmp_path / "gone.jsonl"]
    assert evaluate(*words) == 2
    said = capsys.readouterr().err
    assert "did you mean 'length'" in said and "no such file or stage" in said
    assert not (tmp_path / "out").exists()

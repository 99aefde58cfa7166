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
    assert (step["sampling"]["max_new_tokens"], step["sampling"]["temperature"]) == (6, 0.5)
    step = made(first_run / "online", options={"sampling": {"max_new_tokens": 3}})[0]["stages"]["evaluate"]
    assert (step["sampling"]["max_new_tokens"], step["sampling"]["temperature"]) == (3, 0.5)
    assert "sampling" not in made(first_run / "sft")[0]["stages"]["evaluate"]


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


def test_policies_with_options(first_run: Path) -> None:
    """They keep their options; the model and the reward are as the recipe names them."""
    sft, liked = first_run / "sft", first_run / "liked"
    best = f"{{policy: {sft}, best_of: 4, reward: {liked}}}"
    shots = "{policy: tiny, few_shot: {alpaca: demos.jsonl}, shots: 2, baseline: true}"
    step = made(sft, best, shots)[0]["stages"]["evaluate"]
    assert step["policies"] == [
        adapter(first_run),
        {"policy": adapter(first_run), "best_of": 4, "reward": {"folder": adapter(first_run, "liked")}},
        {"policy": "base", "few_shot": {"alpaca": "demos.jsonl"}, "shots": 2, "baseline": True},
    ]
    assert "baseline" not in step


@pytest.mark.parametrize(
    ("word", "more", "said"),
    [
        ("{policy: tiny, best_off: 4}", {}, "unknown key 'best_off'(.|\n)*did you mean 'best_of'"),
        ("{best_of: 4, reward: length}", {}, "'policy' is missing"),
        ("{policy: tiny, best_of: 4}", {}, "best_of: 4 needs a 'reward' that chooses"),
        ("{policy: tiny, best_of: many, reward: length}", {}, "best_of: expected an integer, got 'many'"),
        ("{policy: [tiny}", {}, r"\{policy: \[tiny\}"),
        ("tiny", {"baseline": "{policy: tiny, best_of: 2, reward: length}"}, "in its braces, write `baseline: true`"),
        ("tiny", {"reference": "{policy: tiny, best_of: 2, reward: length}"}, "a plain policy is needed"),
    ],
)
def test_options_that_cannot_be(word: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        made(word, **more)


def test_what_chooses_is_a_reward(first_run: Path) -> None:
    sft = first_run / "sft"
    with pytest.raises(RecipeError, match="is a policy, but a reward is needed"):
        made(f"{{policy: {sft}, best_of: 4, reward: {sft}}}")
    with pytest.raises(RecipeError, match="is a reward model, but a policy is needed"):
        made(f"{{policy: {first_run / 'liked'}, best_of: 4, reward: length}}")


# --- the command


def test_a_baseline_with_examples_and_the_best_of_two(
    first_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(first_run.parent)
    (tmp_path / "demos.jsonl").write_text('{"prompt": "one?", "response": "1"}\n', encoding="utf-8")
    shots = f"{{policy: run/base, few_shot: {tmp_path / 'demos.jsonl'}, shots: 1, baseline: true}}"
    best = "{policy: run/online, best_of: 2, reward: run/liked}"
    words = [shots, "run/online", best, "--prompts", "prompts.jsonl", "--reward", "length", "--out", tmp_path / "out"]
    assert evaluate(*words) == 0
    found = json.loads((tmp_path / "out" / "evaluate" / "evaluation.json").read_text(encoding="utf-8"))
    best = "run/online, best of 2 by run/liked"
    assert list(found["policies"]) == ["base", "base, 1 shot", "run/online", best]
    assert found["baseline"] == "base, 1 shot" and found["reference"] == "base"
    assert found["variants"][best] == {"policy": "run/online", "shots": 0, "best_of": 2, "reward": "run/liked"}
    costs = {name: policy["tokens"] for name, policy in found["policies"].items()}
    assert costs["base, 1 shot"]["read"] > costs["base"]["read"] == costs[best]["read"]
    assert costs["run/online"]["written"] < costs[best]["written"] <= 2 * 6


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

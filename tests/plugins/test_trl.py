"""TRL's trainers as stages: each is built and trained a few steps, so that a TRL that changes is noticed here."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import alignkit_trl
from alignkit import Group, Pair, Response, RunFailed
from alignkit.data import write_groups
from alignkit.errors import DataError, RecipeError
from alignkit.recipe import load_recipe
from alignkit.run import run_recipe
from alignkit_trl import check_reference, config_fields, pairs, reward_function, thumbs

PROMPT = ({"role": "user", "content": "how are you"},)
ANSWERS = tuple(Response(text=text) for text in ("I am well, thank you", "go away", "fine"))
RANKED = Group(PROMPT, ANSWERS, (Pair(0, 1), Pair(2, 0, p=0.2), Pair(1, 2, p=0.5)), id="g")


def stage(trainer: str, **options: Any) -> dict[str, Any]:
    common = {"algorithm": {"trl": {"trainer": trainer, **options}}, "from": "sft", "batch_size": 2}
    if trainer in alignkit_trl.ONLINE:
        rollout = {"samples_per_prompt": 2, "max_new_tokens": 5}
        more = {"prompts": "demos.jsonl", "reward": {"length": {"unit": "characters"}}, "rollout": rollout}
        return common | more | {"iterations": 2, "prompts_per_iteration": 2, "learning_rate": 0.01}
    data = "demos.jsonl" if trainer == "sft" else "pairs.jsonl"
    return common | {"data": data, "max_steps": 3, "max_length": 128, "learning_rate": 0.01}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    groups = [replace(RANKED, id=str(n), prompt=({"role": "user", "content": f"how are you, {n}"},)) for n in range(6)]
    write_groups(tmp_path / "pairs.jsonl", groups)
    demos = [replace(g, responses=(Response(text=f"I am well, {g.id}"),), pairs=None) for g in groups]
    write_groups(tmp_path / "demos.jsonl", demos)
    return tmp_path


def load(folder: Path, **stages: Any) -> Any:
    first = {"sft": {"algorithm": "sft", "data": "demos.jsonl", "learning_rate": 0.01, "batch_size": 2}}
    recipe = {"model": {"base": "tiny", "lora": {"r": 4, "lora_alpha": 8}}, "stages": first | stages}
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return load_recipe(folder / "r.yaml")


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / stage / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("trainer", alignkit_trl.TRAINERS)
def test_every_trainer_starts_where_the_stage_does_and_leaves_an_adapter(folder: Path, trainer: str) -> None:
    after = {"algorithm": "reward_model", "from": "trained", "data": "pairs.jsonl", "batch_size": 6}
    run_recipe(load(folder, trained=stage(trainer), after=after), folder / "out")
    before, trained, later = (weights(folder, name) for name in ("sft", "trained", "after"))
    shared = before.keys() & trained.keys()
    assert len(shared) == len(before) and (trainer == "reward") == ("base_model.model.score.weight" in trained)
    moved = [float((trained[name] - before[name]).abs().max()) for name in shared]
    # Three steps of 0.01: away from the SFT adapter, not from a fresh one (whose B is zero and A drawn anew).
    assert 0 < max(moved) < 0.05
    next_moved = [float((later[name] - trained[name]).abs().max()) for name in shared]
    assert 0 < max(next_moved) < 0.05
    logged = [json.loads(line) for line in (folder / "out" / "trained" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in logged if "loss" in row]
    assert len(losses) == json.loads((folder / "out" / "trained" / "stage.json").read_text())["summary"]["steps"]
    if trainer == "dpo":  # policy and reference are the same at first
        assert losses[0] == pytest.approx(math.log(2), abs=1e-3) and losses[1] < losses[0]


def test_the_reference_is_checked() -> None:
    parameters = {"x.default.w": torch.ones(2), "x.ref.w": torch.ones(2)}
    model = SimpleNamespace(named_parameters=lambda: parameters.items())
    trainer = SimpleNamespace(model=model, accelerator=SimpleNamespace(unwrap_model=lambda m: m), beta=0.1)
    check_reference(trainer)
    parameters["x.ref.w"] = torch.zeros(2)
    with pytest.raises(RunFailed, match="reference"):
        check_reference(trainer)
    trainer.beta = 0.0  # TRL then has no reference, and needs none
    check_reference(trainer)
    trainer.beta = 0.1
    del parameters["x.ref.w"]
    with pytest.raises(RunFailed, match="reference"):
        check_reference(trainer)


def test_pairs_and_thumbs() -> None:
    found = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in pairs(RANKED)]
    assert found == [(ANSWERS[0].text, "go away"), (ANSWERS[0].text, "fine")]  # p = 0.2 turns a pair, 0.5 drops it
    assert pairs(RANKED)[0]["prompt"] == list(PROMPT)
    found = [(row["completion"][0]["content"], row["label"]) for row in thumbs(RANKED)]
    assert found == [(ANSWERS[0].text, True), ("go away", False), ("fine", False)]


def test_the_reward_is_the_stages_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scorer:
        def __init__(self, *_: Any) -> None:
            pass

        def score(self, groups: Any) -> list[Group]:
            lengths = [float(len(group.responses[0].text)) for group in groups]
            return [
                replace(g, responses=(replace(g.responses[0], scores={"reward": None if n == 3 else n}),))
                for g, n in zip(groups, lengths, strict=True)
            ]

        def combine(self, groups: Any) -> Any:
            return SimpleNamespace(reward=torch.tensor([g.responses[0].scores["reward"] * 10 for g in groups]))

    monkeypatch.setattr("alignkit.scoring.Scorer", Scorer)
    run: Any = SimpleNamespace(
        settings=SimpleNamespace(reward=None, rollout=SimpleNamespace(missing_eos_penalty=0.5)),
        context=lambda: None,
        engine=SimpleNamespace(encoder=SimpleNamespace(end_ids={9}), forget_scores=lambda: None),
    )
    reward = reward_function(run, [Group(PROMPT, id="a"), Group(PROMPT, id="b")])
    completions = [[{"role": "assistant", "content": text}] for text in ("one", "seven", "nineteen")]
    assert reward(completions=completions, completion_ids=[[1, 9], [1, 9], [1, 1]], place=[0, 1, 1]) == [None, 50, 79.5]


def test_options_are_trls_own_fields(folder: Path) -> None:
    import trl

    for trainer, name in alignkit_trl.TRAINERS.items():
        config = getattr(trl, f"{name}Config")
        assert set(config.__dataclass_fields__) <= config_fields(trainer)
    for options, message in (
        ({"betta": 1}, "DPOConfig has no field 'betta' did you mean 'beta'"),
        ({"learning_rate": 1}, "'learning_rate' is decided by the stage"),
    ):
        with pytest.raises(RecipeError, match=message):
            load(folder, d=stage("dpo", **options))
    with pytest.raises(RecipeError, match="expected 'sft', 'dpo', 'kto', 'reward', 'grpo' or 'rloo', got 'ppo'"):
        load(folder, d=stage("ppo"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "base"}, "TRL's reference is where the stage starts from, 'sft'"),
        ({"mix": {"data": "demos.jsonl", "objective": "sft", "weight": 1}}, "no second stream"),
        ({"data": "demos.jsonl"}, "no row gives TRL's dpo trainer anything to learn"),
        ({"algorithm": {"trl": {"trainer": "dpo", "loss_type": "nonsense"}}}, "DPOTrainer refuses"),
    ],
)
def test_what_trl_cannot_do_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises((RunFailed, DataError), match=message):
        run_recipe(load(folder, d={**stage("dpo"), **change}), folder / "out")

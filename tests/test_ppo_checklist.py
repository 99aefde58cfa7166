"""Forty things that PPO implementations get wrong, each with a test or a sentence why it cannot go
wrong here.

Everything runs on the tiny random model through the parts that recipes use; `ITEMS` is the list.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from alignkit import Batch, Group, Outputs, Response, RunFailed
from alignkit import functional as F
from alignkit.algorithm import Phase
from alignkit.batch import Pairs
from alignkit.data.group import write_groups
from alignkit.errors import RecipeError
from alignkit.kernels.lm_head import HeadSpec, logprobs_and_entropy
from alignkit.models.packing import Examples, Wants, measure, pack, scores_of
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.plugins import plugins
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import RewardSpec
from alignkit.reward import LEARNED_KEY
from alignkit.runs.run import Run
from alignkit.runs.stage import TrainingStage
from alignkit.sampling import Sampling
from alignkit.settings import ModelSpec, Settings
from alignkit.tokens.encoder import Encoded, Encoder, ResponseTokens
from alignkit.training.learner import Averages, Learner, schedule
from alignkit.training.online import Iteration, RolloutTrainer
from alignkit.training.trainer import add_value_role
from tests.sampled import sample

ITEMS = {
    1: "test_positions_do_not_depend_on_neighbours",
    2: "test_masks_come_from_lengths_not_from_ids",
    3: "test_the_end_of_turn_counts_and_nothing_follows_it",
    4: "test_scores_see_the_whole_response_with_its_end",
    5: "test_missing_eos_penalty",
    6: "test_a_cut_off_response_is_terminal",
    7: "test_a_value_is_read_before_its_token",
    8: "test_reference_and_base_stay_bit_identical",
    9: "test_the_score_sits_on_the_last_token",
    10: "test_kl_is_priced_in_the_reward_and_only_there",
    11: "test_first_minibatch_is_on_policy",
    12: "test_temperature_divides_policy_old_and_reference_alike",
    13: "test_sampling_filters_are_off_and_harmless",
    14: "test_dropout_is_off",
    15: "test_values_start_at_zero_or_at_the_reward_model",
    16: "test_value_gradient_does_not_reach_the_policy",
    17: "test_a_saved_reward_model_scores_the_same_in_plain_transformers",
    18: (
        "PPO whitens no rewards; Llama 2's combination whitens the batch once, tested in "
        "algorithms/test_llama2.py."
    ),
    19: "test_advantages_are_whitened_over_all_rollouts",
    20: "test_group_baseline",
    21: "test_number_of_optimizer_steps",
    22: "test_every_sample_once_an_epoch",
    23: "test_micro_batches_do_not_change_the_gradient",
    24: "test_policy_clip",
    25: "test_value_clip",
    26: "test_metrics_do_not_see_padding",
    27: "test_kl_is_a_sum_over_tokens_and_adapts_once",
    28: "test_a_mismatch_is_seen",
    29: "test_adam_settings",
    30: "test_learning_rate_falls_per_iteration",
    31: "test_each_roles_gradient_is_clipped_after_accumulation",
    32: "test_a_foreign_reward_model_reads_words",
    33: "test_what_is_scored_ends_its_turn",
    34: "test_kl_is_zero_at_first_and_then_not",
    35: "test_long_prompts_are_left_out",
    36: "test_a_response_of_one_end_token",
    37: "test_ptx_is_a_token_mean_of_its_own",
    38: "test_random_streams_differ_by_place",
    39: (
        "There is no gradient checkpointing, training never asks for a cache, and sampling keeps "
        "one of its own."
    ),
    40: "test_bf16_logits_are_widened_before_the_softmax",
}

TEXT = "tell me how to bake some bread for my old friend and the people in this house today please"
WORDS = TEXT.split()


def test_every_item_has_a_test_or_a_reason() -> None:
    assert list(ITEMS) == list(range(1, 41))
    for text in ITEMS.values():
        if text.startswith("test_"):
            assert callable(globals()[text])
        else:
            assert text.endswith(".") and len(text.split()) > 8


# A small run, and parts of one


pytestmark = pytest.mark.usefixtures("one_thread")


def prompts(count: int) -> list[Group]:
    texts = [" ".join(WORDS[n : n + 2 + n % 5]) for n in range(count)]
    return [Group(({"role": "user", "content": text},), id=str(n)) for n, text in enumerate(texts)]


def ppo_stage(**more: Any) -> dict[str, Any]:
    stage = {
        "algorithm": {"ppo": {"kl_coefficient": 0.1}},
        "prompts": {"path": "prompts.jsonl"},
        "reward": {"length": {"unit": "characters"}},
        "rollout": {"samples_per_prompt": 3, "max_new_tokens": 7, "temperature": 0.7},
        "iterations": 2,
        "prompts_per_iteration": 5,
        "batch_size": 2,
        "epochs": 2,
        "learning_rate": 1e-3,
    }
    return {**stage, **more}


def make_run(folder: Path, recipe_stages: dict[str, Any], **model: Any) -> Run:
    write_groups(folder / "prompts.jsonl", prompts(8))
    write_groups(
        folder / "demos.jsonl",
        [replace(g, responses=(Response(text="bread is good"),)) for g in prompts(8)],
    )
    recipe = {
        "name": "checklist",
        "model": {"base": "tiny", "dtype": "float32", "lora": {"r": 4, "lora_alpha": 8}, **model},
        "stages": recipe_stages,
    }
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump(json.loads(json.dumps(recipe))), encoding="utf-8"
    )
    out = folder / "run"
    out.mkdir()
    return Run(load_recipe(folder / "recipe.yaml"), out)


SFT = {
    "algorithm": "sft",
    "data": {"path": "demos.jsonl"},
    "batch_size": 4,
    "epochs": 2,
    "learning_rate": 0.01,
}


@dataclass
class Watched:
    """What one run of `sft -> ppo` did."""

    folder: Path
    run: Run
    steps: list[dict[str, Any]] = field(default_factory=list)
    # Base and SFT weights before PPO's first step
    frozen: dict[str, Tensor] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder = tmp_path_factory.mktemp("watched")
    found = Watched(folder, make_run(folder, {"sft": SFT, "align": ppo_stage(**{"from": "sft"})}))
    original = Learner.step

    def step(self: Learner, examples: Examples, lr_factor: float) -> dict[str, float]:
        if self.value_role is None:
            return original(self, examples, lr_factor)
        if not found.frozen:
            found.frozen = {name: p.clone() for name, p in fixed_weights(self.model, self).items()}
        before = {name: p.clone() for name, p in self.parameters.items()}
        batch = examples.batch()
        metrics = original(self, examples, lr_factor)
        found.steps.append(
            {
                "ids": [e.group.id for e in examples.groups],
                "rows": len(batch.tokens),
                "factor": lr_factor,
                "metrics": metrics,
                "advantage": float(F.masked_mean(batch["advantages"], batch.mask)),
                "moved": any(
                    not torch.equal(p, before[name]) for name, p in self.parameters.items()
                ),
                "fixed": {name: p.clone() for name, p in fixed_weights(self.model, self).items()},
                "training": self.model.model.training,
            }
        )
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", step)
        found.run.execute()
    lines = (folder / "run" / "align" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found.metrics = [json.loads(line) for line in lines]
    return found


def fixed_weights(policy: SharedModel, learner: Learner) -> dict[str, Tensor]:
    own = {id(p) for p in learner.parameters.values()}
    return {name: p for name, p in policy.model.named_parameters() if id(p) not in own}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[RolloutTrainer]:
    with started(tmp_path, ppo_stage()) as found:
        yield found


@contextmanager
def started(folder: Path, stage: dict[str, Any], **model: Any) -> Iterator[RolloutTrainer]:
    """A PPO stage from the base, before its first iteration."""
    run = make_run(folder, {"align": stage}, **model)
    (folder / "run" / "align").mkdir()
    made = run.stages["align"]
    assert isinstance(made, TrainingStage)
    found = RolloutTrainer(made, made.plugin(made.stage.component))
    try:
        yield found
    finally:
        found.close()


def scored(stage: RolloutTrainer, groups: Sequence[Group]) -> Iteration:
    iteration = Iteration(1)
    stage.rewards.ask(groups, iteration.table)
    iteration.metrics |= stage.score(iteration)
    return iteration


def measured(stage: RolloutTrainer, groups: Sequence[Group]) -> Iteration:
    iteration = scored(stage, groups)
    stage.measure(iteration)
    return iteration


def rolled_out(stage: RolloutTrainer, count: int = 5) -> Examples:
    """Scored and measured rollouts."""
    return measured(stage, stage.prompts.ask(prompts(count), 1).result()).examples


def move(stage: RolloutTrainer) -> None:
    """Policy and value role away from where they started, as after some steps."""
    stage.learner.steps = 1
    disturb(stage.model, stage.role)
    disturb(stage.model, stage.value_role or "", 0.1)


def disturb(policy: SharedModel, role: str, size: float = 0.05) -> None:
    """Move a role away from where it started."""
    generator = torch.Generator().manual_seed(7)
    for parameter in policy.parameters_of(role).values():
        parameter.data += size * torch.randn(parameter.shape, generator=generator)


def written(prompt: Sequence[int], *rows: Sequence[int], name: str = "g") -> Encoded:
    return Encoded(
        Group((), id=name),
        tuple(prompt),
        tuple(ResponseTokens(tuple(row), (True,) * len(row)) for row in rows),
    )


def algorithm(name: str = "ppo", **options: Any) -> Any:
    thing = plugins().get("algorithm", name).implementation
    return thing(thing.Options(**options))


# Scores as they come, for tests of what follows.
UNCENTERED: Any = {"group_baseline": False, "center_scores": False}


def by_hand(mask: Tensor, **columns: Tensor) -> Batch:
    """A batch without a model: one group, all responses ended."""
    none = torch.zeros(0, dtype=torch.int64)
    count = len(mask)
    known: dict[str, Any] = {
        "truncated": torch.zeros(count, dtype=torch.bool),
        "old_logprobs": torch.zeros(mask.shape),
        "reference_logprobs": torch.zeros(mask.shape),
        "old_values": torch.zeros(mask.shape),
        "rewards": torch.zeros(count),
        "raw_rewards": torch.zeros(count),
    }
    return Batch(
        groups=[Group(())],
        tokens=torch.zeros(mask.shape, dtype=torch.int64),
        mask=mask,
        group_index=torch.zeros(count, dtype=torch.int64),
        pairs=Pairs(none, none, torch.zeros(0), torch.zeros(0), none),
        **{**known, **columns},
    )


MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
SCORES = Wants(logprobs=False, scores=True)
NOISE = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


# 1-7: which token is where


def test_positions_do_not_depend_on_neighbours(stage: RolloutTrainer) -> None:
    policy = stage.model
    disturb(policy, stage.role)
    prompt, rows = tuple(range(20, 26)), [tuple(range(30, 34)), (40,), tuple(range(50, 59))]
    other = [
        written((60, 61, 62), (70, 71), name="a"),
        written(tuple(range(80, 95)), (9, 10, 11), name="b"),
    ]
    for what, role in (("logprobs", stage.role), ("values", stage.value_role or "")):
        if what == "values":
            disturb(policy, role, 0.2)
        wants = Wants(what == "logprobs", values=role if what == "values" else None)
        alone = [measure(policy, role, [written(prompt, row)], wants)[what][0] for row in rows]
        siblings = measure(policy, role, [written(prompt, *rows)], wants)[what]
        packed = measure(policy, role, [other[0], written(prompt, *rows), other[1]], wants)[what][
            1:4
        ]
        for a, s, p in zip(alone, siblings, packed, strict=True):
            torch.testing.assert_close(s, a, atol=1e-5, rtol=0)
            torch.testing.assert_close(p, a, atol=1e-5, rtol=0)


def test_masks_come_from_lengths_not_from_ids(stage: RolloutTrainer) -> None:
    """Padding and end ids inside a response are tokens like others; shorter rows have none after
    their end.
    """
    tokenizer = stage.model.tokenizer
    row = (tokenizer.pad_token_id, 30, tokenizer.eos_token_id, 31, tokenizer.pad_token_id)
    batch = Examples([written((5, 6), row, (40, 41))]).batch()
    assert batch.mask.tolist() == [[True] * 5, [True, True, False, False, False]]
    assert batch.tokens[0].tolist() == list(row)
    assert len(pack([written((5, 6), row, (40, 41))]).targets) == 7


def test_the_end_of_turn_counts_and_nothing_follows_it(stage: RolloutTrainer) -> None:
    """Also with several end ids."""
    encoder = Encoder(stage.model.tokenizer)
    ends = set(range(1, 80))
    encoder.__dict__["end_ids"] = frozenset(ends)
    found = sample(
        stage.model,
        stage.role,
        encoder,
        prompts(6),
        Sampling(max_new_tokens=7),
        samples_per_prompt=4,
        seed=0,
    )
    responses = [r for g in found for r in g.responses]
    encoded = [encoder.encode(g, 200) for g in found]
    rows = [row for e in encoded if e is not None for row in e.rows]
    for response, row in zip(responses, rows, strict=True):
        assert row.tokens == response.tokens and all(row.mask)
        assert not ends & set(row.tokens[:-1])
        assert row.truncated == response.truncated == (row.tokens[-1] not in ends)
    assert len({len(row.tokens) for row in rows}) > 3 and {row.truncated for row in rows} == {
        True,
        False,
    }


def test_scores_see_the_whole_response_with_its_end(tmp_path: Path) -> None:
    """The reward here is the number of tokens, the end of turn included."""
    with started(tmp_path, ppo_stage(reward="length")) as stage:
        stage.context.models.encoder.__dict__["end_ids"] = frozenset(range(1, 60))
        examples = rolled_out(stage)
        rewards = examples.batch().raw_rewards.tolist()
        assert (
            rewards == [len(row.tokens) for e in examples.groups for row in e.rows]
            and len(set(rewards)) > 3
        )


def test_group_baseline() -> None:
    """Scores less their prompt's mean, prompts apart; a group of one, or without spread, has
    nothing left.
    """
    mask = torch.tensor([[True, True]] * 6)
    group = torch.tensor([0, 0, 1, 1, 2, 3])
    rewards = torch.tensor([1.0, 3.0, -7.0, -7.0, 5.0, 5.0])
    batch = replace(by_hand(mask, rewards=rewards), group_index=group)
    options = {"kl_coefficient": 0.0, "lam": 1.0, "whiten_advantages": False}
    found = algorithm(group_baseline=True, **options).signal(batch)["returns"]
    assert found.tolist() == [[-1.0] * 2, [1.0] * 2, *[[0.0] * 2] * 4]
    assert (
        algorithm(**UNCENTERED, **options).signal(batch)["returns"][:, 1].tolist()
        == rewards.tolist()
    )


def test_scores_are_centered_on_the_first_iteration() -> None:
    """The stage's first mean stays in the state."""
    mask = torch.tensor([[True, True]] * 3)
    ppo = algorithm(kl_coefficient=0.0, whiten_advantages=False)
    first, second = (
        replace(by_hand(mask, rewards=torch.tensor(scores)), group_index=torch.arange(3))
        for scores in ([4.0, 5.0, 9.0], [7.0, 6.0, 8.0])
    )
    assert ppo.signal(first)["returns"].tolist() == [[-2.0] * 2, [-1.0] * 2, [3.0] * 2]
    assert ppo.state == {"score_level": 6.0}
    assert ppo.signal(second)["returns"].tolist() == [[1.0] * 2, [0.0] * 2, [2.0] * 2]
    grouped = algorithm(kl_coefficient=0.0, group_baseline=False, whiten_advantages=False)
    assert (
        grouped.signal(replace(first, group_index=torch.zeros(3, dtype=torch.int64)))["returns"][
            0, 0
        ]
        == -2.0
    )


@pytest.mark.silent_bug(
    "rewards: missing end",
    "The penalty for a missing end does not reach all responses that were cut off.",
    "Each of them pays it, and no other response does.",
    "huggingface/trl#3750",
)
def test_missing_eos_penalty(tmp_path: Path) -> None:
    """Taken off every reward of cut-off responses, and off nothing else."""
    found = {}
    for penalty in (0.0, 5.0):
        rollout = {
            "samples_per_prompt": 3,
            "max_new_tokens": 7,
            "temperature": 0.7,
            "missing_eos_penalty": penalty,
        }
        (tmp_path / str(penalty)).mkdir()
        with started(tmp_path / str(penalty), ppo_stage(rollout=rollout)) as stage:
            stage.context.models.encoder.__dict__["end_ids"] = frozenset(range(1, 60))
            iteration = measured(stage, stage.prompts.ask(prompts(5), 1).result())
            table = iteration.table
            found[penalty] = table.groups, table, iteration.examples.batch()
            assert len(table.groups) == len(table.scored)
    (groups, without, plain), (again, combined, batch) = found[0.0], found[5.0]
    cut = torch.tensor([response.truncated for group in groups for response in group.responses])
    assert cut.any() and not cut.all()
    assert torch.equal(without.raw - combined.raw, 5.0 * cut)
    seen = [
        [r.scores["reward"] for group in some for r in group.responses] for some in (groups, again)
    ]
    # What selection sees
    assert torch.equal(torch.tensor(seen[0]) - torch.tensor(seen[1]), 5.0 * cut)
    torch.testing.assert_close(plain.rewards - batch.rewards, 5.0 * cut)
    assert torch.equal(batch.raw_rewards, torch.tensor(seen[1])) and torch.equal(
        plain.raw_rewards, torch.tensor(seen[0])
    )


def test_an_end_at_the_very_last_place_is_an_end() -> None:
    tokens = tuple(range(30, 34))
    encoder = Encoder(plugins_tokenizer())
    ended = Group(
        prompts(1)[0].prompt, (Response(text="", tokens=(*tokens, encoder.end_of_turn[-1])),)
    )
    encoded = encoder.encode(ended, 200)
    assert encoded is not None and not encoded.rows[0].truncated


def plugins_tokenizer() -> Any:
    from alignkit_plugins.models.tiny import _tokenizer

    return _tokenizer()


def test_a_cut_off_response_is_terminal() -> None:
    """V after the end is 0, whatever stands in the padding."""
    values = torch.where(MASK, 0.5, 1e6)
    for truncated in (torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)):
        batch = by_hand(
            MASK, truncated=truncated, rewards=torch.tensor([1.0, 2.0, 3.0]), old_values=values
        )
        signal = algorithm(
            kl_coefficient=0.0, lam=0.0, whiten_advantages=False, **UNCENTERED
        ).signal(batch)
        assert signal["returns"].tolist() == [[0.5, 0.5, 0.5, 1], [2, 0, 0, 0], [0.5, 0.5, 3, 0]]


def test_a_value_is_read_before_its_token(stage: RolloutTrainer) -> None:
    policy, role = stage.model, stage.value_role or ""
    disturb(policy, role, 0.2)
    prompt, row = (20, 21, 22), (30, 31, 32, 33)
    values = measure(policy, role, [written(prompt, row)], Wants(False, values=role))["values"][0]
    layout = pack([written(prompt, row)])
    with torch.no_grad():
        everywhere = policy.scalars(role, policy.hidden(role, layout.layout, layout.tokens))
    torch.testing.assert_close(values, everywhere[2:6])
    changed = measure(policy, role, [written(prompt, (30, 31, 99, 33))], Wants(False, values=role))[
        "values"
    ][0]
    assert torch.equal(changed[:3], values[:3]) and changed[3] != values[3]


# 8-13: KL, ratio, temperature


def test_reference_and_base_stay_bit_identical(watched: Watched) -> None:
    watched.run.models.of("base").role("sft")
    assert set(watched.run.models.of("base").model.parameters_of("sft")) < set(watched.frozen)
    assert any("base_layer" in name for name in watched.frozen)
    for name, weight in watched.frozen.items():
        assert torch.equal(watched.steps[-1]["fixed"][name], weight), name


@pytest.mark.silent_bug(
    "rewards: place of the score",
    "PPO pays the score at a padding token behind the end.",
    "It pays at the last token of the response.",
    "huggingface/trl#3750",
)
def test_the_score_sits_on_the_last_token() -> None:
    batch = by_hand(MASK, rewards=torch.tensor([1.0, 2.0, 3.0]))
    returns = algorithm(kl_coefficient=0.0, lam=0.0, whiten_advantages=False, **UNCENTERED).signal(
        batch
    )["returns"]
    assert returns.tolist() == [[0, 0, 0, 1], [2, 0, 0, 0], [0, 0, 3, 0]]


def test_kl_is_priced_in_the_reward_and_only_there() -> None:
    """k1 with a minus in the reward (gamma 1, lambda 0: the reward itself); no loss term knows the
    reference.
    """
    old, reference = NOISE - 2, NOISE.flip(0) - 2
    batch = by_hand(MASK, old_logprobs=old, reference_logprobs=reference)
    ppo = algorithm(kl_coefficient=0.3, lam=0.0, whiten_advantages=False)
    batch.signals = dict(ppo.signal(batch))
    wanted = torch.where(MASK, -0.3 * (old - reference), 0.0)
    torch.testing.assert_close(batch["advantages"], wanted)
    out = Outputs(logprobs=old + 0.1, values=NOISE, entropy=NOISE.abs())
    terms = ppo.loss(batch, out)
    assert set(terms) == {"policy_loss", "value_loss", "entropy"}
    moved = replace(batch, reference_logprobs=reference + 1)
    for name, term in ppo.loss(moved, out).items():
        assert torch.equal(term.values, terms[name].values)


@pytest.mark.silent_bug(
    "metrics: averages",
    "The mean ratio is divided by the maximum number of tokens.",
    "It is 1 at the first step.",
    "PrimeIntellect-ai/prime-rl#580",
)
def test_first_minibatch_is_on_policy(stage: RolloutTrainer, watched: Watched) -> None:
    """Temperature 0.7: ratio 1 at every token, nothing clipped, and the loss is minus the mean
    advantage.
    """
    move(stage)
    examples = rolled_out(stage)
    batch = examples.batch()
    out = stage.learner._forward(examples)
    logprobs = out.logprobs
    assert out.values is not None and batch.old_values is not None
    torch.testing.assert_close(out.values.detach(), batch.old_values, atol=1e-5, rtol=0)
    assert logprobs is not None and batch.old_logprobs is not None
    assert (
        float((F.ratio(logprobs.detach(), batch.old_logprobs, batch.mask) - 1).abs().max()) < 1e-5
    )
    first = watched.steps[0]
    assert first["metrics"]["ratio"] == pytest.approx(1, abs=1e-5)
    assert first["metrics"]["clip_fraction"] == 0
    assert first["metrics"]["policy_loss"] == pytest.approx(-first["advantage"], abs=1e-5)
    assert watched.steps[-1]["metrics"]["ratio"] != pytest.approx(1, abs=1e-5)
    assert watched.metrics[0]["sampler_gap"] < 1e-4


@pytest.mark.silent_bug(
    "sampling: temperature",
    "Policy and reference, or only the KL, are measured at temperature 1.",
    "All are measured at the sampling temperature.",
    "huggingface/trl#3029",
    "OpenRLHF/OpenRLHF#853",
)
def test_temperature_divides_policy_old_and_reference_alike(stage: RolloutTrainer) -> None:
    move(stage)
    examples = rolled_out(stage)
    row = pack(examples.groups)
    lengths = [len(r.tokens) for e in examples.groups for r in e.rows]
    for role, name in ((stage.role, "old_logprobs"), (BASE, "reference_logprobs")):
        with torch.no_grad():
            logits = stage.model.next_logits(
                role, stage.model.hidden(role, row.layout, row.tokens)[row.before]
            )
        wanted = (
            torch.log_softmax(logits / 0.7, -1)
            .gather(-1, row.targets[:, None])[:, 0]
            .split(lengths)
        )
        for a, b in zip(examples.token_columns[name], wanted, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.silent_bug(
    "sampling: log-probabilities",
    "The two sides of the ratio are normalized over different tokens.",
    "Both are normalized over the whole vocabulary.",
    "huggingface/trl#6945",
)
@pytest.mark.silent_bug(
    "sampling: log-probabilities",
    "With `top_p` or `top_k`, samples come from another distribution than ratios and KL, "
    "unnoticed.",
    "The stage says so before it starts.",
    "NVIDIA-NeMo/RL#69",
)
def test_sampling_filters_are_off_and_harmless(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default none; with one, log-probabilities stay those of the unfiltered policy, so KL is
    finite, but biased.
    """
    stage = ppo_stage(
        rollout={"samples_per_prompt": 2, "max_new_tokens": 5, "top_k": 2, "top_p": 0.5}
    )
    with started(tmp_path, stage) as stage:
        rollout = stage.settings.rollout
        assert (rollout.top_k, rollout.top_p) == (2, 0.5)
        assert "ratios and KL are of all" in capsys.readouterr().err
        examples = rolled_out(stage)
        batch = examples.batch()
        assert bool(batch["advantages"].isfinite().all())
        sampled = [x for e in examples.groups for r in e.group.responses for x in r.logprobs or ()]
        measured = torch.cat(examples.token_columns["old_logprobs"])
        torch.testing.assert_close(torch.tensor(sampled), measured, atol=1e-4, rtol=0)
    assert (Sampling().top_k, Sampling().top_p) == (0, 1.0)


# 14-17: roles


@pytest.mark.silent_bug(
    "models: reference",
    "The reference is measured with dropout.",
    "Dropout is never on.",
    "huggingface/trl#5542",
    "unslothai/unsloth-zoo#912",
)
def test_dropout_is_off(tmp_path: Path, watched: Watched) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=400,
        n_embd=32,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.5,
        embd_pdrop=0.5,
        attn_pdrop=0.5,
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    plugins_tokenizer().save_pretrained(tmp_path)
    for lora in ({"r": 2}, "none"):
        policy = SharedModel(
            ModelSpec.model_validate({"base": str(tmp_path), "dtype": "float32", "lora": lora}),
            str(tmp_path),
        )
        policy.add_role("new")
        policy.make_trainable("new")
        row = pack([written((5, 6), (7, 8, 9))])
        first, second = (policy.hidden("new", row.layout, row.tokens) for _ in range(2))
        assert first.requires_grad and torch.equal(first, second)
    assert not any(step["training"] for step in watched.steps)


REWARD_MODEL = {
    "algorithm": "reward_model",
    "data": {"path": "pairs.jsonl"},
    "batch_size": 4,
    "learning_rate": 0.01,
}


@dataclass
class Trained:
    """A reward model trained for a few steps: its folder, and what it gave for `questions` before
    it was saved.
    """

    run: Run
    folder: Path
    scores: list[float]


def questions() -> list[Group]:
    answers = (
        Response(text="good bread"),
        Response(text="no"),
        Response(text="cut", truncated=True),
    )
    return [replace(group, responses=answers) for group in prompts(4)]


@pytest.fixture(scope="module", params=["lora", "whole"])
def reward_model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    folder = tmp_path_factory.mktemp(request.param)
    ranked = (Response(text="good bread", rank=0), Response(text="no, it is bad", rank=1))
    write_groups(folder / "pairs.jsonl", [replace(group, responses=ranked) for group in prompts(8)])
    run = make_run(
        folder, {"rm": REWARD_MODEL}, **({} if request.param == "lora" else {"lora": "none"})
    )
    found = Trained(run, folder / "run" / "rm" / "adapter", [])
    original = SharedModel.save

    def save(self: SharedModel, name: str, target: Path, *whole: Any) -> None:
        encoder = Encoder(self.tokenizer)
        encoded = [
            e for g in questions() if (e := encoder.encode(g, 200, scoring=True)) is not None
        ]
        found.scores = [float(score) for score in measure(self, name, encoded, SCORES)["scores"]]
        original(self, name, target, *whole)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharedModel, "save", save)
        run.execute()
    return found


def test_values_start_at_zero_or_at_the_reward_model(
    stage: RolloutTrainer, reward_model: Trained
) -> None:
    examples = rolled_out(stage)
    assert all(not bool(values.any()) for values in examples.token_columns["old_values"])
    engine = reward_model.run.models.of("base")
    engine.model.add_role("value", start=engine.role("rm"), head="scalar")
    try:
        groups = [replace(g, responses=(Response(text="fine"),)) for g in prompts(4)]
        encoded = [
            e for g in groups if (e := engine.encoder.encode(g, 200, scoring=True)) is not None
        ]
        scores = torch.stack(measure(engine.model, "value", encoded, SCORES)["scores"])
        assert scores.tolist() == pytest.approx(engine["rm"].scores(groups), abs=1e-5)
        assert float(scores.abs().max()) > 0
    finally:
        engine.model.drop_role("value")


def test_a_group_baseline_takes_two_samples_and_values_from_zero(
    tmp_path: Path, reward_model: Trained
) -> None:
    """A group of one would have no score left; a reward model's level has nothing to do with
    centered scores.
    """
    centered = algorithm(group_baseline=True)
    two = Group((), (Response(text="a"), Response(text="b")))
    assert centered.needs.min_samples == 2 and algorithm().needs.min_samples == 1
    assert centered.keep_group(two) and not centered.keep_group(
        replace(two, responses=two.responses[:1])
    )
    assert algorithm().keep_group(replace(two, responses=two.responses[:1]))
    write_groups(tmp_path / "pairs.jsonl", prompts(2))
    for baseline, samples in ((True, 1), (True, 2), (False, 1)):
        options = {"ppo": {"group_baseline": baseline}}
        stage = ppo_stage(
            algorithm=options, rollout={"samples_per_prompt": samples, "max_new_tokens": 7}
        )
        folder = tmp_path / f"{baseline}{samples}"
        folder.mkdir()
        if baseline and samples == 1:
            with pytest.raises(
                RecipeError, match="ppo needs at least 2 responses to each prompt, not 1"
            ):
                make_run(folder, {"align": stage})
        else:
            make_run(folder, {"align": stage})
    engine = reward_model.run.models.of("base")
    head = engine.model.roles[engine.role("rm")].head
    for options, kept in (({"group_baseline": True}, False), ({}, False), (UNCENTERED, True)):
        settings = SimpleNamespace(reward=RewardSpec("stage", "rm"), value_from=None)
        context: Any = SimpleNamespace(
            name="align", settings=settings, models=engine, model=engine.model
        )
        context.stage = SimpleNamespace(whole_models=())
        add_value_role(context, algorithm(**options).needs, "base")
        value = engine.model.roles["align~value"].head
        engine.model.drop_role("align~value")
        assert head is not None and value is not None
        assert torch.equal(value, head if kept else torch.zeros_like(head))


def test_a_skipped_step_hides_no_other_steps_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An iteration's metrics are means over the steps that were taken, beside how many were not."""
    with started(tmp_path, ppo_stage(epochs=2, batch_size=2)) as stage:
        steps = iter(
            [
                {"loss": 1.0},
                {"loss": math.nan, "skipped": 1.0},
                {"loss": 3.0},
                {"loss": math.inf, "skipped": 1.0},
            ]
        )
        monkeypatch.setattr(stage.learner, "step", lambda part, factor: next(steps, {"loss": 5.0}))
        iteration = measured(stage, stage.prompts.ask(prompts(5), 1).result())
        stage.learn(iteration, 0, Phase(iteration.table.groups), iteration.examples)
    metrics = iteration.metrics
    assert metrics["loss"] == pytest.approx((1 + 3 + 2 * 5) / 4) and metrics["skipped"] == 2


SHARED = {"ppo": {"kl_coefficient": 0.1, "shared_value": True}}


@pytest.mark.parametrize("lora", [{"r": 4}, "none"])
@pytest.mark.parametrize("options", [{}, {"algorithm": SHARED}], ids=["own", "shared"])
def test_value_gradient_does_not_reach_the_policy(
    tmp_path: Path, lora: Any, options: dict[str, Any]
) -> None:
    with started(tmp_path, ppo_stage(**options), lora=lora) as stage:
        move(stage)
        examples = rolled_out(stage)
        examples.token_columns["advantages"] = [
            torch.zeros_like(x) for x in examples.token_columns["advantages"]
        ]
        stage.learner._gradients(examples)
        norms = {"new": 0.0, "value": 0.0}
        for name, parameter in stage.learner.parameters.items():
            assert parameter.grad is not None
            norms[name.split(":")[0].split("~")[1]] += float(parameter.grad.norm())
        assert norms["new"] == 0 and norms["value"] > 1e-3
        assert all(p.grad is None for p in fixed_weights(stage.model, stage.learner).values())


def test_two_networks_share_the_memory_of_a_micro_batch(tmp_path: Path) -> None:
    with started(tmp_path, ppo_stage()) as stage:
        assert stage.learner.token_budget == stage.model.token_budget // 2


def test_a_group_that_is_left_out_takes_its_own_rewards_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of three groups goes: the other two keep their rewards."""
    with started(tmp_path, ppo_stage()) as stage:
        table = scored(stage, stage.prompts.ask(prompts(3), 1).result()).table
        groups, rewards = table.groups, scores_of(table.groups, LEARNED_KEY).float()
        assert len(set(rewards.tolist())) > 3
        monkeypatch.setattr(stage.algorithm, "keep_group", lambda group: group.id != groups[0].id)
        iteration = measured(stage, table.sampled)
        assert (
            iteration.table.groups == groups[1:] and iteration.metrics["groups_without_signal"] == 1
        )
        batch = iteration.examples.batch()
        assert torch.equal(batch.rewards, rewards[3:]) and torch.equal(
            batch.raw_rewards, rewards[3:]
        )


@pytest.mark.parametrize("lora", [{"r": 4}, "none"])
def test_a_shared_value_is_a_head_on_the_policys_own_states(tmp_path: Path, lora: Any) -> None:
    """The same numbers before and in training, no weights but the head's, and the adapter outlives
    it.
    """
    with started(tmp_path, ppo_stage(algorithm=SHARED), lora=lora) as stage:
        policy, head = stage.model, stage.model.roles[stage.value_role or ""].head
        assert head is not None and not bool(head.any())
        assert [name for name in stage.learner.parameters if "~value:" in name] == [
            "align~value:score.weight"
        ]
        assert stage.learner.token_budget == policy.token_budget
        move(stage)
        disturb(policy, stage.value_role or "", 3.0)  # the tiny model's states are small
        examples = rolled_out(stage)
        out, batch = stage.learner._forward(examples), examples.batch()
        assert out.values is not None and batch.old_values is not None and out.logprobs is not None
        assert batch.old_logprobs is not None
        row = pack(examples.groups)
        states = policy.hidden(stage.role, row.layout, row.tokens)[row.before]
        expected = row.unpack(states @ head[0] / math.sqrt(policy.hidden_size))
        for values in (out.values, batch.old_values):
            torch.testing.assert_close(
                values[batch.mask], expected[batch.mask], rtol=1e-4, atol=1e-5
            )
        assert float(expected[batch.mask].detach().std()) > 0.01
        torch.testing.assert_close(
            out.logprobs[batch.mask], batch.old_logprobs[batch.mask], rtol=1e-4, atol=1e-5
        )
        before = {name: p.clone() for name, p in policy.parameters_of(stage.role).items()}
        policy.drop_role(stage.value_role or "")
        assert {name: p.tolist() for name, p in policy.parameters_of(stage.role).items()} == {
            name: p.tolist() for name, p in before.items()
        }
        policy.add_head(stage.value_role or "", stage.role)  # for the stage to close


def test_a_saved_reward_model_scores_the_same_in_plain_transformers(reward_model: Trained) -> None:
    """Nothing of ours reads the folder: AutoModelForSequenceClassification, with peft where it is
    an adapter.
    """
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run, folder, groups = reward_model.run, reward_model.folder, questions()
    ours = run.models["rm"].scores(groups)
    assert ours == pytest.approx(reward_model.scores, abs=1e-5)
    assert len(set(ours)) == len(ours)
    is_adapter = (folder / "adapter_config.json").exists()
    source = run.base("base").source if is_adapter else folder
    model = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=1, dtype=torch.float32
    )
    if is_adapter:
        model = PeftModel.from_pretrained(model, folder)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = []
    for group in groups:
        for response in group.responses:
            turns = [*group.prompt, {"role": "assistant", "content": response.text}]
            ids = tokenizer.apply_chat_template(turns, return_tensors="pt")
            with torch.no_grad():
                theirs.append(float(model(**ids).logits[0, 0]))
    assert ours == pytest.approx(theirs, abs=1e-4)


# 19-26: the update


def test_advantages_are_whitened_over_all_rollouts(stage: RolloutTrainer) -> None:
    examples = rolled_out(stage)
    whole = torch.cat(examples.token_columns["advantages"])
    assert float(whole.mean()) == pytest.approx(0, abs=1e-5) and float(
        whole.std()
    ) == pytest.approx(1, abs=1e-4)
    part = torch.cat(examples.take([0, 1]).token_columns["advantages"])
    # Its mean is 0 in any case: scores are centered in each group
    assert abs(float(part.std()) - 1) > 1e-3


def test_number_of_optimizer_steps(watched: Watched) -> None:
    """Two iterations of two epochs of ceil(5 prompts / 2) minibatches, every one of which moves the
    weights.
    """
    assert len(watched.steps) == 2 * 2 * 3
    assert all(step["moved"] for step in watched.steps)


def test_every_sample_once_an_epoch(watched: Watched) -> None:
    orders = []
    for epoch in range(4):
        ids = [name for step in watched.steps[3 * epoch : 3 * epoch + 3] for name in step["ids"]]
        rows = sum(step["rows"] for step in watched.steps[3 * epoch : 3 * epoch + 3])
        assert len(ids) == len(set(ids)) == 5 and rows == 15
        orders.append(ids)
    assert orders[0] != orders[1] and set(orders[0]) == set(orders[1])


def test_micro_batches_do_not_change_the_gradient(
    stage: RolloutTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ragged lengths: means of micro-batch means would differ."""
    move(stage)
    examples = rolled_out(stage)
    generator = torch.Generator().manual_seed(0)
    examples = cut_short(examples, generator)
    assert len({len(row.tokens) for e in examples.groups for row in e.rows}) > 3
    disturb(stage.model, stage.role)  # off policy: ratios differ from 1
    found = []
    for budget in (10, 60, 10_000):
        monkeypatch.setattr(SharedModel, "token_budget", budget)
        metrics = stage.learner._gradients(examples)
        found.append(
            ({name: p.grad.clone() for name, p in stage.learner.parameters.items()}, metrics)
        )
    for gradients, metrics in found[1:]:
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][0][name], atol=1e-6, rtol=1e-5)
        assert metrics == pytest.approx(found[0][1], abs=1e-5)


def cut_short(examples: Examples, generator: torch.Generator) -> Examples:
    """The same with rows cut to random lengths."""
    lengths = torch.randint(1, 8, (len(examples.rows),), generator=generator).tolist()
    groups, at = [], 0
    for encoded in examples.groups:
        rows = []
        for row in encoded.rows:
            rows.append(ResponseTokens(row.tokens[: lengths[at]], row.mask[: lengths[at]]))
            at += 1
        groups.append(replace(encoded, rows=tuple(rows)))
    columns = {
        k: [x[:n] for x, n in zip(v, lengths, strict=True)]
        for k, v in examples.token_columns.items()
    }
    return Examples(groups, columns, examples.columns, examples.signal_names)


def losses(
    ppo: Any, ratio: Tensor, advantages: Tensor, values: Tensor, **columns: Tensor
) -> tuple[Any, Tensor, Tensor]:
    """Loss terms of one row, and gradients of policy and value loss by log-probabilities and
    values.
    """
    mask = torch.ones(ratio.shape, dtype=torch.bool)
    batch = by_hand(mask, **columns)
    batch.signals = {"advantages": advantages, "returns": torch.zeros_like(advantages)}
    out = Outputs(
        logprobs=ratio.log().requires_grad_(),
        values=values.requires_grad_(),
        entropy=torch.zeros(ratio.shape),
    )
    terms = ppo.loss(batch, out)
    policy = torch.autograd.grad(terms["policy_loss"].values.sum(), out.logprobs)[0]
    value = torch.autograd.grad(terms["value_loss"].values.sum(), out.values)[0]
    return terms, policy, value


def test_policy_clip() -> None:
    """-min(r A, clip(r) A): no gradient where moving on would gain; asymmetric and dual clip only
    if asked for.
    """
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1, 1.25]])
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 2.0, 1.0]])
    terms, gradient, _ = losses(algorithm(), ratio, advantages, torch.zeros(1, 6))
    assert terms["policy_loss"].values.tolist()[0] == pytest.approx(
        [-1.2, 1.5, -0.5, 0.8, -2.2, -1.2]
    )
    assert gradient.tolist()[0] == pytest.approx([0, 1.5, -0.5, 0, -2.2, 0])
    higher = losses(algorithm(clip_range_high=0.3), ratio, advantages, torch.zeros(1, 6))[0]
    assert higher["policy_loss"].values.tolist()[0] == pytest.approx(
        [-1.3, 1.5, -0.5, 0.8, -2.2, -1.25]
    )
    dual = losses(algorithm(dual_clip=1.2), ratio, advantages, torch.zeros(1, 6))[0]
    assert dual["policy_loss"].values.tolist()[0] == pytest.approx(
        [-1.2, 1.2, -0.5, 0.8, -2.2, -1.2]
    )


def test_value_clip() -> None:
    """The larger of both squared errors, halved; returns are 0 here."""
    values = torch.tensor([[0.1, 1.0, -0.5]])
    old = torch.tensor([[0.0, 2.0, 0.5]])
    ones = torch.ones(1, 3)
    terms, _, gradient = losses(algorithm(), ones, ones, values, old_values=old)
    assert terms["value_loss"].values.tolist()[0] == pytest.approx([0.005, 0.5 * 1.8**2, 0.125])
    assert gradient.tolist()[0] == pytest.approx([0.1, 0, -0.5])
    free = losses(algorithm(value_clip_range=None), ones, ones, values.detach(), old_values=old)[0]
    assert free["value_loss"].values.tolist()[0] == pytest.approx([0.005, 0.5, 0.125])


@pytest.mark.silent_bug(
    "metrics: padding",
    "KL, entropy and values are averaged over padding.",
    "Padding changes no metric.",
    "huggingface/trl#6809",
)
@pytest.mark.parametrize("garbage", [1e30, math.nan])
def test_metrics_do_not_see_padding(garbage: float) -> None:
    """Half as much padding again, filled with garbage, changes no term and no metric."""

    def means(extra: int) -> dict[str, float]:
        def padded(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(torch.where(MASK, x, garbage), (0, extra), value=garbage)

        mask = torch.nn.functional.pad(MASK, (0, extra))
        ppo = algorithm()
        batch = by_hand(mask, old_logprobs=padded(NOISE - 2), reference_logprobs=padded(NOISE - 1))
        batch = replace(batch, old_values=padded(NOISE), rewards=torch.tensor([1.0, 2.0, 3.0]))
        batch.signals = dict(ppo.signal(batch))
        out = Outputs(
            logprobs=padded(NOISE.flip(1) - 2), values=padded(-NOISE), entropy=padded(NOISE.abs())
        )
        averages = Averages()
        averages.add({**ppo.loss(batch, out), **ppo.report_metrics(batch, out)}, batch)
        return {**averages.means(), **ppo.metrics}

    found = means(0)
    assert 0 < found["clip_fraction"] < 1 and all(map(math.isfinite, found.values()))
    assert means(4) == pytest.approx(found, abs=1e-6)


# 27-31: control


def test_kl_is_a_sum_over_tokens_and_adapts_once(tmp_path: Path) -> None:
    stage = ppo_stage(
        algorithm={"ppo": {"kl_coefficient": 0.1, "kl_target": 3.0, "kl_horizon": 100.0}},
        iterations=1,
    )
    with started(tmp_path, stage) as stage:
        stage.learner.steps = 1  # not the first step: policy and reference may differ
        disturb(stage.model, stage.role, 0.1)
        iteration = measured(stage, stage.prompts.ask(prompts(5), 1).result())
        metrics, columns = iteration.metrics, iteration.examples.token_columns
        gaps = [
            a - b
            for a, b in zip(columns["old_logprobs"], columns["reference_logprobs"], strict=True)
        ]
        wanted = sum(float(gap.sum()) for gap in gaps) / 15
        assert metrics["kl"] == pytest.approx(
            sum(float(((-gap).exp() - 1 + gap).sum()) for gap in gaps) / 15, abs=1e-4
        )
        assert abs(wanted) > 0.05
        adapted = stage.algorithm.state["kl_coefficient"]
        assert adapted == pytest.approx(F.adaptive_kl(0.1, wanted, 3.0, 100.0, 15), rel=1e-5)
        stage.measure(iteration)
        again = iteration.examples
        stage.learner.step(again, 1.0)
        stage.learner.step(again, 1.0)
        # Once per rollout batch (two were measured), never per step.
        twice = F.adaptive_kl(adapted, wanted, 3.0, 100.0, 15)
        assert stage.algorithm.state["kl_coefficient"] == pytest.approx(twice, rel=1e-5)


def test_kl_adapts_within_a_run_of_typical_length() -> None:
    """At the default horizon, ten iterations far above the target multiply the price by 1.2 to the
    tenth.
    """
    ppo = algorithm(kl_coefficient=0.05, kl_target=1.0)
    batch = by_hand(MASK, old_logprobs=NOISE * 0 + 3, reference_logprobs=NOISE * 0)
    batch = replace(batch, old_values=NOISE, rewards=torch.tensor([1.0, 2.0, 3.0]))
    for _ in range(10):
        ppo.signal(batch)
    assert ppo.state["kl_coefficient"] == pytest.approx(0.05 * 1.2**10)
    slow = algorithm(kl_coefficient=0.05, kl_target=1.0, kl_horizon=30)
    slow.signal(batch)
    assert slow.state["kl_coefficient"] == pytest.approx(0.05 * (1 + 0.2 * 3 / 30))


@pytest.mark.silent_bug(
    "policy gradient: samples of older weights",
    "The coefficient of the KL follows a mean over samples of older weights, which may be "
    "negative while the KL grows.",
    "Each token counts by how much likelier it is now than when it was sampled, as in the metric "
    "`kl`.",
)
def test_kl_adapts_to_the_policy_and_not_to_the_weights_that_sampled_ahead() -> None:
    """One token each, sampled at p = (3/4, 1/4) and read by a policy at (1/4, 3/4) with a reference
    at (1/2, 1/2).

    The true KL is log 2 + (1/4) log(1/4) + (3/4) log(3/4) = 0.131; the mean without weights is
    -0.418.
    """
    mask = torch.ones(4, 1, dtype=torch.bool)
    now, then = (
        torch.tensor([[0.25]] * 3 + [[0.75]]).log(),
        torch.tensor([[0.75]] * 3 + [[0.25]]).log(),
    )
    ppo = algorithm(kl_coefficient=1.0, kl_target=0.1, kl_horizon=4)
    batch = by_hand(mask, old_logprobs=now, reference_logprobs=torch.full((4, 1), 0.5).log())
    samples = tuple(
        Response("a", tokens=(1,), logprobs=(float(each),), staleness=1) for each in then
    )
    batch = batch.replace(groups=[Group((), samples)], rewards=torch.arange(4.0))
    ppo.signal(batch)
    true = math.log(2) + 0.25 * math.log(0.25) + 0.75 * math.log(0.75)
    assert (
        ppo.state["kl_coefficient"] == pytest.approx(F.adaptive_kl(1.0, true, 0.1, 4, 4), rel=1e-5)
        and true > 0.1
    )


def test_the_price_of_kl_is_never_negative() -> None:
    """However few responses the horizon has, one iteration moves the price by a fifth at most."""
    ppo = algorithm(kl_coefficient=0.05, kl_target=6.0, kl_horizon=0.5)
    # KL 0, far below the target
    batch = by_hand(MASK, old_logprobs=NOISE, reference_logprobs=NOISE)
    batch = replace(batch, old_values=NOISE, rewards=torch.tensor([1.0, 2.0, 3.0]))
    ppo.signal(batch)
    assert ppo.state["kl_coefficient"] == pytest.approx(0.04)


def test_scores_are_held_on_both_sides() -> None:
    ppo = algorithm(kl_coefficient=0.0, score_clip=1.5, whiten_advantages=False, **UNCENTERED)
    batch = by_hand(MASK, old_logprobs=NOISE, reference_logprobs=NOISE)
    batch = replace(batch, old_values=torch.zeros(3, 4), rewards=torch.tensor([-9.0, 0.5, 9.0]))
    assert ppo.signal(batch)["returns"][:, 0].tolist() == pytest.approx([-1.5, 0.5, 1.5])


def test_entropy_has_a_gradient_where_it_is_a_bonus() -> None:
    assert algorithm(entropy_coefficient=0.3).needs.entropy is True
    assert algorithm().needs.entropy == "reported"


def test_entropy_is_a_bonus() -> None:
    ppo = algorithm(entropy_coefficient=0.3)
    batch = by_hand(MASK, old_logprobs=NOISE, reference_logprobs=NOISE)
    batch = replace(batch, old_values=NOISE, signals={"advantages": NOISE, "returns": NOISE})
    term = ppo.loss(batch, Outputs(logprobs=NOISE, values=NOISE, entropy=NOISE.abs()))["entropy"]
    assert torch.equal(term.values, NOISE.abs()) and term.coefficient == -0.3


def test_what_the_values_explain() -> None:
    """The share of the returns' variance, over counted tokens: 1 - var(returns - values) /
    var(returns).
    """
    ppo = algorithm(kl_coefficient=0.0, **UNCENTERED)
    rewards = torch.tensor([1.0, 2.0, 4.0])
    # Without a discount a token's return is its response's score
    returns = rewards[:, None].expand(3, 4)
    batch = by_hand(MASK, old_logprobs=NOISE, reference_logprobs=NOISE)
    for values, wanted in (
        (returns, 1.0),
        (returns * 0 + 7, 0.0),
        (-returns, -3.0),
        (returns / 2, 0.75),
    ):
        garbage = torch.where(MASK, values, 1e6)
        ppo.signal(replace(batch, old_values=garbage, rewards=rewards))
        assert ppo.metrics["explained_variance"] == pytest.approx(wanted, abs=1e-5)
        assert ppo.metrics["return"] == pytest.approx((4 * 1.0 + 2.0 + 3 * 4.0) / 8)
    ppo.signal(replace(batch, old_values=returns, rewards=torch.ones(3)))  # nothing to explain
    assert ppo.metrics["explained_variance"] == 0.0
    one = MASK & (torch.arange(12).reshape(3, 4) == 0)
    ppo.signal(
        replace(
            by_hand(one, old_logprobs=NOISE, reference_logprobs=NOISE),
            old_values=returns,
            rewards=rewards,
        )
    )
    assert ppo.metrics["explained_variance"] == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_coefficient": 0.0, "kl_target": 3.0}, "kl_coefficient must be above 0"),
        ({"kl_horizon": 9.0}, "kl_horizon only applies to kl_target"),
    ],
)
def test_options_that_would_change_nothing_are_refused(
    options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        algorithm(**options)


def test_a_mismatch_is_seen(stage: RolloutTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference that is not where the policy starts stops the run; another sampler shows as
    `sampler_gap`.
    """
    iteration = measured(stage, stage.prompts.ask(prompts(5), 1).result())
    assert iteration.metrics["sampler_gap"] < 1e-4
    stage.learner.temperature = 1.4
    stage.measure(iteration)
    assert iteration.metrics["sampler_gap"] > 0.05
    disturb(stage.model, stage.role, 0.1)
    with pytest.raises(RunFailed, match="KL"):
        stage.measure(iteration)


def test_adam_settings(stage: RolloutTrainer) -> None:
    options = stage.learner.optimizer.param_groups
    assert len(options) == 1
    assert (
        options[0]["eps"] == 1e-5
        and options[0]["weight_decay"] == 0
        and options[0]["betas"] == (0.9, 0.999)
    )
    assert len(options[0]["params"]) == len(stage.learner.parameters)


def test_learning_rate_falls_per_iteration(watched: Watched) -> None:
    """Linear to 0 over iterations: 1, then 1/2, the same for all steps of an iteration."""
    assert [step["factor"] for step in watched.steps] == [1.0] * 6 + [0.5] * 6
    assert [step["metrics"]["learning_rate"] for step in watched.steps] == pytest.approx(
        [1e-3] * 6 + [5e-4] * 6
    )
    assert [schedule(Settings(), 1e-3, i, 4) for i in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_each_roles_gradient_is_clipped_after_accumulation(
    stage: RolloutTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settings, "max_grad_norm", 0.01)
    monkeypatch.setattr(SharedModel, "token_budget", 60)  # several micro-batches
    disturb(stage.model, stage.value_role or "", 0.1)
    metrics = stage.learner.step(rolled_out(stage), 1.0)
    assert metrics["grad_norm"] > 0.02 and metrics["value_grad_norm"] > 0.02
    for role in (stage.role, stage.value_role):
        own = [p for name, p in stage.learner.parameters.items() if name.startswith(f"{role}:")]
        assert float(torch.nn.utils.get_total_norm([p.grad for p in own])) == pytest.approx(
            0.01, rel=1e-3
        )


# 32-40: the rest


def test_a_foreign_reward_model_reads_words(tmp_path: Path, stage: RolloutTrainer) -> None:
    """A reward model with another vocabulary and template never sees the policy's ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path / "foreign"
    vocabulary = {
        token: i for i, token in enumerate(["<unk>", "<eos>", "[Q]", "[A]", *WORDS, "good"])
    }
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = (
        "{% for m in messages %}{{ '[Q] ' + m['content'] if m['role'] == 'user' else "
        "m['content'] + ' <eos>' }} "
    )
    template += "{% endfor %}{% if add_generation_prompt %}[A] {% endif %}"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<eos>", pad_token="<unk>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, pad_token_id=0, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    group = Group(
        ({"role": "user", "content": "bake bread"},),
        (Response(text="good bread", tokens=(90, 91, 92)),),
    )
    # Its finished conversations have no `[A]`, which is only in its prompts.
    ids = [vocabulary[t] for t in ("[Q]", "bake", "bread", "good", "bread", "<eos>")]
    with torch.no_grad():
        wanted = float(model(input_ids=torch.tensor([ids])).logits[0, 0])
    stage.context.models.artifact = lambda reference: folder
    assert stage.context.models[str(folder)].scores([group]) == [pytest.approx(wanted, abs=1e-5)]


def test_what_is_scored_ends_its_turn(stage: RolloutTrainer) -> None:
    """Reward models were trained on ended turns; a cut-off response is given one, also where it is
    cut to fit.
    """
    encoder = stage.context.models.encoder
    end = encoder.closing
    group = replace(
        prompts(1)[0], responses=(Response(text="", tokens=tuple(range(30, 60)), truncated=True),)
    )
    room = len(encoder.prompt(group.prompt))
    for limit, length in ((200, 30 + len(end)), (room + 10, 10)):
        encoded = encoder.encode(group, limit, scoring=True)
        assert encoded is not None
        row = encoded.rows[0]
        assert len(row.tokens) == length and row.tokens[-len(end) :] == end
    trained = encoder.encode(group, room + 10)
    assert trained is not None and trained.rows[0].tokens == tuple(range(30, 40))


def test_kl_is_zero_at_first_and_then_not(watched: Watched) -> None:
    """The reference is the SFT policy, not the base."""
    assert abs(watched.metrics[0]["kl"]) < 1e-6
    assert abs(watched.metrics[1]["kl"]) > 1e-3
    policy = watched.run.models.of("base").model
    engine = watched.run.models.of("base")
    group = [replace(prompts(1)[0], responses=(Response(text="bread is good"),))]
    sft, base = engine["sft"].logprobs(group)[0], engine[BASE].logprobs(group)[0]
    assert float((sft - base).abs().max()) > 0.01 and policy.adapters is not None


def test_long_prompts_are_left_out(tmp_path: Path) -> None:
    encoder = Encoder(plugins_tokenizer())
    limit = sorted(len(encoder.prompt(g.prompt)) for g in prompts(8))[4] + 7
    with started(tmp_path, ppo_stage(max_length=limit)) as stage:
        kept = stage.prompts.prompts
        left_out = stage.summary["encoding"]["no_room"]
        assert kept and left_out and len(kept) + left_out == 8
        lengths = {
            g.prompt[0]["content"]: len(stage.context.models.encoder.prompt(g.prompt))
            for g in prompts(8)
        }
        assert {g.prompt[0]["content"] for g in kept} == {
            text for text, n in lengths.items() if n + 7 <= limit
        }


def test_a_response_of_one_end_token(stage: RolloutTrainer) -> None:
    """The end of turn as first token: one token, an empty text, and a batch of such rows is
    finite.
    """
    encoder = stage.context.models.encoder
    encoder.__dict__["end_ids"] = frozenset(range(stage.model.model.config.vocab_size))
    groups = stage.prompts.ask(prompts(5), 1).result()
    assert {(r.text, len(r.tokens or ()), r.truncated) for g in groups for r in g.responses} == {
        ("", 1, False)
    }
    examples = measured(stage, groups).examples
    assert all(bool(x.isfinite().all()) for x in examples.token_columns["advantages"])
    metrics = stage.learner.step(examples, 1.0)
    assert math.isfinite(metrics["loss"]) and "skipped" not in metrics
    for mask in (torch.ones(1, 1, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)):
        signal = algorithm().signal(by_hand(mask, rewards=torch.ones(len(mask))))
        assert bool(signal["advantages"].isfinite().all())


def test_ptx_is_a_token_mean_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = ppo_stage(
        mix={"data": {"path": "demos.jsonl"}, "objective": "sft", "weight": 3.0, "batch_size": 3}
    )
    with started(tmp_path, stage) as stage:
        learner = stage.learner
        examples = rolled_out(stage)
        monkeypatch.setattr(SharedModel, "token_budget", 60)
        mix = learner.auxiliary
        assert mix is not None
        demos = mix.batch(0)
        learner.auxiliary = None
        learner._gradients(examples)
        ppo = {name: p.grad.clone() for name, p in learner.parameters.items()}
        learner.optimizer.zero_grad()
        row = pack(demos)
        hidden = stage.model.hidden(stage.role, row.layout, row.tokens)
        nll = -stage.model.logprobs(stage.role, hidden[row.before], row.targets)[0].mean()
        nll.backward()
        ptx = {
            n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for n, p in learner.parameters.items()
        }
        learner.auxiliary = mix
        assert learner._gradients(examples)["mix/nll"] == pytest.approx(nll.item(), abs=1e-5)
        for name, parameter in learner.parameters.items():
            torch.testing.assert_close(
                parameter.grad, ppo[name] + 3 * ptx[name], atol=1e-5, rtol=1e-4
            )
        assert any(float(g.abs().max()) > 1e-4 for g in ptx.values())


def test_random_streams_differ_by_place(stage: RolloutTrainer) -> None:
    """Siblings, prompts of one text, iterations and stages never share draws; the same place gives
    the same.
    """

    def texts(**more: Any) -> list[Any]:
        place = more.pop("place", ("align", "rollout", 1))
        found = sample(
            stage.model,
            BASE,
            stage.context.models.encoder,
            [prompts(1)[0]] * 2,
            Sampling(max_new_tokens=7),
            samples_per_prompt=3,
            seed=0,
            path=place,
        )
        return [r.tokens for g in found for r in g.responses]

    first = texts()
    assert len(set(first)) == 6 and texts() == first
    assert not set(first) & set(texts(place=("align", "rollout", 2)))
    assert not set(first) & set(texts(place=("other", "rollout", 1)))


def test_bf16_logits_are_widened_before_the_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(40, 16, generator=generator) * 30).bfloat16()
    head = torch.randn(50, 16, generator=generator).bfloat16()
    tokens = torch.randint(0, 50, (40,), generator=generator)
    found, entropy = logprobs_and_entropy(hidden, tokens, HeadSpec(head), entropy=True)
    wanted = torch.log_softmax(torch.nn.functional.linear(hidden, head).double(), -1)
    assert found.dtype == torch.float32 and entropy is not None
    torch.testing.assert_close(
        found.double(), wanted.gather(-1, tokens[:, None])[:, 0], atol=1e-4, rtol=1e-5
    )
    torch.testing.assert_close(
        entropy.double(), -(wanted.exp() * wanted).sum(-1), atol=1e-4, rtol=1e-4
    )


def test_a_shared_value_starts_from_no_reward_model(tmp_path: Path) -> None:
    stages = {"rm": REWARD_MODEL, "align": ppo_stage(algorithm=SHARED, value_from="rm")}
    write_groups(tmp_path / "pairs.jsonl", prompts(2))
    with pytest.raises(RecipeError, match="ppo does not use 'value_from'"):
        make_run(tmp_path, stages)

"""Forty things that PPO implementations get wrong, each with a test or a sentence why it cannot go
wrong here.

Everything runs on the tiny random model through the parts that recipes use; `ITEMS` is the list.
"""

from __future__ import annotations

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
from torch import Tensor

from alignkit import Batch, Group, Outputs, Response, RunFailed
from alignkit import functional as F
from alignkit.contract.algorithm import Phase
from alignkit.contract.settings import Sampling, Settings
from alignkit.errors import RecipeError
from alignkit.models.packing import Examples, measure, pack
from alignkit.models.shared_model import UNMODIFIED, SharedModel, Wants
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import RewardSpec
from alignkit.runs.run import Run
from alignkit.runs.stage import TrainingStage
from alignkit.tokens.encoder import Encoded, Encoder
from alignkit.training import online
from alignkit.training.learner import Learner, schedule
from alignkit.training.online import Iteration, RolloutTrainer
from alignkit.training.trainer import add_value_role
from alignkit_plugins.algorithms.ppo import PPO
from alignkit_plugins.bases.tiny import _tokenizer
from tests.by_hand import asked, batch, new
from tests.rows import TINY, Said, pairs, read_rows, write_recipe, write_rows
from tests.sampled import sample

ITEMS: dict[int, str] = yaml.safe_load("""
1: net/test_attention.py::test_packs_match_separate_sequences
2: test_masks_come_from_lengths_not_from_ids
3: models/test_sampling.py::test_every_end_token_ends_a_response
4: test_scores_see_the_whole_response_with_its_end
5: test_missing_eos_penalty
6: test_a_cut_off_response_is_terminal
7: test_a_value_is_read_before_its_token
8: test_reference_and_base_stay_bit_identical
9: test_the_score_sits_on_the_last_token
10: test_kl_is_priced_in_the_reward_and_only_there
11: test_first_minibatch_is_on_policy
12: test_temperature_divides_policy_old_and_reference_alike
13: test_sampling_filters_are_off_and_harmless
14: net/test_attention.py::test_gradients_match
15: test_values_start_at_zero_or_at_the_reward_model
16: test_value_gradient_does_not_reach_the_policy
17: models/test_padding.py::test_strangers_read_the_same_score
18: training/test_scoring.py::test_whitening_sees_all_that_has_a_score_and_the_penalty_comes_after_it
19: test_advantages_are_whitened_over_all_rollouts
20: test_group_baseline
21: test_number_of_optimizer_steps
22: test_every_sample_once_an_epoch
23: test_micro_batches_do_not_change_the_gradient
24: algorithms/test_online.py::test_the_clipped_update
25: algorithms/test_online.py::test_ppo_values
26: algorithms/test_options.py::test_it_keeps_the_rules_of_algorithms
27: test_kl_is_a_sum_over_tokens_and_adapts_once
28: test_a_mismatch_is_seen
29: test_adam_settings
30: test_learning_rate_falls_per_iteration
31: test_each_roles_gradient_is_clipped_after_accumulation
32: test_bases.py::test_a_whole_reward_model_scores_text
33: tokens/test_encoding.py::test_a_long_response_is_truncated_without_an_end_of_turn
34: test_kl_is_zero_at_first_and_then_not
35: test_long_prompts_are_left_out
36: test_a_response_of_one_end_token
37: test_ptx_is_a_token_mean_of_its_own
38: test_random_streams_differ_by_place
39: There is no gradient checkpointing, training never asks for a cache, and sampling keeps one of its own.
40: kernels/test_lm_head.py::test_half_precision_is_widened_before_the_softmax
""")

TEXT = "tell me how to bake some bread for my old friend and the people in this house today please"
WORDS = TEXT.split()

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_item_has_a_test_or_a_reason() -> None:
    assert list(ITEMS) == list(range(1, 41))
    for text in ITEMS.values():
        file, _, name = text.rpartition("::")
        if name.startswith("test_"):
            path = Path(__file__).parent / (file or Path(__file__).name)
            assert f"def {name}(" in path.read_text(encoding="utf-8"), name
        else:
            assert len(text.split()) > 8


# A small run, and parts of one

TEXTS = [" ".join(WORDS[n : n + 2 + n % 5]) for n in range(8)]


def prompts(count: int = 8, *responses: Response) -> list[Group]:
    return [Group(asked(text), responses, id=str(n)) for n, text in enumerate(TEXTS[:count])]


ROLLOUT = {"samples_per_prompt": 3, "max_new_tokens": 7, "temperature": 0.7}


def ppo_stage(**more: Any) -> dict[str, Any]:
    stage = yaml.safe_load("""
    algorithm: {ppo: {kl_coefficient: 0.1}}
    prompts: prompts.jsonl
    reward: {length: {unit: characters}}
    iterations: 2
    prompts_per_iteration: 5
    batch_size: 2
    epochs: 2
    learning_rate: 0.001
    """)
    return {**stage, "rollout": ROLLOUT, **more}


def make_run(folder: Path, stages: dict[str, Any], lora: Any = None) -> Run:
    (folder / "run").mkdir(parents=True)
    write_rows(folder / "prompts.jsonl", prompts())
    write_rows(folder / "demos.jsonl", prompts(8, Response(text="bread is good")))
    model = {**TINY, "lora": {"r": 4, "lora_alpha": 8} if lora is None else lora}
    return Run(load_recipe(write_recipe(folder, stages, model)), folder / "run")


SFT = {"algorithm": "sft", "data": "demos.jsonl", "batch_size": 4, "epochs": 2}


@dataclass
class Watched:
    """What one run of `sft -> ppo` did."""

    run: Run
    steps: list[dict[str, Any]] = field(default_factory=list)
    # Base and SFT weights before PPO's first step
    frozen: dict[str, Tensor] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder = tmp_path_factory.mktemp("watched")
    stages = {"sft": {**SFT, "learning_rate": 0.01}, "align": ppo_stage(**{"from": "sft"})}
    found = Watched(make_run(folder, stages))
    original = Learner.step

    def step(self: Learner, examples: Examples, lr_factor: float) -> dict[str, float]:
        if self.value_role is None:
            return original(self, examples, lr_factor)
        found.frozen = found.frozen or copied(fixed_weights(self.model, self))
        before, given = copied(self.parameters), examples.batch()
        metrics = original(self, examples, lr_factor)
        moved = [name for name, p in self.parameters.items() if not torch.equal(p, before[name])]
        done = {
            "ids": [e.group.id for e in examples.groups],
            "rows": len(given.tokens),
            "factor": lr_factor,
            "metrics": metrics,
            "advantage": float(F.masked_mean(given["advantages"], given.mask)),
            "moved": moved,
            "fixed": copied(fixed_weights(self.model, self)),
        }
        found.steps.append(done)
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", step)
        found.run.execute()
    found.metrics = read_rows(folder / "run" / "align" / "metrics.jsonl")
    return found


def copied(weights: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in weights.items()}


def fixed_weights(policy: SharedModel, learner: Learner) -> dict[str, Tensor]:
    own = {id(p) for p in learner.parameters.values()}
    return {name: p for name, p in policy.model.named_parameters() if id(p) not in own}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[RolloutTrainer]:
    with started(tmp_path) as found:
        yield found


@contextmanager
def started(folder: Path, lora: Any = None, **more: Any) -> Iterator[RolloutTrainer]:
    """A PPO stage from the base, before its first iteration."""
    run = make_run(folder, {"align": ppo_stage(**more)}, lora)
    (folder / "run" / "align").mkdir()
    made = run.stages["align"]
    assert isinstance(made, TrainingStage)
    found = RolloutTrainer(made, made.plugin(made.spec.component))
    try:
        yield found
    finally:
        found.close()


def scored(stage: RolloutTrainer, groups: Sequence[Group]) -> Iteration:
    iteration = Iteration(1, stage.rewards.ask(groups))
    iteration.metrics |= stage.score(iteration)
    return iteration


def sampled(stage: RolloutTrainer, count: int = 5) -> list[Group]:
    return stage.prompts.ask(prompts(count), 1).result().groups


def measured(stage: RolloutTrainer, groups: Sequence[Group] | None = None) -> Iteration:
    """Scored and measured rollouts."""
    iteration = scored(stage, sampled(stage) if groups is None else groups)
    stage.measure(iteration)
    stage.compute_advantages(iteration)
    return iteration


def ended_by(encoder: Encoder, ids: range) -> None:
    """Tokens with these ids end a turn, too."""
    encoder.__dict__["end_ids"] = frozenset(ids)


def move(stage: RolloutTrainer) -> None:
    """Policy and value role away from where they started, as after some steps."""
    stage.learner.steps = 1
    disturb(stage.model, stage.role)
    disturb(stage.model, stage.value_role or "", 0.1)


def disturb(policy: SharedModel, role: str, size: float = 0.05) -> None:
    """Move a role away from where it started."""
    draw = torch.Generator().manual_seed(7)
    for parameter in policy.parameters_of(role).values():
        parameter.data += size * torch.randn(parameter.shape, generator=draw)


def written(prompt: Sequence[int], *rows: Sequence[int], name: str = "g") -> Encoded:
    return replace(Encoded.of(tuple(prompt), *map(tuple, rows)), group=Group((), id=name))


def rollouts(mask: Tensor | None = None, **columns: Any) -> Batch:
    """A batch without a model: all zeros but for these columns, one group, all responses ended."""
    mask = MASK if mask is None else mask
    names = ("old_logprobs", "reference_logprobs", "old_values")
    known = dict.fromkeys(names, torch.zeros(mask.shape))
    known |= {"rewards": torch.zeros(len(mask)), "group": [0] * len(mask)}
    return batch(mask, **{**known, **columns})


MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
NOISE = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
REWARDS = torch.tensor([1.0, 2.0, 3.0])
# Returns are the rewards of tokens, as they come.
PLAIN: dict[str, Any] = {
    "kl_coefficient": 0.0,
    "lam": 0.0,
    "whiten_advantages": False,
    "center_scores": False,
}


# 1-7: which token is where


def test_masks_come_from_lengths_not_from_ids() -> None:
    """Padding and end ids inside a response are tokens like others; shorter rows have none after
    their end.
    """
    tokenizer = _tokenizer()
    row = (tokenizer.pad_token_id, 30, tokenizer.eos_token_id, 31, tokenizer.pad_token_id)
    given = Examples([written((5, 6), row, (40, 41))]).batch()
    assert given.mask.tolist() == [[True] * 5, [True, True, False, False, False]]
    assert given.tokens[0].tolist() == list(row)
    assert len(pack([written((5, 6), row, (40, 41))]).targets) == 7


def test_scores_see_the_whole_response_with_its_end(tmp_path: Path) -> None:
    """The reward here is the number of tokens, the end of turn included."""
    with started(tmp_path, reward="length") as stage:
        ended_by(stage.stage.models.encoder, range(1, 60))
        examples = measured(stage).rollouts.examples
        rewards = examples.batch().rewards.tolist()
        assert rewards == [
            len(response.tokens) for e in examples.groups for response in e.responses
        ]
        assert len(set(rewards)) > 3


def test_group_baseline() -> None:
    """Scores less their prompt's mean, prompts apart; a group of one, or without spread, has
    nothing left.
    """
    rewards = torch.tensor([1.0, 3.0, -7.0, -7.0, 5.0, 5.0])
    given = rollouts(torch.ones(6, 2) > 0, rewards=rewards, group=[0, 0, 1, 1, 2, 3])
    options = {**PLAIN, "lam": 1.0}
    found = new(PPO, **options, group_baseline=True).signal(given)["returns"]
    assert found.tolist() == [[-1.0] * 2, [1.0] * 2, *[[0.0] * 2] * 4]
    clipped = new(PPO, **options, group_baseline=True, score_clip=2.0).signal(given)["returns"]
    assert clipped[:2, 0].tolist() == [-0.5, 0.5]  # the mean is of clipped scores
    assert new(PPO, **options).signal(given)["returns"][:, 1].tolist() == rewards.tolist()


def test_scores_are_centered_on_the_first_iteration() -> None:
    """The stage's first mean stays in the state, whatever the groups."""
    ppo = new(PPO, kl_coefficient=0.0, whiten_advantages=False)
    for scores, wanted in (
        ([4.0, 5.0, 9.0], [-2.0, -1.0, 3.0]),
        ([7.0, 6.0, 8.0], [1.0, 0.0, 2.0]),
    ):
        given = rollouts(torch.ones(3, 2) > 0, rewards=torch.tensor(scores))
        assert ppo.signal(given)["returns"].tolist() == [[x] * 2 for x in wanted]
        assert ppo.state == {"score_level": 6.0}


@pytest.mark.silent_bug(
    "rewards: missing end",
    "The penalty for a missing end does not reach all responses that were cut off.",
    "Each of them pays it, and no other response does.",
    "huggingface/trl#3750",
)
def test_missing_eos_penalty(tmp_path: Path) -> None:
    """Taken off every reward of cut-off responses, and off nothing else; selection sees it."""
    found = []
    for penalty in (0.0, 5.0):
        rollout = {**ROLLOUT, "missing_eos_penalty": penalty}
        with started(tmp_path / str(penalty), rollout=rollout) as stage:
            ended_by(stage.stage.models.encoder, range(1, 60))
            table = measured(stage).rollouts
            given = table.examples.batch()
            assert len(table.kept) == len(table.scored)
            responses = [response for group in table.kept for response in group.responses]
            seen = torch.tensor([response.scores["reward"] for response in responses])
            assert torch.equal(given.rewards, seen)
            found.append((table.reward, seen, given.rewards))
    cut = torch.tensor([(response.tokens or ())[-1] not in range(1, 60) for response in responses])
    assert cut.tolist() == [response.truncated for response in responses]
    assert cut.any() and not cut.all()
    for without, paid in zip(*found, strict=True):
        torch.testing.assert_close(without - paid, (5.0 * cut).to(paid))


def test_a_cut_off_response_is_terminal() -> None:
    """V after the end is 0, whatever stands in the padding."""
    given = rollouts(rewards=REWARDS, old_values=torch.where(MASK, 0.5, 1e6))
    for cut in (False, True):
        signal = new(PPO, **PLAIN).signal(replace(given, truncated=torch.tensor([cut] * 3)))
        assert signal["returns"].tolist() == [[0.5, 0.5, 0.5, 1], [2, 0, 0, 0], [0.5, 0.5, 3, 0]]


def test_a_value_is_read_before_its_token(stage: RolloutTrainer) -> None:
    policy, role = stage.model, stage.value_role or ""
    disturb(policy, role, 0.2)
    wants, prompt = Wants(values=role, logprobs=False), (20, 21, 22)
    first, changed = (written(prompt, (30, 31, token, 33)) for token in (32, 99))
    values = measure(policy, role, [first], wants)["values"][0]
    packed = pack([first])
    with torch.no_grad():
        everywhere = policy.scalars(role, policy.hidden(role, packed.layout, packed.tokens))
    torch.testing.assert_close(values, everywhere[2:6])
    others = measure(policy, role, [changed], wants)["values"][0]
    assert torch.equal(others[:3], values[:3]) and others[3] != values[3]


# 8-13: KL, ratio, temperature


def test_reference_and_base_stay_bit_identical(watched: Watched) -> None:
    models = watched.run.models.of("base")
    models.role("sft")
    assert set(models.model.parameters_of("sft")) < set(watched.frozen)
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
    returns = new(PPO, **PLAIN).signal(rollouts(rewards=REWARDS))["returns"]
    assert returns.tolist() == [[0, 0, 0, 1], [2, 0, 0, 0], [0, 0, 3, 0]]


def test_kl_is_priced_in_the_reward_and_only_there() -> None:
    """k1 with a minus in the reward (gamma 1, lambda 0: the reward itself); no loss term knows the
    reference.
    """
    old, reference = NOISE - 2, NOISE.flip(0) - 2
    given = rollouts(old_logprobs=old, reference_logprobs=reference)
    ppo = new(PPO, **{**PLAIN, "kl_coefficient": 0.3})
    given.signals = dict(ppo.signal(given))
    torch.testing.assert_close(
        given["advantages"], torch.where(MASK, -0.3 * (old - reference), 0.0)
    )
    out = Outputs(logprobs=old + 0.1, values=NOISE, entropy=NOISE.abs())
    terms = ppo.loss(given, out)
    assert set(terms) == {"policy_loss", "value_loss", "entropy"}
    moved = replace(given, reference_logprobs=reference + 1)
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
    examples = measured(stage).rollouts.examples
    given, out = examples.batch(), stage.learner._forward(examples)
    torch.testing.assert_close(out.values.detach(), given.old_values, atol=1e-5, rtol=0)  # type: ignore[union-attr]
    ratio = F.ratio(out.logprobs.detach(), given.old_logprobs, given.mask)  # type: ignore[union-attr]
    assert float((ratio - 1).abs().max()) < 1e-5
    first, metrics = watched.steps[0], watched.steps[0]["metrics"]
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5) and metrics["clip_fraction"] == 0
    assert metrics["policy_loss"] == pytest.approx(-first["advantage"], abs=1e-5)
    assert watched.steps[-1]["metrics"]["ratio"] != pytest.approx(1, abs=1e-5)
    assert watched.metrics[0]["engine_mismatch"] < 1e-4


@pytest.mark.silent_bug(
    "sampling: temperature",
    "Policy and reference, or only the KL, are measured at temperature 1.",
    "All are measured at the sampling temperature.",
    "huggingface/trl#3029",
    "OpenRLHF/OpenRLHF#853",
)
def test_temperature_divides_policy_old_and_reference_alike(stage: RolloutTrainer) -> None:
    move(stage)
    examples = measured(stage).rollouts.examples
    packed = pack(examples.groups)
    for role, name in ((stage.role, "old_logprobs"), (UNMODIFIED, "reference_logprobs")):
        with torch.no_grad():
            hidden = stage.model.hidden(role, packed.layout, packed.tokens)[packed.before]
            logits = stage.model.next_logits(role, hidden)
        wanted = torch.log_softmax(logits / 0.7, -1).gather(-1, packed.targets[:, None])[:, 0]
        found = examples.token_columns[name]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


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
def test_sampling_filters_are_off_and_harmless(tmp_path: Path, said: Said) -> None:
    """By default none; with one, log-probabilities stay those of the unfiltered policy, so KL is
    finite, but biased.
    """
    rollout = {"samples_per_prompt": 2, "max_new_tokens": 5}
    for name, value in {"top_p": 0.5, "min_new_tokens": 2, "top_k": 2, "top_": 0}.items():
        filters = {name: value} if value else {}
        with started(tmp_path / name, rollout={**rollout, **filters}) as stage:
            assert ("ratios and KL are of all" in said()) == bool(value)
            examples = measured(stage).rollouts.examples
        told = [x for e in examples.groups for r in e.group.responses for x in r.logprobs or ()]
        found = examples.token_columns["old_logprobs"]
        torch.testing.assert_close(torch.tensor(told), found, atol=1e-4, rtol=0)
    assert (Sampling().top_k, Sampling().top_p) == (0, 1.0)


# 14-17: roles


REWARD_MODEL = {"algorithm": "reward_model", "data": "pairs.jsonl", "batch_size": 4}


@pytest.fixture(scope="module", params=["lora", "whole"])
def reward_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp(request.param)
    write_rows(folder / "pairs.jsonl", pairs(TEXTS, rejected="no, it is bad"))
    stages = {"rm": {**REWARD_MODEL, "learning_rate": 0.01}}
    run = make_run(folder, stages, "none" if request.param == "whole" else None)
    run.execute()
    return run


@pytest.mark.parametrize(
    ("options", "kept"), [({"group_baseline": True}, False), ({}, False), (PLAIN, True)]
)
def test_values_start_at_zero_or_at_the_reward_model(
    stage: RolloutTrainer, reward_model: Run, options: dict[str, Any], kept: bool
) -> None:
    """At zero where scores are centered: the level of a reward model has nothing to do with them."""
    assert not measured(stage).rollouts.examples.token_columns["old_values"].any()
    models, ppo = reward_model.models.of("base"), new(PPO, **options)
    head = models.model.roles[models.role("rm")].head
    context: Any = SimpleNamespace(
        name="align",
        settings=SimpleNamespace(reward=RewardSpec("stage", "rm"), value_from=None),
        models=models,
        model=models.model,
        stage=SimpleNamespace(whole_models=()),
    )
    add_value_role(context, ppo.needs, "base")
    value = models.model.roles["align~value"].head
    models.model.drop_role("align~value")
    assert head is not None and value is not None
    assert torch.equal(value, head if kept else torch.zeros_like(head))
    assert ppo.needs.min_samples == 1 + ppo.options.group_baseline


def test_a_skipped_step_hides_no_other_steps_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An iteration's metrics are means over the steps that were taken, of all of its phases, beside
    how many were not.
    """
    skipped = {"loss": math.nan, "skipped": 1.0}
    each = [{"loss": 1.0}, skipped, {"loss": 3.0}, skipped, {"loss": 5.0}, {"loss": 5.0}]
    steps = iter([*each, skipped, *[{"loss": 8.0}] * 5])
    with started(tmp_path) as stage:
        monkeypatch.setattr(stage.learner, "step", lambda part, factor: next(steps))
        iteration = measured(stage)
        phases = [Phase(iteration.rollouts.kept)] * 2
        monkeypatch.setattr(online, "select", lambda *_: phases)
        stage.learn(iteration)
    assert iteration.metrics["loss"] == pytest.approx((1 + 3 + 5 + 5 + 5 * 8) / 9)
    assert iteration.metrics["skipped"] == 3 and not list(steps)


SHARED = {"ppo": {"kl_coefficient": 0.1, "shared_value": True}}


@pytest.mark.parametrize("lora", [None, "none"])
@pytest.mark.parametrize("options", [{}, {"algorithm": SHARED}], ids=["own", "shared"])
def test_value_gradient_does_not_reach_the_policy(
    tmp_path: Path, lora: Any, options: dict[str, Any]
) -> None:
    with started(tmp_path, lora, **options) as stage:
        move(stage)
        examples = measured(stage).rollouts.examples
        columns = examples.token_columns
        columns["advantages"] = torch.zeros_like(columns["advantages"])
        stage.learner._gradients(examples)
        norms = {"new": 0.0, "value": 0.0}
        for name, parameter in stage.learner.parameters.items():
            assert parameter.grad is not None
            norms[name.split(":")[0].split("~")[1]] += float(parameter.grad.norm())
        assert norms["new"] == 0 and norms["value"] > 1e-3
        assert all(p.grad is None for p in fixed_weights(stage.model, stage.learner).values())
        if lora is None:  # two networks share the memory of a micro-batch
            share = 1 if options else 2
            assert stage.learner.token_budget == stage.model.token_budget // share


def test_a_group_that_is_left_out_takes_its_own_rewards_with_it(
    stage: RolloutTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of three groups goes: the other two keep their rewards."""
    table = scored(stage, sampled(stage, 3)).rollouts
    groups, rewards = table.kept, table.learned.float()
    assert len(set(rewards.tolist())) > 3
    monkeypatch.setattr(stage.algorithm, "keep_group", lambda group: group.id != groups[0].id)
    iteration = measured(stage, table.sampled)
    assert iteration.rollouts.kept == groups[1:] and iteration.metrics["groups_without_signal"] == 1
    assert torch.equal(iteration.rollouts.examples.batch().rewards, rewards[3:])


@pytest.mark.parametrize("lora", [None, "none"])
def test_a_shared_value_is_a_head_on_the_policys_own_states(tmp_path: Path, lora: Any) -> None:
    """The same numbers before and in training, no weights but the head's, and the adapter outlives
    it.
    """
    with started(tmp_path, lora, algorithm=SHARED) as stage:
        policy, value = stage.model, stage.value_role or ""
        head = policy.roles[value].head
        assert head is not None and not bool(head.any())
        names = [name for name in stage.learner.parameters if "~value:" in name]
        assert names == ["align~value:score.weight"]
        move(stage)
        disturb(policy, value, 3.0)  # the tiny model's states are small
        examples = measured(stage).rollouts.examples
        out, given = stage.learner._forward(examples), examples.batch()
        packed = pack(examples.groups)
        states = policy.hidden(stage.role, packed.layout, packed.tokens)[packed.before]
        expected = packed.unpack(states @ head[0] / math.sqrt(policy.hidden_size))
        assert float(expected[given.mask].detach().std()) > 0.01
        for found, wanted in (
            (out.values, expected),
            (given.old_values, expected),
            (out.logprobs, given.old_logprobs),
        ):
            assert found is not None
            torch.testing.assert_close(found[given.mask], wanted[given.mask], rtol=1e-4, atol=1e-5)
        before = copied(policy.parameters_of(stage.role))
        policy.drop_role(value)
        for name, parameter in policy.parameters_of(stage.role).items():
            assert torch.equal(parameter, before.pop(name))
        assert not before
        policy.add_head(value, stage.role)  # for the stage to close


def test_a_shared_value_starts_from_no_reward_model(tmp_path: Path) -> None:
    stages = {"rm": REWARD_MODEL, "align": ppo_stage(algorithm=SHARED, value_from="rm")}
    with pytest.raises(RecipeError, match="ppo does not use 'value_from'"):
        make_run(tmp_path, stages)


# 19-26: the update


def test_advantages_are_whitened_over_all_rollouts(stage: RolloutTrainer) -> None:
    examples = measured(stage).rollouts.examples
    whole = examples.token_columns["advantages"]
    assert float(whole.mean()) == pytest.approx(0, abs=1e-5)
    assert float(whole.std()) == pytest.approx(1, abs=1e-4)
    part = examples.take([0, 1]).token_columns["advantages"]
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
    for start in (0, 3, 6, 9):
        epoch = watched.steps[start : start + 3]
        orders.append([name for step in epoch for name in step["ids"]])
        assert len(orders[-1]) == len(set(orders[-1])) == 5
        assert sum(step["rows"] for step in epoch) == 15
    assert orders[0] != orders[1] and set(orders[0]) == set(orders[1])


def test_micro_batches_do_not_change_the_gradient(
    stage: RolloutTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ragged lengths: means of micro-batch means would differ."""
    move(stage)
    ended_by(stage.stage.models.encoder, range(1, 60))
    examples = measured(stage).rollouts.examples
    assert len({len(response.tokens) for e in examples.groups for response in e.responses}) > 3
    disturb(stage.model, stage.role)  # off policy: ratios differ from 1
    found = []
    for budget in (10, 60, 10_000):
        monkeypatch.setattr(SharedModel, "token_budget", budget)
        metrics = stage.learner._gradients(examples)
        gradients = {name: p.grad for name, p in stage.learner.parameters.items()}
        found.append((copied(gradients), metrics))
    for gradients, metrics in found[1:]:
        for name, moved in gradients.items():
            torch.testing.assert_close(moved, found[0][0][name], atol=1e-6, rtol=1e-5)
        assert metrics == pytest.approx(found[0][1], abs=1e-5)


# 27-31: control


def test_kl_is_a_sum_over_tokens_and_adapts_once(tmp_path: Path) -> None:
    """Once per rollout batch (two are measured), never per step."""
    algorithm = {"ppo": {"kl_coefficient": 0.1, "kl_target": 3.0, "kl_horizon": 100.0}}
    with started(tmp_path, algorithm=algorithm, iterations=1) as stage:
        stage.learner.steps = 1  # not the first step: policy and reference may differ
        disturb(stage.model, stage.role, 0.1)
        iteration = measured(stage)
        columns = iteration.rollouts.examples.token_columns
        gap = columns["old_logprobs"] - columns["reference_logprobs"]
        k1, k3 = float(gap.sum()) / 15, float(((-gap).exp() - 1 + gap).sum()) / 15
        assert iteration.metrics["kl"] == pytest.approx(k3, abs=1e-4) and abs(k1) > 0.05
        adapted, state = F.adaptive_kl(0.1, k1, 3.0, 100.0, 15), stage.algorithm.state
        assert state["kl_coefficient"] == pytest.approx(adapted, rel=1e-5)
        stage.measure(iteration)
        stage.compute_advantages(iteration)
        for _ in range(2):
            stage.learner.step(iteration.rollouts.examples, 1.0)
        twice = F.adaptive_kl(adapted, k1, 3.0, 100.0, 15)
        assert state["kl_coefficient"] == pytest.approx(twice, rel=1e-5)


def test_one_iteration_moves_the_price_of_kl_by_a_fifth_at_most() -> None:
    for kl, options, iterations, factor in (
        (3.0, {}, 10, 1.2**10),  # a run of typical length, far above the target
        (3.0, {"kl_horizon": 30}, 1, 1 + 0.2 * 3 / 30),
        (0.0, {"kl_horizon": 0.5}, 1, 0.8),  # the horizon has few responses: never negative
    ):
        ppo = new(PPO, kl_coefficient=0.05, kl_target=1.0, **options)
        given = rollouts(old_logprobs=torch.full((3, 4), kl), old_values=NOISE, rewards=REWARDS)
        for _ in range(iterations):
            ppo.signal(given)
        assert ppo.state["kl_coefficient"] == pytest.approx(0.05 * factor)


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
    now, then = torch.tensor([[0.25]] * 3 + [[0.75]]).log(), [0.75, 0.75, 0.75, 0.25]
    given = rollouts(
        torch.ones(4, 1) > 0,
        old_logprobs=now,
        reference_logprobs=torch.full((4, 1), 0.5).log(),
        rewards=torch.arange(4.0),
    )
    responses = [Response("a", tokens=(1,), logprobs=(math.log(p),), async_level=1) for p in then]
    ppo = new(PPO, kl_coefficient=1.0, kl_target=0.1, kl_horizon=4)
    ppo.signal(given.replace(groups=[Group((), tuple(responses))]))
    true = math.log(2) + 0.25 * math.log(0.25) + 0.75 * math.log(0.75)
    wanted = F.adaptive_kl(1.0, true, 0.1, 4, 4)
    assert ppo.state["kl_coefficient"] == pytest.approx(wanted, rel=1e-5) and true > 0.1


def test_scores_are_held_on_both_sides() -> None:
    ppo = new(PPO, **{**PLAIN, "lam": 1.0}, score_clip=1.5)
    found = ppo.signal(rollouts(rewards=torch.tensor([-9.0, 0.5, 9.0])))["returns"][:, 0]
    assert found.tolist() == pytest.approx([-1.5, 0.5, 1.5])
    assert ppo.metrics["scores_clipped"] == pytest.approx(2 / 3)


def test_entropy_has_a_gradient_where_it_is_a_bonus() -> None:
    ppo = new(PPO, entropy_coefficient=0.3)
    assert ppo.needs.entropy is True and new(PPO).needs.entropy == "reported"
    given = rollouts(signals={"advantages": NOISE, "returns": NOISE})
    term = ppo.loss(given, Outputs(logprobs=NOISE, values=NOISE, entropy=NOISE.abs()))["entropy"]
    assert torch.equal(term.values, NOISE.abs()) and term.coefficient == -0.3


def test_what_the_values_explain() -> None:
    """Of the returns' variance, over counted tokens: 1 - var(returns - values) / var(returns).
    Without a discount a token's return is its response's score.
    """
    ppo, rewards = new(PPO, **{**PLAIN, "lam": 1.0}), torch.tensor([1.0, 2.0, 4.0])
    for scale, shift, scores, share in (
        (1.0, 0.0, rewards, 1.0),
        (0.0, 7.0, rewards, 0.0),
        (-1.0, 0.0, rewards, -3.0),
        (0.5, 0.0, rewards, 0.75),
        (1.0, 0.0, rewards * 0 + 1, 0.0),  # nothing to explain
    ):
        values = torch.where(MASK, scores[:, None] * scale + shift, 1e6)
        ppo.signal(rollouts(old_values=values, rewards=scores))
        assert ppo.metrics["explained_variance"] == pytest.approx(share, abs=1e-5)
        assert ppo.metrics["return"] == pytest.approx(float(scores @ torch.tensor([4.0, 1, 3])) / 8)
    one = MASK & (torch.arange(12).reshape(3, 4) == 0)
    ppo.signal(rollouts(one, old_values=values, rewards=rewards))
    assert ppo.metrics["explained_variance"] == 0.0


def test_a_mismatch_is_seen(stage: RolloutTrainer) -> None:
    """A reference that is not where the policy starts stops the run; another sampler shows as
    `engine_mismatch`.
    """
    iteration = measured(stage)
    assert iteration.metrics["engine_mismatch"] < 1e-4
    stage.learner.temperature = 1.4
    stage.measure(iteration)
    assert iteration.metrics["engine_mismatch"] > 0.05
    disturb(stage.model, stage.role, 0.1)
    with pytest.raises(RunFailed, match="KL"):
        stage.measure(iteration)


def test_adam_settings(stage: RolloutTrainer) -> None:
    (group,) = stage.learner.optimizer.param_groups
    assert (group["eps"], group["weight_decay"], group["betas"]) == (1e-5, 0, (0.9, 0.999))
    assert len(group["params"]) == len(stage.learner.parameters)


def test_learning_rate_falls_per_iteration(watched: Watched) -> None:
    """Linear to 0 over iterations: 1, then 1/2, the same for all steps of an iteration."""
    assert [step["factor"] for step in watched.steps] == [1.0] * 6 + [0.5] * 6
    rates = [step["metrics"]["learning_rate"] for step in watched.steps]
    assert rates == pytest.approx([1e-3] * 6 + [5e-4] * 6)
    assert [schedule(Settings(), 1e-3, i, 4) for i in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_each_roles_gradient_is_clipped_after_accumulation(
    stage: RolloutTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settings, "max_grad_norm", 0.01)
    monkeypatch.setattr(SharedModel, "token_budget", 60)  # several micro-batches
    disturb(stage.model, stage.value_role or "", 0.1)
    metrics = stage.learner.step(measured(stage).rollouts.examples, 1.0)
    assert metrics["grad_norm"] > 0.02 and metrics["value_grad_norm"] > 0.02
    for role in (stage.role, stage.value_role):
        own = [
            p.grad for name, p in stage.learner.parameters.items() if name.startswith(f"{role}:")
        ]
        assert float(torch.nn.utils.get_total_norm(own)) == pytest.approx(0.01, rel=1e-3)


# 32-40: the rest


def test_kl_is_zero_at_first_and_then_not(watched: Watched) -> None:
    """The reference is the SFT policy, not the base."""
    assert abs(watched.metrics[0]["kl"]) < 1e-6 < 1e-3 < abs(watched.metrics[1]["kl"])
    assert {row["state/score_level"] for row in watched.metrics} == {watched.metrics[0]["reward"]}
    models, group = watched.run.models.of("base"), prompts(1, Response(text="bread is good"))
    sft, base = models["sft"].logprobs(group)[0], models[UNMODIFIED].logprobs(group)[0]
    assert float((sft - base).abs().max()) > 0.01


def test_long_prompts_are_left_out(tmp_path: Path) -> None:
    encoder = Encoder(_tokenizer())
    lengths = {group.prompt[0]["content"]: len(encoder.prompt(group.prompt)) for group in prompts()}
    limit = sorted(lengths.values())[4] + 7
    fitting = {text for text, n in lengths.items() if n + 7 <= limit}
    with started(tmp_path, max_length=limit) as stage:
        kept = stage.prompts.prompts
        assert {group.prompt[0]["content"] for group in kept} == fitting
        assert 0 < stage.summary["encoding"]["no_room"] == 8 - len(kept) < 8


def test_a_response_of_one_end_token(stage: RolloutTrainer) -> None:
    """The end of turn as first token: one token, an empty text, and a batch of such rows is
    finite.
    """
    ended_by(stage.stage.models.encoder, range(stage.model.model.config.vocab_size))
    groups = sampled(stage)
    for response in (response for group in groups for response in group.responses):
        assert (response.text, len(response.tokens or ()), response.truncated) == ("", 1, False)
    examples = measured(stage, groups).rollouts.examples
    assert examples.token_columns["advantages"].isfinite().all()
    metrics = stage.learner.step(examples, 1.0)
    assert math.isfinite(metrics["loss"]) and "skipped" not in metrics
    for mask in (torch.ones(1, 1) > 0, torch.zeros(2, 3) > 0):
        signal = new(PPO).signal(rollouts(mask, rewards=torch.ones(len(mask))))
        assert bool(signal["advantages"].isfinite().all())


def test_ptx_is_a_token_mean_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mix = {"data": "demos.jsonl", "objective": "sft", "weight": 3.0, "batch_size": 3}
    with started(tmp_path, mix=mix) as stage:
        learner, examples = stage.learner, measured(stage).rollouts.examples
        monkeypatch.setattr(SharedModel, "token_budget", 60)
        own, learner.auxiliary = learner.auxiliary, None
        assert own is not None
        learner._gradients(examples)
        ppo = copied({name: p.grad for name, p in learner.parameters.items()})
        learner.optimizer.zero_grad()
        packed = pack(own.batch(0))
        hidden = stage.model.hidden(stage.role, packed.layout, packed.tokens)
        nll = -stage.model.logprobs(stage.role, hidden[packed.before], packed.targets)[0].mean()
        nll.backward()
        ptx = copied({name: p.grad for name, p in learner.parameters.items() if p.grad is not None})
        assert any(float(moved.abs().max()) > 1e-4 for moved in ptx.values())
        learner.auxiliary = own
        assert learner._gradients(examples)["mix/nll"] == pytest.approx(nll.item(), abs=1e-5)
        for name, parameter in learner.parameters.items():
            wanted = ppo[name] + 3 * ptx[name] if name in ptx else ppo[name]
            torch.testing.assert_close(parameter.grad, wanted, atol=1e-5, rtol=1e-4)


def test_random_streams_differ_by_place(stage: RolloutTrainer) -> None:
    """Siblings, prompts of one text, iterations and stages never share draws; the same place gives
    the same.
    """
    sampling, encoder = Sampling(max_new_tokens=7), stage.stage.models.encoder

    def texts(*path: Any) -> list[Any]:
        found = sample(
            stage.model,
            UNMODIFIED,
            encoder,
            prompts(1) * 2,
            sampling,
            samples_per_prompt=3,
            seed=0,
            path=path,
        )
        return [response.tokens for group in found for response in group.responses]

    first = texts("align", "rollout", 1)
    assert len(set(first)) == 6 and texts("align", "rollout", 1) == first
    assert not set(first) & set(texts("align", "rollout", 2))
    assert not set(first) & set(texts("other", "rollout", 1))

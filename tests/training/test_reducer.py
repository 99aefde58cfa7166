"""Several processes learn what one process would: the same losses, signals, selections and
weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from processes import UNEVEN, recorded_step, run, steps_of
from safetensors.torch import load
from watched import prompts, texts

from alignkit import Algorithm, Loss, Outputs, Response, Source, per_response, per_token
from alignkit import functional as F
from alignkit.contract.algorithm import ExternalTrainer
from alignkit.contract.batch import Batch
from alignkit.data.group import Group, responses_of
from alignkit.host.plugins import plugins
from alignkit.training.collectives import ONE_PROCESS, Collectives
from alignkit.training.learner import Learner
from tests.rows import demos, user, write_rows
from tests.sampled import assert_same_tokens, noting

pytestmark = pytest.mark.usefixtures("one_thread")

# Relative: files of metrics have six digits, and a rounding error may change the last
WRITTEN = 2e-5
NORM = 2e-5  # relative: before clipping, gradients of thousands of fp32 numbers may be large
SCORES = """
def reward(completions):
    return [sum(c.encode()) % 101 / 50 - 1 for c in completions]

def safe(completions):
    return [sum(c.encode()) % 7 / 7 for c in completions]

def coarse(completions):
    return [float(sum(c.encode()) % 5 == 0) for c in completions]

def other(completions):
    return [None if sum(c.encode()) % 5 == 0 else len(c) % 7 / 7 for c in completions]
"""
# Adam divides by the size of the gradient: at its usual epsilon, a rounding error would be as large
# a step as any.
STEPS = yaml.safe_load("""
epochs: 1
learning_rate: 0.1
optimizer: {adamw: {eps: 1.0}}
lr_scheduler_type: constant
batch_size: 4
""")
ONLINE = STEPS | yaml.safe_load("""
prompts: prompts.jsonl
reward: {python: {path: scores.py, function: reward}}
rollout: {samples_per_prompt: 4, max_new_tokens: 6}
iterations: 2
prompts_per_iteration: 6
""")
# By algorithm; others learn pairs or demonstrations
DATA = {"lm": "text", "kto": "labels", "hir_offline": "labels"}
DATA |= {"reward_ordinal": "rated", "reward_regression": "rated"}
# What else some algorithms need. Where the policy is the reference, every margin is rounding, and
# the accuracy asks for its sign.
MORE = yaml.safe_load("""
dpo: &moved {from: sft, reference: base}
online_dpo: *moved
distillation: {algorithm: {distillation: {context: [{role: user, content: my old friend}]}}}
""")
# What alignkit itself trains
REGISTERED = [
    each.name
    for each in plugins().registrations("algorithm")
    if not issubclass(each.implementation, ExternalTrainer)
]


@pytest.fixture(autouse=True)
def recipe_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data of every kind, in rows of different lengths."""
    monkeypatch.setattr(Learner, "step", recorded_step)
    (tmp_path / "scores.py").write_text(SCORES, encoding="utf-8")
    words = texts(prompts(12))
    files: dict[str, list[Any]] = {
        "prompts": prompts(12),
        "demos": demos(words),
        "text": [{"text": text} for text in words],
        "pairs": [],
        "labels": [],
        "rated": [],
    }
    for n, text in enumerate(words):
        answers = (text[::-1], "no, it is bad", "good bread")
        # A comparison, or a ranking of three.
        ranked = [Response(answer, rank=k) for k, answer in enumerate(answers[: 2 + n % 2])]
        labeled = [Response(answer, label=k == n % 2) for k, answer in enumerate(answers[:2])]
        files["pairs"].append(Group((user(text),), tuple(ranked)))
        files["labels"].append(Group((user(text),), tuple(labeled)))
        rated = [Response(a, scores={"reward": 1.0 + (n + k) % 3}) for k, a in enumerate(answers)]
        files["rated"].append(Group((user(text),), tuple(rated)))
    for name, rows in files.items():
        write_rows(tmp_path / f"{name}.jsonl", rows)
    return tmp_path


def stage(algorithm: Any, **keys: Any) -> dict[str, Any]:
    """A stage that suits an algorithm."""
    ((name, options),) = (
        {algorithm: {}}.items() if isinstance(algorithm, str) else algorithm.items()
    )
    kind = plugins().get("algorithm", name).implementation
    if kind.source is Source.ROLLOUTS:
        return {**ONLINE, "algorithm": algorithm, **keys}
    data = DATA.get(name, "pairs" if kind(kind.Options(**options)).needs.pairs else "demos")
    steps = {**STEPS, "max_steps": 4, "data": f"{data}.jsonl"}
    return {**steps, "algorithm": algorithm, **keys}


def check(
    folder: Path, align: dict[str, Any], kind: type[Algorithm] | None = None, **before: Any
) -> list[dict[str, Any]]:
    """One process and three of uneven shares learn the same, up to a token that rounding decides
    otherwise; returns the steps of the one.
    """
    if align.get("from") == "sft":
        before = {"sft": stage("sft")}
    recipe = {**before, "align": align}
    with noting():
        (one,) = run(folder, recipe, algorithm=kind)
    several = run(folder, recipe, UNEVEN, algorithm=kind)
    assert len({ran.weights for ran in several}) == 1, "the processes have different weights"
    for ran in several:
        same = True
        for each, other in zip(ran.rollouts(), one.rollouts(), strict=True):
            found, wanted = responses_of(each), responses_of(other)
            starts = assert_same_tokens(found, wanted)
            same = starts == [len(response.tokens or ()) for response in wanted]
            if not same:
                break
            for response, expected in zip(found, wanted, strict=True):
                assert_alike(response.scores, expected.scores)
        if not same:
            continue
        assert_alike(steps_of(ran), steps_of(one))
        assert_alike(ran.metrics, one.metrics, WRITTEN)
        assert_alike(ran.summary, one.summary, WRITTEN)
        assert_alike(load(ran.weights), load(one.weights))
    return steps_of(one)


def assert_alike(found: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """The same structure, with numbers that differ by rounding errors only."""
    if isinstance(expected, Mapping):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_alike(found[key], value, NORM if str(key).endswith("grad_norm") else tolerance)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, atol=5e-6, rtol=1e-6, equal_nan=True)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other, tolerance)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=tolerance, abs=5e-6, nan_ok=True)
    else:
        assert found == expected


# The collectives


class Third(Collectives):
    """The second of three processes."""

    process, processes = 1, 3


def test_shares_have_nearly_equal_sizes() -> None:
    assert ONE_PROCESS.partition([3, 1]) == [[0, 1]]
    assert Third().partition([1] * 7) == [[0, 3, 6], [1, 4], [2, 5]]
    assert Third().partition([1, 1, 1, 8, 1]) == [[3], [0, 2], [1, 4]]
    assert Third().partition([4]) == [[0], [], []]


# Runs

# With FEATURES and the algorithms below, one of each kind of data and of signal; `make slow` has the
# others.
OFTEN = ("online_dpo",)


@pytest.mark.parametrize(
    "name",
    [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in REGISTERED],
)
def test_every_algorithm_learns_the_same_on_several_processes(
    recipe_folder: Path, name: str
) -> None:
    steps = check(recipe_folder, stage(**{"algorithm": name, **MORE.get(name, {})}))
    assert len(steps) > 1 and any(bool(x.any()) for x in steps[0]["gradients"].values())


FEATURES = yaml.safe_load("""
adaptive_kl:
  algorithm: {ppo: {kl_target: 0.01, kl_horizon: 100}}
  iterations: 3
  mix: {data: demos.jsonl, objective: sft, weight: 0.5, batch_size: 3}
whitened_rewards:
  algorithm: {rloo: {whiten_rewards: true}}
  reward:
    llama2:
      helpful: {python: {path: scores.py, function: reward}}
      safety: {python: {path: scores.py, function: safe}}
missing_scores:
  algorithm: grpo
  rollout: {samples_per_prompt: 4, max_new_tokens: 6, filters: [spread]}
  reward: {python: {path: scores.py, function: other}}
filled:
  algorithm: grpo
  reward: {python: {path: scores.py, function: coarse}}
  rollout: {samples_per_prompt: 4, max_new_tokens: 6, filters: [spread], max_num_gen_batches: 4}
replayed: {algorithm: {rejection_sampling: {replay_ratio: 1.0}}, iterations: 3}
penalized:
  algorithm: grpo
  rollout: {samples_per_prompt: 4, max_new_tokens: 6, missing_eos_penalty: 0.5}
reference_point: {algorithm: kto, validation: labels.jsonl, epochs: 2, max_steps: null}
best_version:
  algorithm: {dpo: {nll_coefficient: 0.1}}
  validation: pairs.jsonl
  epochs: 2
  max_steps: null
  from: sft
  reference: base
rankings: {algorithm: reward_model, validation: pairs.jsonl}
judged: {algorithm: rloo, reward: {rlaif: {judge: {local_judge: {role: base, min_mass: 0}}}}}
""")
TOLD = ("whitened_rewards", "missing_scores")


@pytest.mark.silent_bug(
    "metrics: averages",
    "Means of several processes are averaged although they are over unequal numbers of tokens.",
    "Sums and counts are added over processes.",
    "huggingface/trl#6380",
)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in TOLD else [pytest.mark.slow]) for name in FEATURES],
)
def test_numbers_over_the_batch_are_over_all_processes(recipe_folder: Path, name: str) -> None:
    check(recipe_folder, stage(**FEATURES[name]))


def test_a_reward_model_scores_and_starts_the_values_on_several_processes(
    recipe_folder: Path,
) -> None:
    align = stage("ppo", reward="rm", iterations=1)
    check(recipe_folder, align, rm=stage("reward_model", max_steps=1))


class Diverging(Algorithm):
    """The loss of one demonstration is infinite in the second step, and its gradient is not."""

    def before_step(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        return {"step": self.state.get("step", 0) + 1}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        first = torch.tensor([group.prompt == FIRST for group in batch.groups])[batch.group_index]
        infinite = math.inf if self.state["step"] == 2 else 0.0
        extra = torch.where(first, infinite, 0.0) + 0 * F.sum_tokens(out.logprobs, batch.mask)
        return Loss(nll=per_token(-out.logprobs), extra=per_response(extra))


FIRST = prompts(1)[0].prompt


def test_a_step_that_one_process_must_skip_is_skipped_by_all(recipe_folder: Path) -> None:
    align = stage("sft", batch_size=12, epochs=3, max_steps=3)
    steps = check(recipe_folder, align, Diverging)
    assert ["skipped" in step["metrics"] for step in steps] == [False, True, False]


class Whole(Algorithm):
    """Weighs a demonstration by numbers of the whole batch, which depend on the order of its
    responses.
    """

    def before_step(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        places = torch.arange(len(batch.mask), dtype=torch.float32)
        return {"weight": float(F.sum_tokens(out.logprobs, batch.mask) @ places / batch.mask.sum())}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        sums = F.sum_tokens(out.logprobs, batch.mask)
        return Loss(nll=per_response(sums * self.state["weight"] / 100))


def test_statistics_before_a_step_see_the_whole_batch_in_its_order(recipe_folder: Path) -> None:
    check(recipe_folder, stage("sft"), Whole)

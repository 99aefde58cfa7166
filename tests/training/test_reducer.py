"""Several processes learn what one process would: the same losses, signals, selections and
weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from processes import UNEVEN, Ran, recorded_step, run
from safetensors.torch import load
from watched import prompts

from alignkit import Algorithm, Loss, Outputs, Response, Source, per_response, per_token
from alignkit import functional as F
from alignkit.algorithm import ExternalTrainer
from alignkit.batch import Batch
from alignkit.data.group import Group
from alignkit.plugins import plugins
from alignkit.training.collectives import ONE_PROCESS, Collectives
from alignkit.training.learner import Learner
from tests.rows import write_rows

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
PYTHON, COARSE, SOME_MISSING, SAFE = (
    {"python": {"path": "scores.py", "function": function}}
    for function in ("reward", "coarse", "other", "safe")
)
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
prompts: {path: prompts.jsonl}
reward: {python: {path: scores.py, function: reward}}
rollout: {samples_per_prompt: 4, max_new_tokens: 6}
iterations: 2
prompts_per_iteration: 6
""")
# By algorithm; others learn pairs or demonstrations
DATA = {"lm": "text", "kto": "labels", "hir_offline": "labels"}
# Where the policy is the reference, every margin is rounding, and the accuracy asks for its sign.
MOVED = {"from": "sft", "reference": "base"}
KEYS = {"dpo": MOVED, "online_dpo": MOVED}
# Others need none
OPTIONS = {"distillation": {"context": [{"role": "user", "content": "my old friend"}]}}
SAID = (
    "good bread",
    "no, it is bad",
    "the people in this house",
    "tell me",
    "my old friend",
    "some bread today",
)


def registered() -> list[str]:
    """The algorithms that alignkit itself trains."""
    registry = plugins()
    kinds = {
        name: registry.get("algorithm", name).implementation for name in registry.names("algorithm")
    }
    return [name for name, kind in kinds.items() if not issubclass(kind, ExternalTrainer)]


@pytest.fixture(autouse=True)
def recipe_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data of every kind, in rows of different lengths."""
    monkeypatch.setattr(Learner, "step", recorded_step)
    (tmp_path / "scores.py").write_text(SCORES, encoding="utf-8")
    asked = prompts(12)
    files: dict[str, list[Group]] = {"demos": [], "text": [], "pairs": [], "labels": []}
    for n, group in enumerate(asked):
        said = [SAID[(n + k) % 6] for k in range(3)]
        scored = Response(said[0], scores={"reward": float(1 + n % 3)})
        # A comparison, or a ranking of three.
        ranked = tuple(Response(said[k], rank=float(k)) for k in range(2 + n % 2))
        labeled = tuple(Response(said[k], label=k == n % 2) for k in range(2))
        text = Response(f"{SAID[n % 6]} {SAID[n % 5]}")
        files["demos"].append(replace(group, responses=(scored,)))
        files["pairs"].append(replace(group, responses=ranked))
        files["labels"].append(replace(group, responses=labeled))
        files["text"].append(Group((), (text,)))
    for name, groups in {"prompts": asked, **files}.items():
        write_rows(tmp_path / f"{name}.jsonl", groups)
    return tmp_path


def stage(name: str, options: Mapping[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    """A stage that suits an algorithm."""
    kind = plugins().get("algorithm", name).implementation
    algorithm = {name: dict(options)} if options else name
    if kind.source is Source.ROLLOUTS:
        return {**ONLINE, "algorithm": algorithm, **keys}
    default = "pairs" if kind(kind.Options(**(options or {}))).needs.pairs else "demos"
    data = {"path": f"{DATA.get(name, default)}.jsonl"}
    return {**STEPS, "max_steps": 4, "algorithm": algorithm, "data": data, **keys}


def recipe(align: Mapping[str, Any], **before: Any) -> dict[str, Any]:
    """The stages of a recipe."""
    if align.get("from") == "sft":
        before = {"sft": stage("sft")}
    return {**before, "align": dict(align)}


def check(folder: Path, recipe: dict[str, Any], algorithm: type[Algorithm] | None = None) -> Ran:
    """One process and three of uneven shares learn the same; returns what the one has left."""
    (one,) = run(folder, recipe, algorithm=algorithm)
    several = run(folder, recipe, UNEVEN, algorithm=algorithm)
    assert len({ran.weights for ran in several}) == 1, "the processes have different weights"
    for ran in several:
        assert len(ran.steps) == len(one.steps)
        for step, expected in zip(ran.steps, one.steps, strict=True):
            assert step.rows == expected.rows, "other responses are learned"
            assert_alike(step.signals, expected.signals)
            assert_alike(step.metrics, expected.metrics)
            assert_alike(step.gradients, expected.gradients)
        assert_alike(ran.rollouts, one.rollouts)
        assert_alike(ran.metrics, one.metrics, WRITTEN)
        assert_alike(ran.summary, one.summary, WRITTEN)
        assert_alike(load(ran.weights), load(one.weights))
    return one


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
    assert Third().partition([4]) == [[0], [], []] and Third().partition([]) == [[], [], []]


# Runs

# With FEATURES, one of each kind of data and of signal; `make slow` has the others.
OFTEN = ("sft", "reinforce_pp", "online_dpo")


@pytest.mark.parametrize(
    "name",
    [
        name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow)
        for name in registered()
    ],
)
def test_every_algorithm_learns_the_same_on_several_processes(
    recipe_folder: Path, name: str
) -> None:
    one = check(recipe_folder, recipe(stage(name, OPTIONS.get(name), **KEYS.get(name, {}))))
    assert len(one.steps) > 1 and any(bool(x.any()) for x in one.steps[0].gradients.values())


MIX = {"data": {"path": "demos.jsonl"}, "objective": "sft", "weight": 0.5, "batch_size": 3}
LLAMA2 = {"llama2": {"helpful": PYTHON, "safety": SAFE}}
FEATURES = {
    "adaptive_kl": stage("ppo", {"kl_target": 0.01, "kl_horizon": 100}, iterations=3, mix=MIX),
    "whitened_rewards": stage("rloo", reward=LLAMA2),
    "missing_scores": stage("grpo", {"dynamic_sampling": True}, reward=SOME_MISSING),
    "filled": stage(
        "grpo",
        {"dynamic_sampling": True},
        reward=COARSE,
        rollout={**ONLINE["rollout"], "max_num_gen_batches": 4},
    ),
    "replayed": stage("rejection_sampling", {"replay_ratio": 1.0}, iterations=3),
    "penalized": stage("grpo", rollout={**ONLINE["rollout"], "missing_eos_penalty": 0.5}),
    "reference_point": stage("kto", validation={"path": "labels.jsonl"}, epochs=2, max_steps=None),
    "best_version": stage(
        "dpo",
        {"nll_coefficient": 0.1},
        validation={"path": "pairs.jsonl"},
        epochs=2,
        max_steps=None,
        **MOVED,
    ),
    "rankings": stage("reward_model", validation={"path": "pairs.jsonl"}),
}
TOLD = ("adaptive_kl", "whitened_rewards", "missing_scores")


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
    check(recipe_folder, recipe(FEATURES[name]))


def test_a_reward_model_scores_and_starts_the_values_on_several_processes(
    recipe_folder: Path,
) -> None:
    check(
        recipe_folder,
        recipe(stage("ppo", reward="rm", iterations=1), rm=stage("reward_model", max_steps=1)),
    )


class Diverging(Algorithm):
    """The loss of one demonstration is infinite in the second step, and its gradient is not."""

    def before_step(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        return {"step": self.state.get("step", 0) + 1}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        first = torch.tensor([group.prompt[0]["content"] == FIRST for group in batch.groups])[
            batch.group_index
        ]
        infinite = math.inf if self.state["step"] == 2 else 0.0
        extra = torch.where(first, infinite, 0.0)
        return Loss(
            nll=per_token(-out.logprobs),
            extra=per_response(extra + 0 * F.sum_tokens(out.logprobs, batch.mask)),
        )


FIRST = prompts(12)[0].prompt[0]["content"]


def test_a_step_that_one_process_must_skip_is_skipped_by_all(recipe_folder: Path) -> None:
    one = check(
        recipe_folder, recipe(stage("sft", batch_size=12, epochs=3, max_steps=3)), Diverging
    )
    assert ["skipped" in step.metrics for step in one.steps] == [False, True, False]


class Whole(Algorithm):
    """Weighs a demonstration by numbers of the whole batch, which depend on the order of its
    responses.
    """

    def before_step(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        places = torch.arange(len(batch.mask), dtype=torch.float32)
        return {"weight": float(F.sum_tokens(out.logprobs, batch.mask) @ places / batch.mask.sum())}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(
            nll=per_response(F.sum_tokens(out.logprobs, batch.mask) * self.state["weight"] / 100)
        )


def test_statistics_before_a_step_see_the_whole_batch_in_its_order(recipe_folder: Path) -> None:
    check(recipe_folder, recipe(stage("sft")), Whole)

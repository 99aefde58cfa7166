"""Training ends where the theory says: on answers few enough to enumerate, whole recipes against
closed forms.

KL-regularised reward has one optimum, pi_ref exp(r / beta) / Z, for PPO as for DPO (Rafailov et al.
2023, eq. 4); rejection sampling learns best-of-K's own distribution. A wrong sign, a mask off by
one, a temperature or KL term in the wrong place ends elsewhere. Distributions come from the saved
model by its own forward, over the whole vocabulary.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from alignkit import Group, Pair, Response
from alignkit import functional as F
from alignkit.data.group import write_groups
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import run_recipe

PAD, END, QUESTION = "<pad>", "<end>", "<q>"
WITHIN = 0.02  # total variation
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] + ('<end>' if m['role'] == 'assistant' else '<q>') "
    "}}{% endfor %}"
)


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Problem:
    """Answers of `length` letters, known rewards in [-scale, scale], and a random base model that
    writes such answers.

    The rewards are no sums over letters, so every context matters.
    """

    letters: str
    length: int
    folder: Path

    @cached_property
    def answers(self) -> list[str]:
        return [" ".join(letters) for letters in product(self.letters, repeat=self.length)]

    def ids(self, answer: str) -> tuple[int, ...]:
        return tuple(3 + self.letters.index(letter) for letter in answer.split())

    @cached_property
    def rewards(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.length)
        return torch.rand(len(self.answers), generator=generator, dtype=torch.float64) * 2 - 1

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @cached_property
    def reference(self) -> Tensor:
        return self.distribution(self.base)

    def distribution(self, folder: Path) -> Tensor:
        """P(answer) of every answer by a model folder, float64 [answers]."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        rows = torch.tensor([(2, *self.ids(answer)) for answer in self.answers])
        with torch.no_grad():
            logprobs = F.token_logprobs(model(input_ids=rows).logits[:, :-1], rows[:, 1:])
        found = logprobs.sum(-1).exp()
        assert abs(float(found.sum()) - 1) < 1e-6
        return found

    def optimum(self, beta: float) -> Tensor:
        return torch.softmax(self.reference.log() + self.rewards / beta, -1)


def make(folder: Path, letters: str, length: int) -> Problem:
    """A random one-layer model with a word-level tokenizer whose every prompt is the one token
    <q>.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

    problem = Problem(letters, length, folder)
    vocabulary = {token: index for index, token in enumerate([PAD, END, QUESTION, *letters])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    # The users' words: other prompts, equal tokens
    words.normalizer = normalizers.Replace(Regex("[0-9?]+"), "")
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[QUESTION],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(problem.base)
    config = PhiConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = PhiForCausalLM(config).float()
    with torch.no_grad():
        # Answers are of letters alone: nothing else has a probability that counts
        model.lm_head.bias[:3] = -30.0
    model.save_pretrained(problem.base)
    return problem


# One letter, and three: tokens before and after another, values and KL that add up over them.
@pytest.fixture
def one(tmp_path: Path) -> Problem:
    return make(tmp_path, "abcdef", 1)


@pytest.fixture
def three(tmp_path: Path) -> Problem:
    return make(tmp_path, "abc", 3)


@pytest.fixture
def problem(request: pytest.FixtureRequest) -> Problem:
    found: Problem = request.getfixturevalue(request.param)
    return found


def total_variation(p: Tensor, q: Tensor) -> float:
    return float((p - q).abs().sum() / 2)


def train(problem: Problem, **stages: Mapping[str, Any]) -> Tensor:
    """Run a recipe of these stages; gives the last one's distribution."""
    recipe = {
        "name": "optimum",
        "model": {"base": str(problem.base), "dtype": "float32", "lora": "none"},
        "stages": {name: {"checkpoint_every": 10_000, **stage} for name, stage in stages.items()},
    }
    path = problem.folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(json.loads(json.dumps(recipe)), sort_keys=False), encoding="utf-8"
    )
    run_recipe(load_recipe(path), problem.folder / "run")
    return problem.distribution(problem.folder / "run" / list(stages)[-1] / "adapter")


def check(found: Tensor, wanted: Tensor, reference: Tensor) -> None:
    assert total_variation(reference, wanted) > 0.1  # there was something to learn
    distance = total_variation(found, wanted)
    print(f"total variation {total_variation(reference, wanted):.3f} before, {distance:.4f} after")
    assert distance < WITHIN


def write_reward(problem: Problem) -> dict[str, Any]:
    table = dict(zip(problem.answers, problem.rewards.tolist(), strict=True))
    code = (
        f"TABLE = {table!r}\n"
        "\n"
        "def reward(completions):\n"
        "    return [TABLE[text] for text in completions]\n"
    )
    (problem.folder / "reward.py").write_text(code, encoding="utf-8")
    return {"python": {"path": "reward.py", "function": "reward"}}


def write_prompts(problem: Problem, count: int) -> dict[str, Any]:
    """Prompts that differ in words but not in tokens: the tokenizer drops what the user says."""
    groups = [Group(({"role": "user", "content": str(i)},), id=str(i)) for i in range(count)]
    write_groups(problem.folder / "prompts.jsonl", groups)
    return {"path": "prompts.jsonl"}


def rollout(problem: Problem, samples: int) -> dict[str, Any]:
    return {
        "samples_per_prompt": samples,
        "min_new_tokens": problem.length,
        "max_new_tokens": problem.length,
    }


# The optimum has no noise: with the whole return (lambda 1) every advantage is 0 there, so a
# falling learning rate ends on it and not near it. Without the KL term in the right place
# advantages would be of another size.
@pytest.mark.parametrize(
    ("problem", "beta", "iterations", "epochs"),
    [pytest.param("one", 0.25, 40, 4, marks=pytest.mark.slow), ("three", 0.5, 80, 3)],
    indirect=["problem"],
)
def test_ppo_reaches_the_optimum(
    problem: Problem, beta: float, iterations: int, epochs: int
) -> None:
    options = {
        "kl_coefficient": beta,
        "lam": 1.0,
        "whiten_advantages": False,
        "value_clip_range": None,
        "value_coefficient": 1.0,
    }
    stage = {
        "algorithm": {"ppo": options},
        "prompts": write_prompts(problem, 2),
        "reward": write_reward(problem),
        "rollout": rollout(problem, 128),
        "iterations": iterations,
        "prompts_per_iteration": 2,
        "batch_size": 2,
        "epochs": epochs,
        "learning_rate": 5e-3,
        # A short memory suits advantages that vanish.
        "optimizer": {"adamw": {"betas": [0.5, 0.9], "max_grad_norm": 10.0}},
    }
    check(train(problem, trained=stage), problem.optimum(beta), problem.reference)


# With one letter P(answer) at a temperature is P ** (1 / temperature), normalized.
@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "rejection_sampling"])
def test_a_policy_is_learned_at_the_temperature_it_samples_at(one: Problem, algorithm: str) -> None:
    def cooled(p: Tensor) -> Tensor:
        return torch.softmax(p.log() / 0.6, -1)

    reference = cooled(one.reference)
    stage = {
        "prompts": None,
        "reward": write_reward(one),
        "rollout": {**rollout(one, 4), "temperature": 0.6},
    }
    if algorithm == "ppo":
        options = {
            "kl_coefficient": 0.25,
            "lam": 1.0,
            "whiten_advantages": False,
            "value_clip_range": None,
            "value_coefficient": 1.0,
        }
        stage |= {
            "algorithm": {"ppo": options},
            "iterations": 40,
            "prompts_per_iteration": 64,
            "batch_size": 64,
        }
        stage |= {"epochs": 4, "learning_rate": 5e-3, "optimizer": {"adamw": {"betas": [0.5, 0.9]}}}
        wanted = torch.softmax(reference.log() + one.rewards / 0.25, -1)
    else:
        stage |= {
            "algorithm": algorithm,
            "iterations": 1,
            "prompts_per_iteration": 3000,
            "batch_size": 500,
        }
        stage |= {"epochs": 20, "learning_rate": 5e-3}
        wanted = F.best_of_n_distribution(reference, one.rewards, 4)
    stage["prompts"] = write_prompts(one, stage["prompts_per_iteration"])
    check(cooled(train(one, trained=stage)), wanted, reference)


def soft_pairs(problem: Problem, generator: random.Random) -> list[Pair]:
    """Pairs of all answers with the exact probability that the first is preferred
    (Bradley-Terry).
    """
    r = problem.rewards
    every = list(combinations(range(len(r)), 2))
    return [
        Pair(i, j, p=float(torch.sigmoid(r[i] - r[j])))
        for i, j in generator.sample(every, min(80, len(every)))
    ]


def sampled_pairs(problem: Problem, generator: random.Random) -> list[Pair]:
    """As a person would label them: one answer wins, by chance."""
    return [
        Pair(pair.better, pair.worse)
        if generator.random() < pair.p
        else Pair(pair.worse, pair.better)
        for pair in soft_pairs(problem, generator) * 20
    ]


@pytest.mark.parametrize(
    ("problem", "pairs"),
    [
        ("three", soft_pairs),
        pytest.param("one", soft_pairs, marks=pytest.mark.slow),
        pytest.param("one", sampled_pairs, marks=pytest.mark.slow),
    ],
    indirect=["problem"],
)
def test_dpo_reaches_the_optimum(
    problem: Problem, pairs: Callable[[Problem, random.Random], list[Pair]]
) -> None:
    beta = 0.5
    generator = random.Random(0)
    responses = tuple(
        Response(text=a, tokens=problem.ids(a), truncated=True) for a in problem.answers
    )
    prompt = ({"role": "user", "content": "?"},)
    groups = [
        Group(prompt, responses, tuple(pairs(problem, generator)), id=str(i)) for i in range(200)
    ]
    write_groups(problem.folder / "pairs.jsonl", groups)
    stage = {
        "algorithm": {"dpo": {"beta": beta}},
        "data": {"path": "pairs.jsonl"},
        "batch_size": 1,
        "epochs": 2,
        "learning_rate": 5e-3,
    }
    check(train(problem, trained=stage), problem.optimum(beta), problem.reference)


# What is learned here is an empirical distribution: thousands of samples, and fewer answers than
# there. The second stage learns the samples of the first again at a lower rate, which `replay_from`
# is for; its own two hardly count.
@pytest.mark.parametrize(
    ("letters", "length", "k", "prompts"),
    [("abcdef", 1, 4, 6000), ("ab", 3, 2, 8000)],
)
@pytest.mark.slow
def test_rejection_sampling_learns_best_of_k(
    tmp_path: Path, letters: str, length: int, k: int, prompts: int
) -> None:
    problem = make(tmp_path, letters, length)
    first = {
        "algorithm": "rejection_sampling",
        "prompts": write_prompts(problem, prompts),
        "reward": write_reward(problem),
        "rollout": rollout(problem, k),
        "iterations": 1,
        "prompts_per_iteration": prompts,
        "batch_size": 500,
        "epochs": 8,
        "learning_rate": 3e-3,
    }
    again = {
        **first,
        "algorithm": {"rejection_sampling": {"replay_ratio": prompts}},
        "from": "first",
        "replay_from": ["first"],
        "prompts_per_iteration": 2,
        # Large, so that the last steps' noise is small beside that of the samples
        "batch_size": prompts // 2,
        "epochs": 20,
        "learning_rate": 1e-3,
    }
    wanted = F.best_of_n_distribution(problem.reference, problem.rewards, k)
    check(train(problem, first=first, again=again), wanted, problem.reference)

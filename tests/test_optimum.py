"""Training ends where the theory says: on answers few enough to enumerate, whole recipes against closed forms.

KL-regularised reward has one optimum, pi_ref exp(r / beta) / Z, for PPO as for DPO (Rafailov et al. 2023, eq. 4);
rejection sampling learns best-of-K's own distribution. A wrong sign, a mask off by one, a temperature or KL term in
the wrong place ends elsewhere. Distributions come from the saved model by its own forward, over the whole vocabulary.
"""

import json
import random
from collections.abc import Callable, Mapping
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from alignkit import Group, Pair, Response
from alignkit import functional as F
from alignkit.data import write_groups
from alignkit.recipe import load_recipe
from alignkit.run import run_recipe

LETTERS = {1: "abcdef", 3: "abc"}  # by the length of an answer: 6 and 27 answers
PAD, END, QUESTION = "<pad>", "<end>", "<q>"
WITHIN = 0.02  # total variation
QUIET = {"checkpoint_every": 10_000}  # a checkpoint would cost more than a step here
TEMPLATE = "{% for m in messages %}{{ m['content'] + '<end>' if m['role'] == 'assistant' else '<q>' }}{% endfor %}"


def answers(length: int) -> list[str]:
    return [" ".join(letters) for letters in product(LETTERS[length], repeat=length)]


def ids(answer: str) -> tuple[int, ...]:
    return tuple(3 + "abcdef".index(letter) for letter in answer.split())


def rewards(length: int) -> Tensor:
    """Known rewards in [-1, 1] of all answers; no sum over letters, so every context matters."""
    generator = torch.Generator().manual_seed(length)
    return torch.rand(len(answers(length)), generator=generator, dtype=torch.float64) * 2 - 1


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return {length: make_base(tmp_path_factory.mktemp("base"), letters) for length, letters in LETTERS.items()}


def make_base(folder: Path, letters: str) -> Path:
    """A random one-layer model with a word-level tokenizer whose every prompt is the one token <q>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([PAD, END, QUESTION, *letters])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[QUESTION],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
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
        model.lm_head.bias[:3] = -30.0  # answers are of letters alone: nothing else has a probability that counts
    model.save_pretrained(folder)
    return folder


def distribution(folder: Path, length: int) -> Tensor:
    """P(answer) of every answer by a model folder, float64 [answers]."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    rows = torch.tensor([(2, *ids(answer)) for answer in answers(length)])
    with torch.no_grad():
        logprobs = F.token_logprobs(model(input_ids=rows).logits[:, :-1], rows[:, 1:])
    found = logprobs.sum(-1).exp()
    assert abs(float(found.sum()) - 1) < 1e-6
    return found


def optimum(reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    return torch.softmax(reference.log() + reward / beta, -1)


def total_variation(p: Tensor, q: Tensor) -> float:
    return float((p - q).abs().sum() / 2)


def train(folder: Path, base: Path, stage: Mapping[str, Any]) -> Path:
    """Run a recipe of one stage; gives the folder of the trained model."""
    recipe = {
        "name": "optimum",
        "model": {"base": str(base), "dtype": "float32", "lora": "none"},
        "stages": {"it": stage},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe))), encoding="utf-8")
    run_recipe(load_recipe(folder / "recipe.yaml"), folder / "run")
    return folder / "run" / "it" / "adapter"


def write_reward(folder: Path, length: int) -> dict[str, Any]:
    table = dict(zip(answers(length), rewards(length).tolist(), strict=True))
    code = f"TABLE = {table!r}\n\ndef reward(completions):\n    return [TABLE[text] for text in completions]\n"
    (folder / "reward.py").write_text(code, encoding="utf-8")
    return {"python": {"path": "reward.py", "function": "reward"}}


def write_prompts(folder: Path, count: int) -> dict[str, Any]:
    """Prompts that differ in words but not in tokens: the template drops what the user says."""
    groups = [Group(({"role": "user", "content": str(i)},), id=str(i)) for i in range(count)]
    write_groups(folder / "prompts.jsonl", groups)
    return {"path": "prompts.jsonl"}


def fixed(length: int, samples: int) -> dict[str, Any]:
    return {"samples_per_prompt": samples, "min_new_tokens": length, "max_new_tokens": length}


@pytest.mark.parametrize(("length", "iterations"), [(1, 40), (3, 80)])
def test_ppo_reaches_the_optimum(tmp_path: Path, bases: dict[int, Path], length: int, iterations: int) -> None:
    beta = 0.5
    stage = {
        "algorithm": {
            "ppo": {
                "kl_beta": beta,
                "lam": 1.0,
                "whiten_advantages": False,
                "clip_value": None,
                "value_coefficient": 1.0,
            }
        },
        "prompts": write_prompts(tmp_path, 4),
        "reward": write_reward(tmp_path, length),
        "rollout": fixed(length, 256),
        "iterations": iterations,
        "prompts_per_iteration": 4,
        "batch_size": 4,
        "epochs": 4,
        "learning_rate": 5e-3,
        "max_grad_norm": 10.0,
        **QUIET,
    }
    reference = distribution(bases[length], length)
    wanted = optimum(reference, rewards(length), beta)
    found = distribution(train(tmp_path, bases[length], stage), length)
    print("TV", total_variation(reference, wanted), total_variation(found, wanted))
    assert total_variation(reference, wanted) > 0.2
    assert total_variation(found, wanted) < WITHIN


def soft_pairs(length: int, generator: random.Random) -> list[Pair]:
    """Pairs of all answers with the exact probability that the first is preferred (Bradley-Terry)."""
    r = rewards(length)
    every = list(combinations(range(len(r)), 2))
    return [Pair(i, j, p=float(torch.sigmoid(r[i] - r[j]))) for i, j in generator.sample(every, min(100, len(every)))]


def sampled_pairs(length: int, generator: random.Random) -> list[Pair]:
    """As a person would label them: one answer wins, by chance."""
    return [
        Pair(pair.better, pair.worse) if generator.random() < pair.p else Pair(pair.worse, pair.better)
        for pair in soft_pairs(length, generator) * 20
    ]


@pytest.mark.parametrize(("length", "pairs"), [(1, soft_pairs), (3, soft_pairs), (1, sampled_pairs)])
def test_dpo_reaches_the_optimum(
    tmp_path: Path, bases: dict[int, Path], length: int, pairs: Callable[[int, random.Random], list[Pair]]
) -> None:
    beta = 0.5
    generator = random.Random(0)
    responses = tuple(Response(text=a, tokens=ids(a), truncated=True) for a in answers(length))
    prompt = ({"role": "user", "content": "?"},)
    groups = [Group(prompt, responses, tuple(pairs(length, generator)), id=str(i)) for i in range(200)]
    write_groups(tmp_path / "pairs.jsonl", groups)
    stage = {
        "algorithm": {"dpo": {"beta": beta}},
        "data": {"path": "pairs.jsonl"},
        "batch_size": 1,
        "epochs": 2,
        "learning_rate": 5e-3,
        **QUIET,
    }
    reference = distribution(bases[length], length)
    wanted = optimum(reference, rewards(length), beta)
    found = distribution(train(tmp_path, bases[length], stage), length)
    print("TV", length, pairs, total_variation(reference, wanted), total_variation(found, wanted))
    assert total_variation(reference, wanted) > 0.1
    assert total_variation(found, wanted) < WITHIN


@pytest.mark.parametrize(("length", "prompts"), [(1, 4000), (3, 8000)])
def test_rejection_sampling_learns_best_of_k(tmp_path: Path, bases: dict[int, Path], length: int, prompts: int) -> None:
    k = 4
    stage = {
        "algorithm": "rejection_sampling",
        "prompts": write_prompts(tmp_path, prompts),
        "reward": write_reward(tmp_path, length),
        "rollout": fixed(length, k),
        "iterations": 1,
        "prompts_per_iteration": prompts,
        "batch_size": prompts // 4,
        "epochs": 20,
        "learning_rate": 5e-3,
        **QUIET,
    }
    reference = distribution(bases[length], length)
    wanted = F.best_of_n_distribution(reference, rewards(length), k)
    found = distribution(train(tmp_path, bases[length], stage), length)
    print("TV", length, total_variation(reference, wanted), total_variation(found, wanted))
    assert total_variation(reference, wanted) > 0.2
    assert total_variation(found, wanted) < WITHIN

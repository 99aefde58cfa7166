"""Answers few enough to enumerate: known rewards, a model that writes them, and closed forms.

What a policy does is then exact, without a sample: its probability of every answer comes from its
own forward over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from alignkit import Group, Message, Response
from alignkit.data.group import write_groups

PAD, END, QUESTION = "<pad>", "<end>", "<q>"

TEMPLATE = """\
{% for m in messages %}{{ m['content'] }}{% if m['role'] != 'system' %}\
{{ '<end>' if m['role'] == 'assistant' else '<q>' }}{% endif %}{% endfor %}"""


# Answers, their rewards, and a model that writes them


@dataclass(frozen=True)
class Problem:
    """Answers of `length` letters, known rewards in [-1, 1], and a random base model that writes
    such answers.

    The rewards are no sums over letters, so every context matters. seed: of rewards and model.
    """

    letters: Sequence[str]
    length: int
    folder: Path
    seed: int = 0

    @cached_property
    def answers(self) -> list[str]:
        return [" ".join(letters) for letters in product(self.letters, repeat=self.length)]

    def ids(self, answer: str) -> tuple[int, ...]:
        return tuple(3 + self.letters.index(letter) for letter in answer.split())

    def response(self, answer: str) -> Response:
        return Response(answer, tokens=self.ids(answer), truncated=True)

    @cached_property
    def rewards(self) -> Tensor:
        draw = torch.Generator().manual_seed(self.length + 1000 * self.seed)
        return torch.rand(len(self.answers), generator=draw, dtype=torch.float64) * 2 - 1

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @cached_property
    def reference(self) -> Tensor:
        return self.distribution(self.base)

    def distribution(self, folder: Path, before: tuple[int, ...] = (2,)) -> Tensor:
        """P(answer | these tokens) of every answer by a model folder, float64 [answers]."""
        return self.distributions(folder, [before])[0]

    def distributions(self, folder: Path, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """P(answer | tokens of a prompt), float64 [prompts, answers]; prompts of one length."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        rows = torch.tensor(
            [[(*before, *self.ids(answer)) for answer in self.answers] for before in prompts]
        )
        with torch.no_grad():
            every = model(input_ids=rows.flatten(0, 1)).logits[:, :-1].log_softmax(-1)
        logprobs = every.gather(-1, rows.flatten(0, 1)[:, 1:, None])[..., 0]
        found = logprobs[:, len(prompts[0]) - 1 :].sum(-1).exp().reshape(rows.shape[:2])
        assert (found.sum(-1) - 1).abs().max() < 1e-6
        return found


SIZES = yaml.safe_load("""
hidden_size: 32
intermediate_size: 64
num_hidden_layers: 1
num_attention_heads: 2
max_position_embeddings: 16
initializer_range: 0.2
pad_token_id: 0
bos_token_id: null
eos_token_id: 1
""")


def make(
    folder: Path,
    letters: Sequence[str],
    length: int,
    scale: float = 1.0,
    others: str = "",
    seed: int = 0,
) -> Problem:
    """A random one-layer model with a word-level tokenizer whose every prompt is the one token
    <q>. scale: of its output, 0 for uniform answers. others: tokens that only prompts have.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

    problem = Problem(letters, length, folder, seed)
    known = [PAD, END, QUESTION, *letters, *others]
    vocabulary = {token: index for index, token in enumerate(known)}
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
    config = PhiConfig(vocab_size=len(vocabulary), **SIZES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3 + seed)
        model = PhiForCausalLM(config).float()
    with torch.no_grad():
        model.lm_head.weight *= scale
        # Answers are of letters alone: nothing else has a probability that counts
        model.lm_head.bias[:3] = model.lm_head.bias[3 + len(letters) :] = -30.0
    model.save_pretrained(problem.base)
    return problem


def write_reward(problem: Problem, name: str = "reward", values: Tensor | None = None) -> Any:
    values = problem.rewards if values is None else values
    table = dict(zip(problem.answers, values.tolist(), strict=True))
    code = f"def {name}(completions):\n    return [{table!r}[text] for text in completions]\n"
    (problem.folder / f"{name}.py").write_text(code, encoding="utf-8")
    return {"python": {"path": f"{name}.py", "function": name}}


def question(text: object) -> tuple[Message, ...]:
    """A prompt. The tokenizer drops numbers, so that prompts which differ by them have equal tokens."""
    return (Message(role="user", content=str(text)),)


def write_prompts(problem: Problem, count: int) -> dict[str, Any]:
    """Prompts that differ in words but not in tokens: the tokenizer drops what the user says."""
    groups = [Group(question(i), id=str(i)) for i in range(count)]
    write_groups(problem.folder / "prompts.jsonl", groups)
    return {"path": "prompts.jsonl"}


def smooth(problem: Problem) -> Tensor:
    """Other rewards [answers], which can be learned from a part of the answers: sums over letters
    and over neighbors.
    """
    draw = torch.Generator().manual_seed(77 + problem.seed)
    size, length = len(problem.letters), problem.length
    one = torch.randn(length, size, generator=draw, dtype=torch.float64)
    two = torch.randn(length - 1, size, size, generator=draw, dtype=torch.float64)
    at = torch.tensor([problem.ids(answer) for answer in problem.answers]) - 3
    alone = torch.stack([one[i][at[:, i]] for i in range(length)])
    beside = torch.stack([two[i][at[:, i], at[:, i + 1]] for i in range(length - 1)])
    return alone.sum(0) + beside.sum(0)


def normalized(rewards: Tensor, reference: Tensor) -> Tensor:
    """Rewards with mean 0 and deviation 1 over what the reference writes."""
    centered = rewards - (reference * rewards).sum()
    return centered / (reference * centered**2).sum().sqrt()


def tilted(problem: Problem, beta: float) -> Tensor:
    """pi_ref exp(r / beta) / Z."""
    return torch.softmax(problem.reference.log() + problem.rewards / beta, -1)


def preferences(problem: Problem) -> Tensor:
    """P(row is preferred to column) by Bradley-Terry, [answers, answers]."""
    return torch.sigmoid(problem.rewards[:, None] - problem.rewards)


def best_of(probs: Tensor, rewards: Tensor, n: int) -> Tensor:
    """The policy of best of n [answers]: P(reward <= r)^n - P(reward < r)^n, shared by what ties."""
    levels, level = rewards.unique(return_inverse=True)
    mass = torch.zeros_like(levels, dtype=probs.dtype).index_add(0, level, probs)
    up_to = mass.cumsum(0)
    chance = up_to**n - (up_to - mass) ** n
    return (probs * (chance / mass)[level]).nan_to_num()


def kl(policy: Tensor, reference: Tensor) -> float:
    """KL(policy || reference) over all answers, in nats."""
    return float((torch.xlogy(policy, policy) - torch.xlogy(policy, reference)).sum())

"""Reward models that are heads on a real base: its hidden states of a text are computed once, and
a head of two layers learns from pairs in seconds.

The base is the first layers of SmolLM2-135M-Instruct, frozen. `answers.jsonl.gz` has 218 prompts of
the quick start's tuning set (recipes/data/LICENSES.md) with 16 different answers each, drawn from
those that policies of the table of methods gave (benchmarks/outcomes/tuning): `source` is the
method. Its order is random, so a split is a range.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from alignkit import functional as F
from alignkit.io.atomic import made_once
from alignkit.io.text import cache_folder
from alignkit_plugins.bases import smollm2
from alignkit_plugins.cells.crossed import Array
from alignkit_plugins.rewards.refusal import logit

ANSWERS = Path(__file__).with_name("answers.jsonl.gz")
LAYERS = 8  # of 30
WIDTH = 64  # of the head
BATCH = 32  # texts


class Text(NamedTuple):
    """A prompt and an answer."""

    prompt: str
    answer: str


class Step(NamedTuple):
    """Comparisons of a step: the places of texts, and what each weighs."""

    better: Sequence[int]
    worse: Sequence[int]
    weights: Sequence[float]


# Hidden states


def states(texts: Sequence[Text], folder: Path) -> Tensor:
    """What the head sees of each text [texts, 2 x hidden]: the state of its last token, and the
    mean of those of the answer, each with mean 0 and deviation 1 over all texts.
    """
    found = torch.from_numpy(_once(_states, texts, folder))
    return (found - found.mean(0)) / found.std(0)


def logprobs(texts: Sequence[Text], folder: Path) -> Array:
    """log P(answer | prompt) of each text by the whole base, in nats [texts]."""
    found: Array = _once(_logprobs, texts, folder)
    return found


def _once(what: Callable[[Sequence[Text]], Any], texts: Sequence[Text], folder: Path) -> Any:
    """An array about texts, computed once for a folder."""

    def make(new: Path) -> None:
        np.save(new / "array.npy", what(texts))

    digest = hashlib.sha256(repr(texts).encode()).hexdigest()[:16]
    return np.load(made_once(folder / f"{what.__name__}-{digest}", make) / "array.npy")


def _states(texts: Sequence[Text]) -> Any:
    from transformers import AutoModel

    base = smollm2.source(cache_folder())
    model = AutoModel.from_pretrained(base, dtype=torch.float32).eval()
    model.layers = model.layers[:LAYERS]
    model.norm = torch.nn.Identity()
    found = np.zeros((len(texts), 2 * model.config.hidden_size), np.float32)
    for at, ids, mask, asked in _batches(texts):
        with torch.no_grad():
            hidden = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        for place, row, seen, first in zip(at, hidden, mask, asked, strict=True):
            answer = row[seen][first:]
            found[place] = torch.cat([answer[-1], answer.mean(0)]).numpy()
    return found


def _logprobs(texts: Sequence[Text]) -> Array:
    from transformers import AutoModelForCausalLM

    base = smollm2.source(cache_folder())
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    found = np.zeros(len(texts))
    for at, ids, mask, asked in _batches(texts):
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask.long()).logits
        for place, row, tokens, seen, first in zip(at, logits, ids, mask, asked, strict=True):
            known = tokens[seen][first:]
            each = row[seen][first - 1 : -1].double().log_softmax(-1)
            found[place] = float(each.gather(-1, known[:, None]).sum())
    return found


def _batches(texts: Sequence[Text]) -> Iterator[tuple[list[int], Tensor, Tensor, list[int]]]:
    """Places of texts of about one length, their tokens, a mask of these [texts, tokens], and where
    the answers begin.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2.source(cache_folder()))
    before = [
        tokenizer(f"<|im_start|>user\n{text.prompt}<|im_end|>\n<|im_start|>assistant\n").input_ids
        for text in texts
    ]
    after = [tokenizer(f"{text.answer}<|im_end|>").input_ids for text in texts]
    order = sorted(range(len(texts)), key=lambda at: len(before[at]) + len(after[at]))
    for first in range(0, len(order), BATCH):
        at = order[first : first + BATCH]
        rows = [torch.tensor(before[one] + after[one]) for one in at]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        length = torch.tensor([len(row) for row in rows])
        yield (
            at,
            ids,
            torch.arange(ids.shape[1]) < length[:, None],
            [len(before[one]) for one in at],
        )


# Heads


class Head(torch.nn.Module):
    """A score for each text, from its hidden state."""

    def __init__(self, inputs: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(inputs, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, 1)
            )

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.layers(inputs)[..., 0]
        return scores


def learn(head: Head, inputs: Tensor, steps: Iterable[Step], rate: float) -> None:
    """Adam on the Bradley-Terry loss of the comparisons of each step; each text is scored once."""
    optimizer = torch.optim.Adam(head.parameters(), lr=rate)
    for step in steps:
        places, at = torch.tensor([*step.better, *step.worse]).unique(return_inverse=True)
        better, worse = head(inputs[places])[at].reshape(2, -1)
        weights = torch.tensor(step.weights)
        loss = (F.pairwise_loss(better, worse) * weights).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# The answers, and who likes which


class Answers(NamedTuple):
    """Hidden states [prompts, answers, 2 x hidden], and gold scores [prompts, answers]."""

    states: Tensor
    gold: Array


def answers(folder: Path) -> Answers:
    """All prompts of `answers.jsonl.gz`.

    Gold prefers an answer to a refusal, whatever was asked: minus the logit of the reward
    `refusal`, which sees words, where the head sees hidden states.
    """
    texts, gold = list[Text](), list[list[float]]()
    for line in gzip.decompress(ANSWERS.read_bytes()).decode("utf-8").splitlines():
        row = json.loads(line)
        own = [one["text"] for one in row["responses"]]
        texts += [Text(row["prompt"], text) for text in own]
        gold.append([-logit(text) for text in own])
    found = states(texts, folder)
    return Answers(found.reshape(len(gold), -1, found.shape[-1]), np.array(gold))


def accuracy(scores: Array, gold: Array) -> Array:
    """The share of pairs of a prompt's answers [prompts, answers] in gold's order: [prompts]."""
    wanted = np.sign(gold[:, :, None] - gold[:, None])
    found = np.sign(scores[:, :, None] - scores[:, None])
    share: Array = ((wanted == found) & (wanted > 0)).sum((1, 2)) / (wanted > 0).sum((1, 2))
    return share


def nats(scores: Array, gold: Array) -> Array:
    """The mean log-likelihood of gold's order of a prompt's pairs: [prompts], in nats."""
    wanted = gold[:, :, None] > gold[:, None]
    each = -np.logaddexp(0, scores[:, None] - scores[:, :, None])
    mean: Array = (each * wanted).sum((1, 2)) / wanted.sum((1, 2))
    return mean

"""SFT overfits after one epoch, and more epochs still please the reward model (Ouyang et al. 2022,
section 3.5): exact loss and reward of every epoch, on prompts that no demonstration has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignkit import Group
from alignkit.data.group import write_groups
from alignkit_plugins.report import drawing
from benchmarks.papers.claim import Row, chart, run_stages
from benchmarks.papers.enumerable import Problem, make, question

QUESTION = 2  # the token that ends a prompt


def compute(row: Row, rule: Mapping[str, Any], folder: Path) -> Any:
    """Before SFT and after each epoch, on new prompts: the exact loss of what people would write, in
    nats, and the mean reward, from 0 for uniform answers to 1 for the best; and the loss of the
    demonstrations.
    """
    letters, length, scale = rule["answers"]
    words = rule["words"]
    problem = make(folder, letters, length, scale, words, seed=row.seed)
    draw = torch.Generator().manual_seed(row.seed)
    every = list(product(range(len(words)), repeat=2))
    order = torch.randperm(len(every), generator=draw).tolist()
    known, new = order[: rule["prompts"]], order[rule["prompts"] :]
    rewards = rewards_of(problem, every, rule["own"], draw)
    people = torch.softmax(rewards / rule["beta"], -1)
    demos = torch.multinomial(people[known], 1, generator=draw)[:, 0].tolist()
    groups = list[Group]()
    for prompt, demo in zip(known, demos, strict=True):
        asked = " ".join(words[at] for at in every[prompt])
        response = problem.response(problem.answers[demo])
        groups.append(Group(question(asked), (response,), id=asked))
    write_groups(folder / "demos.jsonl", groups)
    settings = [f"stages.sft.learning_rate={row.rate}", f"seed={row.seed}"]
    run_stages("sft_epochs", folder, folder / "run", ["sft"], settings)
    kept = [folder / "run" / "sft" / "kept" / str(at) for at in rule["epochs"] if at]
    tokens = [(*(3 + len(letters) + at for at in prompt), QUESTION) for prompt in every]
    found = list[list[float]]()
    for version in [problem.base, *kept]:
        policy = problem.distributions(version, tokens)
        loss = -(people * policy.log()).sum(-1)[new].mean()
        gain = (policy * rewards).sum(-1) / rewards.max(-1).values
        own = -policy[known, demos].log().mean()
        found.append([round(float(one), 5) for one in (loss, gain[new].mean(), own)])
    return found


def rewards_of(
    problem: Problem, prompts: Sequence[tuple[int, ...]], own: float, draw: torch.Generator
) -> Tensor:
    """Rewards [prompts, answers] with mean 0 for each prompt: a part that all prompts share, and
    one for each word of a prompt at its place, `own` times as large.
    """
    count, words = len(problem.answers), 1 + max(map(max, prompts))
    shared = torch.randn(count, generator=draw, dtype=torch.float64)
    each = own * torch.randn(2, words, count, generator=draw, dtype=torch.float64)
    rows = [shared + each[0, first] + each[1, second] for first, second in prompts]
    found = torch.stack(rows)
    return found - found.mean(-1, keepdim=True)


# What they say


def measures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, dict[int, float]]:
    """By seed, from one epoch to the last: by how much the loss on new prompts rises, the reward
    there rises, and the loss of the demonstrations falls. For tuning, `sft` is by how much the
    least loss is below that of the base.
    """
    found = dict[str, dict[int, float]]()
    one, last = rule["epochs"].index(1), -1
    for row in rows:
        loss, reward, own = np.array(row["values"]).T
        values = {
            "loss": loss[last] - loss[one],
            "reward": reward[last] - reward[one],
            "demonstrations": own[one] - own[last],
            "sft": loss[0] - loss[one],
        }
        for name, value in values.items():
            found.setdefault(name, {})[row["seed"]] = float(value)
    return found


def after(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, dict[int, float]]:
    """From the epoch of a seed's least loss to the last."""
    found = dict[str, dict[int, float]]()
    for row in rows:
        loss, reward, _ = np.array(row["values"]).T
        least, last = loss.argmin(), rule["epochs"][-1]
        for name, values in (("loss, nats", loss), ("reward, share of the best", reward)):
            title = f"from each seed's least loss to epoch {last}: {name}"
            found.setdefault(title, {})[row["seed"]] = float(values[-1] - values[least])
    return found


def figures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, drawing.Drawing]:
    """Loss and reward by epoch."""
    values = np.array([row["values"] for row in rows])  # [seeds, epochs, 3]
    losses = {"new prompts": values[:, :, 0].tolist(), "demonstrations": values[:, :, 2].tolist()}
    rewards = {"new prompts": values[:, :, 1].tolist()}
    return {
        "Loss": chart(rule["epochs"], losses, "epochs", "nats of an answer"),
        "Reward": chart(rule["epochs"], rewards, "epochs", "share of the best"),
    }

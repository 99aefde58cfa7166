"""Small online runs on the tiny model, with an algorithm that records its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
import yaml

from alignkit import (
    Algorithm,
    Batch,
    Group,
    Loss,
    Needs,
    Outputs,
    SelectContext,
    Source,
    per_token,
)
from alignkit.contract.algorithm import Phase
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe
from alignkit.runs.run import Run
from tests.rows import demos, pairs, read_rows, rollouts_of, user, write_recipe, write_rows

TEXT = "tell me how to bake some bread for my old friend and the people in this house today please"
# The reward of a completion: different texts have different rewards.
REWARD = (
    "def reward(completions):\n    return [float(sum(c.encode()) % 1009) for c in completions]\n"
)


def prompts(count: int) -> list[Group]:
    words = TEXT.split()
    texts = [" ".join(words[n : n + 2 + n % 5]) for n in range(count)]
    return [Group((user(text),)) for text in texts]


@dataclass
class Seen:
    """The inputs of one iteration.

    groups, earlier, draw: of `select`: its groups, those of earlier iterations, and its first
    random number. learned, logprobs: each batch of the loss, and the policy's log-probabilities for
    it. measured: the batch of `signal`.
    """

    iteration: int
    groups: list[Group]
    earlier: list[list[Group]]
    draw: float
    measured: Batch | None
    learned: list[Batch] = field(default_factory=list)
    logprobs: list[torch.Tensor] = field(default_factory=list)


class Watched(Algorithm):
    """Makes what it selects likelier, by default everything, and records its inputs.

    choose: what `select` returns. keep: what `keep_group` returns. loss_of: the loss of step n,
    from 0. measured: the last batch of `signal`.
    """

    source = Source.ROLLOUTS
    needs = Needs()

    def __init__(
        self,
        needs: Needs = Needs(),  # noqa: B008 (frozen)
        choose: Callable[[Sequence[Group]], Sequence[Group] | list[Phase]] = lambda groups: groups,
        keep: Callable[[Group], bool] = lambda group: True,
        loss_of: Callable[[int, Outputs], Loss] = lambda step, out: Loss(
            nll=per_token(-out.logprobs)
        ),
    ):
        super().__init__(Algorithm.Options())
        self.needs, self.choose, self.keep, self.loss_of = needs, choose, keep, loss_of
        self.seen: list[Seen] = []
        self.measured: Batch | None = None
        self.steps = count()

    def keep_group(self, group: Group) -> bool:
        return self.keep(group)

    def signal(self, rollouts: Batch) -> dict[str, torch.Tensor]:
        self.measured = rollouts
        return {}

    def select(
        self, groups: Sequence[Group], context: SelectContext
    ) -> Sequence[Group] | list[Phase]:
        earlier, draw = context.replay(), context.rng.random()
        self.seen.append(Seen(context.iteration, list(groups), earlier, draw, self.measured))
        return self.choose(groups)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        self.seen[-1].learned.append(batch)
        self.seen[-1].logprobs.append(out.logprobs.detach())
        return self.loss_of(next(self.steps), out)


@dataclass
class Ran:
    """A finished run: its folder, and the metrics of every iteration of the stage `align`."""

    run: Run
    metrics: list[dict[str, Any]]

    @property
    def folder(self) -> Path:
        return self.run.folder

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = self.run.store.record("align")["summary"]
        return found

    @property
    def weights(self) -> bytes:
        return weights(self.folder / "align" / "adapter")

    def kept(self, number: int) -> bytes:
        """The weights after an iteration."""
        return weights(self.folder / "align" / "kept" / str(number))

    def rollouts(self, stage: str = "align") -> list[list[Group]]:
        return rollouts_of(self.folder / stage)


def weights(adapter: Path) -> bytes:
    return (adapter / "adapter_model.safetensors").read_bytes()


def online(
    folder: Path,
    algorithm: Algorithm,
    *,
    count: int = 4,
    before: dict[str, Any] | None = None,
    plugin: Any = "expert_iteration",
    scores: str = REWARD,
    **stage: Any,
) -> Ran:
    """Run the stages `before`, then `align`: this algorithm in iterations of two prompts out of
    `count`.

    plugin: the algorithm that the recipe names, whose checks the stage's keys must pass. scores:
    the module reward.py.
    """
    folder.mkdir(exist_ok=True)
    write_rows(folder / "prompts.jsonl", prompts(count))
    six = texts(prompts(6))
    write_rows(folder / "demos.jsonl", demos(six))
    write_rows(folder / "pairs.jsonl", pairs(six, rejected="no, it is bad"))
    (folder / "reward.py").write_text(scores, encoding="utf-8")
    align = {**ALIGN, "algorithm": plugin, **stage}
    recipe = load_recipe(write_recipe(folder, {**(before or {}), "align": align}))
    # Checks ask its class
    given = type("Given", (type(algorithm),), {"__new__": lambda cls, options: algorithm})
    (folder / "run").mkdir(exist_ok=True)
    run = Run(replaced(recipe, given), folder / "run")
    run.execute()
    return Ran(run, read_rows(run.folder / "align" / "metrics.jsonl"))


def replaced(recipe: Recipe, kind: type[Algorithm]) -> Recipe:
    """The recipe with another algorithm in its stage `align`."""
    stage = recipe.stages["align"]
    registration = replace(stage.component.registration, target=kind, kind="")
    component = replace(stage.component, registration=registration)
    recipe.stages["align"] = replace(stage, component=component)
    return recipe


def dies(algorithm: Watched, iteration: int) -> Watched:
    """It ends the run in the middle of an iteration."""
    select = algorithm.select

    def dying(groups: Sequence[Group], context: SelectContext) -> Any:
        if context.iteration == iteration:
            raise KeyboardInterrupt
        return select(groups, context)

    algorithm.select = dying  # type: ignore[method-assign]
    return algorithm


ALIGN = yaml.safe_load("""
prompts: {path: prompts.jsonl}
reward: {python: {path: reward.py, function: reward}}
rollout: {samples_per_prompt: 2, max_new_tokens: 5}
iterations: 2
prompts_per_iteration: 2
batch_size: 2
epochs: 1
learning_rate: 0.01
lr_scheduler_type: constant
""")
SFT = yaml.safe_load("""
{algorithm: sft, data: demos.jsonl, batch_size: 3, epochs: 2, learning_rate: 0.05}
""")
REWARD_MODEL = yaml.safe_load("""
{algorithm: reward_model, data: pairs.jsonl, batch_size: 3, learning_rate: 0.01, epochs: 1}
""")
PYTHON = ALIGN["reward"]


def by(function: str) -> dict[str, Any]:
    """A reward of reward.py."""
    return {"python": {"path": "reward.py", "function": function}}


STILL = 1e-12  # a learning rate at which the policy remains the same


def texts(groups: Sequence[Group]) -> list[str]:
    """The prompts."""
    return [group.prompt[0]["content"] for group in groups]


def tokens(groups: Sequence[Group]) -> list[tuple[int, ...] | None]:
    """The responses."""
    return [response.tokens for group in groups for response in group.responses]

"""Rejection sampling: fine-tune on the best of K samples by reward (Llama 2, Touvron et al. 2023,
arXiv:2307.09288).

Llama 2 (section 3.2.3) found that a policy forgets if it learns from the samples of the last
iteration only. So later iterations replay the best samples of earlier prompts; a prompt keeps its
sample until a better one is drawn. The replayed prompts are redrawn in every iteration, because the
same few samples would be memorized. Differs from Llama 2: every model samples for itself, not for
smaller ones. `pool: batch` is RAFT's global variant (Dong et al. 2023, arXiv:2304.06767): the best
1/K of all samples, so that a prompt may have several or none. It replays none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

from pydantic import model_validator

from alignkit import (
    Algorithm,
    Batch,
    Field,
    Group,
    Loss,
    Needs,
    Outputs,
    Response,
    SelectContext,
    Source,
    StageDefaults,
    per_token,
)
from alignkit import functional as F


@dataclass(frozen=True)
class Best:
    """The best sample of a prompt. Iterations count from 0."""

    group: Group
    response: Response
    iteration: int


class RejectionSampling(Algorithm):
    """Sample K responses, keep the best, and learn it as a demonstration."""

    source = Source.ROLLOUTS
    defaults = StageDefaults(
        learning_rate=2e-4,
        epochs=2,
        batch_size=16,
        lr_scheduler_type="linear",
        samples_per_prompt=4,
    )

    class Options(Algorithm.Options):
        replay_ratio: float = Field(
            0.5, ge=0, description="replayed samples of earlier iterations per new sample"
        )
        pool: Literal["prompt", "batch"] = Field(
            "prompt",
            description=(
                "train on the best of each prompt's K samples, or on the best 1/K of all (RAFT)"
            ),
        )

        @model_validator(mode="after")
        def _replay_needs_prompts(self) -> RejectionSampling.Options:
            if (
                self.pool == "batch"
                and self.replay_ratio
                and "replay_ratio" in self.model_fields_set
            ):
                raise ValueError("'pool: batch' replays nothing: leave replay_ratio out")
            return self

        @property
        def replays(self) -> bool:
            """Whether samples of earlier iterations may be learned again."""
            return self.pool == "prompt" and self.replay_ratio > 0

    @property
    def needs(self) -> Needs:
        """A choice needs two samples."""
        return Needs(min_samples=2, replay=self.options.replays)

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """The best samples, each in a group of its own or with others of its prompt; none if all
        rewards are equal.
        """
        rewards = [[response.reward for response in group.responses] for group in groups]
        context.log(groups_tied=sum(F.nearly_equal(max(each), min(each)) for each in rewards))
        every = [reward for each in rewards for reward in each]
        if every and F.nearly_equal(max(every), min(every)):
            return []
        chosen = (
            _best_of_all(groups)
            if self.options.pool == "batch"
            else self._best_of_prompts(groups, context)
        )
        learned = [response.reward for group in chosen for response in group.responses]
        context.log(
            best_reward=sum(learned) / max(1, len(learned)),
            replayed=sum(bool(group.meta.get("replayed")) for group in chosen),
        )
        return chosen

    def _best_of_prompts(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """The best sample of each prompt of this iteration, then replayed ones of other prompts."""
        earlier = context.replay() if self.options.replays else []
        best = best_samples([*earlier, groups])
        new = dict.fromkeys(_key(group) for group in groups)
        old = sorted(best.keys() - new.keys())
        replayed = min(len(old), int(self.options.replay_ratio * len(new)))
        drawn = [old[place] for place in context.rng.permutation(len(old))[:replayed]]
        return [_demonstration(best[key], current=len(earlier)) for key in (*new, *drawn)]

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(nll=per_token(-out.logprobs))


def best_samples(iterations: Sequence[Sequence[Group]]) -> dict[str, Best]:
    """The best sample of each prompt over all iterations; of equal rewards, the first.

    Prompts with the same words and different columns are different prompts.
    """
    best: dict[str, Best] = {}
    for iteration, groups in enumerate(iterations):
        for group in groups:
            key = _key(group)
            for response in group.responses:
                known = best.get(key)
                if known is None or F.preferred([(known.response.reward, response.reward)]) == [1]:
                    best[key] = Best(group, response, iteration)
    return best


def _key(group: Group) -> str:
    """The prompt as text, and its id, which tells rows with other columns apart. Several groups may
    share it.
    """
    return "\x1f".join(
        [group.id, *(f"{message['role']}\x1e{message['content']}" for message in group.prompt)]
    )


def _demonstration(best: Best, current: int) -> Group:
    """The group with its best response only, marked if it comes from an earlier iteration."""
    meta = {**best.group.meta, "replayed": True} if best.iteration < current else best.group.meta
    return replace(best.group, responses=(best.response,), pairs=None, meta=meta)


def _best_of_all(groups: Sequence[Group]) -> list[Group]:
    """The best samples of all prompts together, as many as there are prompts."""
    import torch

    rewards = torch.tensor(
        [response.reward for group in groups for response in group.responses], dtype=torch.float64
    )
    top = set(F.raft_top(rewards, count=len(groups)).tolist())
    positions = count()
    chosen = [
        replace(
            group,
            responses=tuple(response for response in group.responses if next(positions) in top),
            pairs=None,
        )
        for group in groups
    ]
    return [group for group in chosen if group.responses]

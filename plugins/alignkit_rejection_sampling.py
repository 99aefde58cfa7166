"""Rejection sampling: fine-tune on the best of K samples by reward (Llama 2 2023, section 3.2.3).

Later iterations learn the best samples of earlier ones again (Llama 2 found that learning from the last iteration's
samples alone forgets): a prompt's earlier sample stands while no later one is better; which prompts come back is drawn
anew each time, because the same few samples again and again would be learned by heart. Differs from Llama 2: every
model size samples for itself. `pool: batch` is RAFT's global variant (Dong et al. 2023,
arXiv:2304.06767): the best 1/K of all samples, so that a prompt may get several or none; it carries none over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import model_validator

from alignkit import (
    ROLLOUTS,
    Algorithm,
    Batch,
    Field,
    Group,
    Loss,
    Needs,
    Outputs,
    Register,
    Response,
    SelectContext,
    StageDefaults,
    hookimpl,
    per_token,
)
from alignkit import functional as F


class RejectionSampling(Algorithm):
    """Sample K, keep the best, learn it as a demonstration."""

    source = ROLLOUTS
    defaults = StageDefaults(
        learning_rate=2e-4, epochs=2, batch_size=16, lr_scheduler_type="linear", samples_per_prompt=4
    )

    class Options(Algorithm.Options):
        replay_ratio: float = Field(
            0.5, ge=0, description="samples of earlier iterations per new one; 0: none are carried"
        )
        pool: Literal["prompt", "batch"] = Field(
            "prompt", description="best of each prompt's K samples, or the best 1/K of all (RAFT)"
        )

        @model_validator(mode="after")
        def _carries_prompts(self) -> RejectionSampling.Options:
            if self.pool == "batch" and self.replay_ratio and "replay_ratio" in self.model_fields_set:
                raise ValueError("'pool: batch' carries nothing over: leave replay_ratio out")
            return self

        @property
        def replays(self) -> bool:
            """Whether samples of earlier iterations may be learned again."""
            return self.pool == "prompt" and self.replay_ratio > 0

    @property
    def needs(self) -> Needs:
        return Needs(min_samples=2, replay=self.options.replays)

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        tied = sum(len({response.reward for response in group.responses}) == 1 for group in groups)
        context.log(groups_tied=tied)
        if tied == len(groups) and len({group.responses[0].reward for group in groups}) == 1:
            return []  # nothing is better than anything else
        chosen = _top(groups) if self.options.pool == "batch" else self._best_of_prompts(groups, context)
        rewards = [response.reward for group in chosen for response in group.responses]
        carried = sum(bool(group.meta.get("replayed")) for group in chosen)
        context.log(best_reward=sum(rewards) / max(1, len(rewards)), replayed=carried)
        return chosen

    def _best_of_prompts(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        earlier = context.replay() if self.options.replays else ()
        *old, fresh = tables = [_samples(iteration) for iteration in (*earlier, groups)]
        prompts = list(dict.fromkeys(key for table in tables for key in table))
        rewards = [[[response.reward for _, response in table.get(key, ())] for key in prompts] for table in tables]
        iterations, places, _ = F.best_so_far(rewards)
        best: dict[str, Group] = {}
        for key, iteration, place in zip(prompts, iterations[-1].tolist(), places[-1].tolist(), strict=True):
            group, response = tables[iteration][key][place]
            meta = {**group.meta, "replayed": True} if iteration < len(old) else group.meta
            best[key] = replace(group, responses=(response,), pairs=None, meta=meta)
        past = sorted(best.keys() - fresh.keys())
        count = min(len(past), int(self.options.replay_ratio * len(fresh)))
        drawn = [best[past[place]] for place in context.rng.permutation(len(past))[:count]]
        return [*(best[key] for key in fresh), *drawn]

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        return Loss(nll=per_token(-out.logprobs))


def _samples(groups: Sequence[Group]) -> dict[str, list[tuple[Group, Response]]]:
    """Each prompt's responses with their groups, in order; a prompt may stand in an iteration twice."""
    found: dict[str, list[tuple[Group, Response]]] = {}
    for group in groups:
        key = "\x1f".join(f"{message['role']}\x1e{message['content']}" for message in group.prompt)
        found.setdefault(key, []).extend((group, response) for response in group.responses)
    return found


def _top(groups: Sequence[Group]) -> list[Group]:
    """The best samples of all prompts together, as many as there are prompts, each with its prompt's others."""
    import torch

    rewards = torch.tensor([response.reward for group in groups for response in group.responses], dtype=torch.float64)
    top = set(F.raft_top(rewards, count=len(groups)).tolist())
    found, first = [], 0
    for group in groups:
        kept = tuple(response for place, response in enumerate(group.responses, first) if place in top)
        first += len(group.responses)
        if kept:
            found.append(replace(group, responses=kept, pairs=None))
    return found


@hookimpl
def register_algorithms(register: Register) -> None:
    register("rejection_sampling", RejectionSampling, summary="fine-tune on the best of K samples by reward")

"""The prompts of rollouts, and the files of rollouts, which later iterations and stages can replay.

Also whether the sampler is the policy that learns, by the log-probabilities of both, and the weights that correct for
it: they differ a little if an engine rounds in another way, and much if it has other weights or reads another prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit import functional as F
from alignkit.data.group import Group, prompts_of, read_groups, responses_of, write_groups
from alignkit.data.sources import Loaded
from alignkit.errors import DataError, RunFailed
from alignkit.io.digest import file_digest
from alignkit.models.shared_model import SharedModel
from alignkit.settings import Importance
from alignkit.tokens.encoder import counted
from alignkit.training.context import StageContext
from alignkit.training.rewards import Rewards, with_scores
from alignkit.training.sampler import make_sampler, report
from alignkit.training.stage import TrainerState


def usable_prompts(state: TrainerState, key: str, new_tokens: int, episodes: Any = None) -> tuple[Loaded, list[Group]]:
    """The prompts of a data entry of the stage, without those that leave no room for a response; says how many go."""
    context, max_length = state.context, state.encoder.max_length
    loaded = context.load(getattr(context.settings, key))
    groups = prompts_of(loaded.groups)
    groups = state.encoder.prompts(episodes.with_tools(groups) if episodes is not None else groups)
    usable = [group for group in groups if context.models.fits(group, max_length, new_tokens)]
    room = f"no room for {new_tokens} new tokens in max_length {max_length}"
    if not usable:
        raise DataError(f"stage '{context.name}': no row of '{key}' is a prompt to answer, or there is {room}")
    if without_room := len(groups) - len(usable):
        state.summary[f"{key}_without_room"] = without_room
        context.say(f"{key}: left out {without_room} of {counted(len(groups), 'prompt')}: {room}")
    return loaded, usable


class PromptSource:
    """The prompts of a stage. facts: for the stage's summary.

    extra: prompts that earlier iterations drew beyond `per_iteration`, which checkpoints keep. chosen: those of the
    present iteration, in the order of a monitor; None: the stage's own.
    """

    def __init__(self, state: TrainerState, new_tokens: int, episodes: Any):
        context = state.context
        loaded, self.prompts = usable_prompts(state, "prompts", new_tokens, episodes)
        if repeated := len(self.prompts) - len({group.id for group in self.prompts}):
            repeats = "repeats" if repeated == 1 else "repeat"
            context.say(f"{counted(repeated, 'row')} of 'prompts' {repeats} the words and columns of another")
        self.draws = make_sampler(loaded, self.prompts, context.seed, context.name, "prompts")
        self.per_iteration, self.extra = context.settings.prompts_per_iteration or len(self.prompts), 0
        self.chosen: Sequence[int] | None = None
        self.planned = (context.settings.iterations or 1) * self.per_iteration
        self.facts = report(context, "prompts", loaded, self.draws, self.planned)

    def draw(self, iteration: int, sampled: int = 0, count: int | None = None) -> list[Group]:
        """Prompts of an iteration, from 1: shuffled epochs over all of them, or by the weights of their sources.

        sampled: prompts of this iteration that were drawn before. count: default: `per_iteration`.
        """
        count = count or self.per_iteration
        if self.chosen is not None:
            return [self.prompts[self.chosen[(sampled + place) % len(self.chosen)]] for place in range(count)]
        # Positions run through all iterations, so a resumed run draws the same prompts.
        first = (iteration - 1) * self.per_iteration + self.extra + sampled
        return [self.prompts[self.draws.at(first + place)] for place in range(count)]

    @property
    def used(self) -> int:
        """How many of the prompts the stage samples at least once."""
        return len({self.draws.at(place) for place in range(self.planned + self.extra)})


class RolloutFiles:
    """The scored rollouts of a stage on disk, one file per iteration, and those of the stages in `replay_from`."""

    def __init__(self, context: StageContext, rewards: Rewards, learns_from_reward: bool = True):
        """learns_from_reward: responses without a score are left out."""
        self.context, self.rewards, self.learns_from_reward = context, rewards, learns_from_reward
        self.digests: dict[str, str] = {}  # of this stage's files by name, for its checkpoints

    def write(self, iteration: int, groups: Sequence[Group]) -> None:
        file = self._file(iteration)

        def written() -> str:
            write_groups(file, groups)
            return file_digest(file)

        self.digests[file.name] = self.context.collectives.on_rank0(written)

    def restore(self, digests: Mapping[str, str]) -> None:
        """Continue with the files of a checkpoint. Later ones are removed: they will be written again.

        Raises RunFailed if a file has changed since the checkpoint.
        """
        self.digests = dict(digests)
        for name in digests:
            if (self.folder / name).is_file():  # else people deleted it
                self._check(self.folder / name)

        def remove_later() -> None:
            for path in self.folder.glob("*.jsonl"):
                if path.name not in digests:
                    path.unlink()

        self.context.collectives.on_rank0(remove_later)

    def before(self, iteration: int) -> list[list[Group]]:
        """Scored rollouts of the stages in `replay_from`, then of this stage's earlier iterations.

        None, which is reported, if their scores cannot be compared with the current ones. Raises RunFailed if a file
        has changed since this stage wrote it.
        """
        if not self.rewards.comparable:
            name = self.rewards.name
            self.context.say(f"earlier samples are not replayed: scores of '{name}' change between iterations")
            return []
        earlier = [self.seen(number, needed=True) for number in range(1, iteration)]
        everything = [*self._replayed, *earlier]
        return [with_scores(groups) for groups in everything] if self.learns_from_reward else everything

    def seen(self, iteration: int, *, needed: bool) -> list[Group]:
        """What an iteration sampled; empty if people deleted the file. needed: RunFailed if it has changed."""
        file = self._file(iteration)
        if needed:
            self._check(file)
        return read_groups(file) if file.is_file() else []

    def _check(self, file: Path) -> None:
        if not file.is_file() or file_digest(file) != self.digests[file.name]:
            raise RunFailed(
                f"{file} has changed since stage '{self.context.name}' wrote it\n"
                f"help: delete {self.context.folder.resolve()}, and the stage starts over"
            )

    @property
    def folder(self) -> Path:
        return self.context.folder / "rollouts"

    def _file(self, iteration: int) -> Path:
        return self.folder / f"{iteration:04d}.jsonl"

    @cached_property
    def _replayed(self) -> list[list[Group]]:
        """Rollouts of other stages, scored again by this stage's reward, whose scale may differ from theirs."""
        penalty = self.context.settings.rollout.missing_eos_penalty
        replayed: list[list[Group]] = []
        for stage in self.context.settings.replay_from:
            paths = sorted(
                (self.context.folder_of(stage) / "rollouts").glob("*.jsonl"), key=lambda path: int(path.stem)
            )
            if not paths:
                raise RunFailed(f"stage '{self.context.name}': replay_from: stage '{stage}' has no rollouts")
            for groups in map(read_groups, paths):
                replayed.append(self.rewards.score(groups, penalty))
        return replayed


# Mean differences, in nats per token, that rounding explains, by the dtype of training. Measured on SmolLM2: 1e-5 in
# float32, sampled here or by vLLM, and 0.05 in bfloat16. A sampler in bfloat16 is 0.004 (tiny) to 0.05 from float32.
ROUNDING = {"float32": 1e-3, "bfloat16": 0.1}
ANOTHER_MODEL = 0.5  # nats per token, which no rounding explains; SmolLM2 without an adapter of 3 steps: 0.6


def sampler_metrics(groups: Sequence[Group], measured: Sequence[Tensor]) -> dict[str, float]:
    """How far the sampler's log-probabilities are from the learner's, which are measured; empty if it tells none.

    Over all tokens of the policy: `sampler_gap`, the mean absolute difference in nats; `sampler_kl`, KL(sampler ||
    learner) in nats per token; and `sampler_ratio_max`, the largest learner / sampler.
    """
    found = []
    for response, learner in zip(responses_of(groups), measured, strict=True):
        # A response that was cut to fit has other tokens than its sampler's numbers, and is left out.
        if response.logprobs is not None and len(response.logprobs) == len(learner):
            # Tokens of others are 0 in both, and would count as perfect agreement.
            written = torch.ones(len(learner)) if response.written is None else torch.tensor(response.written)
            pair = torch.stack([torch.tensor(response.logprobs, dtype=torch.float64), learner.double()])
            found.append(pair[:, written.bool()])
    sampler, learner = torch.cat(found, dim=1) if found else torch.empty(2, 0)
    if not len(sampler):
        return {}
    return {
        "sampler_gap": float((learner - sampler).abs().mean()),
        # k3 is never negative. The noise of k1 is as large as the gap, and would hide the KL, about its square.
        "sampler_kl": float(F.kl_k3(sampler, learner).mean()),
        "sampler_ratio_max": float(F.ratio(learner, sampler).max()),
    }


def weighted(
    advantages: Tensor, old: Tensor, sampler: Tensor, mask: Tensor, importance: Importance, finest: str
) -> tuple[Tensor, dict[str, float]]:
    """Advantages, [R, T] or [R], times the weights of the samples, and the shares that were capped and masked.

    Shares are of counted tokens, or of responses. The result is [R, T] if tokens have weights. old, sampler: the
    log-probabilities, [R, T]. finest: `Needs.advantages`. A loss that is linear in the advantages for weights of 0 and
    more is then weighted, and its KL, entropy and values are not.
    """
    by_response = (importance.level or finest) == "sequence"
    bounds = (importance.mask[0], importance.mask[1]) if importance.mask is not None else None
    weights, ratios = F.importance_weights(old, sampler, mask, importance.cap, bounds, sequence=by_response)
    counted = mask.any(dim=1) if by_response else mask
    shares = {}
    if bounds is not None:
        shares["importance_masked"] = ((ratios < bounds[0]) | (ratios > bounds[1]))[counted]
    if importance.cap is not None:  # what is masked has a weight of 0
        shares["importance_capped"] = ((ratios > importance.cap) & (weights > 0))[counted]
    return times(advantages, weights), {name: float(which.float().mean()) for name, which in shares.items()}


def times(advantages: Tensor, weights: Tensor) -> Tensor:
    """Their product, [R, T] if either is, else [R]."""
    dimensions = max(advantages.dim(), weights.dim())
    advantages, weights = (x if x.dim() == dimensions else x[:, None] for x in (advantages, weights))
    return advantages * weights


def mismatch(metrics: Mapping[str, Any], model: SharedModel) -> str:
    """Why the sampler is not taken for the policy that learns; empty if it is. metrics: with `sampler_metrics`."""
    if "sampler_gap" not in metrics:
        return (
            "the sampler tells no log-probabilities, so nobody checks that it is the policy that learns; leave top_k, "
            "top_p and min_new_tokens out to have it checked"
        )
    exact = model.dtype_name == "float32" and model.spec.quantization == model.spec.mixed_precision == "none"
    dtype = "float32" if exact else "bfloat16"
    if metrics["sampler_gap"] <= ROUNDING[dtype]:
        return ""
    return (
        f"the sampler is not the policy that learns: their log-probabilities differ by {metrics['sampler_gap']:.2g} "
        f"nats per token, of which rounding in {dtype} explains {ROUNDING[dtype]:g}. Perhaps the engine did not load "
        "the adapter, has old weights, reads another prompt (template) or computes in another dtype"
    )

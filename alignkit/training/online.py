"""A training stage in iterations: roll out, score, combine, measure, signal, select, learn."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from alignkit import seeds
from alignkit.algorithm import Algorithm, Phase, SelectContext, Skip
from alignkit.data.group import Group, previews, prompts_of, read_groups, write_groups
from alignkit.errors import DataError, RunFailed
from alignkit.functional import missing_eos_penalty
from alignkit.models.examples import Examples
from alignkit.models.forward import measure, measure_with_values
from alignkit.models.packing import units
from alignkit.models.sampling import Sampling, sample
from alignkit.models.shared_model import BASE
from alignkit.reward import REWARD_KEY, CombinedReward
from alignkit.training.schedule import schedule
from alignkit.training.scoring import Scorer
from alignkit.training.stage import StageContext, StageWork

# KL at the first iteration, nats per response, above which policy and reference cannot be the same adapter.
SAME_ADAPTER = 1e-2


class OnlineStage(StageWork):
    """Iterations: roll out, score, combine, select, measure, signal, learn."""

    def __init__(self, run: StageContext, algorithm: Algorithm):
        rollout = run.settings.rollout
        self.sampling = Sampling(**rollout.model_dump(exclude={"missing_eos_penalty"}))
        self.missing_eos_penalty = rollout.missing_eos_penalty
        super().__init__(run, algorithm)
        self.scorer = Scorer(run.settings.reward, run.context())
        if run.settings.replay_from and not algorithm.needs.replay:  # no error: one line swaps the algorithm
            self._say("replay_from changes nothing here, the algorithm learns from its own samples alone")

    def _temperature(self) -> float:
        """The policy is what it samples as: learned at another temperature, its own samples would sharpen it."""
        return self.sampling.temperature

    def run(self) -> dict[str, Any]:
        run, iterations = self.run_, self.settings.iterations or 1
        prompts = self._prompts()
        self._forget_after(int(self.done.get("iteration", 0)))
        if self.done:
            self.summary = self.done["summary"]
        self.summary |= {"prompts": len(prompts), "iterations": iterations}
        first = int(self.done.get("iteration", 0))
        run.reporter.start(run.name, iterations, first)
        for iteration in range(first + 1, iterations + 1):
            run.should_stop()
            metrics = self._iteration(iteration, iterations, prompts)
            self.log(iteration, metrics)
            run.reporter.advance(iteration, metrics)
            if self.settings.keep_versions:
                self.policy.save(self.role, run.folder / "kept" / str(iteration))
            every = self.settings.checkpoint_every or 1
            if iteration % every == 0 or iteration == iterations:
                self.checkpoint(iteration, f"iteration {iteration} of {iterations}", iteration=iteration)
        if idle := self.summary.get("learned_nothing"):
            fact = f"{idle} of {iterations} iterations had nothing to learn from; lately {self.summary['because']}"
            if idle == iterations:
                raise RunFailed(f"stage '{run.name}': {fact}; the samples are in {run.folder / 'rollouts'}")
            run.reporter.say(f"{run.name}: {fact}")
        self.policy.save(self.role, run.adapter)
        return self.finish()

    # The parts of an iteration, in order

    def _iteration(self, iteration: int, iterations: int, prompts: Sequence[Group]) -> dict[str, Any]:
        began = time.monotonic()
        self.engine.forget_scores()
        groups = self._roll_out(iteration, prompts)
        rolled = time.monotonic()
        new_tokens = sum(len(r.tokens or ()) for g in groups for r in g.responses)
        groups, combined, everything = self._score(groups)
        metrics = self._rollout_metrics(groups, combined)
        all_rewards = combined.raw.tolist()
        scored = time.monotonic()
        write_groups(self._rollout_file(iteration), everything)
        self.run_.notify("rollouts_scored", iteration=iteration, groups=groups)
        groups, combined = self._kept(groups, combined, metrics)
        self.skipped_because = ""
        examples = self._measure(groups, combined, metrics) if groups else Examples([])
        factor = schedule(self.settings.lr_scheduler_type, iteration - 1, iterations, self.settings.warmup_ratio)
        phases = [] if self.skipped_because else self._phases(iteration, groups, metrics)
        if self.skipped_because:
            metrics["empty_selection"] = 1.0
        # All are measured before any is learned from: "old" is the policy that the iteration began with.
        chosen = [self._selected(phase, examples) for phase in phases]
        learned = [
            self._learn(iteration, number, phase, selected, factor, metrics)
            for number, (phase, selected) in enumerate(zip(phases, chosen, strict=True))
        ]
        if not any(learned):
            self.summary["learned_nothing"] = self.summary.get("learned_nothing", 0) + 1
            self.summary["because"] = _reason(metrics, all_rewards)
        ended = time.monotonic()
        metrics |= {
            "tokens_per_second": new_tokens / (rolled - began),
            "seconds": ended - began,
            "seconds/rollout": rolled - began,
            "seconds/score": scored - rolled,
            "seconds/learn": ended - scored,
            **{f"state/{key}": value for key, value in self.algorithm.state.items() if isinstance(value, int | float)},
        }
        return metrics

    def _prompts(self) -> list[Group]:
        loaded = self.run_.load(self.settings.prompts)
        groups = prompts_of(loaded.groups)
        if loaded.groups and not groups:
            raise DataError(f"stage '{self.run_.name}': the rows of 'prompts' are raw text, without a prompt to answer")
        longest, new = self.max_length, self.sampling.max_new_tokens
        fitting = [group for group in groups if self.engine.fits(group, longest, new)]
        if len(fitting) < len(groups):
            self.summary["prompts_without_room"] = len(groups) - len(fitting)
            self.run_.reporter.say(
                f"{self.run_.name}: {len(groups) - len(fitting)} of {len(groups)} prompts leave no room for "
                f"{new} new tokens in max_length {longest} and are left out"
            )
        if not fitting:
            raise DataError(f"stage '{self.run_.name}': no prompt leaves room for {new} tokens in max_length {longest}")
        return fitting

    def _roll_out(self, iteration: int, prompts: Sequence[Group]) -> list[Group]:
        wanted = self.settings.prompts_per_iteration or len(prompts)
        picks = []
        for place in range((iteration - 1) * wanted, iteration * wanted):
            epoch, at = divmod(place, len(prompts))
            order = seeds.stream(self.run_.seed, self.run_.name, "prompts", epoch).permutation(len(prompts))
            picks.append(prompts[int(order[at])])
        self.run_.reporter.note("rolling out")
        groups = sample(
            self.policy,
            self.role,
            self.engine.encoder,
            picks,
            self.sampling,
            seed=self.run_.seed,
            place=(self.run_.name, "rollout", iteration),
        )
        # Known to users by the stage's name: the role's is the engine's business.
        return [
            replace(group, responses=tuple(replace(r, source=self.run_.name) for r in group.responses))
            for group in groups
        ]

    def _score(self, groups: Sequence[Group]) -> tuple[list[Group], CombinedReward, list[Group]]:
        """Groups of scored responses, their combination, and all groups; what has no score is counted.

        The combination's `plain`, which is logged, is without the penalty for a missing end.
        """
        self.run_.reporter.note("scoring")
        scored = self.scorer.score(groups)
        kept = _with_scores(scored)
        if not kept:
            raise RunFailed(f"stage '{self.run_.name}': no response could be scored")
        self.unscored = sum(len(g.responses) for g in scored) - sum(len(g.responses) for g in kept)
        if self.unscored:
            where = previews([g for g in scored if any(r.scores[REWARD_KEY] is None for r in g.responses)])
            self._say(f"{self.unscored} responses could not be scored and are left out, to {where}")
        combined = self.scorer.combine(kept)
        if not self.missing_eos_penalty:
            return kept, combined, scored
        penalised = [self._penalised(group) for group in scored]
        kept = _with_scores(penalised)
        ended = torch.tensor([not response.truncated for group in kept for response in group.responses])
        reward = missing_eos_penalty(combined.reward, ended, self.missing_eos_penalty)
        return kept, replace(combined, reward=reward), penalised

    def _penalised(self, group: Group) -> Group:
        """The group with the penalty taken off the plain score too, by which methods that select choose."""
        responses = [
            replace(r, scores={**r.scores, REWARD_KEY: score - self.missing_eos_penalty})
            if r.truncated and (score := r.scores[REWARD_KEY]) is not None
            else r
            for r in group.responses
        ]
        return replace(group, responses=tuple(responses))

    def _kept(
        self, groups: Sequence[Group], combined: CombinedReward, metrics: dict[str, Any]
    ) -> tuple[list[Group], CombinedReward]:
        """The groups that the algorithm keeps; the others are counted and play no part in what is learned."""
        keep = [self.algorithm.keep_group(group) for group in groups]
        if all(keep):
            return list(groups), combined
        metrics["groups_without_signal"] = len(groups) - sum(keep)
        places = torch.tensor([kept for group, kept in zip(groups, keep, strict=True) for _ in group.responses])
        taken = replace(combined, reward=combined.reward[places], raw=combined.raw[places])
        return [group for group, kept in zip(groups, keep, strict=True) if kept], taken

    def _rollout_metrics(self, groups: Sequence[Group], combined: CombinedReward) -> dict[str, Any]:
        responses = [response for group in groups for response in group.responses]
        count = len(responses)
        metrics: dict[str, Any] = {
            "reward": float(combined.raw.mean()),
            "reward_std": float(combined.raw.std(correction=0)),
            "unscored": self.unscored,
        }
        for name in responses[0].scores:
            values = [r.scores[name] for r in responses if r.scores.get(name) is not None]
            if name != REWARD_KEY and values:
                metrics[f"score/{name}"] = sum(values) / len(values)  # type: ignore[arg-type]
        metrics |= {f"reward/{name}": value for name, value in combined.metrics.items()}
        metrics["response_tokens"] = sum(len(r.tokens or ()) for r in responses) / count
        metrics["truncated"] = sum(r.truncated for r in responses) / count
        return metrics

    def _measure(self, groups: Sequence[Group], combined: CombinedReward, metrics: dict[str, Any]) -> Examples:
        """Encode the rollouts and measure what the algorithm needs, before the first update."""
        self.run_.reporter.note("measuring")
        encoded = self._encode(groups)
        if len(encoded) != len(groups):
            raise RunFailed("a rollout did not fit max_length although its prompt did")
        examples = Examples(encoded)
        examples.columns["rewards"] = combined.reward.tolist()
        scores = [response.scores[REWARD_KEY] for group in groups for response in group.responses]
        examples.columns["raw_rewards"] = [score for score in scores if score is not None]  # `_score` let none through
        temperature = self.sampling.temperature
        if self.value_role is None:
            old = measure(self.policy, self.role, encoded, "logprobs", temperature=temperature)
        else:
            old, values = measure_with_values(self.policy, self.role, self.value_role, encoded, temperature=temperature)
            examples.token_columns["old_values"] = values
        reference = measure(self.policy, self.reference, encoded, "logprobs", temperature=temperature)
        examples.token_columns |= {"old_logprobs": old, "reference_logprobs": reference}
        kl = [float((a - b).sum()) for a, b in zip(old, reference, strict=True)]
        metrics["kl"] = sum(kl) / len(kl)
        if not math.isfinite(metrics["kl"]):
            raise RunFailed(
                f"stage '{self.run_.name}': the policy's log-probabilities are not numbers: it has diverged"
            )
        metrics["sampler_gap"] = _sampler_gap(groups, old)
        self._check_reference(metrics["kl"])
        signals = self.algorithm.signal(examples.batch())
        metrics |= self.algorithm.metrics
        if isinstance(signals, Skip):
            self.skipped_because = signals.reason
            return Examples([])
        examples.add_signals(signals)
        return examples

    def _check_reference(self, kl: float) -> None:
        """The most repeated bug of the field: a reference that is not where the policy started."""
        same = self.reference_name == (self.settings.from_ or BASE)
        if same and self.learner.steps == 0 and abs(kl) > SAME_ADAPTER:
            raise RunFailed(f"policy and reference start as the same adapter, but their KL is {kl:.3g} nats")

    def _phases(self, iteration: int, groups: Sequence[Group], metrics: dict[str, Any]) -> list[Phase]:
        rng = seeds.stream(self.run_.seed, self.run_.name, "select", iteration)
        context = SelectContext(
            iteration,
            self.run_.seed,
            lambda: list(self._earlier(iteration)),
            lambda **m: metrics.update(m),
            rng,
            say=self._say,
        )
        chosen = list(self.algorithm.select(groups, context)) if groups else []
        phases = [item for item in chosen if isinstance(item, Phase)]
        if phases and len(phases) < len(chosen):
            raise RunFailed(f"{type(self.algorithm).__name__}.select gives groups beside phases: put them into a Phase")
        return phases or [Phase([item for item in chosen if isinstance(item, Group)])]

    def _earlier(self, iteration: int) -> Iterator[list[Group]]:
        """Scored rollouts of earlier stages named in `replay_from`, then of this stage's earlier iterations."""
        own = [read_groups(self._rollout_file(number)) for number in range(1, iteration)]
        for groups in (*self._carried, *own):
            yield [group for group in _with_scores(groups) if self.algorithm.keep_group(group)]

    @cached_property
    def _carried(self) -> list[list[Group]]:
        """Rollouts of the stages in `replay_from`, scored by this stage's reward: those that they were scored by may
        have another level or scale, as reward models that are trained anew do.
        """
        self.engine.forget_scores()  # so that a run that continues scores them in the same rows
        found = []
        for stage in self.settings.replay_from:
            paths = sorted((self.run_.earlier_stage(stage) / "rollouts").glob("*.jsonl"))
            if not paths:
                raise RunFailed(f"stage '{self.run_.name}': replay_from names '{stage}', which has no rollouts")
            for path in paths:
                scored = self.scorer.score(read_groups(path))
                found.append([self._penalised(group) for group in scored] if self.missing_eos_penalty else scored)
        return found

    def _learn(
        self, iteration: int, number: int, phase: Phase, selected: Examples, factor: float, metrics: dict[str, Any]
    ) -> bool:
        """Epochs of shuffled minibatches, cut by group so that pairs and group baselines stay whole. Gives whether
        anything was learned.
        """
        examples = self._require_examples(selected)
        if not examples.groups:
            metrics["empty_selection"] = 1.0
            return False
        whole = units([encoded.group.bundle for encoded in examples.groups])
        size = self.settings.batch_size or len(whole)
        averages: dict[str, list[float]] = {}
        skipped = 0
        epochs = phase.epochs if phase.epochs is not None else self.settings.epochs or 1
        for epoch in range(epochs):
            place = (self.run_.name, "minibatch", iteration, number, epoch)
            order = seeds.stream(self.run_.seed, *place).permutation(len(whole)).tolist()
            for start in range(0, len(order), size):
                self.run_.should_stop()
                self.run_.reporter.note(f"learning, epoch {epoch + 1}")
                part = examples.take([i for unit in order[start : start + size] for i in whole[unit]])
                found = self.learner.step(part, factor * phase.lr_scale)
                if "skipped" in found:  # what is not finite there would hide the other steps' numbers
                    skipped += 1
                    continue
                for name, value in found.items():
                    averages.setdefault(name, []).append(value)
        metrics |= {name: sum(values) / len(values) for name, values in averages.items()}
        if skipped:
            metrics["skipped"] = metrics.get("skipped", 0) + skipped
        return any(averages.get("grad_norm", ()))

    def _selected(self, phase: Phase, rollouts: Examples) -> Examples:
        """The phase's groups with what was measured; groups that `select` made anew are encoded and bare."""
        if [g.id for g in phase.groups] == [e.group.id for e in rollouts.groups] and all(
            g is e.group for g, e in zip(phase.groups, rollouts.groups, strict=True)
        ):
            return rollouts
        places = {id(e.group): i for i, e in enumerate(rollouts.groups)}
        if all(id(group) in places for group in phase.groups):
            return rollouts.take([places[id(group)] for group in phase.groups])
        encoded = self._encode(phase.groups)
        examples = Examples(encoded)
        needs = self.algorithm.needs
        temperature = self.sampling.temperature
        if needs.reference_logprobs:
            found = measure(self.policy, self.reference, encoded, "logprobs", temperature=temperature)
            examples.token_columns["reference_logprobs"] = found
        if needs.old_logprobs:
            found = measure(self.policy, self.role, encoded, "logprobs", temperature=temperature)
            examples.token_columns["old_logprobs"] = found
        return examples

    def _require_examples(self, examples: Examples) -> Examples:
        """Those with something to learn from; `min_samples` is a demand on rollouts, not on what `select` kept."""
        needs = self.algorithm.needs
        kept = [
            i
            for i, e in enumerate(examples.groups)
            if (e.pairs or not needs.pairs) and any(any(row.mask) for row in e.rows)
        ]
        return examples if len(kept) == len(examples.groups) else examples.take(kept)

    # Disk

    def _rollout_file(self, iteration: int) -> Path:
        return self.run_.folder / "rollouts" / f"{iteration:04d}.jsonl"

    def _forget_after(self, iteration: int) -> None:
        """Rollouts of an iteration that was not completed are written again."""
        for path in (self.run_.folder / "rollouts").glob("*.jsonl"):
            if int(path.stem) > iteration:
                path.unlink()


def _reason(metrics: Mapping[str, Any], rewards: Sequence[float]) -> str:
    """Why an iteration has taught nothing, as far as its numbers tell."""
    if metrics.get("skipped"):
        return "the loss or its gradient was not a number"
    if min(rewards) == max(rewards):
        return f"all {len(rewards)} rewards were {rewards[0]:.4g}: check the reward, or begin with easier prompts"
    if "kl" not in metrics:
        return "every prompt had too few responses with a score"
    return f"no sample was chosen: rewards went from {min(rewards):.4g} to {max(rewards):.4g}"


def _with_scores(groups: Sequence[Group]) -> list[Group]:
    """The groups without the responses that could not be scored."""
    kept = []
    for group in groups:
        responses = tuple(response for response in group.responses if response.scores.get(REWARD_KEY) is not None)
        if responses:
            kept.append(replace(group, responses=responses))
    return kept


def _sampler_gap(groups: Sequence[Group], measured: Sequence[torch.Tensor]) -> float:
    """Mean absolute difference of the sampler's and the training path's log-probabilities, nats per token."""
    sampled = [response.logprobs or () for group in groups for response in group.responses]
    gaps = [(torch.tensor(s) - m).abs().sum() for s, m in zip(sampled, measured, strict=True) if s and len(s) == len(m)]
    tokens = sum(len(s) for s in sampled) or 1
    return float(sum(gaps, torch.zeros(()))) / tokens

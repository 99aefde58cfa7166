"""A training stage in iterations: sample, score, measure, compute advantages, learn."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from typing import Any

from torch import Tensor

from alignkit import functional as F
from alignkit.contract.algorithm import Algorithm, Phase, SelectContext, Skip
from alignkit.contract.batch import likelier_now
from alignkit.data.group import Group, length, preview, responses_of
from alignkit.errors import RunFailed, located_at
from alignkit.host import returns
from alignkit.host.calls import call, create, remembered
from alignkit.models.packing import Examples, flat
from alignkit.tokens.counts import counted
from alignkit.training.active_stage import ActiveStage, select
from alignkit.training.encoding import has_gradient
from alignkit.training.episodes import episodes_of
from alignkit.training.learner import means, minibatches, schedule
from alignkit.training.monitors import Monitors
from alignkit.training.prompts import ANOTHER_MODEL, PromptSource, engine_mismatch, rounding_of
from alignkit.training.replay import RolloutFiles
from alignkit.training.rewards import filter_mask
from alignkit.training.rollouts import Rollouts, with_scores
from alignkit.training.trainer import Trainer, keeps_group

# Nats per response. If the KL before the first update is larger, policy and reference are not the
# same adapter.
SAME_ADAPTER = 1e-2
MOSTLY_CUT = 0.5  # share of truncated samples that is worth a warning


@dataclass
class Iteration:
    """The state of one iteration, filled step by step.

    number: counts from 1. rollouts: every sample so far, with all that is known of it. old: the
    policy's log-probabilities of the responses that were measured, [tokens] each. skipped: why the
    iteration learns nothing, or an empty string.
    """

    number: int
    rollouts: Rollouts
    old: list[Tensor] = field(default_factory=list)
    skipped: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def timer(self, part: str) -> Iterator[None]:
        """Measure the wall-clock time of a part of the iteration, which may have several pieces."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] += time.monotonic() - began  # type: ignore[assignment]

    def speed_metrics(self) -> dict[str, float]:
        """Seconds in total and by part, and tokens sampled per second."""
        new_tokens = sum(map(length, responses_of(self.rollouts.sampled)))
        parts = {f"seconds/{part}": seconds for part, seconds in self.seconds.items()}
        speed = new_tokens / (self.metrics.get("seconds/sampling") or self.seconds["rollout"])
        return {"tokens_per_second": speed, "seconds": sum(self.seconds.values()), **parts}


class RolloutTrainer(Trainer):
    """Iterations over prompts: each samples responses with the current policy and learns from
    them.
    """

    def __init__(self, stage: ActiveStage, algorithm: Algorithm):
        rollout = stage.settings.rollout
        # Learning at another temperature than that of the samples would sharpen or flatten the
        # policy.
        super().__init__(stage, algorithm, rollout.temperature)
        self.rewards = stage.scorer(self.settings.reward)
        self.learns = self.rewards.root is not None and self.algorithm.needs.reward  # from it
        self.filters = [(one.name, create(one, stage.name)) for one in rollout.filters or ()]
        self.files = RolloutFiles(stage, self.rewards, self.learns)
        self.monitors = Monitors(self, self.rewards, self.files)
        self.warned = False  # the user knows that the engine is not the policy
        self.importance = getattr(
            stage.spec.engine and stage.spec.engine.options, "importance", None
        )
        episodes = None
        if self.settings.environment is not None:
            episodes = episodes_of(stage)
        self.prompts = PromptSource(self, episodes)
        # What a checkpoint keeps of each.
        self.parts = {
            "rollouts": self.files,
            "rewards": self.rewards,
            "monitors": self.monitors,
            "prompts": self.prompts,
        }
        if self.algorithm.needs.old_logprobs and (
            rollout.top_p < 1 or rollout.top_k or rollout.min_new_tokens
        ):
            stage.say(
                "top_p, top_k and min_new_tokens leave tokens out of samples; ratios and KL are "
                "of all, and thus biased"
            )

    def run(self) -> dict[str, Any]:
        iterations = self.settings.iterations
        self.summary |= {"prompts": len(self.prompts.prompts), "iterations": iterations}
        first = self.restore()
        if not first:
            self.files.restore({})
            self.keep_version(0)
        self.stage.reporter.start(self.stage.name, iterations, first, unit="iteration")
        for number in range(first + 1, iterations + 1):
            if self.monitors.stopped:
                break
            self.stage.should_stop()
            with located_at(f"in iteration {number} of {iterations}"):
                metrics = self._iterate(number).metrics
                self.log(number, metrics)
                self.stage.reporter.advance(number, metrics)
                self.keep_version(number)
                if (
                    number % (self.settings.checkpoint_every or 1) == 0
                    or number == iterations
                    or self.monitors.stopped
                ):
                    self.checkpoint(number, f"iteration {number} of {iterations}")
        if state := self.rewards.state():
            self.summary["combinations"] = state
        self._report()
        self.monitors.finish()
        return self.summary

    # The parts of an iteration, in order

    def _iterate(self, number: int) -> Iteration:
        iteration = Iteration(number, Rollouts(self.rewards.state()))
        self.sample_and_score(iteration)
        with iteration.timer("learn"):
            self.files.write(number, iteration.rollouts.scored)
            groups = iteration.rollouts.scored
            if self.learns:
                groups = with_scores(groups)
            self.stage.notify("rollouts_scored", iteration=number, groups=groups)
            self.measure(iteration)
            self.compute_advantages(iteration)
        with iteration.timer("watch"):
            # Before learning, as the samples are those of the weights that the stage would end
            # with.
            seen = self.monitors.observe(number, iteration.rollouts.scored, iteration.metrics)
            # A metric of the stage counts, whatever monitors call theirs
            iteration.metrics = seen | iteration.metrics
        if not self.monitors.stopped:
            with iteration.timer("learn"):
                self.learn(iteration)
        if self.settings.rollout.async_level:
            with iteration.timer("waiting"):
                self.prompts.wait(stopped=bool(self.monitors.stopped))
        iteration.metrics |= iteration.speed_metrics()
        state = self.algorithm.state.items()
        iteration.metrics |= {
            f"state/{key}": value for key, value in state if isinstance(value, int | float)
        }
        return iteration

    def sample_and_score(self, iteration: Iteration) -> None:
        """Sample and score, in more batches as long as too few groups are left to learn from and
        the recipe allows it.
        """
        rollouts = iteration.rollouts
        bound, wanted = self.settings.rollout.max_num_gen_batches, self.prompts.per_iteration
        facts: dict[str, Any] = {}
        for batch in range(1, (bound or 1) + 1):
            self.sample(iteration)
            with iteration.timer("score"):
                facts = self.score(iteration)
            if bound is not None:
                facts["gen_batches"] = batch
            if len(rollouts.kept) >= wanted:
                break
        iteration.metrics |= facts
        self.prompts.extra += len(rollouts.sampled) - wanted
        # Those beyond a full batch are left out
        rollouts.keep_groups([place < wanted for place in range(len(rollouts.kept))])
        self._report_samples(iteration)

    def sample(self, iteration: Iteration) -> None:
        """Sample responses to the next prompts, and let every single reward score them."""
        rollouts = iteration.rollouts
        drawn, kept = len(rollouts.sampled), len(rollouts.kept)  # groups
        prompts = wanted = self.prompts.per_iteration
        if kept:  # as many as probably fill the batch, by the share that was kept so far
            prompts = min(wanted, math.ceil((wanted - kept) * drawn / kept))
        with iteration.timer("rollout"):
            samples = self.prompts.samples(iteration.number, drawn, prompts)
            iteration.metrics |= samples.metrics
        with iteration.timer("score"):
            self.stage.reporter.note("scoring")
            self.rewards.ask(samples.groups, rollouts)

    def score(self, iteration: Iteration) -> dict[str, Any]:
        """Combine the scores of all samples so far, and leave out what nothing is learned from.
        Returns metrics.
        """
        rollouts = iteration.rollouts
        self.rewards.combine(
            rollouts,
            learns=self.learns,
            whiten=self.algorithm.needs.whiten_rewards,
            penalty=self.settings.rollout.missing_eos_penalty,
        )
        if not rollouts.kept:
            why = self.rewards.nothing_scored(rollouts)
            raise RunFailed(f"stage '{self.stage.name}': no response could be scored\n{why}")
        facts = rollouts.summary()
        chosen, left_out = self._chosen(rollouts.kept)
        rollouts.keep_groups(chosen)
        iteration.skipped = ""
        if not rollouts.kept:
            iteration.skipped = (
                f"filters and the algorithm left out every group ({', '.join(left_out)})"
            )
        return facts | left_out

    def _chosen(self, groups: Sequence[Group]) -> tuple[list[bool], Counter[str]]:
        """Whether filters and the algorithm keep each group, and how many each of them leaves
        out.
        """
        left_out: Counter[str] = Counter()
        places = [*range(len(groups))]  # the groups that are left, by their index
        for name, chooser in self.filters:
            kept = filter_mask(chooser, [groups[place] for place in places])
            key = f"filtered/{name}"
            if key in left_out:
                key += f"_{len(left_out) + 1}"  # its place among the filters
            left_out[key] = len(kept) - sum(kept)
            places = [*compress(places, kept)]
        kept = [keeps_group(self.algorithm, groups[place]) for place in places]
        if not all(kept):
            left_out["groups_without_signal"] = len(kept) - sum(kept)
        chosen = {*compress(places, kept)}
        return [place in chosen for place in range(len(groups))], left_out

    def _report_samples(self, iteration: Iteration) -> None:
        """Say what a user must know of the samples."""
        idle = "gen_batches" in iteration.metrics and not (self.prompts.extra or self.filters)
        if idle and iteration.number == self.settings.iterations:
            self.stage.say(
                "max_num_gen_batches had no effect: nothing left out a group, as 'rollout.filters' "
                "and options of algorithms do"
            )
        if unscored := iteration.metrics.get("unscored"):
            why = iteration.rollouts.why_unscored()
            self.stage.say(f"{counted(unscored, 'response')} without a score{why}")
        if iteration.number == 1 and iteration.metrics["truncated"] > MOSTLY_CUT:
            self.stage.say(
                f"warning: {iteration.metrics['truncated']:.0%} of the samples have no end after "
                f"max_new_tokens {self.settings.rollout.max_new_tokens}: the policy does not "
                "stop, or needs more room. Raise rollout.max_new_tokens, or start from SFT"
            )

    def measure(self, iteration: Iteration) -> None:
        """Encode the groups that are kept, and measure them before the first update: columns
        `old_logprobs`, `reference_logprobs` and `old_values`, as the algorithm needs them.

        The KL to the reference is logged even if the algorithm does not need it.
        """
        rollouts, needs = iteration.rollouts, self.algorithm.needs
        if not rollouts.kept:
            return
        encoded = self.encoder.encode(rollouts.kept)
        # Rewards belong to groups by position, so none may be missing.
        if len(encoded) != len(rollouts.kept):
            raise RunFailed("a rollout did not fit max_length although its prompt did")
        examples = rollouts.examples = Examples(encoded)
        if rollouts.learned is not None:
            examples.columns["rewards"] = rollouts.learned[rollouts.keep]
        groups = rollouts.kept
        if not (needs.old_logprobs or needs.reference_logprobs or needs.values or self.importance):
            # Two passes over every sample cost more than learning the best of each prompt: the KL
            # is that of one of N groups, for N samples of a prompt.
            one_of = max(len(group.responses) for group in groups)
            groups, encoded = groups[::one_of], encoded[::one_of]
        measured = self.measured(self.role, encoded, values=self.value_role)
        iteration.old = old = [found["logprobs"] for found in measured]
        reference = self.reference_logprobs(encoded)
        if needs.old_logprobs:
            examples.token_columns["old_logprobs"] = flat(old)
        if needs.reference_logprobs:
            examples.token_columns["reference_logprobs"] = flat(reference)
        if needs.values:
            examples.token_columns["old_values"] = flat([found["values"] for found in measured])
        iteration.metrics["kl"] = kl = mean_kl(old, reference, groups)
        self._check_kl(kl)
        self._check_engine(iteration, engine_mismatch(groups, old))

    def _check_kl(self, kl: float) -> None:
        """Raise RunFailed if the policy diverged, or is not the reference before the first update
        although both begin as one adapter.
        """
        if not math.isfinite(kl):
            raise RunFailed(
                f"stage '{self.stage.name}': the policy's log-probabilities are not finite: "
                "lower learning_rate"
            )
        # Equal adapters behind the same prompts differ by rounding only.
        same = self.reference_name == self.start and not self.reference_prompts.may_differ
        if same and not self.learner.steps and kl > SAME_ADAPTER:
            raise RunFailed(
                f"policy and reference begin as the same adapter, but their KL is {kl:.3g} nats"
            )

    def _check_engine(self, iteration: Iteration, gap: float | None) -> None:
        """Warn once if what sampled is not the policy. Raises RunFailed before the first update if
        it is another model.

        gap: of their log-probabilities, in nats per token.
        """
        if gap is not None:
            iteration.metrics["engine_mismatch"] = gap
        warning = self._engine_warning(gap)
        if warning and gap is not None and gap > ANOTHER_MODEL and self.learner.steps == 0:
            raise RunFailed(f"stage '{self.stage.name}': {warning}")
        # Samples of older weights differ on purpose.
        stale = any(response.async_level for response in responses_of(iteration.rollouts.kept))
        if warning and not (self.warned or stale):
            self.warned = True
            self.monitors.warn([warning])

    def _engine_warning(self, gap: float | None) -> str:
        if gap is None:
            return (
                "the engine gives no log-probabilities, so nobody checks that it is the policy "
                "that learns"
            )
        if gap <= (rounding := rounding_of(self.model)):
            return ""
        return (
            "the engine is not the policy that learns: their log-probabilities differ by "
            f"{gap:.2g} nats per token, of which rounding explains {rounding:g}. Perhaps the "
            "engine did not load the adapter, has old weights, reads another prompt "
            "(template) or computes in another dtype"
        )

    def compute_advantages(self, iteration: Iteration) -> None:
        """Add what the algorithm's `signal` computes of the kept rollouts as columns, or a reason
        to skip the iteration.
        """
        examples = iteration.rollouts.examples
        if not examples.groups:
            return
        batch = examples.batch()
        found = call(self.algorithm, "signal", batch, returns=partial(returns.advantages, batch))
        remembered(self.algorithm, "signal")  # a state that cannot be saved is named here
        iteration.metrics |= remembered(self.algorithm, "signal", "metrics")
        if self.importance is not None and not isinstance(found, Skip):
            needed = self.algorithm.needs.advantages
            found, weights = self.importance.weighted(found, batch, iteration.old, needed)
            iteration.metrics |= weights
        if isinstance(found, Skip):
            iteration.skipped = found.reason
        else:
            examples.add_advantages(found)

    def learn(self, iteration: Iteration) -> None:
        """Learn from every phase that the algorithm selects."""
        number, rollouts = iteration.number, iteration.rollouts

        def replay() -> list[list[Group]]:
            before = self.files.before(number)
            return [[*compress(groups, self._chosen(groups)[0])] for groups in before]

        phases: list[Phase] = []
        if not iteration.skipped:
            log, rng = iteration.metrics.update, self.stage.rng("select", number)
            select_context = SelectContext(
                number, self.stage.seed, replay, log, rng, say=self.stage.say
            )
            phases = select(self.algorithm, rollouts.kept, select_context)
        # Measure all phases before learning from any: "old" is the policy at the start of the
        # iteration.
        chosen = [self._examples_of(phase, rollouts.examples) for phase in phases]
        if not any(examples.groups for examples in chosen):
            iteration.metrics["empty_selection"] = 1.0
        steps: list[dict[str, float]] = []
        for index, (phase, examples) in enumerate(zip(phases, chosen, strict=True)):
            steps += self._learn_phase(number, index, phase, examples)
        # Skipped steps are only counted, because their numbers are not finite.
        taken = [step for step in steps if "skipped" not in step]
        iteration.metrics |= means(taken)
        if skipped := len(steps) - len(taken):
            iteration.metrics["skipped"] = skipped
        if not any(step.get("grad_norm") for step in taken):
            summary = self.summary
            summary["idle_iterations"] = summary.get("idle_iterations", 0) + 1
            summary["idle_reason"] = (
                iteration.skipped or "no sample was selected, or its loss was not finite"
            )

    def _learn_phase(
        self, iteration: int, index: int, phase: Phase, examples: Examples
    ) -> list[dict[str, float]]:
        """Learn from a phase in epochs of shuffled minibatches; returns the metrics of its steps."""
        steps: list[dict[str, float]] = []
        iterations = self.settings.iterations
        epochs = phase.epochs if phase.epochs is not None else self.settings.epochs
        for epoch in range(epochs):
            # Named by phase and epoch: each pass has an order of its own, the same after a resume.
            stream = self.stage.rng("minibatch", iteration, index, epoch)
            batches = minibatches(examples, self.settings.batch_size, stream)
            for number, batch in enumerate(batches, 1):
                self.stage.should_stop()
                self.stage.reporter.note(f"learning, epoch {epoch + 1}")
                # In (0, 1], so that a warmup rises within an iteration, too.
                done = (epoch + number / len(batches)) / epochs
                factor = schedule(
                    self.settings, self.learner.peak_rate, iteration - 1, iterations, done
                )
                steps.append(self.learner.step(batch, factor * phase.lr_scale))
        return steps

    def _examples_of(self, phase: Phase, rollouts: Examples) -> Examples:
        """The learnable groups of a phase in tokens, with their measurements."""
        # By identity: groups that `select` returned unchanged keep their measurements and advantages.
        index_of = {id(encoded.group): index for index, encoded in enumerate(rollouts.groups)}
        if all(id(group) in index_of for group in phase.groups):
            examples = rollouts.take([index_of[id(group)] for group in phase.groups])
        else:  # groups that `select` created, which have no advantages
            examples = Examples(self.encoder.encode(phase.groups))
            if self.algorithm.needs.reference_logprobs:
                reference = self.reference_logprobs(examples.groups)
                examples.token_columns["reference_logprobs"] = flat(reference)
            if self.algorithm.needs.old_logprobs:
                old = self.logprobs(self.role, examples.groups)
                examples.token_columns["old_logprobs"] = flat(old)
        # `min_samples` applies to rollouts, not to the groups that `select` returns.
        needs = self.algorithm.needs
        return examples.take(
            [index for index, encoded in enumerate(examples.groups) if has_gradient(encoded, needs)]
        )

    # The end

    def _report(self) -> None:
        """Say how many iterations learned nothing. Raises RunFailed if none of them learned
        anything.
        """
        idle = self.summary.get("idle_iterations", 0)
        if not idle:
            return
        why = self.summary["idle_reason"]
        # What a monitor stops has not learned yet
        tried = self.summary["iterations"] - bool(self.monitors.stopped)
        fact = (
            f"{idle} of {counted(tried, 'iteration')} had nothing to learn from. Last reason: {why}"
        )
        if idle == tried:
            raise RunFailed(
                f"stage '{self.stage.name}': {fact}.\n{self._example(tried)}"
                f"The samples are in {self.files.folder}"
            )
        self.stage.say(fact)

    def _example(self, iteration: int) -> str:
        """A prompt of an iteration, two of its answers, and their scores, each in a line."""
        lines = ""
        for group in self.files.seen(iteration)[:1]:
            lines = f"For example, {preview(group)} was answered by:\n"
            for response in list({one.text: one for one in group.responses}.values())[:2]:
                score = response.scores.get("reward")
                text = preview(Group((), (response,)), 100)
                lines += f"  {text}, score {'none' if score is None else f'{score:.3g}'}\n"
        return lines


def mean_kl(
    logprobs: Sequence[Tensor], reference: Sequence[Tensor], groups: Sequence[Group]
) -> float:
    """Mean KL of responses to the reference, in nats, by k3, which is never negative. NaN if the
    policy diverged.
    """
    responses = responses_of(groups)
    kl = 0.0
    for response, ours, theirs in zip(responses, logprobs, reference, strict=True):
        # Tokens that do not count are 0 in both.
        kl += float((F.kl_k3(ours, theirs) * likelier_now([response], ours[None])[0]).sum())
    return kl / len(responses)

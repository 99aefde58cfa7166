"""A training stage in iterations: roll out, score, measure, select, learn."""

from __future__ import annotations

import math
import operator
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from alignkit import functional as F
from alignkit import seeds, shapes
from alignkit.algorithm import ADVANTAGES, Algorithm, Phase, SelectContext, Skip
from alignkit.batch import likelier_now
from alignkit.calls import call, create
from alignkit.data.group import Group, length, previews, responses_of, said
from alignkit.environment import player
from alignkit.errors import RunFailed, error_context
from alignkit.models import packing as forward
from alignkit.models.packing import Examples
from alignkit.models.shared_model import SharedModel
from alignkit.reward import REWARD_KEY
from alignkit.tokens.encoder import Encoded, counted
from alignkit.training.context import StageContext, select
from alignkit.training.encoding import has_signal
from alignkit.training.learner import means, minibatches, schedule
from alignkit.training.monitors import Monitors
from alignkit.training.requests import Request
from alignkit.training.rewards import RewardTable, filter_mask, with_scores
from alignkit.training.rollouts import ANOTHER_MODEL, PromptSource, RolloutFiles, mismatch, sampler_metrics, weighted
from alignkit.training.stage import TrainerState, keep_mask

FILTERED = "filters left out every group"
FILTERED_HELP = (
    "look at the rewards in the samples and widen the filter, or leave it out; with more prompts_per_iteration or "
    "samples_per_prompt, a group that it keeps is likelier"
)
# Nats per response. If the KL before the first update is larger, policy and reference are not the same adapter.
SAME_ADAPTER = 1e-2
MOSTLY_CUT = 0.5  # share of truncated samples that is worth a warning


@dataclass
class Iteration:
    """The state of one iteration, filled step by step.

    number: counts from 1. table: every sample so far, with its scores. examples: what is learned from in tokens, with
    the measurements and the signal. skipped: why the iteration learns nothing, or an empty string.
    """

    number: int
    table: RewardTable = field(default_factory=RewardTable)
    examples: Examples = field(default_factory=lambda: Examples([]))
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
        new_tokens = sum(map(length, responses_of(self.table.sampled)))
        parts = {f"seconds/{part}": seconds for part, seconds in self.seconds.items()}
        speed = new_tokens / (self.metrics.get("seconds/sampling") or self.seconds["rollout"])
        return {"tokens_per_second": speed, "seconds": sum(self.seconds.values()), **parts}

    def sample(self) -> tuple[str, str, str]:
        """The first answer to the first prompt, which is as good as any: the prompt's last turn, text, and facts."""
        group = self.table.scored[0]
        response = group.responses[0]
        facts = [counted(length(response), "token")] + ["cut off"] * response.truncated
        if (reward := response.scores.get(REWARD_KEY)) is not None:
            facts.insert(0, f"reward {reward:.3g}")
        return said(group.prompt[-1:]), response.text, ", ".join(facts)

    def why_nothing_learned(self) -> str:
        """The most likely reason, judging by the metrics."""
        if self.metrics.get("skipped"):
            return "the loss or its gradient was not finite"
        reason = self.skipped or "no sample was selected"
        if self.table.reward is None or self.table.raw is None:
            return reason
        rewards = [reward for reward in self.table.raw.tolist() if not math.isnan(reward)]
        low, high = min(rewards), max(rewards)
        if F.nearly_equal(low, high):
            equal = f"all {len(rewards)} rewards were {low:.4g}"
            return f"{reason}: {equal}. Check the reward, or start with easier prompts"
        return f"{reason}: rewards ranged from {low:.4g} to {high:.4g}"


class RolloutTrainer:
    """Iterations over prompts: each samples responses with the current policy and learns from them."""

    def __init__(self, context: StageContext, algorithm: Algorithm):
        self.context, self.settings = context, context.settings
        rollout = self.settings.rollout
        self.missing_eos_penalty, self.importance = rollout.missing_eos_penalty, rollout.importance
        # Learning at another temperature than that of the samples would sharpen or flatten the policy.
        self.temperature = rollout.temperature
        self.state = TrainerState(context, algorithm, self.temperature)
        self.algorithm, self.learner = self.state.algorithm, self.state.learner
        self.rewards = context.scorer(self.settings.reward)
        self.learns = self.rewards.root is not None and self.algorithm.needs.reward  # from it
        self.filters = [(one.name, create(one, context.name)) for one in rollout.filters or ()]
        self.files = RolloutFiles(context, self.rewards, self.learns)
        self.monitors = Monitors(self.state, self.rewards, self.sample)
        self.warned = False  # that the sampler is not the policy
        self.episodes = None
        if self.settings.environment is not None:
            self.episodes = player().episodes_of(context)
        self.request: Request | None = None  # of the next iteration
        if self.algorithm.needs.old_logprobs and (rollout.top_p < 1 or rollout.top_k):
            context.say("top_p and top_k leave tokens out of samples, but ratios and KL are of all tokens, thus biased")
        if self.settings.replay_from and not self.algorithm.needs.replay:  # not an error: users swap algorithms
            context.say("replay_from has no effect: the algorithm learns only from its own samples")
        if self.rewards.root is not None and not self.learns:
            context.say(f"reward '{self.rewards.name}' is reported, but nothing is learned from it")

    def run(self) -> dict[str, Any]:
        """Train to the end; the summary is for stage.json."""
        state, iterations = self.state, self.settings.iterations or 1
        prompts = self.prompts()
        first = int(state.done.get("iteration", 0))
        self.files.restore(state.done.get("rollouts", {}))
        prompts.extra = int(state.done.get("extra_prompts", 0))
        # After `prompts`, which counts again what the checkpoint's summary already includes.
        state.restore_progress()
        if state.done:  # else combinations begin with what they are made with
            self.rewards.remember(state.done["combinations"])
        if ahead := state.done.get("ahead"):
            self.request = self.request_samples(prompts.draw(ahead["number"]), ahead["number"], lag=1, complete=ahead)
        state.summary |= {"prompts": len(prompts.prompts), "iterations": iterations, **prompts.facts}
        self.monitors.restore(first, self.files)
        self.context.reporter.start(self.context.name, iterations, first, unit="iteration")
        for number in range(first + 1, iterations + 1):
            if self.monitors.stopped:
                break
            self.context.should_stop()
            with error_context(f"in iteration {number} of {iterations}"):
                self._after(self._iterate(number, prompts), iterations, prompts)
        if not self.monitors.chooses:  # else only the monitor knows
            state.summary["prompts_used"] = prompts.used
        if states := self.rewards.states():
            state.summary["combinations"] = states
        self._report(iterations)
        self.monitors.finish()
        return state.summary

    def close(self) -> None:
        self.state.close()

    def prompts(self) -> PromptSource:
        """The stage's prompts."""
        source = PromptSource(self.state, self.settings.rollout.max_new_tokens, self.episodes)
        self.state.reference_prompts.check(source.prompts, self.settings.rollout.max_new_tokens)
        return source

    def _after(self, iteration: Iteration, iterations: int, prompts: PromptSource) -> None:
        """Log an iteration, keep its version, and write a checkpoint if one is due."""
        number = iteration.number
        self.state.log(number, iteration.metrics)
        self.context.reporter.advance(number, iteration.metrics, iteration.sample())
        self.monitors.keep(number)
        if number % (self.settings.checkpoint_every or 1) == 0 or number == iterations or self.monitors.stopped:
            position = f"iteration {number} of {iterations}"
            more = {
                "combinations": self.rewards.states(),
                "rollouts": self.files.digests,
                "within_kl": self.monitors.within,
                "extra_prompts": prompts.extra,
            }
            if self.request is not None:
                more["ahead"] = self.request.saved
            self.state.checkpoint(number, position, iteration=number, **more)

    # The parts of an iteration, in order

    def _iterate(self, number: int, prompts: PromptSource) -> Iteration:
        iteration = Iteration(number)
        prompts.chosen = self.monitors.next_prompts(number, prompts.prompts)
        self._roll_out_and_score(iteration, prompts)
        with iteration.timer("learn"):
            self.files.write(number, iteration.table.scored)
            table = iteration.table
            scored = table.scored if table.reward is None else with_scores(table.scored)
            self.context.notify("rollouts_scored", iteration=number, groups=scored)
            self.measure(iteration)
            kl = self._sampled_kl(iteration)
        with iteration.timer("watch"):
            # Before learning, as the samples are those of the weights that the stage would end with.
            seen = self.monitors.look(number, iteration.table.scored, kl)
            iteration.metrics = seen | iteration.metrics  # a metric of the stage counts, whatever monitors call theirs
        if not self.monitors.stopped:
            with iteration.timer("learn"):
                self._learn(iteration)
        if self.settings.rollout.ahead:
            with iteration.timer("waiting"):
                if self.request is not None and self.monitors.stopped:
                    self.request.drop()
                    self.request = None
                if self.request is not None:
                    self.request.result()  # which a checkpoint keeps
        iteration.metrics |= iteration.speed_metrics()
        state = self.algorithm.state.items()
        iteration.metrics |= {f"state/{key}": value for key, value in state if isinstance(value, int | float)}
        return iteration

    def _roll_out_and_score(self, iteration: Iteration, prompts: PromptSource) -> None:
        """Sample and score, in more batches as long as too few groups are left to learn from and the recipe allows it.

        Only the parts of a reward are asked batch by batch. What combines them sees all samples of the iteration.
        """
        table, before = iteration.table, self.rewards.states()
        bound, wanted = self.settings.rollout.max_num_gen_batches, prompts.per_iteration
        facts: dict[str, Any] = {}
        for batch in range(1, (bound or 1) + 1):
            sampled, left = len(table.sampled), len(table.groups)
            count = wanted
            if left:  # as many as probably fill the batch, by the share that was left so far
                count = min(wanted, math.ceil((wanted - left) * sampled / left))
            with iteration.timer("rollout"):
                new = self._sampled(iteration, prompts, count)
            with iteration.timer("score"):
                self.ask(iteration, new)
                self.rewards.remember(before)  # it is combined again
                facts = self.score(iteration)
            if bound is not None and bound > 1:
                facts["gen_batches"] = batch
            if len(table.groups) >= wanted:
                break
        iteration.metrics |= facts
        prompts.extra += len(table.sampled) - wanted
        if bound is not None:
            self._fill(iteration, wanted, bound)
        if not self.learns:  # what is only reported leaves no trace in later scores
            self.rewards.remember(before)
        self._tell(iteration)

    def _fill(self, iteration: Iteration, wanted: int, bound: int) -> None:
        """Leave out groups beyond a full batch, the last ones; say so if the recipe's bound left it smaller."""
        table, summary = iteration.table, self.state.summary
        left = len(table.groups)
        table.take_groups([number < wanted for number in range(left)])
        if left < wanted:
            if "unfilled_iterations" not in summary:
                fact = f"{left} of {len(table.sampled)} groups are left to learn from, not {wanted}"
                text = f"after {bound} batches (max_num_gen_batches), {fact}; later iterations are only counted"
                self.context.say(f"{text}. To fill the batch, {FILTERED_HELP}")
            summary["unfilled_iterations"] = summary.get("unfilled_iterations", 0) + 1

    def _sampled(self, iteration: Iteration, prompts: PromptSource, count: int) -> list[Group]:
        """Samples of the policy, new ones or those that the engine wrote ahead; it begins with the next iteration's."""
        number, first = iteration.number, len(iteration.table.sampled)
        request = self.request or self.request_samples(prompts.draw(number, first, count), number, first)
        groups, self.request = request.result(), None
        iteration.metrics |= request.metrics
        if self.settings.rollout.ahead and number < (self.settings.iterations or 1):
            self.request = self.request_samples(prompts.draw(number + 1), number + 1, lag=1)
        return groups

    def request_samples(self, prompts: Sequence[Group], number: int, first: int = 0, **more: Any) -> Request:
        """The current policy's responses, in the place of an iteration's from the prompt `first` on."""
        path = self.context.name, "rollout", number
        samples = self.settings.rollout.samples_per_prompt
        return Request(self.context, self.state, prompts, samples, path, first=first, episodes=self.episodes, **more)

    def sample(self, prompts: Sequence[Group], samples: int, path: tuple[str | int, ...]) -> list[Group]:
        """The current policy's responses outside of an environment. path: names the random streams."""
        return Request(self.context, self.state, prompts, samples, path).result()

    def ask(self, iteration: Iteration, groups: Sequence[Group]) -> None:
        """Add samples to the iteration, with what the parts of the reward say of them."""
        self.context.reporter.note("scoring")
        self.rewards.ask(groups, iteration.table)

    def score(self, iteration: Iteration) -> dict[str, Any]:
        """Combine the scores so far, and leave out what nothing is learned from. Returns metrics."""
        table, penalty = iteration.table, self.missing_eos_penalty if self.learns else 0.0
        self.rewards.combine(table, penalty, learns=self.learns)
        if not table.groups:
            why = self.rewards.nothing_scored(table)
            raise RunFailed(f"stage '{self.context.name}': no response could be scored\n{why}")
        facts = table.summary()  # of all samples
        return facts | self._choose(iteration)

    def _choose(self, iteration: Iteration) -> dict[str, int]:
        """Leave out what filters and the algorithm do not keep; returns how many groups, as metrics."""
        table, left_out = iteration.table, Counter[str]()
        iteration.skipped = ""
        for name, chooser in self.filters:
            left_out[f"filtered/{name}"] += table.take_groups(filter_mask(chooser, table.learned))
        if not table.groups:
            iteration.skipped = f"{FILTERED} ({', '.join(left_out)})"
        if gone := table.take_groups(keep_mask(self.algorithm, table.learned)):
            left_out["groups_without_signal"] = gone
            if not table.groups:
                iteration.skipped = "the algorithm kept no group"
        return left_out

    def _tell(self, iteration: Iteration) -> None:
        """Count what was left out, and say what a user must know."""
        table, summary, metrics = iteration.table, self.state.summary, iteration.metrics
        if table.unscored:
            groups = [group for group in table.scored if _lacks_score(group)]
            what = f"{'left out ' if self.learns else ''}{counted(table.unscored, 'response')} without a score"
            self.context.say(f"{what}; prompts: {previews(groups)}{table.why_unscored()}")
        if iteration.number == 1 and metrics["truncated"] > MOSTLY_CUT:
            self.context.say(
                f"warning: {metrics['truncated']:.0%} of the samples have no end after max_new_tokens "
                f"{self.settings.rollout.max_new_tokens}: the policy does not stop, or needs more room. Raise "
                "rollout.max_new_tokens, or start from SFT"
            )
        if self.filters:
            filtered = summary.setdefault("filtered", {})
            for name in dict.fromkeys(name for name, _ in self.filters):
                filtered[name] = filtered.get(name, 0) + metrics[f"filtered/{name}"]

    def measure(self, iteration: Iteration) -> None:
        """Encode the rollouts, measure them before the first update, and compute the signal."""
        table = iteration.table
        iteration.examples = Examples([])
        if not table.groups:
            return
        self.context.reporter.note("measuring")
        encoded = self.state.encoder.encode(table.groups)
        # Rewards belong to groups by position, so none may be missing.
        if len(encoded) != len(table.groups):
            raise RunFailed("a rollout did not fit max_length although its prompt did")
        examples = Examples(encoded)
        if table.reward is not None and table.raw is not None:
            examples.columns |= {"rewards": table.reward[table.rows], "raw_rewards": table.raw[table.rows]}
        old = self._measure_logprobs(iteration, examples)
        iteration.examples = examples
        self._signal(iteration, old)

    def _measure_logprobs(self, iteration: Iteration, examples: Examples) -> list[Tensor]:
        """Log-probabilities and values; returns the policy's, of the responses that were measured.

        The KL to the reference is logged even if the algorithm does not need it.
        """
        roles, needs = self.state.roles, self.algorithm.needs
        each = self._one_in(iteration.table.groups)
        groups, encoded = iteration.table.groups[::each], examples.groups[::each]
        if roles.values is None:
            old = self.logprobs(roles.trained, encoded)
        else:
            old, examples.token_columns["old_values"] = self.logprobs_and_values(encoded)
        reference, read = self.reference_logprobs(encoded)
        if needs.old_logprobs:
            examples.token_columns["old_logprobs"] = old
        if needs.reference_logprobs:
            examples.token_columns["reference_logprobs"] = reference
        iteration.metrics["kl"] = kl = mean_kl(old, reference, groups)
        if not math.isfinite(kl):
            raise RunFailed(
                f"stage '{self.context.name}': the policy's log-probabilities are not finite: lower learning_rate"
            )
        iteration.metrics |= sampler_metrics(groups, old)
        self._check_sampler(iteration)
        # Before the first update, equal adapters behind the same prompts differ by rounding only.
        same = roles.reference_name == roles.start and all(map(operator.is_, encoded, read))
        if same and self.learner.steps == 0 and abs(kl) > SAME_ADAPTER:
            raise RunFailed(
                f"policy and reference start as the same adapter, but their KL is {kl:.3g} nats; please report it"
            )
        return old

    def _one_in(self, groups: Sequence[Group]) -> int:
        """Of how many groups one is measured, if the algorithm needs no measurement: responses to a prompt.

        Two passes over every sample cost more than learning the best of each prompt.
        """
        needs = self.algorithm.needs
        measures = needs.old_logprobs or needs.reference_logprobs or needs.values or self.importance
        return 1 if measures else max(len(group.responses) for group in groups)

    def _check_sampler(self, iteration: Iteration) -> None:
        """Warn once if what sampled is not the policy; raise RunFailed if nothing has been learned from it yet."""
        responses = responses_of(iteration.table.groups)
        # Samples of older weights differ on purpose.
        stale = any(response.staleness for response in responses)
        if self.warned or stale or not (text := mismatch(iteration.metrics, self.state.model)):
            return
        if iteration.metrics.get("sampler_gap", 0.0) > ANOTHER_MODEL and self.learner.steps == 0:
            raise RunFailed(f"stage '{self.context.name}': {text}")
        self.warned = True
        self.monitors.warn([text])

    def reference_logprobs(self, encoded: Sequence[Encoded]) -> tuple[list[Tensor], list[Encoded]]:
        """The reference's log-probabilities, and the groups as it reads them."""
        read = self.state.reference_prompts.encoded(encoded)
        return self.logprobs(self.state.roles.reference, read, self.state.reference_models.model), read

    def logprobs(self, role: str, encoded: Sequence[Encoded], model: SharedModel | None = None) -> list[Tensor]:
        """Of each response in order, float32 [tokens], in nats. model: the role's base; default: the stage's own."""
        base, temperature = model or self.state.model, self.temperature
        return self.state.measure(
            encoded, lambda groups: forward.measure(base, role, groups, "logprobs", temperature=temperature)
        )

    def logprobs_and_values(self, encoded: Sequence[Encoded]) -> tuple[list[Tensor], list[Tensor]]:
        """The policy's log-probabilities, and its values at the same tokens."""
        model, role, values = self.state.model, self.state.roles.trained, str(self.state.roles.values)

        def measured(groups: list[Encoded]) -> list[tuple[Tensor, Tensor]]:
            both = forward.measure_all(model, role, groups, forward.Wants(values=values, temperature=self.temperature))
            return list(zip(both.get("logprobs", []), both.get("values", []), strict=True))

        both = self.state.measure(encoded, measured)
        return [each[0] for each in both], [each[1] for each in both]

    def _sampled_kl(self, iteration: Iteration) -> float | None:
        """The KL that a budget is about: of all samples, also of those that nothing is learned from."""
        table = iteration.table
        # If nothing was left out, the KL that was measured is already that of all samples.
        if self.monitors.budget is None or len(table.rows) == len(responses_of(table.scored)):
            return iteration.metrics.get("kl")
        encoded = self.state.encoder.encode(table.scored[:: self._one_in(table.scored)])
        old, (reference, _) = self.logprobs(self.state.roles.trained, encoded), self.reference_logprobs(encoded)
        iteration.metrics["sampled_kl"] = kl = mean_kl(old, reference, [each.group for each in encoded])
        return kl

    def _signal(self, iteration: Iteration, old: list[Tensor]) -> None:
        rollouts = iteration.examples.batch()
        signals = call(self.algorithm, "signal", rollouts, returns=shapes.signals(self.algorithm, rollouts))
        iteration.metrics |= self.algorithm.metrics
        if isinstance(signals, Skip):
            iteration.skipped = signals.reason
        else:
            if self.importance:
                signals = self._corrected(iteration, signals, old)
            iteration.examples.add_signals(signals)

    def _corrected(
        self, iteration: Iteration, signals: Mapping[str, Tensor], old: list[Tensor]
    ) -> Mapping[str, Tensor]:
        """The signals, with advantages that have the weights of `rollout.importance`."""
        finest, groups = self.algorithm.needs.advantages, iteration.examples.groups
        assert finest is not None and self.importance is not None  # else the recipe is refused
        samples = responses_of([encoded.group for encoded in groups])
        told = [response.logprobs for response in samples]
        if None in told:
            raise RunFailed(
                f"stage '{self.context.name}': the engine tells no log-probabilities of its samples, but "
                "'rollout.importance' needs them\nhelp: leave 'importance' out, or write 'engine: local'"
            )
        sampler = [torch.tensor(logprobs) for logprobs in told]
        both = Examples(groups, {"old": old, "sampler": sampler}, signal_names=("old", "sampler")).batch()
        advantages, metrics = weighted(
            signals[ADVANTAGES], both["old"], both["sampler"], both.mask, self.importance, finest
        )
        iteration.metrics |= metrics
        if metrics.get("importance_masked") == 1:
            iteration.skipped = "'rollout.importance' masked every sample: see `sampler_ratio_max`"
        return {**signals, ADVANTAGES: advantages}

    def _learn(self, iteration: Iteration) -> None:
        """Learn from every phase that the algorithm selects."""
        name, seed, number = self.context.name, self.context.seed, iteration.number

        def replay() -> list[list[Group]]:
            return [self._filtered(groups) for groups in self.files.before(number)]

        phases: list[Phase] = []
        if not iteration.skipped:
            random = seeds.stream(seed, name, "select", number)
            context = SelectContext(number, seed, replay, iteration.metrics.update, random, say=self.context.say)
            phases = select(self.algorithm, iteration.table.groups, context)
        # Measure all phases before learning from any: "old" is the policy at the start of the iteration.
        chosen = [self._examples_of(phase, iteration.examples) for phase in phases]
        if not any(examples.groups for examples in chosen):
            iteration.metrics["empty_selection"] = 1.0
        learned = False
        for index, (phase, examples) in enumerate(zip(phases, chosen, strict=True)):
            if examples.groups:
                learned |= self.learn(iteration, index, phase, examples)
        if not learned:
            summary = self.state.summary
            summary["idle_iterations"] = summary.get("idle_iterations", 0) + 1
            summary["idle_reason"] = iteration.why_nothing_learned()

    def _filtered(self, groups: Sequence[Group]) -> list[Group]:
        for _, chooser in self.filters:
            groups = [*compress(groups, filter_mask(chooser, groups))]
        return [*compress(groups, keep_mask(self.algorithm, groups))]

    def learn(self, iteration: Iteration, index: int, phase: Phase, examples: Examples) -> bool:
        """Learn from a phase in epochs of shuffled minibatches; returns whether anything was learned."""
        steps: list[dict[str, float]] = []
        iterations = self.settings.iterations or 1
        epochs = phase.epochs if phase.epochs is not None else self.settings.epochs or 1
        for epoch in range(epochs):
            # Named by phase and epoch: each pass has an order of its own, the same after a resume.
            stream = seeds.stream(self.context.seed, self.context.name, "minibatch", iteration.number, index, epoch)
            batches = list(minibatches(examples, self.settings.batch_size, stream))
            for number, batch in enumerate(batches, 1):
                self.context.should_stop()
                self.context.reporter.note(f"learning, epoch {epoch + 1}")
                # In (0, 1], so that a warmup rises within an iteration, too.
                done = (epoch + number / len(batches)) / epochs
                factor = schedule(self.settings, self.learner.peak_rate, iteration.number - 1, iterations, done)
                steps.append(self.learner.step(batch, factor * phase.lr_scale))
        # Skipped steps are only counted, because their numbers are not finite.
        taken = [step for step in steps if "skipped" not in step]
        iteration.metrics |= means(taken)
        if skipped := len(steps) - len(taken):
            iteration.metrics["skipped"] = iteration.metrics.get("skipped", 0) + skipped
        return any(step.get("grad_norm") for step in taken)

    def _examples_of(self, phase: Phase, rollouts: Examples) -> Examples:
        """The learnable groups of a phase in tokens, with their measurements."""
        # By identity: groups that `select` returned unchanged keep their measurements and signals.
        index_of = {id(encoded.group): index for index, encoded in enumerate(rollouts.groups)}
        if all(id(group) in index_of for group in phase.groups):
            examples = rollouts.take([index_of[id(group)] for group in phase.groups])
        else:  # groups that `select` created, which have no reward and no signal
            examples = Examples(self.state.encoder.encode(phase.groups))
            if self.algorithm.needs.reference_logprobs:
                examples.token_columns["reference_logprobs"], _ = self.reference_logprobs(examples.groups)
            if self.algorithm.needs.old_logprobs:
                examples.token_columns["old_logprobs"] = self.logprobs(self.state.roles.trained, examples.groups)
        # `min_samples` applies to rollouts, not to the groups that `select` returns.
        needs = self.algorithm.needs
        return examples.take([index for index, encoded in enumerate(examples.groups) if has_signal(encoded, needs)])

    # The end

    def _report(self, iterations: int) -> None:
        """Report what was left out over all iterations. Raises RunFailed if none of them learned anything."""
        summary, idle = self.state.summary, self.state.summary.get("idle_iterations", 0)
        if any(summary.get("filtered", {}).values()):
            facts = ", ".join(f"{name} {count}" for name, count in summary["filtered"].items())
            self.context.say(f"groups that filters left out: {facts}")
        if not idle:
            return
        why = summary["idle_reason"]
        fact = f"{idle} of {counted(iterations, 'iteration')} had nothing to learn from. Last reason: {why}"
        if idle == iterations:
            text = f"stage '{self.context.name}': {fact}. The samples are in {self.files.folder}"
            if FILTERED in why:
                text += f"\nhelp: {FILTERED_HELP}"
            raise RunFailed(text)
        self.context.say(fact)


def _lacks_score(group: Group) -> bool:
    return any(response.scores.get(REWARD_KEY) is None for response in group.responses)


def mean_kl(logprobs: Sequence[Tensor], reference: Sequence[Tensor], groups: Sequence[Group]) -> float:
    """Mean KL of responses to the reference, in nats, by k3, which is never negative. NaN if the policy diverged."""
    responses = responses_of(groups)
    kl = 0.0
    for response, ours, theirs in zip(responses, logprobs, reference, strict=True):
        # Tokens that do not count are 0 in both.
        kl += float((F.kl_k3(ours, theirs) * likelier_now([response], ours[None])[0]).sum())
    return kl / len(responses) if responses else math.nan

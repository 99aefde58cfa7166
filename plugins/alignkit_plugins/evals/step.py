"""The step `evaluate`: compare policies on held-out prompts by rewards and judges, with confidence
intervals.

All policies answer the same prompts with the same random streams, and every reward scores all
answers. A prompt is the unit of all statistics: its samples are averaged first, policies are
compared prompt by prompt, and intervals are at 95% (`evaluation.statistics`). As in Llama 2
(Touvron et al. 2023, arXiv:2307.09288, section 3.4 and figure 11), the results are mean differences
from a baseline and win rates. In addition to the paper, they show the difference at equal length,
because longer answers are the usual way to fool a reward (Singhal et al. 2023, arXiv:2310.03716),
and the KL to the baseline in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import PositiveFloat

from alignkit import (
    Artifact,
    DataRef,
    Field,
    Group,
    JudgeRef,
    PolicyRef,
    RewardRef,
    RunFailed,
    Step,
    StepContext,
    StepData,
)
from alignkit.contract.report import Block, Report
from alignkit.data.group import write_groups
from alignkit.errors import did_you_mean
from alignkit.recipe.schema import BASE
from alignkit_plugins.ai_feedback.judge_card import checked_judges, judge_names, mapped, sentence
from alignkit_plugins.compare.comparison import (
    PoliciesOptions,
    check_unique,
    kept_answers,
    label,
    prompts_to_compare,
    sample_policies,
    scored_by,
    short_names,
    together,
    units_note,
    units_of,
)
from alignkit_plugins.compare.rows import TRUST, Row, adjusted, main_rows, plain
from alignkit_plugins.compare.scores import Measure, Scale, compare, scale_of, scores_of
from alignkit_plugins.compare.tables import over, side_by_side, table
from alignkit_plugins.compare.verdicts import verdicts
from alignkit_plugins.evals import examples, judged, measures, metrics
from alignkit_plugins.evals.decoded import Decoded, Decoder
from alignkit_plugins.evals.learned_from import (
    learned_from,
    trained_prompts,
    training_data_note,
)
from alignkit_plugins.evals.metrics import Metric, raters_of

NONE = "(none)"  # the group of prompts without the column
FILTERS = ("min_new_tokens", "top_k", "top_p")  # options of sampling that leave tokens out
SHOWN = 3  # prompts whose answers are in the report
TrainedOn = Mapping[str, Mapping[str, bool | None]]  # by policy and rater


class Evaluate(Step):
    """Sample from each policy, score with each reward, and compare each policy with the
    baseline.
    """

    class Options(PoliciesOptions):
        policies: list[PolicyRef | Decoded] = Field(  # type: ignore[assignment]
            min_length=1,
            description=(
                "policies to compare: `base`, stages or `STAGE@k`; or `{policy: sft, best_of: 4, "
                "reward: helpful}`"
            ),
        )
        metrics: dict[str, Metric] = Field(
            {}, "what the verdict goes by: rewards by name, on all prompts or on some"
        )
        composites: dict[str, dict[str, PositiveFloat]] = Field(
            {},
            "weighted sums of metrics, which decide before them; those that should fall are subtracted",
        )
        rewards: list[RewardRef] = Field([], "rewards that score the responses")
        examples: DataRef | None = Field(
            None,
            (
                "held-out demonstrations, pairs or rankings, which the policies read without "
                "sampling"
            ),
        )
        judges: list[JudgeRef] = Field(
            [], "judges that compare each policy with the baseline, in both orders"
        )
        base: bool = Field(True, "the policies' base model answers as well")
        kl: bool = Field(True, "measure the KL to the baseline")
        samples_per_prompt: int = Field(1, "responses of each policy to each prompt", ge=1, le=1024)
        by: list[str] = Field([], "columns of the prompts to break the results down by")
        limit: int | None = Field(None, "use only the first N prompts", ge=1)
        next: str = Field("", "command to try next, printed last")

        def check_values(self) -> None:
            super().check_values()
            raters = [*self.metrics, *map(label, self.rewards), *judge_names(self.judges)]
            check_unique("metrics, composites, rewards and judges", [*self.composites, *raters])
            for name, weights in self.composites.items():
                for metric in weights or [""]:
                    if metric not in self.metrics:
                        near = did_you_mean(metric, self.metrics)
                        raise ValueError(f"composite '{name}': '{metric}' is no metric; {near}")
            if not raters and self.examples is None:
                raise ValueError("name at least one metric, reward or judge, or examples")
            if self.kl and self.sampling.temperature == 0:
                raise ValueError(
                    "the KL is measured at the sampling temperature: set one above 0, or `kl: "
                    "false`"
                )
            if len(self.policies) < 2 and self.judges:
                raise ValueError("judges compare policies: name at least two")
            if len(self.decoded) == len(self.policies):
                raise ValueError("name one policy by itself, with which the others are compared")

        @property
        def decoded(self) -> dict[str, Decoded]:
            """The policies that answer in another way, by their names in tables."""
            return {str(one): one for one in self.policies if isinstance(one, Decoded)}

        @property
        def named(self) -> dict[str, str]:
            plain = short_names([one for one in self.policies if isinstance(one, str)])
            names = [plain.get(str(one), str(one)) for one in self.policies]
            return dict(zip(names, self.policies_to_sample(), strict=True))

        def policies_to_sample(self) -> list[str]:
            return [one.policy if isinstance(one, Decoded) else one for one in self.policies]

    options: Options

    @property
    def baseline(self) -> str | None:
        """The name of the policy that the others are compared with; None if there is only one."""
        return self.options.baseline_name

    @property
    def challengers(self) -> list[str]:
        """The names of the policies that are compared with the baseline."""
        return [name for name in self.options.named if self.baseline not in (None, name)]

    def check_data(self, data: StepData) -> None:
        options = self.options
        if (held_out := data.load(options.examples)) is not None:
            examples.usable(held_out)
        if (rows := data.load(options.prompts)) is not None:
            prompts, _ = self._prompts(rows)
            for one in options.decoded.values():
                one.check_prompts(data.load(one.examples) or [], prompts)
            for reward in options.rewards:
                data.check_prompts(reward, prompts)
            for metric in options.metrics.values():
                counted = list(filter(metric.counts, prompts))
                data.check_prompts(metric.reward, counted)

    def _prompts(self, rows: Sequence[Group]) -> tuple[list[Group], list[str]]:
        """The prompts of rows, and notes. Raises DataError if they lack what metrics or breakdowns
        need.
        """
        limit = self.options.limit
        different, notes = prompts_to_compare(rows, limit)
        among = f" among the first {limit} (limit: {limit})" if limit else ""
        metrics.check_where(self.options.metrics, different, among)
        for place, column in enumerate(self.options.by):
            metrics.check_column(different, column, (), ("by", place))
        return different, notes

    def run(self, context: StepContext) -> Artifact:
        options, where = self.options, context.out.name
        # Before sampling: a reward that cannot work, because a key or a file is missing, fails
        # here.
        of_metrics = {name: context.scorer(one.reward) for name, one in options.metrics.items()}
        of_rewards = {label(spec): context.scorer(spec) for spec in options.rewards}
        judges = checked_judges(options.judges, context)
        decoders = {name: Decoder(one, context) for name, one in options.decoded.items()}
        prompts, notes = self._prompts(context.load(options.prompts))
        notes += self._notes(prompts, context)
        policies, base = self._policies(context)
        # What reads answers by a policy's own probabilities, or from an earlier result
        own_words = {name: model for name, model in policies.items() if name not in decoders}
        held_out, rows = self._of_examples(own_words, base, notes, context)
        sampling = {"samples_per_prompt": options.samples_per_prompt, **options.sampled()}
        kept = kept_answers(context, own_words, prompts, {**sampling, "seed": context.seed})
        groups = sample_policies(
            context, policies, prompts, kept=kept, decoders=decoders, **sampling
        )
        if not groups:
            text = f"none of {len(prompts)} prompts could be answered by all policies"
            raise RunFailed(f"evaluate: {text}")

        def say(name: str) -> None:
            context.say(f"{where}: scoring with {name}")

        groups = scored_by(groups, of_rewards | of_metrics, say, options.metrics)
        trained_on = self._trained_on(policies, groups, context)
        rated = self._rated(groups, of_metrics | of_rewards, trained_on)
        headline = next((name for name in rated if rated[name].tested), None)
        if rows:
            headline = rows[0].metric
        scores, cards = scores_of(groups, list(policies), rated), dict[str, Any]()
        for name, judge in judges.items():
            ask, verdicts = mapped(judge.compare, name, context.map), dict[str, judged.Judged]()
            for policy in self.challengers:
                context.say(f"{where}: {name} compares {policy}")
                verdicts[policy] = judged.judge(groups, policy, str(self.baseline), ask)
            judged.add(scores, groups, verdicts, str(self.baseline), name, trained_on[name])
            cards[name] = judged.card_of(groups, verdicts.values())
        rows += compare(scores, self.baseline, self.challengers, base)
        if len(self.challengers) > 1:
            rows += judged.points(rows)
        if options.samples_per_prompt > 1:
            spread = measures.diversity(groups, list(policies))
            rows += compare(spread, self.baseline, self.challengers)
        rows.sort(key=lambda row: list(policies).index(row.policy))
        rows = adjusted(rows) + measures.of_answers(groups, list(policies))
        if self.baseline is not None and options.kl:
            temperature = options.sampled()["temperature"]
            rows += measures.kl_of(groups, own_words, self.baseline, temperature, context)
        alone = {name: one for name, one in rated.items() if not one.parts}
        for column in options.by:
            for value, part in _parts(groups, column).items():
                own = scores_of(part, list(policies), alone)
                for row in compare(own, self.baseline, self.challengers):
                    rows.append(replace(row, column=column, value=value, tested=False))
        evaluation = {
            "prompts": len(groups),
            "units": len({*units_of(groups)}),
            "left_out": len(prompts) - len(groups),
            "examples": len(held_out),
            "sampling": {**sampling, "seed": context.seed},
            "notes": notes,
            "baseline": self.baseline,
            "headline": headline,
            "composites": {name: rated[name].parts for name in options.composites},
            "policies": list(policies),
            "judge_cards": cards,
            "results": list(map(plain, rows)),
        }
        write_groups(context.out / "samples.jsonl", together(groups))
        context.write_json("evaluation.json", evaluation)
        return self._artifact(groups, evaluation, rows)

    def _notes(self, prompts: Sequence[Group], context: StepContext) -> list[str]:
        """How is sampled, who learned from the prompts, and whether the KL is biased."""
        options, trained = self.options, list[dict[str, set[int]]]()
        measured = [metric.reward for metric in options.metrics.values()]
        chosen = [one.reward for one in options.decoded.values() if one.reward is not None]
        for model in (*options.named.values(), *options.rewards, *measured, *chosen):
            trained.append(trained_prompts(context, model, prompts))
        notes = [f"sampled with {options.described()}"]
        notes += training_data_note(context, trained, prompts)
        if filters := [key for key in FILTERS if options.kl and key in options.sampled()]:
            left_out = f"samples leave some out ({', '.join(filters)})"
            notes.append(f"the KL is biased: it is of all tokens, and {left_out}")
        return notes

    def _artifact(
        self, groups: Sequence[Group], evaluation: dict[str, Any], rows: Sequence[Row]
    ) -> Artifact:
        """What the step says of its numbers."""
        sentences = list[str]()
        for verdict in verdicts(rows):
            sentences.append(" ".join(verdict.sentences))
        for name, card in evaluation["judge_cards"].items():
            sentences.append(sentence(name, card))
        blocks: list[Block] = [
            "\n".join(evaluation["notes"]),
            *filter(None, ["\n".join(sentences)]),
        ]
        blocks.append(table(main_rows(rows), over(evaluation)))
        policies, headline = evaluation["policies"], evaluation["headline"]
        blocks += [side_by_side(group, policies, headline) for group in groups[:SHOWN]]
        text = self.options.next and f"next: {self.options.next}"
        return Artifact(summary=evaluation, report=Report(blocks), text=text)

    def _policies(self, context: StepContext) -> tuple[dict[str, str], str | None]:
        """The model of each policy by its name, and their base model, which answers as well; None
        if they have several, or if it does not answer.
        """
        policies, bases = dict[str, str](), set[str | None]()
        for name, policy in self.options.named.items():
            policies[name] = policy
            bases.add(context.base_of(policy))
        base = bases.pop()
        if bases or base is None:
            return policies, None
        if base not in policies and self.options.base:
            policies = {base: base, **policies}
        return policies, base if base in policies else None

    def _of_examples(
        self,
        policies: Mapping[str, str],
        base: str | None,
        notes: list[str],
        context: StepContext,
    ) -> tuple[list[Group], list[Row]]:
        """The held-out examples with the scores of each policy, and their rows; none without the
        option. notes: get a warning of training data, and how many are left out.
        """
        if self.options.examples is None:
            return [], []
        loaded = context.load(self.options.examples)
        groups = together(examples.usable(loaded))
        if others := len(loaded) - len(groups):
            notes.append(f"{others} of {len(loaded)} examples compare nothing and are left out")
        held_out = examples.measured(groups, policies, context)
        seen, trained_on = list[dict[str, set[int]]](), dict[str, bool | None]()
        for name, model in policies.items():
            seen.append(trained_prompts(context, model, held_out))
            trained_on[name] = bool(seen[-1])
        notes += units_note(held_out) + training_data_note(context, seen, held_out, "examples")
        write_groups(context.out / "held_out.jsonl", held_out)
        scores = examples.scores(held_out, list(policies), trained_on)
        compared = [name for name in self.challengers if name in policies and name != base]
        return held_out, compare(scores, self.baseline, compared, base)

    def _trained_on(
        self, policies: Mapping[str, str], groups: Sequence[Group], context: StepContext
    ) -> dict[str, dict[str, bool | None]]:
        """Whether each rater that decides judges itself in a policy that learned from it.

        The known answer to a prompt that the policy has not learned from is no opinion that it
        could please.
        """
        trained_on, decoded = dict[str, dict[str, bool | None]](), self.options.decoded
        for name, rater in raters_of(self.options).items():
            metric = self.options.metrics.get(name)
            counted = list(groups)
            if metric:
                counted = list(filter(metric.counts, groups))
            trained_on[name] = {}
            for policy, model in policies.items():
                own = None
                if context.recipe is not None:
                    known = context.recipe, context.out.parent
                    chosen_by = getattr(decoded.get(policy), "reward", None)
                    own = learned_from(model, rater, *known, chosen_by)
                    if own and metrics.verifies(rater) and not model.startswith("/"):
                        # nobody says which prompts the base model has learned from
                        of_base = learned_from(BASE, rater, *known) is not False
                        own = of_base or bool(trained_prompts(context, model, counted))
                trained_on[name][policy] = own
        return trained_on

    def _rated(
        self, groups: Sequence[Group], scorers: Mapping[str, Any], trained_on: TrainedOn
    ) -> dict[str, Measure]:
        """What composites, metrics and rewards mean."""
        measures = dict[str, Measure]()
        for name, scorer in scorers.items():
            scale = scale_of(groups, name, scorer.bounds)
            facts: Any = {"scale": scale, "trained_on": trained_on.get(name, {})}
            facts["tested"] = name in trained_on
            if metric := self.options.metrics.get(name):
                lower = metric.better == "lower"
                measures[name] = Measure(lower=lower, margin=metric.margin, **facts)
            else:
                measures[name] = Measure("reward", percent=False, **facts)
        return self._composites(measures, trained_on) | measures

    def _composites(self, measures: Mapping[str, Any], trained_on: TrainedOn) -> dict[str, Measure]:
        """What composites mean. measures: what metrics mean."""
        found = dict[str, Measure]()
        for name, weights in self.options.composites.items():
            parts, own = dict[str, float](), dict[str, bool | None]()
            for metric, weight in weights.items():
                parts[metric] = -weight if measures[metric].lower else weight
            whole = math.fsum(max(0.0, part) for part in parts.values()) or 1.0
            parts = {metric: part / whole for metric, part in parts.items()}
            for policy in trained_on[next(iter(parts))]:
                own[policy] = max((trained_on[one][policy] for one in parts), key=TRUST.index)
            shares = all(measures[one].scale.levels == (0.0, 1.0) for one in parts)
            found[name] = Measure("metric", Scale(None), False, shares, True, own, parts)
        return found


def _parts(groups: Sequence[Group], column: str) -> dict[str, list[Group]]:
    """The prompts with each value of a column."""
    parts = dict[str, list[Group]]()
    for group in groups:
        value = group.meta.get(column)
        parts.setdefault(NONE if value is None else str(value), []).append(group)
    return dict(sorted(parts.items()))

"""The step `evaluate`: compare policies on held-out prompts by rewards and judges, with confidence
intervals.

All policies answer the same prompts with the same random streams, and every reward scores all
answers. A prompt is the unit of all statistics: its samples are averaged first, policies are
compared prompt by prompt, and intervals are at 95% (`evaluation.statistics`). As in Llama 2
(Touvron et al. 2023, arXiv:2307.09288, section 3.4 and figure 11), the results are mean differences
from a baseline and win rates. In addition to the paper, they show the difference at equal length,
because longer answers are the usual way to fool a reward (Singhal et al. 2023, arXiv:2310.03716),
and the KL to a reference in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import model_validator

from alignkit import (
    Artifact,
    CheckedJudge,
    DataError,
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
from alignkit.data.group import write_groups
from alignkit_plugins.ai_feedback.judge_card import check_names, judge_names, mapped
from alignkit_plugins.compare.comparison import (
    check_unique,
    prompts_to_compare,
    sample_policies,
    short_names,
    together,
)
from alignkit_plugins.compare.reward_columns import Column, label, scored_by
from alignkit_plugins.compare.sampling import AnswerOptions
from alignkit_plugins.evaluate import breakdown, examples, judged, metrics, numbers, report
from alignkit_plugins.evaluate.answering import Answering
from alignkit_plugins.evaluate.cards import Cards
from alignkit_plugins.evaluate.diversity import diversity
from alignkit_plugins.evaluate.learned_from import (
    learned_by,
    note_on,
    trained_prompts,
    training_data_note,
)
from alignkit_plugins.evaluate.metrics import (
    Metric,
    chosen_by_raters,
    raters_of,
    warn_of_own_raters,
)
from alignkit_plugins.evaluate.numbers import kl_of
from alignkit_plugins.evaluate.rows import as_csv, rows_of
from alignkit_plugins.evaluate.variant import Variant, by_title, draw, role_of


class Evaluate(Step):
    """Sample from each policy, score with each reward, and compare each policy with the
    baseline.
    """

    class Options(AnswerOptions):
        policies: list[PolicyRef | Variant] = Field(
            min_length=1,
            description=(
                "policies to compare: `base`, stages, `STAGE@k`, or `{policy: sft, best_of: 4, "
                "reward: ...}`"
            ),
        )
        metrics: dict[str, Metric] = Field(
            default_factory=dict,
            description="what the verdict goes by: rewards by name, on all prompts or on some",
        )
        rewards: list[RewardRef] = Field(
            default_factory=list, description="rewards that score the responses"
        )
        examples: DataRef | None = Field(
            None,
            description=(
                "held-out demonstrations, pairs or rankings, which the policies read without "
                "sampling"
            ),
        )
        judges: list[JudgeRef] = Field(
            default_factory=list,
            description="judges that compare each policy with the baseline, in both orders",
        )
        prompts: DataRef = Field(
            description="held-out prompts; rows that repeat words and columns count once"
        )
        base: bool = Field(True, description="show the base model too")
        baseline: PolicyRef | None = Field(
            None,
            description=(
                "policy to compare the others with; default: the first but `base`, or else `base`"
            ),
        )
        kl: bool = Field(True, description="measure the KL to the reference")
        reference: PolicyRef | None = Field(
            None, description="policy to measure the KL to; default: the baseline"
        )
        samples_per_prompt: int = Field(
            1, ge=1, le=1024, description="responses of each policy to each prompt"
        )
        by: list[str] = Field(
            default_factory=list, description="columns of the prompts to break the results down by"
        )
        limit: int | None = Field(
            None, ge=1, description="use only the first N prompts of each metric"
        )
        show: int = Field(
            3, ge=0, description="number of prompts whose responses are printed side by side"
        )
        next: str = Field("", description="command to try next, printed last")

        @model_validator(mode="after")
        def _consistent(self) -> Any:
            check_unique("policies", self._titles())
            check_unique("rewards", [label(spec) for spec in self.rewards])
            if not self.metrics and not self.rewards and not self.judges and self.examples is None:
                raise ValueError("name at least one metric, reward or judge, or examples")
            check_names(self.rewards, self.judges)
            raters = [*map(label, self.rewards), *judge_names(self.judges)]
            if taken := [name for name in self.metrics if name in raters]:
                raise ValueError(
                    f"'{taken[0]}' is the name of a metric, and of a reward or judge; rename the "
                    "metric"
                )
            if self.kl and self.sampling.temperature == 0:
                raise ValueError(
                    "the KL is measured at the sampling temperature: set one above 0, or `kl: "
                    "false`"
                )
            if not self.kl and self.reference is not None:
                raise ValueError(
                    "reference is the policy to measure the KL to, and kl is false: leave one of "
                    "them out"
                )
            if len(self.policies) < 2 and self.judges:
                raise ValueError("judges compare policies: name at least two")
            if self.baseline is not None and self.baseline not in self.policies:
                help = (
                    " (of one with options, set its own `baseline: true`)"
                    if self.baseline in self._titles()
                    else ""
                )
                plain = ", ".join(policy for policy in self.policies if isinstance(policy, str))
                raise ValueError(
                    f"baseline '{self.baseline}' must be one of the policies: {plain}{help}"
                )
            if len(set(filter(None, [self.baseline, *self.baselines()]))) > 1:
                names = ", ".join(filter(None, [self.baseline, *self.baselines()]))
                raise ValueError(f"{names} are all the baseline: choose one policy")
            return self

        def _titles(self) -> list[str]:
            return [title for policy in self.policies for title in by_title([policy])]

        def baselines(self) -> list[str]:
            """The policies with options that say that they are the baseline."""
            named = by_title(self.policies).items()
            return [
                name for name, policy in named if isinstance(policy, Variant) and policy.baseline
            ]

        def policies_to_sample(self) -> list[str]:
            return list(dict.fromkeys(map(role_of, self.policies)))

    options: Options
    _base: str | None = None  # the base model of all policies

    @property
    def variants(self) -> dict[str, Variant]:
        """Those of the policies that answer in another way, by name."""
        named = by_title(self.options.policies).items()
        return {name: policy for name, policy in named if isinstance(policy, Variant)}

    @property
    def policies(self) -> list[str]:
        """All that answer: those that are compared, behind the base model."""
        shown = [] if self._base is None or self._base in self._named else [self._base]
        return [*shown, *self._named]

    @property
    def _named(self) -> list[str]:
        """The policies that the recipe names."""
        return list(by_title(self.options.policies))

    def _role(self, policy: str) -> str:
        """The reference of the model that answers."""
        return role_of(self.variants.get(policy, policy))

    @property
    def baseline(self) -> str | None:
        """The policy to compare the others with; None if there is only one policy."""
        chosen = next(iter(self.options.baselines()), self.options.baseline)
        if chosen or len(self._named) < 2:
            return chosen
        return next((policy for policy in self._named[:-1] if policy != "base"), self._named[0])

    @property
    def reference(self) -> str | None:
        """The policy to measure the KL to, which answers once to plain prompts; None if no KL is
        measured.
        """
        if not self.options.kl:
            return None
        baseline = self.baseline
        return self.options.reference or (baseline and self._role(baseline))

    def check_data(self, data: StepData) -> None:
        options = self.options
        if self._compared:
            warn_of_own_raters(options, self._compared, self._learned(learned_by(data)), data)
        for warning in chosen_by_raters(options, self.variants, learned_by(data)):
            data.say(warning)
        prompts: Sequence[Group] = ()
        if (held_out := data.load(options.examples)) is not None:
            examples.usable(held_out)
        if (rows := data.load(options.prompts)) is not None:
            prompts, _ = self._prompts(rows)
            for reward in options.rewards:
                data.check_prompts(reward, prompts)
            for metric in options.metrics.values():
                data.check_prompts(
                    metric.reward, [group for group in prompts if metric.counts(group)]
                )
            for variant in self.variants.values():
                if variant.reward is not None:
                    data.check_prompts(variant.reward, prompts)
        for place, policy in enumerate(options.policies):
            if isinstance(policy, Variant) and (shown := data.load(policy.few_shot)) is not None:
                try:
                    draw(shown, policy.shots, 0, prompts=prompts)
                except DataError as error:
                    error.option = ("policies", place, *(error.option or ()))
                    raise

    def _prompts(self, rows: Sequence[Group]) -> tuple[list[Group], list[str]]:
        """The prompts of rows, and notes. Raises DataError if they lack what metrics or breakdowns
        need.
        """
        different, notes = prompts_to_compare(rows)
        metrics.check_where(self.options.metrics, different)
        prompts = metrics.limited(self.options.metrics, different, self.options.limit)
        prompts, shared = together(prompts, self.options.prompts)
        breakdown.check_columns(prompts, self.options.by)
        return prompts, [*notes, *shared]

    def run(self, context: StepContext) -> Artifact:
        options = self.options
        bases = {context.base_of(policy) for policy in options.policies_to_sample()}
        self._base = bases.pop() if options.base and len(bases) == 1 else None
        # Before sampling: a reward that cannot work, because a key or a file is missing, fails
        # here.
        measured_by = [spec for spec, _ in metrics.distinct_rewards(options.metrics)]
        scorers = [context.scorer(spec) for spec in (*measured_by, *options.rewards)]
        answering = Answering(self.variants, options.samples_per_prompt, context)
        judges = dict(zip(judge_names(options.judges), options.judges, strict=True))
        checked = {name: CheckedJudge(component, context) for name, component in judges.items()}
        prompts, notes = self._prompts(context.load(options.prompts))
        held_out = self._examples(context)
        answering.draw(prompts)
        groups, summary = self._measured(prompts, notes, scorers, answering, context)
        verdicts = self._verdicts(groups, checked, context)
        return self._artifact(groups, summary, verdicts, checked, held_out, context)

    @property
    def _compared(self) -> list[str]:
        """The policies that are compared with the baseline."""
        return [
            policy
            for policy in self._named
            if self.baseline is not None and policy != self.baseline
        ]

    def _measured(
        self,
        prompts: Sequence[Group],
        notes: Sequence[str],
        scorers: Sequence[Any],
        answering: Answering,
        context: StepContext,
    ) -> tuple[list[Group], dict[str, Any]]:
        """The answers with their scores, and what evaluation.json says without judges."""

        def say(name: str) -> None:
            context.say(f"{context.out.name}: scoring with {name}")

        warning = self._warning(prompts, context)
        groups, own = (
            self._sample(prompts, answering, context),
            len(scorers) - len(self.options.rewards),
        )
        groups, columns = scored_by(groups, self.options.rewards, scorers[own:], say)
        groups = metrics.scored(groups, self.options.metrics, scorers[:own], say)
        summary = self._summary(groups, columns, len(prompts) - len(groups), answering, context)
        summary["notes"] += [*notes, *answering.notes(self.reference), *filter(None, [warning])]
        return groups, summary

    def _artifact(
        self,
        groups: Sequence[Group],
        summary: dict[str, Any],
        verdicts: breakdown.Verdicts,
        judges: Mapping[str, CheckedJudge],
        held_out: Sequence[Group],
        context: StepContext,
    ) -> Artifact:
        """Everything that the step writes."""
        summary["judges"] = [*judges]
        summary["judged"] = judged.summaries(groups, verdicts, self.baseline)
        summary["judge_cards"] = self._cards(groups, judges, verdicts, summary["rewards"], context)
        groups, summary, verdicts = numbers.with_short_names(groups, summary, verdicts)
        summary["ranking"] = breakdown.rankings(groups, summary, verdicts, context.seed)
        summary["by"] = breakdown.by_columns(
            groups, self.options.by, summary, verdicts, self._compare
        )
        if held_out:
            trained = {
                policy: trained_prompts(context, policy, held_out) for policy in self._readers
            }
            summary["notes"] += filter(None, [note_on(trained.values(), held_out, "examples")])
            learned = {policy: bool(places) for policy, places in trained.items()}
            summary = examples.added(
                summary, held_out, self.baseline, short_names(self._readers), learned
            )
            write_groups(context.out / "held_out.jsonl", held_out)
        write_groups(context.out / "samples.jsonl", groups)
        context.write_json("evaluation.json", summary)
        rows = rows_of(summary)
        (context.out / "results.csv").write_text(as_csv(rows), encoding="utf-8")
        shown = report.report(summary, rows, groups[: self.options.show])
        return Artifact(
            summary=summary,
            report=shown,
            text=f"next: {self.options.next}" if self.options.next else "",
        )

    @property
    def _readers(self) -> list[str]:
        """The policies that read examples: all that answer as themselves."""
        return [policy for policy in self.policies if policy not in self.variants]

    def _examples(self, context: StepContext) -> list[Group]:
        """The held-out examples with the scores of each policy; none without the option."""
        if self.options.examples is None:
            return []
        loaded = context.load(self.options.examples)
        groups, _ = together(examples.usable(loaded), self.options.examples)
        if others := len(loaded) - len(groups):
            context.say(
                f"{context.out.name}: dropped {others} of {len(loaded)} examples: they compare "
                "nothing"
            )
        return examples.measured(groups, self._readers, context)

    def _verdicts(
        self, groups: Sequence[Group], judges: Mapping[str, CheckedJudge], context: StepContext
    ) -> dict[str, dict[str, judged.Judged]]:
        """The comparisons of each policy with the baseline, by each judge."""
        baseline, found = str(self.baseline), {}
        for policy in self._compared if judges else ():
            context.say(
                f"{context.out.name}: {', '.join(judges)} compare "
                f"{short_names(self.policies)[policy]}"
            )
            found[policy] = {
                name: judged.judge(
                    groups, policy, baseline, mapped(judge.compare, name, context.map)
                )
                for name, judge in judges.items()
            }
        return found

    def _cards(
        self,
        groups: Sequence[Group],
        judges: Iterable[str],
        verdicts: breakdown.Verdicts,
        rewards: Sequence[str],
        context: StepContext,
    ) -> dict[str, Any]:
        if not verdicts:
            return {}
        lower = frozenset(
            name for name, metric in self.options.metrics.items() if metric.better == "lower"
        )
        cards = Cards(groups, str(self.baseline), verdicts, list(judges), context, lower)
        return cards.all(rewards)

    def _warning(self, prompts: Sequence[Group], context: StepContext) -> str:
        """What is known of prompts that policies or reward models were trained on; empty without
        such prompts.
        """
        policies, texts = self.options.policies_to_sample(), self._chosen(context)
        models = (
            *policies,
            *self.options.rewards,
            *(one.reward for one in self.options.metrics.values()),
        )
        others = {policy: name for policy, name in short_names(policies).items() if name != policy}
        if unknown := [
            name for policy, name in others.items() if not trained_prompts(context, policy, prompts)
        ]:
            texts.append(
                f"warning: it was not checked whether {', '.join(unknown)} learned from these "
                "prompts"
            )
        if note := training_data_note(context, models, prompts, "prompts"):
            texts.append(note)
        for text in texts:
            context.say(f"{context.out.name}: {text}")
        return "\n".join(texts)

    def _sample(
        self, prompts: Sequence[Group], answering: Answering, context: StepContext
    ) -> list[Group]:
        options = self.options
        groups = sample_policies(
            context,
            self.policies,
            prompts,
            prompted=answering.prompted,
            samples_per_prompt=options.samples_per_prompt,
            **options.sampled(),
        )
        if not groups:
            shown = any(variant.few_shot is not None for variant in self.variants.values())
            help = "\nhelp: set 'shots' to less, so that examples and prompts fit" if shown else ""
            raise RunFailed(
                f"evaluate: none of {len(prompts)} prompts could be answered by all policies{help}"
            )
        return groups

    def _summary(
        self,
        groups: Sequence[Group],
        columns: Sequence[Column],
        left_out: int,
        answering: Answering,
        context: StepContext,
    ) -> dict[str, Any]:
        options, baseline = self.options, self.baseline
        combined = [column.name for column in columns if not column.single]
        rewards = [column.name for column in columns]
        names = [*options.metrics, *rewards]
        sampling = options.sampled()
        kls = kl_of(
            groups,
            self.policies,
            self.reference,
            answering.prompted,
            sampling["temperature"],
            context,
        )
        cut = ", ".join(
            f"{key} {sampling[key]}"
            for key in ("min_new_tokens", "top_p", "top_k")
            if key in sampling
        )
        biased = (
            [f"KL is biased: {cut} leaves tokens out of the answers, and it is of all tokens"]
            if cut
            else []
        )
        raters, learned = raters_of(options), self._learned(learned_by(context), context, groups)
        varied = diversity(groups, self.policies, baseline)
        return {
            "prompts": len(groups),
            "left_out": left_out,
            "sampling": {
                "samples_per_prompt": options.samples_per_prompt,
                **sampling,
                "seed": context.seed,
            },
            "notes": [f"sampled with {options.described()}", *(biased if self.reference else ())],
            "baseline": baseline,
            "reference": self.reference,
            "headline": next(iter([*options.metrics, *combined, *rewards]), None),
            "metrics": metrics.described(options.metrics, groups),
            "rewards": names,
            "trained_on": {
                policy: {name: learned(policy, rater) for name, rater in raters.items()}
                for policy in self.policies
            },
            "variants": {name: answering.facts(name) for name in self.variants},
            "policies": {
                policy: {
                    **numbers.measure(groups, policy, names, options.metrics),
                    "kl": kls[policy],
                    "tokens": answering.tokens(policy, groups),
                    "diversity": varied[policy],
                }
                for policy in self.policies
            },
            "against": {
                policy: {name: self._compare(groups, policy, baseline, name) for name in names}
                for policy in self._compared
                if baseline is not None and names
            },
            "against_base": {
                policy: {
                    name: self._compare(groups, policy, self._base, name)["difference"]
                    for name in options.metrics
                }
                for policy in self._named
                if self._base not in (None, baseline, policy) and options.metrics
            },
        }

    def _chosen(self, context: StepContext) -> list[str]:
        return chosen_by_raters(self.options, self.variants, learned_by(context))

    def _learned(
        self,
        known: Callable[[Any, Any], bool | None],
        context: StepContext | None = None,
        groups: Sequence[Group] = (),
    ) -> Callable[[str, Any], bool | None]:
        """Whether a rater judges itself in a policy, which learned from it, or whose answers it
        chose.

        The known answer to a prompt that the policy has not learned from is no opinion that it
        could please. context, groups: None before the run, which says what the policies have
        learned from.
        """

        def learned(policy: str, rater: Any) -> bool | None:
            role, variant = self._role(policy), self.variants.get(policy)
            if variant is not None and variant.chosen_by(rater, known):
                return True
            own = known(role, rater)
            return False if own and metrics.verifies(rater) and held_out(role, rater) else own

        def held_out(role: str, rater: Any) -> bool:
            if context is None:
                return True
            if role.startswith("/") or known(context.base_of(role) or "base", rater) is not False:
                return False  # nobody says what another run has learned from
            own = [metric for metric in self.options.metrics.values() if metric.reward == rater]
            asked = [
                group for group in groups if not own or any(metric.counts(group) for metric in own)
            ]
            return not any(trained_prompts(context, role, asked).values())

        return learned

    def _compare(
        self, groups: Sequence[Group], policy: str, baseline: str, name: str
    ) -> dict[str, Any]:
        return numbers.compare(groups, policy, baseline, name, self.options.metrics)

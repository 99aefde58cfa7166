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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from alignkit.recipe.schema import BASE
from alignkit.report import WIDTH, Block, Report
from alignkit_plugins.ai_feedback.judge_card import check_names, judge_names, mapped, sentence
from alignkit_plugins.compare.compared import Scale, rated, scale_of
from alignkit_plugins.compare.comparison import (
    AnswerOptions,
    Prompted,
    check_unique,
    default_baseline,
    prompts_to_compare,
    sample_policies,
    short_names,
    together,
)
from alignkit_plugins.compare.reward_columns import label, scored_by
from alignkit_plugins.compare.rows import Row, adjusted, as_csv, main_rows, plain
from alignkit_plugins.compare.tables import over, side_by_side, table
from alignkit_plugins.compare.verdicts import verdicts
from alignkit_plugins.evaluate import examples, judged, measures, metrics
from alignkit_plugins.evaluate.learned_from import (
    learned_by,
    note_on,
    trained_prompts,
    training_data_note,
)
from alignkit_plugins.evaluate.metrics import Metric, raters_of
from alignkit_plugins.evaluate.variant import Variant, answering, by_title, role_of, shots_of

NONE = "(none)"  # of prompts without the column
SHOWN = 3  # prompts whose answers are in the report
CUT = ("min_new_tokens", "top_p", "top_k")  # keys of sampling that leave tokens out


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
        baseline: PolicyRef | None = Field(
            None,
            description=(
                "policy to compare the others with; default: the first but `base`, or else `base`"
            ),
        )
        kl: bool = Field(True, description="measure the KL to the baseline")
        samples_per_prompt: int = Field(
            1, ge=1, le=1024, description="responses of each policy to each prompt"
        )
        by: list[str] = Field(
            default_factory=list, description="columns of the prompts to break the results down by"
        )
        limit: int | None = Field(None, ge=1, description="use only the first N prompts")
        next: str = Field("", description="command to try next, printed last")

        @model_validator(mode="after")
        def _consistent(self) -> Any:
            check_unique("policies", [title for title, _ in by_title(self.policies)])
            check_unique("rewards", [label(spec) for spec in self.rewards])
            check_names(self.rewards, self.judges)
            raters = [*map(label, self.rewards), *judge_names(self.judges)]
            if not self.metrics and not raters and self.examples is None:
                raise ValueError("name at least one metric, reward or judge, or examples")
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
            if len(self.policies) < 2 and self.judges:
                raise ValueError("judges compare policies: name at least two")
            plain = [policy for policy in self.policies if isinstance(policy, str)]
            if self.baseline is not None and self.baseline not in plain:
                raise ValueError(
                    f"baseline '{self.baseline}' must be one of the policies: {', '.join(plain)}"
                )
            return self

        def policies_to_sample(self) -> list[str]:
            return list(dict.fromkeys(map(role_of, self.policies)))

    options: Options

    @property
    def _named(self) -> dict[str, str | Variant]:
        """The policies of the recipe, by their names in results."""
        return dict(by_title(self.options.policies))

    @property
    def baseline(self) -> str | None:
        """The name of the policy that the others are compared with; None if there is only one."""
        for name, policy in self._named.items():
            if policy == self.options.baseline:
                return name
        return default_baseline(list(self._named))

    def check_data(self, data: StepData) -> None:
        options = self.options
        for warning in self._unjudged(self._learned(learned_by(data))):
            data.say(warning)
        if (held_out := data.load(options.examples)) is not None:
            examples.usable(held_out)
        prompts = list[Group]()
        if (rows := data.load(options.prompts)) is not None:
            prompts, _ = self._prompts(rows)
            for reward in options.rewards:
                data.check_prompts(reward, prompts)
            for metric in options.metrics.values():
                data.check_prompts(
                    metric.reward, [group for group in prompts if metric.counts(group)]
                )
        for policy in options.policies:
            if isinstance(policy, Variant):
                if policy.reward is not None and prompts:
                    data.check_prompts(policy.reward, prompts)
                self._shots(policy, prompts, data.load)

    def _prompts(self, rows: Sequence[Group]) -> tuple[list[Group], list[str]]:
        """The prompts of rows, and notes. Raises DataError if they lack what metrics or breakdowns
        need.
        """
        different, notes = prompts_to_compare(rows, self.options.limit)
        metrics.check_where(self.options.metrics, different)
        prompts, shared = together(different, self.options.prompts)
        for place, column in enumerate(self.options.by):
            metrics.check_column(prompts, column, (), ("by", place))
        return prompts, [*notes, *shared]

    def _shots(
        self, policy: Variant, prompts: Sequence[Group], load: Callable[[Any], list[Group] | None]
    ) -> list[Group]:
        """The examples in front of a policy's prompts. Raises DataError for those that cannot
        be.
        """
        rows = load(policy.few_shot) if policy.few_shot is not None else None
        try:
            return shots_of(rows or (), prompts)
        except DataError as error:
            error.option = ("policies", self.options.policies.index(policy), *(error.option or ()))
            raise

    def run(self, context: StepContext) -> Artifact:
        options = self.options
        # Before sampling: a reward that cannot work, because a key or a file is missing, fails
        # here.
        of_metrics = [context.scorer(spec) for spec in metrics.distinct_rewards(options.metrics)]
        of_rewards = [context.scorer(spec) for spec in options.rewards]
        components = zip(judge_names(options.judges), options.judges, strict=True)
        judges = {name: CheckedJudge(component, context) for name, component in components}
        prompts, notes = self._prompts(context.load(options.prompts))
        policies, base = self._policies(prompts, context)
        notes = [f"sampled with {options.described()}", *notes, *self._warnings(prompts, context)]
        held_out = self._examples(policies, context)
        groups = self._answers(policies, prompts, context)
        groups, columns = scored_by(groups, options.rewards, of_rewards, self._say(context))
        groups = metrics.scored(groups, options.metrics, of_metrics, self._say(context))
        compared = self._verdicts(groups, judges, context)

        learned = self._learned(learned_by(context), context, groups)
        trained_on = dict[str, dict[str, bool | None]]()
        for name, rater in raters_of(options).items():
            trained_on[name] = {policy: learned(policy, rater) for policy in policies}
        names = [*options.metrics, *(column.name for column in columns)]
        scales = {name: scale_of(groups, name) for name in names}
        sides: dict[str, Any] = {
            "policies": list(policies),
            "baseline": self.baseline,
            "compare": self._compared,
        }

        rows = list[Row]()
        if held_out:
            readers = self._readers(policies)
            seen = {
                name: trained_prompts(context, role, held_out) for name, role in readers.items()
            }
            notes += filter(None, [note_on(seen.values(), held_out, "examples")])
            compare = [name for name in self._compared if name in readers and name != base]
            facts = {
                "trained_on": {name: bool(places) for name, places in seen.items()},
                "tested": True,
            }
            rows += examples.rows(
                held_out, list(readers), self.baseline, compare=compare, base=base, **facts
            )
        first = [row.metric for row in rows[:1]]
        rated_by = _Rated(self, scales, trained_on, {**sides, "base": base})
        rows += rated_by.rows(groups, compared, tested=True)
        rows.sort(key=lambda row: list(policies).index(row.policy))
        rows = adjusted([*rows, *measures.diversity(groups, **sides, tested=True)])
        rows += measures.of_answers(groups, list(policies))
        if self.baseline is not None and options.kl:
            plain_model = role_of(self._named[self.baseline])
            temperature = options.sampled()["temperature"]
            rows += measures.kl_of(groups, policies, plain_model, temperature, context)
            notes += self._of_kl(policies)
        for column in options.by:
            rows += rated_by.by_column(groups, compared, column)
        leading = [*first, *(name for name in trained_on if name in scales)]
        evaluation = {
            "prompts": len(groups),
            "left_out": len(prompts) - len(groups),
            "examples": len(held_out),
            "sampling": {
                "samples_per_prompt": options.samples_per_prompt,
                **options.sampled(),
                "seed": context.seed,
            },
            "notes": notes,
            "baseline": self.baseline,
            "headline": next(iter(leading), None),
            "policies": list(policies),
            "judge_cards": judged.cards(groups, compared, str(self.baseline)),
            "results": list(map(plain, rows)),
        }
        return self._artifact(groups, held_out, evaluation, rows, context)

    def _artifact(
        self,
        groups: Sequence[Group],
        held_out: Sequence[Group],
        evaluation: dict[str, Any],
        rows: Sequence[Row],
        context: StepContext,
    ) -> Artifact:
        """Everything that the step writes."""
        if held_out:
            write_groups(context.out / "held_out.jsonl", held_out)
        write_groups(context.out / "samples.jsonl", groups)
        context.write_json("evaluation.json", evaluation)
        context.write_text("results.csv", as_csv(rows))
        told = [" ".join(verdict.sentences) for verdict in verdicts(rows)]
        told += [sentence(*card) for card in evaluation["judge_cards"].items()]
        blocks: list[Block] = ["\n".join(evaluation["notes"]), *filter(None, ["\n".join(told)])]
        blocks.append(table(main_rows(rows), over(evaluation), width=WIDTH))
        policies, headline = evaluation["policies"], evaluation["headline"]
        blocks += [side_by_side(group, policies, headline) for group in groups[:SHOWN]]
        return Artifact(
            summary=evaluation,
            report=Report(blocks),
            text=f"next: {self.options.next}" * bool(self.options.next),
        )

    @property
    def _compared(self) -> list[str]:
        """The policies that are compared with the baseline."""
        return [name for name in self._named if self.baseline not in (None, name)]

    def _policies(
        self, prompts: Sequence[Group], context: StepContext
    ) -> tuple[dict[str, Prompted], str | None]:
        """How each policy answers, and their base model, which answers as well; None if they have
        several.
        """
        found = dict[str, Prompted]()
        for name, policy in self._named.items():
            found[name] = Prompted(role_of(policy))
            if isinstance(policy, Variant):
                scorer = None if policy.reward is None else context.scorer(policy.reward)
                found[name] = answering(policy, self._shots(policy, prompts, context.load), scorer)
        bases = {context.base_of(prompted.role) for prompted in found.values()}
        base = bases.pop() if len(bases) == 1 else None
        if base is not None and base not in found:
            found = {base: Prompted(base), **found}
        return found, base

    def _say(self, context: StepContext) -> Callable[[str], None]:
        return lambda name: context.say(f"{context.out.name}: scoring with {name}")

    def _answers(
        self, policies: Mapping[str, Prompted], prompts: Sequence[Group], context: StepContext
    ) -> list[Group]:
        options = self.options
        count = options.samples_per_prompt
        groups = sample_policies(
            context, policies, prompts, samples_per_prompt=count, **options.sampled()
        )
        if not groups:
            text = f"evaluate: none of {len(prompts)} prompts could be answered by all policies"
            raise RunFailed(f"{text}\nhelp: leave more room, or set `limit` of few_shot to less")
        return groups

    def _examples(self, policies: Mapping[str, Prompted], context: StepContext) -> list[Group]:
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
        return examples.measured(groups, self._readers(policies), context)

    def _readers(self, policies: Mapping[str, Prompted]) -> dict[str, str]:
        """The models of the policies that read examples: all that answer as themselves."""
        variants = [name for name, policy in self._named.items() if isinstance(policy, Variant)]
        return {name: prompted.role for name, prompted in policies.items() if name not in variants}

    def _verdicts(
        self, groups: Sequence[Group], judges: Mapping[str, CheckedJudge], context: StepContext
    ) -> judged.ByPolicy:
        """The comparisons of each policy with the baseline, by each judge."""
        found: dict[str, dict[str, judged.Verdicts]] = {}
        for policy in self._compared if judges else ():
            context.say(f"{context.out.name}: {', '.join(judges)} compare {policy}")
            found[policy] = {}
            for name, judge in judges.items():
                compare = mapped(judge.compare, name, context.map)
                found[policy][name] = judged.judge(groups, policy, str(self.baseline), compare)
        return found

    # What is learned, and warned of

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

        def learned(name: str, rater: Any) -> bool | None:
            policy = self._named.get(name, name)
            if (
                isinstance(policy, Variant)
                and policy.reward is not None
                and known(policy.reward, rater)
            ):
                return True
            own = known(role_of(policy), rater)
            return (
                False
                if own and metrics.verifies(rater) and held_out(role_of(policy), rater)
                else own
            )

        def held_out(role: str, rater: Any) -> bool:
            if context is None:
                return True
            if role.startswith("/") or known(context.base_of(role) or BASE, rater) is not False:
                return False  # nobody says what another run has learned from
            own = [metric for metric in self.options.metrics.values() if metric.reward == rater]
            asked = [
                group for group in groups if not own or any(metric.counts(group) for metric in own)
            ]
            return not any(trained_prompts(context, role, asked).values())

        return learned

    def _unjudged(self, learned: Callable[[str, Any], bool | None]) -> list[str]:
        """Which policies nothing judges independently, in one line."""
        raters = raters_of(self.options)
        alone = []
        for policy in self._compared if raters else ():
            if all(learned(policy, rater) for rater in raters.values()):
                alone.append(policy)
        if not alone:
            return []
        return [
            (
                f"warning: nothing in this evaluation judges {', '.join(alone)} independently: "
                f"training was to please {', '.join(raters)}. Add `metrics:` with a reward that "
                "nothing was trained on"
            )
        ]

    def _warnings(self, prompts: Sequence[Group], context: StepContext) -> list[str]:
        """What is known of prompts that policies or reward models were trained on; said as well."""
        policies, texts = self.options.policies_to_sample(), list[str]()
        models = (
            *policies,
            *self.options.rewards,
            *(one.reward for one in self.options.metrics.values()),
        )
        unknown = []
        for policy, name in short_names(policies).items():
            if name != policy and not trained_prompts(context, policy, prompts):
                unknown.append(name)
        if unknown:
            texts.append(
                f"warning: it was not checked whether {', '.join(unknown)} learned from these "
                "prompts"
            )
        texts += filter(None, [training_data_note(context, models, prompts, "prompts")])
        for text in texts:
            context.say(f"{context.out.name}: {text}")
        return texts

    def _of_kl(self, policies: Mapping[str, Prompted]) -> list[str]:
        """Where the KL is not what it seems."""
        sampling, notes = self.options.sampled(), []
        if cut := ", ".join(f"{key} {sampling[key]}" for key in CUT if key in sampling):
            notes.append(
                f"KL is biased: {cut} leaves tokens out of the answers, and it is of all tokens"
            )
        if best := [name for name, prompted in policies.items() if prompted.drafts > 1]:
            notes.append(
                f"KL of {'; '.join(best)}: at most this, with log N - (N - 1)/N for the choice"
            )
        return notes


@dataclass(frozen=True)
class _Rated:
    """What rates the answers. scales: of metrics and rewards. trained_on: of the raters that
    decide, by policy.
    """

    step: Evaluate
    scales: Mapping[str, Scale]
    trained_on: Mapping[str, Mapping[str, bool | None]]
    sides: Mapping[str, Any]

    def rows(
        self, groups: Sequence[Group], verdicts: judged.ByPolicy, tested: bool, **part: Any
    ) -> list[Row]:
        """How good each policy is at some prompts."""
        rows = list[Row]()
        for name, scale in self.scales.items():
            facts = {
                "trained_on": self.trained_on.get(name),
                "tested": tested and name in self.trained_on,
                **part,
            }
            if metric := self.step.options.metrics.get(name):
                facts |= {"kind": "metric", "lower": metric.better == "lower", **self.sides}
            else:
                facts |= {"percent": False, **self.sides, "base": None}
            rows += rated(groups, score=name, scale=scale, **facts)
        for policy, by_judge in verdicts.items():
            for name, found in by_judge.items():
                own = self.trained_on[name].get(policy)
                row = judged.row(
                    groups, found, policy, self.sides["baseline"], name, trained_on=own
                )
                rows.append(replace(row, tested=tested, **part))
        return rows

    def by_column(
        self, groups: Sequence[Group], verdicts: judged.ByPolicy, column: str
    ) -> list[Row]:
        """The same at the prompts with each value of a column."""
        places = dict[str, list[int]]()
        for place, group in enumerate(groups):
            value = group.meta.get(column)
            places.setdefault(NONE if value is None else str(value), []).append(place)
        rows = list[Row]()
        for value, at in sorted(places.items()):
            some = {}
            for policy, by_judge in verdicts.items():
                some[policy] = {
                    name: [found[place] for place in at] for name, found in by_judge.items()
                }
            here = [groups[place] for place in at]
            rows += self.rows(here, some, tested=False, column=column, value=value)
        return rows

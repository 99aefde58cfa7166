"""The step `evaluate`: compare policies on held-out prompts by rewards and judges, with confidence intervals.

All policies answer the same prompts with the same random streams, and every reward scores all answers. A prompt is the
unit of all statistics: its samples are averaged first, policies are compared prompt by prompt, and intervals are at 95%
(`alignkit.statistics`). As in Llama 2 (Touvron et al. 2023, arXiv:2307.09288, section 3.4 and figure 11), the results
are mean differences from a baseline and win rates. In addition to the paper, they show the difference at equal length,
because longer answers are the usual way to fool a reward (Singhal et al. 2023, arXiv:2310.03716), and the KL to a
reference in nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import model_validator

import alignkit
from alignkit import (
    REWARD_KEY,
    Artifact,
    CheckedJudge,
    DataRef,
    Field,
    Group,
    JudgeRef,
    PolicyRef,
    Register,
    RewardRef,
    RunFailed,
    Step,
    StepContext,
    hookimpl,
    statistics,
)
from alignkit.comparison import answers_of, averages, length, prompts_to_compare, sample_policies, scale_of, short_names
from alignkit.data.group import write_groups
from alignkit.errors import OtherTokenizer
from alignkit_plugins.evaluate import breakdown, judged, report


class Evaluate(Step):
    """Sample from each policy, score with each reward, and compare each policy with the baseline."""

    class Options(alignkit.SamplingOptions):
        policies: list[PolicyRef] = Field(min_length=1, description="policies to compare: `base`, stages or `STAGE@k`")
        rewards: list[RewardRef] = Field(default_factory=list, description="rewards that score the responses")
        judges: list[JudgeRef] = Field(
            default_factory=list, description="judges that compare each policy with the baseline, in both orders"
        )
        prompts: DataRef = Field(description="held-out prompts; rows that repeat words and columns count once")
        baseline: PolicyRef | None = Field(
            None, description="policy to compare the others with; default: the first but `base`, or else `base`"
        )
        reference: PolicyRef | None = Field(None, description="policy to measure the KL to; default: the baseline")
        samples_per_prompt: int = Field(1, ge=1, le=1024, description="responses of each policy to each prompt")
        temperature: float | None = Field(
            None, gt=0, description="sampling temperature, also for the KL; default: as in training"
        )
        by: list[str] = Field(default_factory=list, description="columns of the prompts to break the results down by")
        limit: int | None = Field(None, ge=1, description="use only the first N prompts")
        show: int = Field(3, ge=0, description="prompts whose responses are printed side by side")
        seed: int | None = Field(None, ge=0, description="seed of the samples; default: the recipe's")
        next: str = Field("", description="command to try next, printed last")

        @model_validator(mode="after")
        def _consistent(self) -> Any:
            for key, names in (("policies", self.policies), ("rewards", [label(spec) for spec in self.rewards])):
                repeated = sorted({name for name in names if names.count(name) > 1})
                if repeated:
                    raise ValueError(f"{key} has duplicates: {', '.join(repeated)}; names must be unique")
            if not self.rewards and not self.judges:
                raise ValueError("name at least one reward or judge")
            if self.judges and len(self.policies) < 2:
                raise ValueError("judges compare policies: name at least two")
            if self.baseline is not None and self.baseline not in self.policies:
                raise ValueError(f"baseline '{self.baseline}' must be one of the policies: {', '.join(self.policies)}")
            return self

        def policies_to_sample(self) -> list[str]:
            return self.policies

    options: Options

    @property
    def baseline(self) -> str | None:
        """The policy to compare the others with; None if there is only one policy."""
        policies = self.options.policies
        if self.options.baseline or len(policies) < 2:
            return self.options.baseline
        return next((policy for policy in policies[:-1] if policy != "base"), policies[0])

    @property
    def reference(self) -> str | None:
        """The policy to measure the KL to."""
        return self.options.reference or self.baseline

    def run(self, context: StepContext) -> Artifact:
        # Before sampling: a reward that cannot work, because a key or a file is missing, fails here.
        scorers = [context.scorer(spec) for spec in self.options.rewards]
        judges = dict(zip(judge_names(self.options.judges), self.options.judges, strict=True))
        checked = {name: CheckedJudge(component, context) for name, component in judges.items()}
        prompts, notes = prompts_to_compare(context.load(self.options.prompts), self.options.limit)
        breakdown.check_columns(prompts, self.options.by)
        warning = self._warning(prompts, context)
        groups = self._sample(prompts, context)
        groups, columns = self._score(groups, scorers, context)
        summary = self._summary(groups, columns, len(prompts) - len(groups), context)
        summary["notes"] += [*notes, warning] if warning else notes
        summary["notes"] += [note for scorer in scorers for note in scorer.untrained]
        summary["judges"] = list(judges)
        verdicts = self._verdicts(groups, checked, context)
        summary["judged"] = judged.summaries(groups, verdicts, self.baseline)
        groups, summary = _with_short_names(groups, summary)
        names = short_names(self.options.policies)
        verdicts = {names[policy]: found for policy, found in verdicts.items()}
        summary["ranking"] = breakdown.rankings(groups, summary, verdicts, context.seed)
        summary["by"] = breakdown.by_columns(groups, self.options.by, summary, verdicts, compare)
        write_groups(context.out / "samples.jsonl", groups)
        context.write_json("evaluation.json", summary)
        for file, text in judged.leaderboards(groups, summary).items():
            context.write_text(file, text)
        context.write_json("figure.json", figure(summary, [column.name for column in columns if column.single]))
        shown = report.report(summary, groups[: self.options.show])
        return Artifact(summary=summary, report=shown, text=f"next: {self.options.next}" if self.options.next else "")

    def _verdicts(
        self, groups: Sequence[Group], judges: Mapping[str, CheckedJudge], context: StepContext
    ) -> dict[str, dict[str, judged.Judged]]:
        """The comparisons of each policy with the baseline, by each judge."""
        baseline, found = self.baseline, {}
        for policy in self.options.policies if baseline is not None and judges else ():
            if policy != baseline:
                context.say(
                    f"{context.out.name}: {', '.join(judges)} compare {short_names(self.options.policies)[policy]}"
                )
                found[policy] = {
                    name: judged.judge(groups, policy, str(baseline), judged.mapped(judge.compare, name, context.map))
                    for name, judge in judges.items()
                }
        return found

    def _warning(self, prompts: Sequence[Group], context: StepContext) -> str:
        """Says how many prompts the policies or the reward models were trained on; empty if none."""
        seen: dict[str, set[int]] = {}
        for model in (*self.options.policies, *self.options.rewards):
            seen |= context.trained_on(model, prompts)
        for name in (name for policy, name in short_names(self.options.policies).items() if name != policy):
            context.say(f"{context.out.name}: it is not known what {name} was trained on")
        if not seen:
            return ""
        stages = ", ".join(f"{len(places)} by {stage}" for stage, places in seen.items())
        text = f"warning: {len(set().union(*seen.values()))} of {len(prompts)} prompts are training data ({stages})"
        context.say(f"{context.out.name}: {text}")
        return text

    def _sample(self, prompts: Sequence[Group], context: StepContext) -> list[Group]:
        options = self.options
        groups = sample_policies(
            context,
            options.policies,
            prompts,
            samples_per_prompt=options.samples_per_prompt,
            **options.sampling(),
        )
        if not groups:
            raise RunFailed(f"evaluate: none of {len(prompts)} prompts could be answered by all policies")
        return groups

    def _score(
        self, groups: Sequence[Group], scorers: Sequence[Any], context: StepContext
    ) -> tuple[list[Group], list[Column]]:
        """The groups with all columns as their responses' scores, and the columns."""
        columns: list[Column] = []
        scores: list[list[dict[str, float | None]]] = [[{} for _ in group.responses] for group in groups]
        for spec, scorer in zip(self.options.rewards, scorers, strict=True):
            context.say(f"{context.out.name}: scoring with {label(spec)}")
            scored: list[Group] = scorer.score(groups)
            new = columns_of(spec, scored[0].responses[0].scores, self.options.rewards)
            for group, rows in zip(scored, scores, strict=True):
                for response, row in zip(group.responses, rows, strict=True):
                    row.update({column.name: response.scores[column.key] for column in new})
            columns += new
        return [_with_scores(group, rows) for group, rows in zip(groups, scores, strict=True)], columns

    def _summary(
        self, groups: Sequence[Group], columns: Sequence[Column], left_out: int, context: StepContext
    ) -> dict[str, Any]:
        options, baseline, names = self.options, self.baseline, [column.name for column in columns]
        return {
            "prompts": len(groups),
            "left_out": left_out,
            "sampling": {"samples_per_prompt": options.samples_per_prompt, **options.sampling(), "seed": context.seed},
            "notes": [f"sampled with {options.described()}", *options.notes],
            "baseline": baseline,
            "reference": self.reference,
            "headline": next((column.name for column in columns if not column.single), next(iter(names), None)),
            "rewards": names,
            "policies": {policy: self._measure(groups, policy, names, context) for policy in options.policies},
            "against": {
                policy: {name: compare(groups, policy, baseline, name) for name in names}
                for policy in options.policies
                if baseline is not None and policy != baseline and names
            },
        }

    def _measure(
        self, groups: Sequence[Group], policy: str, names: Sequence[str], context: StepContext
    ) -> dict[str, Any]:
        """The results of one policy, without comparisons."""
        answers = [response for group in groups for response in answers_of(group, policy)]
        rewards = {}
        for name in names:
            scores = [average.score for average in averages(groups, policy, name) if average is not None]
            unscored = sum(response.scores[name] is None for response in answers)
            rewards[name] = {**scale_of(groups, name).mean(scores), "unscored": unscored}
        lengths = [statistics.mean([length(r) for r in answers_of(group, policy)]) for group in groups]
        return {
            "rewards": rewards,
            "length": statistics.estimate(lengths),
            "truncated": sum(response.truncated for response in answers) / len(answers),
            "kl": None if self.reference is None else self._kl(groups, policy, self.reference, context),
        }

    def _kl(self, groups: Sequence[Group], policy: str, reference: str, context: StepContext) -> dict[str, Any]:
        """KL(policy || reference) in nats per response, at the sampling temperature.

        The estimator is k1 (Schulman 2020, "Approximating KL Divergence"), the mean of log p - log q over the policy's
        own samples: unbiased, and possibly negative. `unmeasured` counts responses that a model had to truncate, or
        all of them if the reference has another tokenizer.
        """
        if policy == reference:
            return {"mean": 0.0, "low": 0.0, "high": 0.0, "n": len(groups), "unmeasured": 0}
        policy_groups = [replace(group, responses=tuple(answers_of(group, policy))) for group in groups]
        context.say(f"{context.out.name}: KL of {policy} to {reference}")
        temperature = self.options.sampling()["temperature"]
        try:
            logprobs = [
                iter(context.models.logprobs(role, policy_groups, temperature=temperature))
                for role in (policy, reference)
            ]
        except OtherTokenizer as error:
            context.say(f"{context.out.name}: no KL of {policy}: {error}")
            return {**statistics.estimate([]), "unmeasured": sum(len(group.responses) for group in policy_groups)}
        means, unmeasured = [], 0
        for group in policy_groups:
            ratios = []
            for response in group.responses:
                ours, theirs = (next(rows) for rows in logprobs)
                if len(ours) == len(theirs) == len(response.tokens or ()):
                    ratios.append(float((ours.double() - theirs.double()).sum()))
                else:
                    unmeasured += 1
            means += [statistics.mean(ratios)] if ratios else []
        return {**statistics.estimate(means), "unmeasured": unmeasured}


def _with_short_names(groups: Sequence[Group], summary: dict[str, Any]) -> tuple[list[Group], dict[str, Any]]:
    """The groups and the summary with short names for the folders of other runs."""
    names: dict[str | None, str | None] = {None: None}
    names |= short_names([*summary["policies"], summary["reference"] or ""]).items()
    renamed = [
        replace(group, responses=tuple(replace(r, source=names[r.source]) for r in group.responses)) for group in groups
    ]
    return renamed, {
        **summary,
        **{key: names[summary[key]] for key in ("baseline", "reference")},
        **{
            key: {names[policy]: value for policy, value in summary[key].items()}
            for key in ("policies", "against", "judged")
        },
    }


def _with_scores(group: Group, scores: Sequence[Mapping[str, float | None]]) -> Group:
    responses = (replace(r, scores=dict(row)) for r, row in zip(group.responses, scores, strict=True))
    return replace(group, responses=tuple(responses))


# --- rewards and their columns


def judge_names(judges: Sequence[Any]) -> list[str]:
    """Names of judges in the tables: a second `openai_judge` is `openai_judge-2`."""
    names = [judge.name for judge in judges]
    counts = [names[:number].count(name) + 1 for number, name in enumerate(names)]
    return [name if count == 1 else f"{name}-{count}" for name, count in zip(names, counts, strict=True)]


@dataclass(frozen=True)
class Column:
    """A score of every response.

    name: in the tables. key: the scorer's. single: whether it is one reward and not a combination.
    """

    name: str
    key: str
    single: bool


def label(spec: Any) -> str:
    """The name of a reward in the tables; `spec` as in the recipe, or validated."""
    if isinstance(spec, str):
        return spec
    if isinstance(spec, dict):
        ((name, value),) = list(spec.items())[:1] or [("", "")]
        return _folder_label(str(value)) if name == "folder" else str(name)
    return _folder_label(spec.name) if spec.kind == "folder" else str(spec.name)


def _folder_label(folder: str) -> str:
    """A folder's name, and `RUN/STAGE` for a reward model of another run."""
    path = Path(folder)
    return "/".join(path.parts[-3:-1]) if path.name == "adapter" and len(path.parts) > 2 else path.name


def columns_of(spec: Any, keys: Sequence[str] | Mapping[str, Any], rewards: Sequence[Any]) -> list[Column]:
    """The columns of a reward whose scorer wrote these keys. A combination also shows its parts, except those that are
    among `rewards` themselves.
    """
    if spec.kind != "combine":
        return [Column(label(spec), REWARD_KEY, single=True)]
    parts = [key for key in keys if key != REWARD_KEY and spec.children.get(key) not in rewards]
    columns = [Column(f"{label(spec)}/{key}", key, single=True) for key in parts]
    return [*columns, Column(label(spec), REWARD_KEY, single=False)]


# --- statistics


def compare(groups: Sequence[Group], policy: str, baseline: str, name: str) -> dict[str, Any]:
    """A policy against the baseline by one reward, over the prompts at which both have a score.

    unpaired: prompts that lack a score. at_equal_length: see `alignkit.statistics`. win_rate: among the prompts
    without a tie, as in a sign test, because its interval needs independent wins and losses.
    """
    both = zip(averages(groups, policy, name), averages(groups, baseline, name), strict=True)
    pairs = [(ours, theirs) for ours, theirs in both if ours is not None and theirs is not None]
    scores = [ours.score for ours, _ in pairs], [theirs.score for _, theirs in pairs]
    differences = [ours - theirs for ours, theirs in zip(*scores, strict=True)]
    longer = [ours.length - theirs.length for ours, theirs in pairs]
    wins, losses = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return {
        "difference": scale_of(groups, name).difference(*scores),
        "at_equal_length": statistics.at_equal_length(differences, longer, [theirs.length for _, theirs in pairs]),
        "win_rate": statistics.share(wins, wins + losses),
        "wins": wins,
        "losses": losses,
        "ties": len(pairs) - wins - losses,
        "unpaired": len(groups) - len(pairs),
    }


def figure(summary: Mapping[str, Any], singles: Sequence[str]) -> dict[str, Any]:
    """The data of a figure like Llama 2's figure 11: single rewards of each policy, and win rates against the baseline,
    null for the baseline itself.
    """
    versions = []
    for policy, numbers in summary["policies"].items():
        against = summary["against"].get(policy, {})
        rewards = {
            name: {**numbers["rewards"][name], "win_rate": against[name]["win_rate"] if against else None}
            for name in singles
        }
        versions.append({"policy": policy, "rewards": rewards})
    return {"baseline": summary["baseline"], "rewards": list(singles), "versions": versions}


@hookimpl
def register_steps(register: Register) -> None:
    register("evaluate", Evaluate, summary="compare policies on held-out prompts by rewards, length and KL")

"""RLAIF: a judge labels pairs of responses, or rewards responses directly (Lee et al. 2023,
arXiv:2309.00267).

The step `judge_pairs` labels the responses of groups, or of a policy to prompts. A pair's `p` is
the judge's probability that the better response is better: a soft label for a reward model or DPO
(section 2.2.1). With a constitution, each pair is judged by principles drawn from it (Bai et al.
2022, arXiv:2212.08073, section 4). The reward `rlaif` is the win rate against the other responses
of the group, or against a baseline's response. Differs from the paper: its direct reward is a
rating from 1 to 10 (section 2.2.2), whereas a win rate asks the judge the same question as the
labels do.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from alignkit import (
    Artifact,
    CheckedJudge,
    Context,
    DataError,
    DataRef,
    Field,
    Group,
    JudgeRef,
    Options,
    Pair,
    PolicyRef,
    Response,
    Reward,
    RunFailed,
    Sampling,
    SamplingOptions,
    Step,
    StepContext,
    StepData,
    Verdict,
)
from alignkit.judges import Item
from alignkit.report import Report
from alignkit_plugins.ai_feedback import principled
from alignkit_plugins.ai_feedback.constitution import ConstitutionRef
from alignkit_plugins.ai_feedback.judge_card import judge_names
from alignkit_plugins.ai_feedback.label_tally import Place, Tally, card_of, mean, refusal, told
from alignkit_plugins.compare.comparison import AnswerOptions, prompts_to_compare, sampled_at
from alignkit_plugins.formats.rows import prompt_to_row, prompts_from_rows
from alignkit_plugins.formats.spoken import all_turns

# --- the step
# -----------------------------------------------------------------------------------------------------


class JudgePairs(Step):
    """Label every pair of responses of every group."""

    class Options(SamplingOptions):
        changes_no_result: ClassVar[frozenset[str]] = frozenset({"no_judge"})

        judge: JudgeRef = Field(description="judge that compares the responses")
        data: DataRef | None = Field(
            None, description="groups of responses; alternatively, set `prompts` and `policy`"
        )
        prompts: DataRef | None = Field(None, description="prompts that the policy responds to")
        policy: PolicyRef | None = Field(None, description="model that responds: `base` or a stage")
        samples_per_prompt: int = Field(
            2, ge=2, le=16, description="responses to each prompt; all pairs are judged"
        )
        soft: bool = Field(
            True, description="use the judge's probability as a soft label, not a hard one"
        )
        clamp: tuple[float, float] | None = Field(
            None,
            description=(
                "range to clamp soft labels to; [0.4, 0.6] suits a judge with a chain of thought"
            ),
        )
        min_confidence: float = Field(
            0.0, ge=0, le=0.5, description="drop pairs with |p - 0.5| below this"
        )
        no_judge: Literal["stop", "warn"] = Field(
            "stop",
            description=(
                "what to do if the verdicts are no better than chance: `stop` before a stage "
                "learns from the labels, or `warn`"
            ),
        )
        constitution: ConstitutionRef | None = Field(
            None,
            description=(
                "principles to judge by: a file, `harmless`, `helpful_honest` or a list; "
                "default: the judge's own criterion"
            ),
        )
        principles_per_pair: int = Field(
            1, ge=1, description="principles that each pair is judged by; its label is their mean"
        )

        @model_validator(mode="after")
        def _one_source(self) -> Any:
            if (self.data is None) == (self.prompts is None) or (self.prompts is None) != (
                self.policy is None
            ):
                raise ValueError("set either `data`, or both `prompts` and `policy`")
            unused = {"samples_per_prompt", "sampling"} & self.model_fields_set
            if self.data is not None and unused:
                raise ValueError(f"`data` is not sampled: leave {' and '.join(sorted(unused))} out")
            return self

        @model_validator(mode="after")
        def _clamp_is_a_range(self) -> Any:
            low, high = self.clamp or (0.0, 1.0)
            if not 0 <= low <= 0.5 <= high <= 1:
                raise ValueError(
                    f"clamp [{low:g}, {high:g}] must be a range of probabilities around 0.5"
                )
            if self.clamp is not None and not self.soft:
                raise ValueError("clamp only applies to soft labels")
            return self

        @model_validator(mode="after")
        def _principles_of_a_constitution(self) -> Any:
            if self.constitution is None and "principles_per_pair" in self.model_fields_set:
                raise ValueError("'principles_per_pair' needs a 'constitution'")
            return self

        def policies_to_sample(self) -> list[str]:
            return [self.policy] if self.policy is not None else []

    options: Options
    maps = ("sample", "judge")

    def check(self, folder: Path) -> None:
        if self.options.constitution is not None:
            principled.check(
                self.options.judge, self.options.constitution, self.options.principles_per_pair
            )

    def check_data(self, data: StepData) -> None:
        groups, rows = data.load(self.options.data), data.load(self.options.prompts)
        if groups is not None and not pairs_to_judge(groups)[0]:
            raise DataError("no row has two different responses to compare", option=("data",))
        if rows is not None:
            prompts_to_compare(rows)

    def run(self, context: StepContext) -> Artifact:
        judged = self.mapper("judge", context)  # first, so that a missing key shows before sampling
        groups = self._groups(context)
        places, identical = pairs_to_judge(groups)
        asked = self._asked(context, groups, places)
        found = [
            Verdict(**row) for row in context.map("judge", [each.row for each in asked], judged)
        ]
        verdicts = principled.joined(asked, found, len(places))
        tally = Tally(groups, places, verdicts, len(identical))
        labeled = self._label(groups, places, verdicts, tally)
        by = principled.tally(asked, found, verdicts)
        (name,) = judge_names([self.options.judge])
        cards = {name: card_of(asked, found, tally, context.seed)}
        summary = {**tally.summary(), **({"principles": by} if by else {}), "judge_cards": cards}
        if text := refusal(summary, self.options.no_judge):
            raise RunFailed(text)
        shown = Report(told(summary))
        return Artifact(groups=labeled, summary=summary, report=shown)

    def mapper(self, name: str, context: StepContext) -> Callable[[Sequence[Any]], list[Any]]:
        options = self.options
        if name == "judge":
            judge = CheckedJudge(options.judge, context)
            return lambda chunk: [
                dataclasses.asdict(verdict) for verdict in principled.compared(judge, chunk)
            ]

        def sampled(chunk: Sequence[Any]) -> list[list[dict[str, Any]]]:
            # A seed for each chunk, or the n-th prompts of all chunks would share their random
            # numbers.
            seed = (context.seed + zlib.crc32(json.dumps(chunk).encode())) % 2**31
            groups = context.models[options.policy or "base"].sample(
                prompts_from_rows(chunk),
                seed=seed,
                samples_per_prompt=options.samples_per_prompt,
                **options.sampled(),
            )
            return [
                [
                    {"text": all_turns(r, thoughts=True), "truncated": r.truncated}
                    for r in group.responses
                ]
                for group in groups
            ]

        return sampled

    def _asked(
        self, context: StepContext, groups: Sequence[Group], places: Sequence[Place]
    ) -> list[principled.Asked]:
        """What the judge is asked: each pair once, or by each of its principles."""
        options, items = self.options, items_at(groups, places)
        if options.constitution is None:
            return [principled.Asked(number, list(item)) for number, item in enumerate(items)]
        return principled.by_principles(
            items, options.constitution, options.principles_per_pair, context.seed, context.stage
        )

    def _groups(self, context: StepContext) -> list[Group]:
        """The groups to judge, from the data or sampled."""
        options = self.options
        if options.data is not None:
            return context.load(options.data)
        prompts = context.load(options.prompts)
        context.say(f"{context.out.name}: {options.policy} answers with {options.described()}")

        # The index tells equal prompts apart
        rows = [prompt_to_row(i, group) for i, group in enumerate(prompts)]
        said = context.map("sample", rows, self.mapper("sample", context))
        return [
            dataclasses.replace(
                group,
                pairs=None,
                responses=tuple(Response(**r, source=options.policy) for r in texts),
            )
            for group, texts in zip(prompts, said, strict=True)
        ]

    def _label(
        self,
        groups: Sequence[Group],
        places: Sequence[Place],
        verdicts: Sequence[Verdict],
        tally: Tally,
    ) -> list[Group]:
        """Groups with the judge's pairs. A tie is no pair, and groups without a pair are left
        out.
        """
        pairs: dict[int, list[Pair]] = {}
        for (g, i, j), verdict, label in zip(places, verdicts, self._labels(verdicts), strict=True):
            if verdict.p_first is None:
                continue
            # A tie, which a clamp at 0.5 also makes, or too little confidence.
            if (
                0.5 in (verdict.p_first, label)
                or abs(verdict.p_first - 0.5) < self.options.min_confidence
            ):
                tally.dropped["unsure"] += 1
            else:
                pairs.setdefault(g, []).append(oriented(i, j, label))
        tally.labeled = sum(map(len, pairs.values()))
        return [dataclasses.replace(groups[g], pairs=tuple(pairs[g])) for g in sorted(pairs)]

    def _labels(self, verdicts: Sequence[Verdict]) -> list[float]:
        """The label of each pair, as P(first is better). Without a verdict a soft label is NaN."""
        import torch

        from alignkit import functional as F

        known = [math.nan if verdict.p_first is None else verdict.p_first for verdict in verdicts]
        p = torch.tensor(known, dtype=torch.float64)
        if not self.options.soft:
            p = F.hard_label(p)
        elif self.options.clamp is not None:
            p = F.clamp_cai(p, *self.options.clamp)
        labels: list[float] = p.tolist()
        return labels


def pairs_to_judge(groups: Sequence[Group]) -> tuple[list[Place], list[Place]]:
    """All pairs i < j of every group, and those left out because their texts are identical."""
    places: list[Place] = []
    identical: list[Place] = []
    for g, group in enumerate(groups):
        said = [all_turns(response) for response in group.responses]
        for i, j in itertools.combinations(range(len(said)), 2):
            (identical if said[i] == said[j] else places).append((g, i, j))
    return places, identical


def items_at(groups: Sequence[Group], places: Sequence[Place]) -> list[Item]:
    """The judge's items for these pairs."""
    return [
        (
            list(groups[g].prompt),
            all_turns(groups[g].responses[i]),
            all_turns(groups[g].responses[j]),
        )
        for g, i, j in places
    ]


def oriented(i: int, j: int, p: float) -> Pair:
    """The pair of responses i and j with P(i is better) = p. `better` is the likelier one."""
    return Pair(i, j, p=p) if p >= 0.5 else Pair(j, i, p=1.0 - p)


# --- the reward
# ---------------------------------------------------------------------------------------------------


class RLAIF(Reward):
    """The mean probability of beating the opponents, minus 0.5. Opponents without a verdict do not
    count.
    """

    class Options(AnswerOptions):
        sampling: Sampling = sampled_at(0)
        judge: JudgeRef = Field(description="judge that compares the responses")
        opponent: Literal["group", "baseline"] = Field(
            "group",
            description=(
                "opponents: the other responses of the group, or the baseline's response to the "
                "prompt"
            ),
        )
        baseline: PolicyRef = Field(
            "base", description="model that answers, too, for `opponent: baseline`"
        )

        @model_validator(mode="after")
        def _of_this_opponent(self) -> Any:
            unused = {"baseline", "sampling"} & self.model_fields_set
            if self.opponent == "group" and unused:
                raise ValueError(
                    f"{' and '.join(sorted(unused))} only apply to 'opponent: baseline'"
                )
            return self

        def policies_to_sample(self) -> list[str]:
            return [self.baseline] if self.opponent == "baseline" else []

    options: Options

    @property
    def within_group(self) -> bool:
        """A win rate against the group says nothing about a response to another prompt, or of a
        later iteration.
        """
        return self.options.opponent == "group"

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self._judge = CheckedJudge(self.options.judge, context)
        self._baselines: dict[str, str | None] = {}  # prompt as JSON -> the baseline's response

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        scores = (
            self._in_group(groups)
            if self.options.opponent == "group"
            else self._against_baseline(groups)
        )
        return {"": scores}

    def _in_group(self, groups: Sequence[Group]) -> list[float | None]:
        if any(len(group.responses) == 1 for group in groups):
            raise RunFailed(
                "reward 'rlaif' compares the responses of a group, but a prompt has only one\n"
                "help: raise rollout.samples_per_prompt, or set `opponent: baseline`"
            )
        won: list[list[list[float]]] = [[[] for _ in group.responses] for group in groups]
        places, identical = pairs_to_judge(groups)
        verdicts = self._judge.compare(items_at(groups, places))
        for (g, i, j), p in zip(places, (verdict.p_first for verdict in verdicts), strict=True):
            if p is not None:
                won[g][i].append(p)
                won[g][j].append(1.0 - p)
        for g, i, j in identical:  # identical texts: 0.5 by symmetry, without a question
            won[g][i].append(0.5)
            won[g][j].append(0.5)
        return [centered(mean(games)) for group in won for games in group]

    def _against_baseline(self, groups: Sequence[Group]) -> list[float | None]:
        opponents = self._baseline_responses(groups)
        games = [
            (group.prompt, all_turns(response), opponent)
            for group, opponent in zip(groups, opponents, strict=True)
            for response in group.responses
        ]
        verdicts = iter(
            self._judge.compare(
                [(prompt, said, other) for prompt, said, other in games if other is not None]
            )
        )
        return [
            None if other is None else centered(next(verdicts).p_first) for _, _, other in games
        ]

    def _baseline_responses(self, groups: Sequence[Group]) -> list[str | None]:
        """The baseline's greedy response to each group's prompt; None if the prompt leaves no room
        for one.

        Each prompt is sampled once.
        """
        keys = [json.dumps([group.prompt, group.tools]) for group in groups]
        new = {
            key: group
            for key, group in zip(keys, groups, strict=True)
            if key not in self._baselines
        }
        if new:
            sampled = self.context.models[self.options.baseline].sample(
                list(new.values()),
                seed=self.context.seed,
                samples_per_prompt=1,
                **self.options.sampled(),
            )
            for key, group in zip(new, sampled, strict=True):
                self._baselines[key] = all_turns(group.responses[0]) if group.responses else None
        return [self._baselines[key] for key in keys]


def centered(p: float | None) -> float | None:
    """A win rate, shifted to be around 0; None stays None."""
    return None if p is None else p - 0.5

"""RLAIF: a judge labels pairs of responses, or rewards responses directly (Lee et al. 2023,
arXiv:2309.00267).

The step `judge_pairs` labels the responses of groups, or of a policy to prompts. A pair's `p` is
the judge's probability that the better response is better: a soft label for a reward model or DPO
(section 2.2.1). With a constitution, each pair is judged by principles drawn from it, and its label
is their mean: an ensemble, which is more robust than one principle (Bai et al. 2022,
arXiv:2212.08073, section 4.1). The reward `rlaif` is the win rate against the other responses of
the group, or against a baseline's response. Differs from the paper: its direct reward is a rating
from 1 to 10 (section 2.2.2), whereas a win rate asks the judge the same question as the labels do.
"""

from __future__ import annotations

import itertools
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from alignkit import (
    Artifact,
    CheckedJudge,
    Context,
    DataError,
    DataRef,
    Field,
    Group,
    JudgeRef,
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
from alignkit.data.group import sha256_of
from alignkit.evaluation import statistics
from alignkit.judges import Item
from alignkit.report import Report
from alignkit_plugins.ai_feedback.constitution import ConstitutionRef, drawn
from alignkit_plugins.ai_feedback.judge_card import (
    card,
    judge_names,
    judgment,
    no_judge,
    sentence,
)
from alignkit_plugins.ai_feedback.panel import joint
from alignkit_plugins.compare.comparison import AnswerOptions, prompts_to_compare, sampled_at
from alignkit_plugins.formats.rows import prompt_to_row, prompts_from_rows
from alignkit_plugins.formats.spoken import all_turns

Place = tuple[int, int, int]  # group, first response, second response

# Prompts with a verdict, from which a judge is stopped; the order decides three pairs by chance.
ENOUGH = 6
BOUNDED = "answers outside the server's tokens, which count with their largest probability"
HELP = (
    "help: ask another model; small models and models without instruction tuning often name one "
    "place. `reasons: true` lets a judge think first"
)


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
            sampled, chosen = self.prompts is not None, self.model_fields_set
            if (self.data is None) != sampled or sampled != (self.policy is not None):
                raise ValueError("set either `data`, or both `prompts` and `policy`")
            unused = sorted({"samples_per_prompt", "sampling"} & chosen)
            if not sampled and unused:
                raise ValueError(f"`data` is not sampled: leave {' and '.join(unused)} out")
            if self.clamp is not None and not self.soft:
                raise ValueError("clamp only applies to soft labels")
            if self.constitution is None and "principles_per_pair" in chosen:
                raise ValueError("'principles_per_pair' needs a 'constitution'")
            return self

        @field_validator("clamp")
        @classmethod
        def _is_a_range(cls, clamp: tuple[float, float] | None) -> tuple[float, float] | None:
            low, high = clamp or (0.0, 1.0)
            if not 0 <= low <= 0.5 <= high <= 1:
                around = "must be a range of probabilities around 0.5"
                raise ValueError(f"clamp [{low:g}, {high:g}] {around}")
            return clamp

        def policies_to_sample(self) -> list[str]:
            return [self.policy] if self.policy is not None else []

    options: Options
    maps = ("sample", "judge")

    def check(self, folder: Path) -> None:
        if self.options.constitution is None:
            return
        principles, count = self._principles(), self.options.principles_per_pair
        if count > len(principles):
            have = f"{len(principles)} principles of the constitution have 'compare'"
            raise RunFailed(f"principles_per_pair is {count}, but {have}")
        CheckedJudge.check_compares(self.options.judge, principles[0].compare or "")

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
        numbers, rows = self._questions(context, items_at(groups, places))
        found = [Verdict(**row) for row in context.map("judge", rows, judged)]
        of_pair: list[list[Verdict]] = [[] for _ in places]
        judgments = []
        for number, verdict in zip(numbers, found, strict=True):
            of_pair[number].append(verdict)
            judgments.append(judgment(places[number][0], verdict))
        verdicts = [joint(each) for each in of_pair]
        labeled, unsure = self._label(groups, places, verdicts)
        (name,) = judge_names([self.options.judge])
        usable = [verdict for verdict in verdicts if verdict.p_first is not None]
        summary = {
            "n": len(places) + len(identical),
            "groups_without_pairs": sum(len(group.responses) < 2 for group in groups),
            "labeled": sum(len(group.pairs or ()) for group in labeled),
            "dropped": dropped(verdicts, unsure, len(identical)),
            "bounded": sum(verdict.bounded for verdict in usable),
            "mass": statistics.mean([each.mass for each in usable]) if usable else None,
            "judge_cards": {name: card(judgments)},
        }
        if text := refusal(summary, self.options.no_judge):
            raise RunFailed(text)
        return Artifact(groups=labeled, summary=summary, report=Report(told(summary)))

    def mapper(self, name: str, context: StepContext) -> Callable[[Sequence[Any]], list[Any]]:
        options = self.options
        if name == "judge":
            judge = CheckedJudge(options.judge, context)
            return lambda rows: [asdict(verdict) for verdict in compared(judge, rows)]

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
            return [list(map(_plain, group.responses)) for group in groups]

        return sampled

    def _groups(self, context: StepContext) -> list[Group]:
        """The groups to judge, from the data or sampled."""
        options = self.options
        if options.data is not None:
            return context.load(options.data)
        prompts = context.load(options.prompts)
        context.say(f"{context.out.name}: {options.policy} answers with {options.described()}")
        # The index tells equal prompts apart.
        rows = [prompt_to_row(number, group) for number, group in enumerate(prompts)]
        groups = []
        texts = context.map("sample", rows, self.mapper("sample", context))
        for group, own in zip(prompts, texts, strict=True):
            responses = tuple(Response(**each, source=options.policy) for each in own)
            groups.append(replace(group, pairs=None, responses=responses))
        return groups

    def _principles(self) -> list[Any]:
        """Those that judges read."""
        return [each for each in self.options.constitution or () if each.compare is not None]

    def _questions(
        self, context: StepContext, items: Sequence[Item]
    ) -> tuple[Sequence[int], list[list[Any]]]:
        """What the judge is asked: each pair once, or by each of its principles, and which pair it
        is.

        The principles depend on the seed and the pair's texts, not on other pairs. Comparisons by
        the same principle are next to each other, so that a judge gets them at once.
        """
        principles, count = self._principles(), self.options.principles_per_pair
        if not principles:
            return range(len(items)), [list(item) for item in items]
        by: dict[str, list[tuple[int, list[Any]]]] = {each.name: [] for each in principles}
        for number, item in enumerate(items):
            key = sha256_of([list(item[0]), *sorted(item[1:])])
            for principle in drawn(principles, count, context.seed, context.stage, key):
                by[principle.name].append((number, [*item, principle.compare]))
        asked = list(itertools.chain.from_iterable(by.values()))
        return [number for number, _ in asked], [row for _, row in asked]

    def _label(
        self, groups: Sequence[Group], places: Sequence[Place], verdicts: Sequence[Verdict]
    ) -> tuple[list[Group], int]:
        """Groups with the judge's pairs, and how many pairs are ties, which a clamp at 0.5 also
        makes.

        Groups without a pair are left out.
        """
        import torch

        from alignkit import functional as F

        known = [math.nan if each.p_first is None else each.p_first for each in verdicts]
        labels = torch.tensor(known, dtype=torch.float64)
        if not self.options.soft:
            labels = F.hard_label(labels)
        elif self.options.clamp is not None:
            labels = F.clamp_cai(labels, *self.options.clamp)
        pairs: dict[int, list[Pair]] = {}
        ties = 0
        for (g, i, j), p, label in zip(places, known, labels.tolist(), strict=True):
            if 0.5 in (p, label):
                ties += 1
            elif not math.isnan(p):
                better = Pair(i, j, p=label) if label >= 0.5 else Pair(j, i, p=1.0 - label)
                pairs.setdefault(g, []).append(better)
        return [replace(groups[g], pairs=tuple(pairs[g])) for g in sorted(pairs)], ties


def _plain(response: Response) -> dict[str, Any]:
    text = all_turns(response, thoughts=True)
    return {"text": text, "truncated": response.truncated}


def compared(judge: CheckedJudge, rows: Sequence[Sequence[Any]]) -> Iterator[Verdict]:
    """The verdicts on rows of prompt, first and second, and with a principle what it says, in
    order.
    """
    for rubric, alike in itertools.groupby(rows, lambda row: "".join(row[3:])):
        yield from judge.compare([(row[0], row[1], row[2]) for row in alike], rubric)


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
    items: list[Item] = []
    for g, i, j in places:
        responses = groups[g].responses
        items.append((list(groups[g].prompt), all_turns(responses[i]), all_turns(responses[j])))
    return items


# What the step says


def dropped(verdicts: Sequence[Verdict], unsure: int, identical: int) -> dict[str, int]:
    """Pairs without a label, by reason: of each kind the first one, with its details."""
    first: dict[str, str] = {}
    counts = Counter({"unsure": unsure, "identical responses": identical})
    for verdict in verdicts:
        if verdict.p_first is None:
            reason = verdict.reason or "no reason given"
            counts[first.setdefault(reason.partition(":")[0], reason)] += 1
    return {reason: count for reason, count in counts.items() if count}


def told(summary: Mapping[str, Any]) -> list[str]:
    """The statistics as text: what matters, and the rest."""
    ((judge, card),) = summary["judge_cards"].items()
    pairs = summary["n"]
    lines = [
        f"{count} of {pairs} pairs dropped: {why}" for why, count in summary["dropped"].items()
    ]
    rest = {
        "rows with fewer than two responses": summary["groups_without_pairs"],
        BOUNDED: summary["bounded"],
        "mean probability of both answers": summary["mass"] and f"{summary['mass']:.1%}",
    }
    lines += [f"{what}: {value}" for what, value in rest.items() if value]
    first = f"{summary['labeled']} of {pairs} pairs labeled\n{sentence(judge, card)}"
    return [first, "\n".join(lines)] if lines else [first]


def refusal(summary: Mapping[str, Any], what_next: str) -> str:
    """Why nothing can learn from the labels; empty if something can. what_next: the option
    `no_judge`.

    Of a panel, only its own verdicts count, not those of its judges.
    """
    ((name, card),) = summary["judge_cards"].items()
    why = "" if summary["labeled"] else "no pair was labeled"
    enough = card["named_first"]["n"] >= ENOUGH and what_next == "stop"
    if not why and enough and no_judge({**card, "members": {}}):
        why = "nothing should learn from its labels; `no_judge: warn` learns anyway"
    if not why:
        return ""
    return "\n".join([f"judge_pairs: judge '{name}': {why}", *told(summary), HELP])


# The reward


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
            unused = sorted({"baseline", "sampling"} & self.model_fields_set)
            if self.opponent == "group" and unused:
                raise ValueError(f"{' and '.join(unused)} only apply to 'opponent: baseline'")
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
        if self.within_group:
            return {"": self._in_group(groups)}
        return {"": self._against_baseline(groups)}

    def _in_group(self, groups: Sequence[Group]) -> list[float | None]:
        if any(len(group.responses) == 1 for group in groups):
            raise RunFailed(
                "reward 'rlaif' compares the responses of a group, but a prompt has only one\n"
                "help: raise rollout.samples_per_prompt, or set `opponent: baseline`"
            )
        won: dict[tuple[int, int], list[float]] = {}
        for g, group in enumerate(groups):
            won |= {(g, i): [] for i in range(len(group.responses))}
        places, identical = pairs_to_judge(groups)
        ps = [verdict.p_first for verdict in self._judge.compare(items_at(groups, places))]
        # Identical texts: 0.5 by symmetry, without a question.
        for (g, i, j), p in zip([*places, *identical], [*ps, *[0.5] * len(identical)], strict=True):
            if p is not None:
                won[g, i].append(p)
                won[g, j].append(1.0 - p)
        return [centered(statistics.mean(games) if games else None) for games in won.values()]

    def _against_baseline(self, groups: Sequence[Group]) -> list[float | None]:
        games = []
        for group, opponent in zip(groups, self._baseline_responses(groups), strict=True):
            games += [(group.prompt, all_turns(each), opponent) for each in group.responses]
        items = [(prompt, said, other) for prompt, said, other in games if other is not None]
        verdicts = iter(self._judge.compare(items))
        return [None if other is None else centered(next(verdicts).p_first) for *_, other in games]

    def _baseline_responses(self, groups: Sequence[Group]) -> list[str | None]:
        """The baseline's greedy response to each group's prompt; None if the prompt leaves no room
        for one.

        Each prompt is sampled once.
        """
        keys = [json.dumps([group.prompt, group.tools]) for group in groups]
        keyed = dict(zip(keys, groups, strict=True))
        new = {key: group for key, group in keyed.items() if key not in self._baselines}
        if new:
            sampled = self.context.models[self.options.baseline].sample(
                list(new.values()),
                seed=self.context.seed,
                samples_per_prompt=1,
                **self.options.sampled(),
            )
            for key, group in zip(new, sampled, strict=True):
                text = all_turns(group.responses[0]) if group.responses else None
                self._baselines[key] = text
        return [self._baselines[key] for key in keys]


def centered(p: float | None) -> float | None:
    """A win rate, shifted to be around 0; None stays None."""
    return None if p is None else p - 0.5

"""RLAIF: a judge labels pairs of responses, or rewards responses directly (Lee et al. 2023,
arXiv:2309.00267).

The step `judge_pairs` labels the responses of groups, or of a policy to prompts. A pair's `p` is
the judge's probability that the better response is better: a soft label for a reward model or DPO
(section 2.2.1). With a constitution, each pair is judged by principles drawn from it, and its label
is their mean: an ensemble, which is more robust than one principle (Bai et al. 2022,
arXiv:2212.08073, section 4.1). The reward `rlaif` is the win rate against the other responses of
the group. Differs from the paper: its direct reward is a rating from 1 to 10 (section 2.2.2), which
is `rating`, whereas a win rate asks the judge the same question as the labels do.
"""

from __future__ import annotations

import itertools
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

import alignkit
from alignkit import (
    Artifact,
    CheckedJudge,
    DataError,
    DataRef,
    Field,
    Group,
    JudgeRef,
    Pair,
    PolicyRef,
    Response,
    RunFailed,
    SamplingOptions,
    StepContext,
    StepData,
    Verdict,
)
from alignkit.contract.report import Report
from alignkit.contract.reward import Item
from alignkit.data.group import sha256_of, with_responses
from alignkit.evaluation import statistics
from alignkit_plugins.ai_feedback.constitution import ConstitutionRef, drawn
from alignkit_plugins.ai_feedback.judge_card import (
    judge_card,
    judge_names,
    sentence,
)
from alignkit_plugins.ai_feedback.make_data import policies_of
from alignkit_plugins.ai_feedback.panel import joint
from alignkit_plugins.ai_feedback.rubric import Judged
from alignkit_plugins.ai_feedback.sample import SamplingStep
from alignkit_plugins.compare.comparison import checked_prompts, units_of
from alignkit_plugins.text.spoken import as_judged, for_judges

Place = tuple[int, int, int]  # group, first response, second response

# Prompts with a verdict, from which a judge is stopped; the order decides three pairs by chance.
ENOUGH = 6
HELP = (
    "help: ask another model; small models and models without instruction tuning often name one "
    "place. `reasons: true` lets a judge think first"
)


class JudgePairs(SamplingStep):
    """Label every pair of responses of every group."""

    class Options(SamplingOptions):
        changes_no_result: ClassVar[frozenset[str]] = frozenset({"no_judge"})

        judge: JudgeRef = Field(description="judge that compares the responses")
        data: DataRef | None = Field(
            None, "groups of responses; alternatively, set `prompts` and `policy`"
        )
        prompts: DataRef | None = Field(None, "prompts that the policy responds to")
        policy: PolicyRef | None = Field(None, "model that responds: `base` or a stage")
        samples_per_prompt: int = Field(
            2, "responses to each prompt; all pairs are judged", ge=2, le=16
        )
        clamp: tuple[float, float] | None = Field(
            None, "range to clamp soft labels to; [0.4, 0.6] suits a judge with a chain of thought"
        )
        no_judge: Literal["stop", "warn"] = Field(
            "stop",
            (
                "what to do if the verdicts are no better than chance: `stop` before a stage "
                "learns from the labels, or `warn`"
            ),
        )
        constitution: ConstitutionRef | None = Field(
            None,
            (
                "principles to judge by: a file, `harmless`, `helpful_honest` or a list; "
                "default: the judge's own criterion"
            ),
        )
        principles_per_pair: int = Field(
            1, "principles that each pair is judged by; its label is their mean", ge=1
        )

        def check_values(self) -> None:
            sampled, chosen = self.prompts is not None, self.model_fields_set
            if (self.data is None) != sampled or sampled != (self.policy is not None):
                raise ValueError("set either `data`, or both `prompts` and `policy`")
            unused = sorted({"samples_per_prompt", "sampling"} & chosen)
            if not sampled and unused:
                raise ValueError(f"`data` is not sampled: leave {' and '.join(unused)} out")
            if self.constitution is None and "principles_per_pair" in chosen:
                raise ValueError("'principles_per_pair' needs a 'constitution'")

        @field_validator("clamp")
        @classmethod
        def _is_a_range(cls, clamp: tuple[float, float] | None) -> tuple[float, float] | None:
            low, high = clamp or (0.0, 1.0)
            if not 0 <= low <= 0.5 <= high <= 1:
                around = "must be a range of probabilities around 0.5"
                raise ValueError(f"clamp [{low:g}, {high:g}] {around}")
            return clamp

        def policies_to_sample(self) -> list[str]:
            return policies_of(self.policy)

    options: Options
    maps = ("responses", "judge")

    def check(self, folder: Path) -> None:
        if self.options.constitution is None:
            return
        principles, count = self._principles(), self.options.principles_per_pair
        if count > len(principles):
            have = f"{len(principles)} principles of the constitution have 'compare'"
            raise RunFailed(f"principles_per_pair is {count}, but {have}")
        CheckedJudge.check_compares(self.options.judge, principles[0].compare or "")

    def check_data(self, data: StepData) -> None:
        groups = data.load(self.options.data)
        if groups is not None and not pairs_to_judge(groups)[0]:
            raise DataError("no row has two different responses to compare", option=("data",))
        checked_prompts(data, self.options.prompts)

    def run(self, context: StepContext) -> Artifact:
        judged = self.mapper("judge", context)  # first, so that a missing key shows before sampling
        groups = self._groups(context)
        places, identical = pairs_to_judge(groups)
        numbers, rows = self._questions(context, items_at(groups, places))
        of_pair, judgments, units = dict[int, list[Verdict]](), [], units_of(groups)
        for number, answer in zip(numbers, context.map("judge", rows, judged), strict=True):
            verdict = Verdict(**answer)
            of_pair.setdefault(number, []).append(verdict)
            judgments.append((units[places[number][0]], verdict))
        verdicts = [joint(of_pair[number]) for number in range(len(places))]
        labeled, ties = self._label(groups, places, verdicts)
        (name,) = judge_names([self.options.judge])
        card, pairs = judge_card(judgments), len(places) + len(identical)
        count = sum(len(group.pairs or ()) for group in labeled)
        lost = dropped(verdicts, ties, len(identical))
        summary = {"n": pairs, "labeled": count, "dropped": lost, "judge_cards": {name: card}}
        lines = [f"{count} of {pairs} pairs labeled", sentence(name, card)]
        lines += [f"{number} of {pairs} pairs dropped: {why}" for why, number in lost.items()]
        why = "" if count else "no pair was labeled"
        enough = card["inconsistent"]["n"] >= ENOUGH and self.options.no_judge == "stop"
        if count and card["no_judge"] and enough:
            why = "nothing should learn from its labels; `no_judge: warn` learns anyway"
        if why:
            raise RunFailed("\n".join([f"judge_pairs: judge '{name}': {why}", *lines, HELP]))
        return Artifact(groups=labeled, summary=summary, report=Report(["\n".join(lines)]))

    def mapper(self, name: str, context: StepContext) -> Callable[[Sequence[Any]], list[Any]]:
        if name != "judge":
            return super().mapper(name, context)
        judge = CheckedJudge(self.options.judge, context)
        return lambda rows: list(map(asdict, verdicts_on(judge, rows)))

    def seed_of(self, context: StepContext, rows: Sequence[Any]) -> int:
        return (context.seed + zlib.crc32(json.dumps(rows).encode())) % 2**31

    def _groups(self, context: StepContext) -> list[Group]:
        """The groups to judge, from the data or sampled."""
        options = self.options
        if options.data is not None:
            return context.load(options.data)
        prompts = context.load(options.prompts)
        context.say(f"{context.out.name}: {options.policy} answers with {options.described()}")
        groups = list[Group]()
        for group in self.sampled(context, prompts):
            answers = list[Response]()
            for each in group.responses:  # later stages learn the words that the judge has read
                answers.append(Response(each.text, truncated=each.truncated, source=each.source))
            groups.append(with_responses(group, answers))
        return groups

    def _principles(self) -> list[Any]:
        """The principles that judges read."""
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
            return range(len(items)), list(map(list, items))
        by: dict[str, list[tuple[int, list[Any]]]] = {}
        for principle in principles:
            by[principle.name] = []
        for number, item in enumerate(items):
            key = sha256_of([list(item[0]), *sorted(item[1:])])
            for principle in drawn(principles, count, context.seed, context.stage, key):
                by[principle.name].append((number, [*item, principle.compare]))
        numbers, rows = [], []
        for number, row in itertools.chain.from_iterable(by.values()):
            numbers.append(number)
            rows.append(row)
        return numbers, rows

    def _label(
        self, groups: Sequence[Group], places: Sequence[Place], verdicts: Sequence[Verdict]
    ) -> tuple[list[Group], int]:
        """Groups with the judge's pairs, and how many pairs are ties, which a clamp at 0.5 also
        makes.

        Groups without a pair are left out.
        """
        import torch

        from alignkit import functional as F

        known = []
        for verdict in verdicts:
            known.append(math.nan if verdict.p_first is None else verdict.p_first)
        labels = torch.tensor(known, dtype=torch.float64)
        if self.options.clamp is not None:
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


def verdicts_on(judge: CheckedJudge, rows: Sequence[Sequence[Any]]) -> Iterator[Verdict]:
    """The verdicts on rows of prompt, first and second, and with a principle what it says, in
    order.
    """
    for rubric, alike in itertools.groupby(rows, lambda row: "".join(row[3:])):
        items: list[Any] = [tuple(row[:3]) for row in alike]
        yield from judge.compare(items, rubric)


def pairs_to_judge(groups: Sequence[Group]) -> tuple[list[Place], list[Place]]:
    """All pairs i < j of every group, and those left out because their texts are identical."""
    places: list[Place] = []
    identical: list[Place] = []
    for g, group in enumerate(groups):
        texts = list(map(as_judged, group.responses))
        for i, j in itertools.combinations(range(len(texts)), 2):
            (identical if texts[i] == texts[j] else places).append((g, i, j))
    return places, identical


def items_at(groups: Sequence[Group], places: Sequence[Place]) -> list[Item]:
    """The judge's items for these pairs."""
    items: list[Item] = []
    for g, i, j in places:
        first, second = groups[g].responses[i], groups[g].responses[j]
        items.append((for_judges(groups[g]), as_judged(first), as_judged(second)))
    return items


# What the step says


def dropped(verdicts: Sequence[Verdict], ties: int, identical: int) -> dict[str, int]:
    """Pairs without a label, by reason: of each kind the first one, with its details."""
    first: dict[str, str] = {}
    counts = Counter[str]()
    for verdict in verdicts:
        if verdict.p_first is None:
            reason = verdict.reason or "no reason given"
            counts[first.setdefault(reason.partition(":")[0], reason)] += 1
    counts |= {"unsure": ties, "identical responses": identical}
    return dict(+counts)


# The reward


class RLAIF(Judged):
    """The mean probability of beating the other responses of the group, minus 0.5. Opponents
    without a verdict do not count.
    """

    class Options(alignkit.Options):
        judge: JudgeRef = Field(description="judge that compares the responses")

    options: Options
    # A win rate says nothing about a response to another prompt, or of a later iteration.
    within_group = True

    def score(self, groups: Sequence[Group]) -> Sequence[float | None]:
        won: dict[tuple[int, int], list[float]] = {}
        for g, group in enumerate(groups):
            if len(group.responses) == 1:
                raise RunFailed(
                    "reward 'rlaif' compares the responses of a group, but a prompt has only one\n"
                    "help: raise rollout.samples_per_prompt"
                )
            for i in range(len(group.responses)):
                won[g, i] = []
        places, identical = pairs_to_judge(groups)
        verdicts = self._judge.compare(items_at(groups, places))
        # Identical texts: 0.5 by symmetry, without a question.
        verdicts += [Verdict(0.5)] * len(identical)
        for (g, i, j), verdict in zip([*places, *identical], verdicts, strict=True):
            if verdict.p_first is not None:
                won[g, i].append(verdict.p_first)
                won[g, j].append(1.0 - verdict.p_first)
        scores = list[float | None]()
        for games in won.values():
            scores.append(statistics.mean(games) - 0.5 if games else None)
        return scores

"""Process reward models: which step of a solution is wrong (Lightman et al. 2023,
arXiv:2305.20050).

The reward model reads a solution up to the end of each step, and its score is the logit of that
step being right: cross-entropy with people's labels. A solution scores the product of its steps'
probabilities (the paper's section 2.6), their minimum, or the last one. Differs from the paper: a
scalar head instead of the tokens for right and wrong, and a forward pass for each step: the score
is read where every reward model here reads it, at an end of turn. Every label weighs the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import alignkit as ak
from alignkit import functional as F
from alignkit_plugins.formats.columns import ColumnFormat

if TYPE_CHECKING:
    from torch import Tensor


class Steps(ColumnFormat):
    """Labeled steps, as TRL's stepwise rows and PRM800K have them: a response for each step, up to
    its end.
    """

    wants = (
        "prompt, completions [text] and labels [true, false]; or PRM800K's question and label "
        "{steps}; name the format"
    )
    example = (
        '{"prompt": "2 + 3 * 4?", "completions": ["3 * 4 = 12", "2 + 12 = 15"], "labels": [true, '
        "false]}"
    )

    class Options(ak.Options):
        separator: str = ak.Field("\n", min_length=1, description="text between two steps")

    def read(self, row: Any) -> ak.Group:
        try:
            prompt = row["prompt"] if "completions" in row else row["question"]["problem"]
            steps = list(self._stepwise(row) if "completions" in row else self._prm800k(row))
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise ak.BadRow(f"the steps cannot be read: {type(error).__name__}: {error}") from error
        if not steps:
            raise ak.BadRow("no step has a label")
        if not all(isinstance(part, str) for before, step, _ in steps for part in (*before, step)):
            raise ak.BadRow("a step is not text")
        text = self.options.separator.join
        responses = tuple(
            ak.Response(text=text([*before, step]), label=label) for before, step, label in steps
        )
        used = (
            ("prompt", "completions", "labels") if "completions" in row else ("question", "label")
        )
        return ak.Group(
            self.conversation(prompt, "prompt"), responses, pairs=(), meta=self.rest(row, *used)
        )

    def _stepwise(self, row: Any) -> Iterator[tuple[list[str], str, bool]]:
        """The steps before, the step, and whether it is right."""
        for number, (step, label) in enumerate(zip(row["completions"], row["labels"], strict=True)):
            if label not in (True, False):
                raise ValueError(f"label {label!r} is neither true nor false")
            yield row["completions"][:number], step, bool(label)

    def _prm800k(self, row: Any) -> Iterator[tuple[list[str], str, bool]]:
        """All alternatives of a step; a neutral one (0) counts as right, as in the paper. The
        solution continues with the chosen one.
        """
        before: list[str] = []
        for step in row["label"]["steps"]:
            for one in step["completions"] or ():
                if one["rating"] is not None:
                    yield list(before), one["text"], one["rating"] >= 0
            human, chosen = step.get("human_completion"), step.get("chosen_completion")
            if human is None and chosen is None:
                return
            before.append(step["completions"][chosen]["text"] if human is None else human["text"])


class PRM(ak.Algorithm):
    """Score the right steps high and the wrong ones low."""

    trains = ak.Trains.REWARD
    defaults = ak.StageDefaults(
        learning_rate=5e-4, epochs=1, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.05
    )

    def select(self, groups: Sequence[ak.Group], context: ak.SelectContext) -> list[ak.Group]:
        labeled = [
            replace(g, responses=tuple(r for r in g.responses if r.label is not None), pairs=())
            for g in groups
        ]
        missing = sum(
            len(a.responses) - len(b.responses) for a, b in zip(groups, labeled, strict=True)
        )
        context.left_out("without_label", missing, groups)
        return [group for group in labeled if group.responses]

    def check_data(self, groups: Sequence[ak.Group]) -> None:
        if {response.label for group in groups for response in group.responses} != {True, False}:
            raise ak.DataError(
                "prm needs steps that are right and steps that are wrong: name the format `steps`"
            )

    def loss(self, batch: ak.Batch, out: ak.Outputs) -> ak.Loss:
        return ak.Loss(
            cross_entropy=ak.per_response(F.preference_loss(out.scores * _signs(batch, out)))
        )

    def report_metrics(self, batch: ak.Batch, out: ak.Outputs) -> Mapping[str, ak.Term]:
        right = (out.scores * _signs(batch, out) > 0).to(out.scores.dtype)
        return {"accuracy": ak.per_response(right)}


def _signs(batch: ak.Batch, out: ak.Outputs) -> Tensor:
    """1 for a right step, -1 for a wrong one: [R]."""
    return out.scores.new_tensor(
        [1.0 if r.label else -1.0 for group in batch.groups for r in group.responses]
    )


class RankBySteps(ak.Step):
    """Ranks the responses of each prompt by their steps, for best of N, or as pairs to learn
    from.
    """

    class Options(ak.Options):
        data: ak.DataRef = ak.Field(description="prompts with responses, such as a `sample` stage")
        reward: ak.RewardRef = ak.Field(description="the process reward model: a `prm` stage")
        aggregate: Literal["product", "min", "last"] = ak.Field(
            "product",
            description=(
                "a solution's score: the product of its steps' probabilities, the least, or the "
                "last"
            ),
        )
        separator: str = ak.Field("\n", min_length=1, description="text between two steps")
        best: bool = ak.Field(
            False, description="keep only the best response of each prompt, as a demonstration"
        )

    def run(self, context: ak.StepContext) -> ak.Artifact:
        scorer = context.scorer(self.options.reward)
        groups = [group for group in context.load(self.options.data) if group.responses]
        parts = [
            [_prefixes(r.text, self.options.separator) for r in group.responses] for group in groups
        ]
        flat = [
            replace(
                group,
                responses=tuple(ak.Response(text=text) for texts in each for text in texts),
                pairs=(),
            )
            for group, each in zip(groups, parts, strict=True)
        ]
        ranked, steps, unscored = [], 0, 0
        for group, each, scored in zip(groups, parts, scorer.score(flat), strict=True):
            logits = iter([response.scores["reward"] for response in scored.responses])
            totals = [
                aggregated([next(logits) for _ in texts], self.options.aggregate) for texts in each
            ]
            known = {place: total for place, total in enumerate(totals) if total is not None}
            ranked += [self._ranked(group, known)] if known else []
            steps, unscored = steps + sum(map(len, each)), unscored + len(totals) - len(known)
        text = (
            f"{len(ranked)} prompts ranked by {steps} steps; {unscored} solutions without a score "
            "left out"
        )
        summary = {"prompts": len(ranked), "steps": steps, "unscored": unscored}
        return ak.Artifact(groups=ranked, summary=summary, text=text)

    def _ranked(self, group: ak.Group, totals: Mapping[int, float]) -> ak.Group:
        """totals: the scores of those of its responses that have one, by their place."""
        if self.options.best:
            best = max(totals, key=totals.__getitem__)
            return replace(
                group,
                responses=(replace(group.responses[best], rank=None, label=None),),
                pairs=None,
            )
        responses = [
            replace(
                group.responses[place],
                rank=float(1 + sum(other > total for other in totals.values())),
                scores={"reward": total},
            )
            for place, total in totals.items()
        ]
        return replace(group, responses=tuple(responses), pairs=None)


def _prefixes(text: str, separator: str) -> list[str]:
    """A solution up to the end of each of its steps."""
    steps = [step for step in text.split(separator) if step.strip()] or [text]
    return [separator.join(steps[: end + 1]) for end in range(len(steps))]


def aggregated(logits: Sequence[float | None], how: str) -> float | None:
    """A solution's score from its steps' logits; None if one could not be scored, such as for its
    length.
    """
    right = [1 / (1 + math.exp(-logit)) for logit in logits if logit is not None]
    if len(right) < len(logits):
        return None
    return {"product": math.prod(right), "min": min(right), "last": right[-1]}[how]


@ak.hookimpl
def register(add: ak.Add) -> None:
    add("algorithm", "prm", PRM, "a process reward model: score each step of a solution")
    add(
        "format",
        "steps",
        Steps,
        "solutions with a label for each step: TRL's stepwise supervision, PRM800K",
    )
    add("step", "rank_by_steps", RankBySteps, "rank responses by a process reward model")

"""HIR: hindsight instruction relabeling (Zhang et al. 2023, arXiv:2302.05206), and the step
`instruct`.

Every response is learned as an answer to the instruction that it really fulfills, successes and
failures alike. A contrast makes this instruction likelier than the others: a softmax of log
P(response | instruction) over all instructions (eq. 4), for which every response also appears under
every other instruction. All groups of a prompt form one bundle, so that a batch holds them
together. Differs from the paper: the contrast is over the distinct instructions, not over those of
a batch with repetitions.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import model_validator

import alignkit
from alignkit import (
    Algorithm,
    Artifact,
    Batch,
    DataError,
    DataRef,
    Field,
    Group,
    Loss,
    Message,
    Needs,
    Outputs,
    Response,
    SelectContext,
    Source,
    StageDefaults,
    Step,
    Term,
    per_response,
    per_token,
)
from alignkit import functional as F
from alignkit.data.group import group_id, prompts_of
from alignkit.reward import REWARD_KEY

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit import StepContext, StepData


@dataclass(frozen=True)
class Contrasts:
    """The rows of N responses of a batch under each of M instructions.

    rows: [N, M] rows of the batch. fulfilled: [N] the instruction that each response fulfills.
    own_row: [N] its row under this instruction.
    """

    rows: Tensor
    fulfilled: Tensor

    @property
    def own_row(self) -> Tensor:
        return self.rows.gather(1, self.fulfilled[:, None])[:, 0]


class HIR(Algorithm):
    """Sample, score, relabel, learn."""

    source = Source.ROLLOUTS
    needs = Needs(entropy=True)
    defaults = StageDefaults(
        learning_rate=5e-5,
        epochs=2,
        batch_size=16,
        lr_scheduler_type="linear",
        samples_per_prompt=4,
    )

    class Options(Algorithm.Options):
        instructions: list[str] = Field(
            [
                "Generate an incorrect answer to this problem.",
                "Generate a correct answer to this problem.",
            ],
            min_length=2,
            description="instructions that responses can fulfill, in the order of rising scores",
        )
        thresholds: list[float] | None = Field(
            None,
            description=(
                "increasing reward thresholds, one between neighboring instructions; default for "
                "two: the mean of the iteration's samples"
            ),
        )
        contrast_coefficient: float = Field(
            1.0, ge=0, description="weight of the contrast between instructions"
        )
        entropy_coefficient: float = Field(0.001, ge=0, description="weight of the entropy bonus")
        label_smoothing: float = Field(
            0.0,
            ge=0,
            lt=1,
            description="share of labels assumed to be wrong, split among the other instructions",
        )
        length_normalized: bool = Field(
            True, description="use the mean of a response's token log-probabilities, not their sum"
        )

        @model_validator(mode="after")
        def _consistent(self) -> HIR.Options:
            needed, found = (
                len(self.instructions) - 1,
                1 if self.thresholds is None else len(self.thresholds),
            )
            if found != needed:
                raise ValueError(
                    f"{len(self.instructions)} instructions need {needed} "
                    f"threshold{'s' if needed > 1 else ''}, not {found}"
                )
            if self.label_smoothing and not self.contrast_coefficient:
                raise ValueError(
                    "label_smoothing only applies to the contrast, but contrast_coefficient is 0"
                )
            if self.thresholds is not None and self.thresholds != sorted(set(self.thresholds)):
                raise ValueError(f"thresholds must increase, got {self.thresholds}")
            if len(set(self.instructions)) < len(self.instructions):
                raise ValueError("instructions must differ from each other")
            return self

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """Groups of responses under the instruction they fulfill; with a contrast, under all other
        instructions, too.

        Raises DataError if no response has a score or a label.
        """
        if self.options.thresholds is None and not (
            context.validation and "threshold" in self.state
        ):
            scores = [
                score
                for group in groups
                for r in group.responses
                if (score := _score(r)) is not None
            ]
            if scores and F.nearly_equal(min(scores), max(scores)):
                return []  # nothing tells the instructions apart
            # A fixed number would label all samples alike, depending on the reward's level.
            self.state["threshold"] = math.fsum(scores) / max(1, len(scores))
        relabeled = [
            new for number, group in enumerate(groups) for new in self._relabel(group, number)
        ]
        if not relabeled:
            raise DataError(
                f"hir needs responses with a score or a label, but none of {len(groups)} groups "
                "has one; add a column `label` (true or false) or `score` (a number) next to "
                "prompt and completion"
            )
        if not context.validation:
            self._report(groups, context)
        return relabeled

    def _report(self, groups: Sequence[Group], context: SelectContext) -> None:
        """Log the share of responses that fulfill each instruction, and the number that have no
        feedback.
        """
        counts = Counter(
            self._fulfilled(response) for group in groups for response in group.responses
        )
        known = counts.total() - counts[None]
        context.log(
            **{f"fulfilled/{k}": counts[k] / known for k in range(len(self.options.instructions))}
        )
        silent = [
            group for group in groups if any(self._fulfilled(r) is None for r in group.responses)
        ]
        context.left_out("without_feedback", counts[None], silent)

    def _relabel(self, group: Group, number: int) -> list[Group]:
        """The group under each instruction that some of its responses are learned with."""
        o, groups = self.options, []
        # Numbered, because a prompt may be sampled twice in an iteration.
        bundle = f"hir {number}" if o.contrast_coefficient else None
        fulfilled = [(self._fulfilled(response), response) for response in group.responses]
        for index, instruction in enumerate(o.instructions):
            responses = tuple(
                response
                for own, response in fulfilled
                if own is not None and (own == index or o.contrast_coefficient)
            )
            if responses:
                prompt = instructed(group.prompt, instruction, o.instructions)
                meta = {**group.meta, "hir": index}
                groups.append(
                    replace(
                        group,
                        prompt=prompt,
                        responses=responses,
                        pairs=(),
                        bundle=bundle,
                        meta=meta,
                    )
                )
        return groups

    def _fulfilled(self, response: Response) -> int | None:
        """Index of the instruction that a response fulfills; None without a score or a label."""
        score, thresholds = _score(response), self.options.thresholds
        if score is None:
            return None
        return sum(
            score > threshold
            for threshold in ([self.state["threshold"]] if thresholds is None else thresholds)
        )

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        o, logprobs = self.options, self._logprobs(batch, out)
        terms = {
            "nll": per_token(-out.logprobs) if o.length_normalized else per_response(-logprobs)
        }
        if o.contrast_coefficient:
            contrasts = self._contrasts(batch)
            losses = F.instruction_contrast(
                logprobs[contrasts.rows], contrasts.fulfilled, o.label_smoothing
            )
            values = logprobs.new_zeros(len(logprobs)).index_put((contrasts.own_row,), losses)
            terms["contrast"] = per_response(values, o.contrast_coefficient)
        terms["entropy"] = per_token(out.entropy, -o.entropy_coefficient)
        return Loss(**terms)

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """Only responses under the instruction they fulfill count, and their tokens."""
        own = self._is_own(batch)
        tokens, responses = batch.weights("token") * own[:, None], batch.weights("response") * own
        weights = {
            "nll": tokens if self.options.length_normalized else responses,
            "entropy": tokens,
        }
        if self.options.contrast_coefficient:
            own_row = self._contrasts(batch).own_row
            contrasted = responses.new_zeros(len(responses)).index_fill(0, own_row, 1.0)
            weights["contrast"] = contrasted * batch.weights("group")[batch.group_index]
        return weights

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """contrast_accuracy: share of responses that are likeliest under the instruction they
        fulfill. without_contrast: share of responses that are not complete under every instruction.
        """
        if not self.options.contrast_coefficient:
            return {}
        logprobs, contrasts = self._logprobs(batch, out), self._contrasts(batch)
        right = (logprobs[contrasts.rows].argmax(dim=1) == contrasts.fulfilled).float()
        unknown = logprobs.new_full((len(logprobs),), float("nan"))
        without = unknown.masked_fill(self._is_own(batch), 1.0)
        return {
            "contrast_accuracy": per_response(unknown.index_put((contrasts.own_row,), right)),
            "without_contrast": per_response(without.index_fill(0, contrasts.own_row, 0.0)),
        }

    def _logprobs(self, batch: Batch, out: Outputs) -> Tensor:
        """log P(response | prompt): [R]."""
        over_tokens = F.mean_tokens if self.options.length_normalized else F.sum_tokens
        return over_tokens(out.logprobs, batch.mask)

    def _is_own(self, batch: Batch) -> Tensor:
        """Whether each response is under the instruction that it fulfills: [R]."""
        return self._all_fulfilled(batch) == _instructions(batch)

    def _all_fulfilled(self, batch: Batch) -> Tensor:
        """Index of the instruction that each response fulfills: [R]."""
        return batch.tokens.new_tensor(
            [self._fulfilled(r) for group in batch.groups for r in group.responses]
        )

    def _contrasts(self, batch: Batch) -> Contrasts:
        """The responses that are complete under all instructions.

        Others have no contrast. If a response is truncated under one instruction, it would compare
        different texts.
        """
        rows_of: defaultdict[tuple[str | None, int], dict[int, int]] = defaultdict(dict)
        responses = (
            (group.bundle, place) for group in batch.groups for place in range(len(group.responses))
        )
        for row, (response, instruction) in enumerate(
            zip(responses, _instructions(batch).tolist(), strict=True)
        ):
            rows_of[response][instruction] = row
        lengths, count = batch.mask.sum(dim=1).tolist(), len(self.options.instructions)
        complete = [
            [rows[instruction] for instruction in range(count)]
            for rows in rows_of.values()
            if len(rows) == count and _one_length([lengths[row] for row in rows.values()])
        ]
        table = batch.tokens.new_tensor(complete).reshape(-1, count)
        return Contrasts(table, self._all_fulfilled(batch)[table[:, 0]])


def _score(response: Response) -> float | None:
    """The reward of a response, or its label as 0 or 1; None without either."""
    score = response.scores.get(REWARD_KEY)
    score = response.label if score is None else score
    return None if score is None or math.isnan(score) else float(score)


def _one_length(lengths: Sequence[int]) -> bool:
    return len(set(lengths)) == 1 and lengths[0] > 0


def _instructions(batch: Batch) -> Tensor:
    """Index of the instruction that each response is under: [R]."""
    return batch.tokens.new_tensor(
        [group.meta["hir"] for group in batch.groups for _ in group.responses]
    )


class HIROffline(HIR):
    """Relabel and learn the responses of a data set, by their scores or labels."""

    source = Source.DATASET
    defaults = StageDefaults(
        learning_rate=1e-4, epochs=1, batch_size=16, lr_scheduler_type="linear"
    )

    class Options(HIR.Options):
        thresholds: list[float] | None = Field(
            [0.0],
            description=(
                "increasing reward thresholds, one between neighboring instructions; a label "
                "counts as 0 or 1"
            ),
        )
        contrast_coefficient: float = Field(
            0.0, ge=0, description="weight of the contrast between instructions"
        )

    def trained_turns(self) -> str:
        """A label or score belongs to the last answer of a conversation; earlier turns are
        context.
        """
        return "last"


def instructed(
    prompt: Sequence[Message], instruction: str, known: Sequence[str] = ()
) -> tuple[Message, ...]:
    """The prompt whose last turn begins with the instruction, which replaces a `known` one; of
    several, the longest.
    """
    text = prompt[-1]["content"]
    for other in sorted(known, key=len, reverse=True):
        if text == other or text.startswith(f"{other}\n"):
            text = text[len(other) + 1 :]
            break
    content = f"{instruction}\n{text}" if text else instruction
    return (*prompt[:-1], Message(role=prompt[-1]["role"], content=content))


class Instruct(Step):
    """Add an instruction to prompts, to sample under it in `hir` or to evaluate the policy with
    it.
    """

    class Options(alignkit.Options):
        data: DataRef = Field(description="groups to take the prompts from, one per row")
        instruction: str = Field(min_length=1, description="instruction to add to each prompt")

    options: Options

    def check_data(self, data: StepData) -> None:
        if (rows := data.load(self.options.data)) is not None:
            _prompts(rows)

    def run(self, context: StepContext) -> Artifact:
        groups = []
        for group in _prompts(context.load(self.options.data)):
            prompt = instructed(group.prompt, self.options.instruction)
            groups.append(replace(group, prompt=prompt, id=group_id(prompt)))
        return Artifact(
            groups=groups, summary={"prompts": len(groups)}, text=f"{len(groups)} prompts"
        )


def _prompts(rows: Sequence[Group]) -> list[Group]:
    if not (prompts := prompts_of(rows)):
        raise DataError("the rows are raw text, without a prompt to instruct", option=("data",))
    return prompts

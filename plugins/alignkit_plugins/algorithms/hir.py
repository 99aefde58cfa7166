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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

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
    per_response,
    per_token,
)
from alignkit import functional as F
from alignkit.contract.reward import REWARD_KEY
from alignkit.data.group import group_id, prompts_of, responses_of

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit import StepContext, StepData


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
            "instructions that responses can fulfill, in the order of rising scores",
            min_length=2,
        )
        thresholds: list[float] | None = Field(
            None,
            (
                "increasing reward thresholds, one between neighboring instructions; "
                "default for two: the mean of the iteration's samples"
            ),
        )
        contrast_coefficient: float = Field(
            1.0, "weight of the contrast between instructions", ge=0
        )
        entropy_coefficient: float = Field(0.001, "weight of the entropy bonus", ge=0)
        label_smoothing: float = Field(
            0.0,
            "share of labels assumed to be wrong, split among the other instructions",
            ge=0,
            lt=1,
        )

        def check_values(self) -> None:
            thresholds = [0.0] if self.thresholds is None else self.thresholds
            count, needed = len(self.instructions), len(self.instructions) - 1
            if len(thresholds) != needed:
                raise ValueError(
                    f"{count} instructions need {needed} threshold{'s' if needed > 1 else ''}, "
                    f"not {len(thresholds)}"
                )
            if self.label_smoothing and not self.contrast_coefficient:
                raise ValueError(
                    "label_smoothing only applies to the contrast, but contrast_coefficient is 0"
                )
            if thresholds != sorted(set(thresholds)):
                raise ValueError(f"thresholds must increase, got {thresholds}")
            if len(set(self.instructions)) < count:
                raise ValueError("instructions must differ from each other")

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """Groups of responses under the instruction they fulfill; with a contrast, under all other
        instructions, too.

        Raises DataError if no response has a score or a label.
        """
        scores, silent = [], []
        for group in groups:
            known = [score for score in map(_score, group.responses) if score is not None]
            scores += known
            if len(known) < len(group.responses):
                silent.append(group)
        if self.options.thresholds is None and not (
            context.validation and "threshold" in self.state
        ):
            if scores and F.nearly_equal(min(scores), max(scores)):
                return []  # nothing tells the instructions apart
            # A fixed number would label all samples alike, depending on the reward's level.
            self.state["threshold"] = math.fsum(scores) / max(1, len(scores))
        if not scores:
            raise DataError(
                f"hir needs responses with a score or a label, but none of {len(groups)} groups "
                "has one; add a column `label` (true or false) or `score` (a number) next to "
                "prompt and completion"
            )
        if not context.validation:
            fulfilled = list(map(self._fulfilled_by, scores))
            for index in range(len(self.options.instructions)):
                context.log(**{f"fulfilled/{index}": fulfilled.count(index) / len(scores)})
            missing = len(responses_of(groups)) - len(scores)
            context.left_out("without_feedback", missing, silent)
        relabeled = []
        for number, group in enumerate(groups):
            relabeled += self._relabel(group, number)
        return relabeled

    def _relabel(self, group: Group, number: int) -> list[Group]:
        """The group under each instruction that some of its responses are learned with."""
        o, groups = self.options, []
        # Numbered, because a prompt may be sampled twice in an iteration.
        bundle = f"hir {number}" if o.contrast_coefficient else None
        group = replace(group, pairs=(), bundle=bundle)
        for index, instruction in enumerate(o.instructions):
            responses = []
            for response in group.responses:
                score = _score(response)
                if score is None:
                    continue
                if o.contrast_coefficient or self._fulfilled_by(score) == index:
                    responses.append(response)
            if responses:
                prompt = instructed(group.prompt, instruction, o.instructions)
                meta = {**group.meta, "hir": index}
                new = replace(group, prompt=prompt, responses=tuple(responses), meta=meta)
                groups.append(new)
        return groups

    def _fulfilled_by(self, score: float) -> int:
        """Index of the instruction that a response with this score fulfills."""
        thresholds = self.options.thresholds
        if thresholds is None:
            thresholds = [self.state["threshold"]]
        return sum(score > threshold for threshold in thresholds)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        o = self.options
        terms = {"nll": per_token(-out.logprobs)}
        if o.contrast_coefficient:
            places, fulfilled = self._contrasts(batch)
            logprobs = F.mean_tokens(out.logprobs, batch.mask)
            losses = F.instruction_contrast(logprobs[places], fulfilled, o.label_smoothing)
            values = logprobs.new_zeros(len(logprobs)).index_put((_own(places, fulfilled),), losses)
            terms["contrast"] = per_response(values, o.contrast_coefficient)
        terms["entropy"] = per_token(out.entropy, -o.entropy_coefficient)
        return Loss(**terms)

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """Only responses under the instruction they fulfill count, and their tokens."""
        tokens = batch.weights("token") * self._is_own(batch)[:, None]
        weights = {"nll": tokens, "entropy": tokens}
        if self.options.contrast_coefficient:
            own = _own(*self._contrasts(batch))
            contrasted = tokens.new_zeros(len(tokens)).index_fill(0, own, 1.0)
            weights["contrast"] = contrasted * batch.weights("group")[batch.group_index]
        return weights

    def _is_own(self, batch: Batch) -> Tensor:
        """Whether each response is under the instruction that it fulfills: [R]."""
        return self._fulfilled(batch) == _instructions(batch)

    def _fulfilled(self, batch: Batch) -> Tensor:
        """Index of the instruction that each response fulfills: [R]."""
        indices = []
        for response in responses_of(batch.groups):
            score = _score(response)
            assert score is not None  # only responses with a score are selected
            indices.append(self._fulfilled_by(score))
        return batch.tokens.new_tensor(indices)

    def _contrasts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The places of N responses under each of M instructions, [N, M], and the index of the
        instruction that each fulfills, [N].

        Responses that are not complete under all instructions have no contrast. If one is truncated
        under one instruction, it would compare different texts.
        """
        places_of: dict[Any, dict[int, int]] = {}
        owners = []
        for group in batch.groups:
            instruction = group.meta["hir"]
            owners += [(group.bundle, place, instruction) for place in range(len(group.responses))]
        for place, (*owner, instruction) in enumerate(owners):
            places_of.setdefault(tuple(owner), {})[instruction] = place
        # The only wait for a device
        lengths, count = batch.mask.sum(dim=1).tolist(), len(self.options.instructions)
        complete = []
        for by_instruction in places_of.values():
            places = [by_instruction[instruction] for instruction in sorted(by_instruction)]
            length, *others = {lengths[place] for place in places}
            if len(places) == count and length and not others:
                complete.append(places)
        table = batch.tokens.new_tensor(complete).reshape(-1, count)
        return table, self._fulfilled(batch)[table[:, 0]]


def _score(response: Response) -> float | None:
    """The reward of a response, or its label as 0 or 1; None without either."""
    score = response.scores.get(REWARD_KEY)
    score = response.label if score is None else score
    return None if score is None or math.isnan(score) else float(score)


def _own(places: Tensor, fulfilled: Tensor) -> Tensor:
    """The place of each response under the instruction that it fulfills: [N, M], [N] -> [N]."""
    return places.gather(1, fulfilled[:, None])[:, 0]


def _instructions(batch: Batch) -> Tensor:
    """Index of the instruction that each response is under: [R]."""
    indices = [group.meta["hir"] for group in batch.groups]
    return batch.tokens.new_tensor(indices)[batch.group_index]


class HIROffline(HIR):
    """Relabel and learn the responses of a data set, by their scores or labels."""

    source = Source.DATASET
    defaults = StageDefaults(
        learning_rate=1e-4, epochs=1, batch_size=16, lr_scheduler_type="linear"
    )

    class Options(HIR.Options):
        thresholds: list[float] | None = Field(
            [0.0],
            (
                "increasing reward thresholds, one between neighboring instructions; a label "
                "counts as 0 or 1"
            ),
        )
        contrast_coefficient: float = Field(
            0.0, "weight of the contrast between instructions", ge=0
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
        groups = data.load(self.options.data)
        if groups is not None:
            _prompts(groups)

    def run(self, context: StepContext) -> Artifact:
        groups = []
        for group in _prompts(context.load(self.options.data)):
            prompt = instructed(group.prompt, self.options.instruction)
            groups.append(replace(group, prompt=prompt, id=group_id(prompt)))
        return Artifact(
            groups=groups, summary={"prompts": len(groups)}, text=f"{len(groups)} prompts"
        )


def _prompts(groups: Sequence[Group]) -> list[Group]:
    prompts = prompts_of(groups)
    if not prompts:
        raise DataError("the rows are raw text, without a prompt to instruct", option=("data",))
    return prompts

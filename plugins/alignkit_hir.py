"""HIR: hindsight instruction relabelling (Zhang et al. 2023, arXiv:2302.05206), and the step `instruct`.

Every response is learned as an answer to the instruction that it really fulfils, successes and failures alike.
A contrast makes that instruction likelier than the others: the softmax of log P(response | instruction) over all
instructions (eq. 4), for which each response is also put behind them. The groups of a prompt are one bundle.
Differs from the paper: the contrast is over the different instructions, not over those of a batch with repetitions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

import alignkit
from alignkit import (
    DATASET,
    ROLLOUTS,
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
    Register,
    Response,
    SelectContext,
    StageDefaults,
    Step,
    Term,
    hookimpl,
    per_response,
    per_token,
)
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit import StepContext

InstructionRole = Literal["user", "system"]
ROLE = "before the words of the last turn, or as (the beginning of) a system message"


class HIR(Algorithm):
    """Sample, score, relabel, learn."""

    source = ROLLOUTS
    needs = Needs(entropy=True)
    defaults = StageDefaults(
        learning_rate=1e-3,  # for LoRA on models of some 100M weights; a tenth of it above a billion
        epochs=2,
        batch_size=16,
        lr_scheduler_type="linear",
        samples_per_prompt=4,
    )

    class Options(Algorithm.Options):
        instructions: list[str] = Field(
            ["Generate an incorrect answer to this problem.", "Generate a correct answer to this problem."],
            min_length=2,
            description="what responses fulfil, from the lowest scores to the highest",
        )
        thresholds: list[float] = Field(
            [0.0], description="between the instructions: a score above the k-th fulfils the next; a label is 0 or 1"
        )
        role: InstructionRole = Field("user", description=ROLE)
        contrast_coefficient: float = Field(1.0, ge=0, description="weight of the contrast over instructions")
        entropy_coefficient: float = Field(0.001, ge=0, description="weight of the entropy bonus")
        label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the contrast that other instructions get")
        length_normalized: bool = Field(
            True, description="log P is a mean over tokens, as in the authors' code, or a sum"
        )

        @model_validator(mode="after")
        def _fit(self) -> Any:
            if len(self.thresholds) != len(self.instructions) - 1:
                raise ValueError(f"{len(self.instructions)} instructions have {len(self.instructions) - 1} thresholds")
            if self.label_smoothing and not self.contrast_coefficient:
                raise ValueError("label_smoothing only applies to the contrast, and contrast_coefficient is 0")
            if self.thresholds != sorted(set(self.thresholds)) or len(set(self.instructions)) < len(self.instructions):
                raise ValueError("thresholds must rise, and instructions differ")
            return self

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """The responses behind the instruction that they fulfil, and with a contrast behind all others as well.

        Raises DataError where no response has a score or label.
        """
        found: Counter[int | None] = Counter(self._fulfils(r) for group in groups for r in group.responses)
        relabelled = [new for number, group in enumerate(groups) for new in self._relabelled(group, number)]
        if not relabelled:
            raise DataError(
                f"hir needs responses with a score or a label, and none of {len(groups)} groups has one: give `label` "
                "(true, false) or `score` (a number) with prompt and completion"
            )
        if not context.validation:
            known = found.total() - found[None]
            shares = {f"fulfilled/{level}": found[level] / known for level in range(len(self.options.instructions))}
            context.log(**shares)
            silent = [group for group in groups if any(self._fulfils(r) is None for r in group.responses)]
            context.left_out("without_feedback", found[None], silent)
        return relabelled

    def _relabelled(self, group: Group, number: int) -> list[Group]:
        o, made = self.options, []
        bundle = f"hir {number}" if o.contrast_coefficient else None  # a prompt may stand in an iteration twice
        rated = [response for response in group.responses if self._fulfils(response) is not None]
        for level, instruction in enumerate(o.instructions):
            here = (
                rated
                if o.contrast_coefficient
                else [response for response in rated if self._fulfils(response) == level]
            )
            if here:
                prompt = instructed(group.prompt, instruction, o.role, o.instructions)
                meta = {**group.meta, "hir": level}
                made.append(replace(group, prompt=prompt, responses=tuple(here), pairs=(), bundle=bundle, meta=meta))
        return made

    def _fulfils(self, response: Response) -> int | None:
        """Index of the instruction that a response fulfils; None without a score or label."""
        score = response.scores.get("reward")
        score = response.label if score is None else score
        return (
            None
            if score is None or math.isnan(score)
            else sum(score > threshold for threshold in self.options.thresholds)
        )

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        o, logprobs = self.options, self._logprobs(batch, out)
        terms = {"nll": per_token(-out.logprobs) if o.length_normalized else per_response(-logprobs)}
        if o.contrast_coefficient:
            rows, own, place = self._rows(batch)
            losses = F.instruction_contrast(logprobs[rows], own, o.label_smoothing)
            terms["contrast"] = per_response(
                logprobs.new_zeros(len(logprobs)).index_put((place,), losses), o.contrast_coefficient
            )
        terms["entropy"] = per_token(out.entropy, -o.entropy_coefficient)
        return Loss(**terms)

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """Means over responses behind the instruction that they fulfil, or over their tokens."""
        own = (self._fulfilled(batch) == _behind(batch))[:, None] & batch.mask
        tokens, responses = own.float(), own.any(dim=1).float()
        nll = tokens if self.options.length_normalized else responses
        found = {"nll": nll, "entropy": tokens}
        if self.options.contrast_coefficient:
            found["contrast"] = responses.new_zeros(len(responses)).index_fill(0, self._rows(batch)[2], 1.0)
        return found

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """`contrast_accuracy`: share of responses to whom the instruction that they fulfil gives the largest P.
        `without_contrast`: share of responses that are not there whole behind every instruction.
        """
        if not self.options.contrast_coefficient:
            return {}
        logprobs = self._logprobs(batch, out)
        rows, own, place = self._rows(batch)
        right = (logprobs[rows].argmax(dim=1) == own).float()
        unknown = logprobs.new_full((len(logprobs),), float("nan"))
        without = unknown.masked_fill(self._fulfilled(batch) == _behind(batch), 1.0)
        return {
            "contrast_accuracy": per_response(unknown.index_put((place,), right)),
            "without_contrast": per_response(without.index_fill(0, place, 0.0)),
        }

    def _logprobs(self, batch: Batch, out: Outputs) -> Tensor:
        """log P(response | prompt): [R]."""
        over_tokens = F.mean_tokens if self.options.length_normalized else F.sum_tokens
        return over_tokens(out.logprobs, batch.mask)

    def _fulfilled(self, batch: Batch) -> Tensor:
        """Index of the instruction that each response fulfils: [R]."""
        return batch.tokens.new_tensor([self._fulfils(r) for group in batch.groups for r in group.responses])

    def _rows(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Where each response stands behind each instruction, [N, M], which one it fulfils, [N], and where it stands
        behind that, [N]. Those that do not stand behind all of them, or are cut behind one and not behind another,
        are left out: their contrast would be that of different words.
        """
        places = [(group.bundle, place) for group in batch.groups for place in range(len(group.responses))]
        found: dict[tuple[str | None, int], dict[int, int]] = {}
        for row, (place, level) in enumerate(zip(places, _behind(batch).tolist(), strict=True)):
            found.setdefault(place, {})[level] = row
        count, lengths = len(self.options.instructions), batch.mask.sum(dim=1).tolist()
        tokens = {place: {lengths[row] for row in rows.values()} for place, rows in found.items()}
        whole = [
            r for place, r in found.items() if len(r) == count and len(tokens[place]) == 1 and 0 not in tokens[place]
        ]
        table = batch.tokens.new_tensor([[rows[level] for level in range(count)] for rows in whole]).reshape(-1, count)
        own = self._fulfilled(batch)[table[:, 0]]
        return table, own, table.gather(1, own[:, None])[:, 0]


def _behind(batch: Batch) -> Tensor:
    """Index of the instruction that each response stands behind: [R]."""
    return batch.tokens.new_tensor([group.meta["hir"] for group in batch.groups for _ in group.responses])


class HIROffline(HIR):
    """Relabel and learn responses that are there already, by their scores or labels."""

    source = DATASET
    defaults = StageDefaults(learning_rate=1e-4, epochs=1, batch_size=16, lr_scheduler_type="linear")

    class Options(HIR.Options):
        contrast_coefficient: float = Field(0.0, ge=0, description="weight of the contrast over instructions")


def instructed(
    prompt: Sequence[Message], instruction: str, role: InstructionRole, known: Sequence[str] = ()
) -> tuple[Message, ...]:
    """The prompt with the instruction in its place; one of the known ones that is there already goes."""
    turns = list(prompt)
    if role == "system" and not (turns and turns[0]["role"] == "system"):
        return (Message(role="system", content=instruction), *turns)
    at, between = (0, "\n\n") if role == "system" else (-1, "\n")
    words = turns[at]["content"]
    for old in sorted(known, key=len, reverse=True):
        if words == old or words.startswith(old + between):
            words = words[len(old + between) :]
            break
    turns[at] = Message(role=turns[at]["role"], content=between.join([instruction, words] if words else [instruction]))
    return tuple(turns)


class Instruct(Step):
    """Put an instruction before prompts, to sample under it in `hir` and to evaluate what it learned."""

    class Options(alignkit.Options):
        data: DataRef = Field(description="whose prompts; of equal ones the first counts")
        instruction: str = Field(min_length=1, description="what is put before each of them")
        role: InstructionRole = Field("user", description=ROLE)

    options: Options

    def run(self, context: StepContext) -> Artifact:
        from alignkit.data.group import group_id, prompts_of

        made = []
        for group in prompts_of(context.load(self.options.data)):
            prompt = instructed(group.prompt, self.options.instruction, self.options.role)
            made.append(replace(group, prompt=prompt, id=group_id(prompt)))
        return Artifact(groups=made, summary={"prompts": len(made)}, text=f"{len(made)} prompts")


@hookimpl
def register_algorithms(register: Register) -> None:
    register("hir", HIR, summary="learn every sample as an answer to the instruction that it fulfils")
    register("hir_offline", HIROffline, summary="the same for responses of a data set")


@hookimpl
def register_steps(register: Register) -> None:
    register("instruct", Instruct, summary="put an instruction before prompts")

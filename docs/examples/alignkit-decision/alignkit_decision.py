"""Decision models: a policy learns which probabilities people give to the options of a question.

The options have letters, and the answer is one token. The loss is the cross-entropy between
people's shares and the model's probabilities over the letters, with two optional terms: Brier 1950,
and the probability of any letter at all. The format `decision` reads questions. Pairs become the
questions that the judge `decision` asks, in both orders.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import FiniteFloat

import alignkit
from alignkit import (
    Add,
    Algorithm,
    Artifact,
    BadRow,
    Batch,
    DataError,
    DataRef,
    Field,
    Group,
    Judge,
    Loss,
    Message,
    Models,
    Outputs,
    PolicyRef,
    Response,
    Reward,
    SelectContext,
    StageDefaults,
    Step,
    StepContext,
    Term,
    Verdict,
    hookimpl,
    per_group,
)
from alignkit.contract.report import Report, Table
from alignkit.contract.reward import Item
from alignkit.data.group import group_id, resolved_pairs
from alignkit.evaluation import statistics as stats
from alignkit.evaluation.statistics import CONFIDENCE, interval_text
from alignkit_plugins.formats.columns import ColumnFormat
from alignkit_plugins.text.spoken import last_turn

if TYPE_CHECKING:
    from torch import Tensor

LETTERS = string.ascii_uppercase
SHARE = "share"  # the score of a letter: the share of people who choose it
QUESTION = "How good is the response?"


def listed(options: Sequence[str]) -> str:
    """The end of a question: its options, with letters."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n\n" + "\n".join(lines) + "\n\nAnswer with the letter of one option, and nothing else."


def asked(prompt: Sequence[Message], options: Sequence[str]) -> tuple[Message, ...]:
    """The prompt, whose last turn ends with the options."""
    return (*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + listed(options)})


def _transcript(prompt: Sequence[Message]) -> str:
    turns = (f"{turn['role']}: {turn['content']}" for turn in prompt)
    return "Conversation:\n" + "\n\n".join(turns)


def which(prompt: Sequence[Message]) -> tuple[Message, ...]:
    """The question which of two responses to a prompt is better, still without the responses: its
    options.
    """
    return (Message(role="user", content=f"{_transcript(prompt)}\n\nWhich response is better?"),)


def about(prompt: Sequence[Message], response: str, asks: str) -> tuple[Message, ...]:
    """A question about a response to a prompt, or without one about the prompt, still without its
    options.
    """
    said = f"\n\nResponse:\n{response}" if response else ""
    return (Message(role="user", content=f"{_transcript(prompt)}{said}\n\n{asks}"),)


def shares_of(group: Group) -> list[float] | None:
    """People's shares of the options; None if a letter has none."""
    shares = [response.scores.get(SHARE) for response in group.responses]
    return (
        None
        if None in shares or len(shares) < 2
        else [float(share) for share in shares if share is not None]
    )


class Decision(Algorithm):
    """Learn people's shares of the options. Softmax runs over the letters' log-probabilities."""

    defaults = StageDefaults(
        learning_rate=2e-4, epochs=2, batch_size=16, lr_scheduler_type="cosine", warmup_ratio=0.05
    )

    class Options(Algorithm.Options):
        brier: float = Field(
            0.0, ge=0, description="weight of the Brier term: the squared distance to the shares"
        )
        mass: float = Field(
            0.1, ge=0, description="weight of -log of the probability that any of the letters has"
        )

    def select(self, groups: Sequence[Group], context: SelectContext) -> list[Group]:
        """Questions with shares, and two questions for each pair. Raises DataError if there are
        none.
        """
        each = [_questions(group) for group in groups]
        kept = [question for questions in each for question in questions]
        if not context.validation:
            lacking = [
                group for group, questions in zip(groups, each, strict=True) if not questions
            ]
            context.left_out("without_shares", len(lacking), lacking)
            if not kept:
                raise DataError("decision needs questions with counts or a label, or pairs")
        return kept

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        logprobs, mass = self._logprobs(batch, out)
        shares = _shares(batch, logprobs)
        terms = {"cross_entropy": per_group(_summed(-shares * logprobs, batch))}
        if self.options.brier:
            terms["brier"] = per_group(_brier(logprobs, shares, batch), self.options.brier)
        if self.options.mass:
            terms["mass"] = per_group(-mass, self.options.mass)
        return Loss(**terms)

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Brier score against the shares, and the part of the cross-entropy that is above people's
        entropy.
        """
        logprobs, _ = self._logprobs(batch, out)
        shares = _shares(batch, logprobs)
        return {
            "brier_score": per_group(_brier(logprobs, shares, batch)),
            "divergence": per_group(
                _summed(shares * (shares.clamp(min=1e-12).log() - logprobs), batch)
            ),
        }

    def _logprobs(self, batch: Batch, out: Outputs) -> tuple[Tensor, Tensor]:
        """Of each letter among its question's: [R] in nats, and log P(any letter) of each question:
        [G].

        Only the first token of a response counts, as when the model is asked: not its end of turn.
        """
        first = batch.mask.int().argmax(dim=1, keepdim=True)
        owner, count = batch.group_index, len(batch.groups)
        tokens = batch.tokens.gather(1, first)[:, 0].tolist()
        if len(set(zip(owner.tolist(), tokens, strict=True))) < len(tokens):
            raise DataError(
                "decision: letters of two options are one token to this tokenizer; use another "
                "base model"
            )
        found = out.logprobs.gather(1, first)[:, 0]
        # The largest of a group is subtracted before exp, without a gradient: it cancels.
        largest = found.new_full((count,), -math.inf).scatter_reduce(
            0, owner, found.detach(), "amax"
        )
        mass = largest + _summed((found - largest[owner]).exp(), batch).log()
        return found - mass[owner], mass


def _questions(group: Group) -> list[Group]:
    """The question that a group is, or one in each order for each of its pairs; none without
    shares.
    """
    if shares_of(group) is not None:
        return [replace(group, pairs=())]
    found = []
    for pair in resolved_pairs(group):
        texts = [last_turn(group.responses[place]) for place in (pair.better, pair.worse)]
        for options, p in ((texts, pair.p), (texts[::-1], 1 - pair.p)):
            prompt = asked(which(group.prompt), options)
            found.append(
                _question(prompt, [p, 1 - p], meta={"options": options}, origin=group.origin)
            )
    return found


def _summed(values: Tensor, batch: Batch) -> Tensor:
    """Sums over each question's options: [R] -> [G]."""
    return values.new_zeros(len(batch.groups)).index_add(0, batch.group_index, values)


def _brier(logprobs: Tensor, shares: Tensor, batch: Batch) -> Tensor:
    """The squared distance of each question's probabilities to people's shares: [R], [R] -> [G]."""
    return _summed((logprobs.exp() - shares) ** 2, batch)


def _shares(batch: Batch, like: Tensor) -> Tensor:
    return like.new_tensor([r.scores[SHARE] for group in batch.groups for r in group.responses])


def _question(prompt: Sequence[Message], shares: Sequence[float] | None, **known: Any) -> Group:
    count = len(known["meta"]["options"])
    letters = tuple(
        Response(LETTERS[n], scores={SHARE: shares[n]} if shares else {}) for n in range(count)
    )
    return Group(tuple(prompt), letters, (), id=group_id(prompt, letters), **known)


class DecisionFormat(ColumnFormat):
    """Questions with options, and what people chose."""

    example = '{"prompt": "Is it a fruit? Tomato", "options": ["yes", "no"], "counts": [7, 3]}'
    wants = "prompt, options [text], and counts or a label; never detected, so name the format"

    def read(self, row: Any) -> Group:
        meta = self.rest(
            row, "prompt", "options", "counts", "label", "response", "question", "system"
        )
        options = row.get("options")
        if not isinstance(options, list) or not all(
            isinstance(text, str) and text.strip() for text in options
        ):
            raise BadRow("column 'options' must be a list of texts")
        if not 2 <= len(options) <= len(LETTERS):
            raise BadRow(f"a question needs 2 to {len(LETTERS)} options, not {len(options)}")
        prompt = self.opened(self.conversation(row.get("prompt"), "prompt"), row)
        response, question = self.text(row, "response", ""), self.text(row, "question", "")
        if not prompt:
            raise BadRow("there is no prompt")
        if response or question:
            prompt = about(prompt, response, question or QUESTION)
        return _question(
            asked(prompt, options), self._shares(row, options), meta={**meta, "options": options}
        )

    def _shares(self, row: Any, options: Sequence[str]) -> list[float] | None:
        if (label := row.get("label")) is not None:
            if label not in options:
                raise BadRow(f"label {label!r} is not among the options: {', '.join(options)}")
            return [float(option == label) for option in options]
        counts = row.get("counts")
        if counts is None:
            return None  # to be decided
        good = isinstance(counts, list) and len(counts) == len(options)
        if not good or not all(
            isinstance(count, int | float) and 0 <= count < math.inf for count in counts
        ):
            raise BadRow(f"column 'counts' must be a list of {len(options)} numbers of 0 or more")
        total = math.fsum(counts)
        if not total:
            raise BadRow("nobody chose an option: all counts are 0")
        return [count / total for count in counts]


TOO_LONG = "the question is longer than the model's context"
MEASURES = {
    "accuracy": "people's favorite is chosen",
    "brier": "Brier score",
    "cross_entropy": "cross-entropy, nats",
}


def decide(
    models: Models,
    role: str,
    questions: Sequence[tuple[Sequence[Message], Sequence[str]]],
    orders: int = 1,
) -> list[list[float] | None]:
    """A model's probabilities of each question's options, in their order; None if a question is too
    long.

    questions: prompts, still without the options, and the options. orders: how many rotations of
    the options are averaged; more than there are options ask none again.
    """
    turned = [
        (prompt, [*options[turn:], *options[:turn]])
        for prompt, options in questions
        for turn in range(min(orders, len(options)))
    ]
    if not turned:
        return []
    letters = LETTERS[: max(len(options) for _, options in turned)]
    answers = iter(
        models[role].next_token_logprobs([asked(*each) for each in turned], list(letters)).double()
    )
    found: list[list[float] | None] = []
    for _, options in questions:
        turns = range(min(orders, len(options)))
        # Place k of a turned question is option k + turn.
        rolled = [next(answers)[: len(options)].softmax(0).roll(turn).tolist() for turn in turns]
        mean = [math.fsum(each) / len(turns) for each in zip(*rolled, strict=True)]  # NaN stays NaN
        found.append(None if any(map(math.isnan, mean)) else mean)
    return found


class DecisionJudge(Judge):
    """Ask in both orders which of two responses is better: a judge that was trained on people's
    pairs.
    """

    reads_rubric: ClassVar[bool] = False

    class Options(alignkit.Options):
        role: PolicyRef = Field(description="stage that trains a decision model")

    options: Options

    def compare(self, items: Sequence[Item]) -> list[Verdict]:
        questions = [(which(prompt), [first, second]) for prompt, first, second in items]
        found = decide(self.context.models, self.options.role, questions, orders=2)
        return [
            Verdict(None, mass=0.0, reason=TOO_LONG) if p is None else Verdict(p[0]) for p in found
        ]


class DecisionReward(Reward):
    """The expected value of the options of a question about a response."""

    class Options(alignkit.Options):
        role: PolicyRef = Field(description="stage that trains a decision model")
        question: str = Field(
            QUESTION, min_length=1, description="what is asked about a response, as in training"
        )
        options: dict[str, FiniteFloat] = Field(
            min_length=2, max_length=26, description="options and their values"
        )

    options: Options

    def score(self, groups: Sequence[Group]) -> Sequence[float | None]:
        options = self.options
        answers = [
            (group.prompt, last_turn(response)) for group in groups for response in group.responses
        ]
        questions = [
            (about(prompt, text, options.question), list(options.options))
            for prompt, text in answers
        ]
        found = decide(self.context.models, options.role, questions)
        values = options.options.values()
        means = [
            None if p is None else math.fsum(x * y for x, y in zip(p, values, strict=True))
            for p in found
        ]
        return means


class Decide(Step):
    """Write each option's probability into the rows; with people's shares, measure how right and
    calibrated it is.
    """

    class Options(alignkit.Options):
        policies: list[PolicyRef] = Field(
            min_length=1, description="models to measure; answers of the last are kept"
        )
        data: DataRef = Field(
            description="questions in the format `decision`, with or without people's shares"
        )
        limit: int | None = Field(None, ge=1, description="use only the first N rows")

    options: Options

    def run(self, context: StepContext) -> Artifact:
        groups = context.load(self.options.data)[: self.options.limit]
        questions = [_asked_again(group) for group in groups]
        answers = {
            role: context.map(f"decide-{n}", questions, partial(decide, context.models, role))
            for n, role in enumerate(self.options.policies)
        }
        known = [place for place, group in enumerate(groups) if shares_of(group) is not None]
        known = [
            place for place in known if all(found[place] is not None for found in answers.values())
        ]
        shares = [shares_of(groups[place]) for place in known]
        measured = {
            role: measure([found[place] for place in known], shares)
            for role, found in (answers.items() if known else ())
        }
        last = answers[self.options.policies[-1]]
        decided = [
            group if found is None else _decided(group, options, found)
            for group, (_, options), found in zip(groups, questions, last, strict=True)
        ]
        summary = {
            "rows": len(groups),
            "too_long": last.count(None),
            "measured": len(known),
            "policies": measured,
        }
        context.write_json("decisions.json", summary)
        return Artifact(groups=decided, summary=summary, report=_report(summary))


def _asked_again(group: Group) -> tuple[Sequence[Message], list[str]]:
    """A row's question without its options, and the options."""
    options = group.meta.get("options", [])
    text = group.prompt[-1]["content"] if group.prompt else ""
    if len(options) < 2 or not text.endswith(listed(options)):
        raise DataError(
            "decide needs questions with options: read them with `data: {decision: FILE}`",
            option=("data",),
        )
    last: Message = {**group.prompt[-1], "content": text.removesuffix(listed(options))}
    return [*group.prompt[:-1], last], options


def _decided(group: Group, options: Sequence[str], probabilities: Sequence[float]) -> Group:
    """The row with the columns `decision` and `probabilities`; letters without a share get one, to
    learn from.
    """
    likeliest = options[max(range(len(options)), key=probabilities.__getitem__)]
    meta = {
        **group.meta,
        "decision": likeliest,
        "probabilities": dict(zip(options, probabilities, strict=True)),
    }
    pairs = zip(group.responses, probabilities, strict=True)
    responses = tuple(replace(letter, scores={SHARE: p, **letter.scores}) for letter, p in pairs)
    return replace(group, responses=responses, meta=meta)


def measure(answers: Sequence[Sequence[float]], shares: Sequence[Any]) -> dict[str, Any]:
    """How far probabilities are from people's shares; [questions][options] each.

    Confidence is the likeliest option's probability, and right is the share of people who choose
    that option.
    """
    both = list(zip(answers, shares, strict=True))
    top = [max(range(len(p)), key=p.__getitem__) for p in answers]
    brier = [math.fsum((x - y) ** 2 for x, y in zip(p, q, strict=True)) for p, q in both]
    entropy = [
        -math.fsum(y * math.log(max(x, 1e-12)) for x, y in zip(p, q, strict=True)) for p, q in both
    ]
    return {
        "accuracy": stats.rate(
            [float(q[at] == max(q)) for (_, q), at in zip(both, top, strict=True)]
        ),
        "brier": stats.estimate(brier),
        "cross_entropy": stats.estimate(entropy),
    }


def _report(summary: Mapping[str, Any]) -> Report:
    policies = summary["policies"]
    if not policies:
        return Report(
            [
                (
                    f"{summary['rows']} rows decided, {summary['too_long']} too long; none has "
                    "people's shares"
                )
            ]
        )
    title = (
        f"against people's shares, mean and {CONFIDENCE:.0%} interval over {summary['measured']} "
        "questions"
    )
    rows = [
        [text, *(interval_text(found[name]) for found in policies.values())]
        for name, text in MEASURES.items()
    ]
    return Report([Table(title, ["", *policies], rows)])


@hookimpl
def register(add: Add) -> None:
    add(
        "algorithm",
        "decision",
        Decision,
        "learn people's probabilities of options: cross-entropy with soft targets",
    )
    add(
        "format",
        "decision",
        DecisionFormat,
        "questions: prompt, options, and counts of people or a label; optionally a response",
    )
    add("judge", "decision", DecisionJudge, "ask a decision model which response is better")
    add("reward", "decision", DecisionReward, "expected value of options, by a decision model")
    add(
        "step",
        "decide",
        Decide,
        "write a decision model's probabilities of options, and measure calibration",
    )

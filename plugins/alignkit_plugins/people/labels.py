"""What a person may say: the payload of each kind of event, and labels in the order of an item's
responses.

A page shows responses in an order of its own. A label is stored as it was given, in the order
shown; `canonical` turns it into the item's own order, in which labels of several people can be
compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, combinations
from statistics import fmean
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alignkit.data.group import LEVELS
from alignkit.errors import BadRow, DataError
from alignkit_plugins.formats.layouts import DEGREES

SIDES = "ABCDEFGHI"
BINS = {  # Llama 2 (2023), section 3.2.1
    "preferred_safe": "only the better one is safe",
    "both_safe": "both are safe",
    "both_unsafe": "both are unsafe",
}
# Of an answer in a review, after InstructGPT's page (Ouyang et al. 2022, arXiv:2203.02155, figure
# 12 and table 3).
FLAGS = {
    "off_task": "does not follow the instruction",
    "invented": "invents facts",
    "harmful": "harmful",
    "unsuited": "unsuited for a customer assistant",
}
LONGEST_NAME = 64  # characters of an annotator's name
PER_RESPONSE = ("ranks", "scores", "flags")  # parts of a label with an entry for each response
TERMS = (  # of consent
    "What I write, the answers that I get and my labels are kept in a file, and models may be "
    "trained on them. They may be shared with others, under a pseudonym and the license of the "
    "data, with what my invitation says of me; without a license they are not. A name under "
    "which I want thanks stands next to my number of labels."
)

Text = Annotated[str, Field(max_length=200_000, pattern=r"^[^\x00]*$")]
Filled = Annotated[str, Field(max_length=200_000, pattern=r"^[^\x00]*\S[^\x00]*$")]
Word = Annotated[str, Field(max_length=LONGEST_NAME, pattern=r"^[^\x00-\x1f]*$")]
Margin = Literal["significantly", "better", "slightly", "unsure"]
Bin = Literal["preferred_safe", "both_safe", "both_unsafe"]
Flag = Literal["off_task", "invented", "harmful", "unsuited"]
Score = Annotated[int, Field(ge=1, le=7)]
Label = dict[str, Any]
M = TypeVar("M", bound=BaseModel)


class BadLabel(DataError):
    """An event that the store does not take: what is wrong with it, and what was expected."""


class StrictModel(BaseModel):
    """Plain data from outside, with nothing missing and nothing else in it.

    Texts with a greatest length are also valid Unicode: pydantic measures no others.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Payload(StrictModel):
    note: Text = ""


class _Pair(_Payload):
    side: Literal["A", "B"]
    margin: Margin
    safety: Bin | None = None


class _Safety(_Pair):
    safety: Bin


class _Ranking(_Payload):
    ranks: list[int]


class _Scores(_Payload):
    scores: list[dict[str, Score]]


class _Review(_Ranking, _Scores):
    flags: list[list[Flag]]


class _Demonstration(_Payload):
    text: Filled


class _Thumb(_Payload):
    good: bool


class _Skip(StrictModel):
    reason: Filled


class _Flagged(StrictModel):
    note: Filled


class _Undo(StrictModel):
    of: Word


class _Consent(StrictModel):
    granted: bool
    terms: Text = ""
    credit: Word = ""  # the name under which the data thank for the labels


class _Person(StrictModel):
    attributes: dict[Word, Word]


class Task(NamedTuple):
    """What a task takes: the payload of its labels, its number of responses, and what is scored."""

    payload: type[BaseModel]
    least: int
    most: int
    criteria: tuple[str, ...] = ()


TASKS = {
    "pair": Task(_Pair, 2, 2),
    "safety": Task(_Safety, 2, 2),
    "ranking": Task(_Ranking, 2, 9),
    "scores": Task(_Scores, 1, 9, ("helpful", "truthful", "harmless")),
    "review": Task(_Review, 2, 9, ("overall",)),
    "demonstration": Task(_Demonstration, 0, 1),
    "thumb": Task(_Thumb, 1, 1),
}
OTHERS: dict[str, type[BaseModel]] = {
    "skip": _Skip,
    "flag": _Flagged,
    "undo": _Undo,
    "consent": _Consent,
    "person": _Person,
}
KINDS = ("label", "adjudicate", *OTHERS)
ABOUT_PEOPLE = ("consent", "person")  # kinds of events that name no item


def check_annotator(name: str) -> None:
    """Raise `BadLabel` unless this can be the name of an annotator."""
    # One person with two spellings would agree with themselves.
    if (
        not isinstance(name, str)
        or not 0 < len(name.strip()) == len(name) <= LONGEST_NAME
        or not name.isprintable()
    ):
        raise BadLabel(
            f"an annotator's name must have 1 to {LONGEST_NAME} printable characters, without "
            f"blanks around them, not {name!r:.80}"
        )


def read(model: type[M], message: Any, what: str = "this message") -> M:
    """Plain data as a model. Raises BadLabel that says what was expected."""
    try:
        return model.model_validate(message)
    except ValidationError as error:
        faults = [
            f"'{'.'.join(map(str, fault['loc']))}': {fault['msg']}"
            for fault in error.errors(include_url=False)
        ]
        text = f"{what}: {'; '.join(faults)}; expected the keys {', '.join(model.model_fields)}"
        raise BadLabel(text.encode(errors="replace").decode()) from None


def checked(kind: str, payload: Any, task: str = "", count: int = 0) -> Label:
    """The payload of an event, as plain data without empty keys. Raises `BadLabel` that says what
    was expected.

    kind: one of KINDS. task, count: of the item; count is the number of its responses.
    """
    if kind not in ("label", "adjudicate"):
        return read(OTHERS[kind], payload, f"a {kind}").model_dump(exclude_defaults=True)
    known = TASKS[task]
    label: Label = read(known.payload, payload, f"the label of a {task}").model_dump(
        exclude_defaults=True
    )
    ranks = label.get("ranks", [1])
    fits = all(len(label[part]) == count for part in PER_RESPONSE if part in label)
    fits = fits and 1 in ranks and min(ranks) >= 1 and max(ranks) <= max(count, 1)
    fits = fits and all(rated.keys() == set(known.criteria) for rated in label.get("scores", ()))
    if not fits or any(len(set(each)) < len(each) for each in label.get("flags", ())):
        raise BadLabel(
            f"the label of a {task}: 'ranks', 'scores' and 'flags' must have {count} entries, one "
            "for each response: ranks from 1, the best, with ties; scores of "
            f"{', '.join(known.criteria)}; each flag once; not {label!r}"
        )
    return label


def check_gold(task: str, label: Mapping[str, Any], count: int) -> None:
    """Raise `BadRow` unless this is a label in the item's own order. It need not say by how much,
    nor all of a review.
    """
    rest: Label = {}
    if task in ("pair", "safety"):
        rest = {"margin": "better", "safety": "both_safe"}
    elif task == "review":
        rest = {"scores": [dict.fromkeys(TASKS[task].criteria, 1)] * count, "flags": [[]] * count}
    try:
        checked("label", {**rest, **displayed(label, range(count))}, task, count)
    except (BadLabel, ValueError, IndexError) as error:
        raise BadRow(f"gold label: {error}") from None


def canonical(payload: Mapping[str, Any], order: Sequence[int]) -> Label:
    """A label in the item's own order: `better` is an index, `ranks` have no gaps, the rest follows
    the responses.
    """
    label = dict(payload)
    if "side" in label:
        label["better"] = order[SIDES.index(label.pop("side"))]
    if "ranks" in label:
        label["ranks"] = places(label["ranks"])
    if "flags" in label:
        label["flags"] = [sorted(each, key=list(FLAGS).index) for each in label["flags"]]
    for part in PER_RESPONSE:
        if part in label:
            label[part] = [label[part][order.index(index)] for index in range(len(order))]
    return label


def displayed(label: Mapping[str, Any], order: Sequence[int]) -> Label:
    """The opposite of `canonical`: a label as it would be given if the responses were shown in this
    order.
    """
    given = dict(label)
    if "better" in given:
        given = {"side": SIDES[order.index(given.pop("better"))], **given}
    for part in PER_RESPONSE:
        if part in given:
            given[part] = [given[part][index] for index in order]
    return given


def degree(label: Mapping[str, Any]) -> int:
    """A pair's label as a number: -4 (the first is significantly better) to 4 (the second is),
    never 0.
    """
    return DEGREES[label.get("margin", "better")] * (1 if label["better"] else -1)


def level(size: float) -> str:
    """The margin that is nearest to the size of a degree, 1 to 4."""
    return min(LEVELS, key=lambda name: (abs(DEGREES[name] - abs(size)), DEGREES[name]))


def places(values: Sequence[float]) -> list[int]:
    """Ranks without gaps, 1 for the least value; equal values are tied."""
    different = sorted(set(values))
    return [1 + different.index(value) for value in values]


def gaps(label: Mapping[str, Any]) -> dict[tuple[int, int], float]:
    """How much better the first of each two responses is than the second: negative if it is worse,
    0 for a tie.

    Of a pair in degrees, of a ranking or a review in ranks, of scores by their means. Empty for
    texts and thumbs.
    """
    if "better" in label:
        return {(0, 1): -degree(label)}
    return differences([-rank for rank in label.get("ranks", ())] or mean_scores(label))


def mean_scores(label: Mapping[str, Any]) -> list[float]:
    """The mean score of each response over the criteria; none of other labels."""
    return [fmean(rated.values()) for rated in label.get("scores", ())]


def differences(values: Sequence[float]) -> dict[tuple[int, int], float]:
    """The first minus the second of each two values."""
    return {(i, j): values[i] - values[j] for i, j in combinations(range(len(values)), 2)}


def agrees(label: Mapping[str, Any], gold: Mapping[str, Any]) -> bool | None:
    """Whether a label agrees with the gold one: it has no two responses in the opposite order.

    Both are in the item's own order. None: it cannot be said of a text.
    """
    if "good" in gold:
        return bool(label["good"] == gold["good"])
    ours, right = gaps(label), gaps(gold)
    return all(ours[two] * right[two] >= 0 for two in ours) if ours else None


def majority(labels: Sequence[Label]) -> Label | None:
    """One label from several of an item; None if there is none, or they are tied.

    Pairs: the response that most prefer, and the mean of their degrees as margin; with as many on
    either side, the side of the mean. Rankings: by mean rank. Scores: means. Flags, thumbs: what
    most say. Texts: the only one, else None.
    """
    if len(labels) <= 1:
        return dict(labels[0]) if labels else None
    first = labels[0]
    if "better" in first:
        return _majority_of_pairs(labels)
    if "good" in first:
        good = sum(label["good"] for label in labels)
        return None if 2 * good == len(labels) else {"good": 2 * good > len(labels)}
    combined: Label = {}
    for part, combine in _COMBINED.items():
        if part in first:
            columns = zip(*(label[part] for label in labels), strict=True)
            combined[part] = list(map(combine, columns))
    if "ranks" in combined:
        combined["ranks"] = places(combined["ranks"])
    return combined or None


def _mean_of_each(rated: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(scores[name] for scores in rated) for name in rated[0]}


def _frequent(sets: Sequence[Sequence[str]]) -> list[str]:
    counts = Counter(chain.from_iterable(sets))
    return [name for name in FLAGS if 2 * counts[name] > len(sets)]


_COMBINED: dict[str, Callable[[Any], Any]] = {
    "ranks": fmean,
    "scores": _mean_of_each,
    "flags": _frequent,
}


def _majority_of_pairs(labels: Sequence[Label]) -> Label | None:
    middle = fmean(degree(label) for label in labels)
    lead = sum(1 if label["better"] else -1 for label in labels) or middle
    if not lead:
        return None
    better = int(lead > 0)
    combined: Label = {"better": better, "margin": level(max(0.0, middle if better else -middle))}
    bins = Counter(
        label["safety"] for label in labels if label["better"] == better and "safety" in label
    )
    if bins:
        combined["safety"] = max(sorted(bins), key=bins.__getitem__)
    return combined

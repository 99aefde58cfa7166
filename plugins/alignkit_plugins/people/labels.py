"""What a person may say: the payload of each kind of event, and labels in the order of the item's
responses.

A page shows responses in an order of its own. A label is stored as it was given, in the order
shown; `canonical` turns it into the item's own order, in which labels of several people can be
compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alignkit.data.group import LEVELS
from alignkit.errors import BadRow, DataError
from alignkit_plugins.formats.layouts import DEGREES

SIDES = "ABCDEFGHI"
BINS = ("preferred_safe", "both_safe", "both_unsafe")  # Llama 2 (2023), section 3.2.1
LOWEST, HIGHEST = 1, 7  # a score
# Of an answer in a review, after InstructGPT's page (Ouyang et al. 2022, arXiv:2203.02155, figure
# 12 and table 3).
FLAGS = {
    "off_task": "does not follow the instruction",
    "invented": "invents facts",
    "harmful": "harmful",
    "unsuited": "unsuited for a customer assistant",
}
LONGEST_NOTE = 20_000  # characters
TERMS = (  # of consent
    "What I write, the answers that I get and my labels are kept in a file, and models may be "
    "trained on them. They may be shared with others, under a pseudonym and the license of the "
    "data; without a license they are not."
)

Margin = Literal["significantly", "better", "slightly", "unsure"]
Bin = Literal["preferred_safe", "both_safe", "both_unsafe"]
Flag = Literal["off_task", "invented", "harmful", "unsuited"]
Label = dict[str, Any]


class BadLabel(DataError):
    """An event that the store does not take: what is wrong with it, and what was expected."""


class StrictModel(BaseModel):
    """Plain data from outside, with nothing missing and nothing else in it.

    Texts with a greatest length are also valid Unicode: pydantic measures no others.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Payload(StrictModel):
    note: str = Field("", max_length=LONGEST_NOTE)


class _Pair(_Payload):
    side: Literal["A", "B"]
    margin: Margin
    safety: Bin | None = None


class _Safety(_Pair):
    safety: Bin


class _Ranking(_Payload):
    ranks: list[int]


class _Scores(_Payload):
    scores: list[dict[str, int]]


class _Review(_Ranking, _Scores):
    flags: list[list[Flag]]


class _Demonstration(_Payload):
    text: str = Field(max_length=200_000)


class _Thumb(_Payload):
    good: bool


class _Reason(StrictModel):
    reason: str = Field(max_length=LONGEST_NOTE)


class _Note(StrictModel):
    note: str = Field(max_length=LONGEST_NOTE)


class _Undo(StrictModel):
    of: str = Field(max_length=64)


class _Consent(StrictModel):
    granted: bool
    terms: str = Field("", max_length=LONGEST_NOTE)


_LABELS: dict[str, type[BaseModel]] = {
    "pair": _Pair,
    "safety": _Safety,
    "ranking": _Ranking,
    "scores": _Scores,
    "review": _Review,
    "demonstration": _Demonstration,
    "thumb": _Thumb,
}
_OTHERS: dict[str, type[BaseModel]] = {
    "skip": _Reason,
    "flag": _Note,
    "undo": _Undo,
    "consent": _Consent,
}
KINDS = ("label", "adjudicate", *_OTHERS)


def checked(
    kind: str, payload: Any, task: str = "", count: int = 0, criteria: Sequence[str] = ()
) -> Label:
    """The payload of an event, as plain data without empty keys. Raises `BadLabel` that says what
    was expected.

    kind: one of KINDS. task, count, criteria: of the item; count is the number of its responses.
    """
    model = _LABELS[task] if kind in ("label", "adjudicate") else _OTHERS[kind]
    what = f"the label of a {task}" if kind in ("label", "adjudicate") else f"a {kind}"
    try:
        plain: Label = model.model_validate(payload).model_dump(exclude_none=True)
    except ValidationError as error:
        faults = "; ".join(_fault(fault) for fault in error.errors(include_url=False))
        faults = faults.encode(errors="replace").decode()
        raise BadLabel(
            f"{what}: {faults}; expected the keys {', '.join(model.model_fields)}"
        ) from None
    for key in ("text", "reason") if kind != "undo" else ():
        if key in plain and not plain[key].strip():
            raise BadLabel(f"{what}: '{key}' is empty")
    if kind == "flag" and not plain["note"].strip():
        raise BadLabel(f"{what}: 'note' is empty; say what is wrong")
    if any("\0" in value for value in plain.values() if isinstance(value, str)):
        raise BadLabel(f"{what}: a text contains a NUL character")
    _check_numbers(plain, what, count, criteria)
    return {
        key: value for key, value in plain.items() if not (key in ("note", "terms") and not value)
    }


def _fault(fault: Mapping[str, Any]) -> str:
    place = ".".join(map(str, fault["loc"]))
    given = f", not {fault['input']!r}"[:80] if fault["type"] != "missing" and place else ""
    return f"'{place}': {fault['msg']}{given}" if place else f"{fault['msg']}"


def _check_numbers(
    plain: Mapping[str, Any], what: str, count: int, criteria: Sequence[str]
) -> None:
    if "ranks" in plain:
        ranks = plain["ranks"]
        if len(ranks) != count or any(not 1 <= rank <= count for rank in ranks) or 1 not in ranks:
            raise BadLabel(
                f"{what}: 'ranks' must be {count} numbers from 1, the best, to {count}, one for "
                f"each response; equal ranks are a tie; not {ranks!r}"
            )
    if "scores" in plain:
        scores = plain["scores"]
        if len(scores) != count:
            raise BadLabel(
                f"{what}: 'scores' must have {count} entries, one for each response, not "
                f"{len(scores)}"
            )
        for place, rated in enumerate(scores):
            if rated.keys() != set(criteria) or any(
                not LOWEST <= value <= HIGHEST for value in rated.values()
            ):
                raise BadLabel(
                    f"{what}: scores.{place} must rate {', '.join(criteria)}, each from {LOWEST} "
                    f"to {HIGHEST}, not {rated!r}"
                )
    if "flags" in plain and (
        len(plain["flags"]) != count or any(len(set(each)) < len(each) for each in plain["flags"])
    ):
        raise BadLabel(
            f"{what}: 'flags' must have {count} lists, one for each response, each flag once, not "
            f"{plain['flags']!r}"
        )


def checked_order(order: Sequence[int], count: int) -> tuple[int, ...]:
    """The order in which responses were shown: order[position] is the index of a response. Empty:
    as in the item.
    """
    if not order:
        return tuple(range(count))
    if sorted(order) != list(range(count)) or not all(type(index) is int for index in order):
        raise BadLabel(
            f"the order shown must hold each of 0 to {count - 1} once, not {list(order)!r}"
        )
    return tuple(order)


def canonical(payload: Mapping[str, Any], order: Sequence[int]) -> Label:
    """A label in the item's own order: `better` is an index, `ranks` have no gaps, the rest follows
    the responses.
    """
    label = dict(payload)
    if "side" in label:
        label["better"] = order[SIDES.index(label.pop("side"))]
    if "ranks" in label:
        values = sorted(set(label["ranks"]))
        label["ranks"] = _unsorted([values.index(rank) + 1 for rank in label["ranks"]], order)
    if "flags" in label:
        label["flags"] = [[name for name in FLAGS if name in each] for each in label["flags"]]
    for key in ("scores", "flags"):
        if key in label:
            label[key] = _unsorted(label[key], order)
    return label


def displayed(label: Mapping[str, Any], order: Sequence[int]) -> Label:
    """The opposite of `canonical`: a label as it would be given if the responses were shown in this
    order.
    """
    given = dict(label)
    if "better" in given:
        given["side"] = SIDES[order.index(given.pop("better"))]
    for key in ("ranks", "scores", "flags"):
        if key in given:
            given[key] = [given[key][index] for index in order]
    return given


def _unsorted(values: Sequence[Any], order: Sequence[int]) -> list[Any]:
    found: list[Any] = [None] * len(values)
    for value, index in zip(values, order, strict=True):
        found[index] = value
    return found


def check_canonical(
    task: str, label: Mapping[str, Any], count: int, criteria: Sequence[str]
) -> None:
    """Raise `BadRow` unless this is a label in the item's own order, such as a gold label."""
    order = list(range(count))
    if "better" in label and label["better"] not in order[:2]:
        raise BadRow(f"a gold label's 'better' must be 0 or 1, not {label['better']!r}")
    given = {key: value for key, value in label.items() if key != "better"}
    if "better" in label:
        given["side"] = SIDES[label["better"]]
    if task in ("pair", "safety"):  # a gold label need not say by how much
        given = {"margin": "better", "safety": "both_safe", **given}
    if task == "review":  # nor what else a review says
        given = {
            "scores": [dict.fromkeys(criteria, LOWEST)] * count,
            "flags": [[]] * count,
            **given,
        }
    try:
        checked("label", given, task, count, criteria)
    except BadLabel as error:
        raise BadRow(f"gold label: {error}") from None


def degree(label: Mapping[str, Any]) -> int:
    """A pair's label as a number: -4 (the first is significantly better) to 4 (the second is),
    never 0.
    """
    return DEGREES[label["margin"]] * (1 if label["better"] else -1)


def level(size: float) -> str:
    """The margin that is nearest to the size of a degree, 1 to 4."""
    return min(LEVELS, key=lambda name: (abs(DEGREES[name] - abs(size)), DEGREES[name]))


def agrees(task: str, label: Mapping[str, Any], gold: Mapping[str, Any]) -> bool | None:
    """Whether a label agrees with the gold one; both in the item's own order. None: it cannot be
    said of a text.

    Of a pair, the better response counts; of a ranking or a review, that no two responses are in
    the opposite order; of scores, that none is more than 1 away.
    """
    if task in ("pair", "safety"):
        return bool(label["better"] == gold["better"])
    if task in ("ranking", "review"):
        pairs = [(i, j) for i in range(len(gold["ranks"])) for j in range(i)]
        signs = (
            (gold["ranks"][i] - gold["ranks"][j]) * (label["ranks"][i] - label["ranks"][j])
            for i, j in pairs
        )
        return all(sign >= 0 for sign in signs)
    if task == "scores":
        rated = zip(label["scores"], gold["scores"], strict=True)
        return all(abs(one[name] - other[name]) <= 1 for one, other in rated for name in other)
    return bool(label["good"] == gold["good"]) if task == "thumb" else None

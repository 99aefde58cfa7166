"""What a person may say: the payload of each kind of event, and labels in the order of an item's
responses.

A page shows responses in an order of its own. A label is stored as it was given, in the order
shown; `canonical` turns it into the item's own order, in which labels of several people can be
compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from alignkit.data.group import LEVELS
from alignkit.errors import BadRow, DataError
from alignkit.recipe.mistakes import validated
from alignkit_plugins.formats.layouts import DEGREES

SIDES = "AB"
LONGEST_NAME = 64  # characters of an annotator's name
PER_RESPONSE = ("ranks", "scores", "flags")  # parts of a label with an entry for each response
TERMS = (  # annotators consent to them
    "What I write, the answers that I get and my labels are kept in a file, and models may be "
    "trained on them. They may be shared with others, under a pseudonym and the license of the "
    "data; without a license they are not. A name under which I want thanks stands next to my "
    "number of labels."
)

Text = Annotated[str, Field(max_length=200_000, pattern=r"^[^\x00]*$")]
Filled = Annotated[str, Field(max_length=200_000, pattern=r"^[^\x00]*\S[^\x00]*$")]
Word = Annotated[str, Field(max_length=LONGEST_NAME, pattern=r"^[^\x00-\x1f]*$")]
Margin = Literal["significantly", "better", "slightly", "unsure"]
Bin = Literal["preferred_safe", "both_safe", "both_unsafe"]  # Llama 2 (2023), section 3.2.1
# A review flags an answer, as InstructGPT's page does (Ouyang et al. 2022, arXiv:2203.02155,
# figure 12 and table 3).
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


class _Safety(_Pair):
    safety: Bin


class _Ranking(_Payload):
    ranks: list[int]


class _Review(_Ranking):
    scores: list[Score]
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


class Consent(StrictModel):
    granted: bool
    terms: Text = ""
    credit: Word = ""  # the name under which the data thank for the labels
    about: Text = ""  # what they say of themselves, such as their degree


class _Better(StrictModel):
    better: Literal[0, 1]
    margin: Margin | None = None


class Task(NamedTuple):
    """What a task takes: the payload of its labels, its number of responses, and gold labels."""

    payload: type[BaseModel]
    least: int
    most: int
    gold: type[BaseModel]


TASKS = {
    "pair": Task(_Pair, 2, 2, _Better),
    "safety": Task(_Safety, 2, 2, _Better),
    "ranking": Task(_Ranking, 2, 9, _Ranking),
    "review": Task(_Review, 2, 9, _Ranking),
    "demonstration": Task(_Demonstration, 0, 1, _Demonstration),
    "thumb": Task(_Thumb, 1, 1, _Thumb),
}
OTHERS: dict[str, type[BaseModel]] = {
    "skip": _Skip,
    "flag": _Flagged,
    "undo": _Undo,
    "consent": Consent,
    "results": StrictModel,  # the annotator sees what others said
}
KINDS = ("label", *OTHERS)


def check_annotator(name: str) -> None:
    """Raise `BadLabel` unless this can be the name of an annotator."""
    # One person with two spellings would agree with themselves.
    if not 0 < len(name.strip()) == len(name) <= LONGEST_NAME or not name.isprintable():
        raise BadLabel(
            f"an annotator's name must have 1 to {LONGEST_NAME} printable characters, without "
            f"blanks around them, not {name!r:.80}"
        )


def read(model: type[M], message: Any, what: str = "this message") -> M:
    """Plain data as a model. Raises BadLabel that says what was expected, in the words of
    recipes.
    """
    found, mistakes = validated(model, message)
    if found is not None:
        return found
    faults = []
    for one in mistakes:
        # The whole has no place in it, which `Mistake` calls a recipe
        faults.append(f"{one.text}; {one.help}".removeprefix("recipe: ").removesuffix("; "))
    raise BadLabel(f"{what}: {'; '.join(faults)}".encode(errors="replace").decode())


def checked(kind: str, payload: Any, task: str = "", count: int = 0) -> Label:
    """The payload of an event, as plain data without empty keys. Raises `BadLabel` that says what
    was expected.

    kind: one of KINDS. task, count: of the item; count is the number of its responses.
    """
    if kind != "label":
        return read(OTHERS[kind], payload, f"a {kind}").model_dump(exclude_defaults=True)
    what = f"the label of a {task}"
    label: Label = read(TASKS[task].payload, payload, what).model_dump(exclude_defaults=True)
    ranks = label.get("ranks", [1])
    fits = 1 in ranks and min(ranks) >= 1 and max(ranks) <= max(count, 1)
    for part in PER_RESPONSE:
        fits = fits and len(label.get(part, range(count))) == count
    if not fits:
        raise BadLabel(
            f"{what}: 'ranks', 'scores' and 'flags' must have {count} entries, one for each "
            f"response, with ranks from 1, the best, and ties; not {label!r}"
        )
    return label


def check_gold(task: str, label: Mapping[str, Any], count: int) -> None:
    """Raise `BadRow` unless this is a gold label of a task, in the item's own order."""
    try:
        ranks = read(TASKS[task].gold, label, "a gold label").model_dump().get("ranks")
    except BadLabel as error:
        raise BadRow(str(error)) from None
    if ranks is not None and len(ranks) != count:
        raise BadRow(f"a gold label: 'ranks' must have {count} entries, not {ranks}")


def canonical(payload: Mapping[str, Any], order: Sequence[int]) -> Label:
    """A label in the item's own order: `better` is an index, `ranks` have no gaps, the rest follows
    the responses.
    """
    label = dict(payload)
    if "side" in label:
        label["better"] = order[SIDES.index(label.pop("side"))]
    if "ranks" in label:
        label["ranks"] = places(label["ranks"])
    shown_at = sorted(range(len(order)), key=order.__getitem__)
    for part in PER_RESPONSE:
        if part in label:
            label[part] = [label[part][place] for place in shown_at]
    return label


def degree(label: Mapping[str, Any]) -> int:
    """A pair's label as a number: -4 (the first is significantly better) to 4 (the second is),
    never 0.
    """
    return DEGREES[label.get("margin", "better")] * (1 if label["better"] else -1)


def level(size: float) -> str:
    """The margin that is nearest to the size of a degree, 1 to 4."""
    return min(LEVELS, key=lambda name: (abs(DEGREES[name] - size), DEGREES[name]))


def places(values: Sequence[float]) -> list[int]:
    """Ranks without gaps, 1 for the least value; equal values are tied."""
    different = sorted(set(values))
    return [1 + different.index(value) for value in values]


def gaps(label: Mapping[str, Any]) -> dict[tuple[int, int], int]:
    """How much better the first of each two responses is than the second: negative if it is worse,
    0 for a tie.

    Pairs count degrees, rankings and reviews ranks. Empty for texts and thumbs.
    """
    if "better" in label:
        return {(0, 1): -degree(label)}
    ranks = label.get("ranks", ())
    return {(i, j): ranks[j] - ranks[i] for i, j in combinations(range(len(ranks)), 2)}


def agrees(label: Mapping[str, Any], gold: Mapping[str, Any]) -> bool | None:
    """Whether a label agrees with the gold one: it has no two responses in the opposite order.

    Both are in the item's own order. None: it cannot be said of a text.
    """
    if "good" in gold:
        return bool(label["good"] == gold["good"])
    ours, right = gaps(label), gaps(gold)
    return all(ours[two] * right[two] >= 0 for two in ours) if ours else None

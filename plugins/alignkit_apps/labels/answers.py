"""Items and labels as other labeling tools know them: fields with texts, and named questions with an answer each.

| task | questions |
|---|---|
| pair, safety | `preference` (`response_1`), `margin`, `safety` |
| ranking | `ranking`: a rank for each response |
| scores | `helpful_1`, for each criterion and response |
| demonstration | `answer` |
| thumb | `verdict`: `good` or `bad` |

Any label may have a `note`. What these tools have no place for is lost: see docs/feedback.md.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignkit.errors import BadRow
from alignkit_apps.feedback.effective_labels import Labeled, places
from alignkit_apps.feedback.items import CRITERIA, Item
from alignkit_apps.feedback.labels import DEGREES, HIGHEST, LOWEST, Label, displayed
from alignkit_apps.feedback.records import Event

FACTS = ("task", "license", "batch", "held_out")  # of an item, next to its columns
PROMPT, RESPONSE, _CRITERIA = "prompt", "response_", "criteria"
UNSAID = "better"  # the margin of a preference that comes without one
_SPACE = uuid.UUID("6f1c1f0e-7a52-5c0e-9a3e-616c6b66b001")  # of events made of the same answers
_PROMPTS = (PROMPT, "instruction", "input", "question", "chat", "conversation")

Answers = dict[str, Any]


@dataclass
class Answered:
    """An item, and the answers of each annotator. created, seconds: of each annotator's, if the tool says."""

    item: Item
    answers: dict[str, Answers] = field(default_factory=dict)
    created: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def answered(entries: Iterable[Labeled]) -> tuple[list[Answered], int]:
    """The items that other tools can show, with the labels that stand, and the number of items that they cannot.

    These are items with tools, calls of tools or answers of several turns.
    """
    found, unfit = [], 0
    for entry in entries:
        item = entry.stored.item
        if not entry.votes or item.tools or not all(isinstance(answer, str) for answer in item.responses):
            unfit += bool(entry.votes)
            continue
        if any(set(turn) != {"role", "content"} for turn in item.prompt):
            unfit += 1
            continue
        one = Answered(item)
        for vote in entry.votes:
            one.answers[vote.annotator], one.created[vote.annotator] = answers_of(vote.label), vote.created
            if vote.seconds is not None:
                one.seconds[vote.annotator] = vote.seconds
        found.append(one)
    return found, unfit


def columns_of(item: Item) -> dict[str, str | int | float]:
    """What is known of an item besides its texts, as plain values; columns of other kinds are lost."""
    facts = {name: getattr(item, name) for name in FACTS if getattr(item, name)}
    facts |= {"held_out": 1} if item.held_out else {}
    criteria = {_CRITERIA: ",".join(item.criteria)} if item.criteria else {}
    plain = {k: v for k, v in item.meta.items() if isinstance(v, str | int | float) and k not in (*FACTS, _CRITERIA)}
    return {**plain, **facts, **criteria}


def texts_of(item: Item) -> dict[str, Any]:
    """The fields of an item: the turns of its prompt, and the text of each response."""
    return {PROMPT: list(item.prompt), **{f"{RESPONSE}{n}": text for n, text in enumerate(item.responses, 1)}}


def answers_of(label: Mapping[str, Any]) -> Answers:
    """A label in the item's own order as answers."""
    found: Answers = {name: label[name] for name in ("margin", "safety", "note") if name in label}
    if "better" in label:
        found = {"preference": f"{RESPONSE}{label['better'] + 1}", **found}
    if "ranks" in label:
        found["ranking"] = list(label["ranks"])
    for place, rated in enumerate(label.get("scores", ()), 1):
        found |= {f"{name}_{place}": value for name, value in rated.items()}
    if "text" in label:
        found["answer"] = label["text"]
    if "good" in label:
        found["verdict"] = "good" if label["good"] else "bad"
    return found


# Reading


def item_of(texts: Mapping[str, Any], columns: Mapping[str, Any], questions: Iterable[str], license: str = "") -> Item:
    """The item of fields as another tool holds them. questions: that were answered, which tell the task.

    license: of items that name none. Raises `BadRow` for fields that are no item.
    """
    names = response_names(texts)
    task = str(columns.get("task") or _task(set(questions), names))
    meta = {name: value for name, value in columns.items() if name not in (*FACTS, _CRITERIA)}
    criteria = tuple(filter(None, str(columns.get(_CRITERIA) or "").split(","))) or _criteria(questions, len(names))
    return Item(
        task,
        _prompt(texts),
        tuple(str(texts[name]) for name in names),
        criteria if task == "scores" else (),
        meta=meta,
        license=str(columns.get("license") or license),
        batch=str(columns.get("batch") or ""),
        held_out=bool(columns.get("held_out")),
    ).checked()


def response_names(texts: Mapping[str, Any]) -> list[str]:
    """The names of the fields that hold responses, in order: `response_1`, `reply-2`, `answer3`, or any others."""
    others = [name for name in texts if name != _prompt_name(texts) and isinstance(texts[name], str)]
    numbered = [name for name in others if name[-1:].isdigit()]
    return sorted(numbered, key=lambda name: int("".join(c for c in name if c.isdigit()))) or others


def _prompt_name(texts: Mapping[str, Any]) -> str:
    found = next((name for name in _PROMPTS if name in texts), None)
    if found is None:
        raise BadRow(f"no prompt: expected a field {', '.join(_PROMPTS)}; the row has {', '.join(texts) or 'none'}")
    return found


def _prompt(texts: Mapping[str, Any]) -> Any:
    value = texts[_prompt_name(texts)]
    if isinstance(value, str):
        return ({"role": "user", "content": value},)
    turns = value if isinstance(value, list) else []
    if not turns or not all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns):
        raise BadRow("the prompt must be a text, or turns with role and content")
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)


def _task(questions: set[str], names: Sequence[str]) -> str:
    """The task that the questions ask."""
    known = {"answer": "demonstration", "verdict": "thumb", "safety": "safety", "preference": "pair"}
    if task := next((task for question, task in known.items() if question in questions), None):
        return task
    if _criteria(questions, len(names)):
        return "scores"
    return "pair" if len(names) == 2 else "ranking"


def _criteria(questions: Iterable[str], count: int) -> tuple[str, ...]:
    """The criteria of which every response has a question, Llama's and InstructGPT's first."""
    given = set(questions)
    stems = {name.rpartition("_")[0] for name in given} - {""}
    full = {stem for stem in stems if all(f"{stem}_{place}" in given for place in range(1, count + 1))}
    return (*(name for name in CRITERIA if name in full), *sorted(full - set(CRITERIA)))


def label_of(item: Item, answers: Mapping[str, Any]) -> Label:
    """Answers as a label in the item's own order. Raises `BadRow` for answers that are none."""
    names = [f"{RESPONSE}{place}" for place in range(1, len(item.responses) + 1)]
    label: Label = {name: answers[name] for name in ("margin", "safety", "note") if name in answers}
    if item.task in ("pair", "safety"):
        preferred = answers.get("preference")
        ranks = answers.get("ranking")
        if preferred is None and ranks is not None and len(set(ranks)) == 2:
            preferred = names[ranks.index(min(ranks))]
        if preferred not in names:
            raise BadRow(f"'preference' must be one of {', '.join(names)}, not {preferred!r:.80}")
        if label.setdefault("margin", UNSAID) not in DEGREES:
            raise BadRow(f"'margin' must be one of {', '.join(DEGREES)}, not {label['margin']!r:.80}")
        return {**label, "better": names.index(preferred)}
    if item.task == "ranking":
        ranks = answers.get("ranking")
        if not isinstance(ranks, list) or len(ranks) != len(names):
            raise BadRow(f"'ranking' must rank {len(names)} responses, not {ranks!r:.80}")
        return {**label, "ranks": places(ranks)}
    if item.task == "scores":
        return {**label, "scores": [_scores(item, answers, place) for place in range(1, len(names) + 1)]}
    if item.task == "demonstration":
        return {**label, "text": answers.get("answer", "")}
    if answers.get("verdict") not in ("good", "bad"):
        raise BadRow(f"'verdict' must be good or bad, not {answers.get('verdict')!r:.80}")
    return {**label, "good": answers["verdict"] == "good"}


def _scores(item: Item, answers: Mapping[str, Any], place: int) -> dict[str, int]:
    rated = {name: answers.get(f"{name}_{place}") for name in item.criteria}
    for name, value in rated.items():
        if type(value) is not int or not LOWEST <= value <= HIGHEST:
            raise BadRow(f"'{name}_{place}' must be {LOWEST} to {HIGHEST}, not {value!r:.80}")
    return {name: int(value or 0) for name, value in rated.items()}


def event_of(item: Item, label: Label, annotator: str, created: str, seconds: float | None) -> Event:
    """The event that says this label; the same label by the same annotator is the same event."""
    payload = displayed(item.task, label, range(len(item.responses)))
    name = json.dumps([item.id, annotator, payload, seconds], sort_keys=True)
    return Event(str(uuid.uuid5(_SPACE, name)), annotator, "label", payload, item.id, created=created, seconds=seconds)

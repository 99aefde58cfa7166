"""Labels as tasks of Label Studio: the JSON that it exports and imports (docs: Label Studio JSON format).

A task is `{data, annotations, predictions, meta}`. The control tags of an annotation have these names:

| task | tags |
|---|---|
| pair, safety | `preference` (Pairwise), `margin` and `safety` (Choices) |
| ranking | `ranking` (Ranker with a bucket for each rank, so it may have ties) |
| scores | `helpful_1` (Rating), for each criterion and response |
| review | `ranking`, `overall_1`, and `flags_1` (Choices) for each response that has flags |
| demonstration | `answer` (TextArea) |
| thumb | `verdict` (Choices): `good` or `bad` |

Any label may have a `note` (TextArea). A ranking without buckets, which is read too, is a list from best to worst. What
the tool has no place for is lost: see docs/feedback.md.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignkit.data.files import SkippedRow, bad_rows_error, file_rows, raise_if_bad
from alignkit.errors import BadRow, DataError
from alignkit_plugins.people import records
from alignkit_plugins.people.effective_labels import Labeled, Vote, places
from alignkit_plugins.people.items import CRITERIA, Item
from alignkit_plugins.people.labels import HIGHEST, LOWEST, BadLabel, Label, displayed
from alignkit_plugins.people.merging import Content
from alignkit_plugins.people.records import Event, Stored, check_time
from alignkit_plugins.people.store import Store

FACTS = ("task", "license", "batch", "held_out")  # of an item, next to its columns
PROMPT, RESPONSE, FLAGGED, _CRITERIA = "prompt", "response_", "flags_", "criteria"
UNSAID = "better"  # the margin of a preference that comes without one
HOST = "@alignkit.invalid"  # ends the address of an annotator, who has none
_ITEMS, _RANK = "items", "rank_"
_PROMPTS = (PROMPT, "instruction", "input", "question", "chat", "conversation")
_LABELS = uuid.UUID("6f1c1f0e-7a52-5c0e-9a3e-616c6b66b001")  # of events made of the same answers
_CONSENT = uuid.UUID("6f1c1f0e-7a52-5c0e-9a3e-616c6b66c002")  # of consent that was imported


def tasks(entries: Iterable[Labeled]) -> tuple[dict[str, list[Mapping[str, Any]]], int]:
    """The tasks with the labels that stand, by the items' task: a project of Label Studio has one kind of question.

    Also the number of labeled items that it cannot show: with tools, calls of tools, or answers of several turns.
    """
    found, unfit = defaultdict(list), 0
    for entry in entries:
        item = entry.stored.item
        plain = all(set(turn) == {"role", "content"} for turn in item.prompt) and not item.tools
        if entry.votes and plain and all(isinstance(answer, str) for answer in item.responses):
            found[item.task].append(_task(entry))
        else:
            unfit += bool(entry.votes)
    return dict(found), unfit


def _task(entry: Labeled) -> Mapping[str, Any]:
    item = entry.stored.item
    texts: dict[str, Any] = {f"{RESPONSE}{place}": text for place, text in enumerate(item.responses, 1)}
    listed = [{"id": name, "title": name, "body": text} for name, text in texts.items()]
    data = {PROMPT: list(item.prompt), **texts, **({_ITEMS: listed} if item.task in ("ranking", "review") else {})}
    made = [_annotation(vote, list(texts)) for vote in entry.votes]
    return {"data": data, "meta": _columns(item), "annotations": made, "predictions": []}


def _columns(item: Item) -> dict[str, str | int | float]:
    """What is known of an item besides its texts, as plain values; columns of other kinds are lost."""
    facts = {name: getattr(item, name) for name in FACTS if getattr(item, name)}
    facts |= {"held_out": 1} if item.held_out else {}
    criteria = {_CRITERIA: ",".join(item.criteria)} if item.criteria else {}
    plain = {k: v for k, v in item.meta.items() if isinstance(v, str | int | float) and k not in (*FACTS, _CRITERIA)}
    return {**plain, **facts, **criteria}


def _annotation(vote: Vote, names: Sequence[str]) -> dict[str, Any]:
    return {
        "completed_by": {"email": f"{vote.annotator}{HOST}"},
        "result": list(_results(vote.label, names)),
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": vote.created,
        **({} if vote.seconds is None else {"lead_time": vote.seconds}),
    }


def _results(label: Label, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The results of a label in the item's own order. names: of the responses."""
    if "better" in label:
        selected = "right" if label["better"] else "left"
        yield _tag("preference", ",".join(names), "pairwise", {"selected": selected})
    for name in ("margin", "safety"):
        if name in label:
            yield _tag(name, PROMPT, "choices", {"choices": [label[name]]})
    texts = {name: label[key] for name, key in (("note", "note"), ("answer", "text")) if key in label}
    for name, value in texts.items():
        yield _tag(name, PROMPT, "textarea", {"text": [value]})
    if "ranks" in label:
        named = list(zip(names, label["ranks"], strict=True))
        buckets = {f"{_RANK}{rank}": [n for n, r in named if r == rank] for rank in sorted(set(label["ranks"]))}
        yield _tag("ranking", _ITEMS, "ranker", {"ranker": buckets})
    for name, rated in zip(names, label.get("scores", ()), strict=False):
        for criterion, value in rated.items():
            yield _tag(f"{criterion}_{name.removeprefix(RESPONSE)}", name, "rating", {"rating": value})
    for name, flags in zip(names, label.get("flags", ()), strict=False):
        if flags:
            yield _tag(f"{FLAGGED}{name.removeprefix(RESPONSE)}", name, "choices", {"choices": flags})
    if "good" in label:
        yield _tag("verdict", PROMPT, "choices", {"choices": ["good" if label["good"] else "bad"]})


def _tag(name: str, to: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    """The result of a control tag."""
    return {"from_name": name, "to_name": to, "type": kind, "value": value}


# Reading


def content_of_file(path: Path, target: Store | None, *, license: str = "", terms: str = "") -> Content:
    """The items and labels of a file that are new to a store; None: all of them.

    license: of items that name none. terms: to which all annotators of the file agreed, so that the labels may be
    shared; empty: nobody was asked. Raises `DataError` that lists every row that cannot be read.
    """
    now = records.stamp(datetime.now(UTC) if target is None else target.clock())
    known = {event.uuid for event in target.events()} if target is not None else set()
    items: dict[str, Stored] = {}
    events: dict[str, Event] = {}
    bad: list[SkippedRow] = []
    for item, found in read_rows(path, lambda row: read(row, license, now), "the tool", bad):
        items.setdefault(item.id, Stored(item, 1, 0, 1, 0, False))
        events |= {event.uuid: event for event in found if event.uuid not in known}
    if bad:
        raise bad_rows_error(bad)
    if not items:
        raise DataError(f"{path}: there are no rows")
    people = sorted({event.annotator for event in events.values()})
    agreed = [event for who in people if terms and (event := _consent(who, terms, now)).uuid not in known]
    return Content(list(items.values()), [*agreed, *events.values()])


def _consent(who: str, terms: str, now: str) -> Event:
    name = uuid.uuid5(_CONSENT, json.dumps([who, terms]))
    return records.checked_event(Event(str(name), who, "consent", {"granted": True, "terms": terms}, created=now), None)


def read_rows(path: Path, read: Callable[[Any], Any], writer: str, bad: list[SkippedRow]) -> list[Any]:
    """What `read` makes of the rows of a file. bad: gets those that are not as `writer` writes them."""
    found = []
    for number, row in file_rows(path):
        try:
            found.append(read(raise_if_bad(row)))
        except (BadRow, BadLabel) as error:
            bad.append(SkippedRow(str(path), number, str(error)))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            bad.append(SkippedRow(str(path), number, f"not as {writer} writes it: {type(error).__name__}: {error}"))
    return found


def read(row: Any, license: str, now: str) -> tuple[Item, list[Event]]:
    """The item of a task, with everybody's label; the last annotation of each person counts, skipped ones do not.

    license, now: of what names none. Raises `BadRow`.
    """
    if not isinstance(row, Mapping) or not {"data", "annotations"} <= row.keys():
        found = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise BadRow(f"no task of Label Studio (data, annotations): {found:.80}")
    data, columns = row["data"], row.get("meta") or {}
    if not isinstance(data, Mapping) or not isinstance(columns, Mapping):
        raise BadRow("data and meta must be objects")
    texts = {name: value for name, value in data.items() if name != _ITEMS}
    names = _response_names(texts)
    made = {_annotator(one.get("completed_by")): one for one in row["annotations"] if not one.get("was_cancelled")}
    answers = {who: dict(_answer(result, names) for result in one["result"]) for who, one in made.items()}
    item = _item(texts, columns, {name for given in answers.values() for name in given}, license)
    events = []
    for who, one in made.items():
        spent = one.get("lead_time")
        seconds = float(spent) if isinstance(spent, int | float) else None
        events.append(_event(item, _label(item, answers[who]), who, _time(one.get("created_at"), now), seconds))
    return item, events


def _event(item: Item, label: Label, annotator: str, created: str, seconds: float | None) -> Event:
    """The event that says this label; the same label by the same annotator is the same event."""
    payload = displayed(label, range(len(item.responses)))
    name = uuid.uuid5(_LABELS, json.dumps([item.id, annotator, payload, seconds], sort_keys=True))
    event = Event(str(name), annotator, "label", payload, item.id, created=created, seconds=seconds)
    return records.checked_event(event, item)


def _answer(result: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Any]:
    name, kind, value = str(result.get("from_name")), result.get("type"), result["value"]
    if kind == "pairwise":
        return "preference", f"{RESPONSE}{1 if value['selected'] == 'left' else 2}"
    if kind == "ranker":
        return "ranking", _ranks(value["ranker"], names)
    if kind == "choices" and name.startswith(FLAGGED):
        return name, value["choices"]
    if kind == "choices":
        (chosen,) = value["choices"]
        return name, chosen
    if kind == "textarea":
        return name, "\n".join(value["text"]) if isinstance(value["text"], list) else value["text"]
    if kind == "rating":
        return name, value["rating"]
    raise BadRow(f"a result of the type {kind!r:.40}; expected pairwise, ranker, choices, rating or textarea")


def _ranks(ranker: Any, names: Sequence[str]) -> list[int]:
    groups = list(ranker.values()) if isinstance(ranker, Mapping) else [[name] for name in ranker]
    ranks = {name: rank for rank, group in enumerate(groups, 1) for name in group}
    if set(ranks) != set(names):
        raise BadRow(f"a ranking must name {', '.join(names)}, not {', '.join(map(str, ranks)):.80}")
    return [ranks[name] for name in names]


def _annotator(user: Any) -> str:
    """A name for whoever made an annotation: an address, or the number of a user."""
    if isinstance(user, Mapping):
        user = user.get("email") or user.get("id")
    text = "unknown" if user is None else str(user)
    return text.removesuffix(HOST) if not text.isdigit() else f"user-{text}"


def _time(text: Any, now: str) -> str:
    try:
        check_time(str(text))
    except BadLabel:
        return now
    return str(text)


def _item(texts: Mapping[str, Any], columns: Mapping[str, Any], questions: Iterable[str], license: str = "") -> Item:
    """The item of fields as another tool holds them. questions: that were answered, which tell the task.

    license: of items that name none. Raises `BadRow` for fields that are no item.
    """
    names = _response_names(texts)
    task = str(columns.get("task") or _asked(set(questions), names))
    meta = {name: value for name, value in columns.items() if name not in (*FACTS, _CRITERIA)}
    criteria = tuple(filter(None, str(columns.get(_CRITERIA) or "").split(","))) or _criteria(questions, len(names))
    return Item(
        task,
        _prompt(texts),
        tuple(str(texts[name]) for name in names),
        criteria if task in ("scores", "review") else (),
        meta=meta,
        license=str(columns.get("license") or license),
        batch=str(columns.get("batch") or ""),
        held_out=bool(columns.get("held_out")),
    ).checked()


def _response_names(texts: Mapping[str, Any]) -> list[str]:
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


def _asked(questions: set[str], names: Sequence[str]) -> str:
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


def _label(item: Item, answers: Mapping[str, Any]) -> Label:
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
        return {"margin": UNSAID, **label, "better": names.index(preferred)}
    if item.task in ("ranking", "review"):
        ranks = answers.get("ranking")
        if not isinstance(ranks, list) or len(ranks) != len(names):
            raise BadRow(f"'ranking' must rank {len(names)} responses, not {ranks!r:.80}")
        label["ranks"] = places(ranks)
    if item.task in ("scores", "review"):
        label["scores"] = [_scores(item, answers, place) for place in range(1, len(names) + 1)]
    if item.task == "review":
        label["flags"] = [answers.get(f"{FLAGGED}{place}", []) for place in range(1, len(names) + 1)]
    if "ranks" in label or "scores" in label:
        return label
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

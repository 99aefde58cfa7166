"""Labels in the JSON of Argilla 2 (`dataset.records.to_json`), from which `Dataset.records.from_json` reads them.

A record is `{id, fields, metadata, suggestions, responses, vectors, _server_id}`; `responses` holds for each question
`[{value, user_id}]`. The prompt is a chat field. A ranking is a list of fields, best first, so it cannot have ties.
Older versions write `[{value, rank}]`, which is read too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.errors import BadRow
from alignkit_apps.feedback_export.answers import (
    RESPONSE,
    Answered,
    Answers,
    columns_of,
    item_of,
    response_names,
    texts_of,
)

_PEOPLE = "616c6b66-0000-5000-8000-"  # begins the UUID of a pseudonym
_PSEUDONYM = re.compile(r"person-([0-9a-f]{12})")


def records(entries: Sequence[Answered]) -> tuple[list[dict[str, Any]], int]:
    """The records, and the number of rankings that are left out because they have ties."""
    found, tied = [], 0
    for entry in entries:
        responses: dict[str, list[dict[str, Any]]] = {}
        for annotator, answers in entry.answers.items():
            if len(set(answers.get("ranking", ()))) < len(answers.get("ranking", ())):
                tied += 1
                continue
            for question, value in answers.items():
                shown = _ordered(value) if question == "ranking" else value
                responses.setdefault(question, []).append({"value": shown, "user_id": _user(annotator)})
        if responses:
            found.append(_record(entry, responses))
    return found, tied


def _record(entry: Answered, responses: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": entry.item.id,
        "fields": texts_of(entry.item),
        "metadata": columns_of(entry.item),
        "suggestions": {},
        "responses": responses,
        "vectors": {},
        "_server_id": None,
    }


def _ordered(ranks: Sequence[int]) -> list[str]:
    """The responses from best to worst."""
    return [f"{RESPONSE}{place + 1}" for place in sorted(range(len(ranks)), key=lambda place: ranks[place])]


def _user(annotator: str) -> str:
    """The UUID of an annotator, who has a pseudonym."""
    found = _PSEUDONYM.fullmatch(annotator)
    return f"{_PEOPLE}{found[1]}" if found else annotator


def _annotator(user: Any) -> str:
    text = str(user)
    return f"person-{text.removeprefix(_PEOPLE)}" if text.startswith(_PEOPLE) else text


# Reading


def is_record(row: Any) -> bool:
    """Whether a row looks like a record."""
    return isinstance(row, Mapping) and "fields" in row and "responses" in row


def read(row: Mapping[str, Any], license: str, now: str) -> Answered:
    """The item of a record, with everybody's answers. Raises `BadRow`. license, now: of what names none."""
    texts, columns, responses = row["fields"], row.get("metadata") or {}, row["responses"] or {}
    if not all(isinstance(part, Mapping) for part in (texts, columns, responses)):
        raise BadRow("fields, metadata and responses must be objects")
    names = response_names(texts)
    people: dict[str, Answers] = {}
    for question, given in responses.items():
        for one in given:
            name, value = _answer(str(question), one["value"], names)
            people.setdefault(_annotator(one.get("user_id")), {})[name] = value
    questions = {name for answers in people.values() for name in answers}
    item = item_of(texts, columns, questions, license)
    return Answered(item, people, dict.fromkeys(people, now))


def _answer(question: str, value: Any, names: Sequence[str]) -> tuple[str, Any]:
    """An answer to a question, whatever it was called, if it ranks responses or names one."""
    if isinstance(value, list):
        return "ranking", _ranks(value, names)
    if isinstance(value, str) and value in names:
        return "preference", f"{RESPONSE}{names.index(value) + 1}"
    return question, value


def _ranks(value: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """A ranking as ranks of the responses."""
    pairs = [
        (one["value"], one.get("rank", n)) if isinstance(one, Mapping) else (one, n) for n, one in enumerate(value)
    ]
    ranks = {_plain(name): rank for name, rank in pairs}
    missing = [name for name in names if _plain(name) not in ranks]
    if missing or len(ranks) != len(names):
        raise BadRow(f"a ranking must name {', '.join(names)}, not {', '.join(str(name) for name, _ in pairs):.80}")
    return [ranks[_plain(name)] for name in names]


def _plain(name: Any) -> str:
    return str(name).replace("-", "_")

"""What the page of `alignkit data browse` asks for: rows that filters choose, one in full, its tokens, and marks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from pydantic import Field

from alignkit.data.describe import said, shortened
from alignkit.data.group import Group, Message, Response
from alignkit.data.reading import RowReader
from alignkit.data.spoken import all_turns
from alignkit.errors import BadRow, DataError, no_disk
from alignkit.tokens.encoding import Encoder
from alignkit.tokens.long_rows import WHOLE
from alignkit_apps.data.clean import faults, written
from alignkit_apps.data.corpus import Corpus, as_json, parsed
from alignkit_apps.policies.row_tokens import facts, heading, marked, response_names
from alignkit_apps.web.formatted import LONGEST, cut, shown_turn
from alignkit_apps.web.messages import read, visible
from alignkit_plugins.data.rules import Fault, Rules, read_marks, reason_of
from alignkit_plugins.people.labels import BadLabel, StrictModel

PAGE = 50  # rows in the list
MOST = 100  # turns, responses and columns of a row that are shown
CELL = 2_000  # characters of a column
TOKENIZED = 50_000  # characters of a row whose tokens are shown
MARKED, ANY = "marked", "any"  # instead of a rule's name
COLUMNS = {"at": "int64", "characters": "int64"}

State = dict[str, Any]
Places = Any  # a numpy array with a truth value for each row


class _Wanted(StrictModel):
    """Which rows. text: in any of their values, or in a column's; whole: it is all that the value says.

    least, most: characters that an answer has; of a row without answers, its prompt. flag: a rule, ANY or MARKED.
    """

    text: str = Field("", max_length=2000)
    column: str = ""
    whole: bool = False
    least: int | None = None
    most: int | None = None
    flag: str = ""
    first: int = Field(0, ge=0)


class _Row(StrictModel):
    at: int = Field(ge=0)


class _Marked(_Row):
    reason: str = Field(max_length=2000)
    bad: bool


class Marks:
    """The rows that somebody marked as bad, in a file that the rule `marks` reads. It is written at each change.

    files: that rows are from, as `Corpus.where` calls them.
    """

    def __init__(self, path: Path, files: Sequence[str]):
        self.path = path
        self._lock = Lock()
        self._rows = read_marks(path, files) if path.is_file() else {}

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, file: str, row: int) -> str | None:
        """Why a row is marked; None if it is not."""
        found = self._rows.get((file, row))
        return None if found is None else reason_of(found)

    def rows(self, file: str) -> list[int]:
        """The rows of a file that are marked."""
        return [row for name, row in self._rows if name == file]

    def put(self, file: str, row: int, reason: str | None) -> None:
        """Mark a row; None: take the mark back. Raises OutOfResource, and changes nothing, if it cannot be written."""
        with self._lock:
            rows = {key: mark for key, mark in self._rows.items() if key != (file, row)}
            if reason is not None:
                rows[file, row] = {"file": file, "row": row, "reason": reason}
            try:
                with written(self.path) as stream:
                    stream.writelines(as_json(rows[key]) for key in sorted(rows))
            except OSError as error:
                raise no_disk(error) or DataError(f"cannot write {self.path}: {error.strerror}") from error
            self._rows = rows


class BrowseApi:
    """The rows of a corpus, as the page shows them. encoder: of the model whose tokens are shown.

    faults, lengths: None until `look` has gone through the rows.
    """

    def __init__(self, corpus: Corpus, marks: Marks, encoder: Encoder | None = None):
        self.corpus, self.marks, self.encoder = corpus, marks, encoder
        self.faults: dict[int, Fault] | None = None
        self.lengths: tuple[Places, Places] | None = None
        self._encoding = Lock()
        self._says = lru_cache(8)(self._searched)  # of the last searches, for their other pages
        self._raw = corpus.rows.data.table["raw"]

    def look(self, rules: Rules) -> None:
        """Find what `alignkit data clean` would leave out or change, and how long answers are."""
        table = self.corpus.mapped("measuring answers", _measured, COLUMNS)
        self.lengths = table["at"].to_numpy(), table["characters"].to_numpy()
        found, personal = faults(self.corpus, rules)
        self.faults = {at: Fault("personal", "has personal details") for at in personal} | found

    def columns(self) -> list[str]:
        """The names of the columns of the first rows."""
        first = (json.loads(raw) for raw in self._raw.slice(0, self.corpus.together).to_pylist() if raw)
        return list(dict.fromkeys(name for row in first if isinstance(row, Mapping) for name in row))

    # What the page asks

    def rows(self, annotator: str, message: Any) -> State:
        """A page of the rows that are wanted, and how many there are."""
        wanted = read(_Wanted, message)
        chosen = np.flatnonzero(self._chosen(wanted))
        page = chosen[wanted.first : wanted.first + PAGE].tolist()
        return {
            "rows": [self._line(at, row) for at, row in self._parsed(page)],
            "total": len(chosen),
            "flags": None if self.faults is None else Counter(fault.rule for fault in self.faults.values()),
            "marked": len(self.marks),
        }

    def row(self, annotator: str, message: Any) -> State:
        """A row in full, but for what no page could show."""
        at, groups, raw = self._asked(read(_Row, message))
        file, number = self.corpus.where(at)
        fault = (self.faults or {}).get(at)
        data = json.loads(raw) if raw else None
        return {
            "at": at,
            "where": visible(f"{file}:{number}"),
            "fault": None if fault is None else [fault.rule, visible(fault.reason)],
            "mark": self.marks.of(file, number),
            "unread": visible(str(groups)) if isinstance(groups, BadRow) else "",
            "groups": [] if isinstance(groups, BadRow) else [_shown(group) for group in groups[:MOST]],
            "raw": visible(cut(json.dumps(data, indent=1, ensure_ascii=False) if raw else "", LONGEST)),
        }

    def tokens(self, annotator: str, message: Any) -> State:
        """The tokens of a row as a stage learns it, each with whether it is in the loss."""
        _, groups, raw = self._asked(read(_Row, message))
        if self.encoder is None:
            raise BadLabel("tokens are those of a model: name one with --model")
        if isinstance(groups, BadRow) or len(raw) > TOKENIZED:
            raise BadLabel(f"tokens are shown of rows that can be read and have at most {TOKENIZED:,} characters")
        with self._encoding:
            found = [self.encoder.encode(group, WHOLE) for group in groups]
            shown = [tokens for one in found if one is not None for tokens in marked(self.encoder, one, False)]
        return {
            "tokens": [
                {"title": heading(one), "pieces": [*map(visible, one.pieces)], "learned": one.counts} for one in shown
            ]
        }

    def mark(self, annotator: str, message: Any) -> State:
        """Mark a row as bad, or take its mark back."""
        sent = read(_Marked, message)
        at, *_ = self._asked(sent)
        where = self.corpus.where(at)
        self.marks.put(*where, (sent.reason.strip() or "marked by hand") if sent.bad else None)
        return {"mark": self.marks.of(*where), "marked": len(self.marks)}

    # Rows

    def _parsed(self, places: Sequence[int]) -> Iterator[tuple[int, list[Group] | BadRow]]:
        return parsed(self.corpus.rows[places], places, self.corpus.readers)

    def _asked(self, sent: _Row) -> tuple[int, list[Group] | BadRow, str]:
        if sent.at >= len(self.corpus.rows):
            raise BadLabel("there is no such row; reload the page")
        ((at, groups),) = self._parsed([sent.at])
        return at, groups, self._raw[at].as_py()

    def _line(self, at: int, row: list[Group] | BadRow) -> State:
        file, number = self.corpus.where(at)
        fault = (self.faults or {}).get(at)
        return {
            "at": at,
            "number": number,
            "file": visible(file) if len(self.corpus.readers) > 1 else "",
            "preview": visible(str(row) if isinstance(row, BadRow) else _preview(row)),
            "flag": "" if fault is None else fault.rule,
            "marked": self.marks.of(file, number) is not None,
        }

    def _chosen(self, wanted: _Wanted) -> Places:
        chosen = np.ones(len(self.corpus.rows), dtype=bool)
        if wanted.text or (wanted.column and wanted.whole):
            chosen &= self._says(wanted.text, wanted.column, wanted.whole)
        if wanted.flag == MARKED:
            chosen &= self._marked()
        elif wanted.flag:
            chosen &= self._at(
                [at for at, fault in self._known(self.faults).items() if wanted.flag in (ANY, fault.rule)]
            )
        if wanted.least is not None or wanted.most is not None:
            places, characters = self._known(self.lengths)
            fits = (characters >= (wanted.least or 0)) & (characters <= (WHOLE if wanted.most is None else wanted.most))
            chosen &= self._at(places[fits])
        return chosen

    def _known(self, found: Any) -> Any:
        if found is None:
            raise BadLabel("flags and lengths are not known yet; the page shows them when they are")
        return found

    def _at(self, places: Any) -> Places:
        there = np.zeros(len(self.corpus.rows), dtype=bool)
        there[places] = True
        return there

    def _marked(self) -> Places:
        table, there = self.corpus.rows.data.table, self._at([])
        sources, numbers = table["source"].to_numpy(), table["row"].to_numpy()
        for place, file in enumerate(self.corpus.files):
            there |= (sources == place) & np.isin(numbers, self.marks.rows(file))
        return there

    def _searched(self, text: str, column: str, whole: bool) -> Places:
        """Which rows say a text. Arrow looks through their JSON, and only what it finds is parsed."""
        import pyarrow.compute as compute

        there, together, wanted = self._at([]), self.corpus.together, text.strip().lower() if whole else text.lower()
        spelled = {json.dumps(text.strip() if whole else text, ensure_ascii=ascii)[1:-1] for ascii in (False, True)}
        for start in range(0, len(there), together):
            raw = self._raw.slice(start, together)
            found = [compute.match_substring(raw, spelling, ignore_case=True).to_numpy() for spelling in spelled]
            places = np.flatnonzero(np.logical_or.reduce(found))
            says = [_says(row, wanted, column, whole) for row in raw.take(places).to_pylist()]
            there[start + places[says]] = True
        return there


def _says(raw: str, wanted: str, column: str, whole: bool) -> bool:
    """Whether a row has a text in lower case. A column that is not there says nothing."""
    row = json.loads(raw) if raw else None
    values = (row.get(column) if isinstance(row, Mapping) else None) if column else row
    texts = (text.lower() for text in _texts(values))
    return any(text.strip() == wanted if whole else wanted in text for text in texts)


def _texts(value: Any) -> Iterator[str]:
    """What plain data say, however deep; null and what is empty say nothing."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping | list) and value:
            waiting += value.values() if isinstance(value, Mapping) else value
        elif value is None or isinstance(value, Mapping | list):
            yield ""
        else:
            yield value if isinstance(value, str) else json.dumps(value)


def _measured(batch: Mapping[str, Any], indices: Sequence[int], readers: Sequence[RowReader]) -> dict[str, list[int]]:
    """The characters of each answer, and of prompts without one."""
    lengths = []
    for at, row in parsed(batch, indices, readers):
        for group in () if isinstance(row, BadRow) else row:
            texts = map(all_turns, group.responses) if group.responses else [said(group.prompt)]
            lengths += [(at, len(text)) for text in texts]
    return {name: [pair[place] for pair in lengths] for place, name in enumerate(COLUMNS)}


def _preview(groups: Sequence[Group]) -> str:
    """The beginning of what is asked, else of what is said."""
    turns = [turn for group in groups for turn in group.prompt]
    asked = [turn for turn in turns if turn["role"] == "user"] or turns
    texts = [all_turns(response) for group in groups[:1] for response in group.responses[:1]]
    return shortened(said(asked[:1]) if asked else next(iter(texts), ""))


# One row


def _shown(group: Group) -> State:
    """A group as the page gets it: texts that cannot hide anything, cut if no page could show them."""
    titles = response_names(group)
    columns = [*group.meta.items()][:MOST]
    return {
        "prompt": _turns(group.prompt),
        "responses": [
            {"facts": [visible(fact) for fact in [*_said_of(title), *facts(response)]], "turns": _answer(response)}
            for title, response in zip(titles[:MOST], group.responses, strict=False)
        ],
        "tools": [visible(str(tool.get("function", tool).get("name", "?"))) for tool in group.tools[:MOST]],
        "columns": [[visible(str(name)), visible(cut(_cell(value), CELL))] for name, value in columns],
        "left": [
            f"{count - MOST:,} more {what}"
            for what, count in (
                ("turns", len(group.prompt)),
                ("responses", len(group.responses)),
                ("columns", len(group.meta)),
            )
            if count > MOST
        ],
    }


def _said_of(title: str) -> list[str]:
    """What a response's name says besides its place."""
    return [part for part in title.split(", ") if not part.startswith("response")]


def _answer(response: Response) -> list[State]:
    return _turns(response.messages or [Message(role="assistant", content=response.text)])


def _turns(turns: Sequence[Message]) -> list[State]:
    found = []
    for turn in turns[:MOST]:
        shown = shown_turn(turn, LONGEST)
        learned = turn["role"] != "assistant" or turn.get("train", True)
        found.append(shown if learned else {**shown, "role": f"{shown['role']} (not learned)"})
    return found


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

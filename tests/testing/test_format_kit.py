"""The kit of formats: every first-party format passes, and each kind of broken one is reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from alignkit import BadRow, Format, Group, Message, Response
from alignkit.plugins import plugins
from alignkit.testing import ConformanceError, check_format


def first_party() -> dict[str, type[Format]]:
    registrations = plugins().registrations("format")
    return {one.name: one.implementation for one in registrations if one.distribution == "alignkit"}


# Which has options that must be there
@pytest.mark.parametrize("name", sorted(first_party().keys() - {"template"}))
def test_first_party_formats_conform(name: str) -> None:
    check_format(first_party()[name])


@pytest.mark.parametrize(
    ("name", "options", "row"),
    [
        ("template", {"prompt": "{{ question }}", "response": "{{ answer }}"}, None),
        ("text", {"paragraphs": True}, {"text": "Raw text.", "id": 3}),
        ("rankings", {}, {"prompt": "Hi", "responses": ["a", "b"], "scores": [1, 2.5]}),
        (
            "preference",
            {},
            {"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": 2, "p": 0.75},
        ),
    ],
)
def test_other_rows_of_first_party_formats(name: str, options: dict[str, Any], row: Any) -> None:
    check_format(first_party()[name], options, rows=[] if row is None else [row])


class QA(Format):
    """A good one, which can also cut a text into rows."""

    summary = "question and answer"
    wants = "question and answer_text (texts)"
    example = '{"question": "Hi", "answer_text": "Hello!"}'

    @classmethod
    def matches(cls, row: Any) -> bool:
        return cls.has(row, "question", "answer_text")

    def read(self, row: Any) -> Group:
        if not isinstance(row, Mapping):
            raise BadRow("a row must be an object")
        return self.group(row, self.rest(row, "question", "answer_text"))

    def group(self, row: Mapping[str, Any], meta: dict[str, Any]) -> Group:
        prompt = (Message(role="user", content=self.text(row, "question")),)
        return Group(prompt, (Response(text=self.text(row, "answer_text")),), meta=meta)


def test_a_good_format_conforms() -> None:
    check_format(QA, rows=[{"question": "Who?", "answer_text": "Me.", "id": 7}])


class NoExample(QA):
    example = ""


class NotJSON(QA):
    example = "question, answer_text"


class BadExample(QA):
    example = '{"question": "Hi"}'


class Loses(QA):
    def read(self, row: Any) -> Group:
        if not isinstance(row, Mapping):
            raise BadRow("a row must be an object")
        return self.group(row, {})


class LosesItsOwn(QA):
    example = '{"question": "Hi", "answer_text": "Hello!", "context": "Noon"}'
    wants = "question and answer_text; optional context"

    def read(self, row: Any) -> Group:
        group = super().read(row)
        group.meta.pop("context", None)
        return group


class Crashes(QA):
    def read(self, row: Any) -> Group:
        return Group(
            (Message(role="user", content=row["question"].strip()),),
            (Response(text=row["answer_text"]),),
        )


class CrashesOnNumbers(QA):
    def read(self, row: Any) -> Group:
        group = super().read(
            {**row, "question": str(row.get("question") or "")} if isinstance(row, Mapping) else row
        )
        return Group(
            (Message(role="user", content=(row.get("question") or "").strip()),),
            group.responses,
            meta=group.meta,
        )


class CrashesOnLists(QA):
    def read(self, row: Any) -> Group:
        return super().read(row[0] if isinstance(row, list) else row)


class MakesUp(QA):
    def read(self, row: Any) -> Group:
        row = row if isinstance(row, Mapping) else {}
        meta = self.rest(row, "question", "answer_text")
        return self.group({"question": "?", "answer_text": "!", **row}, meta)


class Greedy(QA):
    @classmethod
    def matches(cls, row: Any) -> bool:
        return isinstance(row, Mapping)


class Blind(QA):
    @classmethod
    def matches(cls, row: Any) -> bool:
        return cls.has(row, "question", "answer")


class RaisesInMatches(QA):
    @classmethod
    def matches(cls, row: Any) -> bool:
        return "question" in row and "answer_text" in row


class Pops(QA):
    def read(self, row: Any) -> Group:
        group = super().read(row)
        row.pop("answer_text")
        return group


class Numbers(QA):
    rows = 0

    def read(self, row: Any) -> Group:
        group = super().read(row)
        self.rows += 1
        group.meta["number"] = self.rows
        return group


class SetInMeta(QA):
    def read(self, row: Any) -> Group:
        group = super().read(row)
        group.meta["words"] = tuple(row["question"].split())
        return group


class ReadsAList(QA):
    def read(self, row: Any) -> Any:
        group = super().read(row)
        return [group.prompt, group.responses]

    def check(self, group: Group) -> None:
        pass


class NoGroups(QA):
    def groups(self, row: Any) -> Iterable[Group]:
        return ()


class TextAsPrompt(QA):
    def group(self, row: Mapping[str, Any], meta: dict[str, Any]) -> Group:
        return Group(row["question"], meta=meta)


class TextAsResponse(QA):
    def group(self, row: Mapping[str, Any], meta: dict[str, Any]) -> Group:
        return Group(({"role": "user", "content": "q"},), row["answer_text"], meta=meta)


BROKEN: list[tuple[Any, str]] = [
    (TextAsPrompt, r"`TextAsPrompt.read`: AttributeError: 'str' object has no attribute 'get'"),
    (
        TextAsResponse,
        r"`TextAsResponse.read`: AttributeError: 'str' object has no attribute 'messages'",
    ),
    (NoExample, "NoExample: `example` must be a row as JSON"),
    (NotJSON, "`example` must be a row as JSON"),
    (BadExample, '`read` refuses {"question": "Hi"}: column \'answer_text\' is missing'),
    (Loses, "a further column is not in the group's `meta`: `rest` returns the columns"),
    (LosesItsOwn, "column 'context' of .* changes nothing and is lost"),
    (
        Crashes,
        r"[.]read`: KeyError: 'question' \(test_format_kit.py:\d+\), for .*; a row .* must raise BadRow",
    ),
    (
        CrashesOnNumbers,
        "[.]read`: AttributeError: 'int' object has no attribute 'strip' .*\"question\": 3",
    ),
    (
        CrashesOnLists,
        r"[.]read`: IndexError: .*, for \[\]; a row that cannot be read must raise BadRow",
    ),
    (MakesUp, "`read` makes a group of {}: raise BadRow for columns that are missing"),
    (Greedy, "`matches` recognizes {}: it must be strict"),
    (Greedy, "`matches` also recognizes the example of 'alpaca'"),
    (Blind, "`matches` does not recognize"),
    (RaisesInMatches, "[.]matches`: TypeError: argument of type 'NoneType' is not"),
    (Pops, "`read` changes the row"),
    (Numbers, "`read` makes other groups of .* when it reads it again"),
    (Numbers, "makes other groups of .* when it reads it again"),
    (SetInMeta, "`read` makes a group that changes when it is stored as JSON"),
    (ReadsAList, r"[.]read`: .*`read` must return a Group, not list"),
    (NoGroups, "`groups` returns no group for"),
    (Group, "Group: format 'Group' must be a subclass of alignkit.Format"),
]


@pytest.mark.parametrize(("cls", "message"), BROKEN, ids=[cls.__name__ for cls, _ in BROKEN])
def test_broken_formats_are_reported(cls: Any, message: str) -> None:
    with pytest.raises(ConformanceError, match=message) as caught:
        check_format(cls)
    assert all(line.startswith(f"{cls.__name__}: ") for line in str(caught.value).splitlines())


def test_a_format_without_rest_is_told_once() -> None:
    with pytest.raises(ConformanceError) as caught:
        check_format(Loses)
    assert len(str(caught.value).splitlines()) == 1


class Spaced(QA):
    """Columns with names that are no words."""

    wants = "columns my-question and my answer"
    example = '{"my-question": "Hi", "my answer": "Hello"}'

    @classmethod
    def matches(cls, row: Any) -> bool:
        return isinstance(row, Mapping) and "my-question" in row

    def read(self, row: Any) -> Group:
        if not isinstance(row, Mapping):
            raise BadRow("a row must be an object")
        names = {"my-question": "question", "my answer": "answer_text"}
        return super().read({names.get(name, name): value for name, value in row.items()})


def test_columns_may_have_any_name() -> None:
    check_format(Spaced)


def test_rows_can_stand_for_an_example() -> None:
    check_format(NoExample, rows=[{"question": "Hi", "answer_text": "Hello!"}])

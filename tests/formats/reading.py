"""Tables `rows -> group` as text.

    preference {"prompt": "q", "chosen": "a", "rejected": "b"}
    preference {"prompt": <u: q>, "chosen": <a: a>, "rejected": <a: b>}
      u: q -> a | b [0>1]

Each row starts with its format, and is read as the indented lines after it say: a line for each
group, with its turns, its responses, its pairs and its other columns. `<u: q / a: a>` is a list of
messages. `! words` is a refusal with these words, `- words` a row that is left out. `with` sets the
options of the rows after it. Lines indented by four continue the one before. A format
that does not recognize its row, or not alone, says so:
`gsm8k () ROW`, `helpsteer2 (prompt_completion) ROW`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import yaml

from alignkit import BadRow, Format, Group, Message, Pair, Response
from alignkit.contract.formats import checked_groups
from alignkit.data.group import group_from_json, group_to_json
from alignkit.errors import LeftOut
from alignkit.host.plugins import plugins
from alignkit_plugins.formats.layouts import LAYOUTS

FORMATS: dict[str, type[Format]] = {
    one.name: one.implementation for one in plugins().registrations("format")
}
ROLES = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
BLOCK = re.compile(r"((?:\S.*\n)+)((?:  .*\n)+)")
WRITTEN = {
    "sft": "prompt_completion",
    "messages": "messages",
    "preference": "preference",
    "prompts": "prompt_only",
}


def turns(text: str) -> list[Message]:
    """Messages of `u: q / a: a`."""
    return [Message(role=ROLES[turn[0]], content=turn[3:]) for turn in text.split(" / ")]


def value(text: str) -> Any:
    """A row as a table has it."""
    return json.loads(re.sub(r"<([uast]: .*?)>", lambda at: json.dumps(turns(at[1])), text))


def read(name: str, row: Any, **options: Any) -> list[Group]:
    """The checked groups of a row."""
    cls = FORMATS[name]
    return checked_groups(cls(cls.Options(**options)), row)


def shown(group: Group) -> str:
    """A group as a table has it."""
    said = f"{_turns(group.prompt)} -> {' | '.join(map(_response, group.responses))}".strip()
    if group.pairs is not None:
        said += f" [{', '.join(map(_pair, group.pairs))}]"
    if group.weight != 1:
        said += f" weight {group.weight}"
    if group.tools:
        said += f" tools {json.dumps(group.tools)}"
    return f"{said} {json.dumps(group.meta, ensure_ascii=False)}" if group.meta else said


def _text(text: str) -> str:
    """The text, in quotes if its white space would not be seen."""
    quoted = json.dumps(text, ensure_ascii=False)
    return quoted[1:-1] if text and text == text.strip() else quoted


def _turns(messages: Sequence[Message]) -> str:
    said = []
    for message in messages:
        others = {name: more for name, more in message.items() if name not in ("role", "content")}
        more = f" {json.dumps(others)}" if others else ""
        said.append(f"{message['role'][0]}: {_text(message['content'])}{more}")
    return " / ".join(said)


def _response(response: Response) -> str:
    said = _turns(response.messages) if response.messages else _text(response.text)
    facts = json.loads(group_to_json(Group((), (response,))))["responses"][0]
    more = [
        f"{name} {json.dumps(facts[name])}" for name in facts if name not in ("text", "messages")
    ]
    return f"{said} ({', '.join(more)})" if more else said


def _pair(pair: Pair) -> str:
    margin = "" if pair.margin is None else f" by {pair.margin}"
    return f"{pair.better}>{pair.worse}{margin}" + (f" p {pair.p}" if pair.p != 1 else "")


def _read_as(name: str, row: Any, options: Any, wanted: str) -> str:
    """What the table should say of a row. wanted: what it says."""
    sign = "!"
    try:
        groups = read(name, row, **options)
    except LeftOut as error:
        sign, reason = "-", str(error)
    except BadRow as error:
        reason = str(error)
    else:
        _check_that_they_survive(groups)
        return "".join(f"  {shown(group)}\n" for group in groups)
    as_wanted = wanted.startswith(f"  {sign} ") and wanted[4:].rstrip("\n") in reason
    return wanted if as_wanted else f"  {sign} {reason}\n"


def _check_that_they_survive(groups: list[Group]) -> None:
    """Groups as JSON, and in the layouts that `data convert` writes, are read as they were."""
    for group in groups:
        assert group_from_json(group_to_json(group)) == group
        whole = all(response.text or response.messages for response in group.responses)
        for layout, format in WRITTEN.items() if whole else ():
            for row in LAYOUTS[layout].rows(group):
                (again,) = read(format, json.loads(json.dumps(row)))
                assert [*LAYOUTS[layout].rows(again)] == [row], (layout, row)


def check(table: str) -> None:
    """Compare a table with what its rows are read as."""
    options: Any = {}
    table = re.sub(r"\n {4,}", " ", re.sub(r"\n{2,}", "\n", table.lstrip()))
    found = ""
    for heads, wanted in BLOCK.findall(table):
        for head in heads.splitlines():
            if head.startswith("with "):
                options = yaml.safe_load(head[5:])
                found += f"{head}\n"
                continue
            name, text = re.fullmatch(r"(\w+) (?:\(.*?\) )?(.*)", head).groups()  # type: ignore[union-attr]
            row = value(text)
            read_as = _read_as(name, row, options, wanted)
            claims = [other for other, cls in FORMATS.items() if cls.matches(row)]
            alone = claims == [name] or read_as.startswith("  !")
            found += f"{name} {text}\n" if alone else f"{name} ({', '.join(claims)}) {text}\n"
            found += "" if read_as == wanted else read_as
        found += wanted
    assert found == table

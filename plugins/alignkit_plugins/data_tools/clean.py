"""Rows without duplicates, stock phrases, wrong languages and personal details.

The step `clean`, `alignkit data clean`, `data check` and `data browse` see the same faults.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from alignkit import Artifact, DataError, DataRef, Field, Group, Step, StepContext, StepData
from alignkit.contract.report import Report, Table
from alignkit.data.group import Origin, Response, group_id
from alignkit.host.plugins import load_plugins
from alignkit.recipe.yaml import plain_data
from alignkit_plugins.command_line.words import read_as
from alignkit_plugins.data_tools import near
from alignkit_plugins.data_tools.files import Row, groups_of, json_lines, read_rows, short
from alignkit_plugins.extras import check_extra
from alignkit_plugins.rewards.phrases import Phrases, plain
from alignkit_plugins.text.personal import examples, mapped, outline, redact
from alignkit_plugins.text.shown import shortened
from alignkit_plugins.text.spoken import all_turns
from alignkit_plugins.text.text_metrics import check_languages, language_of

# What models say of themselves in English, and what reviewers of data remove first (Vicuna's, ShareGPT's and
# OpenOrca's filters).
STOCK = re.compile(
    r"\b(?:as|i am|i['’]m|i am just|i['’]m just) an? (?:\w+ )?(?:ai(?: (?:model|assistant|chatbot)\b"
    r"|\b(?! (?!i\b|and\b|so\b|without\b|(?:developed|trained|created|made) by\b)\w))|(?:large )?language model\b)"
    r"|\bai language model\b|\bi(?: am|['’]m| was)(?: \w+,)?(?: an? (?:[\w-]+ ){0,3}(?:model|assistant|ai|chatbot),?)?"
    r" (?:developed|trained|created|made) by (?:openai|anthropic|google|meta)\b"
    r"|\bmy (?:knowledge|training)(?: data)? (?:cutoff|cut-off)\b|\bas of my last (?:knowledge |training )?update\b"
    r"|\bi (?:do not|don['’]t) have (?:personal (?:opinions|beliefs|experiences|feelings)|feelings or emotions)\b",
    re.IGNORECASE,
)
ON_HUB = re.compile(r"(?!\.\.?/|~/)[^/]+/[^/.]+")  # OWNER/NAME, and no path
SPOKEN = (
    "content",
    "value",
    "text",
    "prompt",
    "completion",
    "response",
    "responses",
    "chosen",
    "rejected",
    "output",
)
ACROSS: tuple[near.Kind, ...] = ("prompt", "response")  # what held-out data may share
REPEATED = {"duplicates", "near", "against"}  # rules that see what is there already


class Fault(NamedTuple):
    """Why a row is left out: the option that says so, and what it saw."""

    rule: str
    reason: str


class Rules(Phrases):
    """The rules by which rows are left out. Each rule looks at what the assistant says, unless it says
    otherwise.

    Without an option: answers such as `As an AI language model` in English, and rows that say the same as an
    earlier one, but for case, white space and typing.
    """

    near: float = Field(
        near.THRESHOLD,
        "drop rows at least this similar to an earlier one, with the same numbers; 0: none",
        ge=0,
        le=1,
    )
    languages: list[str] = Field(
        [], "drop answers in other languages than these (ISO 639-1), such as [en]; [] allows all"
    )
    personal: bool = Field(
        True,
        (
            "replace e-mail addresses, telephone numbers and keys in all texts by [e-mail], "
            "[phone], ***"
        ),
    )
    against: DataRef = Field(
        None, "held-out data; drop rows with its prompts or responses, or nearly equal ones"
    )

    def check(self, user: str) -> None:
        """Raise RunFailed for a package that is missing, or a language that nobody can tell."""
        if self.languages:
            check_extra(user, "data", "py3langid")
            check_languages(user, self.languages)

    def fault(self, row: Row) -> Fault | None:
        """The first thing that is wrong with a row by itself."""
        own = self.own
        if row.bad:
            return Fault("unreadable", row.bad)
        for group in row.groups:
            for response in group.responses:
                answer = all_turns(response, calls=False)
                if match := own.search(plain(answer)) if own else STOCK.search(answer):
                    return Fault("stock_phrases", f"says '{shortened(match[0])}'")
                if self.languages and (code := language_of(answer)) not in ("", *self.languages):
                    return Fault("languages", f"is in {code}")
        return None


@dataclass(frozen=True)
class Cleaned:
    """Rows after redaction, and why some of them are left out, by their places.

    redacted: by the places of rows that redaction has changed, what was replaced, as by `redact`.
    notes: what the format of a file decided about all rows.
    """

    rows: Sequence[Row]
    faults: Mapping[int, Fault]
    redacted: Mapping[int, Sequence[tuple[str, str]]]
    notes: Sequence[str] = ()

    @property
    def kept(self) -> list[Row]:
        """The rows that are left. Raises DataError if there are none."""
        kept = [row for at, row in enumerate(self.rows) if at not in self.faults]
        if not kept:
            counts = ", ".join(f"{rule} {count:,}" for rule, count in self.counts.items())
            raise DataError(f"no row is left: {counts}")
        return kept

    @property
    def counts(self) -> dict[str, int]:
        """How many rows each rule leaves out."""
        return dict(Counter(fault.rule for fault in self.faults.values()).most_common())

    @property
    def removed(self) -> list[dict[str, Any]]:
        """What was left out and why, for a file of JSON lines."""
        lines = []
        for at in sorted(self.faults):
            line = {"row": str(self.rows[at]), **self.faults[at]._asdict()}
            if self.rows[at].raw is not None:
                line["data"] = self.rows[at].raw
            lines.append(line)
        return lines

    def table(self, title: str = "", hidden: Callable[[str], str] = str) -> Table:
        """What became of the rows, and the first details that were replaced. hidden: how these are
        shown.
        """
        rows = [[f"left out: {rule}", f"{count:,}"] for rule, count in self.counts.items()]
        rows += [["kept", f"{len(self.rows) - len(self.faults):,}"]]
        rows += [["of these redacted", f"{len(self.redacted.keys() - self.faults.keys()):,}"]]
        found = []
        for at, parts in self.redacted.items():
            found += [(word, hidden(part), str(self.rows[at])) for word, part in parts]
        return Table(title, ["rows", "number"], rows, note="; ".join(examples(found)))


def cleaned(rows: Sequence[Row], rules: Rules, held_out: Sequence[Row] = ()) -> Cleaned:
    """Apply the rules to rows. held_out: those of `against`."""
    clean, changed = list(rows), dict[int, list[tuple[str, str]]]()
    for at, row in enumerate(rows if rules.personal else ()):
        clean[at] = redacted_row(row)
        if clean[at] != row:
            raw = row.raw or list(map(asdict, row.groups))
            redacted(raw, changed.setdefault(at, []))
    faults: dict[int, Fault] = {}
    left = list(clean)  # rows with a fault of their own are not compared
    for at, row in enumerate(clean):
        fault = rules.fault(row)
        if fault is not None:
            faults[at] = fault
            left[at] = replace(row, groups=())
    for kind in ACROSS:
        for match in near.leaks(left, held_out, kind, rules.near):
            faults[match.unit.row] = Fault(
                "against", f"has the {kind} of {held_out[match.other.row]}"
            )
    units = [unit for unit in near.units_of(left, "row") if unit.row not in faults]
    for match in near.repeated(units, rules.near):
        fault = Fault("near", f"is {match.similarity:.2f} similar to {clean[match.other.row]}")
        if match.similarity == 1.0:
            fault = Fault("duplicates", f"says the same as {clean[match.other.row]}")
        faults[match.unit.row] = fault
    return Cleaned(clean, faults, changed)


def cleaned_file(options: Any) -> tuple[list[Row], Cleaned]:
    """The rows that a step's options read, and what the rules make of them."""
    notes = list[str]()
    rows, held_out = read_rows(options.data, notes), list[Row]()
    if options.against:
        held_out = read_rows(options.against)
    return rows, replace(cleaned(rows, options, held_out), notes=notes)


class Clean(Step):
    """Keeps the first of rows that say the same. removed.jsonl lists what was left out, and why.

    A later stage reads what is left with `data: STAGE`.
    """

    class Options(Rules):
        data: DataRef = Field(description="rows to clean; other stages then read `data: STAGE`")

    options: Options
    packages = ("rensa", "py3langid")

    def check(self, folder: Path) -> None:
        self.options.check("step 'clean'")

    def check_data(self, data: StepData) -> None:
        for warning in self.options.warnings(data.load(self.options.data) or ()):
            data.say(f"warning: {warning}")

    def run(self, context: StepContext) -> Artifact:
        rows, held_out = rows_to_clean(context.load(self.options.data)), list[Row]()
        if self.options.against:
            held_out = rows_to_clean(context.load(self.options.against))
        done = cleaned(rows, self.options, held_out)
        groups = groups_of(done.kept)
        context.write_text("removed.jsonl", json_lines(done.removed))
        redacted = len(done.redacted.keys() - done.faults.keys())
        summary = {
            "rows": len(done.rows),
            "kept": len(groups),
            "removed": done.counts,
            "redacted": redacted,
        }
        return Artifact(groups=groups, summary=summary, report=Report([done.table(hidden=outline)]))


def named_rows(word: str, rules: Sequence[str] = ()) -> Clean.Options:
    """The options of a step `clean` of a word: a file, a folder, a hub data set, or YAML.

    rules: its other options, as KEY=VALUE.
    """
    load_plugins()
    value = plain_data(word, f"'{word}'")
    path = Path(value) if isinstance(value, str) else None
    if path and (path.is_dir() or (ON_HUB.fullmatch(str(value)) and not path.is_file())):
        value = {"hub": value}
    return read_as(Clean.Options, {"data": value}, "alignkit data", rules)[0]


def rows_to_clean(groups: Sequence[Group]) -> list[Row]:
    """A row for each group that was read."""
    rows = []
    for number, group in enumerate(groups, 1):
        origin = group.origin or Origin("row", number)
        rows.append(Row(short(origin.file), origin.row, None, (group,)))
    return rows


# Redaction


def redacted(value: Any, found: list[tuple[str, str]] | None = None) -> Any:
    """Plain data whose texts are without personal details. found: as in `redact`."""

    def change(text: str, name: str) -> str:
        # A word by itself may be a row's id, unless it is what somebody says.
        return text if text.isalnum() and name not in SPOKEN else redact(text, found)

    return mapped(value, change)


def redacted_row(row: Row) -> Row:
    """A row without personal details, as data and as groups."""
    return replace(
        row,
        raw=redacted(row.raw),
        groups=tuple(map(redacted_group, row.groups)),
        bad=redact(row.bad),
    )


def redacted_group(group: Group) -> Group:
    """A group without personal details. A response that changes loses the tokens it was sampled
    as.
    """
    prompt = redacted(group.prompt)
    responses = tuple(map(_redacted_response, group.responses))
    clean = replace(group, prompt=prompt, responses=responses, meta=redacted(group.meta))
    if clean == group:
        return group
    return replace(clean, id=group_id(prompt, responses, clean.tools))


def _redacted_response(response: Response) -> Response:
    turns = redacted(response.messages)
    clean = replace(response, text=redact(response.text), messages=turns)
    if clean == response:
        return response
    return replace(clean, tokens=None, logprobs=None, action_mask=None, tokenizer=None)

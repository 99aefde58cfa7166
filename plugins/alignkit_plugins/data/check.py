"""What files hold and repeat, and what of held-out data is in training data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignkit.data.group import Group
from alignkit.data.sources import DataSpec
from alignkit.recipe.schema import Recipe, Stage, keys_of, specs
from alignkit.report import Block, Report, Table
from alignkit.runs.fingerprint import RunData
from alignkit_plugins.compare.readable import percentage
from alignkit_plugins.data import near
from alignkit_plugins.data.clean import ACROSS, Clean, Rules, cleaned, rows_of
from alignkit_plugins.data.files import Row, name_of, no_stage, read_rows, short
from alignkit_plugins.formats.shown import counts, shortened
from alignkit_plugins.report import data_cards
from alignkit_plugins.report.tally import card

EXAMPLES = 5  # of each finding
REPEATED = ("duplicates", "near")
TRAINING = "training"


@dataclass(frozen=True)
class Part:
    """Rows with one role: training, validation, evaluation or gold."""

    file: str
    role: str
    rows: Sequence[Row]

    @property
    def name(self) -> str:
        """The file with its role."""
        return f"{self.file} ({self.role})"

    @property
    def groups(self) -> list[tuple[int, Sequence[Group]]]:
        """The groups of each row, with its place."""
        return [(at, row.groups) for at, row in enumerate(self.rows)]


@dataclass(frozen=True)
class Leak:
    """Rows of a held-out part whose prompts or responses are in a training part.

    equal, near: their numbers, each row once. of: all rows. remove: rows of the training part that
    have them.
    """

    held_out: str
    training: str
    what: near.Kind
    equal: int
    near: int
    of: int
    remove: int
    examples: Sequence[str]


@dataclass(frozen=True)
class Checked:
    """What a check has seen. files: what each part holds, and how many of its rows have a fault."""

    files: list[dict[str, Any]]
    leaks: list[Leak]

    @property
    def repeats(self) -> bool:
        """Whether a file repeats itself."""
        return any(rule in one["faults"] for one in self.files for rule in REPEATED)

    def facts(self) -> dict[str, Any]:
        """What was seen, as plain data."""
        return {"files": self.files, "leaks": [asdict(leak) for leak in self.leaks]}

    def report(self) -> Report:
        """What was looked at, also if nothing is wrong."""
        blocks: list[Block] = []
        for one in self.files:
            lines = [f"{one['name']} ({one['stage']}): {one['counts']}"]
            for fault, count in one["faults"].items():
                lines.append(f"  {fault.replace('_', ' ')}: {percentage(count, one['rows'])}")
            blocks.append("\n".join([*lines, *one["examples"]]))
        rows = []
        for leak in self.leaks:
            share = f"{(leak.equal + leak.near) / leak.of:.1%}"
            numbers = [f"{leak.equal:,}", f"{leak.near:,}", share, f"{leak.remove:,}"]
            rows.append([leak.held_out, leak.training, leak.what, *numbers])
        columns = ["rows of", "are in", "by", "equal", "near", "share", "training rows"]
        blocks += data_cards.tables(self.files)
        blocks += [Table("leaks", columns, rows, keys=3)] if rows else ["nothing leaks"]
        blocks += ["\n".join(leak.examples) for leak in self.leaks]
        return Report(blocks)


def check(parts: Sequence[Part], rules: Rules) -> Checked:
    """Look at each part, and compare each training part with all that are held out."""
    leaks: list[Leak] = []
    for mine in parts:
        for other in parts:
            for kind in ACROSS if mine.role == TRAINING != other.role else ():
                leaks += _leaks(mine, other, kind, rules.near)
    return Checked([_held(part, rules) for part in parts], leaks)


def _held(part: Part, rules: Rules) -> dict[str, Any]:
    """What a part holds, and what the rules of `clean` see in it."""
    done = cleaned(part.rows, rules)
    groups = [group for row in part.rows for group in row.groups]
    faults = {**done.counts, "personal": len(done.redacted)}
    examples = []
    for at, fault in done.faults.items():
        if fault.rule in (*REPEATED, "unreadable"):
            examples.append(f"  {part.rows[at]}: {fault.rule}: {fault.reason}")
    return {
        **{"stage": part.role, "name": part.file, **card(groups), "examples": examples[:EXAMPLES]},
        "counts": counts(groups, faults.get("unreadable", 0)),
        "faults": {rule: count for rule, count in faults.items() if count},
    }


def _leaks(mine: Part, other: Part, kind: near.Kind, threshold: float) -> Iterator[Leak]:
    matches, back = near.leaks(mine.groups, other.groups, kind, threshold)
    rows = {match.unit.row for match in matches}
    equal = {match.unit.row for match in matches if match.similarity == 1}
    examples = []
    for match in sorted(matches, key=lambda match: -match.similarity)[:EXAMPLES]:
        like = "equals" if match.similarity == 1 else f"is {match.similarity:.2f} similar to"
        where, there = _place(other, match.unit), _place(mine, match.other)
        examples.append(f"{kind} of {where} {like} {there}: {shortened(match.unit.text)}")
    if rows:
        remove = len({match.unit.row for match in back})
        near_rows = len(rows) - len(equal)
        yield Leak(
            other.name, mine.name, kind, len(equal), near_rows, len(other.rows), remove, examples
        )


def _place(part: Part, unit: near.Unit) -> str:
    row, turn = part.rows[unit.row], f" (turn {unit.turn})" if unit.turn > 2 else ""
    return f"{Path(row.file).name}:{row.number}{turn}"


def part_of(spec: DataSpec, role: str) -> Part:
    """All rows of a data entry."""
    return Part(name_of(spec), role, read_rows(spec))


def parts_of_recipe(recipe: Recipe) -> list[Part]:
    """Every data entry of a recipe, once for each role: what `clean` leaves of it, or all of it.

    Data that other stages make are not there yet.
    """
    made: dict[str, str] = {}  # what the data of a stage are for
    entries: list[tuple[DataSpec, str, Any]] = []
    for stage in reversed(recipe.stages.values()):
        options: Any = stage.component.options
        is_clean = isinstance(options, Clean.Options)
        for spec in [options.data] if is_clean else specs([stage.settings, options], DataSpec):
            role = _role(stage, spec) or made.get(stage.name, "evaluation")
            files = []
            for source in spec.sources:
                if source.stage is None:
                    files.append(source)
                elif made.get(source.stage) != TRAINING:
                    made[source.stage] = role
            entry = DataSpec(tuple(files)), role, options if is_clean else None
            if files and entry not in entries:
                entries.append(entry)
    parts = []
    data = RunData(no_stage, recipe.seed)
    for spec, role, rules in reversed(entries):
        loaded = data.read(spec)
        for side, groups in ((role, loaded.groups), ("validation", loaded.validation)):
            rows = rows_of(groups, recipe.folder)
            if rows and rules is not None:
                held_out = data.read(rules.against).groups if rules.against else ()
                rows = cleaned(rows, rules, rows_of(held_out)).kept
            name = ", ".join(short(source.name, recipe.folder) for source in spec.sources)
            parts += [Part(name, side, rows)] if rows else []
    return parts


def _role(stage: Stage, spec: DataSpec) -> str:
    """What a stage does with an entry; empty if it makes rows of it."""
    keys = (keys_of(options, spec) for options in (stage.settings, stage.component.options))
    names = {str(key) for found in keys for key in found or ()}
    for role in ("gold", "validation"):
        if role in names:
            return role
    return TRAINING if stage.kind == "algorithm" or "few_shot" in names else ""

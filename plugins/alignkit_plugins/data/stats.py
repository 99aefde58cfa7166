"""What a file holds and repeats, and what of held-out data is in training data, by prompt and
response.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from alignkit.data.sources import DataSpec
from alignkit.recipe.schema import Recipe, Stage, keys_of, specs
from alignkit.report import Block, Table
from alignkit.runs.fingerprint import RunData
from alignkit_plugins.compare.readable import percentage
from alignkit_plugins.data import near
from alignkit_plugins.data.clean import Clean
from alignkit_plugins.data.found_rows import Row, no_stage, read_rows, short
from alignkit_plugins.data.near import Kind, Match, Units
from alignkit_plugins.data.rules import ACROSS, Rules, redacted
from alignkit_plugins.formats.shown import shortened
from alignkit_plugins.report import data_card as data_cards
from alignkit_plugins.report.data_card import card

EXAMPLES = 5  # of each finding
TRAINING = "training"
PERSONAL = "personal details"


@dataclass(frozen=True)
class Part:
    """Rows with one role: training, validation, evaluation or gold. file: their name. unread: about
    bad rows.
    """

    file: str
    role: str
    rows: Sequence[Row]
    unread: str = ""

    @property
    def name(self) -> str:
        return f"{self.file} ({self.role})"

    def units(self, kind: Kind) -> Units:
        return Units.of(((at, row.groups) for at, row in enumerate(self.rows) if row.groups), kind)

    def facts(self) -> dict[str, Any]:
        """What the rows hold: `card` of `tally`, and how many rows have what a rule of `clean`
        sees.
        """
        rules = Rules.model_validate({})
        faults: Counter[str] = Counter()
        for row in self.rows:
            if fault := rules.fault(row.groups):
                faults[fault.rule.replace("_", " ")] += 1
            if redacted(row.raw) != row.raw:
                faults[PERSONAL] += 1
        groups = [group for row in self.rows for group in row.groups]
        return {
            "stage": self.role,
            "name": self.file,
            **card(groups),
            "unread": self.unread,
            "faults": dict(faults),
        }


@dataclass(frozen=True)
class Finding:
    """Rows of a part that repeat something. what: row, prompt or response. equal, near: their
    numbers, each row once.

    of: all rows. training: of a leak, the part that has the rows, too, and remove: how many rows of
    it that is.
    """

    file: str
    what: str
    training: str
    equal: int
    near: int
    of: int
    remove: int
    examples: Sequence[str]


@dataclass
class Checked:
    """The result of a check: what each part holds, and what is repeated."""

    parts: list[dict[str, Any]]
    findings: list[Finding] = field(default_factory=list)

    @property
    def leaks(self) -> bool:
        return any(one.training for one in self.findings)

    def facts(self) -> dict[str, Any]:
        return {"files": self.parts, "findings": [asdict(one) for one in self.findings]}

    def blocks(self) -> list[Block]:
        """The report; what was looked at, also if nothing was found."""
        lines = []
        for one in self.parts:
            lines.append(
                f"{one['name']} ({one['stage']}): {one['rows']:,} row{'s' * (one['rows'] != 1)}"
            )
            lines += [f"  {one['unread']}"] if one["unread"] else []
            lines += [
                f"  {rule}: {percentage(count, one['rows'])}"
                for rule, count in one["faults"].items()
            ]
        blocks: list[Block] = ["\n".join(lines), *data_cards.tables(self.parts)]
        if not self.findings:
            return [*blocks, "nothing is repeated"]
        rows = []
        for found in self.findings:
            counts = [
                f"{found.equal:,}",
                f"{found.near:,}",
                f"{(found.equal + found.near) / found.of:.1%}",
            ]
            remove = f"{found.remove:,}" if found.training else ""
            rows.append([found.file, found.training or "itself", found.what, *counts, remove])
        head = ["rows of", "are in", "by", "equal", "near", "share", "training rows"]
        return [
            *blocks,
            Table("repetition", head, rows, keys=3),
            *("\n".join(f.examples) for f in self.findings),
        ]


def check(parts: Sequence[Part], threshold: float) -> Checked:
    """Compare every training part with every other one, and each part with itself. threshold: 0:
    only equal texts.
    """
    checked = Checked([part.facts() for part in parts])
    for mine in parts:
        for other in parts:
            for kind in ACROSS if mine.role == TRAINING != other.role else ():
                checked.findings += _leaks(mine, other, kind, threshold)
    for part in parts:
        rows = part.units("row")
        if matches := near.repeated(rows, threshold):
            checked.findings.append(_finding("row", matches, part, rows, part, rows))
    return checked


def _leaks(mine: Part, other: Part, kind: Kind, threshold: float) -> Iterator[Finding]:
    training, held_out = mine.units(kind), other.units(kind)
    training = training.rare(near.COMMON) if kind == "response" else training
    if matches := near.shared(held_out, training, threshold):
        remove = {
            int(training.rows[match.unit]) for match in near.shared(training, held_out, threshold)
        }
        yield _finding(kind, matches, other, held_out, mine, training, len(remove))


def _finding(
    what: str,
    matches: Sequence[Match],
    part: Part,
    mine: Units,
    other: Part,
    theirs: Units,
    remove: int = 0,
) -> Finding:
    """The numbers of rows, and the first examples of those that are most alike."""
    rows = {int(mine.rows[match.unit]) for match in matches}
    equal = {int(mine.rows[match.unit]) for match in matches if match.similarity == 1}
    examples = []
    for match in sorted(matches, key=lambda match: -match.similarity)[:EXAMPLES]:
        places = [
            _place(one, units, at)
            for one, units, at in ((part, mine, match.unit), (other, theirs, match.other))
        ]
        like = "equals" if match.similarity == 1 else f"is {match.similarity:.2f} similar to"
        examples.append(
            f"{what} of {places[0]} {like} {places[1]}: {shortened(mine.texts[match.unit])}"
        )
    training = other.name if other is not part else ""
    return Finding(
        part.name, what, training, len(equal), len(rows - equal), len(part.rows), remove, examples
    )


def _place(part: Part, units: Units, at: int) -> str:
    row, turn = part.rows[int(units.rows[at])], int(units.turns[at])
    return f"{Path(row.file).name}:{row.number}{f' (turn {turn})' if turn > 2 else ''}"


# Where parts are from


def part_of(spec: DataSpec, role: str, name: str = "") -> Part:
    """All rows of a data entry. name: instead of that of its files."""
    read = read_rows(spec)
    return Part(name or read.name, role, read.rows, read.unread)


def parts_of_recipe(recipe: Recipe) -> list[Part]:
    """Every file of a recipe, once for each role that it has: what `clean` leaves of it, and what
    all others read.

    Data that other stages make are not there yet.
    """
    roles: list[tuple[DataSpec, str]] = []
    parts: list[Part] = []
    for stage in recipe.stages.values():
        for spec in _specs(stage):
            files = DataSpec(tuple(source for source in spec.sources if not source.stage))
            entry = files, _role(recipe, stage, spec)
            if files.sources and entry not in roles:
                roles.append(entry)
                parts += [
                    _cleaned(part, stage.component.options, recipe)
                    for part in _parts(*entry, recipe)
                ]
    return parts


def _specs(stage: Stage) -> list[DataSpec]:
    """The data that a stage uses; what `clean` compares them with is none."""
    options = stage.component.options
    return (
        [options.data]
        if isinstance(options, Clean.Options)
        else specs([stage.settings, options], DataSpec)
    )


def _cleaned(part: Part, options: Any, recipe: Recipe) -> Part:
    """What a stage leaves of a part if it cleans it; else the part."""
    if not isinstance(options, Clean.Options):
        return part
    others = RunData(no_stage, recipe.seed).read(options.against).groups if options.against else ()
    faults = options.faults(
        [row.groups for row in part.rows], part.rows, [[group] for group in others]
    )
    return replace(part, rows=[row for at, row in enumerate(part.rows) if at not in faults])


def _role(recipe: Recipe, stage: Stage, spec: DataSpec) -> str:
    """What a stage does with an entry; if it makes rows of it, what the stages do that read
    these.
    """
    keys = next(
        (
            keys
            for options in (stage.settings, stage.component.options)
            if (keys := keys_of(options, spec))
        ),
        (),
    )
    names = set(map(str, keys))
    if "gold" in names:
        return "gold"
    if "validation" in names:
        return "validation"
    if stage.kind == "algorithm" or "few_shot" in names:
        return TRAINING
    read = [
        _role(recipe, other, theirs)
        for other in recipe.stages.values()
        for theirs in _specs(other)
        if any(source.stage == stage.name for source in theirs.sources)
    ]
    return TRAINING if TRAINING in read else next(iter(read), "evaluation")


def _parts(spec: DataSpec, role: str, recipe: Recipe) -> Iterator[Part]:
    """An entry, or both sides of one that is split, as the recipe names its files."""
    name = ", ".join(short(source.name, recipe.folder) for source in spec.sources)
    if not any(source.validation or source.part for source in spec.sources):
        yield part_of(spec, role, name)
        return
    loaded = RunData(no_stage, recipe.seed).read(spec)
    for side, groups in ((role, loaded.groups), ("validation", loaded.validation)):
        rows = [
            Row(short(group.origin.file), group.origin.row, None, (group,))
            for group in groups
            if group.origin
        ]
        if rows:
            yield Part(name, side, rows)

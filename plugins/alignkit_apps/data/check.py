"""What a file repeats, and what of held-out data is in training data: equal or nearly equal, by prompt and response."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from alignkit.data.describe import shortened
from alignkit.data.group import Group
from alignkit.data.sources import DataSpec
from alignkit.io.atomic import whole_file
from alignkit.recipe.schema import Recipe, Stage, keys_of, specs
from alignkit.report import Block, Table
from alignkit.runs.data import RunData
from alignkit_apps.cleaning import near
from alignkit_apps.cleaning.near import Kind, Match, Units
from alignkit_apps.data.corpus import Corpus, corpus_of, no_stage, short, units, unread_text

EXAMPLES = 5  # of each finding
COMMON = 5  # training rows with the same answer; one that more give is no leak, such as a refusal
ACROSS: tuple[Kind, ...] = ("prompt", "response")
TRAINING = "training"


@dataclass(frozen=True)
class Part:
    """Rows with one role. name: of the file. columns: of its texts, as `near.table` has them. rows: their number.

    role: training, validation, evaluation or gold. where(i): `file:row`. text(i): of a text.
    """

    name: str
    role: str
    columns: Mapping[str, Any]
    rows: int
    where: Any
    text: Any

    @property
    def title(self) -> str:
        return f"{self.name} ({self.role})"

    def units(self, kind: Kind) -> Units:
        return Units.of(self.columns, kind, self.text)


@dataclass
class Finding:
    """Rows of a file that repeat something. what: row, prompt or response. equal, near: their numbers, each row once.

    training: of a leak, the file that has the rows, too, and remove: how many rows of it that is.
    """

    file: str
    what: str
    equal: int
    near: int
    of: int
    training: str = ""
    remove: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return self.equal + self.near


@dataclass
class Checked:
    """The result of a check. files: their rows. unread: of rows that no format reads, how many.

    marks: training rows that leak, with why.
    """

    files: dict[str, int]
    findings: list[Finding] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)
    marks: dict[tuple[str, int], str] = field(default_factory=dict)

    def as_json(self) -> str:
        facts = {"files": self.files, "unread": self.unread, "findings": [asdict(one) for one in self.findings]}
        return json.dumps(facts, indent=1, ensure_ascii=False)

    def blocks(self) -> list[Block]:
        """The report; what was looked at, also if nothing was found."""
        leaks = [one for one in self.findings if one.training]
        own = [one for one in self.findings if not one.training]
        blocks: list[Block] = ["\n".join(f"{name}: {rows:,} rows" for name, rows in self.files.items())]
        if self.unread:
            blocks.append("\n".join(f"{name}: {text}" for name, text in self.unread.items()))
        if leaks:
            cells = [[f.file, f.training, f.what, *_numbers(f), f"{f.remove:,}"] for f in leaks]
            head = ["held out", "is in", "what", "equal", "near", "share", "training rows"]
            blocks.append(Table("held-out rows that are in training data", head, cells, keys=3))
        if own:
            head = ["file", "equal", "near", "share"]
            blocks.append(
                Table("rows that repeat an earlier one of the file", head, [[f.file, *_numbers(f)] for f in own])
            )
        blocks += ["\n".join(one.examples) for one in (*leaks, *own)]
        return blocks if self.findings else [*blocks, "nothing is repeated"]


def _numbers(found: Finding) -> list[str]:
    return [f"{found.equal:,}", f"{found.near:,}", f"{found.rows / max(1, found.of):.1%}"]


def check(parts: Sequence[Part], threshold: float | None) -> Checked:
    """Compare every training part with every other one, and each part with itself."""
    parts = _briefly_named(parts)
    checked = Checked({part.title: part.rows for part in parts})
    training = [part for part in parts if part.role == TRAINING]
    for mine in training:
        for other in parts:
            if other.role != TRAINING:
                for kind in ACROSS:
                    _leaks(mine, other, kind, threshold, checked)
    for part in parts:
        if text := unread(part):
            checked.unread[part.title] = text
        rows = part.units("row")
        if matches := near.repeated(rows, threshold):
            checked.findings.append(
                _finding(Finding(part.title, "row", 0, 0, part.rows), matches, part, rows, part, rows)
            )
    return checked


def _briefly_named(parts: Sequence[Part]) -> list[Part]:
    """The parts without folders in their names, where these are not needed to tell them apart."""
    brief = [replace(part, name=", ".join(Path(name).name for name in part.name.split(", "))) for part in parts]
    counts = Counter(part.title for part in brief)
    return [one if counts[one.title] == 1 else part for one, part in zip(brief, parts, strict=True)]


def _leaks(mine: Part, other: Part, kind: Kind, threshold: float | None, checked: Checked) -> None:
    training, held_out = mine.units(kind), other.units(kind)
    training = training.rare(COMMON) if kind == "response" else training
    if not (matches := near.shared(held_out, training, threshold)):
        return
    back = near.shared(training, held_out, threshold)
    for match in back:
        row = training.rows[match.unit]
        file, place = other.where(int(held_out.rows[match.other]))
        why = f"{kind} of {file}:{place}, {match.similarity:.2f} similar"
        checked.marks.setdefault(mine.where(int(row)), why)
    found = Finding(other.title, kind, 0, 0, other.rows, mine.title, len({int(training.rows[m.unit]) for m in back}))
    checked.findings.append(_finding(found, matches, other, held_out, mine, training))


def _finding(found: Finding, matches: Sequence[Match], part: Part, mine: Units, other: Part, theirs: Units) -> Finding:
    """The finding with its numbers of rows, and the first examples of those that are most alike."""
    rows = {int(mine.rows[match.unit]) for match in matches}
    equal = {int(mine.rows[match.unit]) for match in matches if match.similarity == 1}
    found.equal, found.near = len(equal), len(rows - equal)
    for match in sorted(matches, key=lambda match: -match.similarity)[:EXAMPLES]:
        places = [_place(one, units, at) for one, units, at in ((part, mine, match.unit), (other, theirs, match.other))]
        like = "equals" if match.similarity == 1 else f"is {match.similarity:.2f} similar to"
        found.examples.append(f"{found.what} of {places[0]} {like} {places[1]}: {shortened(mine.text(match.unit))}")
    return found


def _place(part: Part, units: Units, at: int) -> str:
    file, row = part.where(int(units.rows[at]))
    turn = int(units.turns[at])
    return f"{Path(file).name}:{row}{f' (turn {turn})' if turn > 2 else ''}"


# Where parts are from


def part_of(corpus: Corpus, role: str) -> Part:
    """All rows of a corpus."""
    texts = units(corpus)
    return Part(corpus.name, role, texts, len(corpus.rows), corpus.where, texts.text)


def part_of_groups(name: str, role: str, groups: Sequence[Group]) -> Part:
    """Rows in memory: one side of a file that a recipe splits."""
    columns = near.table((at, near.units_of([group])) for at, group in enumerate(groups))
    origins = [(short(group.origin.file), group.origin.row) if group.origin else (name, 0) for group in groups]
    return Part(short(name), role, columns, len(groups), origins.__getitem__, columns["text"].__getitem__)


def parts_of_recipe(recipe: Recipe) -> list[Part]:
    """Every file of a recipe, once for each role that it has. Data that stages make are not there yet."""
    made = {source.stage for stage in recipe.stages.values() for spec in _specs(stage) for source in spec.sources}
    roles: list[tuple[DataSpec, str]] = []
    for stage in recipe.stages.values():
        for spec in _specs(stage):
            entry = spec, _role(stage, spec, stage.name in made)
            if entry not in roles and not any(source.stage for source in spec.sources):
                roles.append(entry)
    return [part for spec, role in roles for part in _parts(spec, role, recipe.seed)]


def _specs(stage: Stage) -> list[DataSpec]:
    return specs([stage.settings, stage.component.options], DataSpec)


def _role(stage: Stage, spec: DataSpec, feeds: bool) -> str:
    """What a stage does with an entry. feeds: whether other stages read the rows that it makes."""
    keys = next((keys for options in (stage.settings, stage.component.options) if (keys := keys_of(options, spec))), ())
    names = {str(key): key for key in keys}
    if "gold" in names or "gold_prompts" in names:
        return "gold"
    if "validation" in names:
        return "validation"
    learns = stage.kind == "algorithm" or feeds or "examples" in names
    return TRAINING if learns else "evaluation"


def _parts(spec: DataSpec, role: str, seed: int) -> Iterable[Part]:
    """An entry, or both sides of one that is split."""
    if not any(source.validation for source in spec.sources):
        yield part_of(corpus_of(spec), role)
        return
    name = ", ".join(source.name for source in spec.sources)
    loaded = RunData(no_stage, seed).read(spec)
    for side, groups in ((role, loaded.groups), ("validation", loaded.validation)):
        if groups:
            yield part_of_groups(name, side, groups)


def unread(part: Part) -> str:
    """How many rows cannot be read, and what is wrong with the first; empty if there are none."""
    bad = part.units("unread")
    return unread_text(len(bad.rows), part.where(int(bad.rows[0])), bad.text(0)) if len(bad.rows) else ""


def write_marks(checked: Checked, out: Path) -> None:
    """The training rows that leak, as `alignkit data clean --marks` reads them."""
    with whole_file(out) as file:
        for (name, row), why in sorted(checked.marks.items()):
            file.write((json.dumps({"file": name, "row": row, "reason": why}, ensure_ascii=False) + "\n").encode())

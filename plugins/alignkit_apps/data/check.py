"""What a file repeats, and what of held-out data is in training data: equal or nearly equal, by prompt and response."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from alignkit.data.describe import shortened
from alignkit.data.group import Group
from alignkit.data.sources import DataSpec
from alignkit.errors import DataError
from alignkit.io.atomic import whole_file
from alignkit.recipe.schema import Recipe, Stage, keys_of, specs
from alignkit.report import Block, Table
from alignkit.runs.data import RunData
from alignkit_apps.data.corpus import Corpus, as_json, corpus_of, no_stage, short, units, unread_text
from alignkit_plugins.data import near
from alignkit_plugins.data.near import Kind, Match, Units

EXAMPLES = 5  # of each finding
COMMON = 5  # training rows with the same answer; one that more give is no leak, such as a refusal
ACROSS: tuple[Kind, ...] = ("prompt", "response")
TRAINING = "training"


@dataclass(frozen=True)
class Part:
    """Rows with one role. file: their name. texts: the Arrow table of `near.table`. rows: their number.

    role: training, validation, evaluation or gold. where(i): a row's file and number.
    """

    file: str
    role: str
    texts: Any
    rows: int
    where: Callable[[int], tuple[str, int]]

    @property
    def name(self) -> str:
        return f"{self.file} ({self.role})"

    def units(self, kind: Kind) -> Units:
        return Units.of(self.texts, kind)


@dataclass(frozen=True)
class Finding:
    """Rows of a part that repeat something. what: row, prompt or response. equal, near: their numbers, each row once.

    of: all rows. training: of a leak, the part that has the rows, too, and remove: how many rows of it that is.
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
    """The result of a check. files: their rows. unread: of rows that no format reads, how many.

    marks: training rows that leak, with why.
    """

    files: dict[str, int]
    findings: list[Finding] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)
    marks: dict[tuple[str, int], str] = field(default_factory=dict)

    @property
    def leaks(self) -> bool:
        return any(one.training for one in self.findings)

    def facts(self) -> dict[str, Any]:
        return {"files": self.files, "unread": self.unread, "findings": [asdict(one) for one in self.findings]}

    def blocks(self) -> list[Block]:
        """The report; what was looked at, also if nothing was found."""
        files = (f"{name}: {rows:,} row{'s' * (rows != 1)}" for name, rows in self.files.items())
        blocks: list[Block] = ["\n".join(files)]
        blocks += [f"{name}: {text}" for name, text in self.unread.items()]
        cells = [
            [one.file, one.training or "itself", one.what, f"{one.equal:,}", f"{one.near:,}",
             f"{(one.equal + one.near) / one.of:.1%}", f"{one.remove:,}" if one.training else ""]
            for one in self.findings
        ]  # fmt: skip
        if not cells:
            return [*blocks, "nothing is repeated"]
        head = ["rows of", "are in", "by", "equal", "near", "share", "training rows"]
        return [*blocks, Table("repetition", head, cells, keys=3), *("\n".join(f.examples) for f in self.findings)]


def check(parts: Sequence[Part], threshold: float) -> Checked:
    """Compare every training part with every other one, and each part with itself. threshold: 0: only equal texts.

    Raises DataError for a part of which no row can be read: nothing could be compared.
    """
    checked = Checked({part.name: part.rows for part in parts})
    for mine in parts:
        for other in parts:
            for kind in ACROSS if mine.role == TRAINING != other.role else ():
                _leaks(mine, other, kind, threshold, checked)
    for part in parts:
        bad, rows = part.units("unread"), part.units("row")
        if len(bad.rows):
            checked.unread[part.name] = unread_text(len(bad.rows), part.where(int(bad.rows[0])), bad.text(0))
        if not len(rows.rows):
            raise DataError(f"{part.name}: no usable row; {checked.unread[part.name]}")
        if matches := near.repeated(rows, threshold):
            checked.findings.append(_finding("row", matches, part, rows, part, rows))
    return checked


def _leaks(mine: Part, other: Part, kind: Kind, threshold: float, checked: Checked) -> None:
    training, held_out = mine.units(kind), other.units(kind)
    training = training.rare(COMMON) if kind == "response" else training
    if not (matches := near.shared(held_out, training, threshold)):
        return
    remove = set()
    for match in near.shared(training, held_out, threshold):
        row = int(training.rows[match.unit])
        file, place = other.where(int(held_out.rows[match.other]))
        checked.marks.setdefault(mine.where(row), f"{kind} of {file}:{place}, {match.similarity:.2f} similar")
        remove.add(row)
    checked.findings.append(_finding(kind, matches, other, held_out, mine, training, len(remove)))


def _finding(
    what: str, matches: Sequence[Match], part: Part, mine: Units, other: Part, theirs: Units, remove: int = 0
) -> Finding:
    """The numbers of rows, and the first examples of those that are most alike."""
    rows = {int(mine.rows[match.unit]) for match in matches}
    equal = {int(mine.rows[match.unit]) for match in matches if match.similarity == 1}
    examples = []
    for match in sorted(matches, key=lambda match: -match.similarity)[:EXAMPLES]:
        places = [_place(one, units, at) for one, units, at in ((part, mine, match.unit), (other, theirs, match.other))]
        like = "equals" if match.similarity == 1 else f"is {match.similarity:.2f} similar to"
        examples.append(f"{what} of {places[0]} {like} {places[1]}: {shortened(mine.text(match.unit))}")
    training = other.name if other is not part else ""
    return Finding(part.name, what, training, len(equal), len(rows - equal), part.rows, remove, examples)


def _place(part: Part, units: Units, at: int) -> str:
    file, row = part.where(int(units.rows[at]))
    turn = int(units.turns[at])
    return f"{Path(file).name}:{row}{f' (turn {turn})' if turn > 2 else ''}"


# Where parts are from


def part_of(corpus: Corpus, role: str) -> Part:
    """All rows of a corpus."""
    return Part(corpus.name, role, units(corpus), len(corpus.rows), corpus.where)


def _part_of_groups(name: str, role: str, groups: Sequence[Group]) -> Part:
    """Rows in memory: one side of a file that a recipe splits."""
    import pyarrow

    texts = pyarrow.table(near.table((at, near.units_of([group])) for at, group in enumerate(groups)))
    origins = [(short(group.origin.file), group.origin.row) if group.origin else (name, 0) for group in groups]
    return Part(name, role, texts, len(groups), origins.__getitem__)


def parts_of_recipe(recipe: Recipe) -> list[Part]:
    """Every file of a recipe, once for each role that it has. Data that stages make are not there yet."""
    roles: list[tuple[DataSpec, str]] = []
    for stage in recipe.stages.values():
        for spec in _specs(stage):
            files = DataSpec(tuple(source for source in spec.sources if not source.stage))
            entry = files, _role(recipe, stage, spec)
            if files.sources and entry not in roles:
                roles.append(entry)
    return [part for spec, role in roles for part in _parts(spec, role, recipe)]


def _specs(stage: Stage) -> list[DataSpec]:
    return specs([stage.settings, stage.component.options], DataSpec)


def _role(recipe: Recipe, stage: Stage, spec: DataSpec) -> str:
    """What a stage does with an entry; if it makes rows of it, what the stages do that read these."""
    keys = next((keys for options in (stage.settings, stage.component.options) if (keys := keys_of(options, spec))), ())
    names = {str(key): key for key in keys}
    if "gold" in names or "gold_prompts" in names:
        return "gold"
    if "validation" in names:
        return "validation"
    if stage.kind == "algorithm" or "examples" in names:
        return TRAINING
    read = [
        _role(recipe, other, theirs)
        for other in recipe.stages.values()
        for theirs in _specs(other)
        if any(source.stage == stage.name for source in theirs.sources)
    ]
    return TRAINING if TRAINING in read else next(iter(read), "evaluation")


def _parts(spec: DataSpec, role: str, recipe: Recipe) -> Iterable[Part]:
    """An entry, or both sides of one that is split, as the recipe names its files."""
    name = ", ".join(short(source.name, recipe.folder) for source in spec.sources)
    if not any(source.validation for source in spec.sources):
        yield replace(part_of(corpus_of(spec), role), file=name)
        return
    loaded = RunData(no_stage, recipe.seed).read(spec)
    for side, groups in ((role, loaded.groups), ("validation", loaded.validation)):
        if groups:
            yield _part_of_groups(name, side, groups)


def write_marks(checked: Checked, out: Path) -> None:
    """The training rows that leak, as the rule `marks` reads them."""
    with whole_file(out) as file:
        rows = sorted(checked.marks.items())
        file.writelines(as_json({"file": name, "row": row, "reason": why}) for (name, row), why in rows)

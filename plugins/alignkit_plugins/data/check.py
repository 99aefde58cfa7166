"""What files hold and repeat, and what of held-out data is in training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.data.sources import DataSpec
from alignkit.recipe.schema import Recipe, Stage, keys_of, specs
from alignkit.report import Block, Report, Table
from alignkit.runs.fingerprint import RunData
from alignkit_plugins.compare.readable import percentage
from alignkit_plugins.data import near
from alignkit_plugins.data.clean import ACROSS, Clean, Rules, cleaned, rows_of
from alignkit_plugins.data.files import Row, groups_of, name_of, no_stage, read_rows, short
from alignkit_plugins.formats.shown import counts, shortened
from alignkit_plugins.report.data_card import card, tables

EXAMPLES = 5  # of each finding
REPEATED = ("duplicates", "near")
TRAINING = "training"


class Part(NamedTuple):
    """Rows with one role: training, validation, evaluation or gold."""

    file: str
    role: str
    rows: Sequence[Row]


def check(parts: Sequence[Part], rules: Rules) -> dict[str, Any]:
    """Look at each part, and compare each training part with all that are held out.

    Returns `files`: what each holds, and how many of its rows have a fault; and `leaks`.
    """
    leaks = []
    for mine in parts:
        for other in parts:
            for kind in ACROSS if mine.role == TRAINING != other.role else ():
                leak = _leak(mine, other, kind, rules.near)
                if leak["equal"] or leak["near"]:
                    leaks.append(leak)
    return {"files": [_held(part, rules) for part in parts], "leaks": leaks}


def _held(part: Part, rules: Rules) -> dict[str, Any]:
    """What a part holds, and what the rules of `clean` see in it."""
    done = cleaned(part.rows, rules)
    groups = groups_of(part.rows)
    faults = {**done.counts, "personal": len(done.redacted)}
    examples = []
    for at, fault in done.faults.items():
        if fault.rule in (*REPEATED, "unreadable"):
            examples.append(f"  {part.rows[at]}: {fault.rule}: {fault.reason}")
    words = counts(groups, faults.get("unreadable", 0))
    facts = {"stage": part.role, "name": part.file, "counts": words, "total": len(part.rows)}
    return {**facts, **card(groups), "faults": faults, "examples": examples[:EXAMPLES]}


def _leak(mine: Part, other: Part, kind: near.Kind, threshold: float) -> dict[str, Any]:
    """Rows of a held-out part whose prompts or responses are in a training part.

    equal, near: their numbers, each row once. of: all rows. remove: rows of the training part that
    have them.
    """
    matches, back = near.leaks(mine.rows, other.rows, kind, threshold)
    rows = {match.unit.row for match in matches}
    equal = {match.unit.row for match in matches if match.similarity == 1}
    examples = []
    for match in sorted(matches, key=lambda match: -match.similarity)[:EXAMPLES]:
        like = f"is {match.similarity:.2f} similar to".replace("is 1.00 similar to", "equals")
        where, there = _place(other, match.unit), _place(mine, match.other)
        examples.append(f"{kind} of {where} {like} {there}: {shortened(match.unit.text)}")
    return {
        "held_out": f"{other.file} ({other.role})",
        "training": f"{mine.file} ({mine.role})",
        "what": kind,
        "equal": len(equal),
        "near": len(rows - equal),
        "of": len(other.rows),
        "remove": len({match.unit.row for match in back}),
        "examples": examples,
    }


def _place(part: Part, unit: near.Unit) -> str:
    row, turn = part.rows[unit.row], f" (turn {unit.turn})" if unit.turn > 2 else ""
    return f"{Path(row.file).name}:{row.number}{turn}"


def report(checked: Mapping[str, Any]) -> Report:
    """What was looked at, also if nothing is wrong."""
    blocks: list[Block] = []
    for one in checked["files"]:
        lines = [f"{one['name']} ({one['stage']}): {one['counts']}"]
        for fault, count in one["faults"].items():
            if count:
                share = percentage(count, one["total"])
                lines.append(f"  {fault.replace('_', ' ')}: {count:,} ({share})")
        blocks.append("\n".join([*lines, *one["examples"]]))
    blocks += tables(checked["files"])
    rows, examples = [], []
    for leak in checked["leaks"]:
        share = f"{(leak['equal'] + leak['near']) / leak['of']:.1%}"
        numbers = [f"{leak['equal']:,}", f"{leak['near']:,}", share, f"{leak['remove']:,}"]
        rows.append([leak["held_out"], leak["training"], leak["what"], *numbers])
        examples += leak["examples"]
    columns = ["rows of", "are in", "by", "equal", "near", "share", "training rows"]
    table = Table("leaks", columns, rows, keys=3)
    return Report([*blocks, table, "\n".join(examples)] if rows else [*blocks, "nothing leaks"])


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
    names: set[str] = set()
    for options in (stage.settings, stage.component.options):
        names.update(map(str, keys_of(options, spec) or ()))
    for role in ("gold", "validation"):
        if role in names:
            return role
    return TRAINING if stage.kind == "algorithm" or "few_shot" in names else ""

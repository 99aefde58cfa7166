"""Writes the recipe that answers what the data can answer, with examples that no stage learns from;
or a copy of a recipe, with every file that it names.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from alignkit.commands import refuse
from alignkit.data.group import Group, resolved_pairs
from alignkit.data.sources import opening
from alignkit.errors import OutOfResource, did_you_mean
from alignkit.io.text import is_file
from alignkit.plugins import plugins
from alignkit.recipe.yaml import SCHEMA, SCHEMA_LINE, dump
from alignkit_plugins.formats.spoken import all_turns
from alignkit_plugins.recipes.init_files import (
    ANSWER,
    KINDS,
    DataFile,
    first_row,
    is_number,
    recognize,
)
from alignkit_plugins.recipes.options import schema_line
from alignkit_plugins.rewards.text import ExactMatch

RECIPE = "recipe.yaml"
STARTER = Path(__file__).with_name("starter") / RECIPE
_NAMES = re.compile(r"[\w.-]+(?:/[\w.-]+)*\.\w+")  # of files
HELD_OUT, TRAINING = (0, 0.2), (0.2, 1)  # shares of the conversations
LEAST_PAIRS = 200  # of which a half teaches a reward model something
TOKENS = 90_000  # of all files together, which SmolLM2-135M learns in ten minutes of two cores
CHARACTERS = 4  # of a token, about
# Has no group, which would be all that counts
NUMBER = r"[-−]?(?:\d+(?:,\d{3})*(?:\.\d+|/\d+)?|\.\d+)"
# The first of these kinds that is there decides what is written; which others may be there, too.
GOALS: Mapping[str, Sequence[str]] = {
    "known-answers": ("demos",),
    "prompts": ("pairs", "demos"),
    "pairs": ("demos",),
    "labels": ("demos",),
    "demos": (),
}


@dataclass(frozen=True)
class Plan:
    """What a recipe does with files.

    goal: of GOALS. held_out: whether every file has examples to hold out.
    """

    goal: str
    files: Sequence[DataFile]
    held_out: bool = False

    def of(self, kind: str) -> list[DataFile]:
        """The files of a kind."""
        return [file for file in self.files if file.kind == kind]

    @property
    def taught(self) -> list[DataFile]:
        """The files that SFT learns from: demonstrations, and questions with solutions."""
        return self.of("demos") + [file for file in self.of("known-answers") if file.responses]

    @property
    def gold(self) -> bool:
        """Whether there are enough pairs for a reward model that judges what learned from the
        others.
        """
        return (
            self.held_out
            and self.goal in ("pairs", "prompts")
            and self.count("pairs", *TRAINING) >= LEAST_PAIRS
        )

    def count(self, kind: str, *share: float) -> int:
        """The number of examples of a kind, of rankings the number of pairs, in a share of the
        conversations.
        """
        rows = self._rows(kind, *share)
        if kind == "pairs":
            return sum(len(resolved_pairs(row)) for row in rows)
        return len(rows)

    def _rows(self, kind: str, *share: float) -> list[Group]:
        rows = list[Group]()
        for file in self.of(kind):
            rows += file.part(*share)
        return rows

    @property
    def points(self) -> int:
        """How exact a share of the held-out conversations is, in percentage points (95%)."""
        openings = {opening(row, None) for row in self._rows(self.goal, *HELD_OUT)}
        return round(98 / math.sqrt(len(openings)))

    def entry(self, files: Sequence[DataFile], *share: float) -> str:
        """A data entry of the recipe, in one line."""
        shares = share * self.held_out
        entries = [file.entry(*shares) for file in files]
        return flow(entries[0] if len(entries) == 1 else entries)

    @property
    def max_new_tokens(self) -> int:
        """Room for nine of ten responses; for solutions, more: each digit is a token."""
        lengths = list[int]()
        for file in self.files:
            lengths += [len(all_turns(response)) for response in file.responses]
        if not lengths:
            return 64
        lengths.sort()
        factor, most = 1.25, 128
        if self.goal == "known-answers":
            factor, most = 1.5, 256
        tokens = lengths[len(lengths) * 9 // 10] / CHARACTERS * factor
        return min(most, max(32, math.ceil(tokens / 16) * 16))

    @property
    def reward(self) -> str:
        """What compares a response with the known answer. Raises DataError if a question has
        none.
        """
        rows = list[Group]()
        for file in self.of("known-answers"):
            rows += file.read
        ExactMatch(ExactMatch.Options.model_validate({})).check_prompts(rows)
        answers = [str(row.meta[ANSWER]) for row in rows]
        if all(map(is_number, answers)):
            return flow({"exact_match": {"extract": NUMBER}})
        formulas = "\\" in "".join(answers) and find_spec("math_verify")
        return "math_verify" if formulas else "exact_match"


def flow(value: Any) -> str:
    """Plain data as YAML in one line."""
    return dump(value, flow=True).removesuffix("...\n").strip()


def planned(files: Sequence[DataFile]) -> Plan:
    """What a recipe does with files, of which it reads what there is time for.

    Raises RecipeError if there is nothing to learn from, or if they need several recipes.
    """
    kinds = {file.kind for file in files}
    goal = next(goal for goal in GOALS if goal in kinds)
    if goal == "prompts" and "pairs" not in kinds:
        help = "add a file of pairs, or write known-answers=FILE if a column has the right answer"
        refuse("prompts need pairs: without a reward, nothing can be learned on prompts", help)
    if others := kinds - {goal, *GOALS[goal]}:
        refuse(
            f"{KINDS[goal].words} and {KINDS[min(others)].words} need a recipe each",
            "leave out one of the files",
        )
    plan, weights = Plan(goal, files), list[int]()
    for file in files:
        times = {"pairs": 2, "labels": 2}.get(file.kind, 0)  # two responses, or answers to sample
        weights.append(1 if file in plan.taught else times)
    sampling = 2 * (goal in ("known-answers", "prompts"))
    most = TOKENS * CHARACTERS / (sum(weights) + sampling)
    limited, held_out = list[DataFile](), True
    for file, weight in zip(files, weights, strict=True):
        limited.append(file.limited(most * weight) if weight else file)
        held_out = held_out and bool(limited[-1].part(*HELD_OUT) and limited[-1].part(*TRAINING))
    return Plan(goal, limited, held_out)


def named(word: str) -> tuple[str, Path]:
    """The kind that a word of the command line gives a file, such as `demos=faq.csv`, or an empty
    one; and the file.
    """
    kind, _, file = word.partition("=")
    return (kind, Path(file)) if kind in KINDS else ("", Path(word))


def write(
    folder: Path, base: str | None, given: Sequence[tuple[str, Path]], columns: Mapping[str, str]
) -> tuple[list[Path], list[str]]:
    """Write a recipe for data. Returns the file, and in lines what was assumed.

    base: None: a small model. given: files, each with the kind that it is said to be of, or "".
    columns: of any of the files, by the names that a format expects. Raises RecipeError or
    DataError if nothing can be made of the data, or if a file is in the way.
    """
    have, files = list[str](), list[DataFile]()
    for _, path in given:
        if not is_file(path):
            refuse(f"no such file: {path}")
        have += first_row(path)
    for name, column in columns.items():
        if column not in have:
            help = did_you_mean(column, have) or f"columns: {', '.join(have)}"
            refuse(f"--columns {name}={column}: no file has a column '{column}'", help)
    for kind, path in given:
        name = os.path.relpath(path.resolve(), folder.resolve())
        files.append(recognize(path, name, kind, columns))
    plan = planned(files)
    texts = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    paragraphs = texts.get_template("assumed.txt.j2").render(plan=plan).split("\n\n")
    assumed = [" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip()]
    name = re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name).lstrip("._-") or "recipe"
    recipe = texts.get_template(f"{RECIPE}.j2").render(
        schema=schema_line(plugins()),
        assumed=assumed,
        name=flow(name),
        base=base and flow(base),
        plan=plan,
    )
    return write_files({folder / RECIPE: recipe.encode()}), assumed


# Copies of recipes, which can be edited


def summary(path: Path) -> str:
    """What a recipe does: the comment `What:` of its file, up to the first sentence's end."""
    found = re.search(r"^# What:(.*(?:\n#   .*)*)", path.read_text(encoding="utf-8"), re.M)
    if found is None:
        return ""
    words = found[1].replace("\n#", " ").split()
    return " ".join(words).partition(". ")[0].rstrip(".")


def copy_recipe(recipe: Path, folder: Path) -> list[Path]:
    """Copy a recipe and the files below its folder that it names; return the copies, the recipe
    first.

    Raises RecipeError if a file with other contents is in the way; nothing is written then.
    """
    root = recipe.parent
    files = [recipe, *root.glob("data/LICENSES.md")]
    for file in files:  # a recipe names others, which name further ones
        if file.suffix != ".yaml":
            continue
        for word in _NAMES.findall(file.read_text(encoding="utf-8")):
            if (root / word).is_file() and root / word not in files:
                files.append(root / word)
    line, copies = schema_line(plugins()).encode(), dict[Path, bytes]()
    for file in files:
        if file.name != SCHEMA:
            copy = file.read_bytes().replace(SCHEMA_LINE.encode(), line, 1)
            copies[folder / file.relative_to(root)] = copy
    return write_files(copies)


def write_files(files: Mapping[Path, bytes]) -> list[Path]:
    """Write files: all, or none if one would replace another file. One with the same contents
    stays.
    """
    for path, contents in files.items():
        if path.exists() and not (path.is_file() and path.read_bytes() == contents):
            help = "name another folder: alignkit init FOLDER"
            refuse(f"already exists, with other contents: {path}", help)
    try:
        for path, contents in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(contents)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        text = f"cannot write {path}: {reason}\n  help: name another folder"
        raise OutOfResource(text) from error
    return list(files)

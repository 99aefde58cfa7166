"""The recipe that answers what the data can answer, with examples that no stage learns from."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import chain, filterfalse, islice, pairwise
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from alignkit.contract.formats import with_renamed_columns
from alignkit.data.group import (
    Group,
    Response,
    read_groups,
    resolved_pairs,
    responses_of,
    why_not_demonstration,
    write_groups,
)
from alignkit.errors import AlignkitError, DataError, did_you_mean, refuse
from alignkit.evaluation.held_out import FEW_EXAMPLES
from alignkit.evaluation.numbers import number_of
from alignkit.evaluation.split import fraction, opening
from alignkit.host.plugins import plugins
from alignkit.io.digest import cached_snapshot
from alignkit.io.text import exists, is_dir, is_file
from alignkit.recipe.sources import UnknownFormat, keys_of_split
from alignkit.recipe.yaml import dump
from alignkit.runs.fingerprint import RunData
from alignkit.runs.model_source import made_before
from alignkit_plugins.command_line.words import (
    check_columns,
    data_of,
    first_row,
    first_rows,
    is_filled,
    read_words,
    reader_of,
)
from alignkit_plugins.formats.column_mappings import (
    TWO_ANSWERS,
    ColumnMapping,
    columns_advice,
    columns_help,
    mappings_of,
)
from alignkit_plugins.formats.rankings import layout_of
from alignkit_plugins.recipe_tools.options import schema_line
from alignkit_plugins.report.data_card import repeats, row_warnings, sentences
from alignkit_plugins.rewards.exact_match import LAST_NUMBER, ExactMatch
from alignkit_plugins.text.rows import turns_text
from alignkit_plugins.text.shown import counts
from alignkit_plugins.text.spoken import all_turns

RECIPE = "recipe.yaml"
# Shares of the conversations: the first that holds out enough is chosen
SHARES = (0.2, 0.25, 0.3, 0.35, 0.4)
LEAST_PAIRS = 200  # half of them teach a reward model something
TOKENS = 90_000  # all files together: SmolLM2-135M learns this many in ten minutes of two cores
CHARACTERS = 4  # per token, about
# The first of these kinds that is there decides what is written; which others may be there, too.
GOALS: Mapping[str, Sequence[str]] = {
    "known-answers": ("demos",),
    "prompts": ("pairs", "demos"),
    "pairs": ("demos",),
    "good-and-bad": ("demos",),
    "demos": (),
}
COMMAND = "alignkit init"
MOST_ROWS = 100_000  # rows that show what a file holds
NUMBERS = 0.9  # share of the known answers that makes all be read as numbers
ASKED = 8  # questions that the base model answers
LARGE = 3 * 2**30  # bytes of weights that do not answer them in about a minute
ANSWER = "answer"  # the column in which rewards look for a known answer
# A template that leaves out questions without one
ANSWERED = {"prompt": "{{ prompt }}", ANSWER: "{{ answer }}", "required": "{{ answer }}"}
_WORD = re.compile(r"(?<!\\)\b[^\W\d_]{2,}")  # LaTeX's commands are none
_HELD = re.compile(r"""'[^']*'|"[^"]*"|\d+""")  # what a row holds, in what is said of it
LONG = 60  # characters that are not said of each bad row


# What files hold


@dataclass(frozen=True)
class Kind:
    """What a row may be.

    words: many of them. columns: how `--columns` names theirs. holds: whether a row is one.
    is_explicit: whether such a row says so itself, or else only the command line does.
    """

    words: str
    columns: Sequence[str]
    holds: Callable[[Group], Any]
    is_explicit: Callable[[Group], Any] = bool


def is_number(text: Any) -> bool:
    """Whether a text is a number."""
    return number_of(str(text)) is not None


def _in_words(text: str) -> bool:
    """Whether a text is no number, letter or formula, which can be checked."""
    return bool(_WORD.search(text)) and not is_number(text)


def _is_labeled(row: Group) -> bool:
    return len(row.responses) == 1 and row.responses[0].label is not None


def _has_answer(row: Group) -> bool:
    return bool(row.prompt) and is_filled(row.meta.get(ANSWER))


def _is_checkable(row: Group) -> bool:
    return _has_answer(row) and not _in_words(str(row.meta[ANSWER]))


KINDS: Mapping[str, Kind] = {  # a file's is the first of those that most of its rows are
    "pairs": Kind(
        "pairs of a better and a worse response",
        ("prompt", "chosen", "rejected"),
        resolved_pairs,
    ),
    "good-and-bad": Kind(
        "good and bad responses, as a label says", ("prompt", "completion", "label"), _is_labeled
    ),
    "known-answers": Kind(
        "questions with a known answer",
        ("prompt", ANSWER),
        _has_answer,
        _is_checkable,
    ),
    "demos": Kind(
        "prompts with one good response each",
        ("prompt", "completion"),
        lambda row: not why_not_demonstration(row),
        lambda row: _in_words(all_turns(row.responses[0])),
    ),
    "prompts": Kind(
        "prompts without responses",
        ("prompt",),
        lambda row: row.prompt and not row.responses,
        lambda row: not _is_checkable(row),
    ),
}


@dataclass(frozen=True)
class DataFile:
    """A file, as a recipe reads it.

    Attributes:
        file: Its place.
        path: As the recipe names it.
        kind: Of KINDS.
        keys: The others of its data entry.
        format: What reads it.
        named: Whether the recipe names the format.
        read: The rows that can be read.
        bad: Those that must be dropped, and why.
        notes: What its format decided about all rows.
        split: The keys of the split that all files share.
    """

    file: Path
    path: str
    kind: str
    keys: Mapping[str, Any]
    format: str
    named: bool
    read: Sequence[Group]
    bad: Sequence[str]
    notes: Sequence[str]
    split: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.path).name

    @property
    def limit(self) -> int | None:
        """How many rows are read; None: all."""
        return self.keys.get("limit")

    @property
    def examples(self) -> list[Group]:
        """The rows of its kind."""
        return list(filter(KINDS[self.kind].holds, self.read))

    @property
    def counted(self) -> str:
        """What it holds, as `check` and a run count it: `300 conversations, 300 pairs`."""
        return counts(self.examples, len(self.bad))

    @property
    def responses(self) -> list[Response]:
        """The responses of its examples."""
        return responses_of(self.examples)

    def limited(self, characters: float) -> DataFile:
        """The file, read up to about the row that brings its length to this many characters."""
        texts = list(map(all_turns, self.responses))
        for group in self.read:
            texts.append(turns_text(group.prompt))
        rows = list(dict.fromkeys(group.origin for group in self.read))
        limit = max(1, int(float(f"{len(rows) * characters / sum(map(len, texts)):.2g}")))
        if limit >= len(rows):
            return self
        kept = set(rows[:limit])
        read = [group for group in self.read if group.origin in kept]
        return replace(self, keys={**self.keys, "limit": limit}, read=read)

    @cached_property
    def places(self) -> list[float]:
        """Where each example lies in the split of its file."""
        openings = map(opening, self.examples)
        return [fraction(self.split.get(each, each)) for each in openings]

    def part(self, low: float, high: float = 1.0) -> list[Group]:
        """The examples in a share of the conversations."""
        places = zip(self.examples, self.places, strict=True)
        return [row for row, place in places if low <= place < high]

    def splits(self, share: float) -> bool:
        """Whether there are examples on both sides."""
        return 0 < len(self.part(0, share)) < len(self.examples)

    def entry(self, *share: float, **others: Any) -> Any:
        """A data entry of a recipe that reads the examples in a share. others: keys with other
        values; None: without one.
        """
        keys = {"path": self.path, "part": list(share), **self.keys, **others}
        keys = {key: value for key, value in keys.items() if value not in ([], None)}
        entry = keys if len(keys) > 1 else keys["path"]
        return {self.format: entry} if self.named else entry


def columns_ways(kind: str, path: Path) -> list[str]:
    """What `--columns` may say of the columns of a file of a kind; empty: of any."""
    ways = [KINDS[kind or "demos"].columns, *[TWO_ANSWERS] * (kind in ("", "pairs"))]
    return [columns_help(way, first_rows(path)) for way in ways]


class Undecided(DataError):
    """A file has answers to compare, of which none is better."""


def recognize(
    path: Path, name: str, kind: str, columns: Mapping[str, str], labels: Mapping[str, str]
) -> DataFile:
    """What a file holds, by `columns`, or else by those that a format expects or that are often
    called so.

    name: as the recipe names it. kind: of its rows, as the user says; empty: the most frequent.
    labels: what words mean that say which of two answers is better. Raises DataError if it holds
    something else.
    """
    row = first_row(path)
    chosen = {expected: column for expected, column in columns.items() if column in row}
    mappings, meant = [ColumnMapping("", chosen)], dict[str, Any]()
    known = [label.strip().lower() for label in labels]
    if labels and layout_of(with_renamed_columns(row, chosen), known):
        mappings, meant = [ColumnMapping("labeled_pairs", chosen)], {"labels": dict(labels)}
    elif not chosen:
        mappings += mappings_of(row, plugins().usable("format"))
    found: list[DataFile] = []
    problems: list[DataError] = []
    is_recognized = False
    for mapping in mappings:
        keys: dict[str, Any] = {"columns": dict(mapping.columns)} if mapping.columns else {}
        keys |= {"messages": mapping.messages} if mapping.messages else {}
        try:
            format = "" if mapping.columns and not meant else mapping.format
            found.append(_read(path, name, kind, format, {**keys, **meant}))
        except Undecided:
            if is_recognized:
                raise problems[0] from None  # what was wrong with the labels
            raise
        except UnknownFormat as error:
            help = columns_advice(row, plugins().usable("format"), columns_ways(kind, path))
            problems.append(DataError(f"{str(error).partition(chr(10))[0]}\nhelp: {help}"))
        except DataError as error:
            problems.append(error)
            is_recognized |= mapping == mappings[0]
        if found and (kind or found[-1].kind != "prompts"):
            return found[-1]  # in prompts, another mapping may find responses
    if not found or is_recognized:  # prompts alone are not what the first one found
        raise problems[0]
    return found[0]


def _read(path: Path, name: str, kind: str, format: str, keys: dict[str, Any]) -> DataFile:
    """A file, read in one way. format: empty: the recognized one. keys: others of the data entry.
    Raises DataError like `recognize`.
    """
    entry = {"path": str(path), **keys, "limit": MOST_ROWS, "on_bad_row": "skip"}
    loaded = RunData(Path).read(data_of({format: entry} if format else entry, COMMAND))
    (source,), groups = loaded.sources, loaded.groups
    skipped = [row for row in loaded.skipped if not row.left_out]
    rows = {word: list(filter(one.holds, groups)) for word, one in KINDS.items()}
    if len({row.responses[0].label for row in rows["good-and-bad"]}) < 2:
        rows["good-and-bad"] = []  # good ones are demonstrations
    counts = {word: len(list(filter(one.is_explicit, rows[word]))) for word, one in KINDS.items()}
    if rows["good-and-bad"]:
        counts["prompts"] = 0  # some answers of people's chats are not rated
        counts["demos"] -= len(list(filter(_is_labeled, rows["demos"])))
    most = max(counts, key=counts.__getitem__)
    kind = kind or most
    compared = sum(len(row.responses) > 1 for row in groups)
    if not rows[kind]:
        holds, help = KINDS[most].words, "leave out the kind, and it is read as these"
        if not counts[most]:
            holds, help = "none", f"compare responses: alignkit label {quote(str(path))}"
        text = (
            f"{path}: expected {KINDS[kind].words}, but the file holds {holds} (format "
            f"{source.format})"
        )
        if compared and not counts[most]:
            each = [f"{text}: {compared:,} comparisons, all tied or without a label", *source.notes]
            if skipped:
                each.append(f"{len(skipped):,} rows cannot be read; the first is {skipped[0]}")
                help = "say first how those rows are to be read"
            raise Undecided(f"{'; '.join(each)}\nhelp: {help}")
        ways = " or ".join(columns_ways(kind, path))
        help += f", or say which columns are meant, as in {ways}"
        raise DataError(f"{text}\nhelp: {help}")
    asked = kind == "known-answers" and source.format == "prompt_only"
    if asked and not all(map(_has_answer, groups)):
        return _read(path, name, kind, "template", {**keys, **ANSWERED})
    bad = list(map(str, skipped))
    if len(bad) > len(groups):
        stored = sum(1 for _ in islice(reader_of(str(path), COMMAND).stored_rows(), MOST_ROWS))
        # What a row holds stands in quotes
        ((_, alike),) = Counter(_HELD.sub("", row.reason) for row in skipped).most_common(1)
        if 2 * alike > stored:
            why = f"{alike:,} of {stored:,} rows cannot be read; the first is {bad[0]}"
            raise DataError(f"{why}\nhelp: delete them, or write `on_bad_row: skip` yourself")
    if kind == "demos":
        for row in groups:
            if why := why_not_demonstration(row):
                bad.append(f"{row.origin}: the row {why}")
    if source.rows >= MOST_ROWS:
        keys["limit"] = MOST_ROWS
    if bad:
        keys["on_bad_row"] = "skip"
    bad = [text.removeprefix(f"{path.resolve().parent}/") for text in bad]
    for place, text in enumerate(bad[1:], 1):  # what the first one says is not said again
        held, _, rest = text.partition(", ")
        if len(rest) > LONG and bad[0].endswith(rest):
            bad[place] = f"{held}, ..."
    notes = [*source.notes, *row_warnings(groups), *repeats(groups)]
    tied = compared - len(rows["pairs"])
    if kind == "pairs" and tied and "labels in " not in str(source.notes):
        notes.append(f"{tied:,} comparisons are tied or without a label")
    return DataFile(path, name, kind, keys, source.format, bool(format), groups, bad, notes)


# What a recipe does with them


@dataclass(frozen=True)
class Plan:
    """What a recipe does with files.

    goal: of GOALS. share: of the conversations that is held out, 0 if too few would be. A file that
    has none on one side is learned from whole. reward: what compares answers with the known ones.
    reading: how, and why, in words. differ: how many different conversations are held out, or would
    be.
    """

    goal: str
    files: Sequence[DataFile]
    share: float = 0.0
    reward: str = ""
    reading: str = ""
    differ: int = 0

    def of(self, kind: str) -> list[DataFile]:
        """The files of a kind."""
        return [file for file in self.files if file.kind == kind]

    @property
    def taught(self) -> list[DataFile]:
        """The files that SFT learns from: demonstrations, and questions with solutions."""
        return self.of("demos") + [file for file in self.of("known-answers") if file.responses]

    @property
    def half(self) -> float:
        """Where the examples to learn from are halved."""
        return round((1 + self.share) / 2, 3)

    @property
    def gold(self) -> bool:
        """Whether there are enough pairs for a reward model that judges what learned from the
        others.
        """
        pairs = self.share and self.goal in ("pairs", "prompts") and self.count("pairs", self.share)
        return pairs >= LEAST_PAIRS

    def count(self, kind: str, low: float = 0.0, high: float = 1.0) -> int:
        """The number of examples of a kind, of rankings the number of pairs, in a share of the
        conversations; in all of them, also of files of which none is held out.
        """
        rows, split = list[Group](), self.split(self.files)
        for file in self.of(kind):
            if file in split or (low, high) == (0, 1):
                rows += file.part(low, high)
        if kind == "pairs":
            return sum(len(resolved_pairs(row)) for row in rows)
        return len(rows)

    @property
    def points(self) -> int:
        """How exact a share of the held-out conversations is, in percentage points (95%)."""
        return round(98 / math.sqrt(self.differ))

    def split(self, files: Sequence[DataFile]) -> list[DataFile]:
        """Those of which some examples are held out."""
        return [file for file in files if self.share and file.splits(self.share)]

    def entry(self, files: Sequence[DataFile], *share: float) -> str:
        """A data entry of the recipe, in one line."""
        split = self.split(files)
        return _flow_of([file.entry(*(share if file in split else ())) for file in files])

    def held(self, files: Sequence[DataFile]) -> str:
        """A data entry of the held-out examples; empty without any."""
        entries = [file.entry(0, self.share) for file in self.split(files)]
        return _flow_of(entries) if entries else ""

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


def read_best(plan: Plan, base: str | None) -> Plan:
    """The plan with the reading of answers that finds most right ones among a few of the base
    model; or with the one that suits the form of the known answers. Raises DataError if a question
    has none.

    base: None: a model that is not asked.
    """
    rows, asked = list[Group](), list[Group]()
    for file in plan.of("known-answers"):
        rows += file.read
        asked += file.part(0, plan.share or 1)
    if missing := [*filterfalse(_has_answer, rows)]:
        text = f"{missing[0].origin}: no answer, as in {len(missing)} of {len(rows)} rows"
        raise DataError(f"{text}\nhelp: fill them in, or leave these rows out")
    ExactMatch(ExactMatch.Options.model_validate({})).check_prompts(rows)
    known = [str(row.meta[ANSWER]) for row in rows]
    odd = [row for row, text in zip(rows, known, strict=True) if not is_number(text)]
    numbers = len(odd) <= (1 - NUMBERS) * len(rows)
    formulas = (numbers or "\\" in "".join(known)) and find_spec("math_verify")
    ways: dict[str, Any] = {"as a whole": "exact_match"}  # the strictest first
    if numbers:
        ways["by their last number"] = {"exact_match": {"extract": LAST_NUMBER}}
    if formulas:
        ways["by math_verify"] = "math_verify"
    ways["in a sentence"] = {"exact_match": {"within": True}}
    by_form = "by their last number" if numbers else [*ways][-2 if formulas else -1]
    answered = _answered(base, asked[:ASKED])
    text = f"{by_form}, by the form of the known ones; "
    if not answered:
        text += "a --base on this machine would be asked"
    else:
        right = {name: _right(way, answered) for name, way in ways.items()}
        best = max(right, key=lambda name: right[name][0] - right[name][1])
        found = ", ".join(f"{count} {name}" for name, (count, _) in right.items())
        held_out = "held-out " * bool(plan.share)
        of = f"of {len(answered)} answers of the base model to {held_out}questions"
        if right[best][0]:
            by_form, text = best, f"{best}; right {of}: {found}"
        else:
            text += f"none {of} was right in any way: {found}"
    if numbers and odd:
        text += (
            f"; {len(odd)} of {len(rows)} known answers are no numbers, such as "
            f"{odd[0].meta[ANSWER]!r:.40} ({str(odd[0].origin).rpartition('/')[2]}), where only the "
            "same words are right: correct these rows, or leave them out"
        )
    return replace(plan, reward=flow(ways[by_form]), reading=text)


def _right(way: Any, answered: Sequence[Group]) -> tuple[int, int]:
    """How many answers a reward finds right, and how many it finds right for the next question."""
    name, options = (way, {}) if isinstance(way, str) else next(iter(way.items()))
    cls = plugins().get("reward", name).implementation
    reward = cls(cls.Options.model_validate(options))
    others = []
    for group, other in pairwise([*answered, answered[0]]):
        if group.meta[ANSWER] != other.meta[ANSWER]:
            others.append(replace(group, meta=other.meta))
    return list(reward.score(answered)).count(1.0), list(reward.score(others)).count(1.0)


def _answered(base: str | None, rows: Sequence[Group]) -> list[Group]:
    """Questions with greedy answers of the base model; none if it is not here, or large."""
    if base is None:
        return []
    path = Path(base) if is_dir(base) else made_before(base) or cached_snapshot(base, None)
    if path is None or sum(file.stat().st_size for file in path.glob("*.safetensors")) > LARGE:
        return []
    from alignkit_plugins.serving.files import answer_and_score  # With torch

    with TemporaryDirectory() as folder:
        questions, answers = Path(folder, "questions.jsonl"), Path(folder, "answers.jsonl")
        write_groups(questions, [replace(row, responses=(), pairs=None) for row in rows])
        words = ["sampling.temperature=0", "sampling.max_new_tokens=64"]
        with suppress(AlignkitError):  # The run says why it cannot answer
            answer_and_score(read_words([base], data=str(questions)), words, answers)
            return read_groups(answers)
    return []


def flow(value: Any) -> str:
    """Plain data as YAML in one line."""
    return dump(value, flow=True).removesuffix("...\n").strip()


def _flow_of(entries: Sequence[Any]) -> str:
    return flow(entries[0] if len(entries) == 1 else entries)


def planned(files: Sequence[DataFile]) -> Plan:
    """What a recipe does with files, of which it reads what there is time for.

    Raises RecipeError if there is nothing to learn from, or if they need several recipes.
    """
    kinds = {file.kind for file in files}
    goal = next(goal for goal in GOALS if goal in kinds)
    if goal == "prompts" and "pairs" not in kinds:
        help = (
            "add a file of pairs, write known-answers=FILE if a column has the right answer, or name "
            "two answers and their label: --columns prompt=COLUMN,A=COLUMN,B=COLUMN,label=COLUMN"
        )
        refuse("prompts need pairs: without a reward, nothing can be learned on prompts", help)
    if others := kinds - {goal, *GOALS[goal]}:
        refuse(
            f"{KINDS[goal].words} and {KINDS[min(others)].words} need a recipe each",
            "leave out one of the files",
        )
    # Two responses, or one, or none
    twice = {"pairs": 2, "good-and-bad": 2}
    weights = [twice.get(file.kind, bool(file.responses)) for file in files]
    sampling = 2 * (goal in ("known-answers", "prompts"))
    most = TOKENS * CHARACTERS / (sum(weights) + sampling)
    limited = list[DataFile]()
    for file, weight in zip(files, weights, strict=True):
        limited.append(file.limited(most * weight) if weight else file)
    keys = keys_of_split(
        reader_of(file.entry(path=str(file.file), limit=None), COMMAND) for file in limited
    )
    limited = [replace(file, split=keys) for file in limited]
    judging = [file for file in limited if file.kind == goal]
    for share in SHARES:
        split = (file.part(0, share) for file in judging if file.splits(share))
        differ = len(set(map(opening, chain.from_iterable(split))))
        if differ >= FEW_EXAMPLES:
            return Plan(goal, limited, share, differ=differ)
    return Plan(goal, limited, differ=differ)


def _on_both_sides(plan: Plan) -> int:
    """Held-out examples with a response, word for word, of an example to learn from."""
    known, held = set[str](), list[set[str]]()
    for file in plan.split(plan.files):
        known.update(*map(sentences, file.part(plan.share)))
        held += map(sentences, file.part(0, plan.share))
    return sum(not known.isdisjoint(texts) for texts in held)


def _from(folder: Path, base: str) -> str:
    """A model's name, or its path from the recipe's folder."""
    path = os.path.relpath(Path(base).resolve(), folder.resolve() / "..")
    return f"../{path}" if exists(Path(base)) else base  # a plain word would be a name


def written(
    folder: Path,
    base: str | None,
    given: Sequence[tuple[str, Path]],
    columns: Mapping[str, str],
    labels: Mapping[str, str],
) -> tuple[dict[Path, bytes], list[str]]:
    """A recipe for data, by its place, and in lines what was assumed.

    base: None: a small model. given: files, each with the kind that it is said to be of, or "".
    columns: of any of the files, by the names that a format expects. labels: as `recognize` takes
    them. Raises RecipeError or DataError if nothing can be made of the data.
    """
    files = list[DataFile]()
    for _, path in given:
        if not is_file(path):
            kind, equals, _ = str(path).partition("=")
            refuse(f"no such file: {path}", did_you_mean(kind, KINDS, "kinds") if equals else "")
    check_columns(columns, [first_row(path) for _, path in given])
    for kind, path in given:
        name = os.path.relpath(path.resolve(), folder.resolve())
        files.append(recognize(path, name, kind, columns, labels))
    if labels and not any("labels" in file.keys for file in files):
        help = f"as in {columns_help(TWO_ANSWERS, first_rows(given[0][1]))}"
        refuse("--labels: no file has labels of two answers", help)
    plan = planned(files)
    if plan.goal == "known-answers":
        plan = read_best(plan, base)
    texts = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    template, shared = texts.get_template("assumed.txt.j2"), _on_both_sides(plan)
    text = template.render(plan=plan, few=FEW_EXAMPLES, shared=shared)
    assumed = [" ".join(one.split()) for one in text.split("\n\n") if one.strip()]
    name = re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name).lstrip("._-") or "recipe"
    recipe = texts.get_template(f"{RECIPE}.j2").render(
        schema=schema_line(plugins()),
        assumed=assumed,
        name=flow(name),
        base=base and flow(_from(folder, base)),
        plan=plan,
    )
    return {folder / RECIPE: recipe.encode()}, assumed

"""What a stage sees of one row: as data, as the chat template renders it, and as tokens with the
learned ones marked.

Everything is computed as the stage will compute it, with the same tokenizer, template, selection
and limits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.algorithm import Algorithm, ExternalTrainer, Trains
from alignkit.calls import call, create
from alignkit.commands import refuse, stage_of
from alignkit.data.group import Group, prompts_of
from alignkit.data.sources import DataSpec, Loaded
from alignkit.errors import DataError
from alignkit.io.results import is_result_name
from alignkit.io.text import printable
from alignkit.recipe.schema import BASE, Recipe, Stage, specs
from alignkit.registry import Component
from alignkit.runs.run import Run
from alignkit.runs.stage import TrainingStage
from alignkit.tokens.encoder import Encoder, drop_reason
from alignkit_plugins.formats.shown import shown
from alignkit_plugins.policies.row_tokens import Tokens, heading, marked, pieces

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Turns = Sequence[tuple[str, str]]  # who, and what
# Keys of a stage that say what rates responses
RATERS = {"reward", "rewards", "judge", "judges", "metrics"}


@dataclass(frozen=True)
class Inspection:
    """One row of a stage's data.

    title: the stage, and which row. turns: the row as data. notes: what else the stage does with
    it. tokens: the prompt, then each response. questions: what judges read.
    """

    title: str
    turns: Turns
    notes: Sequence[str] = ()
    tokens: Sequence[Tokens] = ()
    questions: Turns = ()


def inspect(recipe: Recipe, name: str, row: int, folder: Path) -> Inspection:
    """What a stage sees of a row. row: counts from 1. folder: of the run, which has the data that
    other stages make.

    Raises RecipeError for a stage that is not there, and DataError for a row that is not there or
    does not fit.
    """
    made = name.partition("@")[0]
    if is_result_name(name) and made in recipe.stages:
        help = f"name the stage, '{made}'; for what {name} answers: alignkit chat RUN/{name}"
        refuse(f"{name} is a result, but check shows the rows of a stage", help)
    stage = stage_of(recipe, name)
    if row < 1:
        raise DataError(f"rows count from 1, so there is no row {row}")
    run = Run(recipe, folder)
    run.say = lambda text: None
    key, spec = _entry(stage)
    for source in spec.sources:
        if source.stage is not None and not run.store.data(source.stage).is_file():
            raise DataError(
                f"stage '{name}' reads the data of '{source.stage}', which {folder} does not "
                "have\n"
                f"help: run the recipe as far as '{source.stage}' first, or name the run's folder "
                "with --out"
            )
    loaded, encoder, found = run.data.read(spec), run.base(BASE).encoder, run.stages[name]
    assert encoder is not None
    if key == "data" and isinstance(found, TrainingStage):
        return _learned(found, loaded, row, encoder)
    groups = loaded.groups
    return _prompt(stage, _row(prompts_of(groups), row, stage), row, len(groups), encoder)


def _entry(stage: Stage) -> tuple[str, DataSpec]:
    """The data entry that a stage learns from or samples for: `data`, or any other key."""
    if stage.settings is not None and stage.settings.data is not None:
        return "data", stage.settings.data
    found = specs([stage.settings, stage.component.options], DataSpec)
    if not found:
        raise DataError(
            f"stage '{stage.name}' reads no data: {stage.component.name} works on other stages' "
            "results"
        )
    return "prompts", found[0]


def _row(groups: Sequence[Group], row: int, stage: Stage) -> Group:
    if row > len(groups):
        count = f"{len(groups)} row{'s' * (len(groups) != 1)}"
        raise DataError(f"stage '{stage.name}' has {count}, so there is no row {row}")
    return groups[row - 1]


def _title(stage: Stage, group: Group, row: int, count: int) -> str:
    where = f" ({group.origin})" if group.origin else ""
    return f"{stage.name} ({stage.component.name}): row {row} of {count}{where}"


# Rows that a stage learns from


def _learned(trained: TrainingStage, loaded: Loaded, row: int, encoder: Encoder) -> Inspection:
    """A row that an algorithm learns from."""
    stage = trained.stage
    algorithm: Algorithm = trained.plugin(stage.component)
    if isinstance(algorithm, ExternalTrainer):
        group = _row(loaded.groups, row, stage)
        note = f"{stage.component.name} renders and tokenizes its rows itself"
        return Inspection(
            _title(stage, group, row, len(loaded.groups)), list(_turns(group)), [note]
        )
    chosen = trained.select(loaded.groups)
    group = _row(chosen, row, stage)
    turns, scoring = call(algorithm, "trained_turns"), algorithm.trains is Trains.REWARD
    assert stage.settings is not None
    encoder.forget_counts()
    encoded = encoder.encode(group, stage.settings.max_length, turns=turns, scoring=scoring)
    notes = [drop_reason(name, count) for name, count in encoder.counts.items() if count]
    notes += _columns(group)
    tokens = list(marked(encoder, encoded, scoring)) if encoded is not None else []
    return Inspection(_title(stage, group, row, len(chosen)), list(_turns(group)), notes, tokens)


# Prompts that a policy answers


def _prompt(stage: Stage, group: Group, row: int, count: int, encoder: Encoder) -> Inspection:
    """A prompt that policies will answer."""
    notes: list[str] = []
    ids = encoder.prompt(group.prompt, group.tools)
    tokens = [
        Tokens(
            "prompt, after which the policy writes", pieces(encoder, (), ids), (False,) * len(ids)
        )
    ]
    for key in sorted(RATERS.intersection(stage.written)):
        notes.append(f"{key}: {json.dumps(stage.written[key], ensure_ascii=False)}")
    notes += _columns(group)
    return Inspection(
        _title(stage, group, row, count),
        list(_turns(group)),
        notes,
        tokens,
        list(_questions(stage, group)),
    )


def _questions(stage: Stage, group: Group) -> Iterator[tuple[str, str]]:
    """What the stage's judges read. Responses that do not exist yet have a name in their place."""
    texts = [response.text for response in group.responses[:2]]
    first, second = texts if len(texts) == 2 else ("(the first response)", "(the second response)")
    for component in specs([stage.settings, stage.component.options, stage.component], Component):
        if component.kind != "judge":
            continue
        turns = call(create(component, stage.name), "question", (group.prompt, first, second))
        yield from ((f"{component.name} reads ({turn['role']})", turn["content"]) for turn in turns)


# Rows as data


def _turns(group: Group) -> Iterator[tuple[str, str]]:
    """Who says what, in full."""
    for one in shown(group):
        yield one.title, one.text


def _columns(group: Group) -> list[str]:
    """The row's other columns, which rewards can read."""
    columns = ", ".join(f"{name}: {value!r:.200}" for name, value in group.meta.items())
    return [f"other columns: {columns}"] if columns else []


# For people

BREAK = "\u23ce"  # stands for a line break
EDGE = "|"  # between tokens
STYLES = {True: ("green", "bold green"), False: ("dim", "none")}  # of every other token


def show(found: Inspection, console: Console) -> None:
    """Print an inspection: in a terminal learned tokens have a color, and everywhere they have a
    mark.
    """
    from rich.padding import Padding
    from rich.text import Text

    console.print(Text(printable(found.title), style="bold"))
    for note in found.notes:
        console.print(Text(f"note: {printable(note)}"))
    for who, what in [*found.turns, *found.questions]:
        console.print()
        console.print(Text(printable(who), style="bold"))
        console.print(Padding(Text(printable(what)), (0, 0, 0, 2), expand=False))
    for tokens in found.tokens:
        console.print()
        console.print(Text(heading(tokens), style="bold"))
        for line in _lines(tokens):
            console.print(line, soft_wrap=not console.is_terminal)


def _lines(tokens: Tokens) -> Iterator[Text]:
    """The tokens, a paragraph for each stretch that counts or does not."""
    from rich.text import Text

    name = "scored:  " if tokens.scored else "learned: "
    marked = list(zip(tokens.pieces, tokens.counts, strict=True))
    for counts, stretch in groupby(marked, key=lambda token: token[1]):
        line = Text(f"  {name if counts else 'context: '}")
        for place, (piece, _) in enumerate(stretch):
            line.append(EDGE if place else "", style="dim")
            line.append(visible(piece), style=STYLES[counts][place % 2])
        yield line


def visible(piece: str) -> str:
    """A token's text on one line."""
    return printable(piece.replace("\n", BREAK).replace("\t", "\u21e5"))

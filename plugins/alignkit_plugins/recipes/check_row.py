"""What a stage sees of one row: as data, as the chat template renders it, and as tokens with the
learned ones marked.

Everything is computed as the stage will compute it, with the same tokenizer, template, selection
and limits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from alignkit.algorithm import Algorithm, ExternalTrainer, Trains
from alignkit.calls import call, create
from alignkit.commands import refuse, stage_of
from alignkit.data.group import Group, prompts_of
from alignkit.data.sources import DataSpec, Loaded
from alignkit.errors import DataError
from alignkit.io.results import is_result_name
from alignkit.io.text import REPLACEMENT, printable
from alignkit.recipe.schema import BASE, Recipe, Stage, specs
from alignkit.registry import Component
from alignkit.runs.run import Run
from alignkit.runs.stage import TrainingStage
from alignkit.tokens.encoder import Encoded, Encoder, drop_reason
from alignkit_plugins.formats.shown import response_names, shown

# Keys of a stage that say what rates responses
RATERS = ("judge", "judges", "metrics", "reward", "rewards")
BEFORE = 4  # tokens that are decoded with a token, because its text depends on them
BREAK, TAB = "\u23ce", "\u21e5"  # stand for a line break and a tab


@dataclass(frozen=True)
class Tokens:
    """Tokens as a model reads them.

    pieces: the text of each. counts: whether each is in the loss, or is where a reward model reads
    the score. scored: it is the latter.
    """

    title: str
    pieces: tuple[str, ...]
    counts: tuple[bool, ...]
    scored: bool = False


@dataclass
class Inspection:
    """One row of a stage's data.

    title: the stage, and which row. turns: the row as data, who and what. notes: what else the
    stage does with it. tokens: the prompt, then each response. questions: what judges read.
    """

    title: str
    turns: Sequence[tuple[str, str]]
    notes: list[str] = field(default_factory=list)
    tokens: list[Tokens] = field(default_factory=list)
    questions: list[tuple[str, str]] = field(default_factory=list)

    def text(self) -> str:
        """All of it for a terminal, which obeys nothing in it."""
        parts = ["\n".join([self.title, *(f"note: {note}" for note in self.notes)])]
        for who, what in [*self.turns, *self.questions]:
            lines = "\n  ".join(what.split("\n"))
            parts.append(f"{who}\n  {lines}")
        for tokens in self.tokens:
            parts.append("\n".join([heading(tokens), *_stretches(tokens)]))
        return printable("\n\n".join(parts))


def _stretches(tokens: Tokens) -> Iterator[str]:
    """The tokens, a line for each stretch that counts or does not."""
    names = {False: "context: ", True: "learned: "}
    if tokens.scored:
        names[True] = "scored:  "
    both = zip(tokens.pieces, tokens.counts, strict=True)
    for counts, stretch in groupby(both, key=lambda token: token[1]):
        texts = [piece.replace("\n", BREAK).replace("\t", TAB) for piece, _ in stretch]
        yield f"  {names[counts]}{'|'.join(texts)}"


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
    stage, run = stage_of(recipe, name), Run(recipe, folder)
    run.say = lambda text: None
    spec, learns = _entry(stage)
    for source in spec.sources:
        if source.stage is not None and not run.store.data(source.stage).is_file():
            raise DataError(
                f"stage '{name}' reads the data of '{source.stage}', which {folder} does not have\n"
                f"help: run the recipe as far as '{source.stage}' first"
            )
    loaded, encoder, trained = run.data.read(spec), run.base(BASE).encoder, run.stages[name]
    assert encoder is not None
    if learns and isinstance(trained, TrainingStage):
        return _learned(trained, loaded, row, encoder)
    return _prompt(stage, prompts_of(loaded.groups), row, encoder)


def _entry(stage: Stage) -> tuple[DataSpec, bool]:
    """The data entry that a stage learns from or samples for, and whether it is the first."""
    if stage.settings is not None and stage.settings.data is not None:
        return stage.settings.data, True
    entries = specs([stage.settings, stage.component.options], DataSpec)
    if not entries:
        why = f"{stage.component.name} works on other stages' results"
        raise DataError(f"stage '{stage.name}' reads no data: {why}")
    return entries[0], False


def _inspection(stage: Stage, groups: Sequence[Group], row: int) -> tuple[Group, Inspection]:
    count = len(groups)
    if not 1 <= row <= count:
        rows = f"{count} row{'s' * (count != 1)}"
        raise DataError(f"stage '{stage.name}' has {rows}, so there is no row {row}")
    group = groups[row - 1]
    title = f"{stage.name} ({stage.component.name}): row {row} of {count}"
    if group.origin:
        title += f" ({group.origin})"
    return group, Inspection(title, [(one.title, one.text) for one in shown(group)])


def _learned(trained: TrainingStage, loaded: Loaded, row: int, encoder: Encoder) -> Inspection:
    """A row that an algorithm learns from."""
    stage = trained.stage
    algorithm: Algorithm = trained.plugin(stage.component)
    if isinstance(algorithm, ExternalTrainer):
        _, found = _inspection(stage, loaded.groups, row)
        found.notes.append(f"{stage.component.name} renders and tokenizes its rows itself")
        return found
    group, found = _inspection(stage, trained.select(loaded.groups), row)
    turns, scoring = call(algorithm, "trained_turns"), algorithm.trains is Trains.REWARD
    encoder.forget_counts()
    most = trained.settings.max_length
    encoded = encoder.encode(group, most, turns=turns, scoring=scoring)
    found.notes += [drop_reason(name, count) for name, count in encoder.counts.items() if count]
    found.notes += _columns(group)
    if encoded is not None:
        found.tokens += marked(encoder, encoded, scoring)
    return found


def _prompt(stage: Stage, groups: Sequence[Group], row: int, encoder: Encoder) -> Inspection:
    """A prompt that policies will answer."""
    group, found = _inspection(stage, groups, row)
    for key in RATERS:
        if key in stage.written:
            found.notes.append(f"{key}: {json.dumps(stage.written[key], ensure_ascii=False)}")
    found.notes += _columns(group)
    ids = encoder.prompt(group.prompt, group.tools)
    title, counts = "prompt, after which the policy writes", (False,) * len(ids)
    found.tokens.append(Tokens(title, pieces(encoder, (), ids), counts))
    found.questions += _questions(stage, group)
    return found


def _questions(stage: Stage, group: Group) -> Iterator[tuple[str, str]]:
    """What the stage's judges read. Responses that do not exist yet have a name in their place."""
    texts = [response.text for response in group.responses]
    if len(texts) < 2:
        texts = ["(the first response)", "(the second response)"]
    for component in specs([stage.settings, stage.component.options, stage.component], Component):
        if component.kind == "judge":
            judge = create(component, stage.name)
            for turn in call(judge, "question", (group.prompt, *texts[:2])):
                yield f"{component.name} reads ({turn['role']})", turn["content"]


def _columns(group: Group) -> list[str]:
    """The row's other columns, which rewards can read."""
    columns = ", ".join(f"{name}: {value!r:.200}" for name, value in group.meta.items())
    return [f"other columns: {columns}"] * bool(columns)


# The tokens of a row


def marked(encoder: Encoder, encoded: Encoded, scoring: bool) -> Iterator[Tokens]:
    """The prompt, then each response. scoring: a reward model reads them."""
    prompt = encoded.prompt
    if prompt:
        yield Tokens("prompt", pieces(encoder, (), prompt), (False,) * len(prompt))
    for name, response in zip(response_names(encoded.group), encoded.rows, strict=True):
        counts = tuple(map(bool, response.mask))
        if scoring:
            counts = (*[False] * (len(counts) - 1), True)
        title = ", ".join([*name, *["truncated"] * response.truncated])
        yield Tokens(title, pieces(encoder, prompt, response.tokens), counts, scoring)


def pieces(encoder: Encoder, before: Sequence[int], ids: Sequence[int]) -> tuple[str, ...]:
    """The text of each token. before: tokens in front of them, on which spaces depend.

    A character that the last tokens only begin is the text of the token that ends it.
    """
    texts, decoded = [], _decoded(encoder, before[-BEFORE:])
    for count in range(1, len(ids) + 1):
        longer = _decoded(encoder, [*before[-BEFORE:], *ids[:count]])
        texts.append(longer[len(decoded) :])
        decoded = longer
    return tuple(texts)


def _decoded(encoder: Encoder, ids: Sequence[int]) -> str:
    text = encoder.tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return str(text).rstrip(REPLACEMENT)


def heading(tokens: Tokens) -> str:
    """`response: 12 tokens, 10 learned`."""
    count = len(tokens.pieces)
    what = "scored at the last" if tokens.scored else f"{sum(tokens.counts) or 'none'} learned"
    return f"{printable(tokens.title)}: {count} token{'s' * (count != 1)}, {what}"

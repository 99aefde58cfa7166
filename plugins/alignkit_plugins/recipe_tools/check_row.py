"""What a stage sees of one row: as data, as the chat template renders it, and as tokens with the
learned ones marked.

Everything is computed as the stage will compute it, with the same tokenizer, template, selection
and limits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from alignkit.contract.algorithm import Algorithm, Trains
from alignkit.data.group import Group, prompts_of
from alignkit.errors import DataError, refuse
from alignkit.host.calls import call
from alignkit.io.text import REPLACEMENT, printable
from alignkit.recipe.load import stage_of
from alignkit.recipe.schema import BASE, Recipe, specs
from alignkit.recipe.sources import DataSpec
from alignkit.runs.run import Run
from alignkit.runs.stage import TrainingStage
from alignkit.tokens.counts import drop_reason
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.command_line.find import is_result_name
from alignkit_plugins.text.shown import readable_turns, response_names

BREAK, TAB = "\u23ce", "\u21e5"  # stand for a line break and a tab
BEFORE = 4  # tokens that are decoded with a token, because its text depends on them


@dataclass(frozen=True)
class Tokens:
    """Tokens as a model reads them.

    pieces: the text of each. counts: whether each is in the loss, or is where a reward model reads
    the score. scored: it is the latter.
    """

    title: str
    pieces: Sequence[str]
    counts: Sequence[bool]
    scored: bool = False

    def lines(self) -> Iterator[str]:
        """`response: 12 tokens, 10 learned`, then a line for each stretch that counts or does
        not.
        """
        count = len(self.pieces)
        what = "scored at the last" if self.scored else f"{sum(self.counts) or 'none'} learned"
        yield f"{self.title}: {count} token{'s' * (count != 1)}, {what}"
        names = {False: "context: ", True: "scored:  " if self.scored else "learned: "}
        both = zip(self.pieces, self.counts, strict=True)
        for counts, stretch in groupby(both, key=lambda token: token[1]):
            text = "|".join(piece for piece, _ in stretch)
            text = text.replace("\n", BREAK).replace("\t", TAB)
            yield f"  {names[counts]}{text}"


@dataclass
class Inspection:
    """One row of a stage's data.

    title: the stage, and which row. turns: the row as data, who and what. notes: what else the
    stage does with it. tokens: the prompt, then each response.
    """

    title: str
    turns: Sequence[tuple[str, str]]
    notes: list[str] = field(default_factory=list)
    tokens: list[Tokens] = field(default_factory=list)

    def text(self) -> str:
        """All of it for a terminal, which obeys nothing in it."""
        parts = ["\n".join([self.title, *(f"note: {note}" for note in self.notes)])]
        for who, what in self.turns:
            lines = "\n  ".join(what.split("\n"))
            parts.append(f"{who}\n  {lines}")
        for tokens in self.tokens:
            parts.append("\n".join(tokens.lines()))
        return printable("\n\n".join(parts))


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
    trained, encoder = run.stages[name], run.model_source(BASE).encoder
    assert encoder is not None
    entries = specs([stage.settings, stage.component.options], DataSpec)
    learned = stage.settings.data if stage.settings is not None else None
    if learned is not None:
        entries = [learned]
    if not entries:
        why = f"{stage.component.name} works on other stages' results"
        raise DataError(f"stage '{name}' reads no data: {why}")
    for source in entries[0].sources:
        if source.stage is not None and not run.store.data(source.stage).is_file():
            raise DataError(
                f"stage '{name}' reads the data of '{source.stage}', which {folder} does not have\n"
                f"help: run the recipe as far as '{source.stage}' first"
            )
    groups = run.data.read(entries[0]).groups
    algorithm = None
    if learned is None:
        groups = prompts_of(groups)
    elif isinstance(trained, TrainingStage):
        algorithm = trained.plugin(stage.component)
        if isinstance(algorithm, Algorithm):
            groups = trained.select(groups)
    count = len(groups)
    if not 1 <= row <= count:
        rows = f"{count} row{'s' * (count != 1)}"
        raise DataError(f"stage '{name}' has {rows}, so there is no row {row}")
    group = groups[row - 1]
    title = f"{name} ({stage.component.name}): row {row} of {count}"
    if group.origin:
        title += f" ({group.origin})"
    found = Inspection(title, [(one.title, one.text) for one in readable_turns(group)])
    others = dict(group.meta)
    if group.responses and others.pop("weight", None) is not None:
        found.notes.append(f"weight in the loss, by its column: {group.weight:g}")
    if others:
        columns = [f"{key}: {value!r:.200}" for key, value in others.items()]
        found.notes.append(f"other columns: {', '.join(columns)}")
    if learned is None:
        prompt = encoder.prompt(group.prompt, group.tools)
        title = "prompt, after which the policy writes"
        found.tokens.append(Tokens(title, _pieces(encoder, (), prompt), [False] * len(prompt)))
    elif stage.settings is not None and isinstance(algorithm, Algorithm):
        _mark(found, encoder, group, algorithm, stage.settings.max_length)
    else:
        found.notes.append(f"{stage.component.name} renders and tokenizes its rows itself")
    return found


def _mark(
    found: Inspection, encoder: Encoder, group: Group, algorithm: Algorithm, most: int
) -> None:
    """Add the tokens of a row that an algorithm learns from."""
    turns, scoring = call(algorithm, "trained_turns"), algorithm.trains is Trains.REWARD
    encoder.forget_counts()
    encoded = encoder.encode(group, most, turns=turns, scoring=scoring)
    for name, count in encoder.counts.items():
        if count:
            found.notes.append(drop_reason(name, count))
    if encoded is None:
        return
    prompt = encoded.prompt
    if prompt:
        found.tokens.append(Tokens("prompt", _pieces(encoder, (), prompt), [False] * len(prompt)))
    for names, response in zip(response_names(encoded.group), encoded.responses, strict=True):
        counts = list(map(bool, response.mask))
        if scoring:
            counts = [False] * (len(counts) - 1) + [True]
        title = ", ".join([*names, *["truncated"] * response.truncated])
        text = _pieces(encoder, prompt, response.tokens)
        found.tokens.append(Tokens(title, text, counts, scoring))


def _pieces(encoder: Encoder, before: Sequence[int], ids: Sequence[int]) -> list[str]:
    """The text of each token. before: tokens in front of them, on which spaces depend.

    A character that the last tokens only begin is the text of the token that ends it.
    """
    texts, start = list[str](), [*before[-BEFORE:]]
    decoded = _decoded(encoder, start)
    for count in range(1, len(ids) + 1):
        longer = _decoded(encoder, [*start, *ids[:count]])
        texts.append(longer[len(decoded) :])
        decoded = longer
    return texts


def _decoded(encoder: Encoder, ids: Sequence[int]) -> str:
    how = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return str(encoder.tokenizer.decode(list(ids), **how)).rstrip(REPLACEMENT)

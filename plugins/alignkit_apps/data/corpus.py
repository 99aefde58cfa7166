"""The rows of a data entry on disk: read once by alignkit's readers, then kept, mapped and indexed by `datasets`.

What is kept lies in the cache, under a digest of the contents. A command that was stopped continues with the parts that
were done, and another command about the same rows reads nothing again.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.data.group import Group, Origin
from alignkit.data.reading import DataSource, RowReader
from alignkit.data.sources import OR_SKIP, DataSpec
from alignkit.errors import AlignkitError, BadRow, Cut, DataError, causes_of, no_disk
from alignkit.io.cache import cache_folder
from alignkit.io.commits import commit_of
from alignkit.io.digest import digest, file_digest, versions
from alignkit.io.source_code import plugin_digests
from alignkit.plugins import plugins
from alignkit.recipe.document import plain_data
from alignkit.recipe.load import made_recipe
from alignkit.recipe.schema import Recipe
from alignkit.runs.data import RunData
from alignkit_plugins.data import near, rules
from alignkit_plugins.data.rules import redacted_group

if TYPE_CHECKING:
    from datasets import Dataset

    from alignkit.tokens.chat_template import ChatOptions

BATCH = 2**25  # bytes of rows that a process works on at once
TOGETHER = 1000  # rows, at most; twice this many are worth several processes
COMMIT = partial(commit_of, "dataset")
CODE = [*Path(__file__).parent.glob("*.py"), Path(rules.__file__)]  # decides what is kept


def no_stage(name: str) -> Path:
    raise DataError(f"stage '{name}': only the rows of files can be looked at")


@dataclass(frozen=True)
class Corpus:
    """The rows of a data entry.

    rows: columns `source`, `row` (from 1), `raw` (its JSON), and `bad`, why it cannot be parsed. sources: the names.
    readers: one for each source, which knows its format. key: a digest of all of that.
    """

    spec: DataSpec
    rows: Dataset
    readers: Sequence[RowReader]
    key: str

    @cached_property
    def files(self) -> list[str]:
        """The names of the sources, from the current folder if they are below it."""
        return [short(source.name) for source in self.spec.sources]

    @property
    def name(self) -> str:
        return ", ".join(self.files)

    @property
    def together(self) -> int:
        """How many rows are worked on at once: fewer if they are long."""
        return max(1, min(TOGETHER, BATCH * len(self.rows) // max(1, self.rows.data.nbytes)))

    def where(self, at: int) -> tuple[str, int]:
        """The file of a row, as in `files`, and the row's number there."""
        row = self.rows[at]
        return self.files[row["source"]], row["row"]

    def mapped(
        self, name: str, function: Callable[..., Any], columns: Mapping[str, str], options: Any = None, **given: Any
    ) -> Any:
        """The Arrow table that a function makes of batches of rows, instead of theirs; several rows for one, or none.

        function(batch, indices, readers, **given): module-level, so that other processes can call it. columns: its
        types, by name. name, options: what its results depend on besides this code.
        """
        from datasets import Features, Value

        key = digest([self.key, name, options])[:32]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        folder = _folder(key)
        made = _quiet(
            lambda: self.rows.map(
                function,
                batched=True,
                batch_size=self.together,
                writer_batch_size=self.together,
                with_indices=True,
                remove_columns=self.rows.column_names,
                features=Features({name: Value(kind) for name, kind in columns.items()}),
                fn_kwargs={"readers": self.readers, **given},
                num_proc=cores if len(self.rows) >= 2 * TOGETHER and cores > 1 else None,
                cache_file_name=str(folder / "rows.arrow"),
                new_fingerprint=key,
                desc=name,
            ),
            folder,
        )
        return made.data.table

    def groups(self) -> Iterator[list[Group] | BadRow]:
        """Every row, as groups or as what is wrong with it."""
        for batch in self.rows.iter(self.together):
            yield from (row for _, row in parsed(batch, range(len(batch["raw"])), self.readers))


def short(name: str, folder: Path | None = None) -> str:
    """A path from a folder, by default the current one, if it is below it; any other name unchanged."""
    path, folder = Path(name), folder or Path.cwd()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else name


def open_corpus(word: str) -> Corpus:
    """The rows of a data entry as on the command line."""
    return corpus_of(entry(word).data)


def entry(word: str, rules: Sequence[str] = ()) -> Any:
    """The options of a step `clean` of what `data:` may be: a file, a folder, a hub data set, or YAML as in a recipe.

    rules: its other options, as KEY=VALUE.
    """
    value = plain_data(word, f"'{word}'")
    if isinstance(value, str) and not Path(value).is_file() and (Path(value).is_dir() or _on_hub(value)):
        value = {"hub": value}
    return recipe_of(value, rules=rules).stages["data"].component.options


def recipe_of(value: Any, base: str = "tiny", rules: Sequence[str] = ()) -> Recipe:
    """A recipe whose only stage cleans a data entry. base: its model."""
    data = {"model": {"base": base}, "stages": {"data": {"step": "clean", "data": value}}}
    return made_recipe(data, "alignkit data", [f"stages.data.{rule}" for rule in rules], plugins().registry)


def text_of(model: str) -> tuple[Any, ChatOptions, tuple[int, ...]]:
    """What an `Encoder` of a model is made of, first its tokenizer. model: named as in a recipe."""
    from alignkit.io.progress import Reporter
    from alignkit.models.loading import load_text
    from alignkit.recipe.schema import BASE
    from alignkit.runs.bases import RunBases, resolved_spec

    recipe = recipe_of([{"text": __file__}], model)
    base = RunBases(recipe, Path("runs"), Reporter())[BASE]
    spec = resolved_spec(recipe, BASE, datetime.date.today().isoformat())
    return load_text(spec, base.source, base.commit, with_weights=False)


def _on_hub(word: str) -> bool:
    parts = word.split("/")
    return len(parts) == 2 and all(parts) and parts[0] not in (".", "..", "~") and not Path(word).suffix


def corpus_of(spec: DataSpec) -> Corpus:
    """The rows of a data entry. Raises DataError if there is none, or if no format reads them."""
    import datasets
    from datasets import Dataset, Features, Value

    (datasets.enable_progress_bars if sys.stderr.isatty() else datasets.disable_progress_bars)()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    readers = [_reader(source) for source in spec.sources]
    facts = [_facts(reader) for reader in readers]
    code = {path.name: file_digest(path) for path in CODE}
    key = digest([facts, code, versions(["datasets", "rensa", "py3langid"])])[:32]
    kinds = {"source": "int32", "row": "int64", "raw": "large_string", "bad": "string"}
    rows = _quiet(
        lambda: Dataset.from_generator(
            _numbered,
            features=Features({name: Value(kind) for name, kind in kinds.items()}),
            cache_dir=str(_folder(key)),
            gen_kwargs={"sources": spec.sources},  # a list would be cut into shards
            fingerprint=key,
            writer_batch_size=100,
        ),
        _folder(key),
    )
    return Corpus(spec, rows, readers, key)


def _facts(reader: RowReader) -> list[Any]:
    """What decides how the rows of a source are read: the source, its contents, and its format."""
    options = reader.format.options if reader.format is not None else None
    form = plugins().registry.get("format", reader.format_name)
    source = [repr(replace(reader.source, format=None)), RunData(no_stage, 0).identity(reader.source)]
    return [*source, form.name, str(options), form.version, plugin_digests(form.source_path)]


def _reader(source: DataSource) -> RowReader:
    """A reader that knows its source's format, by the first row that can be parsed."""
    reader = RowReader(source, _formats())
    why = "the source is empty"
    for number, row in reader.rows(no_stage, COMMIT):
        if isinstance(row, BadRow):
            why = f"no row can be parsed; the first: {source.name}:{number}: {row}"
            continue
        if reader.format is None:
            reader.recognize(row)
        return reader
    raise DataError(f"{source.name}: no usable row; {why}")


def _formats() -> Mapping[str, Any]:
    return {entry.name: entry.implementation for entry in plugins().registry.registrations("format")}


def _numbered(sources: Sequence[DataSource]) -> Iterator[dict[str, Any]]:
    """The rows of all sources, up to the limit of each."""
    for place, source in enumerate(sources):
        good = 0
        for number, row in RowReader(source, _formats()).rows(no_stage, COMMIT):
            if isinstance(row, Cut) and source.on_bad_row == "error":
                raise DataError(f"{source.name}:{number}: {row}\nhelp: repair the file{OR_SKIP}")
            bad = isinstance(row, BadRow)
            raw = "" if bad else as_json(row).decode()[:-1]
            yield {"source": place, "row": number, "raw": raw, "bad": str(row) if bad else ""}
            good += not bad
            if good == source.limit:
                break


def as_json(row: Any) -> bytes:
    """A row as a line of JSON."""
    try:
        return f"{json.dumps(row, ensure_ascii=False, default=str)}\n".encode()
    except UnicodeEncodeError:  # half of a character
        return f"{json.dumps(row, default=str)}\n".encode()


def _folder(key: str) -> Path:
    folder = cache_folder() / "data" / key
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _quiet(make: Callable[[], Dataset], folder: Path) -> Dataset:
    """What `datasets` makes in a folder, and errors as alignkit's. What was not finished is removed."""
    _working.append(True)
    try:
        return make()
    except BaseException as error:
        for unfinished in folder.glob("tmp*"):
            unfinished.unlink(missing_ok=True)
        causes = [*causes_of(error)]
        if any(isinstance(one, KeyboardInterrupt) for one in causes):
            raise KeyboardInterrupt from None
        ours = (one if isinstance(one, AlignkitError) else None for one in causes)
        if better := next(filter(None, [*ours, *map(no_disk, reversed(causes))]), None):
            raise better from None
        raise
    finally:
        _working.clear()


_working: list[bool] = []  # not empty while `datasets` may start processes


def _leave_interrupts_to_the_parent() -> None:
    """A process that Ctrl-C ends would leave the others waiting for its results. The first one ends them all."""
    if _working:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_interrupts_to_the_parent)


def parsed(
    batch: Mapping[str, Sequence[Any]], indices: Iterable[int], readers: Sequence[RowReader]
) -> Iterator[tuple[int, list[Group] | BadRow]]:
    """The rows of a batch as groups, or as what is wrong with them, each with its place."""
    columns = (batch[name] for name in ("source", "row", "raw", "bad"))
    for at, source, number, raw, bad in zip(indices, *columns, strict=True):
        try:
            if bad:
                raise BadRow(bad)
            reader = readers[source]
            yield at, reader.groups(json.loads(raw), Origin(reader.source.name, number, source=source))
        except BadRow as error:
            yield at, error


def unread_text(count: int, where: tuple[str, int], reason: str) -> str:
    """That rows cannot be read."""
    return f"rows that cannot be read: {count:,}, the first: {where[0]}:{where[1]}: {reason}"


def units(corpus: Corpus, kinds: Sequence[near.Kind] = near.KINDS, personal: Collection[int] = ()) -> Any:
    """The texts of all rows, as `near.table` has them; of one that cannot be read the reason. personal: to redact."""
    options = [*kinds, *sorted(personal)]
    return corpus.mapped("comparing texts", _units, near.COLUMNS, options, kinds=tuple(kinds), personal=personal)


def _units(
    batch: Mapping[str, Any],
    indices: Sequence[int],
    readers: Sequence[RowReader],
    kinds: Sequence[near.Kind],
    personal: Collection[int],
) -> dict[str, list[Any]]:
    def said(at: int, row: list[Group] | BadRow) -> Iterable[near.Unit]:
        if isinstance(row, BadRow):
            return [near.Unit("unread", 0, str(row))]
        return near.units_of([redacted_group(group) for group in row] if at in personal else row, kinds)

    return near.table((at, said(at, row)) for at, row in parsed(batch, indices, readers))

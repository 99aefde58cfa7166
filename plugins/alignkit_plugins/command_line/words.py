"""What the words of a command mean: policies, rewards and judges on one base model, and keys that
are read as a recipe's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from shlex import shlex
from typing import Any, TypeVar

from alignkit.contract.options import DataRef, Options
from alignkit.contract.settings import KEYS, ModelSpec
from alignkit.errors import RecipeError, did_you_mean, refuse
from alignkit.host.plugins import plugins
from alignkit.io.digest import commit_of
from alignkit.io.text import is_dir, is_file
from alignkit.recipe.mistakes import problems_of, validated
from alignkit.recipe.references import Resolver
from alignkit.recipe.rules import MODEL, broken
from alignkit.recipe.schema import BASE, Stage
from alignkit.recipe.sources import DataSpec, SourceReader
from alignkit.recipe.yaml import Document, Keys, dump, parse_document, plain_data, rewritten
from alignkit_plugins.command_line.find import Model, find, is_model

STAGE = "evaluate"
_OVERRIDE = re.compile(r"[\w-]+(\.[\w-]+)*=|~")
LOOKED_AT = 20  # rows that show what columns mean
_PATHS = {"path", "folder", "file"}  # keys whose values are never models


@dataclass(frozen=True)
class NamedPolicy:
    """A policy of a command line. word: that named it. reference: what a recipe calls it."""

    word: str
    model: Model
    reference: str


@dataclass(frozen=True)
class Named:
    """What a command line names.

    keys: of `model` in a recipe: the base that everything shares; empty without a model. policies:
    by what to call them. rewards, judges: as options of a step. data: a file of prompts or answers,
    as in a recipe.
    """

    keys: Mapping[str, Any] = field(default_factory=dict)
    policies: Mapping[str, NamedPolicy] = field(default_factory=dict)
    rewards: Sequence[Any] = ()
    judges: Sequence[Any] = ()
    data: Any = None

    @property
    def names(self) -> dict[str, str]:
        """What to call each policy, by its word."""
        return {policy.word: name for name, policy in self.policies.items()}


def read_words(
    words: Sequence[str],
    rewards: Sequence[str] = (),
    judges: Sequence[str] = (),
    data: str | None = None,
) -> Named:
    """Return what policies, rewards, judges and a file mean.

    Raises RecipeError for a word that names no model, and for models on several bases; RunFailed
    for a damaged one.
    """
    models = {word: find(word) for word in words}
    for word, model in models.items():
        if model.is_reward:
            help = f"name it as a reward: --reward {word}"
            refuse(f"{word} is a reward model, but a policy is needed", help)
    raters: dict[str, Model] = {}

    def collect(text: str, keys: Keys) -> str:
        if _PATHS.isdisjoint(keys) and is_model(text):
            raters[text] = find(text)
        return text

    def name(text: str, keys: Keys) -> Any:
        if text not in raters:
            return text
        reference = _reference(raters[text], base)
        return {"folder": reference} if raters[text].is_reward else reference

    options: dict[str, Any] = {"rewards": [*map(_value, rewards)], "judges": [*map(_value, judges)]}
    rewritten(options, collect)
    for word in rewards:
        if word in raters and not raters[word].is_reward:
            help = "name a stage that trained a reward model"
            refuse(f"{word} is a policy, but a reward is needed", help)
    base = _base_of([*models.values(), *raters.values()])
    labels = [model.label for model in models.values()]
    policies = {}
    for word, model in models.items():
        title = model.label if labels.count(model.label) == 1 else word
        policies[title] = NamedPolicy(word, model, _reference(model, base))
    return Named(base, policies, **rewritten(options, name), data=data and _value(data))


def _base_of(models: Sequence[Model]) -> Mapping[str, Any]:
    """The keys of `model` in the recipe: those of the adapters' base, or else of the first
    policy.
    """
    adapters = [model.keys for model in models if model.is_adapter]
    candidates = adapters or [model.keys for model in models if not model.is_reward]
    for keys in candidates:
        is_bare = len(keys) == 1  # a bare name takes the settings of a run
        if not is_bare and _is_same(keys, candidates[0]):
            return keys
    return next(iter(candidates), {})


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in ("base", "revision"))


def _reference(model: Model, base: Mapping[str, Any]) -> str:
    """What a recipe with this base model calls a model: `base`, or its folder."""
    if not _is_same(model.keys, base):
        if model.folder is not None and not model.is_adapter:
            return str(model.folder)
        text = f"{model.label} needs the base model {model.keys['base']}, not {base['base']}"
        refuse(
            text,
            "one base per command; `alignkit export RUN/STAGE --merge` makes a whole model",
        )
    return str(model.folder) if model.is_adapter else BASE


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the words of a command into policies and overrides."""
    policies = [
        word for word in words if is_file(word) or is_dir(word) or not _OVERRIDE.match(word)
    ]
    return policies, [word for word in words if word not in policies]


def sampling_of(policies: Iterable[NamedPolicy]) -> dict[str, Any]:
    """Sampling keys as in training, but the temperature: of the first policy that learned from its
    own samples.
    """
    rollout = next((policy.model.rollout for policy in policies if policy.model.rollout), {})
    return {
        key: rollout[key] for key in KEYS if rollout.get(key) is not None and key != "temperature"
    }


def recipe_of(
    named: Named, prompts: str, baseline: str | None = None, limit: int | None = None
) -> dict[str, Any]:
    """The recipe of `alignkit evaluate` as plain data. baseline: one of the words."""
    references = {policy.word: policy.reference for policy in named.policies.values()}
    keys = {
        "step": "evaluate",
        "policies": list(references.values()),
        "rewards": named.rewards,
        "judges": named.judges,
        "prompts": _value(prompts),
        "sampling": sampling_of(named.policies.values()),
        "baseline": references.get(baseline or ""),
        "limit": limit,
    }
    step = {key: value for key, value in keys.items() if value}
    return {"name": STAGE, "model": dict(named.keys), "stages": {STAGE: step}}


def _value(text: str) -> Any:
    """A word of the command line as YAML."""
    return plain_data(text, f"'{text}'")


# Keys, read as a recipe's

Read = TypeVar("Read", bound=Options)


class _Data(Options):
    data: DataRef


def read_as(
    kind: type[Read], keys: Mapping[str, Any], command: str, overrides: Sequence[str] = ()
) -> tuple[Read, Stage, Document]:
    """Keys as these options, the stage whose they would be, and the document that they are in.

    command: who asks, for errors. overrides: KEY=VALUE. Relative paths start at the current folder.
    Raises RecipeError with every problem found.
    """
    document = parse_document(dump(keys), Path(command), overrides)
    resolver = Resolver(plugins(), document.path.parent)
    options, mistakes = validated(kind, document.data, resolver)
    if isinstance(model := getattr(options, "model", None), ModelSpec):
        mistakes += [mistake.below("model") for mistake in broken(MODEL, model)]
    problems = [*document.problems, *problems_of(document, mistakes)]
    if problems or options is None:
        raise RecipeError(problems)
    return options, resolver.stage, document


def data_of(value: Any, command: str) -> DataSpec:
    """A data entry, as in a recipe. command: who asks, for errors."""
    spec: DataSpec = read_as(_Data, {"data": value}, command)[0].data
    return spec


# Columns of files


def named_columns(text: str, option: str = "--columns") -> dict[str, str]:
    """Column names by the names that a format expects, from `prompt=question,label="by Ann"`. Further
    labels are `label_2`, `label_3` and so on. Of `--labels`, a name may have an equals sign.
    """
    words = shlex(text, posix=True)
    words.whitespace, words.whitespace_split = ",", True
    words.quotes, words.escape, words.commenters = '"', "", ""
    columns: dict[str, str] = {}
    for part in words:
        name, _, column = part.rpartition("=") if option == "--labels" else part.partition("=")
        if name == "label" and name in columns:
            name = f"label_{1 + sum(each.startswith(name) for each in columns)}"
        if not name or not column or name in columns:
            help = 'as in prompt=question or left=A, with commas between; a value with a comma stands in ""'
            refuse(f"{option}: '{part}' is not NAME=VALUE with a new name", help)
        columns[name] = column
    return columns


def reader_of(entry: Any, command: str) -> SourceReader:
    """What reads a data entry. command: who asks, for errors."""
    (source,) = data_of(entry, command).sources
    return SourceReader(source, plugins().usable("format"), Path, partial(commit_of, "dataset"))


def first_rows(path: Path) -> list[Mapping[str, Any]]:
    """A few rows of a file; none if it is no table."""
    rows = [row for _, row in islice(reader_of(str(path), "--columns").stored_rows(), LOOKED_AT)]
    return [row for row in rows if isinstance(row, Mapping)]


def first_row(path: Path) -> Mapping[str, Any]:
    """The first of the rows of a file that say most, among a few; empty if it is no table."""
    rows = first_rows(path)
    return max(rows, key=lambda row: sum(map(is_filled, row.values())), default={})


def is_filled(cell: Any) -> bool:
    """Whether a cell holds anything."""
    return cell not in (None, "", [])


def check_columns(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Refuse a column that is in none of these rows. columns: by the names that a format expects."""
    have = [*chain.from_iterable(rows)]
    for name, column in columns.items():
        if column not in have:
            help = did_you_mean(column, have, "columns")
            refuse(f"--columns {name}={column}: no file has a column '{column}'", help)

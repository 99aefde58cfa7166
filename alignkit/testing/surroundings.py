"""What all kits share: the error, comparisons of what a plugin returns, and what a run puts around
a plugin: options read as in a recipe, the models of other stages, folders, and data.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from alignkit.contract.options import Options
from alignkit.contract.reward import Context
from alignkit.data.group import (
    Group,
    Response,
    group_from_json,
    group_to_json,
    with_responses,
)
from alignkit.errors import AlignkitError, BadRow
from alignkit.host.plugins import plugins
from alignkit.host.registry import Component, Registration
from alignkit.recipe.mistakes import Mistakes, validated
from alignkit.recipe.references import Resolver
from alignkit.recipe.schema import RewardSpec
from alignkit.recipe.sources import DataSource, DataSpec
from alignkit.testing.examples import example_groups
from alignkit.testing.tiny import TinyModels, tiny_model
from alignkit.tokens.encoder import Encoder

SEED = 0
Variants = Mapping[str, tuple[Sequence[Any], str]]  # what they are -> their results, and what to do


class ConformanceError(AssertionError):
    """The plugin breaks a rule; the message says which one and what to look for."""


class Violations(list[str]):
    """The rules that a plugin breaks, a line each."""

    @contextmanager
    def unchanged(self, what: str, *arguments: Any) -> Iterator[None]:
        """Check that a call in the block leaves its arguments as they are."""
        before = copy.deepcopy(arguments)
        yield
        if not _equal(before, arguments):
            self.append(f"{what} that it is given: make new ones, as with dataclasses.replace")

    def compare(
        self, text: str, expected: Sequence[Any], variants: Variants, tolerance: float = 0.0
    ) -> None:
        """Add a line about the first result of each variant that differs.

        text: of a line, with `{}` for what the variant is. tolerance: of numbers, relative above 1.
        """
        for cause, (actual, help) in variants.items():
            for index, (old, new) in enumerate(zip(expected, actual, strict=True)):
                if not _near(old, new, tolerance):
                    self.append(
                        f"{text.format(cause)} {index} from {old!r:.200} to {new!r:.200}: {help}"
                    )
                    break

    def must_be_json(self, what: str, value: Any) -> None:
        """Check that a value is JSON, and the same when it is read again."""
        try:
            again = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            self.append(f"{what} is not JSON: {error}")
        else:
            if again != value:
                self.append(f"{what} changes when saved as JSON and loaded: {value!r}")


def _near(old: Any, new: Any, tolerance: float) -> bool:
    if isinstance(old, int | float) and isinstance(new, int | float):
        return abs(new - old) <= tolerance * max(1.0, abs(old), abs(new))
    return bool(old == new)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _equal(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


@dataclass
class Surroundings:
    """The run around one plugin.

    folder: the recipe's, where relative paths start. cache: kept while the check lasts. groups:
    what the plugin's data options hold; None: example groups. problems: the rules that the plugin
    breaks.
    """

    folder: Path
    cache: Path
    groups: Sequence[Group] | None = None
    problems: Violations = field(default_factory=Violations)

    @cached_property
    def models(self) -> TinyModels:
        return TinyModels()

    @cached_property
    def rollouts(self) -> list[Group]:
        """Groups of sampled responses. One response says nothing."""
        if self.groups is not None:
            return list(self.groups)
        encoder = Encoder(tiny_model().tokenizer)
        groups = example_groups(3, encoder)
        silent = Response(text="", tokens=encoder.end_of_turn)
        groups[-1] = replace(groups[-1], responses=(*groups[-1].responses[:2], silent))
        return [replace(group, pairs=None) for group in groups]

    @cached_property
    def data(self) -> list[Group]:
        """Groups as a data set has them."""
        return list(example_groups() if self.groups is None else self.groups)

    @cached_property
    def context(self) -> Context:
        return Context(self.models, self.cache, self.folder, SEED, self.load, stage="")

    def load(self, spec: Any) -> list[Group]:
        """The groups of a DataRef option."""
        if not isinstance(spec, DataSpec):
            raise BadRow(f"load takes the value of a DataRef option, not {spec!r:.60}")
        return list(self.data)

    @cached_property
    def resolver(self) -> AnyNames:
        return AnyNames(plugins(), self.folder)

    def component(self, kind: str, cls: Any, options: dict[str, Any]) -> Component:
        """The plugin with these options. Raises ConformanceError if a recipe with them would be
        refused.
        """
        read, mistakes = validated(getattr(cls, "Options", Options), options, self.resolver)
        if read is None:
            raise _refused(Mistakes(*mistakes))
        return Component(kind, cls.__name__, Registration(cls.__name__, cls), read)

    def combination(self, component: Component) -> RewardSpec:
        """A combination with its parts. Raises ConformanceError as `component` does."""
        try:
            return self.resolver.combination(component)
        except Mistakes as error:
            raise _refused(error) from error


def _refused(error: Mistakes) -> ConformanceError:
    texts = [f"{each.text} ({each.help})".removesuffix(" ()") for each in error.mistakes]
    return ConformanceError(f"a recipe with these options is refused: {'; '.join(texts)}")


class AnyNames(Resolver):
    """Names in options, where any name may be that of a stage; `stage.roles` has those that are."""

    def read_stage(self, value: str) -> str:
        self.stage.roles[value] = None
        return value

    read_policy = read_from = read_base = read_stage

    def read_data(self, value: Any) -> Any:
        entries = value if isinstance(value, list) else [value]
        return DataSpec(tuple(DataSource(path=Path(str(entry))) for entry in entries))

    def read_reward(self, value: Any) -> RewardSpec:
        """An installed reward; any other name is a stage that trains a reward model."""
        if isinstance(value, RewardSpec):
            return value
        name, _ = self.split("reward", value)
        if name == "folder":
            return RewardSpec("folder", "folder")
        if self.registry.has("reward", name):
            return super().read_reward(value)
        return RewardSpec("stage", self.read_stage(name))


def turned_groups(groups: Sequence[Group]) -> list[Group]:
    """The groups in the opposite order, with their responses in the opposite order; pairs would be
    wrong.
    """
    return [with_responses(group, group.responses[::-1], pairs=None) for group in reversed(groups)]


def why_not_stored(group: Group) -> str:
    """Why stages cannot store a group as JSON; empty if they can."""
    try:
        same = group_from_json(group_to_json(group)) == group
    except (BadRow, TypeError, ValueError) as error:
        return f"cannot be stored as JSON: {error}"
    return "" if same else "changes when it is stored as JSON: use tuples and plain values"


def conform(
    kind: str,
    plugin: Any,
    options: Mapping[str, Any] | None,
    check: Callable[[Surroundings, Component], None],
    *,
    folder: Path | None = None,
    groups: Sequence[Group] | None = None,
) -> None:
    """Raise ConformanceError listing the problems that `check` adds, and what registration or a
    recipe would refuse.

    kind: of the plugin. folder: where relative paths start; default: the current one.
    """
    name = getattr(plugin, "__name__", repr(plugin))
    try:
        Registration(name, plugin, kind=kind).check(plugin)
    except TypeError as error:
        raise ConformanceError(f"{name}: {error}") from None
    with tempfile.TemporaryDirectory(prefix="alignkit-testing-") as cache:
        around = Surroundings(folder or Path.cwd(), Path(cache), groups)
        problems = around.problems
        try:
            component = around.component(kind, plugin, dict(options or {}))
            check(around, component)
        except (AlignkitError, ConformanceError) as error:  # a mistake that a run would report
            problems.append(str(error))
        finally:
            if "models" in vars(around):
                around.models.close()
    if problems:
        raise ConformanceError(
            "\n".join(f"{name}: {problem}" for problem in dict.fromkeys(problems))
        )

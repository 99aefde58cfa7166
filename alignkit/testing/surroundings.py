"""What a run puts around a plugin: options read as in a recipe, the models of other stages,
folders, and data.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from alignkit.data.group import Group, Response, group_from_json, group_to_json
from alignkit.errors import AlignkitError, BadRow
from alignkit.options import Options
from alignkit.plugins import plugins
from alignkit.recipe.mistakes import Mistakes, validated
from alignkit.recipe.references import Reading
from alignkit.recipe.schema import RewardSpec
from alignkit.registry import Component, Registration
from alignkit.reward import Context
from alignkit.testing.examples import example_groups
from alignkit.testing.reads import recorded, unnamed
from alignkit.testing.rules import ConformanceError, Problems
from alignkit.testing.tiny import TinyModels, tiny_model
from alignkit.tokens.encoder import Encoder

SEED = 0
READERS = ("reward", "judge", "step")  # of what is part of a stage's key
UNNAMED = (
    "which no option names: give it an option of the type Path, so that a stage runs again when "
    "the file changes"
)


@dataclass(frozen=True)
class Data:
    """A DataRef option as a plugin gets it. entry: what the recipe says."""

    entry: Any


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
    problems: Problems = field(default_factory=Problems)

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
        if not isinstance(spec, Data):
            raise BadRow(f"load takes the value of a DataRef option, not {spec!r:.60}")
        return list(self.data)

    @cached_property
    def reading(self) -> AnyNames:
        return AnyNames(plugins(), self.folder)

    def component(self, kind: str, cls: Any, options: dict[str, Any]) -> Component:
        """The plugin with these options. Raises ConformanceError if a recipe with them would be
        refused.
        """
        read, mistakes = validated(getattr(cls, "Options", Options), options, self.reading)
        if read is None:
            raise _refused(Mistakes(*mistakes))
        return Component(kind, cls.__name__, Registration(cls.__name__, cls), read)

    def combination(self, component: Component) -> RewardSpec:
        """A combination with its parts. Raises ConformanceError as `component` does."""
        try:
            return self.reading.combination(component)
        except Mistakes as error:
            raise _refused(error) from error


def _refused(error: Mistakes) -> ConformanceError:
    texts = [f"{each.text} ({each.help})".removesuffix(" ()") for each in error.mistakes]
    return ConformanceError(f"a recipe with these options is refused: {'; '.join(texts)}")


class AnyNames(Reading):
    """Names in options, where any name may be that of a stage; `stage.roles` has those that are."""

    def read_stage(self, value: str) -> str:
        self.stage.roles[value] = None
        return value

    read_policy = read_from = read_base = read_stage

    def read_data(self, value: Any) -> Any:
        return Data(value)

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
    return [
        replace(group, responses=group.responses[::-1], pairs=None) for group in reversed(groups)
    ]


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
            with recorded() as opened:
                check(around, component)
            if kind in READERS:
                problems += [
                    f"reads {path}, {UNNAMED}" for path in unnamed(opened, component, around.folder)
                ]
        except (AlignkitError, ConformanceError) as error:  # a mistake that a run would report
            problems.append(str(error))
        finally:
            if "models" in vars(around):
                around.models.close()
    if problems:
        raise ConformanceError(
            "\n".join(f"{name}: {problem}" for problem in dict.fromkeys(problems))
        )

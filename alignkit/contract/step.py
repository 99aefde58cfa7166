"""The interface of a step: a stage that makes data or files and trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pydantic.dataclasses
from pydantic import InstanceOf

from alignkit.contract.options import WithOptions
from alignkit.contract.report import Report
from alignkit.contract.reward import Context
from alignkit.data.group import Group
from alignkit.io.atomic import write_json, write_text
from alignkit.io.text import Say

if TYPE_CHECKING:
    from pathlib import Path


@pydantic.dataclasses.dataclass(frozen=True)
class Artifact:
    """The result of a step.

    Attributes:
        groups: Written to `data.jsonl`; later stages read them with `data: STAGE` or `prompts:
            STAGE`.
        policy: A stage reference such as `sft@2`; `from: STAGE` then starts from it.
        summary: Small JSON, stored in stage.json.
        text: Printed below it.
        report: Printed at the end of the run, as wide as the terminal, and written to `report.txt`
            and `report.md`.
    """

    groups: Sequence[InstanceOf[Group]] | None = None
    policy: str | None = None
    summary: Mapping[str, Any] | None = None
    text: str = ""
    report: Report | None = None


@dataclass(frozen=True)
class StepContext(Context):
    """Everything that a step can use: `Context` and the following.

    Attributes:
        out: The stage's folder.
        scorer: Makes the scorer of a RewardRef option: `scorer.score(groups)` returns the groups
            with their scores.
        map: Called as `map(name, rows, f)`: the results of f over rows. They are stored by the
            content of the rows, so a run that was killed continues after the last complete chunk.
            For a name in `Step.maps`, f is `self.mapper(name, context)`.
        log: Called as `log(**metrics)`: writes metrics.
        say: Tells what the step does now; a terminal keeps only lines with `warning: `.
        base_of: Called as `base_of(policy)`: the name of the base model that a policy is on; None
            if that is unknown.
        recipe: The recipe of the run, as it was read; the folders of its stages are next to `out`.
        read: Reads a DataRef of any stage, as `load` does, but not as data of this stage.
    """

    out: Path
    scorer: Callable[[Any], Any]
    map: Callable[[str, Sequence[Any], Callable[[Sequence[Any]], Iterable[Any]]], list[Any]]
    log: Callable[..., None]
    say: Say
    base_of: Callable[[str], str | None] = lambda policy: None
    recipe: Any = None
    read: Callable[[Any], list[Group]] = lambda data: []

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file into the stage's folder, complete or not at all.

        Args:
            name: The name of the file.
            value: JSON data.
        """
        write_json(self.out / name, value)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file into the stage's folder, complete or not at all.

        Args:
            name: The name of the file.
            text: Its contents.
        """
        write_text(self.out / name, text)


@dataclass(frozen=True)
class StepData:
    """The data of a step before the first stage, for `Step.check_data`.

    Attributes:
        load: The groups of a DataRef option, as `StepContext.load` will return them; None if the
            option is not set, and for data that a stage makes or the hub has.
        check_prompts: Lets the rewards of a RewardRef option check the prompts of the responses
            that they will score; see `Reward.check_prompts`.
        recipe: As in `StepContext`.
        say: Prints a line.
    """

    load: Callable[[Any], list[Group] | None]
    check_prompts: Callable[[Any, Sequence[Group]], None]
    recipe: Any = None
    say: Say = lambda text: None


class Step(WithOptions):
    """Base class of a step. In a recipe its options are keys of the stage.

    Attributes:
        maps: Names of `context.map` whose rows other processes may carry out.
    """

    maps: ClassVar[tuple[str, ...]] = ()

    def check(self, folder: Path) -> None:
        """Raise RunFailed for a mistake of the user that shows without models, such as a missing
        package or file.

        Called by `alignkit check` and before the first stage of a run.

        Args:
            folder: The recipe's. Options of type `Path` are absolute, and their files exist.
        """

    def check_data(self, data: StepData) -> None:
        """Raise DataError for data that the step cannot use, so that no earlier stage trains in
        vain.

        Called by `alignkit check` and before the first stage of a run, after `check`.
        `DataError.option` says where in the recipe the mistake is. Data of other stages are seen by
        `run` only.

        Args:
            data: Reads the data of an option.
        """

    def mapper(self, name: str, context: StepContext) -> Callable[[Sequence[Any]], Iterable[Any]]:
        """The function of `context.map` for a name in `maps`: a result for each row of a chunk.

        Called in this process, and once in each worker: it depends on the options, the context's
        models, seed, stage and folders, and nothing that `run` found out. Rows and results are
        JSON, so tuples become lists.

        Args:
            name: One of `maps`.
        """
        raise NotImplementedError

    def run(self, context: StepContext) -> Artifact:
        """Do the work. Called again from the beginning after an interruption; `context.map` keeps
        its results.
        """
        raise NotImplementedError

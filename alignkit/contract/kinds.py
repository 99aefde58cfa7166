"""The interfaces of small kinds of plugins: filters, monitors, trackers, readers, launchers, and
schedules of the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from alignkit.contract.options import WithOptions
from alignkit.contract.settings import Settings
from alignkit.data.group import Group
from alignkit.io.digest import file_digest
from alignkit.io.text import Say


class Filter(WithOptions):
    """Base class of a filter: chooses among the scored groups of an iteration before the algorithm
    sees them.

    It must be a pure function of the groups: the same choice on every call, in any order of the
    groups.

    Attributes:
        reads_rewards: Whether it needs the responses' `reward`; a stage without one is then
            refused.
    """

    reads_rewards: ClassVar[bool] = True

    def keep(self, groups: Sequence[Group]) -> Sequence[bool]:
        """Whether to learn from each group, in order. They are all groups of the iteration that
        earlier filters kept.

        Responses that could not be scored are already left out; the scores of the others have the
        `reward` (`REWARD_KEY`).
        """
        raise NotImplementedError


@dataclass(frozen=True)
class MonitorReport:
    """What a monitor says of an iteration.

    Attributes:
        metrics: For metrics.jsonl.
        warnings: What the run prints.
        summary: JSON values for stage.json.
        stop: Why the stage ends now; empty if it continues.
        best: The iteration whose policy is then the result: this one, or the `best` of the last
            report, as only its weights are kept; 0: this one, and none are kept. It is the policy
            that the iteration began with: with `rollout.async_level` one update newer than the one that
            wrote its samples, but the one that `answer` asks.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    stop: str = ""
    best: int = 0


@dataclass(frozen=True)
class MonitoredStage:
    """What a monitor may ask of its stage.

    Attributes:
        settings: The stage's keys.
        folder: Where the monitor may keep files.
        done: The iterations before the stage resumed, whose files a monitor has written.
        scorer: Returns what scores groups, by `score(groups)`, with a RewardRef option.
        prompts: Returns the prompts of a DataRef option that leave room for a response.
        answer: Returns the current policy's answers to prompts, scored by the stage's reward:
            `answer(prompts, samples, iteration)`.
        on_main_process: Calls a function in the first process of the run only.
    """

    settings: Settings
    folder: Path
    done: int
    scorer: Callable[[Any], Any]
    prompts: Callable[[Any], list[Group]]
    answer: Callable[[Sequence[Group], int, int], list[Group]]
    on_main_process: Callable[[Callable[[], Any]], Any]


class Monitor(WithOptions):
    """Base class of a monitor: looks at the samples of every iteration, before they are learned
    from.

    When a stage resumes, a new monitor looks at all earlier samples again, from the run's files,
    and must say the same. Rewards in its options are never learned from; data in its options are
    prompts.
    """

    def check(self, settings: Settings) -> None:
        """Called before the run's first stage. Raise DataError for options that do not go with the
        stage's keys.

        Args:
            settings: The stage's keys.
        """

    def start(self, stage: MonitoredStage) -> Sequence[str]:
        """The stage begins or resumes; returns warnings.

        Args:
            stage: What it may ask of it.
        """
        return ()

    def observe(
        self, iteration: int, groups: Sequence[Group], metrics: Mapping[str, Any]
    ) -> MonitorReport:
        """Look at an iteration's scored samples.

        Args:
            iteration: Counts from 1.
            groups: Empty if their file was deleted before the stage resumed.
            metrics: The iteration's so far, such as `reward` and `kl`.
        """
        raise NotImplementedError("a monitor defines `observe`, which was `look` before")

    def finish(self, stopped: str) -> MonitorReport:
        """What is to be said at the end of the stage; only warnings and summary count.

        Args:
            stopped: Why it ended early.
        """
        return MonitorReport()


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker knows of a run.

    Attributes:
        folder: The run's.
        recipe: As plain data with absolute paths.
    """

    name: str
    folder: Path
    recipe: Mapping[str, Any] = field(default_factory=dict)


class Tracker(WithOptions):
    """Base class of a tracker. It observes: what it does, and whether it fails, changes no
    result.
    """

    def check(self) -> None:
        """Raise RunFailed for a mistake of the user, such as a missing package; called before the
        run's first stage.
        """

    def start(self, run: TrackedRun) -> None:
        """Begin, or continue after an interruption; called before the first line, in a run that has
        a new one.

        Args:
            run: Its name, folder and recipe.
        """

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers of a step or iteration of a stage.

        A run that is resumed repeats the steps after its last checkpoint.

        Args:
            stage: Its name.
            step: Counts from 1.
            metrics: Numbers by name.
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Write what is pending; the last call."""


class Reader:
    """Reads the files with one suffix, such as tables or databases, as rows. JSON and text need
    none.

    It is registered under its suffix, as in `add("reader", ".notes", Notes)`.

    Attributes:
        grows: Whether runs write into such files, so that a recipe may name one that does not exist
            yet.
    """

    grows: ClassVar[bool] = False

    def rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        """The numbered rows; one that cannot be read is a `BadRow`.

        Args:
            path: The file.

        Raises:
            DataError: For a file that is unreadable.
        """
        raise NotImplementedError

    def rows_of(
        self, source: Any, commit: Callable[[str, str | None], str | None]
    ) -> Iterator[tuple[int, Any]]:
        """The rows of a source of a recipe. Default: those of its file.

        Args:
            source: With the keys of the recipe, such as `path`.
            commit: Finds the commit of a data set on the hub and its revision.
        """
        return self.rows(source.path)

    def digest(self, path: Path) -> str:
        """A digest of what `rows` yields. A stage that read the file runs again when it changes.

        Args:
            path: The file.
        """
        return file_digest(path)

    def facts(self, path: Path) -> Mapping[str, Any]:
        """What stage.json keeps of the file next to the facts of all sources, for reports.

        Args:
            path: The file.
        """
        return {}


@dataclass(frozen=True)
class World:
    """The number of this process, and of all that run the recipe together.

    Attributes:
        process: The number of this one, from 0.
        processes: How many the run has.
    """

    process: int = 0
    processes: int = 1


class Launcher:
    """Base class of a launcher: whatever lets several processes run one recipe together, and asks
    engines.

    A run of one process with the engine `local` needs none. No recipe names it, so there must be one
    default.
    """

    def launch(self, processes: int) -> int:
        """Start this command in several processes of this machine; returns the exit code of the
        first one that fails.

        Each has the variables RANK, WORLD_SIZE and MASTER_PORT, as torch's launcher sets them.

        Args:
            processes: How many.
        """
        raise NotImplementedError

    def join(self, recipe: Any, folder: Path, world: World) -> Any:
        """Meet the other processes, each of which runs the recipe; returns the `Collectives` of the
        run.

        Raises RecipeError if several processes cannot run the recipe, and RunFailed if they do not
        meet or differ in what they run.

        Args:
            recipe: The recipe.
            folder: The run's.
            world: Which process this is.
        """
        raise NotImplementedError

    def engine(self, component: Any, folder: Path, *, stage: str, seed: int, say: Say) -> Any:
        """What asks the engine of a stage, and checks all that it returns: a `StageEngine`, as
        alignkit's own decoder is one.

        Args:
            component: The recipe's engine.
            folder: For published adapters and for files of the engine.
            stage: Its name.
            seed: The stage's.
            say: Prints a line.
        """
        raise NotImplementedError


# Schedules
#
# A schedule is a function `factor(step, total)` for step 0, 1, ... of `total`, so that a resumed run
# needs none of its past. It may take `warmup`, the steps in which alignkit lets the rate rise and
# after which it is asked, and `rate`, the highest one.


def constant(step: int, total: int) -> float:
    """Return the factor of the same rate after the warmup."""
    return 1.0


def linear(step: int, total: int, warmup: int) -> float:
    """Return a factor that falls to 0."""
    return max(0.0, 1 - (step - warmup) / max(1, total - warmup))


def cosine(step: int, total: int, warmup: int, num_cycles: float = 0.5) -> float:
    """Return a factor that falls to 0 as half a wave of the cosine."""
    return max(
        0.0, 0.5 * (1 + math.cos(math.pi * (1 - linear(step, total, warmup)) * 2 * num_cycles))
    )


# Schedules that alignkit itself provides, without options
SCHEDULES: dict[str, Callable[..., Any]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
}

"""A stage of a run, run again in a temporary folder, which sees the results of the other stages.

The run's own folder is only read: the rerun gets links to the other stages, and copies of what it could write.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.errors import OutOfResource
from alignkit.io.progress import Reporter
from alignkit.io.stage_results import EARLIER
from alignkit.plugin_errors import blaming
from alignkit.plugins import plugins
from alignkit.runs.process import resource_error
from alignkit.runs.run import Run
from alignkit.stopping import Stopped
from alignkit_apps.verify.source import Recorded
from alignkit_http.stored_replies import stored_replies_only


class _Enough(Stopped):
    """The rerun has made the steps that are compared."""


@contextmanager
def temporary_folder(run: Path) -> Iterator[Path]:
    """A folder next to a run, which is deleted at the end. Raises OutOfResource if it cannot be made."""
    place = run.resolve()
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.verify-", dir=place.parent))
    except OSError as error:
        raise OutOfResource(f"cannot write a temporary folder next to {run}: {error.strerror or error}") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Rerun(Run):
    """A run of one stage."""

    def __init__(self, recorded: Recorded, name: str, folder: Path, reporter: Reporter, steps: int | None = None):
        """folder: an empty one. steps: end after this many steps or iterations; None: at the stage's end."""
        _furnish(recorded, name, folder)
        recipe = replace(recorded.recipe, trackers=())
        super().__init__(recipe, folder, reporter)
        self.original, self.name, self._steps, self._last = recorded, name, steps, 0
        for upstream, stage_hash in self._recorded["upstream"].items():
            self.hashes[upstream] = stage_hash
        self.parts: dict[str, Any] = json.loads(json.dumps(self.parts_of(recorded.stage(name)), default=str))

    @property
    def _recorded(self) -> dict[str, Any]:
        return self.original.record(self.name)["depends_on"]

    def again(self) -> bool:
        """Run the stage. Returns whether it ran to its end, and not only its first steps."""
        try:
            with stored_replies_only(), blaming(plugins().registry.everything, lambda: self.name):
                self._stage(self.original.stage(self.name))
        except _Enough:
            return False
        except Stopped as error:
            error.add_note(f"verify was interrupted in stage '{self.name}'; the same command starts over")
            raise
        except Exception as error:
            error.add_note(
                f"stage '{self.name}' was run again, and failed; it did not when {self.original.run} was made"
            )
            if (shortage := resource_error(error)) is not None:
                raise shortage from error
            raise
        finally:
            self.reporter.stop()
        return True

    def should_stop(self) -> None:
        """Raise if a stop was requested, or if the rerun has made its steps."""
        super().should_stop()
        if self._steps is not None and self._last >= self._steps:
            raise _Enough

    def notify(self, stage: str) -> Callable[..., Any]:
        """The event hooks, which also count the steps."""
        call = super().notify(stage)

        def counting(hook: str, **values: Any) -> Any:
            if hook == "map_elsewhere":  # workers would not know that nothing is asked or paid for here
                return []
            if hook == "metrics_logged":
                self._last = int(values["step"])
            return call(hook, **values)

        return counting


def _furnish(recorded: Recorded, name: str, folder: Path) -> None:
    """Put what a rerun reads into its folder: the other stages, stored replies, and the day of the run."""
    folder.mkdir()
    for other in (EARLIER, *recorded.recipe.stages):
        if other != name and recorded.store.path(other).is_dir():
            _link(recorded.store.path(other).resolve(), folder / other)
    if (recorded.run / "date.json").is_file():
        shutil.copyfile(recorded.run / "date.json", folder / "date.json")
    if (recorded.run / "cache").is_dir():
        shutil.copytree(recorded.run / "cache", folder / "cache", ignore=shutil.ignore_patterns("engine-*"))


def _link(source: Path, target: Path) -> None:
    try:
        os.symlink(source, target, target_is_directory=True)
    except OSError:  # a file system without links
        shutil.copytree(source, target)

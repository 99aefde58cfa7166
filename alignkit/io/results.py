"""The results of a run's stages, each under a key that stands for everything that it depends on: complete or absent.

STAGE                  a link to the stage's current folder, which is one of these:
.results/STAGE-KEY     a complete result: stage.json with the digests of all its files; adapter, kept/K, data.jsonl, ...
.work/STAGE-KEY        what is being made, with its checkpoints; one rename makes it a result

A result has a name: `align@ppo` is the newest that ppo made, `align@ppo~1` the one before it. `align@2` is something
else: the version after epoch or iteration 2 of the current result.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import Problem, RecipeError, RunFailed, did_you_mean
from alignkit.io.atomic import (
    NEW,
    discard_folder,
    make_folder,
    move_folder,
    replace_link,
    sync_folder,
    whole_file,
    write_json,
)
from alignkit.io.digest import digest, file_digest

if TYPE_CHECKING:
    from alignkit.io.console import Metrics

RESULTS, WORK = ".results", ".work"
RECIPE = "recipe.resolved.yaml"
STARTS = "starts.jsonl"
PAGE, MARKDOWN, FACTS = "report.html", "report.md", "report.json"
AGREEMENT = "agreement.json"  # of a step that asked people
SWITCH = "ALIGNKIT_REUSE"  # 0: a run reuses only its own stages
ALWAYS_READ = 50 * 10**6  # bytes; the size and the time of a larger file are believed
_KEY = "[0-9a-f]" * 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*@(?!all$)[A-Za-z_][^@/]*")


# Records


def read_record(folder: Path) -> dict[str, Any]:
    """A stage folder's stage.json; empty if it is missing or damaged."""
    try:
        record: dict[str, Any] = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        check = record.pop("check")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    if check == digest(record):
        return record
    return {}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a stage folder's stage.json."""
    plain = json.loads(json.dumps(record, default=str))  # the check is one of what will be read
    write_json(folder / "stage.json", {**plain, "check": digest(plain)})


def manifest(folder: Path, before: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Every file in a folder, but its record and checkpoints: digest, size, time. Their names are made durable.

    before: an earlier manifest, whose digests count for files of the same size and time.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] in ("checkpoints", "stage.json"):
            continue
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            facts = path.stat()
            entry = {"sha256": "", "bytes": facts.st_size, "time": facts.st_mtime_ns}
            known = (before or {}).get(name.as_posix(), {})
            entry["sha256"] = known["sha256"] if known == {**entry, **known} else file_digest(path)
            files[name.as_posix()] = entry
    return files


def damage_of(folder: Path) -> str | None:
    """What is wrong with a complete result, in words; None if every file is as the stage wrote it."""
    record = read_record(folder)
    if not record:
        return f"{folder / 'stage.json'} is {'damaged' if (folder / 'stage.json').exists() else 'missing'}"
    return changed_file(folder, record.get("files", {}))


def changed_file(folder: Path, files: Mapping[str, Any]) -> str | None:
    """Which file of a manifest is missing or has changed, in words; None if none."""
    for name, written in files.items():
        file = folder / name
        if not file.is_file():
            return f"{file} is missing"
        facts = file.stat()
        if facts.st_size == written["bytes"] >= ALWAYS_READ and facts.st_mtime_ns == written["time"]:
            continue
        if facts.st_size != written["bytes"] or file_digest(file) != written["sha256"]:
            return f"{file} has changed since the stage wrote it"
    return None


def check_results(run: Path, stages: Iterable[str]) -> None:
    """Raise RunFailed if a complete result of a run is not as its stage wrote it."""
    for stage in stages:
        if (run / stage / "stage.json").exists() and (damage := damage_of(run / stage)):
            raise RunFailed(f"{damage}\nhelp: run the recipe again, which repeats the stage")


def stage_folder(folder: Path) -> Path:
    """RUN/STAGE of the weights of a run: RUN/STAGE/adapter or RUN/STAGE/kept/K; any other folder stays."""
    folder = folder.resolve()
    if folder.parent.name == "kept":
        folder = folder.parent.parent
    elif folder.name in ("adapter", "model"):
        folder = folder.parent
    if folder.parent.name in (RESULTS, WORK):
        return folder.parent.parent / stage_of(folder)
    return folder


def stage_of(result: Path) -> str:
    """The stage whose result is in a folder of `.results` or `.work`."""
    return result.name.rpartition("-")[0]


# Results by name


@dataclass(frozen=True)
class NamedResult:
    """A complete result of a training stage. name: `align@ppo`. record: its stage.json. current: it is in RUN/STAGE."""

    name: str
    stage: str
    folder: Path
    record: Mapping[str, Any]
    current: bool

    @property
    def hash(self) -> str:
        """The hash of everything that it depends on."""
        return str(self.record["hash"])

    @property
    def algorithm(self) -> str:
        """What made it."""
        return str(self.record["plugin"])


def is_result_name(reference: str) -> bool:
    """Whether a reference is one like `align@ppo`, and not like `align`, `align@2` or `align@all`."""
    return bool(_NAME.fullmatch(reference))


def folders_of(run: Path, stage: str, kind: str = RESULTS) -> list[Path]:
    """The folders of a stage's results, or of its unfinished work."""
    return sorted((run / kind).glob(f"{stage}-{_KEY}"))


def results_of_stage(run: Path, stage: str) -> list[NamedResult]:
    """The complete results of a training stage, the newest first; none for a step."""
    current = read_record(run / stage).get("hash")
    records = {folder: read_record(folder) for folder in folders_of(run, stage)}
    if not any(record.get("hash") == current for record in records.values()):
        records[run / stage] = read_record(run / stage)  # of a copy that has no links
    trained = [f for f, record in records.items() if record.get("complete") and _is_training(record)]
    seen: Counter[str] = Counter()
    results = []
    for folder in sorted(trained, key=lambda folder: (records[folder].get("finished", 0.0), folder), reverse=True):
        record = records[folder]
        algorithm = str(record["plugin"])
        name = f"{stage}@{algorithm}" + (f"~{seen[algorithm]}" if seen[algorithm] else "")
        seen[algorithm] += 1
        is_current = record["hash"] == current
        results.append(NamedResult(name, stage, run / stage if is_current else folder, record, is_current))
    return results


def _is_training(record: Mapping[str, Any]) -> bool:
    return (record.get("depends_on") or {}).get("settings") is not None


def find_result(run: Path, reference: str) -> NamedResult:
    """The result with a name. Raises RecipeError if the run has none with it."""
    stage, _, wanted = reference.partition("@")
    results = {result.name: result for result in results_of_stage(run, stage)}
    if reference in results:
        return results[reference]
    algorithm, _, age = wanted.partition("~")
    made = any(result.algorithm == algorithm for result in results.values())
    what = f"no earlier result by {algorithm}, ~{age}" if made else f"no result by {wanted}"
    has = f"it has {', '.join(results)}" if results else "it has no complete result"
    help = did_you_mean(reference, results) or f"`alignkit show {run}` lists all results"
    raise RecipeError([Problem(f"{reference}: stage {stage} of {run} has {what}; {has}", help=help)])


# Results by key


def find(run: Path, stage: str, key: str, others: Sequence[Path] = ()) -> Path | None:
    """The folder of a whole result for a key: the run's own, or one of another run.

    What asked people is never taken from another run: their labels stay in the run that asked.
    """
    for place in (run, *others):
        folder = place / RESULTS / f"{stage}-{key[:16]}"
        if read_record(folder).get("hash") != key or (place != run and (folder / AGREEMENT).exists()):
            continue
        if damage_of(folder) is None:
            return folder
    return None


def other_runs(folder: Path, name: str) -> list[Path]:
    """The runs whose results a run in this folder may reuse: `runs/NAME`, and those next to it."""
    if os.environ.get(SWITCH) == "0":
        return []
    near = sorted(path.parent for path in folder.absolute().parent.glob(f"*/{RECIPE}"))
    default = Path("runs") / name
    found = {path.resolve(): path for path in (*near, default) if (path / RECIPE).is_file()}
    found.pop(folder.resolve(), None)
    here = Path.cwd()  # a user writes a path below it as relative
    return [path.relative_to(here) if path.is_relative_to(here) else path for path in found.values()]


class Results:
    """The results of a run. stages: the names of its stages, in order."""

    def __init__(self, folder: Path, stages: Iterable[str]):
        self.folder, self.stages = folder, tuple(stages)

    def path(self, stage: str) -> Path:
        """The current folder of a stage."""
        return self.folder / stage

    def data(self, stage: str) -> Path:
        """The groups that a step made."""
        return self.path(stage) / "data.jsonl"

    def record(self, stage: str) -> dict[str, Any]:
        """The stage's stage.json; empty if there is none, or if it is damaged."""
        return read_record(self.path(stage))

    def has_any(self, stage: str) -> bool:
        """Whether the run has begun or finished this stage, for any key."""
        return self.path(stage).exists() or any(folders_of(self.folder, stage, kind) for kind in (RESULTS, WORK))

    def _folder(self, kind: str, stage: str, key: str) -> Path:
        return self.folder / kind / f"{stage}-{key[:16]}"

    def bring(self, stage: str, key: str, others: Sequence[Path], say: Callable[[str], None]) -> bool:
        """Let a stage's link lead to its whole result for a key, which may be of another run. Returns whether it does.

        Raises RunFailed if a user's own files are in the stage's place.
        """
        self._adopt(stage)
        work, result = self._folder(WORK, stage, key), self._folder(RESULTS, stage, key)
        if read_record(work).get("complete"):  # a run was killed just before the rename
            _put(work, result)
        found = find(self.folder, stage, key, others)
        if found is None:
            return False
        if found != result:
            _copy(found, result)
            say(f"{stage}: reused from {found.parent.parent}")
        elif self.record(stage).get("hash") not in (None, key):
            say(f"{stage}: restored an earlier result for these settings")
        shutil.rmtree(result / "checkpoints", ignore_errors=True)  # of a run that was killed just before this
        self._link(stage, result)
        return True

    def damage(self, stage: str, key: str) -> str | None:
        """What is wrong with the result for a key, in words; None if there is none."""
        result = self._folder(RESULTS, stage, key)
        if result.exists():
            return damage_of(result)
        return None

    def begin(self, stage: str, key: str, parts: Mapping[str, Any] | None = None, seconds: float = 0.0) -> Path:
        """Begin or continue a stage's work, and return its folder. parts: what the key is made of.

        seconds: of earlier starts, or of this one too where it ended without a result.
        """
        make_folder(work := self._folder(WORK, stage, key))
        record = {"hash": key, "complete": False, "depends_on": parts or {}, "seconds": round(seconds, 1)}
        write_record(work, record)
        self._link(stage, work)
        return self.path(stage)

    def begun(self, stage: str, key: str) -> dict[str, Any]:
        """The record of the unfinished work for a key; empty without any."""
        return read_record(self._folder(WORK, stage, key))

    def wait(self, stage: str, labels: int, store: Path) -> None:
        """Write down that a stage that has begun waits for labels of people. store: that they go to."""
        waits = {"labels": labels, "store": os.path.relpath(store.resolve(), self.folder.resolve())}
        write_record(self.path(stage), {**self.record(stage), "waits_for": waits})

    def labels(self, stage: str) -> Path | None:
        """The store in which a stage waits for labels; None if it does not wait."""
        waits = self.record(stage).get("waits_for")
        if waits:
            return Path(os.path.normpath(self.folder / waits["store"]))
        return None

    def finish(self, stage: str, record: Mapping[str, Any]) -> None:
        """Make a stage's work its result, whose checkpoints are no longer needed."""
        key = record["hash"]
        work, result = self._folder(WORK, stage, key), self._folder(RESULTS, stage, key)
        write_record(work, {**record, "finished": time.time(), "files": manifest(work)})
        _put(work, result)
        self._link(stage, result)
        shutil.rmtree(result / "checkpoints", ignore_errors=True)

    def _link(self, stage: str, folder: Path) -> None:
        if self.path(stage).is_symlink() and self.path(stage).readlink() == folder.relative_to(self.folder):
            return
        replace_link(self.path(stage), folder.relative_to(self.folder))

    def _adopt(self, stage: str) -> None:
        """Move a folder where a link is expected to its place: a copy of the run may have lost its links.

        Raises RunFailed for one that no run has made.
        """
        path, record = self.path(stage), self.record(stage)
        if path.is_symlink() or not path.exists():
            return
        if is_empty(path):
            path.rmdir()
        elif record:
            place = self._folder(RESULTS if record.get("complete") else WORK, stage, record["hash"])
            if place.exists() and damage_of(place):
                discard_folder(place)
            discard_folder(path) if place.exists() else move_folder(path, place)
            self._link(stage, place)
        else:
            what = "has files, but no stage.json" if path.is_dir() else "is a file"
            what = "has a damaged stage.json" if (path / "stage.json").exists() else what
            raise RunFailed(f"{path} {what}\nhelp: move it out of the folder of the run, or rename the stage")

    def artifact(self, reference: str) -> Path:
        """The folder of a saved role: `sft`, `sft@2`, `sft@sft~1`, or a step that selected one.

        Raises RunFailed if it is missing, and RecipeError for the name of a result that the run does not have.
        """
        if is_result_name(reference):
            result = find_result(self.folder, reference)
            if damage := damage_of(result.folder):
                raise RunFailed(
                    f"{damage}\nhelp: run the recipe again with {result.algorithm}, which repeats the stage"
                )
            return result.folder / "adapter"
        stage, _, version = reference.partition("@")
        if selected := self.record(stage).get("policy"):
            return Path(selected) if Path(selected).is_absolute() else self.artifact(str(selected))
        folder = self.path(stage) / "kept" / version if version else self.path(stage) / "adapter"
        if folder.is_dir():
            return folder
        kept = sorted((path.name for path in (self.path(stage) / "kept").glob("*") if path.name.isdigit()), key=int)
        help = f"kept versions: {', '.join(kept)}" if kept else f"set 'keep_versions: true' in stage '{stage}'"
        raise RunFailed(f"'{reference}' does not exist: there is no folder {folder}" + (f"; {help}" if version else ""))

    # Metrics

    def metrics(self, stage: str, size: int = 0) -> Metrics:
        """The metrics of a stage that begins, of which `size` bytes stay. The run's metrics.jsonl grows with them."""
        from alignkit.io.console import Metrics  # imports rich

        metrics = Metrics(self.path(stage) / "metrics.jsonl", size, [self.folder / "metrics.jsonl"])
        self.join_metrics(stage)
        return metrics

    def join_metrics(self, last: str) -> None:
        """Write the run's metrics.jsonl: those of its stages up to this one, in order."""
        files = [self.path(stage) / "metrics.jsonl" for stage in self.stages[: self.stages.index(last) + 1]]
        joined = self.folder / "metrics.jsonl"
        content = b"".join(file.read_bytes() for file in files if file.exists())
        if not joined.exists() or joined.read_bytes() != content:  # else whoever follows it loses the file
            with whole_file(joined) as file:
                file.write(content)


def is_empty(path: Path) -> bool:
    """Whether this is a folder without files, as far as we may look into it."""
    return path.is_dir() and os.access(path, os.R_OK | os.X_OK) and not any(path.iterdir())


def _put(work: Path, result: Path) -> None:
    """Make a work folder a result. One that is there, because it is damaged, is kept until then."""
    if result.exists():
        discard_folder(result)
    move_folder(work, result)


def _copy(found: Path, result: Path) -> None:
    """Link the files of another run's result, or copy them where the file system cannot.

    No file of a result is ever written in place, so both runs can have the same bytes.
    """
    new = result.with_name(f".{result.name}{NEW}")
    shutil.rmtree(new, ignore_errors=True)
    for name in (*read_record(found)["files"], "stage.json"):
        make_folder((new / name).parent)
        try:
            os.link((found / name).resolve(), new / name)
        except OSError:  # another file system, or one without links
            shutil.copy2(found / name, new / name)
            with (new / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder((new / name).parent)
    _put(new, result)

"""A run: the recipe's stages in order, each reused, continued or started, in one folder that a person can read."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from alignkit.data.group import write_groups
from alignkit.data.sources import DataSpec, Loaded, load
from alignkit.errors import AlignkitError, OutOfResource, Problem, RecipeError, RemoteError, RunFailed
from alignkit.io.atomic import write_json, write_text
from alignkit.io.digest import digest, model_digest, versions
from alignkit.io.progress import Metrics, Reporter
from alignkit.kernels.matmul import multiplies_bf16
from alignkit.kernels.memory import ran_out
from alignkit.models.reference_cache import ReferenceCache
from alignkit.models.service import ModelService
from alignkit.models.shared_model import SharedModel
from alignkit.plugins import plugins
from alignkit.recipe.document import dump
from alignkit.recipe.schema import Recipe, RewardSpec, Stage, specs
from alignkit.reward import Context
from alignkit.runs.fingerprint import stage_hash
from alignkit.runs.preflight import check_data, check_models, check_rewards
from alignkit.runs.stages import run_training
from alignkit.seeds import number
from alignkit.step import Artifact, StepContext
from alignkit.training.scoring import Scorer
from alignkit.training.stage import StageContext

MAP_CHUNK = 16


class Stopped(AlignkitError):
    """The run was asked to stop and can be continued."""

    exit_code = 75


def run_recipe(recipe: Recipe, out: Path | None = None) -> None:
    """Run a recipe into `out` (default `runs/NAME`). Raises AlignkitError with the exit code to end with."""
    folder = out or Path("runs") / recipe.name
    if folder.exists() and not folder.is_dir():
        raise RecipeError([Problem(f"--out {folder} is a file, not a folder")])
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        raise RunFailed(f"another run is working in {folder}; choose another folder with --out") from None
    with held:
        run = Run(recipe, folder)
        error: BaseException | None = None
        try:
            with run.stoppable():
                run.execute()
        except BaseException as found:
            error = found
            if (resource_fault := _resource_fault(found)) is not None:
                raise resource_fault from found
            if isinstance(found, KeyboardInterrupt | Stopped | RemoteError | OutOfResource):
                run.reporter.stop()
                run.reporter.say(f"to continue: {resume_command()}")
            raise
        finally:
            run.reporter.stop()
            plugins().notify("run_finished", run=run, error=error)


def resume_command() -> str:
    """The command that continues this run: the same one."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    if words[0] in ("__main__.py", "-m"):
        words[:1] = ["python", "-m", "alignkit"]
    return shlex.join(words)


@dataclass(frozen=True, eq=False)
class _Kept:
    """Data that were read before the first stage. files: as they were just before, see `_files_now`."""

    spec: DataSpec
    seed: int
    files: tuple[tuple[str, int, int], ...]
    loaded: Loaded


def _files_now(spec: DataSpec) -> tuple[tuple[str, int, int], ...]:
    """Name, time of change and size of a data entry's files: what is trained on must be what the stage's hash is of."""
    found = []
    for source in spec.sources:
        if source.path is not None and source.path.is_file():
            facts = source.path.stat()
            found.append((str(source.path), facts.st_mtime_ns, facts.st_size))
    return tuple(found)


class Run:
    """One run of a recipe in a folder; what event hooks see."""

    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe, self.folder = recipe, folder
        self.reporter = Reporter()
        self.stop_reason: str | None = None
        self.hashes: dict[str, str] = {}
        self._policy: SharedModel | None = None
        self._engine: ModelService | None = None
        self._texts: list[str] = []
        self._working = ""  # the stage
        self._bad_rows: dict[str, None] = {}  # that it skipped, each once although data may be read twice
        self._kept: list[_Kept] = []  # what was read before the first stage, for that stage

    # Stopping

    def request_stop(self, reason: str) -> None:
        """Stop at the next step, leaving a run that can be continued."""
        self.stop_reason = reason

    def should_stop(self) -> None:
        if self.stop_reason is not None:
            raise Stopped(f"stopped: {self.stop_reason}")

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """SIGTERM asks the run to stop."""
        before = signal.signal(signal.SIGTERM, lambda *_: self.request_stop("SIGTERM"))
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    # Stages

    def execute(self) -> None:
        began = time.monotonic()
        plugins().notify("run_started", run=self)
        write_text(self.folder / "recipe.resolved.yaml", dump(self.recipe.resolved))
        waiting = self._waiting()
        check_models(self.recipe, waiting)
        check_rewards(self.recipe, waiting)
        check_data(waiting, lambda stage, spec: self._look_at(stage, spec, keep=stage is waiting[0]))
        times = []
        for stage in self.recipe.stages.values():
            self.should_stop()
            started = time.monotonic()
            self.notify(stage.name)("stage_started")
            reused = self._stage(stage)
            self.notify(stage.name)("stage_finished", reused=reused)
            if not reused:
                self._kept.clear()
            times.append((stage.name, "reused" if reused else _duration(time.monotonic() - started)))
            self._join_metrics()
        for text in self._texts:
            self.reporter.out.print(text, markup=False, highlight=False, soft_wrap=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        parts = ", ".join(f"{name} {took}" for name, took in times)
        self.reporter.say(f"done in {_duration(time.monotonic() - began)} ({parts}); peak memory {peak:.1f} GiB")
        self.reporter.say(f"results are in {self.folder}")

    def _waiting(self) -> list[Stage]:
        """Stages that are not to be reused."""
        stages = list(self.recipe.stages.values())
        known = {stage.name: _stage_json(self.folder / stage.name) for stage in stages}
        if not any(found.get("complete") for found in known.values()):
            return stages  # without their hashes, for which the base model is fetched
        for stage in stages:
            self.hashes[stage.name] = self._hash(stage)
        return [s for s in stages if not known[s.name].get("complete") or known[s.name]["hash"] != self.hashes[s.name]]

    def _stage(self, stage: Stage) -> bool:
        """Run one stage, or take it as it is; gives whether it was reused."""
        folder = self.folder / stage.name
        self._working, self._bad_rows = stage.name, {}
        self.hashes[stage.name] = self._hash(stage)
        self._take_back(folder, self.hashes[stage.name])
        known = _stage_json(folder)
        if known.get("hash") == self.hashes[stage.name] and known.get("complete"):
            self.reporter.say(f"{stage.name}: unchanged, reused")
            self._texts += [known["text"]] if known.get("text") else []
            return True
        if known and known.get("hash") != self.hashes[stage.name]:
            self.reporter.say(f"{stage.name}: it or something it depends on has changed, started afresh")
            self._set_aside(folder, self.folder / f".{stage.name}.previous", bool(known.get("complete")))
        folder.mkdir(exist_ok=True)
        write_json(folder / "stage.json", {"hash": self.hashes[stage.name], "complete": False})
        began = time.monotonic()
        summary, artifact = self._work(stage, folder)
        summary |= {"bad_rows": list(self._bad_rows)} if self._bad_rows else {}
        if self._engine is not None:
            self._engine.forget(stage.name)
        record = {
            "hash": self.hashes[stage.name],
            "complete": True,
            "name": stage.name,
            "plugin": stage.component.name,
            "seconds": round(time.monotonic() - began, 1),
            "summary": summary,
            "policy": artifact.policy,
            "text": artifact.text,
            "versions": versions(),
        }
        write_json(folder / "stage.json", record)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        self._texts += [artifact.text] if artifact.text else []
        self.reporter.say(f"{stage.name}: done in {_duration(time.monotonic() - began)}{_facts(summary)}")
        return False

    def _take_back(self, folder: Path, wanted: str) -> None:
        """Swapping an option back finds the earlier result where it was set aside."""
        previous = folder.with_name(f".{folder.name}.previous")
        aside = _stage_json(previous)
        if aside.get("hash") != wanted or not aside.get("complete") or _stage_json(folder).get("hash") == wanted:
            return
        between = folder.with_name(f".{folder.name}.swap")
        previous.rename(between)
        if folder.exists():
            folder.rename(previous)
        between.rename(folder)

    def _set_aside(self, folder: Path, previous: Path, complete: bool) -> None:
        """Keep one earlier result of a stage; a finished one is never given up for an unfinished one."""
        if not complete and _stage_json(previous).get("complete"):
            shutil.rmtree(folder)
            return
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)

    def _work(self, stage: Stage, folder: Path) -> tuple[dict[str, Any], Artifact]:
        if stage.kind == "algorithm":
            return run_training(self._stage_run(stage, folder)), Artifact()
        step = stage.component.registration.implementation(stage.component.options)
        self.reporter.say(f"{stage.name}: {stage.component.name}")
        artifact: Artifact = step.run(self._step_context(stage, folder))
        if artifact.groups is not None:
            write_groups(folder / "data.jsonl", artifact.groups)
        return dict(artifact.summary or {}), artifact

    def _stage_run(self, stage: Stage, folder: Path) -> StageContext:
        settings = stage.settings
        assert settings is not None
        seed = self.seed_of(stage)
        return StageContext(
            stage=stage,
            engine=self.engine,
            folder=folder,
            seed=seed,
            load=lambda spec: self.load(spec, seed),
            context=lambda: self._context(seed),
            earlier_stage=lambda name: self.folder / name,
            reporter=self.reporter,
            notify=self.notify(stage.name),
            should_stop=self.should_stop,
        )

    def _context(self, seed: int) -> Context:
        self.engine.forget_scores()  # what a reward scores in `prepare` must not depend on what this process did before
        return Context(self.engine, self._cache(), self.recipe.folder, seed, lambda spec: self.load(spec, seed).groups)

    def _cache(self) -> Path:
        cache = self.folder / "cache"
        cache.mkdir(exist_ok=True)
        return cache

    def _step_context(self, stage: Stage, folder: Path) -> StepContext:
        seed = self.seed_of(stage)
        metrics = Metrics(folder / "metrics.jsonl")

        def log(**values: Any) -> None:
            metrics.write(stage=stage.name, **values)

        def scorer(spec: RewardSpec) -> Scorer:
            return Scorer(spec, self._context(seed))

        return StepContext(
            models=self.engine,
            cache=self._cache(),
            folder=self.recipe.folder,
            seed=seed,
            out=folder,
            load=lambda spec: self.load(spec, seed).groups,
            scorer=scorer,
            map=lambda name, rows, f: self._map(folder / "map" / f"{name}.jsonl", rows, f),
            log=log,
            say=self.reporter.say,
        )

    def _map(self, path: Path, rows: Sequence[Any], f: Callable[[Sequence[Any]], Iterable[Any]]) -> list[Any]:
        """f over rows in chunks; finished chunks are kept by content, so a killed run does not pay twice."""
        path.parent.mkdir(parents=True, exist_ok=True)
        known: dict[str, Any] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # a killed run may leave half of the last line
                    record = json.loads(line)
                    known[record["key"]] = record["results"]
        results: list[Any] = []
        with path.open("a", encoding="utf-8") as file:
            for start in range(0, len(rows), MAP_CHUNK):
                self.should_stop()
                chunk = rows[start : start + MAP_CHUNK]
                key = digest([start, _plain(chunk)])
                if key not in known:
                    # Through JSON and back, so that a fresh result and a kept one are the same.
                    known[key] = json.loads(json.dumps(list(f(chunk))))
                    file.write("\n" + json.dumps({"key": key, "results": known[key]}))
                    file.flush()
                    os.fsync(file.fileno())
                results += known[key]
        return results

    # What stages are given

    def seed_of(self, stage: Stage) -> int:
        own = stage.settings.seed if stage.settings is not None else getattr(stage.component.options, "seed", None)
        return int(own if own is not None else self.recipe.seed)

    def notify(self, stage: str) -> Callable[..., None]:
        """The event hooks, with the run and the stage filled in."""

        def call(hook: str, **values: Any) -> None:
            plugins().notify(hook, run=self, stage=stage, **values)

        return call

    def _look_at(self, stage: Stage, spec: DataSpec, keep: bool) -> Loaded:
        """Read a data entry before any stage runs. keep: `load` need not read it again, unless its files change."""
        seed, files = self.seed_of(stage), _files_now(spec)
        loaded = self._read(spec, seed)
        own = specs([stage.settings, stage.component.options], DataSpec)
        if keep and any(spec is known for known in own):  # else it is a part of one, which no stage asks for
            self._kept.append(_Kept(spec, seed, files, loaded))
        return loaded

    def _read(self, spec: DataSpec, seed: int) -> Loaded:
        formats = {
            registration.name: registration.implementation
            for registration in plugins().registry.registrations("formats")
        }
        return load(spec, formats=formats, seed=seed, stage_data=lambda name: self.folder / name / "data.jsonl")

    def load(self, spec: DataSpec, seed: int) -> Loaded:
        wanted = (spec, seed, _files_now(spec))
        found = next((kept for kept in self._kept if (kept.spec, kept.seed, kept.files) == wanted), None)
        if found is not None:
            self._kept.remove(found)  # from here on the stage alone holds it
        loaded = self._read(spec, seed) if found is None else found.loaded
        if loaded.skipped:
            self._bad_rows |= dict.fromkeys(map(str, loaded.skipped))
            self.reporter.say(
                f"{len(loaded.skipped)} bad rows skipped, the first: {loaded.skipped[0]} "
                f"(all are in {self.folder / self._working / 'stage.json'} when the stage is done)"
            )
        return loaded

    @property
    def engine(self) -> ModelService:
        if self._engine is None:
            lengths = [stage.settings.max_length for stage in self.recipe.stages.values() if stage.settings is not None]
            remembered = ReferenceCache(cache_folder() / "logprobs")
            self._engine = ModelService(
                self.policy, self.artifact, max([1024, *lengths]), remembered, self.reporter.say
            )
        return self._engine

    @property
    def policy(self) -> SharedModel:
        """The base model, loaded when first needed."""
        if self._policy is None:
            model = self.recipe.model
            template = self.recipe.folder / (model.chat_template or "")
            if template.is_file():
                model = model.model_copy(update={"chat_template": str(template)})
            self.reporter.say(f"loading {model.base}")
            seed = number(self.recipe.seed, "init")
            try:
                self._policy = SharedModel(model, self.source(), revision=model.revision, seed=seed)
            except (OSError, ValueError, AssertionError, ImportError) as error:
                reason = str(error).strip().split("\n")[0]
                raise RunFailed(f"model.base '{model.base}' cannot be loaded with these settings: {reason}") from error
            policy = self._policy
            policy.should_stop = self.should_stop
            fault = policy.unpacked_because
            rows = f"packed rows of up to {policy.token_budget} tokens"
            how = f"one sequence at a time: its attention cannot be packed ({fault})" if fault else rows
            dtype = policy.dtype_name
            bits = dtype if model.quantization == "none" else f"{model.quantization}, computing in {dtype},"
            self.reporter.say(f"base {model.base}: {bits} on {policy.device.type}, {how}")
            if policy.dtype_name == "bfloat16" and policy.device.type == "cpu" and not multiplies_bf16():
                self.reporter.say("this processor has no instructions for bfloat16: float32 is faster here")
        return self._policy

    def source(self) -> str:
        """Where the base model is: a folder made by a model source, a local folder, or a hub id."""
        base = self.recipe.model.base
        if Path(base).is_dir():
            return base
        if base in plugins().registry.names("models"):
            cache = cache_folder()
            cache.mkdir(parents=True, exist_ok=True)
            return str(plugins().registry.get("models", base).implementation(cache))
        return base

    @cached_property
    def base_digest(self) -> Any:
        """What identifies the base model's weights, tokenizer and template."""
        return model_digest(self.source())

    def artifact(self, reference: str) -> Path:
        """The folder of a saved role. Raises RunFailed when it is not there."""
        name, _, version = reference.partition("@")
        if name in self.recipe.stages:
            chosen = _stage_json(self.folder / name).get("policy")
            if chosen:
                return self.artifact(str(chosen))
            folder = self.folder / name / "kept" / version if version else self.folder / name / "adapter"
        else:
            folder = self.recipe.folder / reference
        if not folder.is_dir():
            kept = sorted(p.name for p in (self.folder / name / "kept").glob("*") if p.name.isdigit())
            hint = f"; kept versions: {', '.join(kept)}" if version and kept else ""
            raise RunFailed(f"'{reference}' is not there ({folder}){hint}; keep_versions: true keeps every version")
        return folder

    def _hash(self, stage: Stage) -> str:
        upstream = {name: self.hashes[name] for name in stage.upstream}
        return stage_hash(stage, self.recipe, self.base_digest, self.seed_of(stage), upstream)

    def _join_metrics(self) -> None:
        """The run's metrics.jsonl: those of its stages, in order."""
        parts = []
        for name in self.recipe.stages:
            path = self.folder / name / "metrics.jsonl"
            if path.exists():
                parts.append(path.read_text(encoding="utf-8"))
        write_text(self.folder / "metrics.jsonl", "".join(parts))


def cache_folder() -> Path:
    """Where base models are kept: `ALIGNKIT_CACHE`, else the user's cache folder."""
    own = os.environ.get("ALIGNKIT_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "alignkit"


def _stage_json(folder: Path) -> dict[str, Any]:
    path = folder / "stage.json"
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _facts(summary: Mapping[str, Any]) -> str:
    """`: groups 3, steps 2`, of what is one number or word and not nothing."""
    single = {name: value for name, value in summary.items() if value and isinstance(value, str | int | float)}
    shown = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in single.items()]
    return f": {', '.join(shown)}" if shown else ""


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _resource_fault(error: BaseException) -> OutOfResource | None:
    """Memory or disk that ran out, told by what libraries raise for it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfResource(f"the disk is full: {error}")
    if ran_out(error):
        return OutOfResource(f"memory ran out; a smaller max_length or batch of samples needs less ({error})")
    return None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{int(rest):02d}s" if minutes else f"{rest:.1f}s"

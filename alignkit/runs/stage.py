"""A stage of a run: what its result depends on, what must be right before its weights, and its
work.

A mistake is reported by `alignkit check`, and by a run before its first stage trains: with all
others, at its place. The plugins and data that it checks are those that `run` uses. Nothing imports
torch before a stage runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.contract.algorithm import Algorithm, ExternalTrainer, Source
from alignkit.contract.step import Artifact, StepContext, StepData
from alignkit.data.group import Group, prompts_of, resolved_pairs, responses_of, write_groups
from alignkit.errors import (
    AlignkitError,
    DataError,
    PluginError,
    Problem,
    RecipeError,
    RunFailed,
    path_text,
)
from alignkit.host import returns
from alignkit.host.calls import call, create
from alignkit.host.plugins import reader_of
from alignkit.host.registry import Component
from alignkit.io.atomic import write_text
from alignkit.io.console import Metrics
from alignkit.io.digest import digest
from alignkit.io.opened import digest_of, files_read
from alignkit.io.results import Results
from alignkit.io.text import redacted
from alignkit.recipe.schema import BASE, Recipe, RewardSpec, Stage, keys_of, specs
from alignkit.recipe.sources import DataSource, DataSpec, Loaded
from alignkit.recipe.yaml import Keys
from alignkit.runs.fingerprint import stage_parts
from alignkit.runs.model_source import place_of
from alignkit.runs.services import Services, resumable_map
from alignkit.training.active_stage import ActiveStage

if TYPE_CHECKING:
    from alignkit.tokens.encoder import Encoder

FIRST_ROWS = 200  # the chat template renders this many of each source before a run
SCORED = 64  # groups that a reward of a step scores at once
# Kinds of plugins that check themselves before a run
CHECKED = {"judge", "environment", "engine", "reward"}


class Problems:
    """Mistakes in the stages of a recipe, or in their data, each once."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.problems: dict[Problem, None] = {}  # an ordered set: stages share files

    @contextmanager
    def gathering(self, stage: str, option: Keys = ()) -> Iterator[None]:
        """Keep an error of the block, and continue. A plugin's own error ends the search.

        option: of the stage, where the mistake is, or above what the error names.
        """
        try:
            yield
        except RecipeError as error:
            self.add(error.problems)
        except PluginError:
            if not self.problems:  # after a mistake the plugin may have got wrong input
                raise
        except DataError as error:
            self.add([self.recipe.problem(stage, str(error), (*option, *(error.option or ())))])
        except AlignkitError as error:
            prefix = f"stage '{stage}': "
            self.add([self.recipe.problem(stage, prefix + str(error).removeprefix(prefix), option)])

    def add(self, problems: Iterable[Problem]) -> None:
        """Keep problems."""
        self.problems |= dict.fromkeys(problems)

    def end(self) -> None:
        """Raise RecipeError with every problem."""
        if self.problems:
            raise RecipeError(self.problems)

    def end_data(self) -> None:
        """Raise DataError with every problem, all of which are in data."""
        if self.problems:
            raise DataError("\n\n".join(map(str, self.problems)).removeprefix("error: "))


class RunStage(ActiveStage):
    """One stage of a run."""

    services: Services

    @property
    def entries(self) -> list[DataSpec]:
        """The data entries of the stage."""
        return specs([self.spec.settings, self.spec.component.options], DataSpec)

    # What the result depends on

    def key(self) -> dict[str, Any]:
        """Everything that the result depends on, as plain data; the keys of earlier stages are
        known already.
        """
        services = self.services
        upstream = {name: services.hashes[name] for name in self.spec.upstream}
        return stage_parts(
            self.spec, self.recipe, services.model_source(BASE).digest, upstream, services.data
        )

    def machine(self) -> dict[str, str]:
        """What rounds the numbers of its models; empty if it uses none."""
        from alignkit.models.loading import machine  # imports torch

        return machine(self.spec.model) if self.spec.roles or self.spec.settings else {}

    def with_files(self, parts: Mapping[str, Any], made: bool = False) -> dict[str, Any]:
        """Parts of a key with digests of the files that the stage's code read when it was made. Those
        that have one keep it.

        made: whether it was made now. If it never was, the files that were read so far are named.
        """
        services = self.services
        named = {key: value for key, value in parts.items() if key != "files"}
        files, key = dict[str, str](parts.get("files", {})), digest(named)
        notes = (Results(run).note(self.name, key) for run in (services.folder, *services.others))
        names = next(filter(None, notes), [])
        if made or not names:
            names += files_read(named, services.folder)
        for name in names:
            files.setdefault(name, digest_of(name))
        if made and files:
            services.store.note(self.name, key, [*files])
        return {**named, "files": files} if files else named

    def record(
        self, seconds: float, artifact: Artifact, parts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The contents of stage.json, without the hash. parts: what the hash is made of."""
        summary = dict(artifact.summary or {})
        if self._bad_rows:
            summary["bad_rows"] = list(self._bad_rows)
        if self._left_out:
            summary["dropped"] = {**self._left_out, **summary.get("dropped", {})}
        return {
            "complete": True,
            "name": self.name,
            "plugin": self.spec.component.name,
            "log_odds": self.spec.log_odds,
            "seconds": round(seconds, 1),
            "summary": summary,
            "policy": artifact.policy,
            "text": artifact.text,
            "report": artifact.report.plain() if artifact.report is not None else None,
            "data": self._sources,
            "versions": parts["versions"],
            "depends_on": parts,
        }

    # Before the weights

    def check_plugins(self, problems: Problems) -> None:
        """Let the stage's plugins check what they can, and look for weights that do not fit their
        base models.
        """
        stage, folder = self.spec, self.recipe.folder
        self._check(problems, stage.component, "check", folder)
        for component in specs([stage.settings, stage.component.options, stage.engine], Component):
            if component.kind in CHECKED:
                self._check(problems, component, "check", folder)
        self.check_weights(problems)

    def _check(
        self, problems: Problems, component: Component, method: str, *arguments: Any
    ) -> None:
        with problems.gathering(self.name):
            call(self.plugin(component), method, *arguments)

    def check_weights(self, problems: Problems) -> None:
        """Find weights of other runs that the stage cannot use, and a reference that reads other
        tokens.
        """
        stage, source, start, reference = self.spec, self.services.model_source, None, None
        if stage.settings is not None:
            start, reference = stage.settings.from_, stage.settings.reference
        uses = {folder: "start" if folder == start else "policy" for folder in stage.folders}
        rewards = specs([stage.settings, stage.component.options], RewardSpec)
        uses |= {spec.name: "reward" for spec in rewards if spec.kind == "folder"}
        for folder, use in uses.items():
            with problems.gathering(
                self.name, place_of(self.recipe, folder, ("stages", self.name))[2:]
            ):
                source(BASE).check(Path(folder), use)
        if reference in stage.whole_models:  # it must read the tokens that the policy writes
            ours, theirs = source(BASE).encoder, source(reference).encoder
            if ours is None or theirs is None or ours.digest == theirs.digest:
                return
            with problems.gathering(self.name, ("reference",)):
                raise RunFailed(
                    f"its reference {reference} has another tokenizer, or ends its turns with "
                    f"another token, than 'model' ({self.recipe.model.base}): its "
                    "log-probabilities would mean nothing\n"
                    "help: give both the same chat template, or let the policy learn the "
                    "reference's answers as text: a step 'sample' with its folder as 'policy', "
                    "then a stage with 'algorithm: sft'"
                )

    def check_data(self, problems: Problems, rows: int | None) -> None:
        """Read and check the data that are here.

        rows: of each source that the chat template renders; None: all.
        """
        raise NotImplementedError

    def _read(
        self, problems: Problems, entries: Iterable[DataSpec]
    ) -> Iterator[tuple[DataSpec, Loaded]]:
        for spec in entries:
            here = self._here(spec)
            if any(here is one for one in self.read):
                continue
            if here is not spec and (here in self.read or not here.sources):
                continue
            try:
                loaded = self.services.data.read(here)
            except DataError as error:  # with a place in its file
                problems.add([Problem(str(error))])
            else:
                self.read.append(here)
                if here is spec:
                    yield spec, loaded

    def _here(self, spec: DataSpec) -> DataSpec:
        """An entry; or if some of its sources are not here, all rows of its files, but for those
        that runs write.
        """
        made = {source.stage for source in spec.sources} - {None}
        downloaded = any(source.hub is not None for source in spec.sources)
        if made <= self.services.ready and (self.services.download or not downloaded):
            return spec
        files, unsplit = list[DataSource](), {"part": None, "validation": 0.0}
        for source in spec.sources:
            if source.path is not None and not getattr(reader_of(source.path), "grows", False):
                files.append(source.model_copy(update=unsplit))
        return DataSpec(tuple(files))

    def check_scoring(self, options: Any, rewards: Any, groups: Sequence[Group]) -> None:
        """Let rewards, combinations and environments say what the groups lack. options: in which
        they stand.
        """
        for component in specs(rewards, Component):
            if component.kind in ("environment", "reward"):
                try:
                    warnings = call(self.plugin(component), "check_prompts", groups)
                except DataError as error:
                    keys = keys_of(options, component) or ()
                    if error.option:
                        keys = (*keys, component.name, *error.option)
                    raise DataError(str(error), option=keys) from error
                for warning in warnings or ():
                    self.say(f"warning: {component.name}: {warning}")

    # Its work

    def run(self) -> Artifact:
        """Do the work, from the last checkpoint; returns what the stage made."""
        raise NotImplementedError


class TrainingStage(RunStage):
    """A stage that trains."""

    def __init__(self, services: Services, stage: Stage):
        super().__init__(services, stage)
        assert stage.settings is not None
        self.settings = stage.settings

    # Before the weights

    def check_plugins(self, problems: Problems) -> None:
        stage, settings = self.spec, self.settings
        if issubclass(stage.component.registration.implementation, ExternalTrainer):
            self._check(problems, stage.component, "check_model", self.recipe.model)
        super().check_plugins(problems)
        for monitor in settings.monitors or ():
            self._check(problems, monitor, "check", settings)
        if settings.environment is None:
            return
        rewards = specs([settings.reward, settings.monitors], Component)
        if any(getattr(each.registration.implementation, "of_episodes", False) for each in rewards):
            self.plugin(settings.environment).folder = self.recipe.folder
            self._check(problems, settings.environment, "check_reward")
        if self.services.download:
            from alignkit.training.episodes import Episodes, Factory

            # Is the chat template fit for it?
            with problems.gathering(self.name, ("environment",)):
                factory = Factory(settings.environment, self.name, self.seed, self.recipe.folder)
                encoder = self.services.model_source(BASE).encoder
                assert encoder is not None  # it was downloaded
                Episodes(factory, encoder, settings.max_length)

    def check_data(self, problems: Problems, rows: int | None) -> None:
        settings, model = self.settings, self.services.model_source(BASE)
        encoder, most = model.encoder, model.context_length
        if most is not None and most < settings.max_length:
            self.say(
                f"warning: {self.recipe.model.base} reads {most:,} tokens, so stage '{self.name}' "
                f"learns no more of a row, and not max_length {settings.max_length:,}"
            )
        for spec, loaded in self._read(problems, self.entries):
            keys, groups = keys_of(settings, spec), [*loaded.groups, *loaded.validation]
            with problems.gathering(self.name, keys or ()):
                if encoder is not None:
                    groups = self._rendered(groups, encoder, rows)
                if keys == ("data",):
                    self._check_learning(loaded)
                elif keys and keys[0] in ("prompts", "monitors") and not prompts_of(groups):
                    of_key = f"the rows of '{path_text(keys)}'"
                    raise DataError(
                        f"stage '{self.name}': {of_key} are raw text, without a prompt to answer"
                    )
                elif keys == ("prompts",):
                    call(self.plugin(self.spec.component), "check_prompts", prompts_of(groups))
            with problems.gathering(self.name, ()):
                scored = [each for each in settings.monitors or () if spec in specs(each, DataSpec)]
                if keys == ("prompts",):
                    scored = [each for each in settings.monitors or () if not specs(each, DataSpec)]
                    scored += [settings.reward, settings.environment]
                self.check_scoring(settings, scored, prompts_of(groups))

    def _rendered(self, groups: Sequence[Group], encoder: Encoder, rows: int | None) -> list[Group]:
        """The groups without those that the chat template refuses among the first rows of each
        source.

        Raises DataError with the refused rows of sources without `on_bad_row: skip`.
        """
        encoder.forget_counts()
        seen, kept = Counter[int](), list[Group]()
        for group in groups:
            assert group.origin is not None
            seen[group.origin.source] += 1
            is_checked = rows is None or seen[group.origin.source] <= rows
            if not is_checked or encoder.accepted([group]):
                kept.append(group)
        if skipped := encoder.count_refused():
            self.say(f"left out {len(skipped)} rows, the first: {skipped[0]}")
        return kept

    def _check_learning(self, loaded: Loaded) -> None:
        """Let the algorithm select from the data and check them."""
        component, needs = self.spec.component, self.spec.needs
        if needs is not None and needs.pairs and not any(map(resolved_pairs, loaded.groups)):
            files = ", ".join(source.name for source in loaded.sources)
            is_rated = any(one.label is not None for one in responses_of(loaded.groups))
            raise DataError(
                f"stage '{self.name}': {component.name} learns from pairs of a better and a worse "
                f"response, but no row of {files} has a pair\n"
                "help: `alignkit label FILE` asks people which of several responses is better"
                + "; thumbs up and down of single ones are for `algorithm: kto`"
                * is_rated
            )
        if isinstance(self.plugin(component), ExternalTrainer):
            return
        # Another one than learns, whose state begins with its own selection
        algorithm = create(component, self.name)
        call(algorithm, "check_data", self.select(loaded.groups, algorithm=algorithm))

    def _check_rest(self) -> None:
        """Check the data that were not here before the run: rows that earlier stages made."""
        problems = Problems(self.recipe)
        self.check_data(problems, FIRST_ROWS)
        problems.end_data()

    # Its work

    def run(self) -> Artifact:
        from alignkit.training.learner import learning_rate
        from alignkit.training.offline import DatasetTrainer
        from alignkit.training.online import RolloutTrainer

        self.collectives.on_main_process(self._check_rest)
        self.summary.clear()  # the checks above filled it
        algorithm: Algorithm = self.plugin(self.spec.component)
        rate = learning_rate(self, algorithm.defaults)
        self.settings = self.settings.model_copy(update={"learning_rate": rate})
        if isinstance(algorithm, ExternalTrainer):
            return Artifact(summary={**call(algorithm, "train", self), "learning_rate": rate})
        trains = RolloutTrainer if algorithm.source is Source.ROLLOUTS else DatasetTrainer
        trainer = trains(self, algorithm)
        try:
            summary = {**trainer.run(), "learning_rate": rate}
            facts = {"tokens": trainer.learner.tokens, "base_parameters": self.model.parameters}
            return Artifact(summary=summary | facts)
        finally:
            trainer.close()


class StepStage(RunStage):
    """A stage that makes data or files, and trains nothing."""

    def check_data(self, problems: Problems, rows: int | None) -> None:
        options, component = self.spec.component.options, self.spec.component
        loaded = {id(spec): one.groups for spec, one in self._read(problems, self.entries)}
        data = StepData(
            lambda spec: loaded.get(id(spec)),
            partial(self.check_scoring, options),
            self.recipe,
            self.say,
        )
        self._check(problems, component, "check_data", data)

    def run(self) -> Artifact:
        step = self.plugin(self.spec.component)
        artifact: Artifact = call(
            step, "run", self.context(self.metrics()), returns=returns.artifact
        )
        if artifact.groups is not None:
            write_groups(self.services.store.data(self.name), artifact.groups)
        if artifact.report is not None:
            write_text(self.folder / "report.txt", redacted(artifact.report.text()) + "\n")
            write_text(self.folder / "report.md", redacted(artifact.report.markdown()))
        return artifact

    def context(self, metrics: Metrics) -> StepContext:
        """What the step can use."""
        services = self.services

        def map_rows(name: str, rows: Sequence[Any], function: Callable[..., Any]) -> list[Any]:
            with self.reporter.progress(name, len(rows)) as done:
                elsewhere = services.executor(self.name, self.folder, name)
                compute = elsewhere or partial(map, function)
                file = self.folder / "map" / f"{name}.jsonl"
                return resumable_map(file, rows, compute, services.should_stop, done)

        return StepContext(
            **vars(self.reward_context()),
            out=self.folder,
            scorer=self._scorer,
            map=map_rows,
            log=metrics.write,
            say=self.reporter.say,
            base_of=services.models.base_of,
            recipe=self.recipe,
            read=lambda spec: services.data.read(spec).groups,
        )

    def _scorer(self, spec: RewardSpec) -> Any:
        from alignkit.training.rewards import Rewards

        return Rewards(
            spec, self.reward_context(), chunks=self._chunks, make=self.plugin, say=self.say
        )

    def _chunks(self, name: str, groups: Sequence[Group]) -> Iterator[Sequence[Group]]:
        """The groups that a single reward scores at once.

        A reward model's bits depend on the groups that it sees at once, and on nothing that was
        scored before.
        """
        with self.reporter.progress(f"scoring with {name}", len(groups)) as done:
            for start in range(0, len(groups), SCORED):
                self.services.should_stop()
                yield groups[start : start + SCORED]
                done(min(start + SCORED, len(groups)))

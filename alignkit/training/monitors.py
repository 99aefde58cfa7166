"""What watches the samples of a stage, and may end it.

A stage with monitors keeps the versions of its policy until it ends, and may go back to one of
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from shutil import copytree
from typing import Any

from alignkit.contract.kinds import Monitor, MonitoredStage, MonitorReport
from alignkit.data.group import Group
from alignkit.errors import RunFailed
from alignkit.host import returns
from alignkit.host.calls import attributed_to, call, create
from alignkit.host.plugins import plugins
from alignkit.host.registry import Component, Registration
from alignkit.io.atomic import discard_folder, replace_folder
from alignkit.recipe.references import options_of
from alignkit.training.prompts import SamplesUnderWay, usable_prompts
from alignkit.training.replay import RolloutFiles
from alignkit.training.rewards import Rewards
from alignkit.training.trainer import Trainer


def report_of(
    monitor: Monitor, number: int, groups: Sequence[Group], metrics: Mapping[str, Any]
) -> MonitorReport:
    """What a monitor says of an iteration."""
    wanted = partial(returns.monitor_report, number)
    report: MonitorReport = call(monitor, "observe", number, groups, metrics, returns=wanted)
    return report


def _with_default_options(one: Registration) -> Component:
    with attributed_to(one.implementation, "Options", one.label):
        return Component(one.kind, one.name, one, options_of(one)())


class Monitors:
    """All that watches a stage's samples, and the policies that it may go back to.

    files: of the stage's samples. metrics: of each iteration, as the monitors saw them.
    """

    def __init__(self, trainer: Trainer, rewards: Rewards, files: RolloutFiles):
        stage, settings = trainer.stage, trainer.settings
        self.stage, self.trainer, self.rewards, self.files = stage, trainer, rewards, files
        self.metrics: list[dict[str, Any]] = []
        defaults = map(_with_default_options, plugins().defaults("monitor"))
        self.monitors: list[Monitor] = [create(one, stage.name) for one in defaults]
        self.monitors += map(stage.plugin, settings.monitors or ())
        monitored = MonitoredStage(
            settings,
            stage.folder,
            done=trainer.saved.get("number", 0),
            scorer=stage.scorer,
            prompts=self._prompts,
            answer=self._answer,
            on_main_process=stage.collectives.on_main_process,
        )
        for monitor in self.monitors:
            self.warn(call(monitor, "start", monitored) or ())
        trainer.keeps |= bool(settings.monitors)

    def _prompts(self, spec: Any) -> list[Group]:
        return usable_prompts(self.trainer, spec, "held_out_prompts")[1]

    def _answer(self, prompts: Sequence[Group], samples: int, iteration: int) -> list[Group]:
        pending = SamplesUnderWay(self.trainer, prompts, iteration, samples, "monitor")
        return self.rewards.score(pending.result().groups)

    @property
    def stopped(self) -> str:
        """Why the stage ends early; empty if it does not."""
        return str(self.trainer.summary.get("stopped", ""))

    def state(self) -> list[dict[str, Any]]:
        """What a checkpoint keeps."""
        return self.metrics

    def restore(self, metrics: list[dict[str, Any]]) -> None:
        """See again what earlier iterations sampled."""
        self.metrics = metrics
        for number, each in enumerate(metrics, 1):
            groups = self.files.seen(number)
            for monitor in self.monitors:
                report_of(monitor, number, groups, each)

    def observe(
        self, number: int, groups: list[Group], metrics: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The metrics of an iteration's scored samples; it may end the stage. metrics: of the
        iteration so far.
        """
        self.metrics.append(dict(metrics))
        more: dict[str, Any] = {}
        for monitor in self.monitors:
            report = report_of(monitor, number, groups, metrics)
            self._report(report)
            more |= report.metrics
            if report.stop and not self.stopped:
                self._stop(number, report.stop, report.best or number)
        return more

    def _stop(self, number: int, why: str, best: int) -> None:
        planned = self.trainer.settings.iterations
        counts = {"iterations": number, "planned_iterations": planned, "kept_iteration": best}
        self.trainer.summary |= {"stopped": why, **counts}
        result = f"the result is the policy that iteration {best} began with"
        self.warn([f"stopped in iteration {number} of {planned}: {why}; {result}"])

    def _report(self, report: MonitorReport) -> None:
        self.warn(report.warnings)
        self.trainer.summary |= report.summary

    def warn(self, warnings: Sequence[str]) -> None:
        """Print warnings, which the report shows, too."""
        for warning in warnings:
            self.stage.say(f"warning: {warning}")

    # The result

    def finish(self) -> None:
        """Report what the monitors say at the end, and write the stage's result."""
        for monitor in self.monitors:
            self._report(
                call(monitor, "finish", self.stopped, returns=partial(returns.monitor_report, 0))
            )
        if not self.stopped:
            self.trainer.save()
        self.stage.collectives.on_main_process(self._settle)

    def _settle(self) -> None:
        """Take the version that a rule goes back to, and discard those that nobody asked for."""
        kept = self.trainer.kept
        if self.stopped:
            # The policy that an iteration sampled from is the version after the one before.
            version = kept / str(int(self.trainer.summary["kept_iteration"]) - 1)
            if version.is_dir():
                with replace_folder(self.stage.adapter) as new:
                    copytree(version, new, dirs_exist_ok=True)
            elif not self.stage.adapter.is_dir():
                # If the adapter were there, a start that was killed would have settled already.
                raise RunFailed(
                    f"stage '{self.stage.name}': the weights to go back to are gone: {version}\n"
                    f"help: delete {self.stage.folder}, and the stage starts over"
                )
        unasked = kept
        if self.trainer.settings.keep_versions:
            unasked = kept / "0"
        if unasked.is_dir():
            discard_folder(unasked)

"""A monitor: it ends a stage whose responses become too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from alignkit import Add, Field, Group, Monitor, MonitorReport, hookimpl


class Patience(Monitor):
    class Options(Monitor.Options):
        most: float = Field(1000, gt=0, description="mean length, in characters, that ends it")

    options: Options

    def observe(
        self, iteration: int, groups: Sequence[Group], metrics: Mapping[str, Any]
    ) -> MonitorReport:
        mean = fmean([len(one.text) for group in groups for one in group.responses] or [0])
        stop = f"{mean:.0f} characters are too many" if mean > self.options.most else ""
        return MonitorReport({"characters": mean}, stop=stop)


@hookimpl
def register(add: Add) -> None:
    add("monitor", "patience", Patience, "ends what gets too long")

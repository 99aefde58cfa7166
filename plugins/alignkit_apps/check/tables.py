"""A plan as people read it: tables of at most 80 columns, and remarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from alignkit.io.progress import duration
from alignkit_apps.check.plan import StagePlan
from alignkit_apps.check.timing import BANDWIDTH_SHARE, UTILIZATION

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def number(value: float) -> str:
    """`950`, `12.3k`, `4.56M`: three digits are enough for a plan."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            scaled = value / (1e3 if unit == "k" else size)
            return f"{scaled:.3g}{unit}"
    return f"{value:.0f}"


def gigabytes(value: float) -> str:
    """`<0.01`, `0.02`, `15.3`, `141`: of 10^9 bytes; nothing is `-`."""
    size = value / 1e9
    if 0 < size < 0.01:
        return "<0.01"
    return "-" if not value else f"{size:.2f}" if size < 10 else f"{size:.1f}" if size < 100 else f"{size:.0f}"


def work_table(plans: Sequence[StagePlan]) -> Table:
    """Rows, tokens and time."""
    rows: list[tuple[str, ...]] = [
        (
            plan.name,
            plan.plugin,
            number(plan.work.rows) + "*" * bool(plan.work.estimated),
            number(plan.work.tokens) + "*" * bool(plan.work.estimated),
            number(plan.work.learned) if plan.work.learned else "-",
            number(plan.work.sampled) if plan.work.sampled else "-",
            f"{plan.learning_rate:g}" if plan.learning_rate else "-",
            duration(plan.seconds.total) if plan.seconds else "-",
        )
        for plan in plans
    ]
    return ("stage", "by", "rows", "tokens", "learned", "sampled", "rate", "time"), rows


def memory_table(plans: Sequence[StagePlan]) -> Table:
    """Per device, in GB."""
    rows: list[tuple[str, ...]] = [
        (
            plan.name,
            *map(gigabytes, (memory.weights, memory.adapters, memory.optimizer, memory.activations, memory.cache)),
            gigabytes(memory.kept),
            gigabytes(memory.peak),
        )
        for plan in plans
        for memory in [plan.memory]
    ]
    return ("stage", "weights", "adapters", "optimizer", "activations", "cache", "kept", "peak GB"), rows


def remarks(plans: Sequence[StagePlan]) -> Iterator[str]:
    """What will be reused and why not, what is cut, and the source of the numbers."""
    for plan in plans:
        yield f"{plan.name}: {plan.reuse}"
    for plan in plans:
        for text in plan.work.cut:
            yield f"{plan.name}: {text}"
        if plan.work.estimated:
            yield f"* {plan.name}: estimated, {plan.work.estimated}"
        if plan.memory.rough:
            yield f"{plan.name}: {plan.memory.rough}"
        yield from _of_processes(plan)
    yield from _sources(plans)


def _of_processes(plan: StagePlan) -> Iterator[str]:
    """What each of several processes does and holds."""
    own, memory, name = plan.own, plan.memory, plan.name
    if plan.processes > 1:
        done = [
            f"{what} {number(value)} tokens"
            for what, value in (("learns", own.learned), ("samples", own.sampled))
            if value
        ]
        yield f"{name}: the busiest of {plan.processes} processes {' and '.join(done) or 'waits for the others'}"
    if memory.parts > 1:
        loaded = f"{gigabytes(memory.stored)} GB when they are loaded"
        sampling = f", {gigabytes(memory.gathered)} GB while it samples" if memory.cache else ""
        yield f"{name}: each process holds {gigabytes(memory.weights)} GB of weights in a pass, {loaded}{sampling}"
    for text in plan.remarks:
        yield f"{name}: {text}"


def _sources(plans: Sequence[StagePlan]) -> Iterator[str]:
    machine, timed = plans[0].machine, [plan.seconds for plan in plans if plan.seconds]
    if plans[0].start > 1:
        yield f"planned for {plans[0].start} processes: start the run with accelerate launch"
    if timed and timed[0].source == "computed":
        yield (
            f"time: computed, not measured: {UTILIZATION:.0%} of {machine.name}'s peak in passes, "
            f"{BANDWIDTH_SHARE:.0%} of its bandwidth in sampling"
        )
        yield f"source of the card's numbers: {machine.source}"
    elif timed:
        yield "time: from a probe of a few layers on this machine, times the tokens; a busy machine is slower"
        if machine.count > 1:
            yield "time: without what the processes send to each other"
    if not machine.gpu:
        each = " in each process" if machine.count > 1 else ""
        yield f"memory: of tensors; Python and its libraries take about 0.5 GB more{each}"
    if any(plan.memory.activations and plan.memory.cache for plan in plans):
        yield "activations and cache are never there together: the larger one is in the peak"

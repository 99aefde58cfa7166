"""Time of a stage: from a short probe on this machine, or computed for a card.

The probe runs the base model's own layers with random numbers, which take as long as learned ones: two small depths,
a few hundred tokens each. For a card, the time follows from its data sheet and a stated share of its peak.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from alignkit.data.group import Group
from alignkit.kernels.memory import release_cached
from alignkit.models.examples import Examples
from alignkit.models.forward import Wants, forward
from alignkit.models.next_token import Sampling
from alignkit.models.sampling import generate
from alignkit.tokens.encoding import Encoded, ResponseTokens
from alignkit_apps.check.memory import Memory, period_of, weight_bytes
from alignkit_apps.check.shape_model import PlannedRun, ShapeModel
from alignkit_apps.check.tokens import Workload

UTILIZATION = 0.35  # of a card's peak in passes over packed rows; assumed, not measured
BANDWIDTH_SHARE = 0.5  # of a card's bandwidth while sampling; assumed, not measured
PROBE_SHARE = 1 / 4  # of the memory here, which the probe's layers may take
PROMPT, RESPONSE, PROBED_ROWS, NEW = 64, 192, 8, 16  # tokens and rows of the probe


@dataclass(frozen=True)
class Pace:
    """Tokens per second of a process: learned in optimizer steps, measured without gradients, and sampled.

    source: `measured here` or `computed`.
    """

    learned: float
    measured: float
    sampled: float
    source: str


@dataclass(frozen=True)
class Seconds:
    """How long the parts of a stage take. ahead: iterations of which each is sampled while the last one is learned."""

    learning: float
    measuring: float
    sampling: float
    source: str
    ahead: int = 0

    @property
    def total(self) -> float:
        both = self.learning + self.measuring, self.sampling
        # The first iteration is sampled before, and the last one learned after, all that overlaps.
        return sum(both) if not self.ahead else (sum(both) + (self.ahead - 1) * max(both)) / self.ahead


def seconds_of(work: Workload, pace: Pace, ahead: int = 0) -> Seconds:
    """The time of a process's tokens. ahead: see `Seconds`."""
    times = work.learned / pace.learned, work.measured / pace.measured, work.sampled / pace.sampled
    return Seconds(*times, pace.source, ahead)


# Computed


def computed(run: PlannedRun, base: str, memory: Memory) -> Pace | None:
    """The pace on a card; None if nothing is known of it.

    A pass takes two operations per weight and token, and its backward pass as many for the inputs, and as many again
    for weights that are trained (Kaplan et al. 2020, table 1); activation checkpointing adds a pass. Writing a token
    reads all weights and the row's keys and values once for all rows. A base in parts is brought together for every
    pass, and again for its backward pass, while the card computes.
    """
    machine = run.machine_of(base)
    if machine.flops is None or machine.bandwidth is None:
        return None
    weights = products(run, base)
    spec = run.recipe.base(base)
    per_token = 2 * weights * ((2 if spec.lora is not None else 3) + spec.activation_checkpointing)
    rate = UTILIZATION * machine.flops
    learned, measured, rows = rate / per_token, rate / (2 * weights), max(1, memory.rows)
    if memory.parts > 1:
        received = memory.stored * (1 - 1 / memory.parts) / machine.link
        budget = run.shapes(base, layers=period_of(run.configuration(base))).inference_budget
        learned = min(learned, max(1, memory.tokens) / (2 * received))
        measured = min(measured, budget / received)
    read = memory.stored + memory.cache / 2  # rows are half full on average
    step = max(read / (BANDWIDTH_SHARE * machine.bandwidth), 2 * weights * rows / rate)
    return Pace(learned, measured, rows / step, "computed")


def products(run: PlannedRun, base: str) -> float:
    """Weights that a token is multiplied with: all of them but the table of embeddings, and the head."""
    period, depth = period_of(run.configuration(base)), run.depth(base)
    small, large = (_multiplied(run.shapes(base, layers=layers)) for layers in (period, 2 * period))
    return small + (large - small) / period * (depth - period)


def _multiplied(model: ShapeModel) -> float:
    table, head = model.model.get_input_embeddings().weight, model.model.get_output_embeddings().weight
    whole = sum(parameter.numel() for parameter in model.model.parameters())
    return float(whole if table is head else whole - table.numel())


# Measured


def probed(run: PlannedRun, base: str) -> Pace | None:
    """The pace here, from a few hundred tokens through a few layers; None if these do not fit in memory."""
    period, depth = period_of(run.configuration(base)), run.depth(base)
    machine = run.machine_of(base)
    if weight_bytes(run.shapes(base, layers=2 * period)) > PROBE_SHARE * machine.memory:
        return None
    small, large = (_times(run.shapes(base, layers=layers, real=True), run, base) for layers in (period, 2 * period))
    whole = [a + max(0.0, b - a) / period * (depth - period) for a, b in zip(small, large, strict=True)]
    tokens = PROMPT + RESPONSE
    return Pace(tokens / whole[0], tokens / whole[1], PROBED_ROWS * NEW / whole[2], "measured here")


def _times(model: ShapeModel, run: PlannedRun, base: str) -> tuple[float, float, float]:
    """Seconds of a pass with its backward pass, of one without gradients, and of writing tokens."""
    model.add_role("probe")
    model.make_trainable("probe")
    row = ResponseTokens((1,) * RESPONSE, (True,) * RESPONSE)
    groups = [Encoded(Group(()), (1,) * PROMPT, (row,))]
    encoder = run.service(model, base).encoder
    sampling = Sampling(1, NEW, min_new_tokens=NEW)

    def learn() -> None:
        (-forward(model, "probe", Examples(groups), Wants()).logprobs.sum()).backward()

    def measure() -> None:
        with torch.no_grad():
            forward(model, "probe", Examples(groups), Wants())

    def write() -> None:
        prompts = [(1,) * PROMPT] * PROBED_ROWS
        generate(model, "probe", encoder, prompts, [[number] for number in range(PROBED_ROWS)], sampling)

    return _fastest(learn, model.device), _fastest(measure, model.device), _fastest(write, model.device)


def _fastest(work: Callable[[], None], device: torch.device) -> float:
    """The shorter of two times, in seconds: the other is that of a busy machine."""
    times = []
    for _ in range(2):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    release_cached(device)
    return min(times)


def pace_of(run: PlannedRun, base: str, memory: Memory, probe: Callable[[str], Pace | None]) -> Pace | None:
    """The pace of a process with a base model: probed here, computed for cards that are not."""
    machine = run.machine_of(base)
    if not machine.here:
        return computed(run, base, memory)
    found, sharing = probe(base), 1 if machine.gpu else machine.count  # processes on one processor share its cores
    if found is None:
        return None
    return Pace(found.learned / sharing, found.measured / sharing, found.sampled / sharing, found.source)

"""Rows and tokens of a stage: what it reads, what is cut, and what it samples, as the stage will find them.

Data that an earlier stage makes do not exist yet. They are estimated from the options of that stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alignkit.algorithm import Algorithm, Source
from alignkit.data.group import Group, Response, prompts_of
from alignkit.data.sources import DataSpec, Loaded
from alignkit.models.packing import indivisible
from alignkit.plugin_errors import made
from alignkit.recipe.schema import BASE, RewardSpec, Stage, specs
from alignkit.runs.stage_check import selected
from alignkit.sampling_options import SamplingOptions
from alignkit.tokens.encoding import Encoded, ResponseTokens
from alignkit.training.auxiliary import auxiliary_loss
from alignkit.training.checked import CheckedAlgorithm
from alignkit.training.collectives import Reducer
from alignkit.training.context import StageContext
from alignkit.training.encoder import StageEncoder, counted, unfit
from alignkit.training.sampler import draws_of
from alignkit.training.schedule import share_of
from alignkit_apps.check.shape_model import PlannedRun

MOST_READ = 4000  # rows of an entry that are tokenized; more are estimated from these
SYNTHETIC = 1  # the token of texts that do not exist yet


@dataclass
class Workload:
    """What a stage reads and writes.

    rows: of its data, or its prompts. tokens: of all of its rows once. cut: what does not fit, in words.
    learned: tokens in all optimizer steps. measured: tokens that are read without gradients. sampled: tokens that are
    written at most. steps: optimizer steps. estimated: why the numbers are no counts; empty if they are.
    batches: the groups of each optimizer step of the first epoch, or of the largest one. mix: those of the second
    stream. longest: tokens of the longest prompt that is answered. asked: prompts of an iteration. rows_sampled:
    responses that are written together. new_tokens: of a response at most. prompt_tokens: of all prompts.
    """

    rows: int = 0
    tokens: int = 0
    cut: list[str] = field(default_factory=list)
    learned: int = 0
    measured: int = 0
    sampled: int = 0
    steps: int = 0
    estimated: str = ""
    batches: list[list[Encoded]] = field(default_factory=list)
    longest: int = 0
    asked: int = 0
    rows_sampled: int = 0
    new_tokens: int = 0
    prompt_tokens: int = 0


def dealt(groups: Sequence[Encoded], processes: int) -> list[list[Encoded]]:
    """The groups of each process, as `training.learner` deals them: the longest first, and bundles whole."""
    reducer = Reducer()
    reducer.processes = processes
    units = indivisible([encoded.group.bundle for encoded in groups])
    shares = reducer.shares([sum(groups[index].length for index in unit) for unit in units])
    return [[groups[index] for unit in share for index in units[unit]] for share in shares]


def rows_of_the_busiest(work: Workload, processes: int) -> int:
    """Responses that a process samples together at most. Prompts are dealt, each with all of its samples."""
    if not work.asked:
        return work.rows_sampled
    return work.rows_sampled // work.asked * math.ceil(work.asked / processes)


def of_the_busiest(work: Workload, processes: int) -> Workload:
    """What the process does that has the most of a stage's work."""
    rows = rows_of_the_busiest(work, processes)
    lengths = [[sum(e.length for e in share) for share in dealt(batch, processes)] for batch in work.batches]
    whole, most = sum(map(sum, lengths)), sum(map(max, lengths))
    return replace(
        work,
        learned=math.ceil(work.learned * most / whole) if whole else work.learned,
        measured=-(-work.measured // processes),
        sampled=math.ceil(work.sampled * rows / work.rows_sampled) if work.rows_sampled else work.sampled,
        rows_sampled=rows,
    )


def workload(run: PlannedRun, stage: Stage, done: dict[str, Workload]) -> Workload:
    """The work of a stage. done: that of earlier stages. Raises the errors with which the stage would stop."""
    if stage.kind == "step" or stage.settings is None:
        return _of_step(run, stage, done)
    algorithm, author = made(stage.component, stage.name)
    context = run.stage_context(stage, run.folder / stage.name)
    if not isinstance(algorithm, Algorithm):
        return _of_external(run, stage, done)
    encoder = StageEncoder(context, CheckedAlgorithm(algorithm, author), {})
    if algorithm.source is Source.ROLLOUTS:
        return _online(run, stage, context, encoder, done)
    return _offline(run, stage, context, encoder, done)


# Data


def _read(run: PlannedRun, spec: DataSpec, done: dict[str, Workload]) -> tuple[Loaded, str]:
    """The rows of an entry, and why they are estimates. Rows that a stage will make are as long as its options say."""
    missing = [s for s in spec.sources if s.stage is not None and not run.store.data(s.stage).is_file()]
    here = tuple(source for source in spec.sources if source not in missing)
    loaded = run.load(DataSpec(here)) if here else Loaded([])
    groups = list(loaded.groups)
    for source in missing:
        groups += synthetic(done.get(str(source.stage), Workload()))[: source.limit]
    names = ", ".join(f"'{source.stage}'" for source in missing)
    return Loaded(groups, loaded.validation), f"from the options of {names}" if missing else ""


def synthetic(made_by: Workload) -> list[Group]:
    """Rows that a stage will make: a prompt with as many responses as it samples, of the greatest length."""
    count = max(1, made_by.rows)
    prompt = made_by.prompt_tokens // count if count else 0
    each = max(1, made_by.rows_sampled // count)
    response = Response(tokens=(SYNTHETIC,) * max(1, made_by.new_tokens))
    message: Any = {"role": "user", "content": "x " * prompt}
    return [Group(({**message},), (response,) * each) for _ in range(made_by.rows)]


# Training on data


def _offline(
    run: PlannedRun, stage: Stage, context: StageContext, encoder: StageEncoder, done: dict[str, Workload]
) -> Workload:
    settings = context.settings
    loaded, estimated = _read(run, settings.data, done)
    algorithm, author = made(stage.component, stage.name)
    groups = selected(run.recipe, stage, loaded.groups, algorithm, author)
    encoded, part = _encoded(encoder, groups)
    kept = encoder.learnable(encoded)
    if part < 1:
        estimated = f"from {len(encoded)} of its rows"
    work = Workload(rows=len(groups), cut=_cut(encoder), estimated=estimated)
    work.tokens = round(sum(e.length for e in encoded) / part)
    units = indivisible([e.group.bundle for e in kept])
    if not units:
        return work
    per_epoch = math.ceil(len(units) / part / settings.batch_size)
    work.steps = min(per_epoch * settings.epochs, settings.max_steps or per_epoch * settings.epochs)
    draws = draws_of(loaded, [kept[unit[0]].group for unit in units], context.seed, context.name, "shuffle")
    order = draws.epoch(0)
    for index in range(min(work.steps, math.ceil(len(units) / settings.batch_size))):
        chosen = order[share_of(len(order), settings.batch_size, index)]
        work.batches.append([kept[group] for unit in chosen for group in units[unit]])
    mean = sum(e.length for batch in work.batches for e in batch) / max(1, len(work.batches))
    work.learned = round(mean * work.steps)
    if encoder.algorithm.needs.reference_logprobs:
        work.measured = round(sum(e.length for e in kept) / part)
    held_out = len(loaded.validation) + (len(run.load(settings.validation).groups) if settings.validation else 0)
    work.measured += round(held_out * work.tokens / max(1, work.rows) * settings.epochs)
    _add_mix(work, context, encoder)
    return work


def _encoded(encoder: StageEncoder, groups: Sequence[Group]) -> tuple[list[Encoded], float]:
    """The groups in tokens, or evenly chosen ones of many, and which part of them they are."""
    every = max(1, math.ceil(len(groups) / MOST_READ))
    chosen = groups[::every]
    return encoder.encode(chosen), len(chosen) / max(1, len(groups))


def _cut(encoder: StageEncoder) -> list[str]:
    """What is cut or left out, in words."""
    counts = {**encoder.summary.get("encoding", {})}
    lost = encoder.summary.get("without_signal", 0)
    found = [unfit(name, count) for name, count in counts.items() if count]
    return [*found, *([f"{counted(lost, 'row')} left out: nothing to learn"] if lost else [])]


def _add_mix(work: Workload, context: StageContext, encoder: StageEncoder) -> None:
    mix = auxiliary_loss(context, encoder)
    if mix is None or not mix.groups:
        return
    each = sum(e.length for e in mix.groups) / len(mix.groups)
    work.learned += round(each * mix.batch_size * work.steps)
    work.batches.append(mix.batch(0))


# Training on samples


def _online(
    run: PlannedRun, stage: Stage, context: StageContext, encoder: StageEncoder, done: dict[str, Workload]
) -> Workload:
    settings, rollout = context.settings, context.settings.rollout
    new, samples = rollout.max_new_tokens or 1, rollout.samples_per_prompt or 1
    loaded, estimated = _read(run, settings.prompts, done)
    prompts = encoder.prompts(prompts_of(loaded.groups))
    read = context.models.encoder
    lengths = [len(read.prompt(group.prompt, group.tools)) for group in prompts]
    fitting = [length for length in lengths if length + new <= encoder.max_length]
    work = Workload(rows=len(prompts), tokens=sum(lengths), new_tokens=new, estimated=estimated, cut=_cut(encoder))
    if len(fitting) < len(lengths):
        work.cut.append(f"{len(lengths) - len(fitting)} prompts left out: no room for {new} new tokens")
    if not fitting:
        return work
    each = settings.prompts_per_iteration or len(fitting)
    mean = sum(fitting) / len(fitting)
    learned = min(samples, rollout.learn_from or samples)
    rounds = settings.iterations
    asked = sum(spec.kind == "stage" for spec in specs(settings.reward, RewardSpec))  # reward models of earlier stages
    work.longest, work.prompt_tokens = max(fitting), sum(fitting)
    work.asked, work.rows_sampled = each, each * samples
    work.sampled = rounds * each * samples * new
    a_round = each * (mean + learned * new)
    work.measured = round(rounds * each * (mean + samples * new) * (2 + asked))
    work.learned = round(rounds * a_round * settings.epochs)
    work.steps = rounds * settings.epochs * math.ceil(each / settings.batch_size)
    size = min(each, settings.batch_size)
    for start in range(0, len(fitting), size):  # which of them meet in a step is drawn; all of them may
        work.batches.append([_rollout(length, learned, new) for length in fitting[start : start + size]])
    _add_mix(work, context, encoder)
    return work


def _rollout(prompt: int, samples: int, new: int) -> Encoded:
    """A prompt with samples of the greatest length."""
    row = ResponseTokens((SYNTHETIC,) * new, (True,) * new)
    return Encoded(Group(()), (SYNTHETIC,) * prompt, (row,) * samples)


# Steps


def _of_step(run: PlannedRun, stage: Stage, done: dict[str, Workload]) -> Workload:
    """Prompts of a step, and the responses that it samples at most."""
    options = stage.component.options
    work = Workload()
    for spec in specs(options, DataSpec):
        loaded, estimated = _read(run, spec, done)
        groups = prompts_of(loaded.groups)
        work.rows += len(loaded.groups)
        work.estimated = work.estimated or estimated
        encoder = run.models.of(run.bases.needed(stage)[0]).encoder
        every = max(1, math.ceil(len(groups) / MOST_READ))
        lengths = [len(encoder.prompt(group.prompt, group.tools)) for group in groups[::every]]
        work.tokens += sum(lengths) * every
        work.longest = max([work.longest, *lengths])
    if isinstance(options, SamplingOptions) and (policies := options.policies_to_sample()):
        most = (getattr(options, "limit", None) or work.rows) * max(1, len(getattr(options, "measures", ())))
        rows = min(work.rows, most)
        samples = getattr(options, "samples_per_prompt", None) or 1
        work.rows, work.tokens = rows, round(work.tokens * rows / max(1, work.rows))
        work.new_tokens = int(options.sampled()["max_new_tokens"])
        # Of `evaluate`: a best of N writes N drafts, and the base model is shown next to the others.
        answering = getattr(options, "policies", policies)
        drafts = [getattr(policy, "best_of", 1) for policy in answering]
        drafts += [1] if getattr(options, "base", False) and BASE not in answering else []
        work.rows_sampled = rows * samples * max(drafts)
        work.sampled = rows * samples * sum(drafts) * work.new_tokens
    work.prompt_tokens = work.tokens
    return work


def _of_external(run: PlannedRun, stage: Stage, done: dict[str, Workload]) -> Workload:
    """A stage of another library's trainer: its rows are known, its memory is not."""
    work = Workload(estimated="another library trains: its memory and time are not planned")
    for spec in specs(stage.settings, DataSpec):
        work.rows += len(_read(run, spec, done)[0].groups)
    return work

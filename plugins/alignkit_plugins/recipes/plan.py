"""`alignkit check --plan`: about how much memory and time each stage takes.

Nothing is loaded. Rows are counted as the stage will encode them, at most READ of them; the base
model's shapes come from its configuration; the speed of this machine comes from one short probe of
products of these shapes. Factors, set by runs on a CPU, stand for the rest: attention, norms,
adapters, the optimizer's step.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.benchmark import Timer

from alignkit.algorithm import Algorithm, Source, Trains
from alignkit.calls import call, create
from alignkit.data.group import Group, Message, Response, prompts_of
from alignkit.data.sources import DataSpec
from alignkit.errors import RecipeError, RunFailed
from alignkit.kernels.matmul import linear
from alignkit.kernels.memory import GROWTH, total
from alignkit.models.generate import LOGIT_COPIES, most_rows, row_bytes
from alignkit.models.loading import QUANTIZED, device_of, dtype_of, largest
from alignkit.models.memory import MemoryBudget, activation_bytes_per_token
from alignkit.recipe.schema import BASE, Recipe, RewardSpec, Stage, specs
from alignkit.runs.run import Run
from alignkit.runs.stage import TrainingStage
from alignkit.sampling import SamplingOptions
from alignkit.settings import ModelSpec, Settings

READ = 200  # rows of an entry that are tokenized; more are estimated from these
PROBED = 512  # tokens of the product that is timed
# Time of a pass, of one without gradients, of writing, over its products
LEARNED, READS, WRITTEN = 2.6, 1.8, 2.2
# Bytes that a run's process takes beyond those of this one, on a CPU; set by three runs
LIBRARIES = 0.15e9
# Share of a step's activations that glibc keeps, until the process trims itself; set by three runs
FREED = 0.08
STARTUP = 3.5  # seconds of a stage around its work, such as opening its models
SMALLER = (
    "lower max_length, max_new_tokens or samples_per_prompt, or set model.quantization=nf4, "
    "model.lora={r: 16}, optimizer=adamw_8bit or model.activation_checkpointing=true"
)


@dataclass(frozen=True)
class Work:
    """Rows and tokens of a stage, and why they are no counts (note)."""

    rows: int = 0  # of its data, or its prompts
    tokens: int = 0  # of all rows once
    learned: int = 0  # tokens in all optimizer steps
    measured: int = 0  # tokens that are read without gradients
    written: int = 0  # tokens that are sampled at most
    batch: int = 0  # tokens of the largest step, or of a packed row
    together: int = 0  # responses that are sampled at a time
    prompt: int = 0  # tokens of the longest prompt
    new: int = 0  # tokens of a response
    note: str = ""


@dataclass(frozen=True)
class StagePlan:
    """About what a stage takes: bytes by what they are for, and seconds. room: bytes of the
    machine.
    """

    name: str
    plugin: str
    work: Work
    memory: dict[str, float]
    peak: float
    seconds: float
    room: float


class Shapes:
    """The matrices of a base model, without numbers, and how fast this machine multiplies by
    them.
    """

    def __init__(self, spec: ModelSpec, source: str, commit: str | None):
        from transformers import AutoConfig, AutoModelForCausalLM

        self.spec, self.device = spec, device_of(spec.device)
        self.dtype = dtype_of(spec, self.device)
        remote: Any = {"trust_remote_code": spec.trust_remote_code}
        config = AutoConfig.from_pretrained(source, revision=commit, **remote)
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, dtype=self.dtype, **remote)
        except (ValueError, KeyError, AttributeError, NotImplementedError, RuntimeError) as error:
            raise RunFailed(
                f"'{spec.base}' cannot be planned without its weights: {error}"
            ) from error
        head = model.get_output_embeddings()
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        linear = [
            part
            for part in model.modules()
            if isinstance(part, torch.nn.Linear) and part is not head
        ]
        self.layers = Counter((part.in_features, part.out_features) for part in linear)
        self.matrices = sum(part.weight.numel() for part in linear)
        self.head = (head.weight.shape[1], head.weight.shape[0])
        self.text = config.get_text_config()
        adapted, half = spec.lora is not None, self.dtype != torch.float32
        # Measured: also in fp32
        self.stored = activation_bytes_per_token(self.text, self.dtype, frozen=adapted)
        most = activation_bytes_per_token(self.text, self.dtype, frozen=adapted and half)
        self.budget = MemoryBudget(self.device, most)

    @property
    def weights(self) -> float:
        """Bytes of the base model."""
        width = quantized_width(self.spec) or self.dtype.itemsize
        return (self.parameters - self.matrices) * self.dtype.itemsize + self.matrices * width

    @property
    def trained(self) -> float:
        """Bytes of what a role learns: its adapter, or all weights."""
        if self.spec.lora is None:
            return self.parameters * self.dtype.itemsize
        return (
            4.0
            * self.spec.lora.r
            * sum((inner + outer) * count for (inner, outer), count in self.layers.items())
        )

    def products(self, tokens: int) -> float:
        """Seconds in which this machine multiplies this many tokens by all matrices."""
        dtype = self.dtype if self.spec.mixed_precision == "none" else torch.bfloat16
        shapes = {**self.layers, self.head: 1}
        return sum(
            count * _timed(tokens, shape, dtype, self.device) for shape, count in shapes.items()
        )

    def seconds(self, work: Work) -> float:
        """The time of a stage's tokens. The backward pass costs one pass more, and another for
        weights that learn.
        """
        passes = (2 if self.spec.lora is not None else 3) + self.spec.activation_checkpointing
        writing = (
            WRITTEN * self.products(max(1, work.together)) * work.written / max(1, work.together)
        )
        return (
            self.products(PROBED)
            / PROBED
            * (LEARNED * passes * work.learned + READS * work.measured)
            + writing
        )


@cache
def _timed(tokens: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> float:
    x, w = (
        torch.ones(size, dtype=dtype, device=device) for size in ((tokens, shape[0]), shape[::-1])
    )
    timer = Timer(
        "f(x, w)", globals={"f": linear, "x": x, "w": w}, num_threads=torch.get_num_threads()
    )
    # A busy machine makes some of them longer
    return float(min(timer.timeit(1).mean for _ in range(10)))


class _Planner:
    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe = recipe
        self.run = Run(recipe, folder)
        self.run.say = lambda text: None
        self.store, self.data = self.run.store, self.run.data
        base = self.run.base(BASE)
        assert base.encoder is not None
        self.encoder = base.encoder
        self.shapes = Shapes(base.spec, base.source, base.commit or base.spec.revision)
        self.done: dict[str, Work] = {}

    def plan(self, stage: Stage) -> StagePlan:
        shapes = self.shapes
        self.encoder.forget_counts()
        work = self._work(stage)
        self.done[stage.name] = work
        parts = _memory(shapes, stage, work)
        # One after the other
        peak = sum(parts.values()) - min(parts["activations"], parts["cache"])
        seconds, room = STARTUP + shapes.seconds(work), total(shapes.device)
        return StagePlan(stage.name, stage.component.name, work, parts, peak, seconds, room)

    def _work(self, stage: Stage) -> Work:
        settings = stage.settings
        if settings is None:
            return self._step(stage)
        algorithm = create(stage.component, stage.name)
        if not isinstance(algorithm, Algorithm):
            return Work(note="another library trains: its memory and time are not planned")
        if algorithm.source is Source.ROLLOUTS:
            return self._online(settings, algorithm)
        found, note = self._groups(settings.data)
        trained = self.run.stages[stage.name]
        assert isinstance(trained, TrainingStage)
        groups = trained.select(found)
        turns = call(algorithm, "trained_turns")
        scoring = algorithm.trains is Trains.REWARD
        read = groups[:: max(1, math.ceil(len(groups) / READ))]
        encoded = [
            self.encoder.encode(group, settings.max_length, turns=turns, scoring=scoring)
            for group in read
        ]
        lengths = [one.length for one in encoded if one is not None] or [0]
        mean, kept = sum(lengths) / len(lengths), len(groups) * len(lengths) / max(1, len(read))
        steps = math.ceil(kept / settings.batch_size) * settings.epochs
        rows = min(kept * settings.epochs, (settings.max_steps or steps) * settings.batch_size)
        held = len(self._groups(settings.validation)[0]) if settings.validation is not None else 0
        measured = kept * mean * algorithm.needs.reference_logprobs + held * mean * settings.epochs
        batch = max(
            max(lengths),
            min(self.shapes.budget.tokens, round(mean * min(kept, settings.batch_size))),
        )
        return Work(
            len(groups),
            round(mean * kept),
            round(mean * rows),
            round(measured),
            batch=batch,
            note=note,
        )

    def _online(self, settings: Settings, algorithm: Algorithm) -> Work:
        rollout = settings.rollout
        groups, note = self._groups(settings.prompts)
        lengths = self._prompt_lengths(groups)
        new, samples = rollout.max_new_tokens, rollout.samples_per_prompt
        mean, asked = sum(lengths) / len(lengths), settings.prompts_per_iteration
        prompts = settings.iterations * asked
        learned = prompts * (mean + samples * new) * settings.epochs
        # Policy, reference, values
        passes = 2 + (algorithm.needs.values and not algorithm.needs.shared_values)
        # Reward models
        passes += sum(spec.kind == "stage" for spec in specs(settings.reward, RewardSpec))
        measured = prompts * (mean + samples * new) * passes
        batch = min(asked, settings.batch_size) * (mean + samples * new)
        work = Work(
            len(groups),
            round(mean * len(groups)),
            round(learned),
            round(measured),
            prompts * samples * new,
        )
        return replace(
            work,
            batch=round(batch),
            together=asked * samples,
            prompt=max(lengths),
            new=new,
            note=note,
        )

    def _step(self, stage: Stage) -> Work:
        options, work = stage.component.options, Work()
        for spec in specs(options, DataSpec):
            groups, note = self._groups(spec)
            lengths = self._prompt_lengths(groups)
            tokens = work.tokens + round(sum(lengths) / len(lengths) * len(groups))
            work = Work(
                work.rows + len(groups),
                tokens,
                measured=tokens,
                prompt=max(lengths),
                note=work.note or note,
            )
        if (
            isinstance(options, SamplingOptions)
            and (policies := options.policies_to_sample())
            and work.rows
        ):
            limit = (getattr(options, "limit", None) or work.rows) * max(
                1, len(getattr(options, "metrics", ()))
            )
            rows = min(work.rows, limit)
            samples, new = (
                getattr(options, "samples_per_prompt", None) or 1,
                options.sampling.max_new_tokens,
            )
            together, count = rows * samples, len(policies) + getattr(options, "base", False)
            asked, written = count * work.tokens * rows // work.rows, count * together * new
            passes = 2 * getattr(options, "kl", False) + sum(
                one.kind == "stage" for one in specs(options, RewardSpec)
            )
            measured = asked + passes * (asked + written)
            work = replace(
                work, rows=rows, measured=measured, written=written, together=together, new=new
            )
        return work

    def _groups(self, spec: DataSpec) -> tuple[list[Group], str]:
        """The rows of an entry, and a note if a stage has yet to make some: they are taken as long
        as it allows.
        """
        missing = [
            s
            for s in spec.sources
            if s.stage is not None and not self.store.data(s.stage).is_file()
        ]
        here = tuple(source for source in spec.sources if source not in missing)
        groups = list(self.data.read(DataSpec(here)).groups) if here else []
        for source in missing:
            work = self.done[str(source.stage)]
            words, answer = (
                "x " * (work.tokens // max(1, work.rows)),
                Response(text="x " * work.new),
            )
            answers = (answer,) * max(1, work.together // max(1, work.rows))
            groups += [Group((Message(role="user", content=words),), answers)] * work.rows
        names = ", ".join(f"'{source.stage}'" for source in missing)
        return groups, f"rows are those that {names} may make" if names else ""

    def _prompt_lengths(self, groups: Sequence[Group]) -> list[int]:
        prompts = prompts_of(groups)
        read = prompts[:: max(1, math.ceil(len(prompts) / READ))]
        return [len(self.encoder.prompt(group.prompt, group.tools)) for group in read] or [0]


def _memory(shapes: Shapes, stage: Stage, work: Work) -> dict[str, float]:
    """Bytes on a device."""
    on_cpu = shapes.device.type == "cpu"
    tokens = (
        min(work.batch, shapes.budget.tokens)
        if work.learned
        else min(work.tokens, shapes.budget.tokens)
    )
    activations = shapes.stored * tokens if work.learned else 0.0
    if shapes.spec.activation_checkpointing:
        activations = (
            activations / shapes.text.num_hidden_layers + tokens * shapes.text.hidden_size * 4.0
        )
    moments = 0.5 if "8bit" in str(getattr(stage.settings, "optimizer", "")) else 2.0
    found = {
        "weights": shapes.weights,
        "adapters": (1 + len(stage.roles)) * shapes.trained,
        "optimizer": (moments + 1) * shapes.trained if work.learned else 0.0,
        "activations": activations,
        "cache": 0.0,
    }
    if on_cpu:
        found["Python"] = psutil.Process().memory_info().rss + LIBRARIES
        found["freed"] = min(GROWTH, FREED * activations * work.learned / max(1, work.batch))
    if work.written and stage.engine is None:
        row = row_bytes(shapes.text, shapes.dtype.itemsize, work.prompt, work.new)
        vocabulary = 0 if on_cpu else shapes.text.vocab_size
        rows = min(
            work.together, most_rows(row, total(shapes.device) - sum(found.values()), 0, vocabulary)
        )
        logits = 4 * LOGIT_COPIES * (largest(shapes.text, "vocab_size") or 0)
        packed = on_cpu and shapes.dtype == torch.float32  # for sampling
        found["cache"] = rows * (row + logits) + packed * shapes.weights
    return found


def plan_recipe(recipe: Recipe, folder: Path) -> list[StagePlan]:
    """Plan the stages in their order, with the data of the run's folder. Raises the errors of their
    data and models.
    """
    planner = _Planner(recipe, folder)
    return [planner.plan(stage) for stage in recipe.stages.values()]


def too_large(recipe: Recipe, plans: Sequence[StagePlan]) -> RecipeError | None:
    """The stages that this machine has no memory for, and what to change; None without any."""
    problems = []
    for plan in plans:
        if plan.peak > plan.room:
            needs = f"stage '{plan.name}' needs about {plan.peak / 1e9:.1f} GB"
            text = f"{needs}, but this machine has {plan.room / 1e9:.1f} GB for it"
            place = ("stages", plan.name)
            problems.append(recipe.document.problem(place, text, at_key=True, help=SMALLER))
    return RecipeError(problems) if problems else None


def table(plans: Sequence[StagePlan]) -> tuple[tuple[str, ...], list[list[str]]]:
    """A row for each stage."""
    rows = []
    for plan in plans:
        counts = (plan.work.rows, plan.work.tokens, plan.work.learned, plan.work.written)
        minutes = "under 1" if plan.seconds < 60 else f"about {plan.seconds / 60:.0f}"
        numbers = [f"{count:,}" if count else "-" for count in counts]
        rows.append([plan.name, plan.plugin, *numbers, f"about {plan.peak / 1e9:.1f} GB", minutes])
    return ("stage", "by", "rows", "tokens", "learned", "sampled", "memory", "minutes"), rows


def quantized_width(spec: ModelSpec) -> float | None:
    """Bytes per weight of a quantized matrix, with its scales; None if the base is not quantized.

    bitsandbytes has a scale in fp32 per row of int8, or per 64 weights of 4 bits. Double
    quantization stores these in 8 bits, with a scale in fp32 per 256 of them.
    """
    options = QUANTIZED[spec.quantization]
    if "load_in_4bit" not in options:
        return 1.0 if options else None
    return 0.5 + (1 + 4 / 256 if options.get("bnb_4bit_use_double_quant") else 4) / 64

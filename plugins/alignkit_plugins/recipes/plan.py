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
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.benchmark import Timer

from alignkit.algorithm import Algorithm, Source, Trains
from alignkit.calls import call, create
from alignkit.data.group import Group, Message, Response, prompts_of
from alignkit.data.sources import DataSource, DataSpec
from alignkit.errors import RecipeError, RunFailed
from alignkit.kernels.matmul import linear
from alignkit.kernels.memory import GROWTH, total
from alignkit.models.generate import LOGIT_COPIES, most_rows, row_bytes
from alignkit.models.loading import QUANTIZED, device_of, dtype_of, largest
from alignkit.models.memory import MemoryBudget, activation_bytes_per_token
from alignkit.recipe.schema import BASE, Recipe, RewardSpec, Stage, specs
from alignkit.runs.run import Run
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


@dataclass
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
        modules = [part for part in model.modules() if isinstance(part, torch.nn.Linear)]
        linear = [part for part in modules if part is not head]
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
        sizes = [(inner + outer) * count for (inner, outer), count in self.layers.items()]
        return 4.0 * self.spec.lora.r * sum(sizes)

    def products(self, tokens: int) -> float:
        """Seconds in which this machine multiplies this many tokens by all matrices."""
        dtype, seconds = self.dtype, 0.0
        if self.spec.mixed_precision != "none":
            dtype = torch.bfloat16
        for shape, count in {**self.layers, self.head: 1}.items():
            seconds += count * _timed(tokens, shape, dtype, self.device)
        return seconds

    def seconds(self, work: Work) -> float:
        """The time of a stage's tokens. The backward pass costs one pass more, and another for
        weights that learn.
        """
        passes = 2 + (self.spec.lora is None) + self.spec.activation_checkpointing
        reading = LEARNED * passes * work.learned + READS * work.measured
        together = max(1, work.together)
        writing = WRITTEN * self.products(together) * work.written / together
        return reading * self.products(PROBED) / PROBED + writing


@cache
def _timed(tokens: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> float:
    x = torch.ones((tokens, shape[0]), dtype=dtype, device=device)
    w = torch.ones(shape[::-1], dtype=dtype, device=device)
    values = {"f": linear, "x": x, "w": w}
    timer = Timer("f(x, w)", globals=values, num_threads=torch.get_num_threads())
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
        settings, work = stage.settings, Work()
        if settings is None:
            self._step(work, stage)
            return work
        algorithm = create(stage.component, stage.name)
        if not isinstance(algorithm, Algorithm):
            work.note = "another library trains: its memory and time are not planned"
        elif algorithm.source is Source.ROLLOUTS:
            self._online(work, settings, algorithm)
        else:
            self._offline(work, self.run.stages[stage.name], settings, algorithm)
        return work

    def _offline(self, work: Work, stage: Any, settings: Settings, algorithm: Algorithm) -> None:
        groups = stage.select(self._groups(work, settings.data))
        turns, scoring = call(algorithm, "trained_turns"), algorithm.trains is Trains.REWARD
        read, lengths = _some(groups), list[int]()
        for group in read:
            most = settings.max_length
            encoded = self.encoder.encode(group, most, turns=turns, scoring=scoring)
            if encoded is not None:
                lengths.append(encoded.length)
        mean = sum(lengths) / max(1, len(lengths))
        kept = len(groups) * len(lengths) / max(1, len(read))
        steps = math.ceil(kept / settings.batch_size) * settings.epochs
        rows = min(kept * settings.epochs, (settings.max_steps or steps) * settings.batch_size)
        work.rows, work.tokens = len(groups), round(mean * kept)
        work.learned = round(mean * rows)
        work.measured = round(work.tokens * algorithm.needs.reference_logprobs)
        if settings.validation is not None:
            held_out = self._groups(work, settings.validation)
            work.measured += round(len(held_out) * mean * settings.epochs)
        batch = round(mean * min(kept, settings.batch_size))
        work.batch = max(*lengths, 0, min(self.shapes.budget.tokens, batch))

    def _online(self, work: Work, settings: Settings, algorithm: Algorithm) -> None:
        rollout, needs = settings.rollout, algorithm.needs
        self._count(work, settings.prompts)
        each = work.tokens / max(1, work.rows)
        each += rollout.samples_per_prompt * rollout.max_new_tokens
        prompts = settings.iterations * settings.prompts_per_iteration
        passes = 2 + (needs.values and not needs.shared_values)  # policy, reference, values
        passes += _reward_models(settings.reward)
        work.learned = round(prompts * each * settings.epochs)
        work.measured = round(prompts * each * passes)
        work.batch = round(min(settings.prompts_per_iteration, settings.batch_size) * each)
        work.together = settings.prompts_per_iteration * rollout.samples_per_prompt
        work.new = rollout.max_new_tokens
        work.written = settings.iterations * work.together * work.new

    def _step(self, work: Work, stage: Stage) -> None:
        options: Any = stage.component.options
        for spec in specs(options, DataSpec):
            self._count(work, spec)
        work.measured = work.tokens
        if not (isinstance(options, SamplingOptions) and work.rows):
            return
        policies = len(options.policies_to_sample()) + getattr(options, "base", False)
        if not policies:
            return
        limit = getattr(options, "limit", None) or work.rows
        limit *= max(1, len(getattr(options, "metrics", ())))
        rows = min(work.rows, limit)
        asked = policies * work.tokens * rows // work.rows
        work.rows, work.new = rows, options.sampling.max_new_tokens
        work.together = rows * (getattr(options, "samples_per_prompt", None) or 1)
        work.written = policies * work.together * work.new
        passes = 2 * getattr(options, "kl", False) + _reward_models(options)
        work.measured = asked + passes * (asked + work.written)

    def _count(self, work: Work, spec: DataSpec | None) -> None:
        """Add the prompts of an entry."""
        prompts = prompts_of(self._groups(work, spec))
        lengths = [len(self.encoder.prompt(one.prompt, one.tools)) for one in _some(prompts)]
        work.rows += len(prompts)
        work.tokens += round(sum(lengths) / max(1, len(lengths)) * len(prompts))
        work.prompt = max(*lengths, work.prompt, 0)

    def _groups(self, work: Work, spec: DataSpec | None) -> list[Group]:
        """The rows of an entry; those that a stage has yet to make are taken as long as it allows,
        with a note.
        """
        assert spec is not None
        here, missing, groups = list[DataSource](), list[str](), list[Group]()
        for source in spec.sources:
            if source.stage is None or self.store.data(source.stage).is_file():
                here.append(source)
            else:
                missing.append(source.stage)
        if here:
            groups += self.data.read(DataSpec(tuple(here))).groups
        for name in missing:
            made = self.done[name]
            words, answer = "x " * (made.tokens // max(1, made.rows)), "x " * made.new
            answers = (Response(text=answer),) * max(1, made.together // max(1, made.rows))
            groups += [Group((Message(role="user", content=words),), answers)] * made.rows
            work.note = f"rows are those that '{name}' may make"
        return groups


def _some(groups: Sequence[Group]) -> Sequence[Group]:
    """At most READ groups, from everywhere."""
    return groups[:: max(1, math.ceil(len(groups) / READ))]


def _reward_models(options: Any) -> int:
    return sum(spec.kind == "stage" for spec in specs(options, RewardSpec))


def _memory(shapes: Shapes, stage: Stage, work: Work) -> dict[str, float]:
    """Bytes on a device."""
    on_cpu, text = shapes.device.type == "cpu", shapes.text
    found = dict.fromkeys(("optimizer", "activations", "cache"), 0.0)
    found |= {"weights": shapes.weights, "adapters": (1 + len(stage.roles)) * shapes.trained}
    if work.learned:
        tokens = min(work.batch, shapes.budget.tokens)
        activations = shapes.stored * tokens
        if shapes.spec.activation_checkpointing:
            activations = activations / text.num_hidden_layers + tokens * text.hidden_size * 4.0
        copies = 3.0  # of what is trained: gradients and moments
        if "8bit" in str(getattr(stage.settings, "optimizer", "")):
            copies = 1.5
        found |= {"optimizer": copies * shapes.trained, "activations": activations}
    if on_cpu:
        steps = work.learned / max(1, work.batch)
        found["Python"] = psutil.Process().memory_info().rss + LIBRARIES
        found["freed"] = min(GROWTH, FREED * found["activations"] * steps)
    if work.written and stage.engine is None:
        row = row_bytes(text, shapes.dtype.itemsize, work.prompt, work.new)
        room, vocabulary = total(shapes.device) - sum(found.values()), largest(text, "vocab_size")
        rows = most_rows(row, room, 0, text.vocab_size * (not on_cpu))
        logits = 4 * LOGIT_COPIES * (vocabulary or 0)
        packed = on_cpu and shapes.dtype == torch.float32  # for sampling
        found["cache"] = min(work.together, rows) * (row + logits) + packed * shapes.weights
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
    if problems:
        return RecipeError(problems)
    return None


def table(plans: Sequence[StagePlan]) -> tuple[tuple[str, ...], list[list[str]]]:
    """A row for each stage."""
    rows = []
    for plan in plans:
        counts = (plan.work.rows, plan.work.tokens, plan.work.learned, plan.work.written)
        minutes = "under 1"
        if plan.seconds >= 60:
            minutes = f"about {plan.seconds / 60:.0f}"
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

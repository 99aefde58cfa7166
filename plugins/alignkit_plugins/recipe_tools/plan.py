"""`alignkit check --plan`: about how much memory and time each stage takes.

Nothing is loaded. Rows are counted as the stage will encode them, at most READ of them; the base
model's shapes come from its configuration; the speed of this machine comes from one short probe of
products of these shapes. Factors, set by runs on a CPU, stand for the rest: attention, norms,
adapters, the optimizer's step.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.benchmark import Timer

from alignkit.contract.algorithm import Algorithm, Source, Trains
from alignkit.contract.settings import ModelSpec, SamplingOptions, Settings
from alignkit.data.group import Group, prompts_of
from alignkit.host.calls import call, create
from alignkit.kernels.backends import chosen
from alignkit.kernels.memory import total
from alignkit.models.generate import LOGIT_COPIES, most_slots, slot_bytes
from alignkit.models.loading import QUANTIZED, context_length_of, device_of, dtype_of
from alignkit.models.memory import MemoryBudget, activation_bytes_per_token
from alignkit.recipe.schema import BASE, Recipe, RewardSpec, Stage, specs
from alignkit.recipe.sources import DataSource, DataSpec
from alignkit.runs.run import Run
from alignkit_plugins.compare.comparison import distinct_prompts
from alignkit_plugins.text.readable import duration, short

READ = 200  # rows of an entry that are tokenized; more are estimated from these
PROBED = 512  # tokens of the product that is timed
# Time of a pass, of one without gradients, of writing, over its products
LEARNED, READS, WRITTEN = 2.6, 1.8, 2.2
# Bytes that a run's process takes beyond those of this one, on a CPU, with freed memory that it keeps
LIBRARIES = 0.4e9
CONTEXT = 2.0**30  # what CUDA, its libraries and the allocator keep; not measured
OF_PROCESS = 6.0  # seconds of a cell's process around its stages, such as the libraries'
STARTUP = 3.5  # seconds of a stage around its work, such as opening its models
SMALLER = (
    "lower max_length, max_new_tokens or samples_per_prompt, or set {}, optimizer=adamw_8bit or "
    "model.activation_checkpointing=true"
)
LORA = "model.lora={r: 16}"  # what makes weights smaller that all learn, and cannot be quantized


@dataclass
class Work:
    """Rows and tokens of a stage, and why they are no counts (note)."""

    rows: int = 0  # rows of its data, or prompts
    tokens: int = 0  # tokens of all rows, once
    learned: int = 0  # tokens in all optimizer steps
    measured: int = 0  # tokens that are read without gradients
    written: int = 0  # tokens that are sampled at most
    batch: int = 0  # tokens of the largest step, or of a pack
    together: int = 0  # responses that are to be sampled at a time
    slots: int = 0  # responses that are decoded at once, as many of these as memory allows
    prompt: int = 0  # tokens of the longest prompt
    new: int = 0  # tokens of a response
    note: str = ""


@dataclass(frozen=True)
class StagePlan:
    """About what a stage takes: bytes by what they are for, and seconds, unless it is planned for
    another machine. room: bytes of the machine.
    """

    name: str
    plugin: str
    work: Work
    memory: dict[str, float]
    peak: float
    seconds: float | None
    room: float


class Shapes:
    """The shapes of a base model, without numbers, and the memory that follows from them.

    room: bytes of the device.
    """

    room: float

    def __init__(self, config: Any, spec: ModelSpec, device: torch.device, dtype: torch.dtype):
        from transformers import AutoModelForCausalLM

        self.spec, self.device, self.dtype = spec, device, dtype
        remote: Any = {"trust_remote_code": spec.trust_remote_code}
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=self.dtype, **remote)
        self.text, self.parameters = config.get_text_config(), model.num_parameters()
        self.matrices, self.ends = 0, 0  # weights of the layers' matrices, and their rows + columns
        head = model.get_output_embeddings()
        self.head = head.weight.numel()
        for part in model.modules():
            if isinstance(part, torch.nn.Linear) and part is not head:
                self.matrices += part.weight.numel()
                self.ends += part.in_features + part.out_features
        adapted, half = self.spec.lora is not None, self.dtype != torch.float32
        # Measured: also in fp32
        self.stored = activation_bytes_per_token(self.text, self.dtype, frozen=adapted)
        most = activation_bytes_per_token(self.text, self.dtype, frozen=adapted and half)
        self.budget = MemoryBudget(device, most)

    @property
    def weights(self) -> float:
        """Bytes of the base model. A quantized matrix has a scale in fp32 per 64 weights; double
        quantization stores it in 8 bits, with a scale in fp32 per 256 of them.
        """
        options, width = QUANTIZED[self.spec.quantization], float(self.dtype.itemsize)
        if options:
            scale = 1 + 4 / 256 if "bnb_4bit_use_double_quant" in options else 4
            width = 0.5 + scale / 64 if "load_in_4bit" in options else 1.0
        return (self.parameters - self.matrices) * self.dtype.itemsize + self.matrices * width

    @property
    def trained(self) -> float:
        """Bytes of what a role learns: its adapter, or all weights."""
        if self.spec.lora is None:
            return self.parameters * self.dtype.itemsize
        return 4.0 * self.spec.lora.r * self.ends

    def memory(self, stage: Stage, work: Work) -> dict[str, float]:
        """Bytes on a device. Sets the slots of the work."""
        on_cpu = self.device.type == "cpu"
        found = dict.fromkeys(("optimizer", "activations", "cache"), 0.0)
        found |= {"weights": self.weights, "adapters": (1 + len(stage.roles)) * self.trained}
        if work.learned:
            copies = 3.0  # what is trained has gradients and two moments
            if "8bit" in str(getattr(stage.settings, "optimizer", "")):
                copies = 1.5
            found |= {"optimizer": copies * self.trained, "activations": self.activations(work)}
        if on_cpu:
            found["Python"] = psutil.Process().memory_info().rss + LIBRARIES
        else:
            found["CUDA"] = CONTEXT
        if work.written and stage.engine is None:
            slot = slot_bytes(self.text, self.dtype.itemsize, work.prompt, work.new)
            room = self.room - sum(found.values())
            most = most_slots(slot, room, 0, self.text.vocab_size * (not on_cpu))
            slot += 4 * LOGIT_COPIES * self.text.vocab_size
            work.slots = min(work.together, most)
            found["cache"] = float(work.slots * slot)
        return found

    def activations(self, work: Work) -> float:
        """Bytes that a pack stores for its backward pass."""
        stored = self.stored * min(work.batch, self.budget.tokens)
        if self.spec.activation_checkpointing:
            return stored / int(self.text.num_hidden_layers)
        return stored

    def taken(self, stage: Stage, work: Work, seconds: float | None = None) -> StagePlan:
        """The plan of a stage. Its sampling and its learning are one after the other."""
        parts = self.memory(stage, work)
        peak = sum(parts.values()) - min(parts["activations"], parts["cache"])
        return StagePlan(stage.name, stage.component.name, work, parts, peak, seconds, self.room)


class _Planner(Shapes):
    """With the data of a recipe's stages, and the speed of this machine."""

    def __init__(self, recipe: Recipe, folder: Path):
        from transformers import AutoConfig

        self.run = Run(recipe, folder)
        self.run.say = lambda text: None
        source = self.run.model_source(BASE)
        assert source.encoder is not None
        self.encoder, spec = source.encoder, source.spec
        remote: Any = {"trust_remote_code": spec.trust_remote_code}
        commit = source.commit or spec.revision
        config = AutoConfig.from_pretrained(source.source, revision=commit, **remote)
        device = device_of(spec.device)
        super().__init__(config, spec, device, dtype_of(spec, device))
        self.room = total(device)

    def products(self, tokens: int) -> float:
        """Seconds in which this machine multiplies this many tokens by all matrices, by a probe of
        one.
        """
        size = self.text.hidden_size
        dtype = torch.bfloat16 if self.spec.mixed_precision != "none" else self.dtype
        x = torch.ones((tokens, size), dtype=dtype, device=self.device)
        w = torch.ones((2 * size, size), dtype=dtype, device=self.device)
        values = {"f": chosen(self.device, dtype).linear, "x": x, "w": w}
        timer = Timer("f(x, w)", globals=values, num_threads=torch.get_num_threads())
        # A busy machine makes some of them longer
        fastest = min(timer.timeit(1).mean for _ in range(10))
        return float(fastest) * (self.matrices + self.head) / w.numel()

    def seconds(self, work: Work) -> float:
        """The time of a stage's tokens. The backward pass costs one pass more, and another for
        weights that learn.
        """
        passes = 2 + (self.spec.lora is None) + self.spec.activation_checkpointing
        reading = LEARNED * passes * work.learned + READS * work.measured
        together = max(1, work.together)
        writing = WRITTEN * self.products(together) * work.written / together
        return STARTUP + reading * self.products(PROBED) / PROBED + writing

    def plan(self, stage: Stage) -> StagePlan:
        work, settings = Work(), stage.settings
        self.encoder.forget_counts()
        plugin: Any = create(stage.component, stage.name)
        if settings is None:
            self._step(work, stage.component.options)
        elif not isinstance(plugin, Algorithm):
            work.note = "another library trains: its memory and time are not planned"
        elif plugin.source is Source.ROLLOUTS:
            self._online(work, settings, plugin)
        else:
            self._offline(work, self.run.stages[stage.name], settings, plugin)
        return self.taken(stage, work, self.seconds(work))

    def _offline(self, work: Work, stage: Any, settings: Settings, algorithm: Algorithm) -> None:
        groups = stage.select(self._groups(work, settings.data))
        turns, scoring = call(algorithm, "trained_turns"), algorithm.trains is Trains.REWARD
        read, lengths = _some(groups), list[int]()
        for group in read:
            most = min(settings.max_length, context_length_of(self.text))
            encoded = self.encoder.encode(group, most, turns=turns, scoring=scoring)
            if encoded is not None:
                lengths.append(encoded.length)
        mean = sum(lengths) / max(1, len(lengths))
        kept = len(groups) * len(lengths) / max(1, len(read))
        rows = kept * settings.epochs
        if settings.max_steps:
            rows = min(rows, settings.max_steps * settings.batch_size)
        work.rows, work.tokens = len(groups), round(mean * kept)
        work.learned = round(mean * rows)
        work.measured = round(work.tokens * algorithm.needs.reference_logprobs)
        batch = round(mean * min(kept, settings.batch_size))
        work.batch = max(*lengths, 0, min(self.budget.tokens, batch))

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

    def _step(self, work: Work, options: Any) -> None:
        prompts = 0
        for spec in specs(options, DataSpec):
            before = work.rows
            self._count(work, spec, distinct_prompts)
            if spec == getattr(options, "prompts", None):
                prompts = work.rows - before
        work.measured = work.tokens
        if isinstance(options, SamplingOptions) and work.rows:
            policies = options.policies_to_sample()
            tries = [getattr(one, "best_of", 1) for one in getattr(options, "policies", policies)]
            if getattr(options, "base", False) and BASE not in policies:
                policies, tries = [BASE, *policies], [1, *tries]
            rows = prompts or work.rows
            rows = min(rows, getattr(options, "limit", None) or rows)
            work.tokens, work.rows = work.tokens * rows // work.rows, rows
            work.new = options.sampling.max_new_tokens
            answers = rows * (getattr(options, "samples_per_prompt", None) or 1)
            work.together = answers * max(tries, default=1)
            work.written = sum(tries) * answers * work.new
            passes = 2 * getattr(options, "kl", False) + _reward_models(options)
            work.measured = (1 + passes) * len(policies) * work.tokens + passes * work.written

    def _count(self, work: Work, spec: DataSpec | None, read: Any = prompts_of) -> None:
        """Add the prompts of an entry. read: those of its groups."""
        prompts = read(self._groups(work, spec))
        lengths = [len(self.encoder.prompt(one.prompt, one.tools)) for one in _some(prompts)]
        work.rows += len(prompts)
        work.tokens += round(sum(lengths) / max(1, len(lengths)) * len(prompts))
        work.prompt = max(*lengths, work.prompt, 0)

    def _groups(self, work: Work, spec: DataSpec | None) -> list[Group]:
        """The rows of an entry, without those that a stage has yet to make."""
        assert spec is not None
        here = list[DataSource]()
        for source in spec.sources:
            if source.stage is None or self.run.store.data(source.stage).is_file():
                here.append(source)
            else:
                work.note = f"without the rows that '{source.stage}' makes"
        return self.run.data.read(DataSpec(tuple(here))).groups if here else []


def _some(groups: Sequence[Group]) -> Sequence[Group]:
    """At most READ groups, spread evenly over all."""
    return groups[:: max(1, math.ceil(len(groups) / READ))]


def _reward_models(options: Any) -> int:
    return sum(spec.kind == "stage" for spec in specs(options, RewardSpec))


def plan_recipe(
    recipe: Recipe, folder: Path, without: Collection[str] = ()
) -> tuple[list[StagePlan], list[str]]:
    """Plan the stages in their order, with the data of the run's folder; and what to know of the
    numbers. without: stages that are left out. Raises the errors of their data and models.
    """
    planner = _Planner(recipe, folder)
    plans = [planner.plan(stage) for name, stage in recipe.stages.items() if name not in without]
    way = SMALLER.format("model.quantization=nf4" if recipe.model.lora else LORA)
    notes = [f"{plan.name} does not fit: {way}" for plan in plans if plan.peak > plan.room]
    return plans, [*notes, "about: by formulas, and a short probe of this machine"]


def summed(plans: Sequence[StagePlan]) -> list[StagePlan]:
    """The plans of cells as one of each stage, with the most memory."""
    found = dict[str, StagePlan]()
    for one in plans:
        other = found.get(one.name, replace(one, work=Work(), peak=0.0, seconds=0.0))
        work = Work(
            rows=max(other.work.rows, one.work.rows),
            learned=other.work.learned + one.work.learned,
            written=other.work.written + one.work.written,
        )
        seconds = (other.seconds or 0) + (one.seconds or 0)
        found[one.name] = replace(one, work=work, peak=max(other.peak, one.peak), seconds=seconds)
    return list(found.values())


def table(plans: Sequence[StagePlan]) -> tuple[tuple[str, ...], list[list[str]]]:
    """A row for each stage."""
    rows = list[list[str]]()
    for plan in plans:
        work, time = plan.work, f"about {duration(float(f'{plan.seconds or 0:.2g}'))}"
        memory = f"about {plan.peak / 1e9:.1f} of {plan.room / 1e9:.1f} GB"
        counts = [short(work.rows), short(work.learned), short(work.written)]
        rows.append([plan.name, plan.plugin, *counts, memory, time])
    return ("stage", "by", "rows", "trained on", "sampled", "memory", "time"), rows

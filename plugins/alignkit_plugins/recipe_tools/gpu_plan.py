"""`alignkit check --gpu GIB`: whether a recipe fits a GPU that is not here.

All is computed from the shapes of the base model and the recipe's lengths. No data are read, so
every row is as long as `max_length` allows, and nothing is asked of the hub.
"""

from __future__ import annotations

import math
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from alignkit.contract.algorithm import Algorithm, Source, Trains
from alignkit.contract.settings import ModelSpec, SamplingOptions, Settings
from alignkit.errors import refuse
from alignkit.host.calls import create
from alignkit.io.text import is_file
from alignkit.kernels.lm_head import CHUNK
from alignkit.models.loading import DTYPES, context_length_of
from alignkit.models.memory import SHARE
from alignkit.recipe.schema import Recipe, Stage
from alignkit.recipe.yaml import plain_data
from alignkit_plugins.recipe_tools.plan import CONTEXT, LORA, Shapes, StagePlan, Work

GIB = 2.0**30
LOGITS = 4  # copies of a chunk's logits in fp32: themselves, the softmax and the gradients
# Prompts of a step, whose data are not read, and tokens of the longest one; as many as fit are
# sampled at a time
MANY, PROMPT = 1024, 1024
NEAR = 5  # models that a message names, by how their names resemble another


def config_of(base: str) -> Any:
    """The configuration of a base model: its folder's, or by its name that of the table. Raises
    RecipeError if there is none.
    """
    from transformers import AutoConfig

    if is_file(Path(base) / "config.json"):
        return AutoConfig.from_pretrained(base)
    table = plain_data(Path(__file__).with_name("shapes.yaml").read_text("utf-8"), "shapes.yaml")
    for name, shapes in table.items():
        if name.lower() in base.lower():
            return AutoConfig.for_model(**shapes)
    names = {name.lower(): name for name in table}
    near = get_close_matches(Path(base).name.lower(), names, n=NEAR, cutoff=0)
    refuse(
        f"the shapes of '{base}' are not known here",
        "name a folder with its config.json, or a model of about its size, such as "
        f"{', '.join(map(names.__getitem__, near))}",
    )


class Card(Shapes):
    """A GPU with a number of bytes."""

    def __init__(self, spec: ModelSpec, room: float):
        dtype = DTYPES.get(spec.dtype, torch.bfloat16 if spec.lora else torch.float32)
        super().__init__(config_of(spec.base), spec, torch.device("cuda"), dtype)
        self.room = room
        self.budget.activation_bytes = 2.0 ** math.floor(math.log2(room * SHARE))

    def plan(self, stage: Stage) -> StagePlan:
        work, settings, options = Work(), stage.settings, stage.component.options
        plugin: Any = create(stage.component, stage.name)
        if settings is None and isinstance(options, SamplingOptions):
            work.new, work.prompt, work.together = options.sampling.max_new_tokens, PROMPT, MANY
            work.written = 1
        elif settings is not None:
            self._training(work, settings, plugin)
        if stage.engine is not None or (not isinstance(plugin, Algorithm) and settings is not None):
            work.note = "what another library holds is not planned"
        return self.taken(stage, work)

    def _training(self, work: Work, settings: Settings, algorithm: Any) -> None:
        """The lengths of the longest group, which no pack cuts, and of a step."""
        work.tokens = min(settings.max_length, context_length_of(self.text))
        if work.tokens < settings.max_length:
            work.note = f"the model reads {work.tokens:,} tokens, less than max_length; "
        if algorithm.source is Source.ROLLOUTS:
            samples = settings.rollout.samples_per_prompt
            work.new = min(settings.rollout.max_new_tokens, work.tokens)
            work.prompt = work.tokens - work.new
            work.tokens = work.prompt + samples * work.new
            work.together = work.written = settings.prompts_per_iteration * samples
        elif algorithm.needs.pairs or algorithm.trains is Trains.REWARD:
            work.tokens *= 2
        work.learned = work.tokens * settings.batch_size
        work.batch = max(work.tokens, min(work.learned, self.budget.tokens))
        if self.recomputed(work) and not self.spec.activation_checkpointing:
            work.note += (
                "rows this long store each layer's input only, as activation_checkpointing does"
            )

    def recomputed(self, work: Work) -> bool:
        """Whether layers are computed again, as a long group's are (`must_recompute`)."""
        return self.spec.activation_checkpointing or self.stored * work.batch > self.room * SHARE

    def activations(self, work: Work) -> float:
        stored, layers = float(self.stored), self.text.num_hidden_layers
        if self.recomputed(work):
            stored = stored / layers + layers * self.text.hidden_size * self.dtype.itemsize
        return stored * work.batch + LOGITS * 4 * CHUNK * self.text.vocab_size

    def first(self, plan: StagePlan) -> str:
        """What to lower first, for the largest part that can be smaller."""
        lora, length = self.spec.lora, f"stages.{plan.name}.max_length"
        again, learned = "model.activation_checkpointing=true", ("adapters", "optimizer")
        lower = {"activations": length if self.recomputed(plan.work) else again}
        if plan.work.new and plan.work.tokens > 2 * plan.work.prompt:  # most of it are samples
            lower["activations"] = f"stages.{plan.name}.rollout.samples_per_prompt"
        if lora is None:
            lower |= dict.fromkeys(("weights", *learned), LORA)
        else:
            lower |= dict.fromkeys(learned, f"model.lora.r={lora.r // 2}")
            if "nf4" not in self.spec.quantization:
                lower["weights"] = "model.quantization=nf4"
            elif self.weights + CONTEXT > self.room:
                return "model.base"
        return lower[max(lower, key=plan.memory.__getitem__)]


def plan_card(recipe: Recipe, gib: float) -> tuple[list[StagePlan], list[str]]:
    """Plan the stages for a GPU of `gib` GiB; and what to know of the numbers."""
    spec, card = recipe.model, Card(recipe.model, gib * GIB)
    plans, notes = list(map(card.plan, recipe.stages.values())), list[str]()
    for plan in plans:
        if plan.peak > plan.room:
            notes.append(f"{plan.name} does not fit: lower first {card.first(plan)}")
    # Forward and back through all weights; adapters alone need no gradient of the base's
    again = any(plan.work.learned and card.recomputed(plan.work) for plan in plans)
    learned = (4 if spec.lora else 6) + 2 * again
    rank = f"LoRA of rank {spec.lora.r}" if spec.lora else "all weights learn"
    size = card.parameters / 1e9
    notes.append(
        f"computed, not measured, in GiB: {spec.base} has {size:.1f} billion weights; quantization "
        f"{spec.quantization}, {rank}, rows as long as max_length; 1 GiB for CUDA; decodes: responses "
        f"at once; time: not known, as nothing was timed on such a GPU: a thousand tokens take about "
        f"{learned * size:.3g} trillion operations to learn, and {2 * size:.3g} to sample"
    )
    return plans, notes


def card_table(plans: list[StagePlan]) -> tuple[tuple[str, ...], list[list[str]]]:
    """A row for each stage."""
    parts = ("weights", "adapters", "optimizer", "activations", "cache")
    rows = []
    for plan in plans:
        cells = [f"{plan.memory[part] / GIB:.1f}" for part in parts]
        fits = "fits" if plan.peak <= plan.room else "too large"
        cells.append(f"{plan.peak / GIB:.1f} of {plan.room / GIB:g}: {fits}")
        rows.append([plan.name, plan.plugin, *cells, str(plan.work.slots or "-")])
    return ("stage", "by", *parts, "at most", "decodes"), rows
